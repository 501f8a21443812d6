"""How fast evaluation episodes are played: in the process that trains, and in processes of their own beside it.

    python -m benchmarks.studies.evaluations [--task antmaze-umaze] [--runs 10] [--episodes 10] [--workers 2 4 8]
        [--name NAME]

The same episodes of the same policies, RLPD's before training, in turn, round after round; a ratio is the median over
rounds of the environment steps per second with so many processes over those without any. That the episodes are the same
is checked. Rows go to benchmarks/results/evaluations_NAME.{csv,json}.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from dataclasses import dataclass

import jax
import numpy as np
import tyro
from rich.console import Console

from algorithms.rlpd import PRESETS, RLPD, Config
from benchmarks.reporting.results import publish
from common import commandline, environments, tasks
from common.errors import Refused, exiting
from common.evaluation import Evaluator, Outcome
from common.machine import cores
from common.programs import Programs
from common.replay import Batch


@dataclass(frozen=True)
class Evaluations:
    """What is played."""

    task: str = "antmaze-umaze"
    """Of the table, or any Gymnasium id."""
    runs: int = 10
    """Runs evaluated side by side."""
    episodes: int = 10
    """Episodes of each."""
    workers: tuple[int, ...] = ()
    """Numbers of processes; default: one per core."""
    rounds: int = 5
    """How often each is timed."""
    name: str = "cpu"
    """Of the result."""

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        if min(self.runs, self.episodes, self.rounds, *self.workers, 1) < 1:
            return "--runs, --episodes, --rounds and --workers must be at least 1"
        return None


def policies(asked: Evaluations, sizes: tuple[int, int]) -> tuple[Programs, object]:
    """The programs and fresh agents of all runs, for observations and actions of these sizes."""
    config = commandline.parse(["--env", asked.task], "rlpd", "", Config, PRESETS).config
    programs = Programs(RLPD, config, asked.runs, None, 1)
    configs = jax.tree.map(lambda x: np.full(asked.runs, x, np.float32), config)
    observation, action = (np.zeros((asked.runs, size), np.float32) for size in sizes)
    number = np.zeros(asked.runs, np.float32)
    example = Batch(observation, action, number, number, observation)
    return programs, programs.create(configs, np.arange(asked.runs, dtype=np.int32), example, None)


def main(asked: Evaluations) -> None:
    """Play, print, write."""
    if problem := asked.problem():
        raise Refused(problem)
    task = tasks.find(asked.task)
    with contextlib.closing(environments.make(task)) as environment:
        sizes = environment.observation_size, environment.action_size
    programs, agents = policies(asked, sizes)
    make = functools.partial(environments.make_named, task.name)
    counts = (0, *(asked.workers or (cores(),)))
    seeds = list(range(asked.runs))
    console, expected, rates = Console(), None, {count: [] for count in counts}
    with contextlib.ExitStack() as stack:
        evaluators = {count: Evaluator(make, asked.runs, asked.episodes, count) for count in counts}
        for evaluator in evaluators.values():
            stack.enter_context(contextlib.closing(evaluator))
        for number in range(-1, asked.rounds):  # before the first round everything starts and compiles
            for count, evaluator in evaluators.items():
                start = time.perf_counter()
                outcomes = evaluator(lambda x: programs.act(agents, x), seeds, 0)
                seconds = time.perf_counter() - start
                if number < 0:
                    expected = expected or outcomes
                    check(expected, outcomes)
                    continue
                rates[count].append(sum(int(outcome.lengths.sum()) for outcome in outcomes) / seconds)
            console.print(f"round {number + 1} of {asked.rounds}", highlight=False)
    rows = [
        {
            "task": task.name,
            "runs": asked.runs,
            "episodes": asked.episodes,
            "processes": count,
            "steps_per_second": statistics.median(mine),
            "times_alone": statistics.median(a / b for a, b in zip(mine, rates[0], strict=True)),
        }
        for count, mine in rates.items()
    ]
    for row in rows:
        console.print(f"{row['processes']} processes: {row['times_alone']:.2f} times alone", highlight=False)
    publish(f"evaluations_{asked.name}", rows, "benchmarks.studies.evaluations", rounds=asked.rounds)


def check(expected: list[Outcome], outcomes: list[Outcome]) -> None:
    """Fail if two evaluations of the same policies are not the same."""
    for one, other in zip(expected, outcomes, strict=True):
        jax.tree.map(np.testing.assert_array_equal, vars(one), vars(other))


if __name__ == "__main__":
    exiting("evaluations", lambda: main(tyro.cli(Evaluations, description=__doc__)))
