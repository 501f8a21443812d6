"""Prior data made on the spot: `make(name)` -> an ordinary Minari data set on this machine, in our own namespace.

`pointmaze-*`: the planner of D4RL's maze2d. From a random start to a random goal along the shortest path of cells, each
waypoint approached by proportional-derivative control with noise; reaching that goal truncates the episode and the next
one starts elsewhere (D4RL's goes on from where it is). The planner's goal is not recorded: observations have 4 numbers,
and rewards are those of the task's one goal, which few episodes pass. Fu et al., 2020, and D4RL's
scripts/generation/generate_maze2d_datasets.py.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
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

Progress = Callable[[int, int], None]
"""Called now and then with the transitions made so far and in all."""

Cell = tuple[int, int]
"""Row and column of a maze."""

NAMESPACE = "headstart"
_SIZE = 100_000
"""Transitions made by default."""
_VERSION = 0
"""Of the generation code: raised when the same name and seed would give other data."""

_GAIN = 10.0
_DAMPING = 1.0
_NOISE = 0.5
"""Standard deviation of the Gaussian noise on each action, before clipping."""
_NEAR = 0.1
"""m: how close a waypoint counts as passed."""
_OBSERVED_GOAL_SIZE = 6
"""Observation size of PointMaze with its goal, which the planner needs."""
_TEMPORARY = ".recipe-"
"""How the names of folders begin in which data are written."""
_STALE = 86_400
"""Seconds after which a folder that is still being written belongs to a process that was killed: writing takes some."""
_SCORES = (0.0, 1.0)
"""Return of an episode that misses its goal and of one that reaches it: the reference scores of every goal task."""


def names() -> list[str]:
    """The recipes there are."""
    return [name for name in tasks.names() if "recipe" in tasks.find(name).datasets]


def dataset_id(name: str, size: int | None = None, seed: int = 0) -> str:
    """The Minari id under which a recipe's data lie; it says the size and seed where they are not the default."""
    variant = (f"-size{size}" if size not in (None, _SIZE) else "") + (f"-seed{seed}" if seed else "")
    return f"{NAMESPACE}/{name}{variant}-v{_VERSION}"


def make(name: str, size: int | None = None, seed: int = 0, progress: Progress | None = None) -> str:
    """Make a recipe's data, unless they are there already, and return their Minari id.

    The same name, size and seed give the same data. They appear under their id only when they are complete.
    """
    if name not in names():
        raise Refused(f"unknown recipe {name!r}: the recipes are {', '.join(names())}")
    size = _SIZE if size is None else size
    if size < 1 or seed < 0:
        raise Refused(f"recipe {name}: size must be positive and seed not negative, not {size} and {seed}")
    identifier = dataset_id(name, size, seed)
    recipe = {
        "name": name,
        "size": size,
        "seed": seed,
        "version": _VERSION,
        "code": "common/recipes.py",
        "gain": _GAIN,
        "damping": _DAMPING,
        "noise": _NOISE,
        "near": _NEAR,
    }
    try:
        if _is_there(identifier, recipe):
            return identifier
        task = tasks.find(name)
        environment = environments.make(task)
        try:
            _write(identifier, recipe, _plan(environment, size, seed, progress), environment)
        finally:
            environment.close()
    except (OSError, RuntimeError) as error:  # h5py reports a disk that fills up as either
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise Refused(
            f"recipe {name}: {reason} while writing its data; MINARI_DATASETS_PATH chooses the folder"
        ) from error
    return identifier


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
    root = get_dataset_path()
    target = root / identifier
    if not (root / NAMESPACE / "namespace_metadata.json").exists():
        with contextlib.suppress(ValueError):  # another process made it meanwhile
            create_namespace(NAMESPACE, description="Made on this machine by Headstart's recipes")
    _remove_stale(root)
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=root) as temporary:
        _ensure_room(Path(temporary) / "room", episodes)
        folder = Path(temporary) / "dataset"
        folder.mkdir()
        space = environment.raw.observation_space
        storage = MinariStorage.new(
            folder / "data",
            observation_space=Box(-np.inf, np.inf, space["observation"].shape, np.float32),
            action_space=environment.raw.action_space,
            env_spec=environment.raw.spec,
        )
        storage.update_metadata(
            {
                "dataset_id": identifier,
                "minari_version": minari.__version__,
                "algorithm_name": "waypoint planner with proportional-derivative control",
                "author": {"Headstart"},
                "description": f"{recipe['size']} transitions of recipe {recipe['name']}, seed {recipe['seed']}",
                "ref_min_score": _SCORES[0],
                "ref_max_score": _SCORES[1],
                "recipe": recipe,
            }
        )
        storage.update_episodes(episodes)
        try:
            os.rename(folder, target)
        except OSError:
            # Another process may have made the same data meanwhile.
            if not _is_there(identifier, recipe):
                raise


