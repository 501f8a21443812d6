"""The run directory: its configuration, tables and summary, and what code and machine its numbers come from.

Layout, relied on by scripts: `config.json`, `metrics.csv`, `eval.csv`, `checkpoints/` (checkpoints.py), `policies/`
(policyfiles.py), `curve.png` (reporting.py), `summary.json`. Files are replaced whole; the tables are appended to, and
a line that a kill left unfinished is dropped on resume.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.errors import Refused
from common.machine import cores

FORMAT = 2
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari")


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The project's git commit, with "+" if the code differs from it; None where git does not know this file."""
    here = Path(__file__).parent
    results = ":(top,exclude)benchmarks/results"  # where what is being measured may have been written already
    try:
        # Installed without -e, this folder may lie inside another project's checkout.
        known = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(known, cwd=here, capture_output=True, check=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        ask = ["git", "status", "--porcelain", "--", ":(top)", results]
        changed = subprocess.run(ask, cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def digests(source: Path | None) -> dict[str, str]:
    """sha256 of an algorithm's file, if it has one, and of common/: it tells changed ones from earlier ones."""
    folder = Path(__file__).parent
    files = {source.name: [source]} if source else {}
    files["common/"] = sorted(folder.rglob("*.py"))
    return {
        name: hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in parts)).hexdigest()
        for name, parts in files.items()
    }


def device() -> dict[str, Any]:
    """The devices in use, in words."""
    kinds = sorted({d.device_kind for d in jax.devices()})
    return {"backend": jax.default_backend(), "kind": ", ".join(kinds), "count": jax.device_count(), "cores": cores()}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to inside, which takes the place of `path` at once when all is written."""
    temporary = path.with_name(f".{path.name}.partial")
    yield temporary
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replace the file at once; nan and infinity, which JSON lacks, become null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(finite(value), indent=2, allow_nan=False, default=str) + "\n")


def create_json(path: Path, value: Any) -> None:
    """As write_json, of a file that must not be there: of several processes one succeeds. Raises FileExistsError."""
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    write_json(temporary, value)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(path)) from None
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The same nested value with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


_UNFINISHED = ".config.json.partial"
"""In the name of what a kill leaves of the first file of a run directory."""
RESUME = "make room and continue with --resume"
"""What helps where a run under way cannot write."""


@contextlib.contextmanager
def writing(path: Path, remedy: str = RESUME) -> Iterator[None]:
    """Refuse in one line if a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise Refused(f"{path}: cannot be written ({error.strerror}); {remedy}") from error


class Table:
    """A CSV file that is appended to by whole lines, and grows a column where a row brings a new one."""

    def __init__(self, path: Path, remedy: str = RESUME):
        self.path = path
        self.remedy = remedy
        """What helps where it cannot be written."""

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, empty where they lack a column, and push them to the disk. Raises Refused if that fails."""
        known = self.columns()
        columns = list(dict.fromkeys([*known, *(name for row in rows for name in row)]))
        if known and columns != known:
            self._replace(self.rows(), columns)
        with writing(self.path, self.remedy), self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if not known:
                writer.writeheader()
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())

    def columns(self) -> list[str]:
        """Their names; none without a file."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return next(csv.reader(file), [])

    def rows(self) -> list[dict[str, str]]:
        """All whole rows; an unfinished last line is left out."""
        if not self.path.exists():
            return []
        text = self.path.read_text()
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))

    def keep(self, wanted: Iterable[Mapping[str, Any]]) -> None:
        """Replace the table by these rows, at once. Raises Refused if that fails."""
        wanted = list(wanted)
        if wanted:
            self._replace(wanted, list(dict.fromkeys(name for row in wanted for name in row)))
        else:
            with writing(self.path, self.remedy):
                self.path.unlink(missing_ok=True)

    def _replace(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
        with (
            writing(self.path, self.remedy),
            replacing(self.path) as temporary,
            temporary.open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def read_config(path: Path) -> dict[str, Any]:
    """What the config.json of a run directory holds."""
    return json.loads((path / "config.json").read_text())


class RunDirectory:
    """One command's results: all its runs share the files."""

    def __init__(self, path: Path, identifier: str):
        self.path, self.identifier = path, identifier
        self.way = f"--resume {path}"
        """How a run goes on that has ended early."""
        self.metrics = Table(path / "metrics.csv")
        self.evaluations = Table(path / "eval.csv")

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunDirectory:
        """A new directory with its config.json. Raises Refused if it cannot be written or is in use."""
        # A kill right at the start may have left an unfinished config.json, which is nothing to keep.
        exists = f"--out {path}: exists already; choose another, or continue it with --resume {path}"
        if path.exists() and (not path.is_dir() or any(_UNFINISHED not in p.name for p in path.iterdir())):
            raise Refused(exists)
        try:
            path.mkdir(parents=True, exist_ok=True)
            create_json(path / "config.json", {"format": FORMAT} | dict(config))
        except FileExistsError as error:  # another process was faster
            raise Refused(exists) from error
        except OSError as error:
            raise Refused(f"--out {path}: cannot be written ({error.strerror}); choose a folder you own") from error
        return cls(path, config["id"])

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, dict[str, Any]]:
        """An existing directory and its configuration. Raises Refused for a foreign folder."""
        try:
            config = read_config(path)
            known = config["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refused(f"--resume {path}: not a run directory (no readable config.json of ours in it)") from error
        if known != FORMAT:
            raise Refused(f"--resume {path}: written in format {known}, this version reads format {FORMAT}")
        return cls(path, config["id"]), config

    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        return json.loads((self.path / "summary.json").read_text())

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep every other process from training here meanwhile. Raises Refused if one already does."""
        try:
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise Refused(f"{self.path}: cannot be written ({error.strerror}); run as its owner, or copy it") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused(f"{self.path}: another process is training here; stop it, or wait for it") from error
            except OSError as error:
                # Some network file systems have no locks: there, nothing is kept from anyone.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
            yield

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: the run is over. Raises Refused if it cannot be written."""
        with writing(self.path / "summary.json"):
            write_json(self.path / "summary.json", summary)
