"""Prior data made on the spot: `make(name)` -> an ordinary Minari data set on this machine, in our own namespace.

What a family's data are, and where their recipe comes from, stands in pointmaze.py, antmaze.py, locomotion.py and
classic.py; here, how they become a data set that is whole or not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minari
import numpy as np
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace
from minari.storage.datasets_root_dir import get_dataset_path

from common import environments, tasks
from common.environments import Environment
from common.errors import Refused
from common.recipes import antmaze, classic, locomotion, pointmaze
from common.recipes.episodes import Episode

Progress = Callable[[int, int], None]
"""Called now and then with the transitions made so far and in all."""
Announce = Callable[[str], None]
"""Called with a line for the user."""


@dataclass(frozen=True)
class _Family:
    """How the data of a family of tasks are made."""

    generate: Callable[[Environment, int, int], Iterator[Episode]]
    """Environment of the task, size, seed -> episodes of `size` transitions in all."""
    parameters: dict[str, Any]
    """Recorded with the data."""
    usual_size: Callable[[str], int]
    """Recipe -> transitions made by default."""
    version: int = 0
    """Of the generation code: raised when the same name and seed would give other data."""


_FAMILIES = {
    "pointmaze": _Family(pointmaze.generate, pointmaze.PARAMETERS, lambda name: 100_000),
    "antmaze": _Family(antmaze.generate, antmaze.PARAMETERS, lambda name: 1_000_000, version=3),
    "locomotion": _Family(locomotion.generate, locomotion.PARAMETERS, locomotion.usual_size),
    "classic": _Family(classic.generate, classic.PARAMETERS, lambda name: 100_000),
}

NAMESPACE = "headstart"
_TEMPORARY = ".recipe-"
"""How the names of folders begin in which data are written."""
_LOCK = "lock"
_BEGINNING = 10
"""Seconds in which such a folder may be without its lock yet."""
_SURE = 10.0
"""Seconds of making after which the speed is known."""
_GOAL_RETURNS = (0.0, 1.0)
"""Return of an episode that misses its goal and of one that reaches it: the reference scores of every goal task."""


def names() -> list[str]:
    """The recipes there are."""
    return [name for name in tasks.names() if "recipe" in tasks.find(name).datasets]


SIZES = {name: _FAMILIES[tasks.find(name).family].usual_size(name) for name in names()}
"""Recipe -> transitions made by default."""


def dataset_id(name: str, size: int | None = None, seed: int = 0) -> str:
    """The Minari id under which a recipe's data lie; it says the size and seed where they are not the default."""
    variant = (f"-size{size}" if size not in (None, SIZES[name]) else "") + (f"-seed{seed}" if seed else "")
    return f"{NAMESPACE}/{name}{variant}-v{_FAMILIES[tasks.find(name).family].version}"


def folder_of(name: str) -> Path:
    """Where a recipe's data lie, or will."""
    return get_dataset_path(dataset_id(name))


def is_made(name: str) -> bool:
    """Whether there is something where a recipe's data lie."""
    return folder_of(name).exists()


