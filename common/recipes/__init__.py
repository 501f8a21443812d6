"""Prior data made on the spot: `make(name)` -> an ordinary Minari data set on this machine, in our own namespace.

`pointmaze-*`: the planner of D4RL's maze2d. From a random start to a random goal along the shortest path of cells, each
waypoint approached by proportional-derivative control with noise; reaching that goal truncates the episode and the next
one starts elsewhere (D4RL's goes on from where it is). The planner's goal is not recorded: observations have 4 numbers,
and rewards are those of the task's one goal, which few episodes pass. Fu et al., 2020, and D4RL's
scripts/generation/generate_maze2d_datasets.py.

`antmaze-*`: D4RL's AntMaze. A controller that walks an ant in a commanded direction (ant.py) follows waypoints to a
goal, with Gaussian noise of 0.2 on every action. `umaze`: from the task's start to its goal; `play`: from anywhere to
goals picked by hand, D4RL's; `diverse`: from anywhere to anywhere. The goal pursued is not recorded: observations have
29 numbers, and rewards are those of the task's one goal. An episode ends at the goal pursued, and soon after the ant
has fallen on its back, from where it cannot rise (D4RL's ants pursue their goal until the time limit). Fu et al., 2020,
and D4RL's scripts/generation/generate_ant_maze_datasets.py and relabel_antmaze_rewards.py.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import multiprocessing
import os
import shutil
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import minari
import numpy as np
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace
from minari.storage.datasets_root_dir import get_dataset_path

from common import environments, mazes, tasks
from common.ant import Controller
from common.environments import Environment
from common.errors import Refused
from common.machine import cores

Progress = Callable[[int, int], None]
"""Called now and then with the transitions made so far and in all."""

NAMESPACE = "headstart"
SIZES = {"pointmaze": 100_000, "antmaze": 1_000_000}
"""Family -> transitions made by default."""
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

_WALKING_NOISE = 0.2
"""Standard deviation of the Gaussian noise on the ant's actions, before clipping."""
_LOOK_EVERY = 5
"""Steps of the ant between waypoints."""
_ARRIVED = 0.5
"""m from its goal at which an ant's episode ends."""
_FALLEN = 20
"""Steps on its back after which an ant's episode ends."""
_PLAY_GOALS = {
    "medium": ((2, 6), (5, 1), (6, 5)),
    "large": ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
}
"""Maze -> the cells picked by hand: those marked as goals in D4RL's maps (d4rl/locomotion/maze_env.py)."""
_FEW = 5000
"""Transitions that are made before other processes have started."""

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
    usual = SIZES[tasks.find(name).family]
    variant = (f"-size{size}" if size not in (None, usual) else "") + (f"-seed{seed}" if seed else "")
    return f"{NAMESPACE}/{name}{variant}-v{_VERSION}"


def make(name: str, size: int | None = None, seed: int = 0, progress: Progress | None = None) -> str:
    """Make a recipe's data, unless they are there already, and return their Minari id.

    The same name, size and seed give the same data. They appear under their id only when they are complete.
    """
    if name not in names():
        raise Refused(f"unknown recipe {name!r}: the recipes are {', '.join(names())}")
    task = tasks.find(name)
    size = SIZES[task.family] if size is None else size
    if size < 1 or seed < 0:
        raise Refused(f"recipe {name}: size must be positive and seed not negative, not {size} and {seed}")
    identifier = dataset_id(name, size, seed)
    generate, parameters = _GENERATORS[task.family]
    recipe = {"name": name, "size": size, "seed": seed, "version": _VERSION, "code": "common/recipes.py", **parameters}
    try:
        if _is_there(identifier, recipe):
            return identifier
        environment = environments.make(task)
        try:
            _write(identifier, recipe, generate(environment, size, seed, progress), environment)
        finally:
            environment.close()
    except (OSError, RuntimeError) as error:  # h5py reports a disk that fills up as either
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise Refused(
            f"recipe {name}: {reason} while writing its data; MINARI_DATASETS_PATH chooses the folder"
        ) from error
    return identifier


def digest(*arrays: np.ndarray) -> str:
    """sha256 over float32 contents: written with a recipe's data, so that damage is noticed when they are read."""
    total = hashlib.sha256()
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
                "ref_min_score": _SCORES[0],
                "ref_max_score": _SCORES[1],
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


def _remove_stale(root: Path) -> None:
    """Remove what writers that were killed left behind; whatever cannot be removed stays."""
    for folder in root.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE:
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
        steps = mazes.steps_to(maze.maze_map, tuple(maze.cell_xy_to_rowcol(goal)))
        cells = mazes.path(steps, tuple(maze.cell_xy_to_rowcol(observation[:2])))
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
        episodes.append(_episode(environment, np.array(observations)[:, :4], np.array(actions)))
        made += len(actions)
        if progress is not None:
            progress(made, size)
    planner.close()
    return episodes


