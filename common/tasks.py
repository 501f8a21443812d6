"""The table of tasks: a name -> environment, data sources, reward transform, horizon and how a run is scored.

A task is a benchmark with a published protocol. Any installed Gymnasium id is a task too, without prior data or score.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import numbers
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike

from common import scores
from common.errors import Refused, placed
from common.foreign import simulator
from common.makers import ENDING, name_of, time_limit

with contextlib.redirect_stderr(io.StringIO()):  # its release notice
    simulator()  # which the next would import
    import gymnasium_robotics
    from gymnasium_robotics.envs.maze import maps

gymnasium.register_envs(gymnasium_robotics)


LONGEST = 2**31 - 1
"""Steps: no time limit is as long; episodes count theirs in 32 bits."""

Termination = Callable[[Any, Any], Any]
"""Of transitions, observations that they lead to [..., o] and training rewards [...], whether their episodes terminate
there, bool [...]; of NumPy's arrays or of JAX's."""


def never(next_observation: Any, reward: Any) -> Any:
    """Episodes end by their time limit only: a `Termination`."""
    return reward > np.inf


def hopper_falls(next_observation: Any, reward: Any) -> Any:
    """Gymnasium's Hopper is unhealthy: a `Termination`. Observed velocities are clipped far below its bound on them."""
    height, angle, others = next_observation[..., 0], next_observation[..., 1], next_observation[..., 1:]
    return ~((height > 0.7) & (abs(angle) < 0.2) & (abs(others) < 100).all(-1))


def walker2d_falls(next_observation: Any, reward: Any) -> Any:
    """Gymnasium's Walker2d is unhealthy: a `Termination`."""
    height, angle = next_observation[..., 0], next_observation[..., 1]
    return ~((height > 0.8) & (height < 2.0) & (abs(angle) < 1.0))


def pendulum_falls(next_observation: Any, reward: Any) -> Any:
    """Gymnasium's InvertedPendulum leaves the upright: a `Termination`."""
    return ~(abs(next_observation[..., 1]) <= 0.2)


@dataclass(frozen=True)
class Reached:
    """A goal is reached, which is where the raw reward is 1 and not 0: a `Termination`."""

    scale: float
    """The task's `reward_scale`."""
    shift: float
    """The task's `reward_shift`."""

    def __call__(self, next_observation: Any, reward: Any) -> Any:
        """Whether a reward is nearer to that of the goal."""
        return reward > 0.5 * self.scale + self.shift


_TERMINATIONS: Mapping[str, Termination] = MappingProxyType(
    {
        "Hopper": hopper_falls,
        "Walker2d": walker2d_falls,
        "InvertedPendulum": pendulum_falls,
        **dict.fromkeys(("HalfCheetah", "Pendulum", "Pusher", "Reacher", "Swimmer"), never),
    }
)
"""Gymnasium id without its version -> how its episodes terminate."""


@dataclass(frozen=True)
class Task:
    """What to solve, with which data, and how well it was solved."""

    name: str
    family: str
    """"pointmaze", "antmaze", "adroit-binary", "adroit", "locomotion", "classic" (control, with discrete actions),
    "ogbench", or "gym" for any other id."""
    environment: str
    """Gymnasium id."""
    keywords: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Arguments of `gymnasium.make` beyond the id; of a maze, for the form that does not observe the goal."""
    goal_keywords: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The same of a maze, for the form that observes the goal."""
    horizon: int | None = None
    """Steps after which an episode is truncated; None where the environment sets no limit."""
    datasets: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Kind of source -> the name of this task's data there."""
    default_dataset: str | None = None
    """The source used when the user names none, as "kind:name"."""
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    """Training reward = scale x raw reward + shift, the same for prior and for online transitions."""
    never_terminates: bool = False
    """Whether episodes end by the time limit only."""
    reference: tuple[float, float] | None = None
    """Returns of a random and of an expert policy: the score is 0 at the first and 100 at the second."""
    maker: Callable[[], gymnasium.Env] | None = None
    """What makes the environment, where it is a function; else the id does."""

    @property
    def reaches_goal(self) -> bool:
        """Whether the task is to reach a goal: reward 1 and termination there, else reward 0."""
        return self.family in ("pointmaze", "antmaze")

    @property
    def termination(self) -> Termination | None:
        """Which transitions end their episode, as far as that follows from where they lead; None if it is not known."""
        if self.reaches_goal:
            return Reached(self.reward_scale, self.reward_shift)
        if self.never_terminates:
            return never
        return None if self.maker else _TERMINATIONS.get(self.environment.rpartition("-v")[0])

    @property
    def knows_success(self) -> bool:
        """Whether the task has a notion of success: locomotion and classic control have none. An id outside the table
        may have one: its environment tells, or it does not (environments.Step)."""
        return self.family not in ("locomotion", "classic", "gym")

    def score(self, return_: ArrayLike, success: ArrayLike) -> Any:
        """Percent, from the raw return and the success (in [0, 1]) of an episode, or of each of an array of episodes.

        Goals and OGBench: the share of episodes that succeed. Binary Adroit: the share of time steps solved (Ball et
        al., 2023, section 5), its raw reward being -1 at each unsolved step. Otherwise the return on the scale of
        `reference`, which is D4RL's for D4RL's tasks; nan without one.
        """
        if self.reaches_goal or self.family == "ogbench":
            return 100.0 * np.asarray(success, float)[()]
        if self.reference is None:
            return np.full(np.shape(return_), np.nan)[()]
        low, high = self.reference
        return 100.0 * (np.asarray(return_, float)[()] - low) / (high - low)


