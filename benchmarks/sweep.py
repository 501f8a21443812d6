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
its run directory. Status 1 if a job failed; `python -m benchmarks.report` makes tables of the rest.

`--launcher ray` places the open jobs on a Ray cluster whose machines share the folders of runs and data; a job whose
worker dies is tried again and goes on from its checkpoint. `--launcher slurm` makes the data and prints a script that
is an array of the open jobs, each with the resources that the `--sbatch` lines ask for; a job that is preempted, or
warned of its time limit, writes a checkpoint, and goes on where it is requeued.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any, Literal

import tyro
from rich.console import Console

from benchmarks import cluster
from benchmarks.reporting.results import without_folder
from common import commandline, datasets, launch, recipes, tasks
from common.datasets.downloads import can_be_downloaded, fetch, is_here
from common.errors import Refused, exiting
from common.machine import cores, tied
from common.rehearsal import rehearse
from common.runs import write_json
from common.terminal import making

ROOT = Path(__file__).parents[1]
SUITES = Path(__file__).parent / "suites"


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
        if self.job_gpus > 1 and self.job_gpus % 1:
            return f"--job-gpus must be a share of one GPU or a whole number of them, not {self.job_gpus:g}"
        return None


@dataclass(frozen=True)
class Job:
    """One variant on one task."""

    task: str
    variant: str
    algorithm: str
    flags: tuple[str, ...]
    num_seeds: int
    size: int | None
    source: str | None = None
    """Of its data, as the suite says or the sweep has decided for all jobs of its task; None where flags or size do."""

    @property
    def folder(self) -> Path:
        """Where its run lies, below the suite's folder."""
        return Path(self.task) / re.sub(r"[^\w.+]+", "-", self.variant).strip("-")

    @functools.cached_property
    def request(self) -> commandline.Request:
        """What its command line asks for, but for data that the sweep makes. Raises Refused if that is wrong."""
        module = importlib.import_module(f"algorithms.{self.algorithm}")
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                asked = ["--env", self.task, *self.rest]
                return commandline.parse(asked, self.algorithm, "", module.Config, module.PRESETS)
        except SystemExit as error:
            boxed = re.sub(r"[^ -~]+", " ", said.getvalue())
            raise self.refused(" ".join(boxed.split())) from error
        except Refused as refusal:
            raise self.refused(refusal) from refusal

    def refused(self, why: object) -> Refused:
        """A refusal that names the job."""
        return Refused(f"variant {self.variant!r} on {self.task}: {why}")

    def check(self) -> None:
        """Raise Refused if it could not run, as far as that shows without its data, before others train for hours."""
        taken = [flag for flag in self.flags if flag.partition("=")[0] in ("--env", "--out", "--resume")]
        if taken:
            raise self.refused(f"{taken[0]} is for the sweep to say; leave it out")
        request = self.request
        try:
            launch.check(request, tasks.find(self.task))
            check_playable(self.task, request.config.discrete_actions)
            if request.config.uses_prior_data:
                check_source(request.run.dataset or self.source or tasks.find(self.task).default_dataset)
        except Refused as refusal:
            raise self.refused(refusal) from refusal

    def data(self) -> tuple[str, int | None] | None:
        """What it learns from, if from anything: a source, and how many transitions to make if the suite says so."""
        if not self.request.config.uses_prior_data:
            return None
        if self.request.run.dataset is None and self.made is not None:
            return f"recipe:{self.task}", self.size
        return self.request.run.dataset or self.source, None

    def decided(self, sources: dict[str, str | None]) -> Job:
        """Itself with the source that its task has in `sources`, where one is decided on if there is none."""
        said = self.request.run.dataset or self.made or self.source
        if not self.request.config.uses_prior_data or said is not None:
            return self
        if self.task not in sources:
            sources[self.task] = datasets.default_source(tasks.find(self.task))
        return dataclasses.replace(self, source=sources[self.task])

    @property
    def made(self) -> str | None:
        """The data of the suite's own size, which the sweep makes; None if its task has no recipe."""
        if self.size is None or self.task not in recipes.names():
            return None
        return f"minari:{recipes.dataset_id(self.task, self.size)}"

    def arguments(self) -> list[str]:
        """Its command line, without `--out`; the data must have been made."""
        source = self.made or self.source
        data = ["--dataset", source] if source is not None and self.request.config.uses_prior_data else []
        return ["--env", self.task, *data, *self.rest]

    @property
    def rest(self) -> list[str]:
        """Its flags beyond task and data."""
        return ["--num-seeds", str(self.num_seeds), "--devices", "1", *self.flags]


