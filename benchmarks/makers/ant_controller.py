"""Trains the goal-reaching ant behind AntMaze's recipes, from nothing, on a CPU.

    python -m benchmarks.makers.ant_controller [--minutes 15] [--seed 0]

D4RL's ants walk towards waypoints, half of them on an open plane, half between the walls of AntMaze Large, all in one
batched simulation; soft actor-critic (the agent of algorithms/rlpd.py without prior data) learns beside them from
three-step returns, every transition shown in one of its eight symmetries, drawn anew each time. Written are
common/recipes/ant_controller.npz and the learning curve in benchmarks/results/ant_controller.{csv,json}.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro
from gymnasium_robotics.envs.maze import maps
from gymnasium_robotics.envs.maze.maze_v4 import Maze
from mujoco.batch import Batch as Simulations
from rich.console import Console

from algorithms.rlpd import RLPD, Config
from benchmarks.makers import parallel_sac
from benchmarks.makers.parallel_sac import Learner, Pace
from benchmarks.reporting.results import publish
from common import environments
from common.errors import Refused, exiting
from common.recipes import ant, mazes
from common.recipes.behaviour import Policy
from common.replay import Batch

MODEL = Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"
STEP = 0.1
"""s per action: five steps of the simulation of D4RL's ant."""
LEARNER = Config(
    discount=1.0,  # n-step transitions carry their own, in the mask
    ensemble=2, target_subset=2, layer_norm=True, utd=2, batch_size=256, offline_ratio=0.0, initial_temperature=0.1,
)  # fmt: skip


@dataclass(frozen=True)
class Training(Pace):
    """How long and with what."""

    minutes: float = 15.0
    """Wall-clock time to train for."""
    seed: int = 0
    """Of everything random."""
    noise: float = 0.25
    """Standard deviation of the noise on what the motors get: the recipes will add 0.2, which must not throw an ant."""
    weights: Path = ant.WEIGHTS
    """Where the controller is written."""
    simulations: int = 64
    discount: float = 0.98
    steps_ahead: int = 3
    random_steps: int = 20_000
    updates: int = 2
    capacity: int = 1_000_000


