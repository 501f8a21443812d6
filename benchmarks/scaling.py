"""What a large benchmark costs: on one machine, on eight, on a hundred, and where more of them no longer help.

    python -m benchmarks.scaling [--throughput cpu] [--algorithms 25] [--tasks 20] [--seeds 10] [--machines 1 8 100]
        [--steps-per-second 27000]

From what was measured in benchmarks/results/throughput_NAME.csv (updates per second and first calls of algorithms, on
one machine, with a GPU or without) and from the environment steps that a core takes per second, timed here unless they
are given; the rest is arithmetic. A benchmark is algorithms x tasks x seeds; those that were not measured, or are not
written yet, are taken to cost what the measured ones cost, in turn. A job is an algorithm on a task with all its seeds
side by side, or with one; a job is never spread over machines, jobs do not speak with each other, and go to whichever
machine is free, the longest first: more machines are of no use than it takes so for all jobs to end with the longest.
Sizes are the papers', as each algorithm's presets have them for one task of locomotion, and twenty evaluations of ten
episodes of a thousand steps.

Learning and environments are taken to wait for each other, as they do in training.py. Online, the environments of all
seeds are stepped one after another by one core; evaluations have all the machine's cores. Rows go to
benchmarks/results/scaling_NAME.{csv,json}, the page to scaling_NAME.md.
"""

from __future__ import annotations

import bisect
import heapq
import importlib
import itertools
import json
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

import algorithms
from benchmarks.report import markdown
from benchmarks.reporting.results import file, publish, rows_of, write
from common import commandline, counts, environments, tasks
from common.errors import Refused, exiting

EVALUATIONS, EPISODES, HORIZON = 20, 10, 1000
TASK = "halfcheetah-medium"
COLUMNS = {"algorithm", "whose", "runs", "updates_per_second", "first_two_calls_seconds"}
"""Of throughput_NAME.csv, those that count."""


@dataclass(frozen=True)
class Scaling:
    """What is reckoned."""

    throughput: str = "cpu"
    """Which measurement: NAME of benchmarks/results/throughput_NAME.csv."""
    algorithms: int = 25
    """Algorithms of the benchmark."""
    tasks: int = 20
    """Tasks of the benchmark."""
    seeds: int = 10
    """Seeds of each algorithm on each task."""
    machines: tuple[int, ...] = (1, 8, 100, 500, 1000)
    """Numbers of machines, each like the one measured."""
    cores: int | None = None
    """Cores of each machine for its evaluations; default: those of the one measured."""
    steps_per_second: float | None = None
    """Environment steps that such a core takes per second; default: timed here, where other work slows it down."""


@dataclass(frozen=True)
class Cost:
    """Seconds that a job takes of its machine."""

    start: float
    learning: float
    environments: float

    @property
    def whole(self) -> float:
        """One after the other."""
        return self.start + self.learning + self.environments


def size(algorithm: str) -> tuple[int, int, int]:
    """Updates offline, environment steps online, and updates at each of them, as the algorithm's presets have them."""
    module = importlib.import_module(f"algorithms.{algorithm}")
    config = commandline.parse(["--env", TASK], algorithm, "", module.Config, module.PRESETS).config
    phases = dict(config.phases)
    online = phases.pop("online", 0)
    return sum(phases.values()), online, config.utd if online else 0


def cost(rows: Sequence[dict[str, str]], algorithm: str, seeds: int, steps_per_second: float, cores: int) -> Cost:
    """Of one algorithm on one task with some seeds; `steps_per_second` are the environments', on one core.

    More seeds than were measured are taken to learn as fast together as the most that were.
    """
    measured = {int(row["runs"]): row for row in rows if row["algorithm"] == algorithm}
    row = measured[max(count for count in measured if count <= max(seeds, min(measured)))]
    offline, online, utd = size(algorithm)
    return Cost(
        start=float(row["first_two_calls_seconds"]),
        learning=seeds * (offline + utd * online) / float(row["updates_per_second"]),
        environments=seeds * (online + EVALUATIONS * EPISODES * HORIZON / cores) / steps_per_second,
    )


def makespan(jobs: Sequence[float], machines: int) -> float:
    """Seconds until the last of the jobs ends: each in turn, the longest first, on whichever machine is free."""
    free = [0.0] * machines
    for job in sorted(jobs, reverse=True):
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def enough(jobs: Sequence[float]) -> int:
    """The least number of machines with which all jobs end with the longest of them: more are of no use."""
    longest = max(jobs) * (1 + 1e-9)  # sums of several jobs are rounded
    # No machine that is added makes the end come later.
    counts = range(1, len(jobs) + 1)
    return counts[bisect.bisect_left(counts, True, key=lambda machines: makespan(jobs, machines) <= longest)]


def environment_rate(seconds: float = 2.0) -> float:
    """Steps per second of one core of this machine in an environment of locomotion, actions drawn at random.

    The clock is the processor's: what others do on the core meanwhile does not count.
    """
    environment = environments.make(tasks.find(TASK))
    rng = np.random.default_rng(0)
    environment.reset(0)
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        if environment.step(rng.uniform(-1, 1, environment.action_size).astype(np.float32)).truncated:
            environment.reset(0)
        count += 1
    rate = count / (time.process_time() - start)
    environment.close()
    return rate


