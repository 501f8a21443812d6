"""What `--eval-async` saves: commands with it, without it, and with no evaluation but a phase's last, in turn.

    python -m benchmarks.studies.beside [--commands "iql --env hopper-medium ..." ...] [--rounds 5] [--name NAME]

Each is a process of its own, timed from its start to its end; before the first round all ran once, so that data are
made and programs compiled. That the flag changes no number in metrics.csv and eval.csv is checked. `saved` is the
median over rounds of the seconds that the flag saves over those that evaluations take without it: 1 where they cost
nothing any more. Rows go to benchmarks/results/beside_NAME.{csv,json}.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks.reporting.results import file, publish
from common.errors import Refused, exiting

ALGORITHMS = Path(__file__).parents[2] / "algorithms"
WAYS = {"waiting": (), "beside": ("--eval-async",), "last": ("--eval-every", "1000000000")}
"""Flags of each way; the last evaluates at the end of a phase alone."""


@dataclass(frozen=True)
class Beside:
    """What is timed."""

    commands: tuple[str, ...] = (
        "iql --env hopper-medium --dataset recipe:hopper-medium --offline-steps 10000 --eval-every 1000",
        "rlpd --env pointmaze-medium --steps 2000 --start-training 500 --eval-every 250 --eval-episodes 20",
    )
    """An algorithm and its flags."""
    rounds: int = 5
    """How often each is timed."""
    name: str = "cpu"
    """Of the result, after "beside_"."""


def timed(command: str, way: str, out: Path) -> float:
    """Seconds that a command takes. Raises Refused if it fails."""
    name, *flags = shlex.split(command)
    start = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, ALGORITHMS / f"{name}.py", *flags, *WAYS[way], "--out", out], capture_output=True, text=True
    )
    if ran.returncode:
        said = (ran.stderr or ran.stdout).strip().splitlines()
        raise Refused(f"{command}: failed: {said[-1] if said else f'status {ran.returncode}'}")
    return time.perf_counter() - start


def compare(asked: Beside, command: str, folder: Path) -> dict[str, Any]:
    """The row of a command; its runs are written into the folder."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(-1, asked.rounds):
        for way in WAYS:
            taken = timed(command, way, folder / f"{number}_{way}")
            if number >= 0:
                seconds[way].append(taken)
        for table in ("metrics.csv", "eval.csv"):
            one, other = ((folder / f"{number}_{way}" / table).read_bytes() for way in ("waiting", "beside"))
            if one != other:
                raise Refused(f"{command}: --eval-async changes {table}")
    rounds = list(zip(*seconds.values(), strict=True))
    return {
        "command": command,
        **{f"seconds_{way}": statistics.median(taken) for way, taken in seconds.items()},
        "ratio": statistics.median(waiting / beside for waiting, beside, _ in rounds),
        "saved": statistics.median((waiting - beside) / (waiting - last) for waiting, beside, last in rounds),
    }


def main(asked: Beside) -> None:
    """Time, print, write."""
    if asked.rounds < 1 or not asked.commands:
        raise Refused("--rounds and the number of --commands must be at least 1")
    name = f"beside_{asked.name}"
    file(name, ".csv")  # refuses a name that cannot be before anything is measured
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, command in enumerate(asked.commands):
            rows.append(row := compare(asked, command, Path(folder, str(number))))
            Console(width=200).print(
                f"{command}: {row['seconds_waiting']:.1f} s, {row['seconds_beside']:.1f} s with --eval-async "
                f"({row['ratio']:.2f} times as fast), {row['seconds_last']:.1f} s with the last evaluation alone: "
                f"{row['saved']:.0%} of the others' time is saved",
                highlight=False,
            )
    publish(name, rows, "benchmarks.studies.beside", rounds=asked.rounds)


if __name__ == "__main__":
    exiting("beside", lambda: main(tyro.cli(Beside, description=__doc__)))
