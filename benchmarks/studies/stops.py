"""Runs stopped by signals at random moments of every stage, and resumed: what was answered, when, and what was kept.

    python -m benchmarks.studies.stops [--trials 200] [--jobs 2] [--go-on]

Each run is of one of four algorithms, and is sent one of the signals in one of the stages: while it imports, makes
data, compiles (with an empty cache of compiled programs), learns, evaluates or saves. Measured are the seconds to the
answer, a line, and to the end of the process. Then it is resumed, or begun anew where it had no folder yet, and
compared with a run that nobody disturbed: tables byte by byte, all arrays of the last checkpoint by their checksums.
Results go to benchmarks/results/stops.{csv,json}; status 1 if a run was not answered, left a process behind, or came to
another end. They are written after every run, and `--go-on` keeps those that are there and makes the rest.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.reporting.results import file, publish
from common.errors import Refused, exiting
from common.runs import commit
from common.stops import ANSWER, SIGNALS

ROOT = Path(__file__).parents[2]
COMMON = (
    "--env pointmaze-umaze --hidden 32 32 --batch-size 64 --log-every 500 --eval-every 1000 --eval-episodes 10 "
    "--eval-workers 2 --checkpoint-every 500"
)
RUNS = {
    "rlpd": "--ensemble 3 --utd 2 --steps 2000 --start-training 300",
    "iql": "--offline-steps 3000 --online-steps 1000",
    "redq_adaptive_bc": "--ensemble 3 --target-subset 2 --utd 2 --offline-steps 2000 --online-steps 1000",
    "td3_bc": "--actor-hidden 32 32 --offline-steps 4000 --online-steps 1000",
}
"""Algorithm -> flags."""
WORDS = ("commit", "algorithm", "stage", "signal")
"""The columns that are no numbers."""
STAGES = ("importing", "making data", "compiling", "learning", "evaluating", "saving")


class Command:
    """A run in a process, and when it said what."""

    def __init__(self, algorithm: str, arguments: Sequence[str], data: Path, cache: Path):
        environment = os.environ | {"MINARI_DATASETS_PATH": str(data), "XDG_CACHE_HOME": str(cache)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, str(ROOT / "algorithms" / f"{algorithm}.py"), *arguments]
        # A session of its own: a signal goes to all of its processes, as a terminal's does.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        self.said: list[tuple[float, str]] = []
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        """Note every line, and when it came."""
        for line in self.process.stdout:
            self.said.append((time.perf_counter(), line.rstrip("\n")))

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for something, or for the end."""
        while self.process.poll() is None and not reached():
            time.sleep(0.002)

    def end(self, seconds: float | None = None) -> int:
        """Wait for the end; the status. Raises subprocess.TimeoutExpired."""
        status = self.process.wait(seconds)
        self.reader.join(10)
        return status

    @property
    def text(self) -> str:
        """All that it said."""
        return "\n".join(line for _, line in self.said)


