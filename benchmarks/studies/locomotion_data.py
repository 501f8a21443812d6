"""What the locomotion recipes hold: for each, its time to make, its size, and the returns of those who collected it.

    python -m benchmarks.studies.locomotion_data [--tasks hopper-medium ...] [--size 200000]

Results go to benchmarks/results/locomotion_recipes.{csv,json}. Scores are on D4RL's scale (0: random, 100: its expert).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import tyro
from rich.console import Console

from benchmarks.reporting.results import publish
from common import datasets, recipes, tasks
from common.datasets import cards
from common.errors import Refused, exiting
from common.terminal import making

RECIPES = tuple(name for name in recipes.names() if tasks.find(name).family == "locomotion")


@dataclass(frozen=True)
class LocomotionData:
    """What is looked at."""

    tasks: tuple[str, ...] = RECIPES
    """Recipes to describe."""
    size: int | None = None
    """Transitions of each, instead of the recipe's own number."""


def describe(name: str, size: int | None, console: Console) -> dict:
    """A row about a recipe's data; whole episodes count, not those cut because the set was complete."""
    task = tasks.find(name)
    start = time.perf_counter()
    with making(console) as progress:
        identifier = recipes.make(name, size, progress=progress)
    seconds = time.perf_counter() - start
    data = datasets.load(task, f"minari:{identifier}")
    card = cards.card(data, task)
    starts = data.starts
    lengths = np.diff(np.append(starts, len(data)))
    whole = data.terminated[starts + lengths - 1] | (lengths == task.horizon)
    returns = np.add.reduceat(data.reward.astype(np.float64), starts)[whole]
    quartiles = np.quantile(returns, (0.25, 0.5, 0.75))
    return {
        "recipe": name,
        "seconds_to_make": round(seconds, 1),  # about 0: it was there already
        "transitions": len(data),
        "episodes": len(starts),
        "median_episode_length": float(np.median(lengths)),
        "return_mean": float(returns.mean()),
        "return_quartile_1": float(quartiles[0]),
        "return_median": float(quartiles[1]),
        "return_quartile_3": float(quartiles[2]),
        "score_mean": float(task.score(returns.mean(), 0.0)),
        "score_best": float(task.score(returns.max(), 0.0)),
        "fingerprint": card["fingerprint"],
    }


def main(options: LocomotionData) -> None:
    """Make, describe, publish."""
    unknown = [name for name in options.tasks if name not in RECIPES]
    if unknown or not options.tasks:
        raise Refused(f"--tasks {' '.join(unknown[:1])}: there are {', '.join(RECIPES)}")
    console = Console()
    rows = []
    for name in options.tasks:
        rows.append(describe(name, options.size, console))
        console.print("  ".join(f"{k} {v}" for k, v in rows[-1].items() if k != "fingerprint"), highlight=False)
    publish("locomotion_recipes", rows, "benchmarks.studies.locomotion_data")


if __name__ == "__main__":
    exiting("locomotion_data", lambda: main(tyro.cli(LocomotionData, description=__doc__)))
