"""Evaluation: many episodes of all runs side by side, one policy call per step for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.environments import Environment
from common.tasks import Task

MOST_ENVIRONMENTS = 32
"""Of all runs together: each holds a simulation of its own in memory."""


def episode_seed(*path: int) -> int:
    """A seed for one environment episode, a function of the path of integers that leads to it."""
    return int(np.random.SeedSequence(path).generate_state(1)[0])


@dataclass(frozen=True)
class Outcome:
    """Finished evaluation episodes of one run; all arrays [episodes]."""

    returns: np.ndarray
    """Undiscounted sum of the environment's own reward."""
    success: np.ndarray
    """Whether the task was solved at any step."""
    lengths: np.ndarray
    """Environment steps."""

    def row(self, task: Task) -> dict[str, float]:
        """The columns of eval.csv: score and success in percent, nan where the task has none."""
        return {
            "episodes": len(self.returns),
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "score": float(np.mean(task.score(self.returns, self.success))),
            "success": 100 * float(self.success.mean()) if task.knows_success else float("nan"),
        }


class Evaluator:
    """The evaluation environments of all runs, kept from one evaluation to the next."""

    def __init__(self, make: Callable[[], Environment], runs: int, episodes: int):
        self.episodes = episodes
        slots = max(1, min(episodes, MOST_ENVIRONMENTS // runs))
        self.environments = [[make() for _ in range(slots)] for _ in range(runs)]

    def __call__(self, act: Callable[[np.ndarray], Any], seeds: Sequence[int], step: int) -> list[Outcome]:
        """Play `episodes` episodes per run with `act`: observations [runs, slots, o] to actions [runs, slots, a].

        Episode k of a run starts from a seed that depends on the run's seed, `step` and k alone, so that a run's
        evaluation is the same whatever runs beside it.
        """
        runs, slots = len(self.environments), len(self.environments[0])
        size = self.environments[0][0].observation_size
        observations = np.zeros((runs, slots, size), np.float32)
        returns = np.zeros((runs, self.episodes))
        success = np.zeros((runs, self.episodes), bool)
        lengths = np.zeros((runs, self.episodes), int)
        episode = np.full((runs, slots), -1)  # the episode each slot plays; -1: none is left
        started = np.zeros(runs, int)

        def start(run: int, slot: int) -> None:
            episode[run, slot] = -1
            if started[run] < self.episodes:
                episode[run, slot] = number = started[run]
                started[run] += 1
                seed = episode_seed(seeds[run], 1, step, number)
                observations[run, slot] = self.environments[run][slot].reset(seed)

        for run in range(runs):
            for slot in range(slots):
                start(run, slot)
        while (episode >= 0).any():
            actions = np.asarray(act(observations))
            for run, slot in np.argwhere(episode >= 0):
                number = episode[run, slot]
                taken = self.environments[run][slot].step(actions[run, slot])
                observations[run, slot] = taken.next_observation
                returns[run, number] += taken.reward
                success[run, number] |= taken.success
                lengths[run, number] += 1
                if taken.terminated or taken.truncated:
                    start(run, slot)
        return [Outcome(*arrays) for arrays in zip(returns, success, lengths, strict=True)]

    def close(self) -> None:
        """Close every environment."""
        for environment in (e for row in self.environments for e in row):
            environment.close()