def _episode(environment: Environment, observations: np.ndarray, actions: np.ndarray) -> EpisodeBuffer:
    """An episode cut after its last row: observations [T + 1, o], actions [T, a], the rewards of the task's goal."""
    return EpisodeBuffer(
        observations=observations,
        actions=actions,
        rewards=environment.reached(observations[:-1], observations[1:]).astype(np.float64),
        terminations=np.zeros(len(actions), bool),
        truncations=np.arange(len(actions)) == len(actions) - 1,
    )


# ----------------------------------------------------------------------------- AntMaze


def _walk_all(environment: Environment, size: int, seed: int, progress: Progress | None) -> list[EpisodeBuffer]:
    """Episodes of walking ants, `size` transitions in all, on every core; the last one is cut there."""
    episodes, made = [], 0
    with contextlib.closing(_walks(environment.task.name, size, seed)) as walks:
        while made < size:
            observations, actions = next(walks)
            length = min(len(actions), size - made)
            episodes.append(_episode(environment, observations[: length + 1], actions[:length]))
            made += length
            if progress is not None:
                progress(made, size)
    return episodes


def _walks(name: str, size: int, seed: int) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Episodes 0, 1, 2, ...: each a function of (name, seed, number) alone, wherever it is computed."""
    number = 0
    if size <= _FEW:
        while True:
            yield walk(name, seed, number)
            number += 1
    workers = cores()
    # Not by fork: JAX and its threads may be running.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        pending: deque[Future] = deque()
        try:
            while True:
                while len(pending) < 3 * workers:
                    pending.append(pool.submit(walk, name, seed, number))
                    number += 1
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@functools.cache
def ant_environment(name: str) -> Environment:
    """The environment of an AntMaze task, one for each process."""
    return environments.make(tasks.find(name))


def walk(name: str, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One episode of an AntMaze recipe: observations float32 [T + 1, 29] and actions float32 [T, 8]."""
    rng = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
    environment = ant_environment(name)
    maze = environment.raw.unwrapped.maze
    free = mazes.free_cells(maze.maze_map)
    _, size, *variant = name.split("-")
    if not variant:
        start, goal = None, maze.unique_goal_locations[0]
    else:
        goals = _PLAY_GOALS[size] if variant == ["play"] else free
        start = free[rng.integers(len(free))]
        target = start
        while target == start:
            target = goals[rng.integers(len(goals))]
        goal = maze.cell_rowcol_to_xy(np.array(target)) + rng.uniform(-1, 1, 2)
    return follow(environment, start, goal, rng, _WALKING_NOISE)


def follow(
    environment: Environment, start: mazes.Cell | None, goal: np.ndarray, rng: np.random.Generator, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Walk an ant to a goal [2], from near the centre of a cell or from the task's start (None)."""
    simulation = environment.raw.unwrapped
    simulation.position_noise_range = 0.0 if start is None else 0.25
    options = None if start is None else {"reset_cell": np.array(start)}
    raw, _ = environment.raw.reset(seed=int(rng.integers(2**31)), options=options)
    observation = np.concatenate([raw["achieved_goal"], raw["observation"]]).astype(np.float32)
    waypoints, controller = mazes.Waypoints(simulation.maze, goal), _controller()
    observations, actions, fallen, cut = [observation], [], 0, False
    while not cut and fallen < _FALLEN:
        place = observation[:2].astype(float)
        if len(actions) % _LOOK_EVERY == 0:
            waypoint = waypoints(place)
        action = controller(observation[None, 2:], (waypoint - place)[None])[0]
        action = (action + rng.normal(0.0, noise, len(action))).clip(-1, 1).astype(np.float32)
        step = environment.step(action)
        observation = step.next_observation
        observations.append(observation)
        actions.append(action)
        arrived = float(np.linalg.norm(observation[:2] - goal)) <= _ARRIVED
        cut = arrived or len(actions) == environment.horizon
        _, x, y, _ = observation[3:7]
        fallen = fallen + 1 if 1 - 2 * (x * x + y * y) < 0 else 0
    return np.array(observations), np.array(actions)


@functools.cache
def _controller() -> Controller:
    return Controller()


_GENERATORS: dict[str, tuple[Callable[..., list[EpisodeBuffer]], dict[str, Any]]] = {
    "pointmaze": (
        _plan,
        {
            "policy": "waypoint planner with proportional-derivative control",
            "gain": _GAIN,
            "damping": _DAMPING,
            "noise": _NOISE,
            "near": _NEAR,
        },
    ),
    "antmaze": (
        _walk_all,
        {
            "policy": "goal-reaching ant controller along waypoints",
            "noise": _WALKING_NOISE,
            "look_every": _LOOK_EVERY,
            "arrived": _ARRIVED,
            "fallen": _FALLEN,
        },
    ),
}
"""Family -> what makes its episodes, and the parameters that are recorded with them."""
