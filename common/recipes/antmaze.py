"""AntMaze's data, by D4RL's recipe.

A controller that walks an ant in a commanded direction (ant.py) follows waypoints to a goal, with Gaussian noise of 0.2
on every action. `umaze`: from the task's start to its goal's cell; `play`: from anywhere to goals picked by hand,
D4RL's; `diverse`: from anywhere to anywhere. An ant that has fallen on its back lies there until the time limit. The
goal pursued is not recorded: observations have 29 numbers, and rewards are those of one goal, the mean of those that
the task draws. Fu et al., 2020, and D4RL's scripts/generation/generate_ant_maze_datasets.py, relabel_antmaze_rewards.py
and d4rl/locomotion/maze_env.py, with these departures:

- An episode ends where the ant arrives, within 0.5 m of the goal it pursues. D4RL's go on until the time limit. But
  TensorFlow Datasets counts 10,154 ends of episodes in antmaze-umaze-v2, which are rewards and some thousand time
  limits, so that no hundredth of its million transitions is at the goal: its ants do not stay there, as ours would.
- D4RL's sampler takes the cells marked as goals, of which the U has one, before any others; for `diverse` the paper's
  text is followed instead.
- Random starts are up to 1 m around the centre of any cell but the goal's; D4RL's lie up to 1 m beyond the centre, in
  cells not marked as goals.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator

import numpy as np

from common import environments, tasks
from common.environments import Environment
from common.recipes import mazes
from common.recipes.ant import Controller
from common.recipes.episodes import Episode, first, workers

_NOISE = 0.2
"""Standard deviation of the Gaussian noise on the ant's actions, before clipping."""
_LOOK_EVERY = 5
"""Steps of the ant between waypoints."""
ARRIVAL = 0.5
"""m from the goal pursued: there a walk ends."""
_GOALS = {
    "umaze": ((3, 1),),
    "medium-play": ((2, 6), (5, 1), (6, 5)),
    "large-play": ((1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9)),
}
"""Recipe -> the cells marked as goals in D4RL's maps, whose rows run along +y; elsewhere all are goals."""

PARAMETERS = {
    "policy": "goal-reaching ant controller along waypoints",
    "noise": _NOISE,
    "look_every": _LOOK_EVERY,
    "arrival": ARRIVAL,
}


def generate(environment: Environment, size: int, seed: int) -> Iterator[Episode]:
    """Episodes of walking ants, `size` transitions in all; rewards are `environment`'s."""
    with workers(size) as stream:
        walks = stream(walk, environment.task.name, seed)
        yield from first((_rewarded(environment, *walked) for walked in walks), size)


def _rewarded(environment: Environment, observations: np.ndarray, actions: np.ndarray) -> Episode:
    return Episode(observations, actions, environment.reached(observations[:-1], observations[1:]).astype(np.float64))


@functools.cache
def environment_of(name: str) -> Environment:
    """The environment of an AntMaze task, one for each process."""
    return environments.make(tasks.find(name))


def walk(name: str, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One episode of an AntMaze recipe: observations float32 [T + 1, 29] and actions float32 [T, 8]."""
    rng = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
    environment = environment_of(name)
    maze = environment.raw.unwrapped.maze
    free = mazes.free_cells(maze.maze_map)
    variant = name.removeprefix("antmaze-")
    # The simulation's rows run along -y: tasks.py gives it D4RL's map from its last row on.
    goals = [(maze.map_length - 1 - row, column) for row, column in _GOALS.get(variant, ())] or free
    target = goals[rng.integers(len(goals))]
    start = None
    if variant != "umaze":
        start = target
        while start == target:
            start = free[rng.integers(len(free))]
    goal = maze.cell_rowcol_to_xy(np.array(target)) + environments.beyond_centre(rng)
    return follow(environment, start, goal, rng, _NOISE)


def follow(
    environment: Environment,
    start: mazes.Cell | None,
    goal: np.ndarray,
    rng: np.random.Generator,
    noise: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Walk an ant to a goal [2] of the simulation, from near the centre of a cell or from the task's start (None).

    The walk ends at the goal or at the time limit.
    """
    simulation = environment.raw.unwrapped
    simulation.position_noise_range = 0.0 if start is None else 0.25
    options = None if start is None else {"reset_cell": np.array(start)}
    observation = environment.reset(int(rng.integers(2**31)), options)
    place = observation[:2] + environment.origin
    waypoints, controller = mazes.Waypoints(simulation.maze, goal), _controller()
    observations, actions, arrived = [observation], [], False
    while not arrived and len(actions) < environment.horizon:
        if len(actions) % _LOOK_EVERY == 0:
            waypoint = waypoints(place)
        action = controller(observation[None, 2:], (waypoint - place)[None])[0]
        action = (action + rng.normal(0.0, noise, len(action))).clip(-1, 1).astype(np.float32)
        observation = environment.step(action).next_observation
        observations.append(observation)
        actions.append(action)
        place = observation[:2] + environment.origin
        arrived = float(np.linalg.norm(place - goal)) <= ARRIVAL
    return np.array(observations), np.array(actions)


class Guide:
    """The ant's controller along waypoints as an expert, without noise: to the goal of the episode, which an
    observation does not show."""

    def __init__(self) -> None:
        self.waypoints: tuple[tuple, mazes.Waypoints] | None = None
        """Of the present episode: its maze and goal, and the way there."""

    def __call__(self, environment: Environment, observation: np.ndarray) -> np.ndarray:
        """The action float32 [8] at an observation [29] of the environment's present episode."""
        maze, goal = environment.raw.unwrapped.maze, environment.goal
        if self.waypoints is None or self.waypoints[0] != (maze, *goal.tolist()):
            self.waypoints = (maze, *goal.tolist()), mazes.Waypoints(maze, goal)
        place = observation[:2] + environment.origin
        return _controller()(observation[None, 2:], (self.waypoints[1](place) - place)[None])[0].astype(np.float32)


@functools.cache
def _controller() -> Controller:
    return Controller()
