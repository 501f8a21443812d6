"""Where published numbers go: rows as CSV, and beside them what is needed to make them again."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import Refused
from common.runs import Table, commit, device, replacing, versions, write_json

FOLDER = Path(__file__).parents[1] / "results"
ROOM = "make room, or have it be yours"
"""What helps where a result cannot be written."""
FILES = re.compile(r"^((?:--dataset=)?(?:(?:d4rl|npz|ogbench|lerobot|robomimic):|(?=/.*\.(?:npz|hdf5|h5)$)))(.+)$")
"""An argument that names data by a file, or may: the kind, and the path."""


def file(name: str, ending: str) -> Path:
    """The published file NAME + ENDING; a name may have dots. Raises Refused if it cannot be that of a file."""
    if not name or Path(name).name != name:
        raise Refused(f"{name!r} cannot name a result: it must be a file's name, without folders and endings")
    return FOLDER / f"{name}{ending}"


def write(path: Path, content: str | bytes) -> None:
    """Replace the file at once. Raises Refused if it cannot be written."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({error.strerror})") from error


def without_folder(arguments: Sequence[str]) -> list[str]:
    """A run's arguments but for `--out` and what follows it."""
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return [*arguments[:at], *arguments[at + 2 :]]


def command_of(config: Mapping[str, Any]) -> str:
    """What repeats a run, from its config.json; its folder, and those of files, are the machine's own affair."""
    if "command" in config:
        return config["command"]
    asked = without_folder(config["arguments"])
    if config["dataset"] is None and "--dataset" in asked:
        # Of runs that learn from no data, and could be told some nevertheless.
        at = asked.index("--dataset")
        del asked[at : at + 2]
    arguments = [FILES.sub(lambda found: found[1] + Path(found[2]).name, argument) for argument in asked]
    return f"python algorithms/{config['algorithm']}.py {shlex.join(arguments)}"


def invocation(program: str) -> str:
    """What was typed to start `program`, a module; of paths that lie elsewhere only the last part, which travels."""
    shown = [
        f".../{Path(a).name}" if Path(a).is_absolute() or ".." in Path(a).parts else shlex.quote(a)
        for a in sys.argv[1:]
    ]
    return " ".join(["python -m", program, *shown])


def rows_of(kind: str, name: str) -> list[dict[str, str]]:
    """The rows of benchmarks/results/KIND_NAME.csv. Raises Refused, with the names there are, if it is not there."""
    table = file(f"{kind}_{name}", ".csv")
    if not table.is_file():
        known = sorted(path.stem.removeprefix(f"{kind}_") for path in table.parent.glob(f"{kind}_*.csv"))
        raise Refused(f"{kind} {name}: there are {', '.join(known)}")
    with table.open(newline="") as content:
        return list(csv.DictReader(content))


def commit_of(checkout: Path) -> str:
    """The commit of another project's checkout, which was measured beside ours."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return head.stdout.strip() or "(no commit known)"


def publish(name: str, rows: Sequence[Mapping[str, Any]], program: str, **more: Any) -> Path:
    """Write benchmarks/results/NAME.csv and NAME.json (how `program` was called, commit, versions, device, `more`).

    Returns the stem of both files.
    """
    table, account = file(name, ".csv"), file(name, ".json")
    FOLDER.mkdir(exist_ok=True)
    Table(table, ROOM).keep(rows)
    about = {"command": invocation(program), "commit": commit(), "versions": versions(), "device": device()}
    write_json(account, about | more)
    return FOLDER / name
