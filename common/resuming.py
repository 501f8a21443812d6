"""A run that goes on: where it began, where its data are now, and what is said where it ends early."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from common.datasets import naming
from common.errors import EnvironmentFailed, Refused
from common.makers import ENDING
from common.runs import RunDirectory, write_json, writing


def whole(source: str) -> str:
    """A source that names a file or folder of the present folder, or below it, in full, so that it holds elsewhere."""
    kind, place, options = naming.parts(source)
    path = Path(place).expanduser()
    if kind not in ("", *naming.FILES) or not (path.suffix.lower() in (*naming.HDF5, ".npz") or path.exists()):
        return source
    return f"{kind}{':' * bool(kind)}{path.absolute()}{options}"


def began_in(folder: Path, saved: Mapping[str, Any]) -> Path:
    """The folder in which the paths and modules of a run hold: the one it began in, also after both have moved.

    `folder` is the run directory, in full; `saved` is its config.json, which need not name the folder.
    """
    run = saved["run"]
    out = Path(run["out"]) if run["out"] else Path(*folder.parts[-4:])  # runs/ALGORITHM/TASK/TIME
    candidates = [Path(saved["began_in"])] if "began_in" in saved else []
    if not out.is_absolute() and folder.parts[-len(out.parts) :] == out.parts:
        candidates.insert(0, folder.parents[len(out.parts) - 1])
    candidates = [place for place in (*candidates, Path.cwd()) if place.is_dir()]
    names = [naming.parts(run["dataset"] or "")[1], *modules(run["env"])]
    return max(candidates, key=lambda place: sum(bool(name) and (place / name).exists() for name in names))


def modules(env: str) -> tuple[str, ...]:
    """The file or folder in which a task's own module may be."""
    module, colon, _ = env.partition(":")
    return (f"{module.replace('.', '/')}.py", module.replace(".", "/")) if colon else ()


def data_now(saved: Mapping[str, Any], given: str | None) -> str | None:
    """Where a run's data are: as `given`, or as an earlier --resume found them; None if they have not moved."""
    return given or saved.get("data_now")


def check_data(directory: RunDirectory, saved: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Refuse other data than the run has begun with."""
    if card["fingerprint"] != saved["dataset"]["fingerprint"]:
        raise Refused(
            f"--resume {directory.path}: {card['source']} holds other data than it began with; name those with "
            "--dataset KIND:WHAT"
        )


def has_given_data(saved: Mapping[str, Any]) -> bool:
    """Whether a run's data were handed over in Python, so that no name finds them."""
    return bool(saved.get("data_given"))


def in_python(folder: Path, saved: Mapping[str, Any]) -> str:
    """The call with which a run goes on there."""
    env = saved["run"]["env"]
    more = ", env=..." if env.endswith(ENDING) and ":" not in env else ""
    more += ", dataset=..." if has_given_data(saved) else ""
    return f"resume({str(folder)!r}, {saved['class']}{more})"


@contextlib.contextmanager
def finding_data(folder: Path | None) -> Iterator[None]:
    """In the refusal of a run's data, say what helps if they have moved; `folder` is None for a run that begins."""
    try:
        yield
    except Refused as refusal:
        if folder is None:
            raise
        way = f"--resume {folder} --dataset KIND:WHAT"
        raise Refused(f"{refusal}; if its data have moved, name them: {way}") from refusal


def note_data(directory: RunDirectory, saved: Mapping[str, Any], card: Mapping[str, Any]) -> None:
    """Keep in config.json where the data are that have moved, so that the next --resume finds them."""
    if card["source"] != saved.get("data_now", saved["dataset"]["source"]):
        path = directory.path / "config.json"
        with writing(path):
            write_json(path, dict(saved) | {"data_now": card["source"]})


@contextlib.contextmanager
def telling(directory: RunDirectory, console: Console, resumable: bool = True) -> Iterator[None]:
    """Whatever ends a run early inside, say how it goes on, in the line of a refusal or before a traceback."""
    if not resumable:
        yield
        return
    way = f"continue with {directory.way}"
    try:
        yield
    except Refused as refusal:
        told = str(refusal)
        if way in told:
            raise
        bare = "continue with --resume"
        raise Refused(told.replace(bare, way) if bare in told else f"{told}; {way}") from refusal
    except EnvironmentFailed:  # has a line of its own
        raise
    except Exception:  # whatever it is, its traceback follows
        console.print(f"ended by an error; {way}", highlight=False, soft_wrap=True)
        raise
