"""The run directory: configuration, metrics, checkpoints, curve, summary, and the progress line.

Layout, relied on by scripts: `config.json`, `metrics.csv`, `eval.csv`, `checkpoints/`, `curve.png`, `summary.json`.
Files are replaced whole; the tables are appended to, and a line that a kill left unfinished is dropped on resume.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import fcntl
import importlib.util
import itertools
import json
import logging
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from common.commandline import Run
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


def device() -> dict[str, Any]:
    """The devices in use, in words."""
    kinds = sorted({d.device_kind for d in jax.devices()})
    return {"backend": jax.default_backend(), "kind": ", ".join(kinds), "count": jax.device_count(), "cores": cores()}


def write_json(path: Path, value: Any) -> None:
    """Replace the file at once; nan and infinity, which JSON lacks, become null."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(finite(value), indent=2, allow_nan=False, default=str) + "\n")
    temporary.replace(path)


def finite(value: Any) -> Any:
    """The same nested value with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


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
        temporary = self.path.with_name(f".{self.path.name}.partial")
        with writing(self.path, self.remedy):
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
            temporary.replace(self.path)


class Checkpoints:
    """The newest two checkpoints of a run, by Orbax; each carries the checksums of its arrays."""

    def __init__(self, folder: Path, keep: int = 2):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], progress: Mapping[str, Any]) -> None:
        """Write one checkpoint, whole or not at all. Raises Refused if the disk does not take it."""
        progress = dict(progress) | {"checksums": {k: zlib.crc32(np.ascontiguousarray(v)) for k, v in arrays.items()}}
        items = ocp.args.Composite(arrays=ocp.args.StandardSave(dict(arrays)), progress=ocp.args.JsonSave(progress))
        try:
            self.manager.save(step, args=items, force=True)
            self.manager.wait_until_finished()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Refused(
                f"{self.folder}: checkpoint {step} could not be written ({reason}); "
                "make room and continue with --resume from the one before"
            ) from error

    def restore(self, announce: Any) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest whole checkpoint: its step, arrays and progress; None if there is none.

        A damaged one is announced, passed over and moved aside, where it is in no later checkpoint's way.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                items = ocp.args.Composite(arrays=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore())
                restored = self.manager.restore(step, args=items)
                arrays = {k: np.asarray(v) for k, v in restored["arrays"].items()}
                progress = restored["progress"]
                checksums = progress.pop("checksums")
                wrong = [k for k in checksums if zlib.crc32(np.ascontiguousarray(arrays[k])) != checksums[k]]
                if wrong:
                    raise ValueError(f"checksum of {wrong[0]} differs")
            except (MemoryError, PermissionError) as error:  # nothing is wrong with the file
                reason = str(error) or "too little memory"
                raise Refused(f"{self.folder}: checkpoint {step} could not be read ({reason})") from error
            except Exception as error:  # noqa: BLE001 - a damaged file can surface as anything from Orbax, TensorStore or JSON
                announce(f"checkpoint {step} is damaged ({str(error).splitlines()[0][:120]}); trying the one before")
                aside = self.folder.with_name("damaged-checkpoints")
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)
                (self.folder / str(step)).rename(aside / str(step))
                self.manager.reload()
                continue
            return step, arrays, progress
        return None

    def close(self) -> None:
        """Release Orbax's threads."""
        self.manager.close()