class Herd:
    """Ants walking from waypoint to waypoint, in one batched simulation."""

    horizon = 600
    patience = 200
    """Steps after which a waypoint that has not been reached is given up."""

    def __init__(self, count: int, seed: int, layout: list | None = None):
        path = str(MODEL)
        self.maze = None
        if layout is not None:
            self.maze, path = Maze.make_maze(path, layout, 4, 0.5)
            self.free = mazes.free_cells(layout)
        model = mujoco.MjModel.from_xml_path(path)
        environments.as_d4rl(model)
        self.simulations = Simulations(model, nsim=count)
        if self.maze is not None:
            Path(path).unlink()
        names = ("qpos", "qvel", "ctrl", "qacc_warmstart")
        self.position, self.velocity, self.motors, self.warm = (self.simulations.bind(name) for name in names)
        self.rng = np.random.default_rng(seed)
        self.count = count
        self.waypoint, self.radius = np.zeros((count, 2)), np.full(count, 0.45)
        self.age, self.pursued = np.zeros(count, int), np.zeros(count, int)
        self.before: list[mazes.Cell | None] = [None] * count
        self.reset(np.arange(count))
        self.age[:] = self.rng.integers(0, self.horizon, count)
        self.observation = self.observe()

    def observe(self) -> np.ndarray:
        """What every ant sees, [ants, 28]."""
        state = np.nan_to_num(np.concatenate([self.position[:, 2:], self.velocity], axis=1))
        return ant.observe(state, self.waypoint - np.nan_to_num(self.position[:, :2]))

    def reset(self, which: np.ndarray) -> None:
        """Put these ants somewhere new: half of them as AntMaze does, half in any posture."""
        rng, size = self.rng, len(which)
        ordinary = rng.random(size) < 0.5
        position = np.zeros((size, 15))
        if self.maze is not None:
            cells = [self.free[rng.integers(len(self.free))] for _ in which]
            centres = np.array([self.maze.cell_rowcol_to_xy(np.array(cell)) for cell in cells]).reshape(-1, 2)
            position[:, :2] = centres + rng.uniform(-1, 1, (size, 2))
        position[:, 2] = rng.uniform(0.55, 0.85, size)
        heading = rng.uniform(-np.pi, np.pi, size)
        position[:, 3], position[:, 6] = np.cos(heading / 2), np.sin(heading / 2)
        position[:, 7::2] = np.where(ordinary[:, None], 0, rng.uniform(-0.5, 0.5, (size, 4)))
        ankle = np.where(ordinary[:, None], 1.0, rng.uniform(0.52, 1.2, (size, 4)))
        position[:, 8::2] = np.array([1, -1, -1, 1]) * ankle
        self.position[which] = position
        self.velocity[which] = rng.normal(size=(size, 14)) * np.where(ordinary, 0.1, 0.5)[:, None]
        self.warm[which] = 0
        self.age[which] = 0
        self.choose(which)

    def choose(self, which: np.ndarray) -> None:
        """New waypoints for these ants: ahead more often than behind, or the middle of a neighbouring cell."""
        rng = self.rng
        self.pursued[which] = 0
        if self.maze is not None:
            for index in which:
                self.waypoint[index] = self.neighbouring(int(index))
                self.radius[index] = 0.45 if rng.random() < 0.3 else rng.uniform(0.45, 1.6)
            return
        velocity = self.velocity[which, :2]
        before = self.waypoint[which] - self.position[which, :2]
        moving = np.linalg.norm(velocity, axis=1) > 0.5
        course = np.where(moving, np.arctan2(velocity[:, 1], velocity[:, 0]), np.arctan2(before[:, 1], before[:, 0]))
        anywhere = rng.random(len(which)) < 0.3
        angle = np.where(anywhere, rng.uniform(-np.pi, np.pi, len(which)), course + rng.uniform(-1.8, 1.8, len(which)))
        offset = rng.uniform(1.5, 8.0, (len(which), 1)) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self.waypoint[which] = self.position[which, :2] + offset

    def neighbouring(self, index: int) -> np.ndarray:
        """A place in a free cell next to the ant's, seldom the one it came from."""
        here = tuple(int(k) for k in self.maze.cell_xy_to_rowcol(self.position[index, :2]))
        free = set(self.free)
        if here not in free:
            here = self.free[self.rng.integers(len(self.free))]
        open_cells = [cell for cell in mazes.neighbours(here) if cell in free]
        if len(open_cells) > 1 and self.before[index] in open_cells and self.rng.random() < 0.85:
            open_cells.remove(self.before[index])
        self.before[index] = here
        cell = open_cells[self.rng.integers(len(open_cells))]
        return self.maze.cell_rowcol_to_xy(np.array(cell)) + self.rng.uniform(-1, 1, 2)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Walk: next observation, reward, terminated, truncated, progress in m/s. `observation` is what follows."""
        place = self.position[:, :2].copy()
        self.motors[:] = ant.to_motors(action)
        self.simulations.step(nstep=5)
        left = np.linalg.norm(self.waypoint - self.position[:, :2], axis=1)
        progress = (np.linalg.norm(self.waypoint - place, axis=1) - left) / STEP
        broken = ~(np.isfinite(self.position).all(1) & np.isfinite(self.velocity).all(1))
        x, y = self.position[:, 4], self.position[:, 5]
        upright, height = 1 - 2 * (x * x + y * y), self.position[:, 2]
        terminated = broken | (upright < 0.2) | (height < 0.22) | (height > 1.3)
        reward = np.minimum(progress, 3.0) + 0.5 - 0.1 * np.square(action).sum(1) - 0.5 * (1 - upright)
        self.age += 1
        self.pursued += 1
        truncated = (self.age >= self.horizon) & ~terminated
        done = (left < self.radius) | (self.pursued > self.patience)
        self.choose(np.flatnonzero(done & ~terminated))
        shoved = np.flatnonzero(self.rng.random(self.count) < 0.002)  # as a wall or a slip would
        self.velocity[shoved, :3] += self.rng.normal(size=(len(shoved), 3)) * [1.0, 1.0, 0.5]
        self.velocity[shoved, 3:6] += self.rng.normal(size=(len(shoved), 3))
        following = self.observe()
        self.reset(np.flatnonzero(terminated | truncated))
        self.observation = self.observe()
        reward = np.where(broken, 0.0, reward).astype(np.float32)
        return following, reward, terminated, truncated, np.where(broken, 0.0, progress)


def learn(agent: RLPD, batches: Batch, key: jax.Array) -> tuple[RLPD, dict[str, jax.Array]]:
    """Updates on minibatches [updates, utd, batch, ...], every row under a random symmetry."""
    draw, update = jax.random.split(key)
    symmetry = jax.random.randint(draw, batches.reward.shape, 0, ant.SYMMETRIES)

    def shown(values: jax.Array, index: np.ndarray, sign: np.ndarray) -> jax.Array:
        return jnp.take_along_axis(values, jnp.asarray(index)[symmetry], -1) * jnp.asarray(sign, jnp.float32)[symmetry]

    batches = batches.replace(
        observation=shown(batches.observation, ant.OBSERVATION_INDEX, ant.OBSERVATION_SIGN),
        action=shown(batches.action, ant.ACTION_INDEX, ant.ACTION_SIGN),
        next_observation=shown(batches.next_observation, ant.OBSERVATION_INDEX, ant.OBSERVATION_SIGN),
    )
    return parallel_sac.update(agent, batches, update)


def save(policy: Policy, path: Path) -> None:
    """Write what `ant.Controller` reads: the layers up to the mean."""
    layers = [*policy.hidden, policy.mean]
    kernels = {f"kernel{k}": kernel for k, (kernel, _) in enumerate(layers)}
    biases = {f"bias{k}": bias for k, (_, bias) in enumerate(layers)}
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez(file, **kernels, **biases)
    temporary.replace(path)


def main(training: Training) -> None:
    """Train, say how it goes every half minute, write the controller and its curve."""
    if training.minutes < 1 or training.simulations < 2:
        raise Refused("--minutes must be at least 1, for a curve, and --simulations at least 2, for either ground")
    console = Console()
    rng = np.random.default_rng(training.seed)
    walled = training.simulations // 2
    herds = (
        Herd(training.simulations - walled, training.seed + 1),
        Herd(walled, training.seed + 2, maps.LARGE_MAZE),
    )
    learner = Learner(LEARNER, training, training.seed, ant.OBSERVATION_SIZE, ant.ACTION_SIZE, learn)
    rows: list[dict[str, Any]] = []
    start = shown = time.perf_counter()
    window = np.zeros(4)  # steps, progress, falls on the plane, falls between walls
    while time.perf_counter() - start < 60 * training.minutes:
        observation = np.concatenate([herd.observation for herd in herds])
        action = learner.act(observation)
        shaken = (action + rng.normal(0, training.noise, action.shape)).clip(-1, 1)
        split = np.split(shaken, [training.simulations - walled])
        parts = [herd.step(part) for herd, part in zip(herds, split, strict=True)]
        following, reward, terminated, truncated, progress = (np.concatenate(p) for p in zip(*parts, strict=True))
        learner.observe(observation, action, reward, terminated, truncated, following)
        window += [training.simulations, progress.sum(), parts[0][2].sum(), parts[1][2].sum()]
        if time.perf_counter() - shown > 30:
            shown = time.perf_counter()
            half = window[0] / 2 / 1000
            row = {
                "seconds": round(shown - start),
                "steps": learner.steps,
                "critic_updates": learner.updates,
                "metres_per_second": window[1] / window[0],
                "falls_per_1000_steps_open": window[2] / half,
                "falls_per_1000_steps_walls": window[3] / half,
                "q": float(learner.metrics.get("q", np.nan)),
                "temperature": float(learner.metrics.get("temperature", np.nan)),
            }
            rows.append(row)
            console.print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
            window[:] = 0
            save(learner.policy, training.weights)
    save(learner.policy, training.weights)
    publish("ant_controller", rows, "benchmarks.makers.ant_controller", minutes=training.minutes)


if __name__ == "__main__":
    exiting("ant_controller", lambda: main(tyro.cli(Training, description=__doc__)))