def duration(seconds: float) -> str:
    """In minutes, hours or days."""
    hours = seconds / 3600
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"


def read(name: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Our rows of a measurement, and how it was made. Raises Refused if there is none of that name, or an old one.

    A row without the time of its first calls cannot say what a whole job takes, and is left out.
    """
    rows = rows_of("throughput", name)
    if not rows or COLUMNS - rows[0].keys():
        raise Refused(f"throughput_{name}.csv has other columns: measure anew with python -m benchmarks.throughput")
    ours = [row for row in rows if row["whose"] == "ours" and row["first_two_calls_seconds"]]
    return ours, json.loads(file(f"throughput_{name}", ".json").read_text())


def unmeasured(names: Collection[str]) -> list[str]:
    """The algorithms there are that are not among these."""
    files = Path(algorithms.__file__).parent.glob("*.py")
    return sorted(path.stem for path in files if path.stem not in ("__init__", *names))


def main(asked: Scaling) -> None:
    """Reckon, print, write."""
    if min(asked.algorithms, asked.tasks, asked.seeds, asked.cores or 1, *asked.machines or (0,)) < 1:
        raise Refused("--algorithms, --tasks, --seeds, --cores and --machines must be at least 1")
    if asked.steps_per_second is not None and not 0 < asked.steps_per_second < math.inf:
        raise Refused(f"--steps-per-second must be positive, not {asked.steps_per_second}")
    rows, about = read(asked.throughput)
    device, rate = about["device"], asked.steps_per_second or environment_rate()
    costs: dict[str, dict[str, Cost]] = {}
    for name, seeds in (("together", asked.seeds), ("alone", 1)):
        machine = rate, asked.cores or device["cores"]
        costs[name] = {row["algorithm"]: cost(rows, row["algorithm"], seeds, *machine) for row in rows}
    count = asked.algorithms * asked.tasks
    jobs = {"together": lengths(costs["together"], count), "alone": lengths(costs["alone"], count * asked.seeds)}
    found = [row_of(machines, jobs) for machines in asked.machines]
    missing = unmeasured(costs["alone"])
    text = page(asked, found, costs, jobs, rate, f"{device['kind']}, {device['cores']} cores", missing)
    Console().print(Markdown(text))
    publish(
        f"scaling_{asked.throughput}",
        found,
        "benchmarks.scaling",
        environment_steps_per_second=rate,
        machines_of_use={name: enough(each) for name, each in jobs.items()},
        not_measured=missing,
        throughput={key: about.get(key) for key in ("command", "commit", "device")},
    )
    write(file(f"scaling_{asked.throughput}", ".md"), text)


def lengths(costs: dict[str, Cost], count: int) -> list[float]:
    """Seconds of as many jobs, which cost what these do, in turn."""
    return [each.whole for each in itertools.islice(itertools.cycle(costs.values()), count)]


def row_of(machines: int, jobs: dict[str, list[float]]) -> dict[str, float]:
    """What so many machines make of either kind of jobs."""
    row: dict[str, float] = {"machines": machines}
    for name, each in jobs.items():
        seconds = makespan(each, machines)
        row |= {f"{name}_jobs": len(each), f"{name}_hours": seconds / 3600}
        row |= {f"{name}_machine_hours": sum(each) / 3600, f"{name}_busy": sum(each) / machines / seconds}
    return row


def page(
    asked: Scaling,
    found: list[dict],
    costs: dict[str, dict[str, Cost]],
    jobs: dict[str, list[float]],
    rate: float,
    machine: str,
    missing: Sequence[str],
) -> str:
    """The page, in Markdown."""
    each = [["algorithm", f"{asked.seeds} seeds", "of which environments", "one seed"]]
    for algorithm, together in costs["together"].items():
        share = f"{together.environments / together.whole:.0%}"
        each.append([algorithm, duration(together.whole), share, duration(costs["alone"][algorithm].whole)])
    lines = [["machines", f"jobs of {asked.seeds} seeds", "machines busy", "jobs of one seed", "machines busy"]]
    for row in found:
        cells = [f"{row['machines']:,}"]
        for name in ("together", "alone"):
            cells += [duration(3600 * row[f"{name}_hours"]), f"{row[f'{name}_busy']:.0%}"]
        lines.append(cells)
    many, more = (f"{enough(jobs[name]):,}" for name in ("together", "alone"))
    soon, sooner = (duration(max(jobs[name])) for name in ("together", "alone"))
    extra = sum(jobs["alone"]) / sum(jobs["together"])
    absent = f"Not measured on this machine: {', '.join(missing)}. " if missing else ""
    return f"""# {asked.algorithms} algorithms on {asked.tasks} tasks with {asked.seeds} seeds

At the papers' sizes, on machines like the one measured ({machine}).
A core takes {rate:,.0f} environment steps per second ({"timed here" if asked.steps_per_second is None else "given"}).

{markdown(each)}

{markdown(lines)}

No job is spread over machines, so nothing ends before its longest job: with all seeds in one job, {many} machines
end with it, after {soon}, and more are of no use; with one seed in each, which costs {extra:.2f} times as many machine
hours, {more} do, after {sooner}.
{absent}All other algorithms are taken to cost what the {len(each) - 1} measured ones cost, in turn.
"""


if __name__ == "__main__":
    exiting("scaling", lambda: main(counts.cli(Scaling, description=__doc__)))
