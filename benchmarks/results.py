"""Where published numbers go: rows as CSV, and beside them what is needed to make them again."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.runs import commit, device, versions, write_json

FOLDER = Path(__file__).parent / "results"


def without_folder(arguments: Sequence[str]) -> list[str]:
    """A run's arguments but for `--out` and what follows it."""
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return [*arguments[:at], *arguments[at + 2 :]]


def command_of(config: Mapping[str, Any]) -> str:
    """What repeats a run, from its config.json; its folder, and those of files, are the machine's own affair."""
    if "command" in config:
        return config["command"]
    arguments = [f"d4rl:{Path(a).name}" if a.startswith("d4rl:") else a for a in without_folder(config["arguments"])]
    return f"python algorithms/{config['algorithm']}.py {' '.join(arguments)}"


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
