"""Evaluation: many episodes of all runs side by side, one policy call per step for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.environments import Environment
from common.machine import cores
from common.players import Elsewhere, Here, Played, Told
from common.processes import Lost
from common.tasks import Task

MOST_ENVIRONMENTS = 64
"""Of all runs together, unless there are more runs: each holds a simulation of its own in memory."""
MANY_STEPS = 50_000
"""Of environments, in one evaluation: from here on it pays to start processes for them."""


def episode_seed(*path: int) -> int:
    """A seed of 32 bits for one environment episode, a function of the path of integers that leads to it.

    Where a simulator may not take as many, the environment drops the first one (Environment.reset).
    """
    return int(np.random.SeedSequence(path).generate_state(1)[0])


@dataclass(frozen=True)
class Outcome:
    """Finished evaluation episodes of one run; all arrays [episodes]."""

    returns: np.ndarray
    """Undiscounted sum of the environment's own reward."""
    success: np.ndarray
    """Whether the task was solved at any step; None where the environment does not tell."""
    lengths: np.ndarray
    """Environment steps."""

    def row(self, task: Task) -> dict[str, float]:
        """The columns of eval.csv: score and success in percent, nan where the task has none."""
        return {
            "episodes": len(self.returns),
            "return_mean": float(self.returns.mean()),
            "return_std": float(self.returns.std()),
            "score": float(np.mean(task.score(self.returns, self.success))),
            "success": success_rate(self.success),
        }


def success_rate(episodes: Iterable[bool | None]) -> float:
    """Percent of the episodes that succeeded; nan where no environment has told of any."""
    told = [success for success in episodes if success is not None]
    return 100 * float(np.mean([bool(success) for success in episodes])) if told else float("nan")


class Evaluator:
    """The evaluation environments of all runs, kept from one evaluation to the next."""

    def __init__(
        self,
        make: Callable[[], Environment],
        runs: int,
        episodes: int,
        workers: int = 0,
        announce: Callable[[str], None] = print,
        most: int | None = None,
    ):
        """In `workers` processes that play side by side, for which `make` must be picklable; 0: in this one.

        `announce` is told, in a line, if such a process is lost; the evaluation is then played again in this one. There
        are no more than `most` environments, by default MOST_ENVIRONMENTS, or one of each run.
        """
        self.make, self.runs, self.episodes, self.announce = make, runs, episodes, announce
        self.slots = max(1, min(episodes, (most or MOST_ENVIRONMENTS) // runs))
        self.groups: list[tuple[Here | Elsewhere, slice]] = []
        try:
            self._start(workers)
        except Lost as loss:
            self._start_alone(loss)

    def __call__(
        self,
        act: Callable[[np.ndarray], Any],
        seeds: Sequence[int],
        step: int,
        heard: Callable[[int], None] = lambda over: None,
        look: Callable[[], None] = lambda: None,
        telling: Callable[[Told], None] = lambda told: None,
    ) -> list[Outcome]:
        """Play `episodes` episodes per run with `act`: observations [runs, slots, o] to actions [runs, slots, a].

        Of a slot whose episodes are over nothing but zeros is seen. Episode k of a run starts from a seed that depends
        on the run's seed, `step` and k alone, so that a run's evaluation is the same whatever runs beside it, and in
        however many processes, where `act` treats a row alike wherever it stands (programs.py).

        `telling` is called before every `act`, with the rewards that led to what is seen, and where episodes begin,
        [runs, slots], by which a policy with a memory knows what to forget.

        `heard` is called at every step with the number of episodes that are known to be over: those of another process
        are when all of its own are. `look` is called between two steps of environments; what it raises leaves the
        evaluation and this evaluator, as does EnvironmentFailed; another one plays it again from its beginning.
        """
        # Slot k of a run plays its episodes k, k + slots, k + 2 slots and so on.
        schedule = [
            [episode_seed(seed, 1, step, number) for number in range(slot, self.episodes, self.slots)]
            for seed in seeds
            for slot in range(self.slots)
        ]
        try:
            played = self._play(act, schedule, heard, look, telling)
        except Lost as loss:
            self._start_alone(loss)
            played = self._play(act, schedule, heard, look, telling)
        outcomes = []
        for run in range(self.runs):
            slots = played[run * self.slots : (run + 1) * self.slots]
            episodes = [slots[number % self.slots][number // self.slots] for number in range(self.episodes)]
            outcomes.append(Outcome(*(np.array(column) for column in zip(*episodes, strict=True))))
        return outcomes

    def close(self) -> None:
        """Close every environment, and end the processes."""
        for group, _ in self.groups:
            group.close()

    def _start(self, workers: int) -> None:
        """The groups, each with its share of the slots of all runs. Raises Lost."""
        total = self.runs * self.slots
        kind, count = (Elsewhere, min(workers, total)) if workers else (Here, 1)
        borders = [total * number // count for number in range(count + 1)]
        for start, end in itertools.pairwise(borders):
            self.groups.append((kind(self.make, end - start), slice(start, end)))

    def _start_alone(self, loss: Lost) -> None:
        """One group in this process, in place of those there are."""
        self.announce(f"{loss}; evaluation goes on in this one")
        self.close()
        self.groups = []
        self._start(0)

    def _play(
        self,
        act: Callable[[np.ndarray], Any],
        schedule: list[list[int]],
        heard: Callable[[int], None],
        look: Callable[[], None],
        telling: Callable[[Told], None],
    ) -> list[list[Played]]:
        """The episodes of each slot of all runs."""
        observations: np.ndarray | None = None
        told = Told.nothing(len(schedule))
        for group, share in self.groups:
            group.begin(schedule[share])
        going = self.groups
        while True:
            still = []
            for group, share in going:
                seen = group.wait(look)
                if seen is None:
                    observations[share] = told.rewards[share] = 0
                    continue
                still.append((group, share))
                if observations is None:
                    observations = np.zeros((len(schedule), *seen.shape[1:]), np.float32)
                observations[share] = seen
                told.rewards[share], told.begins[share] = group.told
            going = still
            if not going:
                return [episodes for group, _ in self.groups for episodes in group.played]
            heard(sum(len(episodes) for group, _ in self.groups for episodes in group.played))
            telling(Told(*(x.reshape(self.runs, self.slots) for x in told)))
            actions = np.asarray(act(observations.reshape(self.runs, self.slots, -1))).reshape(len(schedule), -1)
            for group, share in going:
                group.act(actions[share])


def useful_workers(steps: int) -> int:
    """How many processes should play evaluations of up to so many environment steps each."""
    return cores() if steps >= MANY_STEPS and cores() > 1 else 0
