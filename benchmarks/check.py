"""Do new runs learn as well as the recorded ones? The alarm for learning, not for speed.

    python -m benchmarks.check RUNS ... --against NAME

RUNS are folders with finished runs, NAME is a report in benchmarks/results. Variant by variant and task by task the new
final scores are held against the recorded ones, and then all together. The question is how often the new seeds' mean
would be so low if old and new seeds were dealt anew (a permutation test), which holds for scores of every shape, also
for those that are 0 or 100. In 19 of 20 checks of unchanged code nothing at all is called worse (Bonferroni). That
takes seeds: among seven comparisons, 3 new ones against 10 recorded, or the other way round; 3 against 3 say nothing.
What has been trained on other data is not compared. Status 1 if anything is worse.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.finished import Finished, find
from benchmarks.results import FOLDER
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
    """worse, better, as recorded; or why there is nothing to compare."""
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
    recorded: Mapping[tuple[str, str], np.ndarray], fingerprints: Mapping[str, str], runs: Sequence[Finished]
) -> list[Verdict]:
    """A verdict on every new run; `recorded`: scores by task and variant; `fingerprints`: of the tasks' data."""
    pairs: dict[tuple[str, str], Pair] = {}
    verdicts = []
    for run in runs:
        scores, card = recorded.get((run.task, run.variant)), run.config["dataset"]
        if scores is None:
            verdicts.append(Verdict(run.task, run.variant, "not recorded", new=run.finals().mean()))
        elif card is not None and fingerprints.get(run.task) != card["fingerprint"]:
            verdicts.append(Verdict(run.task, run.variant, "other data", scores.mean(), run.finals().mean()))
        else:
            pairs[run.task, run.variant] = scores, run.finals()
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
    """Recorded scores (returns where a task has none) by task and variant, and the fingerprints of the tasks' data."""
    try:
        about = json.loads((FOLDER / f"{name}.json").read_text())
        with (FOLDER / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        scores: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            scores.setdefault((row["task"], row["variant"]), []).append(float(row["score"] or row["return"]))
        fingerprints = {task: card["fingerprint"] for task, card in about["datasets"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"--against {name}: no report of that name in {FOLDER} ({error})") from error
    return {key: np.array(values) for key, values in scores.items()}, fingerprints


def main(check: Check) -> int:
    """Print the verdicts; the exit status."""
    verdicts = compare(*read(check.against), find(check.runs))
    table = Table(title=f"against {check.against}")
    for column in ("task", "variant", "recorded", "new", "chance", ""):
        table.add_column(column)
    for v in verdicts:
        numbers = (
            "" if np.isnan(x) else f"{x:.{digits}f}" for x, digits in ((v.recorded, 1), (v.new, 1), (v.chance, 4))
        )
        table.add_row(v.task, v.variant, *numbers, v.said)
    console = Console()
    console.print(table)
    compared = [v for v in verdicts if not np.isnan(v.chance) and v.said != "too few seeds"]
    worse = [f"{v.variant} on {v.task}" if v.task != "all" else "all together" for v in compared if v.said == "worse"]
    if not compared:
        raise Refused(f"nothing to compare with {check.against}: see the last column")
    if worse:
        console.print(f"worse than recorded: {', '.join(worse)}", highlight=False, soft_wrap=True)
        return 1
    console.print(f"{sum(v.task != 'all' for v in compared)} compared, none worse than recorded", highlight=False)
    return 0


if __name__ == "__main__":
    exiting("check", lambda: main(tyro.cli(Check, description=__doc__)))
