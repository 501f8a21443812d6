"""Damages data files at random, or writes sound ones oddly, and counts what the readers make of them.

    python -m benchmarks.studies.fuzz [--trials 1000]

For every kind of source a small sound file is made, then damaged anew for each trial: cut short, bits flipped, blocks
overwritten, removed or repeated, or one of its arrays given another shape, type or content. Another process reads it
as a run would. Counted are refusals (one clear line), data equal to the undamaged, data with other numbers (arrays that
are still data of this kind; flipped bits that no checksum of the format covers: HDF5 has none by default, and only the
fingerprint on the card tells), and three outcomes that must not occur: another exception, a crash, no answer within
30 s. Nor must the sound file be refused.

As many files again are merely odd (odd.py): the same numbers in another layout, type, byte order or compression, beside
things that are nobody's business. Each of these must give exactly the data of the plain file.

Results go to benchmarks/results/fuzz.{csv,json}; status 1 if anything occurred that must not.
"""

from __future__ import annotations

import collections
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.reporting.results import publish
from benchmarks.studies import odd
from common import datasets, recipes, tasks
from common.datasets import pixels
from common.errors import Refused, exiting

OUTCOMES = ("refused", "equal", "other numbers", "exception", "crash", "no answer")
FORBIDDEN = OUTCOMES[3:]
PATIENCE = 30.0
"""s a reader may take for a file of some kilobytes."""
MEMORY = 8 << 30
"""Bytes of address space of the reading process: a damaged size must not fill the machine's memory."""
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Fuzz:
    """How often and with what."""

    trials: int = 1000
    """Damaged files of each kind, and as many odd ones."""
    kinds: tuple[str, ...] = ()
    """Those to try; all by default. The results are published only of all."""
    seed: int = 0
    """Of the damage and of the oddities."""


def sound_rows() -> Arrays:
    """Two hundred rows of a hopper in D4RL's layout."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(200, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (200, 3)).astype(np.float32),
        "rewards": rng.normal(size=200).astype(np.float32),
        "terminals": np.arange(200) % 50 == 49,
        "timeouts": np.arange(200) % 50 == 30,
    }


def trajectory_rows() -> Arrays:
    """The same as OGBench keeps it."""
    rows = sound_rows()
    rows["terminals"] = rows.pop("timeouts").astype(np.float32)
    return rows | {"masks": np.ones(200, np.float32)}


def image_rows() -> Arrays:
    """Two episodes of images as V-D4RL's tables keep them."""
    rng = np.random.default_rng(0)
    return {
        "observation": rng.integers(0, 256, (42, 3, 8, 8), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (42, 2)).astype(np.float32),
        "reward": rng.normal(size=42).astype(np.float32),
        "discount": np.ones(42, np.float32),
        "step_type": np.where(np.arange(42) % 21 == 0, 0, np.where(np.arange(42) % 21 == 20, 2, 1)),
    }


def demonstration_rows() -> Arrays:
    """The same as robomimic keeps it, in five demonstrations."""
    rows, demos = sound_rows(), {}
    for number in range(5):
        part = {key: array[40 * number : 40 * (number + 1)] for key, array in rows.items()}
        demos |= {
            f"data/demo_{number}/{name}": array
            for name, array in {
                "obs/object": part["observations"],
                "next_obs/object": part["observations"] + np.float32(1),
                "actions": part["actions"],
                "rewards": part["rewards"],
                "dones": part["terminals"],
            }.items()
        }
    return demos


def frame_rows() -> Arrays:
    """The same as LeRobot keeps it."""
    rows = sound_rows()
    return {
        "observation.state": rows["observations"],
        "action": rows["actions"],
        "next.reward": rows["rewards"],
        "next.done": rows["terminals"],
        "episode_index": np.arange(200) // 50,
        "frame_index": np.arange(200) % 50,
    }


