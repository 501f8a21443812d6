"""What AntMaze's recipes are made of: its two ants, how well ours walks, what its data contain, what they cover.

    python -m benchmarks.studies.antmaze_data [--episodes 50] [--tasks antmaze-large-diverse ...] [--size N]

Under random actions in the U: how often D4RL's ant, the recipes', and Gymnasium's, of Minari's form, turn over.
From the task's start to a goal, along waypoints, with action noise 0 and 0.2: episodes that arrive within the task's
limit, and how many steps they take. Then, for each recipe, made if it is not there: its size, the share of source
episodes that pass the goal of its labels, and how many rows reach it, beside the ends in D4RL's own set. Results go to
benchmarks/results/antmaze_{ants,walks,recipes}.{csv,json} and antmaze_coverage.png.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import minari
import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console

from benchmarks.reporting.figures import png
from benchmarks.reporting.results import file, publish, write
from common import datasets, environments, recipes, tasks
from common.datasets import cards
from common.errors import Refused, exiting
from common.machine import cores
from common.recipes import antmaze, mazes
from common.terminal import making

MAZES = ("antmaze-umaze", "antmaze-medium-play", "antmaze-large-play")
RECIPES = tuple(name for name in recipes.names() if name.startswith("antmaze"))
NOISES = (0.0, 0.2)
D4RLS_ENDS = {
    "antmaze-umaze": 10_154,
    "antmaze-umaze-diverse": 1_036,
    "antmaze-medium-play": 10_768,
    "antmaze-medium-diverse": 2_959,
    "antmaze-large-play": 13_517,
    "antmaze-large-diverse": 7_189,
}
"""Recipe -> ends of episodes in the million rows of D4RL's -v2 set, the "examples" of TensorFlow Datasets' catalogue
(d4rl_antmaze 1.1.1): rows that reach the goal, and time limits, about a thousand or more."""


@dataclass(frozen=True)
class AntMazeData:
    """What is looked at."""

    episodes: int = 50
    """Random episodes per ant, and walks from start to goal per maze and noise; none to describe the recipes only."""
    tasks: tuple[str, ...] = RECIPES
    """Recipes to describe; none to look at the walks only."""
    size: int | None = None
    """Transitions of each, instead of the recipe's own number."""


def is_overturned(observation: np.ndarray) -> bool:
    """Whether an ant lies on its back: its vertical points down."""
    x, y = observation[4:6]
    return bool(1 - 2 * (x * x + y * y) < 0)


def ants(episodes: int, console: Console) -> list[dict]:
    """What random actions do to either ant in the U."""
    rows = []
    for ant, size in (("D4RL's", 29), ("Gymnasium's", 31)):
        environment = environments.make(tasks.find("antmaze-umaze"), size)
        overturned = np.zeros((episodes, environment.horizon), bool)
        for number in range(episodes):
            environment.reset(number)
            actions = np.random.default_rng(number).uniform(-1, 1, (environment.horizon, environment.action_size))
            for step, action in enumerate(actions.astype(np.float32)):
                overturned[number, step] = is_overturned(environment.step(action).next_observation)
        environment.close()
        row = {
            "ant": ant,
            "episodes": episodes,
            "steps": environment.horizon,
            "episodes_ending_overturned": int(overturned[:, -1].sum()),
            "share_of_steps_overturned": float(overturned.mean()),
        }
        rows.append(row)
        console.print("  ".join(f"{k} {v}" for k, v in row.items()), highlight=False)
    return rows


def walk_home(name: str, noise: float, number: int) -> tuple[bool, int, bool]:
    """One walk from the task's start to a goal: whether and when it arrives, and whether it ends on its back."""
    environment = antmaze.environment_of(name)
    rng = np.random.default_rng([1, number])
    goal = environment.raw.unwrapped.maze.unique_goal_locations[0] + environments.beyond_centre(rng)
    observations, actions = antmaze.follow(environment, None, goal, rng, noise)
    arrived = np.linalg.norm(observations[-1, :2] + environment.origin - goal) <= antmaze.ARRIVAL
    return bool(arrived), len(actions), is_overturned(observations[-1])


