"""How fast experience is collected: in the process that trains, and in processes of their own beside it.

    python -m benchmarks.studies.collection [--tasks antmaze-umaze hopper-medium] [--runs 10] [--workers 2 4 8]

The same random actions of the same runs, in turn, round after round; a ratio is the median over rounds of the
environment steps per second with so many processes over those without any. Nothing is learnt meanwhile. That the
transitions are the same is checked. Rows go to benchmarks/results/collection_NAME.{csv,json}.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from benchmarks.reporting.results import publish
from common import environments, tasks
from common.collection import Collector
from common.errors import Refused, exiting
from common.machine import cores


@dataclass(frozen=True)
class Collection:
    """What is collected."""

    tasks: tuple[str, ...] = ("antmaze-umaze", "hopper-medium", "pointmaze-large")
    """Of the table, or any Gymnasium ids."""
    runs: int = 10
    """Runs that collect side by side."""
    steps: int = 500
    """Of each run in a round."""
    workers: tuple[int, ...] = ()
    """Numbers of processes; default: one per core."""
    rounds: int = 5
    """How often each is timed."""
    name: str = "cpu"
    """Of the result."""

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        if min(self.runs, self.steps, self.rounds, *self.workers, 1) < 1:
            return "--runs, --steps, --rounds and --workers must be at least 1"
        return None


def measure(asked: Collection, name: str) -> list[dict[str, Any]]:
    """One row for each number of processes."""
    task, counts = tasks.find(name), (0, *(asked.workers or (cores(),)))
    make = functools.partial(environments.make_named, task.name)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    with contextlib.ExitStack() as stack:
        collectors = {count: Collector(make, task, list(range(asked.runs)), True, count) for count in counts}
        for collector in collectors.values():
            stack.enter_context(contextlib.closing(collector))
        size = collectors[0].environments[0].action_size
        for number in range(asked.rounds):
            shape = asked.steps, asked.runs, size
            actions = np.random.default_rng(number).uniform(-1, 1, shape).astype(np.float32)
            last = {}
            for count, collector in collectors.items():
                start = time.perf_counter()
                for action in actions:
                    last[count] = collector.step(action)
                rates[count].append(asked.steps * asked.runs / (time.perf_counter() - start))
                jax.tree.map(np.testing.assert_array_equal, last[count], last[0])
    return [
        {
            "task": task.name,
            "runs": asked.runs,
            "processes": count,
            "steps_per_second": statistics.median(mine),
            "times_alone": statistics.median(a / b for a, b in zip(mine, rates[0], strict=True)),
        }
        for count, mine in rates.items()
    ]


def main(asked: Collection) -> None:
    """Collect, print, write."""
    if problem := asked.problem():
        raise Refused(problem)
    console, rows = Console(), []
    for name in asked.tasks:
        for row in measure(asked, name):
            rows.append(row)
            console.print(
                f"{row['task']}, {row['processes']} processes: {row['steps_per_second']:.0f} steps per second, "
                f"{row['times_alone']:.2f} times alone",
                highlight=False,
            )
    publish(f"collection_{asked.name}", rows, "benchmarks.studies.collection", rounds=asked.rounds)


if __name__ == "__main__":
    exiting("collection", lambda: main(tyro.cli(Collection, description=__doc__)))
