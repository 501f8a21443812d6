"""Keep a finished run among the published results: its evaluations, and what is needed to repeat it.

    python -m benchmarks.record RUN NAME

RUN is a run directory with a summary.json; written are benchmarks/results/NAME.csv (eval.csv as it is), NAME.png (its
curve) and NAME.json (command, commit, versions, device, the card of the data without its long vectors, the summary).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tyro

from benchmarks.results import FOLDER, command_of
from common.runs import write_json

LONG = ("observation_mean", "observation_std", "env_spec")


def about(run: Path) -> dict[str, Any]:
    """What the run directory says of how its numbers came about."""
    config = json.loads((run / "config.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    card = config["dataset"] and {k: v for k, v in config["dataset"].items() if k not in LONG}
    if card:
        card["source"] = card["source"].split("/")[-1] if card["source"].startswith("d4rl:") else card["source"]
    return {
        "command": command_of(config),
        "commit": config["commit"],
        "versions": config["versions"],
        "device": config["device"],
        "dataset": card,
        "summary": summary,
    }


def main(run: tyro.conf.Positional[Path], name: tyro.conf.Positional[str]) -> None:
    """Write the three files."""
    if not (run / "summary.json").exists():
        raise SystemExit(f"{run}: not a finished run (no summary.json in it)")
    FOLDER.mkdir(exist_ok=True)
    shutil.copy(run / "eval.csv", FOLDER / f"{name}.csv")
    shutil.copy(run / "curve.png", FOLDER / f"{name}.png")
    write_json(FOLDER / f"{name}.json", about(run))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