class Study:
    """What the runs share, below one folder."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.data, self.cache = folder / "data", folder / "cache"
        for path in (self.data, self.cache):
            path.mkdir()
        self.whole: dict[str, Path] = {}
        """Algorithm -> the folder of an undisturbed run."""
        self.times: dict[tuple[str, str], float] = {}
        """Algorithm and stage -> how long it takes."""

    def arguments(self, algorithm: str, out: Path) -> list[str]:
        """Of a new run."""
        return [*f"{COMMON} {RUNS[algorithm]}".split(), "--out", str(out)]

    def measure(self, algorithm: str) -> None:
        """Runs that nobody disturbs: with nothing there yet, and with all there is. Raises Refused if they fail."""
        for name, data, cache in (
            ("anew", self.folder / f"anew-{algorithm}", self.folder / f"cold-{algorithm}"),
            ("first", self.data, self.cache),
            ("whole", self.data, self.cache),
        ):
            out = self.folder / f"{name}-{algorithm}"
            out = out if name != "anew" else self.folder / f"run-anew-{algorithm}"
            data.mkdir(exist_ok=True)
            run, began = Command(algorithm, self.arguments(algorithm, out), data, cache), time.perf_counter()
            run.until((out / ".lock").exists)
            ready = time.perf_counter() - began
            run.until((out / "metrics.csv").exists)
            learning = time.perf_counter() - began
            if run.end():
                raise Refused(f"{algorithm}.py does not run:\n{run.text}")
            if name == "anew":
                self.times[algorithm, "making data"] = ready
                self.times[algorithm, "compiling"] = learning - ready
            else:
                self.times[algorithm, "importing"] = ready
                self.times[algorithm, "learning"] = time.perf_counter() - began - learning
        self.whole[algorithm] = self.folder / f"whole-{algorithm}"

    def moment(self, moments: random.Random, algorithm: str, stage: str, run: Command, out: Path) -> None:
        """Wait for a random moment of a stage."""
        share, importing = moments.random(), self.times[algorithm, "importing"]
        if stage == "importing":
            time.sleep(share * importing)
        elif stage == "making data":
            time.sleep(importing + share * max(0.0, self.times[algorithm, stage] - importing))
        elif stage in ("compiling", "learning"):
            run.until((out / (".lock" if stage == "compiling" else "metrics.csv")).exists)
            time.sleep(share * self.times[algorithm, stage])
        elif stage == "evaluating":
            # The row of metrics comes just before it.
            number = moments.randint(1, 2)
            run.until(lambda: number * 2 < lines(out / "metrics.csv"))
            time.sleep(share * 0.2)
        else:
            # What is being written has another name until it is whole.
            number = moments.randint(1, 3)
            run.until(lambda: len(whole_checkpoints(out)) >= number - 1 and bool(half_checkpoints(out)))

    def trial(self, number: int, algorithm: str, stage: str, by: int) -> dict[str, Any]:
        """Stop a run and let it come to its end; again with another one if it had come to it before."""
        moments, row = random.Random(f"{self.seed} {number}"), None
        while row is None:
            row = self.stopped(moments, number, algorithm, stage, by)
        return row

    def stopped(
        self, moments: random.Random, number: int, algorithm: str, stage: str, by: int
    ) -> dict[str, Any] | None:
        """One run of a trial; None if it had come to its end before its moment."""
        out, cold = self.folder / f"trial{number}", self.folder / f"trial{number}-cold"
        data = cold if stage == "making data" else self.data
        cache = cold if stage == "compiling" else self.cache
        for path in (out, cold):
            shutil.rmtree(path, ignore_errors=True)
        cold.mkdir()
        run = Command(algorithm, self.arguments(algorithm, out), data, cache)
        self.moment(moments, algorithm, stage, run, out)
        finished, sent = (out / "summary.json").exists(), time.perf_counter()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, by)
        try:
            status = run.end(120)
        except subprocess.TimeoutExpired:
            os.killpg(run.process.pid, signal.SIGKILL)
            status = run.end()
        ended = time.perf_counter()
        if finished or status == 0:
            return None
        answers = [when - sent for when, line in run.said if ANSWER in line or "interrupted before" in line]
        begun = (out / "config.json").exists()
        row = {
            "run": number,
            "commit": commit(),
            "algorithm": algorithm,
            "stage": stage,
            "signal": signal.Signals(by).name,
            "seconds_to_answer": round(answers[0], 3) if answers else None,
            "seconds_to_end": round(ended - sent, 3),
            "status": status,
            "traceback": "Traceback" in run.text,
            "processes_left": left(run.process.pid),
            "kept": max(whole_checkpoints(out), default=0) if begun else None,
            "half_made": bool(list(data.glob(".recipe-*"))),
        }
        resumed = Command(algorithm, ["--resume", str(out)] if begun else self.arguments(algorithm, out), data, cache)
        row |= {"resumed_status": resumed.end(), "equal": same(out, self.whole[algorithm])}
        shutil.rmtree(cold, ignore_errors=True)
        return row


def lines(path: Path) -> int:
    """How many a file has; 0 without one."""
    return path.read_text().count("\n") if path.exists() else 0


def whole_checkpoints(out: Path) -> list[int]:
    """The steps of those that are whole."""
    return [int(path.name) for path in (out / "checkpoints").glob("*") if path.name.isdigit()]


def half_checkpoints(out: Path) -> list[Path]:
    """Those that are being written."""
    return [path for path in (out / "checkpoints").glob("*") if not path.name.isdigit()]


def left(session: int) -> int:
    """Processes of a session whose first one has ended, a second later."""
    time.sleep(1)
    found = subprocess.run(["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True).stdout
    return sum(not line.startswith("Z") for line in found.split("\n") if line.strip())


def same(one: Path, other: Path) -> bool:
    """Whether two runs have written the same tables and, at their end, the same arrays."""

    def written(out: Path) -> list[Any]:
        newest = out / "checkpoints" / str(max(whole_checkpoints(out), default=0))
        tables = [(out / name).read_bytes() for name in ("metrics.csv", "eval.csv")]
        return [*tables, newest.name, json.loads((newest / "progress" / "metadata").read_text())["checksums"]]

    try:
        return written(one) == written(other)
    except OSError:
        return False


@dataclass(frozen=True)
class Stops:
    """Four algorithms, six stages, four signals: 96 combinations, each once before any comes again."""

    trials: int = 200
    """Runs that are stopped."""
    seed: int = 0
    """Of the order of the combinations, and of the moments."""
    jobs: int = 1
    """Runs side by side."""
    go_on: bool = False
    """Keep the runs that stand in the results file, of the same seed, and make those that are missing."""


def main(study: Stops) -> int:
    """All runs; the exit status, 1 if anything was lost, left or not answered."""
    for name in ("trials", "jobs"):
        if getattr(study, name) < 1:
            raise Refused(f"--{name} must be at least 1, not {getattr(study, name)}")
    count, seed = study.trials, study.seed
    # What ignores one, as what a shell started in the background or with nohup does, would have its children ignore it.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    rows = published() if study.go_on else []
    # Every combination once before any comes again, in an order that mixes them.
    cells = list(itertools.product(RUNS, STAGES, SIGNALS))
    random.Random(seed).shuffle(cells)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        trials, there = Study(Path(folder), seed), {row["run"] for row in rows}
        asked = enumerate(itertools.islice(itertools.cycle(cells), count))
        missing = [(number, *cell) for number, cell in asked if number not in there]
        for algorithm in sorted({algorithm for _, algorithm, *_ in missing}):
            trials.measure(algorithm)
        pool = ThreadPoolExecutor(study.jobs)
        stack.callback(pool.shutdown, cancel_futures=True)
        for trial in as_completed([pool.submit(trials.trial, *one) for one in missing]):
            rows.append(trial.result())
            print(rows[-1], flush=True)
            rows.sort(key=lambda row: row["run"])
            publish("stops", rows, "benchmarks.studies.stops", arguments=COMMON, runs=RUNS)
    table(rows)
    good = sum(is_sound(row) for row in rows)
    print(
        f"{good} of {len(rows)} runs answered, left no process behind, and came to the end of an undisturbed one",
        flush=True,
    )
    return int(good != len(rows))


def published() -> list[dict[str, Any]]:
    """The rows of the results file."""
    path = file("stops", ".csv")
    if not path.exists():
        return []

    def read(column: str, text: str) -> Any:
        """A cell, as it was before it was written."""
        return text if column in WORDS else ast.literal_eval(text or "None")

    with path.open() as table:
        return [{column: read(column, text) for column, text in row.items()} for row in csv.DictReader(table)]


def is_sound(row: Mapping[str, Any]) -> bool:
    """Whether a trial is as it should be; before the first line of ours has run, nobody can answer."""
    unheard = row["stage"] == "importing" and row["status"] == -signal.Signals[row["signal"]]
    answered = (row["seconds_to_answer"] is not None or unheard) and not row["traceback"]
    return answered and row["resumed_status"] == 0 and row["equal"] and not row["processes_left"]


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print the seconds by stage: median and largest."""
    print(f"{'stage':12} {'runs':>5} {'answered':>9} {'to the answer':>16} {'to the end':>16}")
    for stage in STAGES:
        mine = [row for row in rows if row["stage"] == stage]
        if not mine:
            continue
        answers = [row["seconds_to_answer"] for row in mine if row["seconds_to_answer"] is not None]
        ends = [row["seconds_to_end"] for row in mine]
        cells = [f"{statistics.median(x):7.2f} {max(x):8.2f}" if x else "-" for x in (answers, ends)]
        print(f"{stage:12} {len(mine):5} {len(answers):9} {cells[0]:>16} {cells[1]:>16}")


if __name__ == "__main__":
    exiting("stops", lambda: main(tyro.cli(Stops, description=__doc__)))
