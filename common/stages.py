"""Stages: the environments of some runs, each in its own episode, in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from common.environments import Environment, Step
from common.evaluation import episode_seed


class Stage:
    """The environments of some runs. Episode k of a run is a function of the run's seed, k and the actions."""

    def __init__(self, make: Callable[[], Environment], seeds: Sequence[int]):
        """`seeds` are those of the runs."""
        self.seeds, self.environments = seeds, [make() for _ in seeds]

    def open(self, number: int, episode: int) -> np.ndarray:
        """The first observation of an episode of the run at this place. Raises EnvironmentFailed, as do the others."""
        return self.environments[number].reset(self._seed(number, episode))

    def step(self, actions: np.ndarray, episodes: Sequence[int]) -> list[tuple[Step, np.ndarray | None]]:
        """What actions [runs, a] have led to in these episodes, and where one is over, the next one's beginning."""
        taken = [environment.step(action) for environment, action in zip(self.environments, actions, strict=True)]
        return [
            (step, self.open(number, episodes[number] + 1) if step.terminated or step.truncated else None)
            for number, step in enumerate(taken)
        ]

    def replay(self, number: int, episode: int, actions: Sequence[np.ndarray]) -> np.ndarray:
        """The observation after these actions."""
        return self.environments[number].replay(self._seed(number, episode), actions)

    def close(self) -> None:
        """Release the simulations."""
        for environment in self.environments:
            environment.close()

    def _seed(self, number: int, episode: int) -> int:
        return episode_seed(self.seeds[number], 0, episode)
