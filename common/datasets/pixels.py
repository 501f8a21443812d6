"""Prior data of images: V-D4RL's folders -> transitions over frames that are stored once.

`vd4rl:FOLDER` holds either one .npz per episode (64 pixels: `image` [T + 1, height, width, 3], `action`, `reward`,
`is_first`, `is_terminal` or `discount`) or .hdf5 files (84 pixels: `observation` [n, 3, height, width], `action`,
`reward`, `discount`, `step_type` 0 first, 1 middle, 2 last). In both, row t has the action that led to frame t and its
reward; the first row of an episode has neither (Lu et al., 2023, "Challenges and Opportunities in Offline Reinforcement
Learning from Visual Observations"; conglu1997/v-d4rl).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.datasets import memory
from common.datasets.arrays import archive, hdf5
from common.datasets.rows import Episodes, column, fingerprint
from common.errors import Refused

_NPZ = ("image", "action", "reward")
_HDF5 = ("observation", "action", "reward", "discount", "step_type")


@dataclass(frozen=True, eq=False)
class PixelDataset(Episodes):
    """Transitions between images, in the order in which they were collected. An image is stored once, as uint8."""

    frames: np.ndarray
    """uint8 [frames, height, width, 3]: an episode of T transitions has T + 1"""
    frame: np.ndarray
    """int64 [n]: the frame that each transition starts from; the next one is where it leads"""
    action: np.ndarray
    """float32 [n, action], in [-1, 1]"""
    reward: np.ndarray
    """float32 [n]"""
    terminated: np.ndarray
    """bool [n]: the task ended after this row"""
    truncated: np.ndarray
    """bool [n]: the episode ended after this row, but not the task"""
    source: str
    """Where it came from, as "vd4rl:FOLDER"."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the reader counted."""

    @property
    def fingerprint(self) -> str:
        """sha256 over names, types, shapes and contents of the arrays: equal data, equal fingerprint."""
        return fingerprint(self, ("frames", "frame", "action", "reward", "terminated", "truncated"))

    def observation(self, rows: np.ndarray, stack: int = 3, after: bool = False) -> np.ndarray:
        """The `stack` newest frames at these rows, or `after` them, oldest first: uint8 [rows, height, width, 3 stack].

        Before the start of an episode its first frame is repeated.
        """
        episode = np.searchsorted(self.starts, rows, side="right") - 1
        first = self.frame[self.starts[episode]]
        newest = self.frame[rows] + int(after)
        index = np.maximum(newest[:, None] - np.arange(stack)[::-1], first[:, None])
        stacked = self.frames[index]  # [rows, stack, height, width, 3]
        return np.concatenate([stacked[:, k] for k in range(stack)], axis=-1)


def load(source: str) -> PixelDataset:
    """The data of "vd4rl:FOLDER". Raises Refused for a folder that is not V-D4RL's or is damaged."""
    folder = Path(source.partition(":")[2]).expanduser()
    if not folder.is_dir():
        raise Refused(f"{source}: there is no such folder; download one of V-D4RL's and give its path")
    archives, tables = sorted(folder.glob("*.npz")), sorted(folder.glob("*.hdf5"))
    if bool(archives) == bool(tables):
        raise Refused(f"{source} is no folder of V-D4RL's: expected .npz episodes or .hdf5 files, and not both, in it")
    with memory.told(source):
        return _joined(source, [_read_episode(path) for path in archives] + [_read_table(path) for path in tables])


def _joined(source: str, parts: list[dict[str, np.ndarray]]) -> PixelDataset:
    """The transitions of all files of a folder."""
    shapes = {(part["frames"].shape[1:], part["action"].shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise Refused(f"{source}: its files differ in the sizes of images or actions")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    first, last = joined["first"], np.append(joined["first"][1:], True)
    led_to = ~first  # rows whose action led from the frame before to their own
    action = joined["action"][led_to]
    terminated = joined["terminal"][led_to]
    outside = np.abs(action) > 1
    if not len(action):
        raise Refused(f"{source} has no transitions: every row starts an episode")
    return PixelDataset(
        frames=joined["frames"],
        frame=np.flatnonzero(led_to) - 1,
        action=action.clip(-1, 1),
        reward=joined["reward"][led_to],
        terminated=terminated,
        truncated=last[led_to] & ~terminated,
        source=source,
        metadata={"files": len(parts), "actions_clipped": int(outside.sum())},
    )


def _read_episode(path: Path) -> dict[str, np.ndarray]:
    """One episode of 64 pixels."""
    arrays = archive(f"vd4rl:{path}", path, _NPZ, ("is_terminal", "discount", "is_first"))
    count = len(arrays["image"])
    if "is_terminal" not in arrays and "discount" not in arrays:
        raise Refused(f"vd4rl:{path} has neither is_terminal nor discount: nothing says whether its episode terminated")
    terminal = arrays["is_terminal"] if "is_terminal" in arrays else arrays["discount"] == 0
    first = np.arange(count) == 0
    if "is_first" in arrays and not np.array_equal(column(arrays["is_first"]).astype(bool), first):
        raise Refused(f"vd4rl:{path} is not one episode: is_first is set elsewhere than in its first row")
    return _checked(path, arrays["image"], arrays["action"], arrays["reward"], terminal, first)


def _read_table(path: Path) -> dict[str, np.ndarray]:
    """A file of 84-pixel episodes."""
    arrays, unwritten = hdf5(f"vd4rl:{path}", path, _HDF5)
    if "observation" in unwritten or not len(arrays["observation"]):
        raise Refused(f"vd4rl:{path}: its images are empty or were never written")
    kind = column(arrays["step_type"])
    if kind.ndim != 1 or not np.isin(kind, (0, 1, 2)).all() or not len(kind) or kind[0] != 0:
        raise Refused(f"vd4rl:{path}: step_type must be 0, 1 or 2 and begin with 0, the first step of an episode")
    if not np.array_equal(kind[1:] == 0, kind[:-1] == 2):
        raise Refused(f"vd4rl:{path}: an episode begins where none has ended, or the other way round (step_type)")
    images = arrays["observation"]
    if images.ndim == 4:
        images = images.transpose(0, 2, 3, 1)
    return _checked(path, images, arrays["action"], arrays["reward"], arrays["discount"] == 0, kind == 0)


def _checked(
    path: Path, images: np.ndarray, action: np.ndarray, reward: np.ndarray, terminal: np.ndarray, first: np.ndarray
) -> dict[str, np.ndarray]:
    """The arrays of one file, all of one length, with the types of a PixelDataset."""
    count = len(images)
    reward, terminal = column(reward), column(terminal)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise Refused(f"vd4rl:{path}: images are {images.dtype} {list(images.shape)}, expected uint8 with 3 channels")
    shapes = {"action": action.ndim == 2, "reward": reward.ndim == 1, "end": terminal.ndim == 1}
    for (name, fits), array in zip(shapes.items(), (action, reward, terminal), strict=True):
        if not fits or len(array) != count or array.dtype.kind not in "fiub":
            raise Refused(f"vd4rl:{path}: {name}s are {array.dtype} {list(array.shape)} for {count} images")
        if not np.isfinite(array[~first]).all():
            raise Refused(f"vd4rl:{path}: NaN or infinite {name} values")
    # A first row's action and reward belong to no transition; some files hold NaN there.
    return {
        "frames": images,
        "action": action.astype(np.float32),
        "reward": reward.astype(np.float32),
        "terminal": terminal.astype(bool),
        "first": first,
    }
