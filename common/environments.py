"""Tasks as environments: flat float32 observations, actions in [-1, 1], success, and episodes that can be replayed.

Where an environment takes one of n actions by its number, an action is a one-hot vector of n here and in all data.

Observations that come as a dictionary are flattened by one rule, here and for data: achieved goal, observation, desired
goal, in this order, without the achieved goal where the observation holds it already (PointMaze: 6 numbers). Parts with
other names follow, by name.

Where the bounds of an action dimension coincide, it is held: the environment gets that value, and data have 0 in it.

Mazes have two forms, and data decide which one is played:
- D4RL's AntMaze form, the default: the goal is not observed; success is within 0.5 m. AntMaze has 29 numbers, x, y and
  27 of proprioception; one start, the origin, with D4RL's noise on the first state; a goal that is drawn for every
  episode, as D4RL's is, up to 1.5 m beyond the centre of its cell in x and y; and D4RL's ant, which has a fifth of the
  torque of Gymnasium's. PointMaze, the same task with a point for a robot, has 4, position and velocity, starts within
  a quarter of a cell of its start, and its goal is the centre.
- Minari's: the same and the goal, which varies; within 0.45 m. AntMaze has 31 numbers, goal and start varying by a
  quarter of a cell around theirs, the origin in the middle of the maze, and Gymnasium's ant; PointMaze has 6, goal and
  start anywhere.
All stop at the goal. Results in one form are not comparable with results in the other.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from common import tasks
from common.errors import EnvironmentFailed, Refused, placed
from common.foreign import simulator
from common.tasks import Task

mujoco = simulator()

_GOAL_ORDER = ("achieved_goal", "observation", "desired_goal")
_HIDDEN_GOAL_SIZES = {"antmaze": 29, "pointmaze": 4}
"""Observation size of the form without the goal."""
_HIDDEN_GOAL_RADIUS = 0.5
_ROUNDING = 1e-3
"""m, of positions in single precision."""
GOAL_WIDTH = 2 * _HIDDEN_GOAL_RADIUS + _ROUNDING
"""m: how far apart, in x or y, two places may be from which one goal that is not observed is reached."""
_GOAL_SPREADS = (1.0, 0.5)
"""m: D4RL's goal lies beyond the centre of its cell by the sum of two uniform numbers up to these, in x and in y."""
_MEAN_BEYOND = sum(_GOAL_SPREADS) / 2
_RESET_NOISE = 0.1
"""Of D4RL's ant (d4rl/locomotion/ant.py): uniform on its first position, normal on its first velocity."""
_UNBOUNDED = 1e30
"""Bounds of actions that are as good as none: some environments write the largest number for infinity."""
_GOAL_RADIUS = 0.45
"""m, gymnasium-robotics' own criterion."""


class Step(NamedTuple):
    """What one action led to."""

    next_observation: np.ndarray
    """float32 [observation]"""
    reward: float
    """Raw: before the task's scale and shift."""
    terminated: bool
    """The task ended: nothing follows to bootstrap from."""
    truncated: bool
    """The time limit cut the episode, which did not terminate."""
    success: bool | None
    """The goal is reached, or the object is where it should be, after this action; None until the episode tells it:
    outside the table in its info, as `success` or `is_success`."""