def _maze(layout: list[list[int]], start: tuple[int, int], goal: tuple[int, int]) -> list[list[int | str]]:
    """The layout with one start and one goal cell (row, column)."""
    marked: list[list[int | str]] = [list(row) for row in layout]
    marked[start[0]][start[1]] = maps.RESET
    marked[goal[0]][goal[1]] = maps.GOAL
    return marked


# Start and goal of the evaluation episodes of PointMaze and of Minari's AntMaze: opposite ends of the maze. The map is
# the one the data were collected in; the evaluation map in Farama's generation script for umaze is its mirror image,
# another maze.
_MAZES = {
    "umaze": _maze(maps.U_MAZE, (3, 1), (1, 1)),
    "medium": _maze(maps.MEDIUM_MAZE, (1, 1), (6, 6)),
    "large": _maze(maps.LARGE_MAZE, (1, 1), (7, 9)),
}
# D4RL's rows run along +y, gymnasium-robotics' along -y. Its U starts at (1, 1) and ends at (3, 1).
_D4RL_MAZES = {
    "umaze": _maze(maps.U_MAZE, (1, 1), (3, 1))[::-1],
    "medium": _MAZES["medium"][::-1],
    "large": _MAZES["large"][::-1],
}
_ANT_MAZES = {
    "umaze": ("AntMaze_UMaze-v4", 700),
    "medium": ("AntMaze_Medium-v4", 1000),
    "large": ("AntMaze_Large-v4", 1000),
}
POINT_MAZES = {
    "umaze": ("PointMaze_UMaze-v3", 300),
    "medium": ("PointMaze_Medium-v3", 600),
    "large": ("PointMaze_Large-v3", 800),
}

# D4RL collected its -v2 data with gym's -v2 bodies. Their observations and rewards are those of -v4; -v5 gives other
# ones: Walker2d has another foot friction, and Hopper and Walker2d lose the reward for being healthy at the last step.
BODIES = {"hopper": "Hopper-v4", "halfcheetah": "HalfCheetah-v4", "walker2d": "Walker2d-v4"}
QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "expert")

_CLASSICS = {
    "cartpole": ("CartPole-v1", (21.652, 499.946)),
    "acrobot": ("Acrobot-v1", (-498.764, -83.478)),
}
"""Name -> Gymnasium id, and returns of random actions and of the DQN behind its recipe, acting greedily, as measured
(benchmarks/results/classic_policies.json). CartPole's greatest return is 500."""

HANDS = {
    "pen": "AdroitHandPen-v1",
    "door": "AdroitHandDoor-v1",
    "hammer": "AdroitHandHammer-v1",
    "relocate": "AdroitHandRelocate-v1",
}
DEMONSTRATIONS = ("human", "cloned", "expert")
ANT_VARIANTS = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")


