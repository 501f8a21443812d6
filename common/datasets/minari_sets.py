"""Minari's data sets, from the folder in which Minari itself keeps them.

An episode has one observation more than actions. Counts in the metadata are not believed: what the file holds is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import minari
import numpy as np
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.storage.datasets_root_dir import get_dataset_path

from common import environments, recipes
from common.datasets import memory
from common.datasets.arrays import array_of, check_readable
from common.datasets.downloads import fetch
from common.datasets.rows import Rows, column
from common.errors import Refused, one_line
from common.tasks import Task

_KEPT = ("dataset_id", "algorithm_name", "code_permalink", "env_spec", "ref_min_score", "ref_max_score", "recipe")
"""Of the metadata, for the card."""
_PUBLISHERS = ("D4RL", "mujoco")
"""Namespaces of Farama's that tasks have data in."""
Parts = np.ndarray | Mapping[str, Any] | tuple[Any, ...]
"""Observations or actions as Minari gives them: an array [T, ...], or a dictionary or tuple of such."""


class _Episode(NamedTuple):
    """One episode as it lies in the file."""

    number: int
    observations: Parts
    actions: Parts
    rewards: np.ndarray
    terminations: np.ndarray


def read_minari(task: Task, source: str, name: str) -> Rows:
    """A Minari data set, from the local folder (MINARI_DATASETS_PATH), downloaded into it first where it is missing."""
    try:
        namespace = parse_dataset_id(name)[0]
    except (ValueError, TypeError) as error:
        raise Refused(f"{source} is not a Minari id: expected (namespace/)name-vN") from error
    folder = get_dataset_path(name) / "data"
    fetch(source)
    again = _again(namespace)
    try:
        metadata = MinariStorage.read_raw_metadata(folder)
        # Without its spaces Minari would make the environment that the file names, which may be any code at all.
        if not {"observation_space", "action_space"} <= metadata.keys():
            raise Refused(f"{source}: {folder} does not say its spaces, as Minari's own files do; {again}")
        if metadata.get("minari_version") not in minari.supported_dataset_versions:
            raise Refused(
                f"{source} is of Minari {metadata.get('minari_version')}, which {minari.__version__} can't read"
            )
        columns = []
        for episode in _episodes(source, folder, metadata):
            remedy = again if namespace == recipes.NAMESPACE else _leave_out(folder, episode.number)
            columns.append(_rows_of(task, source, episode, remedy))
            if any(one.shape[1:] != other.shape[1:] for one, other in zip(columns[0], columns[-1], strict=True)):
                raise Refused(
                    f"{source}: episode {episode.number} has observations or actions of another size than the first; "
                    + remedy
                )
        if not columns:
            raise Refused(f"{source} is empty: it has no episodes")
        joined = [np.concatenate(arrays) for arrays in zip(*columns, strict=True)]
    except (Refused, MemoryError):
        raise
    except Exception as error:  # whatever damaged files make h5py, Arrow and Minari raise
        raise Refused(f"{source}: {folder} cannot be read ({one_line(error)}); {again}") from error
    observation, next_observation, action, reward, terminal, boundary = joined
    if metadata.get("sha256") not in (None, recipes.digest(observation, next_observation, action, reward)):
        raise Refused(f"{source}: {folder} has changed since a recipe made it; delete it and make it again")
    return Rows(
        observation,
        action,
        reward,
        terminal,
        boundary,
        next_observation,
        metadata={key: metadata[key] for key in _KEPT if key in metadata},
        warnings=_other_counts(metadata, len(columns), len(reward)),
    )


def _again(namespace: str | None) -> str:
    """What to do about a damaged set: one that can be had again need not be kept."""
    if namespace == recipes.NAMESPACE:
        return "delete it and make it again"
    is_published = (namespace or "").split("/")[0] in _PUBLISHERS
    return "delete it and load it again" if is_published else "put a sound copy in its place"


def _other_counts(metadata: Mapping[str, Any], episodes: int, steps: int) -> list[str]:
    """The warning that the metadata tell other numbers than were read."""
    told = metadata.get("total_episodes", episodes), metadata.get("total_steps", steps)
    if told == (episodes, steps):
        return []
    return [
        f"the file holds {episodes:,} episodes of {steps:,} steps in all, and its metadata say {told[0]} of {told[1]}: "
        "all that it holds are read"
    ]


def _leave_out(folder: Path, number: int) -> str:
    """How a set is read without one of its episodes."""
    return (
        f"complete the episode or leave it out, as does `del h5py.File('{folder / 'main_data.hdf5'}', 'a')"
        f"['episode_{number}']`"
    )