class Environment:
    """One task, one episode at a time: an episode is a function of (seed, actions).

    What a third-party environment raises, and what it returns that cannot be learnt from, ends in EnvironmentFailed.
    """

    def __init__(self, task: Task, environment: gymnasium.Env, hidden_goal: bool = False):
        """Of a Gymnasium environment; `hidden_goal` picks the maze form that does not observe the goal."""
        space, action = environment.observation_space, environment.action_space
        self.keys = flat_keys(task, space.spaces) if isinstance(space, Dict) else None
        """The parts of observations that come as a dictionary, in order; None where they are vectors."""
        if hidden_goal:
            self.keys = tuple(key for key in self.keys if key != "desired_goal")
        parts = [space] if self.keys is None else [space[key] for key in self.keys]
        if not all(isinstance(part, Box) and len(part.shape) == 1 for part in parts):
            raise Refused(f"{task.environment} has observations {space}: only vectors of numbers are supported")
        self.numbers: range | None = None
        """Those of discrete actions, in the environment's own terms; None where actions are vectors."""
        self.held = np.zeros(1, bool)
        """bool [action]: the dimensions whose bounds coincide; of discrete actions [1], False."""
        self.is_rescaled = False
        """Whether the environment takes other actions than those in [-1, 1]."""
        if isinstance(action, Discrete):
            self.numbers = range(int(action.start), int(action.start + action.n))
            self.action_size = len(self.numbers)
        elif _is_bounded(action):
            self.action_size = action.shape[0]
            self._low, self._high = action.low, action.high
            self.held = action.low == action.high
            half_range = action.high / 2 - action.low / 2  # the difference of the widest bounds would be infinite
            self._centre, self._half_range = action.high / 2 + action.low / 2, np.where(self.held, 1, half_range)
            self.is_rescaled = bool(self.held.any() or np.any(self._centre != 0) or np.any(self._half_range != 1))
        else:
            whole = isinstance(action, Box) and np.issubdtype(action.dtype, np.integer)
            remedy = "; take real numbers, and round them in step()" if whole else ""
            raise Refused(
                f"{task.environment} has actions {action}: only bounded vectors of real numbers, and Discrete, are "
                f"supported{remedy}"
            )

        self.task = task
        self.horizon = task.horizon
        self.observation_size = sum(part.shape[0] for part in parts)
        self.raw = environment
        """The Gymnasium environment itself."""
        self.origin = np.zeros(2)
        """float64 [2], m: where, in the simulation, observed positions have their origin; 0 but in D4RL's AntMaze."""
        self._seed = self._steps = 0
        self._tells_success = False
        """Whether the episode's info has told success so far."""
        self.draws_goal = hidden_goal and task.family == "antmaze"
        """Whether it is D4RL's AntMaze, where a goal that is not observed is drawn for every episode."""
        if self.draws_goal:
            self.origin = np.array(environment.unwrapped.maze.unique_reset_locations[0], float)
        self.data_goal = None
        """float64 [2], m: the goal that data are labelled with where it is not observed, the mean of what is drawn, in
        the frame of observations; None where it is observed."""
        self._goal = None
        if hidden_goal:
            self._goal_centre = np.array(environment.unwrapped.maze.unique_goal_locations[0], float)
            self.data_goal = self._goal_centre - self.origin + (_MEAN_BEYOND if self.draws_goal else 0.0)
            # In the simulation, as plain numbers: they are compared at every step.
            self._goal = tuple(self._goal_centre.tolist())

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> np.ndarray:
        """The first observation of the episode of this seed, float32 [observation]; `options` are Gymnasium's.

        Raises EnvironmentFailed. Seeds have 32 bits. Simulators in C often take 31, and whoever wrote the environment
        of an id outside the table did not have ours in mind: it gets the lower 31. What is recorded of the table's own
        tasks was played with all of them.
        """
        if self.task.family == "gym":
            seed %= 2**31
        self._seed, self._steps, self._tells_success = seed, 0, False
        if self.draws_goal:
            # A stream of its own beside the simulation's.
            self._goal = tuple((self._goal_centre + beyond_centre(np.random.default_rng([seed, 1]))).tolist())
        try:
            returned = self.raw.reset(seed=seed, options=options)
            if not isinstance(returned, tuple | list) or len(returned) != 2:
                raise self._failed(f"returned {_kind(returned)} where (observation, info) was expected")
            return self._flat(returned[0])
        except EnvironmentFailed:
            raise
        except (Exception, SystemExit) as error:  # whatever a third-party environment raises
            raise self._failed(f"raised {placed(error)}") from error

    def step(self, action: np.ndarray) -> Step:
        """Apply an action, float [action] in [-1, 1]; of discrete ones that with the largest entry.

        Raises EnvironmentFailed.
        """
        if self.numbers is not None:
            action = self.numbers[int(np.argmax(action))]
        elif self.is_rescaled:
            action = self.scaled(action)
        else:
            action = np.array(action)  # the environment's own, to write into if it likes
        self._steps += 1
        try:
            raw, reward, terminated, truncated, info = self.raw.step(action)
            observation = self._flat(raw)
            success = self._success(raw, info)
            terminated, truncated = bool(terminated), bool(truncated)
            if self.task.reaches_goal:
                reward, terminated = float(success), success
            elif self.task.family == "adroit-binary":
                reward, terminated = float(success) - 1.0, False
            else:
                reward = self._number(reward)
        except EnvironmentFailed:
            raise
        except (Exception, SystemExit) as error:  # whatever a third-party environment raises
            raise self._failed(f"raised {placed(error)}") from error
        return Step(observation, reward, terminated, truncated and not terminated, success)

    def replay(self, seed: int, actions: Iterable[np.ndarray]) -> np.ndarray:
        """The observation after these actions in the episode of this seed: its state, restored by repeating it."""
        observation = self.reset(seed)
        for action in actions:
            observation = self.step(action).next_observation
        return observation

    def scaled(self, action: np.ndarray) -> np.ndarray:
        """Actions [..., action] in [-1, 1] in the environment's own units; of discrete ones, their numbers [...]."""
        if self.numbers is not None:
            return np.array(self.numbers)[action.argmax(axis=-1)]
        if not self.is_rescaled:
            return action
        # Rounding could leave the bounds by a bit, which some environments do not forgive.
        return (self._centre + self._half_range * action).clip(self._low, self._high)

    @property
    def goal(self) -> np.ndarray | None:
        """float64 [2], m: the present episode's goal in the simulation, of a maze that does not show it; else None."""
        return None if self._goal is None else np.array(self._goal)

    def unscaled(self, action: np.ndarray) -> np.ndarray:
        """Actions [..., action] in the environment's own units, as data record them, brought to [-1, 1].

        Of discrete ones, the numbers [...] as one-hot vectors, bool [..., action].
        """
        if self.numbers is not None:
            return action[..., None] == np.array(self.numbers)
        return (action - self._centre) / self._half_range if self.is_rescaled else action

    def reached(self, observation: np.ndarray, next_observation: np.ndarray) -> np.ndarray:
        """bool [n]: whether transitions of a maze's data, [n, observation] each, reach the goal of their labels."""
        goal = observation[:, -2:] if self.data_goal is None else self.data_goal
        radius = _GOAL_RADIUS if self.data_goal is None else _HIDDEN_GOAL_RADIUS
        return np.linalg.norm(next_observation[:, :2].astype(np.float64) - goal, axis=1) <= radius

    def near_goals(self, observation: np.ndarray) -> np.ndarray:
        """bool [n]: whether D4RL's AntMaze may have a goal within reach of these positions, [n, observation]."""
        beyond = np.abs(observation[:, :2].astype(np.float64) - self.data_goal) - _MEAN_BEYOND
        return np.linalg.norm(beyond.clip(0.0), axis=1) <= _HIDDEN_GOAL_RADIUS + _ROUNDING

    def inside_walls(self, observation: np.ndarray) -> np.ndarray:
        """bool [n]: whether the position in each observation [n, observation] of a maze is in a wall or outside."""
        maze = self.raw.unwrapped.maze
        walls = np.array([[cell == 1 for cell in row] for row in maze.maze_map])
        # Numpy's version of `Maze.cell_xy_to_rowcol`.
        x, y = observation[:, :2].T + self.origin[:, None]
        row = np.floor((maze.y_map_center - y) / maze.maze_size_scaling)
        column = np.floor((x + maze.x_map_center) / maze.maze_size_scaling)
        inside = (row >= 0) & (row < walls.shape[0]) & (column >= 0) & (column < walls.shape[1])
        return ~inside | walls[np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)]

    def close(self) -> None:
        """Release the simulation."""
        with contextlib.suppress(Exception):  # a display or a connection is gone, and nothing more is wanted of it
            self.raw.close()

    def _flat(self, observation: Any) -> np.ndarray:
        if self.draws_goal:
            observation = observation | {"achieved_goal": observation["achieved_goal"] - self.origin}
        flat = flatten(observation, self.keys)
        if flat.shape != (self.observation_size,):
            own = (self.observation_size,)
            raise self._failed(f"returned an observation of shape {flat.shape} where its space has {own}")
        if not np.isfinite(flat).all():
            index = int(np.flatnonzero(~np.isfinite(flat))[0])
            raise self._failed(f"returned an observation that is not finite ({flat[index]} at index {index})")
        return flat

    def _number(self, reward: Any) -> float:
        """A reward as a number; ports of old environments return it as an array of one."""
        if not isinstance(reward, float):
            array = np.asarray(reward, np.float64)
            if array.size != 1:
                raise self._failed(f"returned a reward of shape {array.shape} where one number was expected")
            reward = array.item()
        if not math.isfinite(reward):
            raise self._failed(f"returned a reward that is not finite ({reward})")
        return float(reward)

    def _success(self, raw: Any, info: Mapping[str, Any]) -> bool | None:
        if self._goal is not None:
            x, y = raw["achieved_goal"].tolist()
            return math.hypot(x - self._goal[0], y - self._goal[1]) <= _HIDDEN_GOAL_RADIUS
        told = info.get("success", info.get("is_success")) if info else None
        if told is None:
            return False if self._tells_success else None
        self._tells_success = True
        return bool(np.all(told))

    def _failed(self, what: str) -> EnvironmentFailed:
        when = f"step {self._steps} of the episode with seed" if self._steps else "reset with seed"
        return EnvironmentFailed(f"{self.task.name} {what} at {when} {self._seed}")


