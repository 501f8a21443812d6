"""Where published numbers go: rows as CSV, and beside them what is needed to make them again."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.runs import commit, device, versions, write_json

FOLDER = Path(__file__).parent / "results"


def publish(name: str, rows: Sequence[Mapping[str, Any]], command: str, **more: Any) -> Path:
    """Write benchmarks/results/NAME.csv and NAME.json (command, commit, versions, device, `more`); the stem of both."""
    FOLDER.mkdir(exist_ok=True)
    stem = FOLDER / name
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    about = {"command": command, "commit": commit(), "versions": versions(), "device": device()}
    write_json(stem.with_suffix(".json"), about | more)
    return stem
