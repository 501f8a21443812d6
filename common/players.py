"""Episodes of environments that a policy elsewhere acts in: in this process, or in processes of their own.

A group of environments plays a schedule: for each, the seeds of the episodes that it plays one after the other. `begin`
starts a schedule; then `wait` returns the observations [environments, o] to act on, and `act` takes the actions
[environments, a] for them, until `wait` returns None and `played` holds what became of the episodes. `told` has the
rewards that led to what is seen, and where episodes begin. Between `act` and `wait`, a group in a process of its own is
at work while others are. Of an environment whose episodes are over nothing but zeros is seen, and it takes no notice of
its actions. `look` is called between two steps of environments, and may raise what ends the play.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np

from common.environments import Environment
from common.makers import name_of
from common.processes import Process

Schedule = Sequence[Sequence[int]]
"""For each environment, the seeds of its episodes."""


class Played(NamedTuple):
    """One finished episode."""

    return_: float
    """Undiscounted sum of the environment's own reward."""
    success: bool
    """Whether the task was solved at any step."""
    length: int
    """Environment steps."""


class Told(NamedTuple):
    """What environments tell beside their observations."""

    rewards: np.ndarray
    """float32 [environments]: of the last actions; 0 where an episode begins, or all are over."""
    begins: np.ndarray
    """bool [environments]: whether the observation is an episode's first."""

    @classmethod
    def nothing(cls, count: int) -> Told:
        """Of environments that have not been asked yet."""
        return cls(np.zeros(count, np.float32), np.zeros(count, bool))


def playable(actions: np.ndarray, diverged: Callable[[int], object]) -> np.ndarray:
    """Actions [runs, ..., a], zero where they are not finite: a run that has diverged scores and stops no other.

    `diverged` is told the numbers of such runs.
    """
    broken = ~np.isfinite(actions).all(axis=-1, keepdims=True)
    if not broken.any():
        return actions
    for run in np.flatnonzero(broken.reshape(len(broken), -1).any(axis=1)).tolist():
        diverged(run)
    return np.where(broken, np.float32(0), actions)


class Here:
    """A group in this process."""

    def __init__(self, make: Callable[[], Environment], count: int):
        self.environments = [make() for _ in range(count)]
        self.told = Told.nothing(count)
        """Beside the last observations."""
        self._look: Callable[[], None] = lambda: None
        self.played: list[list[Played]] = []
        """For each environment, its episodes in the order of the schedule, so far."""

    def begin(self, schedule: Schedule) -> None:
        """Start to play."""
        self.played = [[] for _ in schedule]
        self._game, self._actions = self._play(schedule), None

    def act(self, actions: np.ndarray) -> None:
        """Take the actions for the last observations."""
        self._actions = actions

    def wait(self, look: Callable[[], None] = lambda: None) -> np.ndarray | None:
        """The next observations, or None. Raises EnvironmentFailed."""
        self._look = look
        try:
            return self._game.send(self._actions)
        except StopIteration:
            return None

    def first(self, schedule: Schedule) -> tuple[np.ndarray, Told] | list[list[Played]]:
        """Start to play: the first observations and what is told beside them, or what became of the episodes."""
        self.begin(schedule)
        return self._seen()

    def next(self, actions: np.ndarray) -> tuple[np.ndarray, Told] | list[list[Played]]:
        """The same after these actions."""
        self.act(actions)
        return self._seen()

    def _seen(self) -> tuple[np.ndarray, Told] | list[list[Played]]:
        observations = self.wait()
        return self.played if observations is None else (observations, self.told)

    def close(self) -> None:
        """Release the simulations."""
        for environment in self.environments:
            environment.close()

    def _play(self, schedule: Schedule) -> Generator[np.ndarray, np.ndarray, None]:
        observations = np.zeros((len(self.environments), self.environments[0].observation_size), np.float32)
        played, told = self.played, Told.nothing(len(self.environments))
        self.told = told
        going = [number for number, seeds in enumerate(schedule) if seeds]
        now = [Played(0.0, False, 0)] * len(schedule)
        for number in going:
            self._look()
            observations[number] = self.environments[number].reset(schedule[number][0])
            told.begins[number] = True
        while going:
            actions = yield observations
            for number in tuple(going):
                self._look()
                taken = self.environments[number].step(actions[number])
                observations[number], told.rewards[number] = taken.next_observation, taken.reward
                told.begins[number] = False
                return_, success, length = now[number]
                now[number] = Played(return_ + taken.reward, success or taken.success, length + 1)
                if not (taken.terminated or taken.truncated):
                    continue
                played[number].append(now[number])
                told.rewards[number] = 0
                if len(played[number]) == len(schedule[number]):
                    going.remove(number)
                    observations[number] = 0
                else:
                    now[number] = Played(0.0, False, 0)
                    seed = schedule[number][len(played[number])]
                    observations[number] = self.environments[number].reset(seed)
                    told.begins[number] = True


class Elsewhere:
    """A group in a process of its own."""

    def __init__(self, make: Callable[[], Environment], count: int):
        """Raises Lost, as does all else."""
        self.played: list[list[Played]] = []
        """As Here.played; empty until all of them are over."""
        self.told = Told.nothing(count)
        self._process = Process(functools.partial(Here, make, count), name_of(make))

    def begin(self, schedule: Schedule) -> None:
        """As Here.begin."""
        self.played = []
        self._process.ask("first", schedule)

    def act(self, actions: np.ndarray) -> None:
        """As Here.act."""
        self._process.ask("next", actions)

    def wait(self, look: Callable[[], None] = lambda: None) -> np.ndarray | None:
        """As Here.wait; what has failed in the process is raised here."""
        answer = self._process.answer(look)
        if isinstance(answer, tuple):
            observations, self.told = answer
            return observations
        self.played = answer
        return None

    def close(self) -> None:
        """End the process."""
        self._process.close()