def _remove_stale(root: Path) -> None:
    """Remove what writers that were killed left behind; whatever cannot be removed stays."""
    for folder in root.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE:
                shutil.rmtree(folder)


def _ensure_room(scratch: Path, episodes: list[EpisodeBuffer]) -> None:
    """Raise OSError if the disk cannot take the episodes: HDF5 does not recover from finding out while it writes."""
    transitions = sum(len(episode.rewards) for episode in episodes)
    size = 100 * transitions + 20_000 * len(episodes)  # bytes, a little more than Minari's files have
    with scratch.open("wb") as file:
        for written in range(0, size, 1 << 20):
            file.write(bytes(min(1 << 20, size - written)))
        file.flush()
        os.fsync(file.fileno())
    scratch.unlink()


# ----------------------------------------------------------------------------- PointMaze


def _plan(environment: Environment, size: int, seed: int, progress: Progress | None) -> list[EpisodeBuffer]:
    """Episodes of the planner towards goals anywhere, `size` transitions in all; the last one is cut there.

    Observations are [T + 1, 4], without the planner's goal; rewards are 1 at the goal of `environment`.
    """
    rng = np.random.default_rng(seed)
    planner = environments.open_form(environment.task, _OBSERVED_GOAL_SIZE)
    maze = planner.raw.unwrapped.maze
    episodes, made = [], 0
    while made < size:
        observation = planner.reset(int(rng.integers(2**31)))
        limit = min(planner.horizon, size - made)
        noise = rng.normal(0.0, _NOISE, (limit, 2)).tolist()
        goal = observation[4:].tolist()
        cells = _shortest_path(
            maze.maze_map, tuple(maze.cell_xy_to_rowcol(observation[:2])), tuple(maze.cell_xy_to_rowcol(goal))
        )
        waypoints = [*(maze.cell_rowcol_to_xy(cell).tolist() for cell in cells[1:-1]), goal]
        observations, actions, terminated = [observation], [], False
        passed = 0
        while len(actions) < limit and not terminated:
            x, y, x_speed, y_speed = observations[-1][:4].tolist()
            if passed < len(waypoints) - 1 and math.hypot(waypoints[passed][0] - x, waypoints[passed][1] - y) < _NEAR:
                passed += 1
            (x_goal, y_goal), (x_noise, y_noise) = waypoints[passed], noise[len(actions)]
            push = (
                _GAIN * (x_goal - x) - _DAMPING * x_speed + x_noise,
                _GAIN * (y_goal - y) - _DAMPING * y_speed + y_noise,
            )
            action = np.array([max(-1.0, min(1.0, force)) for force in push], np.float32)
            step = planner.step(action)
            observations.append(step.next_observation)
            actions.append(action)
            terminated = step.terminated
        recorded = np.array(observations)[:, :4]
        last = np.arange(len(actions)) == len(actions) - 1
        episodes.append(
            EpisodeBuffer(
                observations=recorded,
                actions=np.array(actions),
                rewards=environment.reached(recorded[:-1], recorded[1:]).astype(np.float64),
                terminations=np.zeros(len(actions), bool),
                truncations=last,
            )
        )
        made += len(actions)
        if progress is not None:
            progress(made, size)
    planner.close()
    return episodes


def _shortest_path(layout: list[list[Any]], start: Cell, goal: Cell) -> list[Cell]:
    """The cells (row, column) from start to goal, both included, through cells that are not walls."""
    came_from: dict[Cell, Cell | None] = {goal: None}
    queue = deque([goal])
    while queue and start not in came_from:
        row, column = cell = queue.popleft()
        for neighbour in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            if layout[neighbour[0]][neighbour[1]] != 1 and neighbour not in came_from:
                came_from[neighbour] = cell
                queue.append(neighbour)
    path = [start]
    while (following := came_from[path[-1]]) is not None:
        path.append(following)
    return path
