"""Do new runs learn as well as the recorded ones? The alarm for learning, not for speed.

    python -m benchmarks.check RUNS ... --against NAME

RUNS are folders with finished runs, NAME is a report in benchmarks/results. Variant by variant and task by task the new
final scores are held against the recorded ones, and then all together. The question is how often the new seeds' mean
would be so low if old and new seeds were dealt anew (a permutation test), which holds for scores of every shape, also
for those that are 0 or 100. In 19 of 20 checks of unchanged code nothing at all is called worse (Bonferroni). That
takes seeds: among seven comparisons, 3 new ones against 10 recorded, or the other way round; 3 against 3 say nothing.
What has been trained on other data is not compared; a recipe of AntMaze or locomotion gives other data on another kind
of processor. Status 1 if anything is worse, or missing: a recorded variant without a finished run, on a task that
another variant has finished or that a sweep's folder has among its jobs. Other recorded tasks are only mentioned, so
that one task's folder can be checked by itself.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.table import Table

from benchmarks.reporting.finished import Finished, find, jobs
from benchmarks.reporting.results import file
from common import terminal
from common.errors import Refused, exiting

ALARMS = 0.05
"""How often a check of unchanged code may find anything worse."""
DEALS = 20_000
"""Deals of the seeds: all there are, or so many at random."""


@dataclass(frozen=True)
class Check:
    """What is compared."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with new runs."""
    against: str
    """Name of a report in benchmarks/results."""


@dataclass(frozen=True)
class Verdict:
    """One variant on one task."""

    task: str
    variant: str
    said: str
    """worse, better, as recorded, missing; or why there is nothing to compare."""
    recorded: float = float("nan")
    """Mean of the recorded scores."""
    new: float = float("nan")
    """Mean of the new scores."""
    chance: float = float("nan")
    """Share of the deals in which the new mean is as low."""


Pair = tuple[np.ndarray, np.ndarray]
"""Recorded and new scores of one variant on one task."""


def deals(pair: Pair) -> int:
    """In how many ways the seeds can be dealt."""
    recorded, new = pair
    return math.comb(len(recorded) + len(new), len(new))


def chance(pairs: Sequence[Pair]) -> float:
    """The share of deals in which the new scores' mean over the pairs is as low as it is.

    A seed is dealt as a whole, to all pairs of as many seeds alike, since it may be a hard one for all. Scores are
    divided by the deviation of their pair, so that tasks of different units count alike.
    """
    groups: dict[tuple[int, int], np.ndarray] = {}
    for recorded, new in pairs:
        scores = np.concatenate([recorded, new])
        sizes = len(recorded), len(new)
        groups[sizes] = groups.get(sizes, 0.0) + (scores - scores.mean()) / max(scores.std(), 1e-12) / len(new)
    rng = np.random.default_rng(0)
    exact = len(groups) == 1 and deals(pairs[0]) <= DEALS
    observed, dealt = 0.0, np.zeros(1)
    for (_, count), scores in groups.items():
        if exact:
            chosen = np.array(list(itertools.combinations(range(len(scores)), count)))
        else:
            chosen = rng.random((DEALS, len(scores))).argsort(axis=1)[:, :count]
        observed += scores[-count:].sum()
        dealt = dealt + scores[chosen].sum(axis=1)
    as_low = int((dealt <= observed + 1e-9).sum())
    # Of deals at random, the one at hand counts too.
    return as_low / len(dealt) if exact else (as_low + 1) / (len(dealt) + 1)