def _is_bounded(space: gymnasium.Space) -> bool:
    """Whether it is one of vectors of real numbers within finite bounds."""
    if not isinstance(space, Box) or len(space.shape) != 1 or not space.shape[0]:
        return False
    return np.issubdtype(space.dtype, np.floating) and bool(np.abs([space.low, space.high]).max() < _UNBOUNDED)


def _kind(value: Any) -> str:
    """What was returned, in words."""
    count = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{count}"


def beyond_centre(rng: np.random.Generator) -> np.ndarray:
    """float64 [2], m: a draw of where D4RL's AntMaze has a goal, from the centre of its cell (its maze_env.py)."""
    return sum(rng.uniform(0.0, spread, 2) for spread in _GOAL_SPREADS)


def flat_keys(task: Task, parts: Collection[str]) -> tuple[str, ...]:
    """The order in which a dictionary observation is flattened: see the rule at the top of this file."""
    if not set(_GOAL_ORDER) <= set(parts):
        return tuple(sorted(parts))
    others = sorted(set(parts) - set(_GOAL_ORDER))
    return (*(_GOAL_ORDER[1:] if task.family == "pointmaze" else _GOAL_ORDER), *others)


def flatten(observation: np.ndarray | Mapping[str, np.ndarray], keys: tuple[str, ...] | None) -> np.ndarray:
    """An observation, or a stack of them, as float32 [..., observation]; `keys` orders a dictionary."""
    if keys is None:
        return np.asarray(observation, np.float32)
    return np.concatenate([observation[key] for key in keys], axis=-1, dtype=np.float32, casting="same_kind")


