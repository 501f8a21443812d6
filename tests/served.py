"""Commands served in this process, and what they wrote."""

import csv
import io
from pathlib import Path

from interruption import stopped_at
from rich.console import Console

from algorithms.rlpd import PRESETS, RLPD, Config
from common import command

SMALL = (
    "--env InvertedPendulum-v5 --hidden 8 8 --ensemble 3 --utd 2 --batch-size 16 --start-training 60 "
    "--steps 180 --eval-every 90 --eval-episodes 3 --log-every 30"
).split()
FILE = Path(command.__file__).parents[1] / "algorithms" / "rlpd.py"


def serve(*arguments: str | Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    status = command.serve(RLPD, Config, PRESETS, [str(a) for a in arguments], console)
    return status, console.file.getvalue()


def table(path: Path, **only) -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if all(row[k] == str(v) for k, v in only.items())]


def without(rows: list[dict[str, str]], *columns: str) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in columns} for row in rows]


def crash(arguments: list, at: int, monkeypatch) -> None:
    """Run until just after the checkpoint of step `at`."""
    with stopped_at(at, monkeypatch):
        serve(*arguments)
