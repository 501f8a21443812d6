"""The sources of prior data: what each kind of file holds, as rows of source episodes, before any task's rules.

    minari:ID         a Minari data set, downloaded once into MINARI_DATASETS_PATH; MINARI_REMOTE chooses the host
    d4rl:NAME         one of D4RL's own files, downloaded once into its folder, D4RL_DATASET_DIR or ~/.d4rl/datasets;
                      D4RL_REMOTE chooses another host
    d4rl:FILE.hdf5    D4RL's layout, old and new: with or without `timeouts`, `next_observations`, `infos/*`
    npz:FILE.npz      the same keys in a NumPy archive
    ogbench:NAME      an OGBench data set, downloaded once into ~/.ogbench/data, or a file: ogbench:FILE.npz

(`recipe:NAME` is a Minari data set made on this machine: recipes/.) A file is read as arrays of numbers and nothing
else: no pickle is loaded, and no code that a file names is run. Whatever cannot be read is refused in one line.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.storage.datasets_root_dir import get_dataset_path

from common import environments, recipes
from common.datasets.downloads import D4RL_FILES, fetch, file_of
from common.errors import Refused, one_line
from common.tasks import Task

_NEEDED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")


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
    metadata: dict[str, Any] = field(default_factory=dict)


def validate(source: str, rows: Rows) -> None:
    """Refuse rows that are not data; leave floats as float32 and flags as bool."""
    count = len(rows.observation)
    if not count:
        raise Refused(f"{source} is empty: it has no transitions")
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


# ----------------------------------------------------------------------------- d4rl:NAME or FILE.hdf5, npz:FILE.npz


def read_d4rl(task: Task, source: str, name: str) -> Rows:
    """D4RL's HDF5 layout, old and new: with or without `timeouts`, `next_observations`, `infos/*`.

    Of one of its own files by name, downloaded first where it is missing, or of any file.
    """
    fetch(source)
    remedy = "give the path of an HDF5 file, or a name such as hopper-medium-v2"
    path = existing_file(source, file_of("d4rl", name), remedy)
    try:
        with h5py.File(path, "r") as file:
            present = [key for key in (*_NEEDED, *_OPTIONAL) if isinstance(file.get(key), h5py.Dataset)]
            check_keys(source, _NEEDED, present, file)
            arrays = {key: array_of(file[key]) for key in present}
    except Refused:
        raise
    except Exception as error:  # h5py raises whatever a damaged file makes it raise
        again = f"; delete {path} and load it again" if name in D4RL_FILES else ""
        told = f"{source} cannot be read as HDF5 (truncated or another format): {one_line(error)}{again}"
        raise Refused(told) from error
    return rows_of(task, source, arrays)


def read_npz(task: Task, source: str, name: str) -> Rows:
    """A NumPy archive with the keys of D4RL's files."""
    path = existing_file(source, file_of("npz", name), "give the path of a NumPy archive with D4RL's keys")
    return rows_of(task, source, archive(source, path, _NEEDED, _OPTIONAL))


def rows_of(task: Task, source: str, arrays: dict[str, np.ndarray]) -> Rows:
    """Rows from the arrays of D4RL's layout."""
    for key in ("rewards", "terminals", "timeouts"):
        # Some files store these as columns.
        if key in arrays and arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
    rows = Rows(
        observation=arrays["observations"],
        action=arrays["actions"],
        reward=arrays["rewards"],
        terminal=arrays["terminals"],
        boundary=arrays.get("timeouts", np.zeros(len(arrays["rewards"]), bool)),
        next_observation=arrays.get("next_observations"),
    )
    validate(source, rows)
    # A goal reached does not end an episode of D4RL's mazes: the agent goes on to its next goal.
    if not task.reaches_goal:
        rows.boundary = rows.boundary | rows.terminal
    if rows.next_observation is not None:
        jump = np.abs(rows.next_observation[:-1] - rows.observation[1:]).max(axis=1) > 1e-6
        rows.boundary = rows.boundary | np.append(jump, True)
    elif "timeouts" not in arrays:
        if task.reaches_goal or task.family not in ("locomotion", "adroit", "adroit-binary"):
            raise Refused(
                f"{source} has neither timeouts nor next_observations: nothing says where its episodes end; "
                "add timeouts, 1 in the last row of each episode that did not terminate"
            )
        # D4RL's own rule for its files: an episode that did not terminate lasted until the time limit.
        starts = np.concatenate([[0], np.flatnonzero(rows.terminal) + 1])
        index = np.arange(len(rows.reward))
        age = index - starts[np.searchsorted(starts, index, side="right") - 1]
        rows.boundary = rows.boundary | (age % task.horizon == task.horizon - 1)
    return rows


