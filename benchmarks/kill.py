"""Kill a run at a random moment, resume it, and compare what it wrote with a run that nobody disturbed.

    python -m benchmarks.kill [--trials 20]

Every trial starts the same command, sends SIGKILL after a random share of the undisturbed run's time, resumes it with
`--resume` and compares metrics.csv and eval.csv byte by byte. Results go to benchmarks/results/kill.{csv,json}.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.results import publish

RLPD = Path(__file__).parents[1] / "algorithms" / "rlpd.py"


@dataclass(frozen=True)
class Kill:
    """What is run and how often it is killed."""

    trials: int = 20
    """Runs killed and resumed."""
    seed: int = 0
    """Of the random moments."""
    arguments: str = (
        "--env Hopper-v4 --preset sac --hidden 64 64 --start-training 500 --steps 4000 --num-seeds 2 "
        "--eval-every 1000 --eval-episodes 2 --log-every 250 --checkpoint-every 300"
    )
    """Arguments of algorithms/rlpd.py."""


def start(*arguments: str) -> subprocess.Popen:
    """algorithms/rlpd.py with these arguments."""
    command = [sys.executable, str(RLPD), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def main(kill: Kill) -> None:
    """All trials; exit status 1 if any run did not resume or differs."""
    moments = random.Random(kill.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        for out in (Path(folder) / "first", whole):  # the first one fills the cache of compiled programs
            began = time.perf_counter()
            if start(*kill.arguments.split(), "--out", str(out)).wait():
                raise SystemExit("the undisturbed run failed")
        seconds = time.perf_counter() - began
        for trial in range(kill.trials):
            out = Path(folder) / f"trial{trial}"
            process = start(*kill.arguments.split(), "--out", str(out))
            while not (out / "config.json").exists():
                time.sleep(0.001)
            share = moments.random()
            time.sleep(share * 0.9 * seconds)  # the time until config.json is there has passed already
            process.kill()
            process.wait()
            resumed = start("--resume", str(out))
            said = resumed.communicate()[0]
            after = re.search(r"after step (\d+)", said)
            same = [(out / n).read_bytes() == (whole / n).read_bytes() for n in ("metrics.csv", "eval.csv")]
            row = {
                "trial": trial,
                "killed_at_share_of_run": round(share, 3),
                "resumed_after_step": int(after[1]) if after else "finished before",
                "status": resumed.returncode,
                "metrics_equal": same[0],
                "evaluations_equal": same[1],
            }
            rows.append(row)
            print(row, flush=True)
    publish("kill", rows, f"python -m benchmarks.kill --trials {kill.trials}", arguments=kill.arguments)
    good = sum(r["status"] == 0 and r["metrics_equal"] and r["evaluations_equal"] for r in rows)
    print(f"{good} of {len(rows)} runs resumed and equal the undisturbed one")
    raise SystemExit(good != len(rows))


if __name__ == "__main__":
    main(tyro.cli(Kill, description=__doc__))