@functools.cache
def check_playable(task: str, discrete: bool) -> None:
    """Refuse an environment that no run could act in, or with other actions than an algorithm's."""
    rehearse(tasks.find(task), discrete, several=True)


def check_source(source: str | None) -> None:
    """Refuse prior data that there cannot be; nothing is read, and what would be downloaded is not asked for."""
    if source is None:
        raise Refused("the task has no prior data of its own; name some with --dataset KIND:WHAT")
    kind, _, name = source.partition(":")
    kinds = (*datasets.READERS, "recipe")
    if kind not in kinds or not name:
        raise Refused(f"--dataset {source}: the sources are {', '.join(f'{kind}:' for kind in kinds)}")
    if kind == "recipe" and name not in recipes.names():
        raise Refused(f"--dataset {source}: the recipes are {', '.join(recipes.names())}")
    if kind != "recipe" and not can_be_downloaded(source) and not is_here(source):
        raise Refused(f"--dataset {source}: there is no such file; make or fetch it first")


@dataclass
class Suite:
    """A suite as read from its file."""

    name: str
    jobs: list[Job] = field(default_factory=list)

    @classmethod
    def read(cls, name: str, num_seeds: int | None = None, seed: int = 0) -> Suite:
        """The suite of this name or path, from this seed on. Raises Refused, naming what is wrong with the file."""
        path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in SUITES.glob("*.toml")))
            raise Refused(f"no suite {name!r}: there are {known}; or give the path of a .toml file")
        try:
            content = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise Refused(f"{path}: {error}") from error
        check(str(path), content, {"parts"}, {"num_seeds", "size", "data", "flags"})
        flags = words(f"{path}: flags", content.get("flags", ""))
        seeds = content.get("num_seeds", 1) if num_seeds is None else num_seeds
        suite = cls(path.stem)
        for number, part in enumerate(content["parts"], 1):
            place = f"{path}, part {number}"
            check(place, part, {"tasks", "variants"}, {"flags"})
            shared = [*flags, *words(f"{place}: flags", part.get("flags", ""))]
            for task in part["tasks"]:
                check_task(place, task)
                for variant, line in part["variants"].items():
                    algorithm, own = parsed(f"{place}: variant {variant!r}", line)
                    whole = (*shared, *own, *(("--seed", str(seed)) if seed else ()))
                    source = f"recipe:{task}" if "data" in content else None
                    suite.jobs.append(Job(task, variant, algorithm, whole, seeds, content.get("size"), source))
        folders = [job.folder for job in suite.jobs]
        for folder in folders:
            if folders.count(folder) > 1:
                raise Refused(f"{path}: two variants of {folder.parent} would share the folder {folder.name}")
        return suite


def is_count(value: Any) -> bool:
    """Whether it is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_list(value: Any, kind: type) -> bool:
    """Whether it is a list of this kind, and not an empty one."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, kind) for each in value)


def are_lines(value: Any) -> bool:
    """Whether it is a table of strings under names that a folder can have, and not an empty one."""
    named = isinstance(value, dict) and bool(value) and all(re.search(r"\w", name) for name in value)
    return named and all(isinstance(line, str) for line in value.values())


KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_seeds": (is_count, "a whole number of at least 1"),
    "size": (is_count, "a whole number of transitions, such as 100_000"),
    "data": (lambda value: value == "recipe", '"recipe", or left out for what each task has by default'),
    "flags": (lambda value: isinstance(value, str), 'one string, such as "--eval-every 5000 --eval-episodes 10"'),
    "parts": (lambda value: is_list(value, dict), "tables, at least one, each headed [[parts]] in double brackets"),
    "tasks": (lambda value: is_list(value, str), 'a list of names, at least one, such as ["hopper-medium"]'),
    "variants": (are_lines, 'a table headed [parts.variants] of lines such as "TD3+BC" = "td3_bc"'),
}
"""Key of a suite's tables -> whether a value can be its, and what it must be, in words."""


