"""Published final scores on D4RL's own data, and the place that a run's score would have among them.

published.csv: means and deviations of the last scores of ten offline algorithms, from the README of tinkoff-ai/CORL
(Apache-2.0). A score has a place among them only if it was learnt from the same data: a D4RL file (`d4rl:`) that bears
the set's name with its version and has its number of transitions, as Fu et al., 2020, give it roughly. Minari's
sets, recipes, parts of a set and files under other names have none.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.reporting.finished import Finished, names
from common.datasets import cards


@dataclass(frozen=True)
class Published:
    """One algorithm's final score on one set."""

    task: str
    version: int
    algorithm: str
    mean: float
    std: float


@functools.cache
def table() -> dict[str, list[Published]]:
    """Task -> what was published for D4RL's set of the same name."""
    found: dict[str, list[Published]] = {}
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            score = Published(row["task"], int(row["version"]), row["algorithm"], float(row["mean"]), float(row["std"]))
            found.setdefault(score.task, []).append(score)
    return found


def comparable(run: Finished) -> bool:
    """Whether there are published scores on the very data that the run has learnt from."""
    card, known = run.config["dataset"] or {}, table().get(run.task)
    kind, _, name = card.get("source", "").partition(":")
    if known is None or kind != "d4rl":
        return False
    called = re.sub(r"[-_]+", "-", Path(name).stem.lower())
    size = cards.D4RL_ROWS[run.task]
    return called == f"{run.task}-v{known[0].version}" and abs(card["rows"] - size) <= cards.D4RL_SLACK * size


def ranks(runs: Sequence[Finished]) -> list[list[str]]:
    """A table: the mean score and place of every variant, then the published ones; empty if nothing is comparable."""
    runs = [run for run in runs if comparable(run)]
    tasks, variants = names(runs)
    if not tasks:
        return []
    ours = {(run.task, run.variant): run.finals().mean() for run in runs}
    lines = [["variant", *tasks]]
    for variant in variants:
        cells = [variant]
        for task in tasks:
            mine = ours.get((task, variant))
            better = sum(mine < other.mean for other in table()[task]) if mine is not None else 0
            cells.append("" if mine is None else f"{mine:.1f}, {better + 1} of {len(table()[task]) + 1}")
        lines.append(cells)
    for algorithm in dict.fromkeys(score.algorithm for task in tasks for score in table()[task]):
        cells = [f"{algorithm} (published)"]
        for task in tasks:
            theirs = next((score for score in table()[task] if score.algorithm == algorithm), None)
            cells.append("" if theirs is None else f"{theirs.mean:.1f} ± {theirs.std:.1f}")
        lines.append(cells)
    return lines