def write_parquet(path: Path, rows: Arrays) -> None:
    """As LeRobot lays it out, beside its info.json."""
    import pyarrow.parquet

    def cells(array: np.ndarray) -> pyarrow.Array:
        flat = pyarrow.array((array.astype(str) if array.dtype.kind == "c" else array).reshape(-1))
        width = array.size // max(1, len(array)) if array.ndim else 1
        return pyarrow.FixedSizeListArray.from_arrays(flat, width) if array.ndim > 1 and width else flat

    folder = path.parents[1 if path.suffix == ".json" else 2]
    features = {key: {"dtype": str(a.dtype), "shape": [*a.shape[1:]] or [1]} for key, a in frame_rows().items()}
    about = {"codebase_version": "v3.0", "total_episodes": 4, "total_frames": 200, "features": features}
    for part in ("meta", "data/chunk-000"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "meta/info.json").write_text(json.dumps(about))
    length = min((len(np.atleast_1d(array)) for array in rows.values()), default=0)
    columns = {key: cells(np.atleast_1d(array)[:length].copy()) for key, array in rows.items()}
    table = pyarrow.table({key: column for key, column in columns.items() if len(column) == length})
    pyarrow.parquet.write_table(table, folder / "data/chunk-000/file-000.parquet")


def write_hdf5(path: Path, rows: Arrays) -> None:
    """As h5py writes by default, images compressed."""
    with h5py.File(path, "w") as file:
        for name, array in rows.items():
            file.create_dataset(name, data=array, compression="gzip" if array.ndim == 4 else None)


def write_npz(path: Path, rows: Arrays) -> None:
    """As NumPy writes."""
    np.savez(path, **rows)


@dataclass(frozen=True)
class Kind:
    """A kind of file: its sound arrays, how they are written, where, and how they are named to a reader."""

    rows: Callable[[], Arrays] | None
    write: Callable[[Path, Arrays], None] | None
    file: str
    source: str


KINDS = {
    "d4rl": Kind(sound_rows, write_hdf5, "data.hdf5", "d4rl:{folder}/data.hdf5"),
    "npz": Kind(sound_rows, write_npz, "data.npz", "npz:{folder}/data.npz"),
    "ogbench": Kind(trajectory_rows, write_npz, "data.npz", "ogbench:{folder}/data.npz"),
    "robomimic": Kind(demonstration_rows, write_hdf5, "data.hdf5", "robomimic:{folder}/data.hdf5"),
    "lerobot": Kind(frame_rows, write_parquet, "data/chunk-000/file-000.parquet", "lerobot:{folder}"),
    "lerobot-info": Kind(frame_rows, write_parquet, "meta/info.json", "lerobot:{folder}"),
    "vd4rl": Kind(image_rows, write_hdf5, "data.hdf5", "vd4rl:{folder}"),
    "minari": Kind(None, None, "main_data.hdf5", "minari:headstart/pointmaze-umaze-size300-v0"),
}


