"""Rows of source episodes, as every reader hands them on, and what all data sets have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.errors import Refused
from common.tasks import Task


@dataclass
class Rows:
    """What a reader found: rows of source episodes, not yet validated."""

    observation: np.ndarray
    action: np.ndarray
    """[n, action], or [n] where discrete actions are recorded by their numbers"""
    reward: np.ndarray
    terminal: np.ndarray
    """bool [n], as the source says"""
    boundary: np.ndarray
    """bool [n]: the next row belongs to another source episode"""
    next_observation: np.ndarray | None = None
    """None: the next row's observation"""
    unknown: np.ndarray | None = None
    """bool [n]: rows whose `next_observation` is none of theirs; None: there are none"""
    metadata: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """What is doubtful, a line each, for the card."""


def validate(source: str, rows: Rows) -> None:
    """Refuse rows that are not data; leave floats as float32 and flags as bool, both [n] where they are one a row."""
    count = len(rows.observation)
    if not count:
        raise Refused(f"{source} is empty: it has no transitions")
    rows.reward = column(rows.reward)
    for name, dimensions in {"observation": 2, "next_observation": 2, "action": 2, "reward": 1}.items():
        array = getattr(rows, name)
        if array is None:
            continue
        if name == "action" and array.ndim == 1:
            dimensions = 1
        if array.dtype.kind not in "fiub" or array.ndim != dimensions or 0 in array.shape:
            raise Refused(f"{source}: {name}s are {array.dtype} {list(array.shape)}, expected numbers, {dimensions}-D")
        if len(array) != count:
            raise Refused(f"{source}: {len(array)} {name}s for {count} observations; the file is damaged or foreign")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        broken = ~np.isfinite(array)
        if broken.any():
            row = int(np.flatnonzero(broken.reshape(count, -1).any(axis=1))[0])
            raise Refused(f"{source}: {int(broken.sum())} NaN or infinite {name} values, the first in row {row}")
        setattr(rows, name, array)
    if rows.next_observation is not None and rows.next_observation.shape != rows.observation.shape:
        raise Refused(f"{source}: observations and next_observations differ in shape")
    rows.terminal = flags(source, "episode ends", rows.terminal, count)
    rows.boundary = flags(source, "episode ends", rows.boundary, count)


def until_over(task: Task, rows: Rows) -> Rows:
    """The rows without those that follow a terminal in the same source episode: robots are recorded a little longer.

    All of them where a terminal ends nothing: in mazes, and where the task never terminates.
    """
    if task.reaches_goal or task.never_terminates:
        return rows
    episode = np.cumsum(np.append(False, rows.boundary[:-1]))
    before = np.cumsum(rows.terminal) - rows.terminal
    starts = np.flatnonzero(np.append(True, rows.boundary[:-1]))
    keep = before == before[starts][episode]
    if keep.all():
        return rows
    for name in ("observation", "action", "reward", "terminal", "next_observation"):
        array = getattr(rows, name)
        setattr(rows, name, None if array is None else array[keep])
    kept = episode[keep]
    rows.boundary = np.append(kept[1:] != kept[:-1], True)
    rows.metadata = rows.metadata | {
        "left_out": [*rows.metadata["left_out"], f"{int((~keep).sum()):,} rows of episodes that were over"]
    }
    return rows


def column(array: np.ndarray) -> np.ndarray:
    """[n], also of [n, 1]: vectorised collectors store one number a row as a column."""
    return array.reshape(len(array)) if array.ndim > 1 and array.size == len(array) else array


def flags(source: str, name: str, array: np.ndarray, count: int) -> np.ndarray:
    """bool [count], from numbers that are 0 or 1."""
    array = column(array)
    if array.shape != (count,) or array.dtype.kind not in "fiub" or not np.isin(array, (0, 1)).all():
        raise Refused(f"{source}: {name} must be {count} values 0 or 1, not {array.dtype} {list(array.shape)}")
    return array.astype(bool)


class Episodes:
    """What data sets of vectors and of images have in common: rows in order, and two ways for an episode to end."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        """The number of transitions."""
        return len(self.reward)

    @property
    def starts(self) -> np.ndarray:
        """int64 [episodes]: the first row of each episode."""
        return np.flatnonzero(np.concatenate([[True], (self.terminated | self.truncated)[:-1]]))


def fingerprint(data: Any, names: Sequence[str]) -> str:
    """sha256 over names, types, shapes and contents of these arrays of `data`."""
    digest = hashlib.sha256()
    for name in names:
        array = np.ascontiguousarray(getattr(data, name))
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