def _rows_of(task: Task, source: str, episode: _Episode, remedy: str) -> tuple[np.ndarray, ...]:
    """Observation, next one, action, reward, terminal and boundary of each row of an episode."""
    which = f"{source}: episode {episode.number}"
    reward = column(_numbers(which, "rewards", episode.rewards))
    action, terminal = _numbers(which, "actions", episode.actions), column(episode.terminations)
    observation, length = _flat(task, which, episode.observations), len(reward)
    for name, count, due in (
        ("observations", len(observation), length + 1),
        ("actions", len(action), length),
        ("terminations", len(terminal), length),
    ):
        if count != due:
            raise Refused(f"{which} has {count} {name} for {length} rewards, where {due} are due; {remedy}")
    return observation[:-1], observation[1:], action, reward, terminal, np.arange(length) == length - 1


def _flat(task: Task, which: str, observations: Parts) -> np.ndarray:
    """Float32 observations [T + 1, observation] from one array or from parts by name."""
    if isinstance(observations, np.ndarray):
        return environments.flatten(_numbers(which, "observations", observations), None)
    if isinstance(observations, tuple):
        raise Refused(f"{which} has a tuple of observations: record them as one vector, or as vectors by name")
    parts = {key: _numbers(which, f"observations of {key}", part) for key, part in observations.items()}
    shapes = {key: list(part.shape) for key, part in parts.items()}
    if len({tuple(shape[:-1]) for shape in shapes.values()}) != 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise Refused(f"{which} has observations of shapes {shapes}: expected a vector of each in every step")
    return environments.flatten(parts, environments.flat_keys(task, parts))


def _numbers(which: str, name: str, array: Parts) -> np.ndarray:
    """The array, if it is one of numbers."""
    if not isinstance(array, np.ndarray):
        inside = ", ".join(array) if isinstance(array, Mapping) else f"a tuple of {len(array)}"
        raise Refused(
            f"{which} has {name} that are nested ({inside}), which is not supported: record one vector, as with "
            "gymnasium.wrappers.FlattenObservation"
        )
    if array.dtype.kind not in "fiub":
        raise Refused(f"{which} has {name} of type {array.dtype}, expected numbers")
    return array


def _episodes(source: str, folder: Path, metadata: Mapping[str, Any]) -> Iterator[_Episode]:
    """The episodes of a set, in order."""
    if metadata["data_format"] != "hdf5":
        try:
            storage = MinariStorage.read(folder)
        except ImportError as error:
            raise Refused(f"{source} is in Arrow format, which needs pyarrow: pip install pyarrow") from error
        for number, episode in enumerate(storage.get_episodes(range(storage.total_episodes))):
            yield _Episode(number, *(episode[key] for key in _Episode._fields[1:]))
        return
    with h5py.File(folder / "main_data.hdf5", "r") as file:
        numbers = sorted(int(match[1]) for key in file if (match := re.fullmatch(r"episode_(\d+)", key)))
        if numbers:
            _check_first(source, folder, metadata, file[f"episode_{numbers[0]}"])
        for number in numbers:
            group = file[f"episode_{number}"]
            missing = [key for key in _Episode._fields[1:] if key not in group]
            if missing:
                raise ValueError(f"episode {number} has no {' and '.join(missing)}")
            yield _Episode(number, *(_parts(source, group[key]) for key in _Episode._fields[1:]))


def _check_first(source: str, folder: Path, metadata: Mapping[str, Any], group: h5py.Group) -> None:
    """Refuse a set by its first episode: for what h5py cannot read, or the memory cannot take."""
    widths: dict[str, int] = dict.fromkeys(_Episode._fields[1:], 0)

    def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
        first = name.split("/")[0]
        if isinstance(item, h5py.Dataset) and first in widths:
            check_readable(source, folder / "main_data.hdf5", item)
            widths[first] += int(np.prod(item.shape[1:], dtype=np.int64))

    group.visititems(look)
    if isinstance(steps := metadata.get("total_steps"), int):
        memory.check(source, memory.of_rows(steps, widths["observations"], widths["actions"]))


def _parts(source: str, item: h5py.Group | h5py.Dataset) -> Parts:
    """An HDF5 array, or what a group of them is to Minari."""
    if isinstance(item, h5py.Dataset):
        return array_of(source, item)
    parts = {key: _parts(source, part) for key, part in item.items()}
    is_tuple = bool(parts) and all(key.startswith("_index_") for key in parts)
    return tuple(parts.values()) if is_tuple else parts
