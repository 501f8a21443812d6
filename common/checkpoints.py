"""Checkpoints: everything the rest of a command depends on, when it is written, and how it is read again."""

from __future__ import annotations

import logging
import math
import shutil
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from common.errors import Refused, one_line
from common.programs import Learner
from common.replay import Replay


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

    def restore(self, announce: Callable[[str], None]) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
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


def read(folder: Path, step: int | None, prefix: str) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
    """A checkpoint's step, its arrays whose names begin with `prefix`, and its progress; by default of the newest.

    Nothing is changed by it, so that training may go on meanwhile. Raises Refused.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)
    there = sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())
    if not there or step not in (None, *there):
        known = f"; there are {', '.join(map(str, there))}" if there else ""
        raise Refused(f"{folder}: has no {'' if step is None else f'{step} among its '}checkpoints{known}")
    step = there[-1] if step is None else step
    try:
        item = folder.absolute() / str(step)
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            progress = reader.restore(item / "progress")
        with ocp.PyTreeCheckpointer() as reader:
            wanted = {
                k: v for k, v in reader.metadata(item / "arrays").item_metadata.tree.items() if k.startswith(prefix)
            }
            arrays = reader.restore(item / "arrays", args=ocp.args.PyTreeRestore(wanted, partial_restore=True))
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        checksums = progress.pop("checksums")
        if wrong := [k for k, v in arrays.items() if zlib.crc32(np.ascontiguousarray(v)) != checksums[k]]:
            raise ValueError(f"checksum of {wrong[0]} differs")
    except Exception as error:
        raise Refused(f"{folder}: checkpoint {step} cannot be read ({one_line(error)}); name another") from error
    return step, arrays, progress


class Saving:
    """When there is to be another checkpoint, or picture: at intervals, for which no more than a share of the time is
    taken."""

    def __init__(self, every: int, share: float | None):
        """At every so many steps, for a share of the time or without a limit (None)."""
        self.every, self.share, self.seconds, self.last = every, share, 0.0, -math.inf

    def due(self, first: int, step: int) -> bool:
        """Whether the steps after `first`, up to `step`, have completed an interval, and another can be afforded."""
        return step // self.every > first // self.every and self.affordable()

    def affordable(self) -> bool:
        """Whether one that takes as long as the last did would stay within the share."""
        return self.share is None or time.perf_counter() - self.last >= self.seconds / self.share

    def done(self, start: float) -> None:
        """One that began at `start` is written."""
        self.last = time.perf_counter()
        self.seconds = self.last - start


def pack(learner: Learner, agent: Any, filled: int, host: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint from a learner on the devices, with the `filled` rows of each run's experience.

    `agent` is the learner's on the host; `host` brings arrays on the devices there, [runs, ...].
    """
    arrays = {f"agent.{name}": leaf for name, leaf in flatten(agent).items()}
    if filled:
        # Cut to a power of two on the device, each of which is compiled once, and to what is filled on the host.
        enough = 1 << (filled - 1).bit_length()
        rows = flatten(host(jax.tree.map(lambda x: x[:, :enough], learner.experience.rows)))
        arrays |= {f"rows.{name}": leaf[:, :filled] for name, leaf in rows.items()}
    return arrays


def unpack(fresh: Learner, arrays: Mapping[str, np.ndarray]) -> Learner:
    """The learner of a checkpoint, in the structure of a fresh one on the host; what `arrays` holds besides is left.

    Raises Refused if they do not fit each other.
    """
    agent, rows = (
        {name.removeprefix(prefix): leaf for name, leaf in arrays.items() if name.startswith(prefix)}
        for prefix in ("agent.", "rows.")
    )
    agent = unflatten(fresh.agent, agent)
    if not rows:
        return fresh.replace(agent=agent)
    runs, filled = next(iter(rows.values())).shape[:2]
    buffers = jax.tree.map(np.array, fresh.experience.rows)
    for name, leaf in flatten(buffers).items():
        leaf[:, :filled] = rows[name]
    return Learner(agent, Replay(buffers, np.full(runs, filled, np.int32)))


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree of host arrays by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(template: Any, arrays: Mapping[str, np.ndarray], same_shapes: bool = True) -> Any:
    """`arrays` in the structure of `template`. Raises Refused if names differ or, with `same_shapes`, shapes."""

    def find(path: tuple, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in arrays or (same_shapes and arrays[name].shape != leaf.shape):
            raise Refused(f"--resume: the checkpoint does not fit this version of the algorithm ({name} differs)")
        return arrays[name]

    return jax.tree_util.tree_map_with_path(find, template)
