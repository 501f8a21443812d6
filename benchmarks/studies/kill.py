"""Kill a run at a random moment, resume it, and compare what it wrote with a run that nobody disturbed.

    python -m benchmarks.studies.kill [--trials 20]
    python -m benchmarks.studies.kill --what sweep --trials 10

Every trial starts the same command, sends SIGKILL after a random share of the undisturbed run's time, resumes it with
`--resume` and compares metrics.csv and eval.csv byte by byte; a run that has ended before does not count and is begun
anew, with another moment. A sweep is killed so and repeated until it comes to its end between two kills, when another
is begun, and the last is left alone; all jobs of each must have written what an undisturbed sweep writes, none of the
finished ones been touched again, and no half of a file be left. Results go to
benchmarks/results/kill{,_sweep}.{csv,json}; status 1 if anything differs.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.reporting.results import publish
from common.errors import Refused, exiting

ROOT = Path(__file__).parents[2]
RLPD = ROOT / "algorithms" / "rlpd.py"
SUITE = """
num_seeds = 2
size = 2000
flags = "--hidden 32 32 --batch-size 32 --log-every 500 --eval-every 1000 --checkpoint-every 500 --eval-episodes 2"

[[parts]]
tasks = ["pointmaze-umaze", "pointmaze-medium"]
[parts.variants]
"BC" = "bc --offline-steps 100000"
"TD3-ft" = "td3_bc --actor-hidden 32 --offline-steps 5000 --online-steps 1000 --online-cloning 0"
"IQL" = "iql --offline-steps 20000"
"""


@dataclass(frozen=True)
class Kill:
    """What is run and how often it is killed."""

    what: Literal["run", "sweep"] = "run"
    """A run of algorithms/rlpd.py, or a sweep of six jobs, two at a time."""
    trials: int = 20
    """Kills."""
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


def undisturbed(arguments: list[str], out: Path) -> float:
    """Seconds of a run that nobody kills. Raises Refused if there is no such run."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, str(RLPD), *arguments, "--out", str(out)], stdout=subprocess.DEVNULL)
    if done.returncode:
        asked = f"{RLPD.name} {' '.join(arguments)}"
        raise Refused(f"--arguments: {asked} ends with status {done.returncode}, see above")
    return time.perf_counter() - began


def killed(arguments: list[str], out: Path, seconds: float, moments: random.Random) -> float:
    """Begin a run, which takes so many seconds, and kill it; the share of them after which it was."""
    while True:
        process = start(*arguments, "--out", str(out))
        while not (out / "config.json").exists() and process.poll() is None:
            time.sleep(0.001)
        share = moments.random()
        try:
            status = process.wait(share * 0.9 * seconds)  # the time until config.json is there has passed already
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status not in (0, -signal.SIGKILL):
            raise SystemExit(f"a run that was not killed yet has ended with status {status}")
        if not (out / "summary.json").exists():
            return share
        shutil.rmtree(out)


def runs(kill: Kill) -> int:
    """All trials of a run; the exit status."""
    moments, arguments = random.Random(kill.seed), kill.arguments.split()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        undisturbed(arguments, Path(folder) / "first")  # fills the cache of compiled programs
        seconds = undisturbed(arguments, whole)
        for trial in range(kill.trials):
            out = Path(folder) / f"trial{trial}"
            share = killed(arguments, out, seconds, moments)
            resumed = start("--resume", str(out))
            said = resumed.communicate()[0]
            after = re.search(r"after step (\d+)", said)
            wrong = differences(whole, out)
            row = {
                "trial": trial,
                "killed_at_share_of_run": round(share, 3),
                "resumed_after_step": int(after[1]) if after else None,
                "status": resumed.returncode,
                "metrics_equal": "metrics.csv" not in wrong,
                "evaluations_equal": "eval.csv" not in wrong,
            }
            rows.append(row)
            print(row, flush=True)
    publish("kill", rows, "benchmarks.studies.kill", arguments=kill.arguments)
    good = sum(r["status"] == 0 and r["metrics_equal"] and r["evaluations_equal"] for r in rows)
    print(f"{good} of {len(rows)} runs resumed and equal the undisturbed one")
    return int(good != len(rows))


def state(folder: Path) -> dict[Path, int]:
    """When each finished job's summary was written."""
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("summary.json")}


def differences(sound: Path, killed: Path) -> list[str]:
    """What a killed and repeated run or sweep has otherwise than an undisturbed one."""
    tables = {path.relative_to(sound) for path in sound.rglob("*.csv")}
    wrong = [
        str(t) for t in tables if not (killed / t).exists() or (killed / t).read_bytes() != (sound / t).read_bytes()
    ]
    wrong += [str(path) for path in (*killed.rglob("*.partial*"), *killed.rglob("damaged-checkpoints"))]
    wrong += [str(path) for path in killed.rglob("*.json") if not is_json(path)]
    return wrong + [str(job) for job in state(sound).keys() ^ state(killed).keys()]


def is_json(path: Path) -> bool:
    """Whether it is a whole file."""
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def sweeps(kill: Kill) -> int:
    """Sweeps killed again and again until done, as many as it takes; the exit status."""
    moments = random.Random(kill.seed)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        suite, sound = Path(folder) / "suite.toml", Path(folder) / "sound" / "suite"
        suite.write_text(SUITE)
        environment = os.environ | {"MINARI_DATASETS_PATH": str(Path(folder) / "data")}

        def started(out: str) -> subprocess.Popen:
            command = [sys.executable, "-m", "benchmarks.sweep", str(suite), "--runs", str(Path(folder) / out)]
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

        for out in ("first", "sound"):  # the first one fills the cache of compiled programs
            began = time.perf_counter()
            if started(out).wait():
                raise SystemExit("the undisturbed sweep failed")
        seconds = time.perf_counter() - began
        number, seen = 0, {}
        while True:
            out = f"killed{number}"
            process = started(out)
            moment = moments.uniform(0.1, 0.6) * seconds if len(rows) < kill.trials else None
            try:
                status = process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            now = state(Path(folder) / out)
            untouched = all(now.get(job) == when for job, when in seen.items())
            # With every job finished there was nothing left to kill.
            if status == -signal.SIGKILL and len(now) < len(state(sound)):
                row = {
                    "sweep": number,
                    "killed_after_seconds": round(moment, 1),
                    "jobs_begun": len(list((Path(folder) / out).rglob("config.json"))),
                    "jobs_finished": len(now),
                    "finished_ones_untouched": untouched,
                }
                rows.append(row)
                seen = now
                print(row, flush=True)
                continue
            wrong += [f"{out}: {what}" for what in differences(sound, Path(folder) / out / "suite")]
            wrong += [f"{out}: status {status}"] * (status not in (0, -signal.SIGKILL))
            wrong += [f"{out}: a finished job was run again"] * (not untouched)
            if moment is None or wrong:
                break
            number, seen = number + 1, {}
    publish("kill_sweep", rows, "benchmarks.studies.kill", suite=SUITE, sweeps=number + 1, different=wrong)
    good = not wrong and all(row["finished_ones_untouched"] for row in rows)
    verdict = "equal to" if good else "DIFFERS from"
    print(f"{len(rows)} kills, {number + 1} sweeps: {verdict} an undisturbed one", *wrong)
    return int(not good)


def main(kill: Kill) -> int:
    """All trials; the exit status."""
    if kill.trials < 1:
        raise Refused(f"--trials must be at least 1, not {kill.trials}")
    return runs(kill) if kill.what == "run" else sweeps(kill)


if __name__ == "__main__":
    exiting("kill", lambda: main(tyro.cli(Kill, description=__doc__)))