def walks(episodes: int, console: Console) -> list[dict]:
    """Success of the walks in every maze, without and with noise."""
    rows = []
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        for name in MAZES:
            for noise in NOISES:
                futures = [pool.submit(walk_home, name, noise, number) for number in range(episodes)]
                arrived, steps, fallen = (np.array(v) for v in zip(*(f.result() for f in futures), strict=True))
                row = {
                    "maze": name.split("-")[1],
                    "noise": noise,
                    "episodes": episodes,
                    "arrived": int(arrived.sum()),
                    "median_steps": float(np.median(steps[arrived])) if arrived.any() else float("nan"),
                    "fallen": int((fallen & ~arrived).sum()),
                }
                rows.append(row)
                console.print("  ".join(f"{k} {v}" for k, v in row.items()), highlight=False)
    return rows


def describe(name: str, size: int | None, console: Console) -> tuple[dict, np.ndarray]:
    """A row about a recipe's data, and the positions they visit, [n, 2]."""
    task = tasks.find(name)
    with making(console) as progress:
        identifier = recipes.make(name, size, progress=progress)
    data = datasets.load(task, f"minari:{identifier}")
    card = cards.card(data, task)
    environment = datasets.environment_of(task, data)
    episodes = [episode.observations for episode in minari.load_dataset(identifier).iterate_episodes()]
    passing = np.mean([environment.reached(o[:-1], o[1:]).any() for o in episodes])
    row = {
        "recipe": name,
        "transitions": card["transitions"],
        "source_episodes": card["source_episodes"],
        "median_episode_length": float(np.median([len(o) - 1 for o in episodes])),
        "episodes_passing_the_goal": float(passing),
        "rows_at_the_goal": sum(int(environment.reached(o[:-1], o[1:]).sum()) for o in episodes),
        "ends_in_d4rls": D4RLS_ENDS[name],
        "fingerprint": card["fingerprint"],
    }
    environment.close()
    console.print("  ".join(f"{k} {v}" for k, v in row.items() if k != "fingerprint"), highlight=False)
    return row, np.concatenate(episodes)[:, :2]


def draw(places: dict[str, np.ndarray]) -> None:
    """Where each recipe's ants have been."""
    figure = Figure(figsize=(4.2 * len(places), 3.6), layout="constrained")
    for index, (name, positions) in enumerate(places.items()):
        axes = figure.add_subplot(1, len(places), index + 1)
        environment = environments.make(tasks.find(name))
        maze = environment.raw.unwrapped.maze
        for row in range(maze.map_length):
            for column in range(maze.map_width):
                if maze.maze_map[row][column] == mazes.WALL:
                    x, y = maze.cell_rowcol_to_xy(np.array([row, column])) - 2
                    axes.add_patch(Rectangle((x, y), 4, 4, color="0.75", linewidth=0))
        some = positions[:: max(1, len(positions) // 30_000)] + environment.origin
        axes.plot(*some.T, ",", color="C0", alpha=0.5)
        axes.plot(*(environment.data_goal + environment.origin), "*", color="black", markersize=12)
        axes.set(title=name, aspect="equal", xlabel="x, m", ylabel="y, m")
        axes.autoscale_view()
        environment.close()
    write(file("antmaze_coverage", ".png"), png(figure, dpi=120))


def main(options: AntMazeData) -> None:
    """Ants, walks, then the recipes, then the picture."""
    unknown = [name for name in options.tasks if name not in RECIPES]
    if unknown:
        raise Refused(f"--tasks {unknown[0]}: there are {', '.join(RECIPES)}")
    if options.episodes < 0:
        raise Refused(f"--episodes must be 0 or more, not {options.episodes}")
    console = Console()
    if options.episodes:
        publish("antmaze_ants", ants(options.episodes, console), "benchmarks.studies.antmaze_data")
        publish("antmaze_walks", walks(options.episodes, console), "benchmarks.studies.antmaze_data")
    described = {name: describe(name, options.size, console) for name in options.tasks}
    if described:
        publish("antmaze_recipes", [row for row, _ in described.values()], "benchmarks.studies.antmaze_data")
        draw({name: positions for name, (_, positions) in described.items()})


if __name__ == "__main__":
    exiting("antmaze_data", lambda: main(tyro.cli(AntMazeData, description=__doc__)))