def _table() -> dict[str, Task]:
    tasks = []
    for maze, (environment, horizon) in POINT_MAZES.items():
        name = f"pointmaze-{maze}"
        tasks.append(
            Task(
                name,
                "pointmaze",
                environment,
                keywords=MappingProxyType({"maze_map": _MAZES[maze]}),
                horizon=horizon,
                datasets=MappingProxyType({"recipe": name, "minari": f"D4RL/pointmaze/{maze}-v2"}),
                default_dataset=f"recipe:{name}",
                reward_shift=-1.0,
            )
        )
    for variant in ANT_VARIANTS:
        maze = variant.split("-")[0]
        environment, horizon = _ANT_MAZES[maze]
        name = f"antmaze-{variant}"
        # Minari's set is of another ant: see environments.py.
        sources = {"d4rl": f"{name}-v2", "minari": f"D4RL/antmaze/{variant}-v1", "recipe": name}
        tasks.append(
            Task(
                name,
                "antmaze",
                environment,
                keywords=MappingProxyType({"maze_map": _D4RL_MAZES[maze]}),
                goal_keywords=MappingProxyType({"maze_map": _MAZES[maze]}),
                horizon=horizon,
                datasets=MappingProxyType(sources),
                default_dataset=f"d4rl:{name}-v2",
                reward_shift=-1.0,
            )
        )
    for hand, environment in HANDS.items():
        # gymnasium-robotics gives every hand 200 steps; D4RL's pen scores and RLPD's binary pen are defined at 100.
        horizon = 100 if hand == "pen" else 200
        for variant in ("binary", *DEMONSTRATIONS):
            binary = variant == "binary"
            # RLPD's own binary data (AWAC's demonstrations and cloned rollouts) is published as pickles only; the
            # human demonstrations are the part of it that D4RL shares.
            demonstrations = "human" if binary else variant
            source = f"D4RL/{hand}/{demonstrations}-v2"
            tasks.append(
                Task(
                    f"{hand}-{variant}",
                    "adroit-binary" if binary else "adroit",
                    environment,
                    horizon=horizon,
                    datasets=MappingProxyType({"minari": source, "d4rl": f"{hand}-{demonstrations}-v1"}),
                    default_dataset=f"minari:{source}",
                    never_terminates=binary or hand != "pen",  # D4RL's pen ended where it was dropped
                    reference=(-float(horizon), 0.0) if binary else scores.reference(f"{hand}-{variant}-v1"),
                )
            )
    for body, environment in BODIES.items():
        for quality in QUALITIES:
            # Minari's mujoco/* sets are not D4RL's: other policies, recorded in -v5. They are offered where the
            # quality has the same name, and every result names its source.
            name = f"{body}-{quality}"
            sources = {"d4rl": f"{name}-v2", "recipe": name}
            if quality in ("medium", "expert"):
                sources["minari"] = f"mujoco/{body}/{quality}-v0"
            tasks.append(
                Task(
                    name,
                    "locomotion",
                    environment,
                    horizon=1000,
                    datasets=MappingProxyType(sources),
                    default_dataset=f"d4rl:{name}-v2",
                    never_terminates=body == "halfcheetah",
                    reference=scores.reference(f"{body}-{quality}-v2"),
                )
            )
    for classic, (environment, reference) in _CLASSICS.items():
        name = f"{classic}-mixed"
        tasks.append(
            Task(
                name,
                "classic",
                environment,
                horizon=500,
                datasets=MappingProxyType({"recipe": name}),
                default_dataset=f"recipe:{name}",
                reference=reference,
            )
        )
    return {task.name: task for task in tasks}


_TASKS = _table()


def _ogbench(name: str) -> Task:
    """One of OGBench's single tasks, named as there: ENVIRONMENT-DATA-singletask(-taskN)-v0."""
    try:
        import ogbench  # noqa: F401 - registers its environments
    except ImportError as error:
        raise Refused(f"{name} is a task of OGBench's: pip install -e '.[ogbench]'") from error
    words = name.split("-")
    at = words.index("singletask")
    environment = "-".join([*words[: at - 1], *words[at:]])
    if at < 2 or environment not in gymnasium.registry:
        known = sorted(key for key in gymnasium.registry if "-singletask-" in key)
        near = difflib.get_close_matches(environment, known, 1) or known[:1]
        at = near[0].index("-singletask")
        raise Refused(
            f"unknown task {name!r}: did you mean {near[0][:at]}-navigate{near[0][at:]} (or -play, -explore)?"
        )
    data = "-".join([*words[:at], words[-1]])
    return Task(
        name,
        "ogbench",
        environment,
        horizon=gymnasium.registry[environment].max_episode_steps,
        datasets=MappingProxyType({"ogbench": data}),
        default_dataset=f"ogbench:{data}",
    )


