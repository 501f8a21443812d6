"""What a large benchmark costs: on one machine, on eight, on a hundred, and where more of them no longer help.

    python -m benchmarks.scaling [--throughput cpu] [--algorithms 25] [--tasks 20] [--seeds 10] [--machines 1 8 100]

From what was measured in benchmarks/results/throughput_NAME.csv (updates per second and first calls of every algorithm
there is, on one machine) and from the environment steps that a core of this machine takes per second; the rest is
arithmetic. A benchmark is algorithms x tasks x seeds; those that have not been written are taken to cost what the
measured ones cost, in turn. A job is an algorithm on a task with all its seeds side by side, or with
one; a job is never spread over machines, jobs do not speak with each other, and go to whichever machine is free, the
longest first. Sizes are the papers': a million updates offline, 250,000 environment steps of twenty updates each where
an algorithm learns online, and twenty evaluations of ten episodes of a thousand steps.

Learning and environments are taken to wait for each other, as they do in training.py, and environments to have all the
machine's cores. Rows go to benchmarks/results/scaling_NAME.{csv,json}, the page to scaling_NAME.md.
"""

from __future__ import annotations

import csv
import heapq
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tyro
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.report import markdown
from benchmarks.results import FOLDER, publish
from benchmarks.throughput import ONLINE
from common import environments, tasks
from common.errors import Refused, exiting

OFFLINE_UPDATES, ONLINE_STEPS, UTD = 1_000_000, 250_000, 20
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
    """Cores of each machine for its environments; default: those of the one measured."""


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


def cost(rows: Sequence[dict[str, str]], algorithm: str, seeds: int, steps_per_second: float) -> Cost:
    """Of one algorithm on one task with some seeds; `steps_per_second` are the environments', on all cores.

    More seeds than were measured are taken to learn as fast together as the most that were.
    """
    measured = {int(row["runs"]): row for row in rows if (row["algorithm"], row["whose"]) == (algorithm, "ours")}
    row = measured[max(count for count in measured if count <= max(seeds, min(measured)))]
    online_steps = ONLINE_STEPS if algorithm in ONLINE else 0
    offline = 0 if algorithm == "rlpd" else OFFLINE_UPDATES
    steps = online_steps + EVALUATIONS * EPISODES * HORIZON
    return Cost(
        start=float(row["first_two_calls_seconds"]),
        learning=seeds * (offline + UTD * online_steps) / float(row["updates_per_second"]),
        environments=seeds * steps / steps_per_second,
    )


def makespan(jobs: Sequence[float], machines: int) -> float:
    """Seconds until the last of the jobs ends: each in turn, the longest first, on whichever machine is free."""
    free = [0.0] * machines
    for job in sorted(jobs, reverse=True):
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def environment_rate(seconds: float = 2.0) -> float:
    """Steps per second of one core of this machine in an environment of locomotion, actions drawn at random."""
    environment = environments.make(tasks.find(TASK))
    rng = np.random.default_rng(0)
    environment.reset(0)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        if environment.step(rng.uniform(-1, 1, environment.action_size).astype(np.float32)).truncated:
            environment.reset(0)
        count += 1
    rate = count / (time.perf_counter() - start)
    environment.close()
    return rate


def duration(seconds: float) -> str:
    """In hours or days."""
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"


def main(asked: Scaling) -> None:
    """Reckon, print, write."""
    if min(asked.algorithms, asked.tasks, asked.seeds, asked.cores or 1, *asked.machines) < 1:
        raise Refused("--algorithms, --tasks, --seeds, --cores and --machines must be at least 1")
    stem = FOLDER / f"throughput_{asked.throughput}"
    if not stem.with_suffix(".csv").is_file():
        known = sorted(path.stem.removeprefix("throughput_") for path in FOLDER.glob("throughput_*.csv"))
        raise Refused(f"--throughput {asked.throughput}: there are {', '.join(known)}")
    with stem.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or COLUMNS - rows[0].keys():
        raise Refused(f"{stem.name}.csv has other columns: measure anew with python -m benchmarks.throughput")
    about = json.loads(stem.with_suffix(".json").read_text())
    device, measured = about["device"], list(dict.fromkeys(row["algorithm"] for row in rows))
    rate = environment_rate()
    all_cores = (asked.cores or device["cores"]) * rate

    def jobs(seeds: int) -> dict[str, Cost]:
        return {algorithm: cost(rows, algorithm, seeds, all_cores) for algorithm in measured}

    together, alone = jobs(asked.seeds), jobs(1)
    count, found = asked.algorithms * asked.tasks, []
    for machines in asked.machines:
        row: dict[str, float] = {"machines": machines}
        for name, kind, of_each in (("together", together, 1), ("alone", alone, asked.seeds)):
            lengths = [each.whole for each in itertools.islice(itertools.cycle(kind.values()), count * of_each)]
            seconds = makespan(lengths, machines)
            row |= {f"{name}_jobs": len(lengths), f"{name}_hours": seconds / 3600}
            row |= {f"{name}_machine_hours": sum(lengths) / 3600, f"{name}_busy": sum(lengths) / machines / seconds}
        found.append(row)
    text = page(asked, found, together, alone, rate, f"{device['kind']}, {device['cores']} cores")
    Console().print(Markdown(text))
    measured_at = {key: about.get(key) for key in ("command", "commit", "device")}
    more = {"environment_steps_per_second": rate, "throughput": measured_at}
    written = publish(f"scaling_{asked.throughput}", found, "benchmarks.scaling", **more)
    written.with_suffix(".md").write_text(text)


def page(
    asked: Scaling, found: list[dict], together: dict[str, Cost], alone: dict[str, Cost], rate: float, machine: str
) -> str:
    """The page, in Markdown."""
    each = [["algorithm", f"{asked.seeds} seeds", "of which environments", "one seed"]]
    for algorithm, whole in together.items():
        share = f"{whole.environments / whole.whole:.0%}"
        each.append([algorithm, duration(whole.whole), share, duration(alone[algorithm].whole)])
    lines = [["machines", f"jobs of {asked.seeds} seeds", "machines busy", "jobs of one seed", "machines busy"]]
    for row in found:
        cells = [f"{row['machines']:,}"]
        for name in ("together", "alone"):
            cells += [duration(3600 * row[f"{name}_hours"]), f"{row[f'{name}_busy']:.0%}"]
        lines.append(cells)
    first, limits = found[0], []
    for name, kind in (("together", together), ("alone", alone)):
        longest = max(each.whole for each in kind.values())
        limits.append((f"{3600 * first[f'{name}_machine_hours'] / longest:,.0f}", duration(longest)))
    (many, soon), (more, sooner) = limits
    extra = first["alone_machine_hours"] / first["together_machine_hours"]
    return f"""# {asked.algorithms} algorithms on {asked.tasks} tasks with {asked.seeds} seeds

At the papers' sizes, on machines like the one measured ({machine}; {rate:,.0f} environment steps per second and core).

{markdown(each)}

{markdown(lines)}

No job is spread over machines, so nothing ends before its longest job: with all seeds in one job, more than {many}
machines are of no use, and the end comes after {soon}; with one seed in each, which costs {extra:.2f} times as many
machine hours, more than {more}, after {sooner}.
Algorithms that have not been measured are taken to cost what the {len(together)} measured ones cost, in turn.
"""


if __name__ == "__main__":
    exiting("scaling", lambda: main(tyro.cli(Scaling, description=__doc__)))