def check(place: str, table: dict[str, Any], needed: set[str], optional: set[str]) -> None:
    """Refuse a table of a suite with missing or unknown keys, or with a value that is not its key's."""
    missing, unknown = sorted(needed - table.keys()), sorted(table.keys() - needed - optional)
    if missing:
        raise Refused(f"{place}: {', '.join(missing)} missing")
    if unknown:
        raise Refused(f"{place}: unknown {', '.join(unknown)}; there are {', '.join(sorted(needed | optional))}")
    for key, value in table.items():
        sound, expected = KEYS[key]
        if not sound(value):
            raise Refused(f"{place}: {key} must be {expected}")


def check_task(place: str, task: str) -> None:
    """Refuse a task that there is not."""
    try:
        tasks.find(task)
    except Refused as error:
        raise Refused(f"{place}: {error}") from error


def words(place: str, line: str) -> list[str]:
    """A line of a suite, split as by a shell."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise Refused(f"{place}: {str(error).lower()} in {line!r}") from error


def parsed(place: str, line: str) -> tuple[str, list[str]]:
    """The algorithm and the flags of a variant's line."""
    algorithm, *flags = words(place, line) or [""]
    known = sorted(path.stem for path in (ROOT / "algorithms").glob("*.py") if path.stem != "__init__")
    if algorithm not in known:
        named = f"there is no algorithms/{algorithm}.py" if algorithm else "names no algorithm"
        raise Refused(f"{place}: {named}; first comes one of {', '.join(known)}")
    return algorithm, flags


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
        self.tell(job, status)
        return status

    def tell(self, job: Job, ended: int | str) -> None:
        """One line on how a job ended: its status, or in words."""
        how = f"ended with status {ended}" if isinstance(ended, int) else ended
        how = "finished" if ended == 0 else f"{how}, see {self.folder / job.folder}.log"
        self.console.print(f"{job.task}, {job.variant}: {how}", highlight=False, soft_wrap=True)

    def describe(self) -> None:
        """Write which folder is which job, for reports."""
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs = [{"folder": str(j.folder), "task": j.task, "variant": j.variant} for j in self.suite.jobs]
        path, described = self.folder / "suite.json", {"suite": self.suite.name, "jobs": jobs, "sources": self.sources}
        # The jobs of an array, all at once, have nothing to write.
        if not path.exists() or json.loads(path.read_text()) != described:
            write_json(path, described)

    def on_ray(self, start: cluster.Start, jobs: Sequence[Job]) -> bool:
        """These jobs on a Ray cluster; whether all chosen ones have finished."""

        def told(number: int, ended: int | str) -> None:
            self.tell(jobs[number], ended)

        cluster.run(start, [(job.algorithm, job.arguments(), self.folder / job.folder) for job in jobs], told)
        return self.finished()

    def finished(self) -> bool:
        """Whether all chosen jobs have finished."""
        return all((self.folder / job.folder / "summary.json").exists() for job in self.chosen)

    def all(self) -> bool:
        """Every job chosen; whether all have finished."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                list(pool.map(self.run, self.chosen))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.finished()


def main(sweep: Sweep) -> int:
    """Make the data, then run what is missing; the exit status."""
    if problem := sweep.problem():
        raise Refused(problem)
    console = Console(stderr=sweep.launcher == "slurm")
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
            console.print(f"{task}: learns from {source}, as no published data were within reach", highlight=False)
    console.print(f"{suite.name}: {len(suite.jobs)} jobs, {len(open_jobs)} to do", highlight=False)
    if sweep.launcher == "ray" and open_jobs:
        resources = cluster.Resources(sweep.ray_address, sweep.job_cpus, sweep.job_gpus, sweep.retries)
        # The cluster first: data for one that cannot be had would be made in vain.
        with cluster.connected(resources) as start:
            prepare(runner, open_jobs)
            return 0 if runner.on_ray(start, open_jobs) else 1
    prepare(runner, open_jobs)
    if sweep.launcher == "slurm":
        if open_jobs:
            print(script(sweep, suite.name, [suite.jobs.index(job) for job in open_jobs]), end="")
        return 0
    return 0 if runner.all() else 1


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
    exiting("sweep", lambda: main(tyro.cli(Sweep, description=__doc__)))
