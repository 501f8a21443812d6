"""Commands served in this process, and what they wrote."""

import csv
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from interruption import stopped_at
from rich.console import Console

from algorithms import rlpd
from common import command
from common.agent import Agent

SMALL = (
    "--env InvertedPendulum-v5 --hidden 8 --ensemble 3 --utd 2 --batch-size 16 --start-training 60 "
    "--steps 180 --eval-every 90 --eval-episodes 3 --log-every 30"
).split()
FILE = Path(command.__file__).parents[1] / "algorithms" / "rlpd.py"


def agent_of(module: ModuleType) -> type[Agent]:
    """The agent of an algorithm's file."""
    own = (kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__)
    (found,) = (kind for kind in own if issubclass(kind, Agent))
    return found


def serving(module: ModuleType, width: int = 200) -> Callable[..., tuple[int, str]]:
    """The command of an algorithm's file, on a terminal of this width: arguments -> status and what it said."""

    def serve(*arguments: object) -> tuple[int, str]:
        console = Console(file=io.StringIO(), width=width)
        status = command.serve(agent_of(module), module.Config, module.PRESETS, [str(a) for a in arguments], console)
        return status, console.file.getvalue()

    return serve


serve = serving(rlpd)


def falling(path: Path) -> Path:
    """Prior data of a pendulum that falls, in this file."""
    rng, ends = np.random.default_rng(0), np.arange(300) % 30 == 29
    np.savez(
        path,
        observations=np.cumsum(rng.normal(0, 0.05, (300, 4)), axis=0).astype(np.float32),
        actions=rng.uniform(-3, 3, (300, 1)).astype(np.float32),
        rewards=rng.normal(1, 0.1, 300).astype(np.float32),
        terminals=ends & (np.arange(300) < 150),
        timeouts=ends & (np.arange(300) >= 150),
    )
    return path


def table(path: Path, **only) -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if all(row[k] == str(v) for k, v in only.items())]


def without(rows: list[dict[str, str]], *columns: str) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k not in columns} for row in rows]


def crash(arguments: list, at: int, monkeypatch) -> None:
    """Run until just after the checkpoint of step `at`."""
    with stopped_at(at, monkeypatch):
        serve(*arguments)