def make(
    name: str,
    size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> str:
    """Make a recipe's data, unless they are there already, and return their Minari id.

    `announce` hears how long it takes, once that is known and if it is minutes.

    The same name, size and seed give the same data on the same kind of processor; on another, where the policies of
    AntMaze, locomotion and classic control round differently, other ones like them. They appear under their id only
    when complete.
    """
    if name not in names():
        raise Refused(f"unknown recipe {name!r}: the recipes are {', '.join(names())}")
    task = tasks.find(name)
    size = SIZES[name] if size is None else size
    if size < 1 or seed < 0:
        raise Refused(f"recipe {name}: size must be positive and seed not negative, not {size} and {seed}")
    identifier = dataset_id(name, size, seed)
    family = _FAMILIES[task.family]
    code = f"common/recipes/{task.family}.py"
    recipe = {"name": name, "size": size, "seed": seed, "version": family.version, "code": code, **family.parameters}
    try:
        if _is_there(identifier, recipe):
            return identifier
        environment = environments.make(task)
        try:
            _remove_stale(get_dataset_path())
            episodes, made, estimate = [], 0, _Estimate(size, announce)
            for episode in family.generate(environment, size, seed):
                episodes.append(episode.buffer())
                made += len(episode.actions)
                estimate(made)
                if progress is not None:
                    progress(made, size)
            _write(identifier, recipe, episodes, environment)
        finally:
            environment.close()
    except (OSError, RuntimeError) as error:  # h5py reports a disk that fills up as either
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise Refused(
            f"recipe {name}: {reason} while writing its data; MINARI_DATASETS_PATH chooses the folder"
        ) from error
    return identifier


class _Estimate:
    """Announces once how long making takes, if it is minutes."""

    def __init__(self, size: int, announce: Announce | None):
        self.size, self.announce = size, announce
        self.first: tuple[float, int] | None = None

    def __call__(self, made: int) -> None:
        """Hear of the transitions made so far; the speed counts from the first of them on, when processes run."""
        now = time.monotonic()
        if self.first is None:
            self.first = now, made
        spent = now - self.first[0]
        if self.announce is None or spent < _SURE:
            return
        left = (self.size - made) * spent / max(1, made - self.first[1])
        if left > 60:
            self.announce(f"making {self.size:,} rows: about {left / 60:.0f} minutes left")
        self.announce = None


def digest(*arrays: np.ndarray) -> str:
    """sha256 over float32 contents: written with a recipe's data, so that damage is noticed when they are read."""
    total = hashlib.sha256()
    with np.errstate(over="ignore"):  # damaged numbers may not fit
        for array in arrays:
            total.update(np.ascontiguousarray(array, np.float32).data)
    return total.hexdigest()


def _is_there(identifier: str, recipe: dict[str, Any]) -> bool:
    """Whether this recipe's data lie under the id; refuses to touch other data that do."""
    folder = get_dataset_path(identifier)
    if not folder.exists():
        return False
    try:
        found = MinariStorage.read_raw_metadata(folder / "data").get("recipe")
    except ValueError:
        found = None
    if found != recipe:
        raise Refused(f"{folder} holds other data than recipe {recipe['name']} makes now: move it away to make it anew")
    return True


def _write(identifier: str, recipe: dict[str, Any], episodes: list[EpisodeBuffer], environment: Environment) -> None:
    """Write a Minari data set (HDF5) beside its place, then move it there as a whole."""
    lowest, highest = environment.task.reference or _GOAL_RETURNS
    root = get_dataset_path()
    target = root / identifier
    if not (root / NAMESPACE / "namespace_metadata.json").exists():
        with contextlib.suppress(ValueError):  # another process made it meanwhile
            create_namespace(NAMESPACE, description="Made on this machine by Headstart's recipes")
    with _scratch(root) as temporary:
        _ensure_room(temporary / "room", episodes)
        folder = temporary / "dataset"
        folder.mkdir()
        storage = MinariStorage.new(
            folder / "data",
            observation_space=Box(-np.inf, np.inf, (environment.observation_size,), np.float32),
            action_space=environment.raw.action_space,
            env_spec=environment.raw.spec,
        )
        storage.update_metadata(
            {
                "dataset_id": identifier,
                "minari_version": minari.__version__,
                "algorithm_name": recipe["policy"],
                "author": {"Headstart"},
                "description": f"{recipe['size']} transitions of recipe {recipe['name']}, seed {recipe['seed']}",
                "ref_min_score": lowest,
                "ref_max_score": highest,
                "recipe": recipe,
                "sha256": digest(
                    np.concatenate([episode.observations[:-1] for episode in episodes]),
                    np.concatenate([episode.observations[1:] for episode in episodes]),
                    np.concatenate([episode.actions for episode in episodes]),
                    np.concatenate([episode.rewards for episode in episodes]),
                ),
            }
        )
        storage.update_episodes(episodes)
        try:
            os.rename(folder, target)
        except OSError:
            # Another process may have made the same data meanwhile.
            if not _is_there(identifier, recipe):
                raise


@contextlib.contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    """A folder to write data in, locked while its process lives."""
    with (
        tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=root) as temporary,
        (Path(temporary) / _LOCK).open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(temporary)


def _remove_stale(root: Path) -> None:
    """Remove what writers that were killed left behind: folders without a lock, or whose lock nobody holds."""
    for folder in root.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):  # it is in use, or cannot be removed
            if time.time() - folder.stat().st_mtime < _BEGINNING:
                continue
            if (folder / _LOCK).exists():
                with (folder / _LOCK).open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def _ensure_room(scratch: Path, episodes: list[EpisodeBuffer]) -> None:
    """Raise OSError if the disk cannot take the episodes: HDF5 does not recover from finding out while it writes."""
    transitions = sum(len(episode.rewards) for episode in episodes)
    row = sum(array[0].nbytes for array in (episodes[0].observations, episodes[0].actions))
    size = (row + 50) * transitions + 20_000 * len(episodes)  # bytes, a little more than Minari's files have
    with scratch.open("wb") as file:
        for written in range(0, size, 1 << 20):
            file.write(bytes(min(1 << 20, size - written)))
        file.flush()
        os.fsync(file.fileno())
    scratch.unlink()
