"""How fast prior data are read, and how much memory that takes: each source beside NumPy reading the same bytes.

    python -m benchmarks.studies.loading [--task hopper-medium] [--rows 1000000] [--repeats 3]

The same transitions, a recipe's, are written as a Minari set, as D4RL's HDF5 (compressed as D4RL's are), as npz and in
OGBench's layout; episodes of V-D4RL's frames are made of random numbers. Each is read by `datasets.load` (validated and
assembled) or `pixels.load` in a process of its own; `bulk` is `np.load` of the transitions' arrays, next observations
among them. Times are those of reading alone, the best of several processes, over that of bulk; memory is what the
process grew by at its peak. Results go to benchmarks/results/loading.{csv,json}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import tyro
from rich.console import Console

from benchmarks.reporting.results import publish
from common import datasets, recipes, tasks
from common.datasets import pixels
from common.errors import Refused, exiting
from common.terminal import making

EPISODE = 500
"""Transitions of each file of frames."""


@dataclass(frozen=True)
class Loading:
    """What is read."""

    task: str = "hopper-medium"
    """Whose recipe is read."""
    rows: int = 1_000_000
    """Transitions."""
    frames: int = 20_000
    """Images of 64 x 64 pixels: a million would take 12 GB."""
    repeats: int = 3
    """Processes per source."""
    read: str | None = None
    """For the processes: read this source, print seconds and bytes, and end."""


def write(options: Loading, folder: Path) -> dict[str, tuple[str, int]]:
    """The files -> name in the table: (source, rows)."""
    task = tasks.find(options.task)
    with making(Console()) as progress:
        identifier = recipes.make(options.task, options.rows, progress=progress)
    data = datasets.load(task, f"minari:{identifier}")
    rows = {
        "observations": data.observation,
        "actions": data.action,
        "rewards": data.reward,
        "terminals": data.terminated,
        "timeouts": data.truncated,
        "next_observations": data.next_observation,
    }
    np.savez(folder / "data.npz", **rows)
    with h5py.File(folder / "data.hdf5", "w") as file:
        for key, value in rows.items():
            file.create_dataset(key, data=value, compression="gzip")
    ends = data.terminated | data.truncated
    place = np.arange(len(data)) + np.cumsum(ends) - ends  # each trajectory has one state more than transitions
    final = place[ends] + 1
    trajectories = {}
    for key, value in (("observations", data.observation), ("actions", data.action), ("rewards", data.reward),
                       ("masks", 1 - data.terminated.astype(np.float32))):  # fmt: skip
        trajectories[key] = np.zeros((len(data) + len(final), *value.shape[1:]), np.float32)
        trajectories[key][place] = value
    trajectories["observations"][final] = data.next_observation[ends]
    trajectories["terminals"] = np.isin(np.arange(len(data) + len(final)), final).astype(np.float32)
    np.savez(folder / "trajectories.npz", **trajectories)
    rng = np.random.default_rng(0)
    frames = folder / "frames"
    frames.mkdir()
    for number in range(options.frames // EPISODE):
        images = EPISODE + 1
        last = np.arange(images) == EPISODE
        np.savez(
            frames / f"{number}.npz",
            image=rng.integers(0, 256, (images, 64, 64, 3), np.uint8),
            action=rng.uniform(-1, 1, (images, 6)).astype(np.float32),
            reward=rng.random(images, np.float32),
            discount=np.ones(images, np.float32),
            is_first=np.arange(images) == 0,
            is_last=last,
            is_terminal=np.zeros(images, bool),
        )
    return {
        "bulk": (f"bulk:{folder / 'data.npz'}", len(data)),
        "npz": (f"npz:{folder / 'data.npz'}", len(data)),
        "d4rl": (f"d4rl:{folder / 'data.hdf5'}", len(data)),
        "minari": (f"minari:{identifier}", len(data)),
        "ogbench": (f"ogbench:{folder / 'trajectories.npz'}", len(data)),
        "bulk of frames": (f"bulk_frames:{frames}", options.frames),
        "vd4rl": (f"vd4rl:{frames}", options.frames),
    }


def read(options: Loading, source: str) -> None:
    """Read one source and print what it took."""
    kind, _, where = source.partition(":")
    task = tasks.find(options.task)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten, which includes the parent's
    before = memory("VmRSS")
    start = time.perf_counter()
    if kind == "bulk":
        with np.load(where) as file:
            kept = [file[key] for key in file.files]
    elif kind == "bulk_frames":
        kept = []
        for path in sorted(Path(where).glob("*.npz")):
            with np.load(path) as file:
                kept.append([file[key] for key in file.files])
    elif kind == "vd4rl":
        kept = pixels.load(source)
    else:
        kept = datasets.load(task, source)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "megabytes": memory("VmHWM") - before, "parts": len(kept)}))


def memory(what: str) -> float:
    """MB of this process: VmRSS is what it holds, VmHWM the most it has held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def main(options: Loading) -> None:
    """Write the files, read each in processes of their own, publish."""
    if options.read is not None:
        read(options, options.read)
        return
    if options.repeats < 1 or options.frames < EPISODE:
        raise Refused(f"--repeats must be at least 1, --frames at least {EPISODE}")
    console = Console()
    table = []
    with tempfile.TemporaryDirectory() as temporary:
        sources = write(options, Path(temporary))
        taken: dict[str, list[dict]] = {name: [] for name in sources}
        for _ in range(options.repeats):  # in turn, so that a slow moment of the machine meets all of them
            for name, (source, _) in sources.items():
                command = [sys.executable, "-m", "benchmarks.studies.loading", "--task", options.task, "--read", source]
                ended = subprocess.run(command, capture_output=True, text=True)
                if ended.returncode:
                    last, *_ = ended.stderr.strip().splitlines()[-1:] or [f"status {ended.returncode}"]
                    raise Refused(f"{name} could not be read: {last}")
                taken[name].append(json.loads(ended.stdout.splitlines()[-1]))
        for name, (_, rows) in sources.items():
            bulk = taken["bulk of frames" if name in ("vd4rl", "bulk of frames") else "bulk"]
            seconds, megabytes = (min(t[k] for t in taken[name]) for k in ("seconds", "megabytes"))
            row = {
                "source": name,
                "rows": rows,
                "seconds_over_bulk": seconds / min(t["seconds"] for t in bulk),
                "peak_megabytes": round(megabytes),
            }
            table.append(row)
            console.print(f"{seconds:.2f} s  " + "  ".join(f"{k} {v}" for k, v in row.items()), highlight=False)
    publish("loading", table, "benchmarks.studies.loading", task=options.task, rows=options.rows, frames=options.frames)


if __name__ == "__main__":
    exiting("loading", lambda: main(tyro.cli(Loading, description=__doc__)))