def damage_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """The content cut, with bits flipped, or with a block overwritten, removed or repeated."""
    data = bytearray(content)
    place = int(rng.integers(len(data)))
    length = int(rng.integers(1, max(2, len(data) // 8)))
    match rng.integers(5):
        case 0:
            return bytes(data[:place])
        case 1:
            for position in rng.integers(0, len(data), rng.integers(1, 30)):
                data[position] ^= 1 << int(rng.integers(8))
        case 2:
            data[place : place + length] = rng.bytes(len(data[place : place + length]))
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = data[place : place + length]
    return bytes(data)


def damage_arrays(rows: Arrays, rng: np.random.Generator) -> Arrays:
    """One array with another shape, type, or content, or missing."""
    rows = dict(rows)
    name = sorted(rows)[rng.integers(len(rows))]
    array = rows[name]
    match rng.integers(8):
        case 0:
            del rows[name]
        case 1:
            rows[name] = array[: rng.integers(len(array))]
        case 2:
            rows[name] = array[..., None]
        case 3:
            rows[name] = array.reshape(-1)
        case 4:
            rows[name] = array.astype([np.float64, np.int64, np.complex64, np.float16, "S8"][rng.integers(5)])
        case 5:
            rows[name] = array.astype(float)
            rows[name].flat[rng.integers(array.size)] = [np.nan, np.inf, 1e30, -7.5][rng.integers(4)]
        case 6:
            rows[name] = array[:0]
        case 7:
            rows[name] = np.asarray(array.flat[0])
    return rows


def read(source: str, folder: Path) -> str:
    """The fingerprint of what a run would train on. Raises what the readers raise."""
    if source.startswith("vd4rl:"):
        return pixels.load(source.format(folder=folder)).fingerprint
    task = "pointmaze-umaze" if source.startswith("minari:") else "hopper-medium"
    return datasets.load(tasks.find(task), source.format(folder=folder)).fingerprint


def serve(connection: Connection) -> None:
    """In a process of its own: read what is named until the other side hangs up."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while True:
        source, folder = connection.recv()
        try:
            connection.send(("read", read(source, folder)))
        except Refused as refusal:
            text = str(refusal)
            connection.send(("refused" if text and "\n" not in text else "exception", text))
        except Exception as error:  # noqa: BLE001 - what must not happen is what this program looks for
            connection.send(("exception", f"{type(error).__name__}: {error}"))


class Reader:
    """The reading process, started anew after a crash."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A fresh process."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def ask(self, source: str, folder: Path) -> tuple[str, str]:
        """What came of reading: "read" and a fingerprint, or an outcome and its words."""
        self.connection.send((source, folder))
        try:
            if self.connection.poll(PATIENCE):
                return self.connection.recv()
            outcome = ("no answer", "")
        except EOFError:
            outcome = ("crash", "")
        self.process.kill()
        self.start()
        return outcome


def main(options: Fuzz) -> int:
    """All trials; the exit status."""
    if options.trials < 1:
        raise Refused(f"--trials must be at least 1, not {options.trials}")
    if unknown := set(options.kinds) - set(KINDS):
        raise Refused(f"--kinds {min(unknown)}: the kinds are {', '.join(KINDS)}")
    table, rows, forbidden = Table("kind", "changed", *OUTCOMES), [], []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["MINARI_DATASETS_PATH"] = str(Path(temporary) / "minari")
        os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing is fetched in place of what is damaged
        reader = Reader()
        for name, kind in ((name, KINDS[name]) for name in options.kinds or KINDS):
            if kind.rows is None:
                folder = Path(temporary) / "minari" / recipes.make("pointmaze-umaze", 300).split(":")[-1] / "data"
            else:
                folder = Path(temporary) / name
                folder.mkdir()
                kind.write(folder / kind.file, kind.rows())
            whole = (folder / kind.file).read_bytes()
            outcome, sound = reader.ask(kind.source, folder)
            if outcome != "read":
                forbidden.append(f"{name}, undamaged: {outcome} {sound}")
            counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
            rng = np.random.default_rng(options.seed)
            for trial in range(2 * options.trials):
                has_arrays = kind.rows is not None and not kind.file.endswith(".json")
                how = "odd" if trial >= options.trials else "arrays" if has_arrays and trial % 3 == 0 else "bytes"
                if how == "odd":
                    (folder / kind.file).write_bytes(whole)
                    done = odd.write(folder / kind.file, kind.rows and kind.rows(), rng)
                elif how == "arrays":
                    kind.write(folder / kind.file, damage_arrays(kind.rows(), rng))
                else:
                    (folder / kind.file).write_bytes(damage_bytes(whole, rng))
                outcome, words = reader.ask(kind.source, folder)
                if outcome == "read":
                    outcome = "equal" if words == sound else "other numbers"
                counts[how][outcome] += 1
                if how == "odd" and outcome != "equal":
                    forbidden.append(f"{name}, odd file {trial} ({', '.join(done)}): {outcome} {words}")
                elif outcome in FORBIDDEN:
                    forbidden.append(f"{name}, trial {trial}: {outcome} {words}")
            if kind.rows is not None:
                shutil.rmtree(folder)
            for how, count in counts.items():
                rows.append({"kind": name, "changed": how, "trials": count.total()} | {o: count[o] for o in OUTCOMES})
                table.add_row(name, how, *(str(count[o]) for o in OUTCOMES))
        reader.process.kill()
    console = Console()
    console.print(table)
    for line in forbidden[:20]:
        console.print(line, highlight=False, markup=False)
    if not options.kinds:
        publish("fuzz", rows, "benchmarks.studies.fuzz", seed=options.seed)
    return int(bool(forbidden))


if __name__ == "__main__":
    exiting("fuzz", lambda: main(tyro.cli(Fuzz, description=__doc__)))
