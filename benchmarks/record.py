"""Keep a finished run among the published results: its evaluations, and what is needed to repeat it.

    python -m benchmarks.record RUN NAME

RUN is a run directory with a summary.json; written are benchmarks/results/NAME.csv (eval.csv as it is), NAME.png (its
curve) and NAME.json (command, commit, versions, device, the card of the data without its long vectors, the summary).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from benchmarks.reporting import results
from benchmarks.reporting.finished import load
from benchmarks.reporting.results import command_of, file, write
from common.errors import Refused, exiting
from common.runs import write_json

LONG = ("observation_mean", "observation_std", "env_spec")


def about(run: Path) -> dict[str, Any]:
    """What the run directory says of how its numbers came about."""
    config = load(run / "config.json", "algorithm", "commit", "versions", "device", "dataset")
    summary = load(run / "summary.json")
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
        raise Refused(f"{run}: not a finished run (no summary.json in it)")
    account = about(run)
    try:
        copies = {ending: (run / kept).read_bytes() for ending, kept in ((".csv", "eval.csv"), (".png", "curve.png"))}
    except OSError as error:
        raise Refused(f"{error.filename}: cannot be read ({error.strerror})") from error
    results.FOLDER.mkdir(exist_ok=True)
    for ending, content in copies.items():
        write(file(name, ending), content)
    write_json(file(name, ".json"), account)


if __name__ == "__main__":
    exiting("record", lambda: tyro.cli(main, description=__doc__))
