"""Train every variant of a suite on every task: one command, which does only what is missing.

    python -m benchmarks.sweep SUITE [--jobs 2] [--runs runs/sweeps] [--num-seeds N] [--seed N]
    python -m benchmarks.sweep SUITE --launcher ray [--ray-address auto] [--job-cpus 1] [--job-gpus 0.25]
    python -m benchmarks.sweep SUITE --launcher slurm --sbatch=--gpus=1 --sbatch=--time=24:00:00 > suite.sh

A suite is a file in benchmarks/suites (or a path to one):

    num_seeds = 3                     # of every run
    size = 100_000                    # optional: transitions to make of a recipe, instead of its own number
    data = "recipe"                   # optional: to learn from recipes, where there are published data, too
    flags = "--eval-every 5000"       # for all

    [[parts]]
    tasks = ["hopper-medium", "hopper-medium-replay"]
    flags = "--offline-steps 100000"  # optional: for this part
    [parts.variants]
    "TD3+BC" = "td3_bc"               # name = "algorithm flags"
    "imitation first" = "td3_bc --preset imitate-first"

A job is one variant on one task, with its seeds as one command; `--jobs` of them run side by side, each on cores of its
own. What could not run is refused before anything is made or trained, as far as it shows without the data. Interrupted,
the same command continues: finished jobs are kept, half-finished ones resumed. What a job prints goes to a file beside
its run directory. Each finished job is a line, with an estimate of what is left; the last line is the command
that reports them all. Status 1 if a job failed.

`--launcher ray` places the open jobs on a Ray cluster whose machines share the folders of runs and data; a job whose
worker dies is tried again and goes on from its checkpoint. `--launcher slurm` makes the data and prints a script that
is an array of the open jobs, each with the resources that the `--sbatch` lines ask for; a job that is preempted, or
warned of its time limit, writes a checkpoint, and goes on where it is requeued.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import Queue
from typing import Literal

import tyro
from rich.console import Console

from benchmarks import cluster
from benchmarks.reporting.results import without_folder
from benchmarks.suite import ROOT, Job, Suite
from common import counts, recipes, tasks, terminal
from common.datasets.downloads import fetch
from common.errors import Refused, exiting
from common.machine import cores, tied
from common.runs import write_json
from common.terminal import making


@dataclass(frozen=True)
class Sweep:
    """What is trained, and how."""

    suite: tyro.conf.Positional[str]
    """Name of a file in benchmarks/suites, or a path."""
    jobs: int = 2
    """Jobs side by side."""
    runs: Path = Path("runs/sweeps")
    """Where the run directories lie: RUNS/SUITE/TASK/VARIANT."""
    num_seeds: int | None = None
    """Seeds of every run, instead of the suite's."""
    seed: int = 0
    """The first of them."""
    only: int | None = None
    """Run the job of this number alone; the suite's jobs are counted from 0."""
    launcher: Literal["local", "ray", "slurm"] = "local"
    """Run the jobs here, or on a Ray cluster, or print a script for Slurm."""
    ray_address: str | None = None
    """Of a running cluster: auto, or host:port; without it, Ray is started on this machine."""
    job_cpus: float = 1
    """Cores that Ray keeps for each job."""
    job_gpus: float = 0
    """GPUs that Ray keeps for each job; with 0.25, four jobs share one."""
    retries: int = 3
    """How often Ray tries a job again whose worker has died."""
    sbatch: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A line of the script's `#SBATCH` head; again for every other one: --sbatch=--gpus=1 --sbatch=--time=24:00:00."""

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        for name in ("jobs", "num_seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                return f"--{name.replace('_', '-')} must be at least 1, not {value}"
        for name in ("job_cpus", "job_gpus", "retries", "seed"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                return f"--{name.replace('_', '-')} must be at least 0 and finite, not {value:g}"
        if self.job_gpus > 1 and self.job_gpus % 1:
            return f"--job-gpus must be a share of one GPU or a whole number of them, not {self.job_gpus:g}"
        return None


class Runner:
    """Runs jobs and passes on a request to stop."""

    def __init__(self, sweep: Sweep, suite: Suite, console: Console):
        self.folder, self.suite, self.console = sweep.runs / suite.name, suite, console
        self.sources: dict[str, str | None] = {}
        """Task -> where the data of its jobs come from."""
        self.only = sweep.only
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.jobs = min(sweep.jobs, len(usable) or sweep.jobs, len(self.chosen))
        self.shares: Queue[set[int]] = Queue()
        for job in range(self.jobs):
            self.shares.put(set(usable[job :: self.jobs]))
        self.running: set[subprocess.Popen] = set()
        self.stopping = threading.Event()
        self.began, self.to_do, self.done = time.monotonic(), len(self.chosen), 0
        """When the first job began, how many there are to do, and how many of them have finished since."""
        self.lock = threading.Lock()

    def stop(self, *_: object) -> None:
        """Ask the running jobs to write their checkpoints and leave; start no other."""
        self.stopping.set()
        with self.lock:
            for process in self.running:
                process.send_signal(signal.SIGTERM)

    @property
    def chosen(self) -> list[Job]:
        """The suite's jobs, or the only one that is asked for."""
        return self.suite.jobs if self.only is None else [self.suite.jobs[self.only]]

    def decide(self) -> None:
        """Give all jobs of a task one source of data: what was within reach where the sweep began may not be here."""
        path = self.folder / "suite.json"
        self.sources = dict(json.loads(path.read_text()).get("sources", {})) if path.exists() else {}
        self.suite.jobs = [job.decided(self.sources) for job in self.suite.jobs]

    def command(self, job: Job) -> list[str] | None:
        """What is to be run for a job; None if it has finished. Raises Refused if another run lies in its folder."""
        out = self.folder / job.folder
        program = [sys.executable, str(ROOT / "algorithms" / f"{job.algorithm}.py")]
        if not (out / "config.json").exists():
            return [*program, *job.arguments(), "--out", str(out)]
        config = json.loads((out / "config.json").read_text())
        if config["algorithm"] != job.algorithm or without_folder(config["arguments"]) != job.arguments():
            raise Refused(f"{out} holds another run than the suite asks for now: move it away to train anew")
        return None if (out / "summary.json").exists() else [*program, "--resume", str(out)]

    def run(self, job: Job) -> int:
        """Train what is missing of a job: the exit status, 0 if there was nothing to do."""
        if self.stopping.is_set() or (command := self.command(job)) is None:
            return 0
        share = self.shares.get()
        start = time.monotonic()
        try:
            prefix = ["taskset", "-c", ",".join(map(str, sorted(share)))] if share else []
            own = min(len(share), cores()) if share else max(1, cores() // self.jobs)
            environment = os.environ | {"HEADSTART_CORES": str(own)}
            log = self.folder / f"{job.folder}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as output:
                with self.lock:
                    if self.stopping.is_set():
                        return 0
                    process = subprocess.Popen(
                        tied([*prefix, *command]), stdout=output, stderr=subprocess.STDOUT, env=environment
                    )
                    self.running.add(process)
                status = process.wait()
            with self.lock:
                self.running.discard(process)
        finally:
            self.shares.put(share)
        self.tell(job, status, time.monotonic() - start)
        return status

    def begin(self, to_do: int) -> None:
        """The clock, by which what is left is estimated, of so many jobs."""
        self.began, self.to_do, self.done = time.monotonic(), to_do, 0

    def tell(self, job: Job, ended: int | str, seconds: float | None = None) -> None:
        """One line on how a job ended, its status, or in words; how long it took; and what is left, if it finished."""
        how = f"ended with status {ended}" if isinstance(ended, int) else ended
        how = "finished" if ended == 0 else f"{how}, see {self.folder / job.folder}.log"
        after = "" if seconds is None else f" after {clock(seconds)}"
        with self.lock:
            self.done += ended == 0
            left = self.left() if ended == 0 else ""
        self.console.print(f"{job.task}, {job.variant}: {how}{after}{left}", highlight=False, soft_wrap=True)

    def left(self) -> str:
        """How many jobs are done, and how long the others will take at the pace of these."""
        others = self.to_do - self.done
        pace = (time.monotonic() - self.began) / self.done
        return f"; {self.done} of {self.to_do} done" + (f", about {clock(others * pace)} left" if others > 0 else "")

    def conclude(self) -> int:
        """Say what has not finished, and last how the rest is reported; the exit status."""
        missing = sum(not (self.folder / job.folder / "summary.json").exists() for job in self.chosen)
        if missing:
            some = f"{missing} of {len(self.chosen)} jobs have not finished: the same command goes on with them"
            self.console.print(some, highlight=False, soft_wrap=True)
        if self.only is None and missing < len(self.chosen):
            self.console.print(report_of(self.folder), highlight=False, soft_wrap=True)
        return 1 if missing else 0

    def describe(self) -> None:
        """Write which folder is which job, for reports."""
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs = [{"folder": str(j.folder), "task": j.task, "variant": j.variant} for j in self.suite.jobs]
        path, described = self.folder / "suite.json", {"suite": self.suite.name, "jobs": jobs, "sources": self.sources}
        # The jobs of an array, all at once, have nothing to write.
        if not path.exists() or json.loads(path.read_text()) != described:
            write_json(path, described)

    def on_ray(self, start: cluster.Start, jobs: Sequence[Job]) -> None:
        """These jobs on a Ray cluster."""

        def told(number: int, ended: int | str) -> None:
            self.tell(jobs[number], ended)

        cluster.run(start, [(job.algorithm, job.arguments(), self.folder / job.folder) for job in jobs], told)

    def all(self) -> None:
        """Every job chosen."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                list(pool.map(self.run, self.chosen))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def main(sweep: Sweep) -> int:
    """Make the data, then run what is missing; the exit status."""
    if problem := sweep.problem():
        raise Refused(problem)
    console = terminal.console(stderr=sweep.launcher == "slurm")
    suite = Suite.read(sweep.suite, sweep.num_seeds, sweep.seed)
    if sweep.only is not None and not 0 <= sweep.only < len(suite.jobs):
        raise Refused(f"--only {sweep.only}: {suite.name} has the jobs 0 to {len(suite.jobs) - 1}")
    runner = Runner(sweep, suite, console)
    runner.decide()
    open_jobs = [job for job in runner.chosen if runner.command(job)]
    for job in open_jobs:
        job.check()
    for task, source in runner.sources.items():
        if source != tasks.find(task).default_dataset and source.startswith("recipe:"):
            console.print(f"{task}: learns from {source}, as no published data were within reach", soft_wrap=True)
    console.print(f"{suite.name}: {len(suite.jobs)} jobs, {len(open_jobs)} to do", soft_wrap=True)
    if sweep.launcher == "ray" and open_jobs:
        resources = cluster.Resources(sweep.ray_address, sweep.job_cpus, sweep.job_gpus, sweep.retries)
        # The cluster first: data for one that cannot be had would be made in vain.
        with cluster.connected(resources) as start:
            prepare(runner, open_jobs)
            runner.begin(len(open_jobs))
            runner.on_ray(start, open_jobs)
            return runner.conclude()
    prepare(runner, open_jobs)
    if sweep.launcher == "slurm":
        if open_jobs:
            print(script(sweep, suite.name, [suite.jobs.index(job) for job in open_jobs]), end="")
        console.print(f"when all have finished: {report_of(runner.folder)}", highlight=False, soft_wrap=True)
        return 0
    runner.begin(len(open_jobs))
    runner.all()
    return runner.conclude()


def clock(seconds: float) -> str:
    """A time as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def report_of(folder: Path) -> str:
    """The command that reports a sweep."""
    return f"python -m benchmarks.report {shlex.quote(str(folder))}"


def prepare(runner: Runner, jobs: Sequence[Job]) -> None:
    """Make or fetch the data of the jobs, once rather than by every job that needs them, and the sweep's folder."""
    for source, size in dict.fromkeys(data for job in jobs if (data := job.data())):
        kind, _, name = source.partition(":")
        if kind == "recipe":
            with making(runner.console) as progress:
                recipes.make(name, size, progress=progress)
        else:
            fetch(source)
    runner.describe()


def script(sweep: Sweep, name: str, numbers: Sequence[int]) -> str:
    """A Slurm array of the jobs of these numbers."""
    # In full, since Slurm runs it from a copy elsewhere.
    suite = str(Path(sweep.suite).absolute()) if sweep.suite.endswith(".toml") else sweep.suite
    folder = sweep.runs.absolute()
    command = [sys.executable, "-m", "benchmarks.sweep", suite, "--runs", str(folder), "--jobs", "1"]
    if sweep.num_seeds is not None:
        command += ["--num-seeds", str(sweep.num_seeds)]
    if sweep.seed:
        command += ["--seed", str(sweep.seed)]
    log = str(folder / name).replace("%", "%%") + "/slurm-%a.log"
    head = [
        f"--job-name={quoted(name)}",
        f"--array={','.join(map(str, numbers))}",
        f"--output={quoted(log)}",
        "--open-mode=append",
        "--requeue",
        "--signal=B:TERM@120",
        *sweep.sbatch,
    ]
    # From the same folder, which the suite's paths and modules may be seen from.
    lines = ["#!/bin/bash", *(f"#SBATCH {line}" for line in head), f"cd {shlex.quote(os.getcwd())}"]
    return "\n".join([*lines, f'exec {shlex.join(command)} --only "$SLURM_ARRAY_TASK_ID"', ""])


def quoted(value: str) -> str:
    """A value as Slurm reads it in the head of a script, where a backslash escapes inside quotes of either kind."""
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


if __name__ == "__main__":
    exiting("sweep", lambda: main(counts.cli(Sweep, description=__doc__)))