class RunDirectory:
    """One command's results: all its runs share the files."""

    def __init__(self, path: Path, identifier: str):
        self.path, self.identifier = path, identifier
        self.metrics = Table(path / "metrics.csv")
        self.evaluations = Table(path / "eval.csv")

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunDirectory:
        """A new directory with its config.json. Raises Refused if it cannot be written or is in use."""
        # A kill right at the start may have left an unfinished config.json, which is nothing to keep.
        if path.exists() and (not path.is_dir() or any(p.name != ".config.json.partial" for p in path.iterdir())):
            raise Refused(f"--out {path}: exists already; choose another, or continue it with --resume {path}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "config.json", {"format": FORMAT} | dict(config))
        except OSError as error:
            raise Refused(f"--out {path}: cannot be written ({error.strerror}); choose a folder you own") from error
        return cls(path, config["id"])

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, dict[str, Any]]:
        """An existing directory and its configuration. Raises Refused for a foreign folder."""
        try:
            config = json.loads((path / "config.json").read_text())
            known = config["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refused(f"--resume {path}: not a run directory (no readable config.json of ours in it)") from error
        if known != FORMAT:
            raise Refused(f"--resume {path}: written in format {known}, this version reads format {FORMAT}")
        return cls(path, config["id"]), config

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

    def draw_curve(self, title: str, metric: str, phases: Mapping[str, int]) -> None:
        """Draw curve.png, `metric` against steps: a run is a thin line, the mean of a grid point a thick one.

        `phases` are the names and steps of the phases, drawn one after another. Raises Refused if it cannot be written.
        """
        starts = dict(zip(phases, itertools.accumulate(phases.values(), initial=0), strict=False))
        rows = self.evaluations.rows()
        if not rows:
            return
        groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for row in rows:
            line = groups.setdefault(row.get("point", ""), {}).setdefault(row["run"], [])
            line.append((starts[row["phase"]] + float(row["step"]), float(row[metric])))
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        for index, (point, lines) in enumerate(groups.items()):
            color = f"C{index % 10}"
            for line in lines.values():
                axes.plot(*zip(*line, strict=True), color=color, alpha=0.35, linewidth=1)
            steps = sorted({x for line in lines.values() for x, _ in line})
            mean = [np.mean([y for line in lines.values() for at, y in line if at == x]) for x in steps]
            label = (f"{point}: " if point else "") + f"mean of {len(lines)} run{'s' * (len(lines) > 1)}"
            axes.plot(steps, mean, color=color, linewidth=2, marker="o", markersize=3, label=label)
        for phase, start in starts.items():
            if len(starts) > 1:
                axes.axvline(start, color="0.6", linestyle=":", linewidth=1)
                axes.annotate(f" {phase}", (start, 1), xycoords=("data", "axes fraction"), va="top", color="0.4")
        kind = "environment steps" if list(starts) == ["online"] else "updates" if "online" not in starts else "steps"
        axes.set(xlabel=kind, ylabel=metric, title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        temporary = self.path / ".curve.partial.png"
        with writing(self.path / "curve.png"):
            figure.savefig(temporary, dpi=150)
            temporary.replace(self.path / "curve.png")


class Reporter:
    """What the person at the terminal sees: announcements, one line per evaluation, a live bar between them."""

    def __init__(self, console: Console, total: int, done: int):
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[last]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("collecting", total=total, completed=done, speed="", last="")

    def __enter__(self) -> Reporter:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, step: int, description: str, speed: float) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=step, description=description, speed=f"{speed:.0f} steps/s")

    def evaluated(self, text: str, short: str) -> None:
        """One line that stays, and its short form beside the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)
        self.progress.update(self.task, last=short)


@contextlib.contextmanager
def making(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar for data that are being made, from the first call with the transitions made so far and in all."""
    with Progress(console=console, transient=True) as progress:
        bar: list[TaskID] = []

        def advance(made: int, total: int) -> None:
            if not bar:
                bar.append(progress.add_task("making data", total=total))
            progress.update(bar[0], completed=made)

        yield advance


class Trackers:
    """TensorBoard and Weights & Biases, where asked for."""

    def __init__(self, directory: Path, run: Run, identifier: str, done: int):
        """For a run with this identifier that has done so many steps: it goes on where it was."""
        self.writer = self.wandb = None
        if run.tensorboard:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=done + 1)
        if run.wandb:
            import wandb

            self.wandb = wandb.init(
                project="headstart", dir=str(directory), config=dataclasses.asdict(run), id=identifier, resume="allow"
            )

    @staticmethod
    def check(run: Run) -> None:
        """Refuse a tracker that is not installed."""
        for asked, flag, package in ((run.tensorboard, "tensorboard", "tensorboardX"), (run.wandb, "wandb", "wandb")):
            if asked and importlib.util.find_spec(package) is None:
                raise Refused(f"--{flag}: {package} is not installed; pip install 'headstart-rl[{flag}]'")

    def log(self, kind: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send the numbers of some rows of metrics.csv or eval.csv, at this step of all phases together."""
        if self.writer is None and self.wandb is None:
            return
        for row in rows:
            values = {
                f"{kind}/{name}/run{row['run']}": value
                for name, value in row.items()
                if name not in ("run", "seed", "step") and isinstance(value, int | float)
            }
            if self.writer is not None:
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)
            if self.wandb is not None:
                # Of a step that it has seen already, before an interruption, it takes nothing.
                self.wandb.log(values, step=step)

    def close(self) -> None:
        """Flush what is pending."""
        if self.writer is not None:
            self.writer.close()
        if self.wandb is not None:
            self.wandb.finish()