def compare(
    recorded: Mapping[tuple[str, str], np.ndarray],
    fingerprints: Mapping[str, str],
    runs: Sequence[Finished],
    asked: Collection[str] = (),
) -> list[Verdict]:
    """A verdict on every new run, and on every recorded one that is missing.

    `recorded`: scores by task and variant; `fingerprints`: of the data, by task, or by task and variant where these
    have learnt from different data; `asked`: tasks on which every variant should have run, besides those of `runs`.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    verdicts = []
    for run in runs:
        scores, card = recorded.get((run.task, run.variant)), run.config["dataset"]
        fingerprint = fingerprints.get(f"{run.task}, {run.variant}", fingerprints.get(run.task))
        if scores is None:
            verdicts.append(Verdict(run.task, run.variant, "not recorded", new=run.finals().mean()))
        elif card is not None and fingerprint != card["fingerprint"]:
            verdicts.append(Verdict(run.task, run.variant, "other data", scores.mean(), run.finals().mean()))
        else:
            pairs[run.task, run.variant] = scores, run.finals()
    there, tasks = {(run.task, run.variant) for run in runs}, {run.task for run in runs}.union(asked)
    for (task, variant), scores in recorded.items():
        if task in tasks and (task, variant) not in there:
            verdicts.append(Verdict(task, variant, "missing", scores.mean()))
    level = ALARMS / (len(pairs) + 1)

    def said(mine: list[Pair]) -> tuple[str, float]:
        low, high = chance(mine), chance([(-old, -new) for old, new in mine])
        if math.prod({(len(old), len(new)): deals((old, new)) for old, new in mine}.values()) * level < 1:
            return "too few seeds", low
        return "worse" if low <= level else "better" if high <= level else "as recorded", low

    for (task, variant), pair in pairs.items():
        verdict, low = said([pair])
        verdicts.append(Verdict(task, variant, verdict, pair[0].mean(), pair[1].mean(), low))
    if pairs:
        old, new = (float(np.mean([pair[which].mean() for pair in pairs.values()])) for which in (0, 1))
        verdict, low = said(list(pairs.values()))
        verdicts.append(Verdict("all", "together", verdict, old, new, low))
    return verdicts


def read(name: str) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, str]]:
    """Recorded scores (returns where a task has none) by task and variant, and the fingerprints of the data."""
    try:
        about = json.loads(file(name, ".json").read_text())
        rows = list(csv.DictReader(file(name, ".csv").read_text().splitlines()))
        scores: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            scores.setdefault((row["task"], row["variant"]), []).append(float(row["score"] or row["return"]))
        fingerprints = {whose: card["fingerprint"] for whose, card in about["datasets"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"--against {name}: no report of that name in benchmarks/results ({error})") from error
    return {key: np.array(values) for key, values in scores.items()}, fingerprints


def main(check: Check) -> int:
    """Print the verdicts; the exit status."""
    recorded, fingerprints = read(check.against)
    runs = find(check.runs)
    verdicts = compare(recorded, fingerprints, runs, {job["task"] for folder in check.runs for job in jobs(folder)})
    table = Table(title=f"against {check.against}")
    for column in ("task", "variant", "recorded", "new", "chance", ""):
        table.add_column(column)
    for v in verdicts:
        numbers = (
            "" if np.isnan(x) else f"{x:.{digits}f}" for x, digits in ((v.recorded, 1), (v.new, 1), (v.chance, 4))
        )
        table.add_row(v.task, v.variant, *numbers, v.said)
    console = terminal.console()
    console.print(table)
    compared = [v for v in verdicts if not np.isnan(v.chance) and v.said != "too few seeds"]
    worse = [f"{v.variant} on {v.task}" if v.task != "all" else "all together" for v in compared if v.said == "worse"]
    missing = [f"{v.variant} on {v.task}" for v in verdicts if v.said == "missing"]
    elsewhere = dict.fromkeys(task for task, _ in recorded if task not in {v.task for v in verdicts})
    for what, which in (("worse than recorded", worse), ("missing", missing), ("not checked", elsewhere)):
        if which:
            console.print(f"{what}: {', '.join(which)}", highlight=False, soft_wrap=True)
    if not compared:
        raise Refused(f"nothing to compare with {check.against}: see the last column")
    if worse or missing:
        return 1
    console.print(f"{sum(v.task != 'all' for v in compared)} compared, none worse than recorded", soft_wrap=True)
    return 0


if __name__ == "__main__":
    exiting("check", lambda: main(tyro.cli(Check, description=__doc__)))
