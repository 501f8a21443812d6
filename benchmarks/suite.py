"""Suites: what a sweep trains, read from a file and checked before the first job begins.

A suite is a table of variants and tasks; benchmarks/sweep.py says what its file looks like. A job is one variant on one
task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import commandline, counts, datasets, launch, recipes, tasks
from common.datasets import naming
from common.datasets.downloads import can_be_downloaded, is_here
from common.errors import Refused
from common.rehearsal import rehearse

ROOT = Path(__file__).parents[1]
SUITES = Path(__file__).parent / "suites"


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
    source = naming.with_kind(source)
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
        content = {key: counts.like(0, value) if key in COUNTS else value for key, value in content.items()}
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


COUNTS = ("num_seeds", "size")
"""Keys whose values may be written 1e6, which TOML takes for a fraction."""
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
