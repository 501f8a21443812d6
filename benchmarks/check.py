"""Do new runs learn as well as the recorded ones? The alarm for learning, not for speed.

    python -m benchmarks.check RUNS ... --against NAME

RUNS are folders with finished runs, NAME is a report in benchmarks/results. Variant by variant and task by task, the
mean of the new final scores is held against the interval in which the mean of so many new seeds would lie if nothing
had changed: a prediction interval from the recorded seeds (Student's t), so wide that in 19 of 20 checks of unchanged
code none of the comparisons fails. What has been trained on other data is not compared. Status 1 if anything is worse.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from benchmarks.finished import Finished, find
from benchmarks.results import FOLDER
from common.errors import Refused

LEAST_DEVIATION = 1.0
"""Seeds that agree more closely than this, in percent of score, are taken to differ by so much."""


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
    low: float = float("nan")
    """Of the interval for the new mean."""
    high: float = float("nan")
    new: float = float("nan")
    """Mean of the new scores."""


def prediction(scores: np.ndarray, count: int, chance: float, least: float) -> tuple[float, float]:
    """Where the mean of `count` new seeds lies but for `chance`, given the recorded scores [n] of n > 1 seeds."""
    deviation = max(float(scores.std(ddof=1)), least)
    reach = student.ppf(1 - chance / 2, len(scores) - 1) * deviation * np.sqrt(1 / len(scores) + 1 / count)
    return float(scores.mean() - reach), float(scores.mean() + reach)


def compare(
    recorded: Mapping[tuple[str, str], np.ndarray], fingerprints: Mapping[str, str], runs: Sequence[Finished]
) -> list[Verdict]:
    """A verdict on every new run; `recorded`: scores by task and variant; `fingerprints`: of the tasks' data."""
    comparable = [run for run in runs if len(recorded.get((run.task, run.variant), ())) > 1]
    verdicts = []
    for run in runs:
        scores, finals = recorded.get((run.task, run.variant)), run.finals()
        card = run.config["dataset"]
        if scores is None:
            verdicts.append(Verdict(run.task, run.variant, "not recorded", new=finals.mean()))
        elif len(scores) < 2:
            verdicts.append(
                Verdict(run.task, run.variant, "one seed recorded: no spread", scores.mean(), new=finals.mean())
            )
        elif card is not None and fingerprints.get(run.task) != card["fingerprint"]:
            verdicts.append(Verdict(run.task, run.variant, "other data", scores.mean(), new=finals.mean()))
        else:
            # A return has no natural unit: there, a hundredth of the recorded one.
            least = LEAST_DEVIATION if run.headline == "score" else abs(scores.mean()) / 100
            low, high = prediction(scores, len(finals), 0.05 / len(comparable), least)
            said = "worse" if finals.mean() < low else "better" if finals.mean() > high else "as recorded"
            verdicts.append(Verdict(run.task, run.variant, said, scores.mean(), low, high, finals.mean()))
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
    for column in ("task", "variant", "recorded", "expected between", "new", ""):
        table.add_column(column)
    for v in verdicts:
        expected = "" if np.isnan(v.low) else f"{v.low:.1f} and {v.high:.1f}"
        recorded = "" if np.isnan(v.recorded) else f"{v.recorded:.1f}"
        table.add_row(v.task, v.variant, recorded, expected, f"{v.new:.1f}", v.said)
    console = Console()
    console.print(table)
    compared = [v for v in verdicts if not np.isnan(v.low)]
    worse = [f"{v.variant} on {v.task}" for v in compared if v.said == "worse"]
    if not compared:
        raise Refused(f"nothing to compare with {check.against}: see the last column")
    if worse:
        console.print(f"worse than recorded: {', '.join(worse)}", highlight=False, soft_wrap=True)
        return 1
    console.print(f"{len(compared)} compared, none worse than recorded", highlight=False)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Check, description=__doc__)))
    except Refused as refusal:
        print(f"check: {refusal}", file=sys.stderr)
        sys.exit(2)
