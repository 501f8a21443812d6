"""Trains the policies behind the locomotion recipes, from nothing, on a CPU.

    python -m benchmarks.makers.locomotion_policies --body halfcheetah [--minutes 25] [--seed 0]

Soft actor-critic beside sixteen bodies (parallel_sac.py), with a small actor, so that many stages of it can be shipped.
D4RL's definitions: `expert` is the policy trained to completion, here the one with the best return, sampled, among the
stages of the last third; `medium` is the first with two fifths of the expert's score; the replay is what was
collected up to medium, here by stages evenly spaced from the beginning to there. Written are
common/recipes/behaviour_BODY.npz and the learning curve, with the stages chosen, in
benchmarks/results/locomotion_policies_BODY.{csv,json}; the command that made a body's policies stands there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console

from algorithms.rlpd import Config
from benchmarks.makers.parallel_sac import Learner, Pace
from benchmarks.reporting.results import publish
from common import environments, tasks
from common.errors import Refused, exiting
from common.recipes import behaviour
from common.recipes.behaviour import Policy

LEARNER = Config(
    discount=1.0,  # n-step transitions carry their own, in the mask
    hidden=(128, 128), ensemble=2, target_subset=2, layer_norm=True, utd=2, offline_ratio=0.0,
)  # fmt: skip
MEDIUM = 0.4
"""Of the expert's score: D4RL's "about a third", and just too much for a hopper that stands still for 1000 steps."""
REPLAY_STAGES = 10
"""Policies whose data make a replay set, medium among them."""


@dataclass(frozen=True)
class Training(Pace):
    """What to train, how long and with what."""

    body: Literal["hopper", "halfcheetah", "walker2d"] = "hopper"
    """Which body."""
    minutes: float = 25.0
    """Wall-clock time to train for."""
    seed: int = 0
    """Of everything random."""
    episodes: int = 10
    """Of the evaluation of each stage."""
    every: int = 20_000
    """Steps of all bodies together between stages."""
    actor: tuple[int, ...] = (64, 64)
    """Hidden layers of the actor."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    batch_size: int = 256
    """Transitions per critic step."""
    target_entropy: float = -0.5
    """Per action dimension."""
    simulations: int = 16
    discount: float = 0.99
    steps_ahead: int = 3
    random_steps: int = 10_000
    updates: int = 2
    capacity: int = 1_000_000


class Herd:
    """Bodies side by side, each in Gymnasium's own environment."""

    def __init__(self, task: tasks.Task, count: int, seed: int):
        self.environments = [environments.make(task) for _ in range(count)]
        self.rng = np.random.default_rng(seed)
        self.observation = np.array([self._reset(environment) for environment in self.environments])

    def _reset(self, environment: environments.Environment) -> np.ndarray:
        return environment.reset(int(self.rng.integers(2**31)))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Next observation, reward, terminated, truncated. `observation` is what follows, of a new episode perhaps."""
        steps = [environment.step(a) for environment, a in zip(self.environments, action, strict=True)]
        following = np.array([step.next_observation for step in steps])
        self.observation = np.array(
            [
                self._reset(environment) if step.terminated or step.truncated else step.next_observation
                for environment, step in zip(self.environments, steps, strict=True)
            ]
        )
        columns = zip(*((step.reward, step.terminated, step.truncated) for step in steps), strict=True)
        reward, terminated, truncated = (np.array(column) for column in columns)
        return following, reward.astype(np.float32), terminated, truncated


def mean_return(task: tasks.Task, policy: Policy, episodes: int) -> float:
    """Of episodes acted in by samples of the policy, side by side, their seeds the same for every policy."""
    environment_list = [environments.make(task) for _ in range(episodes)]
    rng = np.random.default_rng(0)
    observation = np.array([environment.reset(seed) for seed, environment in enumerate(environment_list)])
    returns, running = np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        action = policy(observation, rng)
        for k in np.flatnonzero(running):
            step = environment_list[k].step(action[k])
            observation[k] = step.next_observation
            returns[k] += step.reward
            running[k] = not (step.terminated or step.truncated)
    return float(returns.mean())


def choose(scores: list[float]) -> tuple[list[int], int]:
    """The stages of the replay, medium the last of them, and the expert; `scores` in percent, in order of training."""
    late = 2 * len(scores) // 3
    expert = late + int(np.argmax(scores[late:]))
    medium = next(stage for stage, score in enumerate(scores) if score >= MEDIUM * scores[expert])
    replay = np.linspace(0, medium, min(REPLAY_STAGES, medium + 1)).round().astype(int).tolist()
    return replay, expert


def main(training: Training) -> None:
    """Train, say how it goes at every stage, write the policies and the curve."""
    if training.minutes <= 0 or min(training.episodes, training.every, training.simulations) < 1:
        raise Refused("--minutes must be more than 0, --episodes, --every and --simulations at least 1")
    console = Console()
    task = tasks.find(f"{training.body}-expert")
    herd = Herd(task, training.simulations, training.seed + 1)
    config = LEARNER.replace(
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        target_entropy_per_action=training.target_entropy,
    )
    learner = Learner(
        config, training, training.seed, herd.observation.shape[1], herd.environments[0].action_size,
        actor_hidden=training.actor,
    )  # fmt: skip
    stages: list[Policy] = []
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    while time.perf_counter() - start < 60 * training.minutes:
        if learner.steps >= len(stages) * training.every:
            return_ = mean_return(task, learner.policy, training.episodes)
            stages.append(learner.policy)
            row = {
                "stage": len(rows),
                "steps": learner.steps,
                "critic_updates": learner.updates,
                "return": return_,
                "score": float(task.score(return_, 0.0)),
                "q": float(learner.metrics.get("q", np.nan)),
                "temperature": float(learner.metrics.get("temperature", np.nan)),
            }
            rows.append(row)
            passed = f"{time.perf_counter() - start:.0f} s"
            console.print(passed, "  ".join(f"{k} {v:.4g}" for k, v in row.items()), highlight=False, soft_wrap=True)
        observation = herd.observation
        action = learner.act(observation)
        following, reward, terminated, truncated = herd.step(action)
        learner.observe(observation, action, reward, terminated, truncated, following)
    replay, expert = choose([row["score"] for row in rows])
    behaviour.save(training.body, [stages[stage] for stage in (*replay, expert)])
    publish(
        f"locomotion_policies_{training.body}",
        rows,
        "benchmarks.makers.locomotion_policies",
        replay=replay,
        medium=replay[-1],
        expert=expert,
    )


if __name__ == "__main__":
    exiting("locomotion_policies", lambda: main(tyro.cli(Training, description=__doc__)))
