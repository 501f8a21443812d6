"""What runs are called that belong to no sweep: their algorithm, and the flags in which they differ."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACES = ("env", "out", "resume")
"""Flags that say where and what, not how: no part of a name."""
MEASURING = (
    "seed", "num-seeds", "eval-every", "eval-episodes", "eval-workers", "eval-async", "log-every", "checkpoint-every",
    "width", "devices", "tensorboard", "wandb",
)  # fmt: skip
"""Flags that change no method: part of a name only where nothing else tells two runs apart."""


@dataclass(frozen=True)
class Said:
    """A run, as its config.json has it."""

    folder: Path
    task: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Flag:
    """A flag that was typed."""

    values: tuple[str, ...]
    """By which it is compared: numbers written alike."""
    words: str
    """As it was typed."""


def called(runs: Sequence[Said]) -> list[str]:
    """A name for each run, [runs], which no two runs of one task share unless their grids differ."""
    typed = without_defaults(runs, [flags(run.config.get("arguments", ())) for run in runs])
    algorithms = [run.config["algorithm"] for run in runs]
    names, grids = list(algorithms), [{key for key in mine if key.startswith("grid.")} for mine in typed]
    for kinds in (lambda name: name not in MEASURING, lambda name: name in MEASURING):
        for algorithm in set(algorithms):
            alike = [k for k, other in enumerate(algorithms) if other == algorithm]
            if kinds("seed"):
                alike = [k for k in alike if shared(k, runs, names, grids)]
            for name in differing([typed[k] for k in alike], [runs[k].task for k in alike]):
                for k in alike:
                    if kinds(name) and name in typed[k]:
                        names[k] += f" {typed[k][name].words}"
    twins = [k for k in range(len(runs)) if shared(k, runs, names, grids)]
    if twins:
        above = os.path.commonpath([runs[k].folder.absolute().parent for k in twins])
        for k in twins:
            names[k] += f" in {os.path.relpath(runs[k].folder.absolute(), above)}"
    return names


def shared(at: int, runs: Sequence[Said], names: Sequence[str], grids: Sequence[set[str]]) -> bool:
    """Whether another run of the task has the name of the run at this place."""
    keys = Counter((run.task, name, frozenset(grid)) for run, name, grid in zip(runs, names, grids, strict=True))
    return keys[runs[at].task, names[at], frozenset(grids[at])] > 1


def flags(arguments: Sequence[str]) -> dict[str, Flag]:
    """The flags among a run's arguments, by their names without dashes in front; of one that is repeated the last."""
    lines: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            lines.append([flag, *([value] if equals else [])])
        elif lines:
            lines[-1].append(argument)
    found = {}
    for flag, *values in lines:
        name = flag.removeprefix("--").replace("_", "-")
        if name.startswith("grid.") and len(values) == 1:
            name = name.removeprefix("grid.")  # one value is no grid
        if not values:
            name, values = name.removeprefix("no-"), [str(not name.startswith("no-"))]
        found[name] = Flag(tuple(map(alike, values)), " ".join([flag, *values]) if values[0] not in BOOLEAN else flag)
    return {name: flag for name, flag in found.items() if name not in PLACES}


BOOLEAN = ("True", "False")
"""How a flag without a value is kept."""


def alike(word: str) -> str:
    """A word, or the one way to write its number."""
    try:
        return repr(float(word))
    except ValueError:
        return word


def without_defaults(runs: Sequence[Said], typed: Sequence[Mapping[str, Flag]]) -> list[dict[str, Flag]]:
    """The flags [runs] without those that another run of the same algorithm and task has not typed, and has had too."""

    def is_default(at: int, name: str) -> bool:
        mine = held(runs[at].config, name)
        return mine is not None and any(
            name not in flags
            and (other.task, other.config["algorithm"]) == (runs[at].task, runs[at].config["algorithm"])
            and held(other.config, name) == mine
            for other, flags in zip(runs, typed, strict=True)
        )

    return [
        {name: flag for name, flag in mine.items() if name.startswith("grid.") or not is_default(at, name)}
        for at, mine in enumerate(typed)
    ]


def held(config: Mapping[str, Any], name: str) -> Any:
    """The value that a run has had of a flag; None if config.json does not say."""
    field = name.replace("-", "_")
    return config.get("config", {}).get(field, config.get("run", {}).get(field))


def differing(typed: Sequence[Mapping[str, Flag]], tasks: Sequence[str]) -> list[str]:
    """The flags that are not the same for all; of data, which differ from task to task, those that differ on one."""
    found = []
    for name in dict.fromkeys(name for mine in typed for name in mine):
        values = [mine[name].values if name in mine else () for mine in typed]
        if name == "dataset":
            differs = any(len({v for v, its in zip(values, tasks, strict=True) if its == task}) > 1 for task in tasks)
        else:
            differs = len(set(values)) > 1
        if differs and not name.startswith("grid."):
            found.append(name)
    return found