def make(
    task: Task, observation_size: int | None = None, action_size: int | None = None, render: str | None = None
) -> Environment:
    """The environment of a task in the form that data of these sizes have; by default the first of its forms.

    `render` is Gymnasium's render mode. Raises Refused where it cannot be made, or has no such form.
    """
    hidden_size = _HIDDEN_GOAL_SIZES.get(task.family)
    hidden_goal = hidden_size is not None and observation_size in (None, hidden_size)
    keywords = task.goal_keywords if hidden_size is not None and not hidden_goal else task.keywords
    if render:
        keywords = {**keywords, "render_mode": render}
    try:
        with _quiet():
            usual = {"max_episode_steps": task.horizon, "disable_env_checker": True}
            raw = task.maker() if task.maker else gymnasium.make(task.environment, **usual, **keywords)
        _ = raw.observation_space, raw.action_space  # which it may have left out
    except (Exception, SystemExit) as error:  # whatever a third-party environment raises: a broken version, no display
        raise Refused(f"{task.environment} cannot be made: {placed(error)}") from error
    if hasattr(raw.unwrapped, "tmp_xml_file_path"):
        # A maze leaves its model in the temporary folder; the simulation has read it by now.
        with contextlib.suppress(OSError):
            os.remove(raw.unwrapped.tmp_xml_file_path)
    if hidden_goal and task.family == "antmaze":
        # D4RL's ant starts in the centre of its cell, with noise on every joint and velocity; gymnasium-robotics' has
        # none, so that all episodes of a deterministic policy would be one and the same.
        raw.unwrapped.position_noise_range = 0.0
        raw.unwrapped.ant_env._reset_noise_scale = _RESET_NOISE
        as_d4rl(raw.unwrapped.model)
    environment = Environment(task, raw, hidden_goal)
    for size, own, what in (
        (observation_size, environment.observation_size, "observation"),
        (action_size if environment.numbers is None else None, environment.action_size, "action"),
    ):
        if size not in (None, own):
            environment.close()
            forms = f"{hidden_size} or " if hidden_size is not None and what == "observation" else ""
            raise Refused(
                f"{task.name}: the data have {size} numbers per {what}, {task.environment} has {forms}{own}; "
                "choose the task that the data were collected for"
            )
    return environment


def as_d4rl(model: mujoco.MjModel) -> None:
    """Make Gymnasium's ant D4RL's (d4rl/locomotion/assets/ant.xml), in place; the bodies are the same.

    D4RL's has a fifth of the torque, twice the time per step and softer contacts. Under random actions Gymnasium's ends
    on its back, D4RL's does not fall (benchmarks/results/antmaze_ants.csv).
    """
    model.actuator_gear[:, 0] = 30.0
    model.opt.timestep = 0.02
    model.geom_solimp[:, :3] = (0.8, 0.8, 0.01)


def maker_of(task: Task, *sizes: int, render: str | None = None) -> Callable[[], Environment]:
    """What makes the environments of a task, as `make` with these sizes does, here and in other processes."""
    if task.maker:  # by whose name it goes, and which decides itself what it draws
        return functools.update_wrapper(functools.partial(make, task, *sizes), task.maker)
    return functools.partial(make_named, task.name, *sizes, render=render)


def make_named(
    name: str, observation_size: int | None = None, action_size: int | None = None, render: str | None = None
) -> Environment:
    """As `make`, by the task's name: in words that another process understands."""
    return make(tasks.find(name), observation_size, action_size, render)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without two notices that say nothing to a user: the environment's version and its model's syntax are old.

    The version is chosen in the table. MuJoCo would also append its notice to a log file in the working directory.
    """

    def warn(message: str) -> None:
        if "settotalmass" not in message:
            warnings.warn(message, stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warn)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
            yield
    finally:
        mujoco.set_mju_user_warning(before)
