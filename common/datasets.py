"""Prior data: a source string -> validated transitions, and the card that says what they are.

Sources: `minari:ID`, `d4rl:FILE.hdf5`, `recipe:NAME`. Each reader yields rows of source episodes; `_assemble` turns
them into transitions of the task by rules that are the same for every source:

- A row needs its successor. Where the source does not store it, it is the next row of the same source episode; the last
  row of an episode is dropped, unless the task terminated there (its successor is then its own observation, which no
  target uses). No transition joins two episodes.
- `terminated` is a true end of the task, `truncated` any other end of an episode: a time limit, a cut, the end of the
  file. Every episode ends with exactly one of them.
- Tasks that reach a goal are relabelled from the positions: reward 1 and terminated where the goal pursued is reached,
  else 0. The task is over then, so rows that start at the goal (an agent resting there) are dropped.
- Binary Adroit is relabelled from the observations: reward 0 where solved, else -1, never terminated.
- Actions outside [-1, 1] are clipped to it and counted on the card: human demonstrations have them, and the environment
  clips as well. Beyond +-10 they are no actions of such an environment, and refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
from minari.storage.datasets_root_dir import get_dataset_path
from minari.storage.remotes import DEFAULT_REMOTE, get_cloud_storage

from common import environments
from common.errors import Refused
from common.replay import Batch
from common.tasks import Task

ACTION_MARGIN = 1e-5
"""Batches hold actions in +-(1 - margin), where a tanh policy has a finite log-density; every author's code does so."""
_ACTION_LIMIT = 10.0
_HOST_SECONDS = 4.0
"""How long a dataset host may take to answer at all."""
_ARRAYS = ("observation", "action", "reward", "terminated", "truncated", "next_observation")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions in the order in which they were collected, episode after episode."""

    observation: np.ndarray
    """float32 [n, observation]"""
    action: np.ndarray
    """float32 [n, action], in [-1, 1]"""
    reward: np.ndarray
    """float32 [n], raw: before the task's scale and shift"""
    terminated: np.ndarray
    """bool [n]: the task ended after this row"""
    truncated: np.ndarray
    """bool [n]: the episode ended after this row, but not the task"""
    next_observation: np.ndarray
    """float32 [n, observation]"""
    success: np.ndarray
    """bool [n]: the goal is reached or the object in place after the action; all False where that is unknown"""
    source: str
    """Where it came from, as "kind:name"."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the reader counted and what the source says about itself; JSON-able."""

    def __len__(self) -> int:
        """The number of transitions."""
        return len(self.reward)

    @property
    def starts(self) -> np.ndarray:
        """int64 [episodes]: the first row of each episode."""
        return np.flatnonzero(np.concatenate([[True], (self.terminated | self.truncated)[:-1]]))

    @property
    def fingerprint(self) -> str:
        """sha256 over names, types, shapes and contents of the arrays: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def batch(self, task: Task) -> Batch:
        """All transitions with the task's training reward and mask, as float32 arrays on the host."""
        limit = np.float32(1 - ACTION_MARGIN)
        return Batch(
            observation=self.observation,
            action=self.action.clip(-limit, limit),
            reward=np.float32(task.reward_scale) * self.reward + np.float32(task.reward_shift),
            mask=1 - self.terminated.astype(np.float32),
            next_observation=self.next_observation,
        )


def load(task: Task, source: str | None = None) -> Dataset | None:
    """The task's prior data from `source`, by default the task's own; None for a Gymnasium id without a source."""
    source = source or task.default_dataset
    if source is None:
        if task.family == "gym":
            return None
        raise Refused(f"{task.name} has no downloadable data: give a file of D4RL's with --dataset d4rl:FILE.hdf5")
    kind, _, name = source.partition(":")
    if kind not in _READERS or not name:
        known = ", ".join(["minari:ID", "d4rl:FILE.hdf5", "recipe:NAME"])
        raise Refused(f"unknown dataset source {source!r}: the sources are {known}")
    return _assemble(task, source, _READERS[kind](task, source, name))


# ----------------------------------------------------------------------------- rows -> transitions


@dataclass
class _Rows:
    """What a reader found: rows of source episodes, not yet validated."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    """bool [n], as the source says"""
    boundary: np.ndarray
    """bool [n]: the next row belongs to another source episode"""
    next_observation: np.ndarray | None = None
    """None: the next row's observation"""
    metadata: dict[str, Any] = field(default_factory=dict)


def _assemble(task: Task, source: str, rows: _Rows) -> Dataset:
    """Validated rows as transitions of the task: the rules at the top of this file."""
    _validate(source, rows)
    environment = environments.open_form(task, rows.observation.shape[1])
    try:
        count = len(rows.reward)
        observation, boundary = rows.observation, rows.boundary.copy()
        boundary[-1] = True
        if rows.next_observation is None:
            known = ~boundary
            next_observation = np.where(known[:, None], np.roll(observation, -1, axis=0), observation)
        else:
            known = np.ones(count, bool)
            next_observation = rows.next_observation
        reward, terminated = rows.reward, rows.terminal
        keep = np.ones(count, bool)
        if task.reaches_goal:
            success = environment.reached(observation, next_observation) & known
            reward, terminated = success.astype(np.float32), success
            first = np.concatenate([[True], boundary[:-1]])
            keep = first | ~environment.reached(observation, observation)
        else:
            success = _SOLVED[task.environment](next_observation) & known if task.environment in _SOLVED else ~known & False
            if task.family == "adroit-binary":
                reward, terminated = success.astype(np.float32) - 1, np.zeros(count, bool)
        resting = count - int(keep.sum())
        keep &= known | terminated
        if not keep.any():
            raise Refused(f"{source}: no transition is left: every row lacks its successor or starts at the goal")

        # Rows of one episode share a number: it rises wherever the next row does not continue this one.
        episode = np.concatenate([[0], np.cumsum(boundary | terminated | ~keep)[:-1]])[keep]
        end = np.concatenate([episode[1:] != episode[:-1], [True]])
        action = environment.unscaled(rows.action)
        outside = np.abs(action) > 1
        metadata = rows.metadata | {
            "rows": count,
            "dropped_without_successor": count - resting - int(keep.sum()),
            "dropped_at_goal": resting,
            "actions_clipped": int(outside.sum()),
            "actions_clipped_share": float(outside.mean()),
            "action_largest": float(np.abs(action).max()),
        }
        dataset = Dataset(
            observation=observation[keep],
            action=action[keep].clip(-1, 1).astype(np.float32),
            reward=reward[keep],
            terminated=terminated[keep],
            truncated=end & ~terminated[keep],
            next_observation=next_observation[keep],
            success=success[keep],
            source=source,
            metadata=metadata,
        )
        environments.check(environment, dataset)
        return dataset
    finally:
        environment.close()
