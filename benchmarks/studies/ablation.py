"""RLPD's design choices taken away one at a time, on data made on the spot: one command, a table and a picture.

    python -m benchmarks.studies.ablation [--env pointmaze-large] [--num-seeds 5] [--jobs 2] [--runs runs/ablation]

Every variant is one command of algorithms/rlpd.py with all its seeds; `--jobs` of them run side by side, each on cores
of its own. Interrupted, the same command continues: finished variants are kept, half-finished ones resumed. Results go
to benchmarks/results/rlpd_ablation_TASK.{csv,json,png}.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.reporting.figures import png
from benchmarks.reporting.finished import Finished, begun, opened
from benchmarks.reporting.results import file, publish, write
from common.errors import Refused, exiting

VARIANTS = {
    "RLPD": [],
    "without LayerNorm": ["--no-layer-norm"],
    "without prior data": ["--offline-ratio", "0"],
    "SACfD": ["--preset", "sacfd"],
    "one update per step": ["--utd", "1"],
}
"""Variant -> the flags that make it."""
STYLES = {
    "RLPD": "-",
    "without LayerNorm": "--",
    "without prior data": ":",
    "SACfD": "-.",
    "one update per step": (0, (5, 1, 1, 1, 1, 1)),
}
MARKERS = "os^Dv"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ablation:
    """Which task, how many seeds, and where the runs are kept."""

    env: str = "pointmaze-large"
    """Task."""
    num_seeds: int = 5
    """Seeds of every variant."""
    jobs: int = 2
    """Variants trained side by side."""
    runs: Path = Path("runs/ablation")
    """Where the run directories are kept until they are finished."""

    @property
    def task(self) -> str:
        """The task as a part of a file's name."""
        return re.sub(r"[^\w.+-]+", "-", self.env)

    def folder(self, name: str) -> Path:
        """The run directory of a variant."""
        return self.runs / self.task / name.replace(" ", "-")

    def command(self, name: str) -> list[str] | None:
        """What trains a variant, or what is missing of it; None if it has finished. Refused if another run is there."""
        out = self.folder(name)
        arguments = ["--env", self.env, "--num-seeds", str(self.num_seeds), "--devices", "1", *VARIANTS[name]]
        if not begun(out, arguments):
            asked = [*arguments, "--out", str(out)]
        elif not (out / "summary.json").exists():
            asked = ["--resume", str(out)]
        else:
            return None
        return [sys.executable, str(ROOT / "algorithms" / "rlpd.py"), *asked]


def train(ablation: Ablation, name: str, cores: set[int]) -> None:
    """Train on these cores what is missing of a variant. Raises Refused if that fails."""
    if (command := ablation.command(name)) is None:
        return
    prefix = ["taskset", "-c", ",".join(map(str, sorted(cores)))] if hasattr(os, "sched_getaffinity") else []
    done = subprocess.run([*prefix, *command], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise Refused(f"{name}: training has ended with status {done.returncode}; the same command goes on from there")


def collect(ablation: Ablation, found: dict[str, Finished]) -> list[dict[str, str | float]]:
    """The evaluations of all variants as rows of one table."""
    rows = []
    for name, run in found.items():
        for row in run.evaluations:
            kept = {k: row[k] for k in ("seed", "step", "episodes", "return_mean", "score", "success")}
            rows.append({"task": ablation.env, "variant": name, "flags": " ".join(VARIANTS[name])} | kept)
    return rows


def draw(rows: list[dict], title: str) -> Figure:
    """Mean score of every variant against steps; at the right, the final score of every seed."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    last = max(int(r["step"]) for r in rows)
    for index, name in enumerate(VARIANTS):
        mine = [r for r in rows if r["variant"] == name]
        steps = sorted({int(r["step"]) for r in mine})
        scores = np.array([[float(r["score"]) for r in mine if int(r["step"]) == step] for step in steps])
        axes.plot(steps, scores.mean(1), color=f"C{index}", linestyle=STYLES[name], linewidth=2, label=name)
        place = last * (1.03 + 0.025 * index)
        axes.plot([place] * scores.shape[1], scores[-1], MARKERS[index], color=f"C{index}", markersize=5, alpha=0.7)
    axes.axvline(last * 1.01, color="grey", linewidth=0.8)
    axes.set(xlabel="environment steps", ylabel="evaluation success, %", title=title, ylim=(-4, 104))
    axes.set_xticks([t for t in axes.get_xticks() if 0 <= t <= last])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    return figure


def main(ablation: Ablation) -> None:
    """Train what is missing, then write and print the table."""
    if ablation.jobs < 1:
        raise Refused(f"--jobs must be at least 1, not {ablation.jobs}")
    for name in VARIANTS:
        ablation.command(name)  # refuses what is in the way before anything trains
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    jobs = min(ablation.jobs, len(usable))
    shares: Queue[set[int]] = Queue()
    for job in range(jobs):
        shares.put(set(usable[job::jobs]))

    def on_a_share(name: str) -> None:
        cores = shares.get()
        try:
            train(ablation, name, cores)
        finally:
            shares.put(cores)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(on_a_share, VARIANTS))
    found = {name: opened(ablation.folder(name)) for name in VARIANTS}
    rows, data = collect(ablation, found), found["RLPD"].config["dataset"]
    title = f"RLPD on {ablation.env}: mean of {ablation.num_seeds} seeds, and their final scores"
    picture = png(draw(rows, title), dpi=150)
    result = f"rlpd_ablation_{ablation.task}"
    publish(
        result,
        rows,
        "benchmarks.studies.ablation",
        flags={name: " ".join(flags) for name, flags in VARIANTS.items()},
        commits=sorted({str(run.config["commit"]) for run in found.values()}),
        dataset={k: data[k] for k in ("source", "fingerprint", "transitions")},
    )
    write(file(result, ".png"), picture)

    table = Table("variant", "final score by seed", "mean", "mean over all evaluations")
    last = max(int(r["step"]) for r in rows)
    for name in VARIANTS:
        final = [float(r["score"]) for r in rows if r["variant"] == name and int(r["step"]) == last]
        area = np.mean([float(r["score"]) for r in rows if r["variant"] == name])
        table.add_row(name, " ".join(f"{s:g}" for s in final), f"{np.mean(final):.1f}", f"{area:.1f}")
    Console().print(table)


if __name__ == "__main__":
    exiting("ablation", lambda: main(tyro.cli(Ablation, description=__doc__)))
