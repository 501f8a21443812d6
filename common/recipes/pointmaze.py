"""PointMaze's data: the planner of D4RL's maze2d.

From a random start to a random goal along the shortest path of cells, each waypoint approached by
proportional-derivative control with noise; reaching that goal truncates the episode and the next one starts elsewhere
(D4RL's goes on from where it is). The planner's goal is not recorded: observations have 4 numbers, and rewards are
those of the task's one goal, which few episodes pass. Fu et al., 2020, and D4RL's
scripts/generation/generate_maze2d_datasets.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from common import environments
from common.environments import Environment
from common.recipes import mazes
from common.recipes.episodes import Episode, first

_GAIN = 10.0
_DAMPING = 1.0
_NOISE = 0.5
"""Standard deviation of the Gaussian noise on each action, before clipping."""
_NEAR = 0.1
"""m: how close a waypoint counts as passed."""
_OBSERVED_GOAL_SIZE = 6
"""Observation size of PointMaze with its goal, which the planner needs."""

PARAMETERS = {
    "policy": "waypoint planner with proportional-derivative control",
    "gain": _GAIN,
    "damping": _DAMPING,
    "noise": _NOISE,
    "near": _NEAR,
}


class Planner:
    """The planner as an expert: towards the task's goal, by position and velocity alone and without noise.

    It heads for the centre of the next cell on a shortest path, which is in sight from all of a cell.
    """

    def __init__(self) -> None:
        self.steps: dict[mazes.Cell, dict[mazes.Cell, int]] = {}
        """Of every goal so far, what `mazes.steps_to` says."""

    def __call__(self, environment: Environment, observation: np.ndarray) -> np.ndarray:
        """The action float32 [2] at an observation [4] or [6] of the environment's present episode."""
        maze = environment.raw.unwrapped.maze
        goal = observation[4:] if environment.goal is None else environment.goal
        goal_cell = tuple(map(int, maze.cell_xy_to_rowcol(goal)))
        if goal_cell not in self.steps:
            self.steps[goal_cell] = mazes.steps_to(maze.maze_map, goal_cell)
        steps, here = self.steps[goal_cell], tuple(map(int, maze.cell_xy_to_rowcol(observation[:2])))
        ahead = mazes.path(steps, here)[1:2] if here in steps else []
        target = maze.cell_rowcol_to_xy(np.array(ahead[0])) if ahead and ahead[0] != goal_cell else goal
        push = _GAIN * (target - observation[:2]) - _DAMPING * observation[2:4]
        return push.clip(-1, 1).astype(np.float32)


def generate(environment: Environment, size: int, seed: int) -> Iterator[Episode]:
    """Episodes of the planner towards goals anywhere, `size` transitions in all; rewards are `environment`'s."""
    planner = environments.make(environment.task, _OBSERVED_GOAL_SIZE)
    try:
        yield from first(_plans(environment, planner, size, np.random.default_rng(seed)), size)
    finally:
        planner.close()


def _plans(environment: Environment, planner: Environment, size: int, rng: np.random.Generator) -> Iterator[Episode]:
    maze = planner.raw.unwrapped.maze
    made = 0
    while True:
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
        path = np.array(observations)[:, :4]
        yield Episode(path, np.array(actions), environment.reached(path[:-1], path[1:]).astype(np.float64))
        made += len(actions)