def array_of(dataset: h5py.Dataset) -> np.ndarray:
    """An HDF5 array, at least one-dimensional."""
    check_expansion(dataset.name, dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size())
    return np.atleast_1d(dataset[()])


def check_expansion(name: str, claimed: int, stored: int) -> None:
    """Raise ValueError for a damaged size, which must not fill the memory: no compression reaches 1:1100."""
    if claimed > 1100 * stored + (1 << 20):
        raise ValueError(f"{name} claims {claimed:,} bytes and holds {stored:,}")


def archive(source: str, path: Path, needed: Collection[str], optional: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file under these names, each at least one-dimensional; nothing that needs a pickle."""
    try:
        with zipfile.ZipFile(path) as file:
            members = {member.filename.removesuffix(".npy"): member for member in file.infolist()}
            check_keys(source, needed, members, members)
            arrays = {}
            for key in (*needed, *optional):
                if key not in members:
                    continue
                check_expansion(key, members[key].file_size, members[key].compress_size)
                with file.open(members[key]) as stream:
                    version = np.lib.format.read_magic(stream)
                    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
                    if version[0] not in read_header:
                        raise ValueError(f"{key} is in version {version} of NumPy's format")
                    shape, fortran, dtype = read_header[version[0]](stream)
                    if dtype.hasobject:
                        raise ValueError(f"{key} holds Python objects, which are not loaded")
                    # Read by its own size, never by the size its header claims.
                    content = stream.read()
                array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
                arrays[key] = np.atleast_1d(array)
            return arrays
    except Refused:
        raise
    except Exception as error:  # zipfile and zlib raise whatever a damaged file makes them raise
        raise Refused(f"{source} cannot be read as a NumPy archive (damaged or foreign): {one_line(error)}") from error


def existing_file(source: str, path: Path, remedy: str) -> Path:
    """The path, if there is a file."""
    if not path.is_file():
        raise Refused(f"{source}: there is no such file; {remedy}")
    return path


def check_keys(source: str, needed: Collection[str], present: Collection[str], everything: Collection[str]) -> None:
    """Refuse a file that lacks an array."""
    missing = [key for key in needed if key not in present]
    if missing:
        found = ", ".join(sorted(map(str, everything))) or "nothing"
        raise Refused(f"{source} has other keys than it should: no {' and '.join(missing)} in it (it has {found})")


# ----------------------------------------------------------------------------- ogbench:NAME


def read_ogbench(task: Task, source: str, name: str) -> Rows:
    """OGBench's archives for one of its single-task environments, downloaded first where the file is missing.

    Observations hold the last state of every trajectory, marked in `terminals`. Rewards and masks are OGBench's own:
    `rewards` and `masks` of the file, else its package's relabelling. They are functions of the state acted in, so that
    the task is over from the first state at the goal on. `terminal` is 1 - mask.
    """
    fetch(source)
    path = existing_file(source, file_of("ogbench", name), "give the path of one of OGBench's archives, or its name")
    states = ("qpos", "qvel", "button_states")
    arrays = archive(source, path, ("observations", "actions", "terminals"), ("rewards", "masks", *states))
    ends = flags(source, "terminals", arrays.pop("terminals"), len(arrays["observations"]))
    ends[-1] = True
    starts_something = ~ends
    if not starts_something.any():
        raise Refused(f"{source} has no transitions: every row ends a trajectory")
    for key, array in arrays.items():
        if len(array) != len(ends):
            raise Refused(f"{source}: {len(array)} {key} for {len(ends)} terminals; the file is damaged or foreign")
    is_next = np.append(False, starts_something[:-1])
    rows = {key: array[starts_something] for key, array in arrays.items()}
    if not {"rewards", "masks"} <= rows.keys():
        rows |= _relabelled(task, source, rows)
    terminal = 1 - flags(source, "masks", rows["masks"], len(rows["masks"])).astype(np.int8)
    return Rows(
        observation=rows["observations"],
        action=rows["actions"],
        reward=rows["rewards"],
        terminal=terminal,
        boundary=np.append(ends[1:], True)[starts_something],
        next_observation=arrays["observations"][is_next],
    )


def _relabelled(task: Task, source: str, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`rewards` and `masks` of a single task, by OGBench's own rule."""
    if task.family != "ogbench":
        raise Refused(
            f"{source} has no rewards: choose one of OGBench's tasks, such as "
            "--env antmaze-large-navigate-singletask-task1-v0"
        )
    if "qpos" not in rows:
        raise Refused(f"{source} has neither rewards and masks nor the states (qpos) from which they follow")
    environment = environments.make(task)
    try:
        from ogbench.relabel_utils import relabel_dataset  # there, since the environment is

        labelled = dict(rows)
        relabel_dataset(task.environment, environment.raw, labelled)
        return {key: labelled[key] for key in ("rewards", "masks")}
    except Exception as error:  # whatever foreign states make it raise
        raise Refused(f"{source} cannot be relabelled for {task.name}: {one_line(error)}") from error
    finally:
        environment.close()


def flags(source: str, name: str, array: np.ndarray, count: int) -> np.ndarray:
    """bool [count], from numbers that are 0 or 1."""
    if array.shape != (count,) or array.dtype.kind not in "fiub" or not np.isin(array, (0, 1)).all():
        raise Refused(f"{source}: {name} must be {count} values 0 or 1, not {array.dtype} {list(array.shape)}")
    return array.astype(bool)


# ----------------------------------------------------------------------------- minari:ID


def read_minari(task: Task, source: str, name: str) -> Rows:
    """A Minari data set, from the local folder (MINARI_DATASETS_PATH), downloaded into it first where it is missing."""
    try:
        parse_dataset_id(name)
    except (ValueError, TypeError) as error:
        raise Refused(f"{source} is not a Minari id: expected (namespace/)name-vN") from error
    folder = get_dataset_path(name) / "data"
    fetch(source)
    try:
        metadata = MinariStorage.read_raw_metadata(folder)
        # Without its spaces Minari would make the environment that the file names, which may be any code at all.
        if not {"observation_space", "action_space"} <= metadata.keys():
            raise Refused(f"{source}: {folder} does not say its spaces; delete it and load it again")
        if metadata.get("minari_version") not in minari.supported_dataset_versions:
            raise Refused(
                f"{source} is of Minari {metadata.get('minari_version')}, which {minari.__version__} can't read"
            )
        columns: list[tuple[np.ndarray, ...]] = []
        for number, episode in enumerate(_minari_episodes(folder, metadata)):
            observation = episode["observations"]
            keys = environments.flat_keys(task, observation) if isinstance(observation, dict) else None
            observation = environments.flatten(observation, keys)
            length = len(episode["rewards"])
            if len(observation) != length + 1 or len(episode["actions"]) != length:
                raise ValueError(f"episode {number} has {len(observation)} observations for {length} rewards")
            last = np.arange(length) == length - 1
            columns.append(
                (
                    observation[:-1],
                    observation[1:],
                    episode["actions"],
                    episode["rewards"],
                    episode["terminations"],
                    last,
                )
            )
        if not columns:
            raise Refused(f"{source} is empty: it has no episodes")
        joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    except Refused:
        raise
    except Exception as error:  # as above, in three file formats
        raise Refused(f"{source}: {folder} cannot be read ({one_line(error)}); delete it and load it again") from error
    observation, next_observation, action, reward, terminal, boundary = joined
    if metadata.get("sha256") not in (None, recipes.digest(observation, next_observation, action, reward)):
        raise Refused(f"{source}: {folder} has changed since a recipe made it; delete it and make it again")
    told = ("dataset_id", "algorithm_name", "code_permalink", "env_spec", "ref_min_score", "ref_max_score", "recipe")
    return Rows(
        observation,
        action,
        reward,
        terminal,
        boundary,
        next_observation,
        metadata={key: metadata[key] for key in told if key in metadata},
    )


def _minari_episodes(folder: Path, metadata: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Minari's episodes: `observations` [T + 1, ...] (an array or a dictionary of them), `actions` [T, ...]...."""
    if metadata["data_format"] != "hdf5":
        storage = MinariStorage.read(folder)
        yield from storage.get_episodes(range(storage.total_episodes))
        return
    with h5py.File(folder / "main_data.hdf5", "r") as file:
        for number in range(metadata["total_episodes"]):
            group = file[f"episode_{number}"]
            observations = group["observations"]
            yield {key: array_of(group[key]) for key in ("actions", "rewards", "terminations")} | {
                "observations": {key: array_of(part) for key, part in observations.items()}
                if isinstance(observations, h5py.Group)
                else array_of(observations)
            }


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


Reader = Callable[[Task, str, str], Rows]
READERS: dict[str, Reader] = {
    "minari": read_minari,
    "d4rl": read_d4rl,
    "npz": read_npz,
    "ogbench": read_ogbench,
}
"""Kind of source -> its reader, called with the task, the whole source string and the part after the colon."""
