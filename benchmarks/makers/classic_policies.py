"""Trains the policies behind the recipes of classic control, from nothing, within minutes of one CPU core.

    python -m benchmarks.makers.classic_policies

The DQN of algorithms/discrete_bcq.py, `--preset dqn-online`, with small networks and beside sixteen simulations: a
gradient step per environment step, as discrete BCQ's authors train theirs. DQN comes and goes as it trains: of its
stages the best counts, the last one if there are several. Written are common/recipes/behaviour_TASK.npz and, in
benchmarks/results/classic_policies.{csv,json}, the learning curves, the stages chosen, and the mean returns between
which the tasks' scores are reckoned (common/tasks.py): of uniformly random actions, and of what was written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from algorithms.discrete_bcq import PRESETS, Config, DiscreteBCQ
from benchmarks.makers.locomotion_policies import Herd
from benchmarks.makers.parallel_sac import Memory, Pace
from benchmarks.reporting.results import publish
from common import environments, tasks
from common.errors import Refused, exiting
from common.networks import Network
from common.recipes import behaviour
from common.recipes.behaviour import Greedy
from common.tasks import Task

CONFIG = Config(**PRESETS["dqn-online"] | {"hidden": (64, 64), "utd": 16})
TASKS = {name.removesuffix("-mixed"): name for name in tasks.names() if tasks.find(name).family == "classic"}
"""Name of a policy -> its task."""
Choose = Callable[[np.ndarray], np.ndarray]
"""Observations [n, o] to indices of actions [n]."""


@dataclass(frozen=True)
class Training:
    """What to train and with what."""

    policies: tuple[str, ...] = tuple(TASKS)
    """Which."""
    seed: int = 0
    """Of everything random."""
    every: int = 2000
    """Environment steps between stages."""
    episodes: int = 20
    """Of the evaluation of each stage."""
    final_episodes: int = 500
    """Of which the returns are means that scores are reckoned between."""


def greedy(critic: Network) -> Greedy:
    """A network of values on the host."""
    params = jax.device_get(critic.params)["params"]
    layers = [*(params["MLP_0"][f"Dense_{k}"] for k in range(len(params["MLP_0"]))), params["Dense_0"]]
    return Greedy([(layer["kernel"], layer["bias"]) for layer in layers])


def at_random(actions: int) -> Choose:
    """Uniformly random actions."""
    rng = np.random.default_rng(0)
    return lambda observation: rng.integers(actions, size=len(observation))


def mean_return(task: Task, choose: Choose, episodes: int) -> float:
    """Of episodes played side by side, their seeds the same for every policy."""
    running = {seed: environments.make(task) for seed in range(episodes)}
    seen = {seed: environment.reset(seed) for seed, environment in running.items()}
    choices, total = np.eye(running[0].action_size, dtype=np.float32), 0.0
    while running:
        for seed, index in zip(list(running), choose(np.array([seen[seed] for seed in running])), strict=True):
            step = running[seed].step(choices[index])
            seen[seed] = step.next_observation
            total += step.reward
            if step.terminated or step.truncated:
                running.pop(seed).close()
    return total / episodes


def train(name: str, training: Training, console: Console) -> tuple[list[dict[str, Any]], list[Greedy]]:
    """The stages of one policy: a row about each, and what it was."""
    task = tasks.find(TASKS[name])
    rng, herd = np.random.default_rng(training.seed), Herd(task, CONFIG.utd, training.seed + 1)
    actions, steps = herd.environments[0].action_size, CONFIG.online_steps
    # One step ahead, and a mask that is a mask: the agent has its own discount.
    pace = Pace(CONFIG.utd, 1.0, 1, CONFIG.start_training, 1, steps)
    memory = Memory(pace, herd.observation.shape[1], actions)
    example = jax.tree.map(lambda rows: rows[0], memory.rows)
    agent = DiscreteBCQ.create(CONFIG, jax.random.key(training.seed), example, None)
    learn, choices, policy = jax.jit(DiscreteBCQ.update), np.eye(actions, dtype=np.float32), greedy(agent.critic)
    rows, stages = [], []
    for step in range(CONFIG.utd, steps + 1, CONFIG.utd):
        observation = herd.observation
        epsilon = 1.0 if step <= CONFIG.start_training else CONFIG.exploration
        is_random = rng.random(CONFIG.utd) < epsilon
        action = choices[np.where(is_random, rng.integers(actions, size=CONFIG.utd), policy(observation))]
        following, reward, terminated, truncated = herd.step(action)
        memory.add(observation, action, reward, terminated, truncated, following)
        if step > CONFIG.start_training:
            batches = memory.draw(rng, (CONFIG.utd, CONFIG.batch_size))
            agent, _ = learn(agent, batches, jax.random.key(0), jnp.int32(1))
            policy = greedy(agent.critic)
        if step % training.every < CONFIG.utd:
            stages.append(policy)
            rows.append({"policy": name, "step": step, "return": mean_return(task, policy, training.episodes)})
            console.print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), highlight=False)
    return rows, stages


def main(training: Training) -> None:
    """Train, write the policies, the curves and the returns."""
    if not set(training.policies) <= set(TASKS) or min(training.every, training.episodes, training.final_episodes) < 1:
        raise Refused(f"--policies are of {', '.join(TASKS)}; --every, --episodes, --final-episodes at least 1")
    console, rows, returns = Console(), [], {}
    for name in training.policies:
        start, task = time.process_time(), tasks.find(TASKS[name])
        curve, stages = train(name, training, console)
        best = max(range(len(curve)), key=lambda number: (curve[number]["return"], number))
        rows += [row | {"chosen": int(number == best)} for number, row in enumerate(curve)]
        behaviour.save(name, [stages[best]])
        behaviour.load_greedy.cache_clear()
        seconds, actions = time.process_time() - start, len(stages[0].layers[-1][1])
        returns[name] = {
            "random": mean_return(task, at_random(actions), training.final_episodes),
            "greedy": mean_return(task, behaviour.load_greedy(name), training.final_episodes),
            "cpu_seconds_of_training": round(seconds, 1),
        }
        console.print(name, returns[name], highlight=False)
    publish("classic_policies", rows, "benchmarks.makers.classic_policies", returns=returns)


if __name__ == "__main__":
    exiting("classic_policies", lambda: main(tyro.cli(Training, description=__doc__)))