def _import(name: str, module: str) -> None:
    """Import the module of a task `module:id`, also from the working directory."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # a script's own folder is there by itself, the folder it is started from is not
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever somebody's module raises: a script may even end the program
        raise Refused(
            f"task {name!r}: {placed(error)}; before the colon stands a module that can be imported from {here} or "
            "PYTHONPATH"
        ) from error


def _limited(name: str, limit: object, remedy: str) -> int:
    """A time limit, which there must be: else an episode may never end."""
    # To Gymnasium, -1 is none; others write 0, infinity or the largest integer.
    if not isinstance(limit, numbers.Real) or not 1 <= limit < LONGEST or limit != int(limit):
        told = "" if limit is None else f" (max_episode_steps={limit!r})"
        raise Refused(f"task {name!r} has no time limit{told}, so that an episode may never end: {remedy}")
    return int(limit)


def _gym(name: str, identifier: str) -> Task:
    """An installed Gymnasium environment, which must end its episodes some time."""
    limit = gymnasium.registry[identifier].max_episode_steps
    return Task(name, "gym", name, horizon=_limited(name, limit, "register it with max_episode_steps"))


_given: dict[str, Task] = {}
"""Name -> task, of the functions that were given in this process."""


def given(function: Callable[[], gymnasium.Env]) -> Task:
    """The task of an environment that `function` makes; `find` knows it from now on by its name. Raises Refused."""
    name = name_of(function)
    try:
        environment = function()
    except (Exception, SystemExit) as error:  # whatever somebody's function raises
        raise Refused(f"{name} cannot be made: {placed(error)}") from error
    if not isinstance(environment, gymnasium.Env):
        raise Refused(f"{name} returned {type(environment).__name__}, not a gymnasium.Env")
    limit = time_limit(environment)
    environment.close()
    horizon = _limited(name, limit, "wrap it in gymnasium.wrappers.TimeLimit")
    _given[name] = Task(name, "gym", name, horizon=horizon, maker=function)
    return _given[name]


def _function(name: str) -> Task:
    """The task of a function: one that was given in this process, or one of a module, `module:name()`."""
    if name in _given:
        return _given[name]
    module, _, attribute = name.removesuffix(ENDING).rpartition(":")
    if not module:
        raise Refused(
            f"task {name!r} was made by a function of a Python session: go on there, with resume(folder, ..., env=...)"
        )
    _import(name, module)
    function = getattr(sys.modules[module], attribute, None)
    if not callable(function) or name_of(function) != name:
        raise Refused(f"task {name!r}: {module} was imported and has no function {attribute}")
    return given(function)


def names() -> list[str]:
    """The names in the table."""
    return list(_TASKS)


def family(name: str) -> str:
    """The family of the task of that name, without importing a module that the name begins with."""
    return "gym" if ":" in name or name.endswith(ENDING) else find(name).family


def find(name: str) -> Task:
    """The task of that name: the table's, else the installed Gymnasium environment of that id.

    `module:id` imports the module first, which registers the environment; `module:name()` calls a function of it.
    """
    if name in _TASKS:
        return _TASKS[name]
    if name.endswith(ENDING):
        return _function(name)
    module, colon, identifier = name.partition(":")
    if colon:
        _import(name, module)
        if identifier in gymnasium.registry:
            return _gym(name, identifier)
        near = difflib.get_close_matches(identifier, gymnasium.registry, 1, cutoff=0.6)
        hint = f"did you mean {' or '.join(f'{module}:{known}' for known in near)}?"
        raise Refused(
            f"task {name!r}: {module} was imported and registers no {identifier!r} with Gymnasium; "
            + (hint if near else "gymnasium.register(id, entry_point=..., max_episode_steps=...) does")
        )
    if "-singletask-" in name:
        return _ogbench(name)
    if name in gymnasium.registry:
        return _gym(name, name)
    table = {known.lower(): known for known in _TASKS}
    installed = {known.lower(): known for known in gymnasium.registry}
    near = [table[known] for known in difflib.get_close_matches(name.lower(), table, cutoff=0.7)]
    near = near or [known for known in _TASKS if known.startswith(name.lower())][:5]
    near = near or [installed[known] for known in difflib.get_close_matches(name.lower(), installed, cutoff=0.7)]
    kinds = ", ".join(f"{kind}-*" for kind in dict.fromkeys(known.split("-")[0] for known in _TASKS))
    remedy = f"did you mean {' or '.join(near)}?" if near else f"tasks are {kinds} and any installed Gymnasium id"
    raise Refused(f"unknown task {name!r}: {remedy}")
