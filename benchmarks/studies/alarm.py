"""Does benchmarks/check.py see a fault, and keep still without one? Both are tried on the smoke suite.

    python -m benchmarks.studies.alarm [--runs runs/alarm]

Unchanged code trains the suite from other seeds than the recorded ones, three times; a copy of the code with a fault
planted in it trains it once for every fault. Each is held against benchmarks/results/smoke.csv. Rows go to
benchmarks/results/alarm.{csv,json}; status 1 if a fault goes unseen or unchanged code is accused. Interrupted, the same
command continues.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import check
from benchmarks.reporting.finished import find
from benchmarks.reporting.results import publish
from common.errors import Refused, exiting

ROOT = Path(__file__).parents[2]
SEEDS = (100, 200, 300)
"""Where the seeds of the unchanged runs begin."""
FAULTS = {"mask ignored": ("batch.mask * ", "")}
"""What is wrong -> a text in the files of algorithms/, and what stands there instead."""


@dataclass(frozen=True)
class Alarm:
    """What is tried."""

    runs: Path = Path("runs/alarm")
    """Where the run directories lie."""


def planted(folder: Path, right: str, wrong: str) -> list[str]:
    """A copy of the code with the fault in it: the files changed. Raises Refused if the text is in none."""
    for part in ("algorithms", "benchmarks", "common"):
        shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    changed = []
    for path in sorted((folder / "algorithms").glob("*.py")):
        text = path.read_text()
        if right in text:
            path.write_text(text.replace(right, wrong))
            changed.append(path.name)
    if not changed:
        raise Refused(f"no file of algorithms/ holds {right!r}: the fault cannot be planted")
    return changed


def train(code: Path, runs: Path, seed: int) -> None:
    """The smoke suite with this copy of the code."""
    command = [sys.executable, "-m", "benchmarks.sweep", "smoke", "--runs", str(runs.absolute()), "--seed", str(seed)]
    done = subprocess.run(command, cwd=code, env=os.environ | {"PYTHONPATH": str(code.absolute())})
    if done.returncode:
        raise Refused(f"the smoke suite with the code in {code} has ended with status {done.returncode}, see above")


def rows_of(case: str, fault: bool, runs: Path) -> list[dict[str, Any]]:
    """A row per variant, against what is recorded."""
    return [
        {
            "case": case,
            "fault": fault,
            "task": v.task,
            "variant": v.variant,
            "recorded": v.recorded,
            "new": v.new,
            "chance": v.chance,
            "said": v.said,
        }
        for v in check.compare(*check.read("smoke"), find([runs / "smoke"]))
    ]


def main(alarm: Alarm) -> int:
    """Train, compare, write; the exit status."""
    rows, wrong = [], []
    for seed in SEEDS:
        case, runs = f"unchanged, seeds from {seed}", alarm.runs / str(seed)
        train(ROOT, runs, seed)
        found = rows_of(case, False, runs)
        wrong += [case] if any(row["said"] == "worse" for row in found) else []
        rows += found
    changed = {}
    for name, (right, instead) in FAULTS.items():
        runs = alarm.runs / name.replace(" ", "-")
        changed[name] = planted(runs / "code", right, instead)
        train(runs / "code", runs, SEEDS[0])
        found = rows_of(name, True, runs)
        wrong += [] if any(row["said"] == "worse" for row in found) else [name]
        rows += found
    publish("alarm", rows, "benchmarks.studies.alarm", changed=changed)
    for row in rows:
        print(f"{row['case']:32} {row['variant']:16} {row['new']:6.1f}   {row['said']}")
    print(f"wrong about: {', '.join(wrong)}" if wrong else "every fault seen, nothing else accused")
    return 1 if wrong else 0


if __name__ == "__main__":
    exiting("alarm", lambda: main(tyro.cli(Alarm, description=__doc__)))
