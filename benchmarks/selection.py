"""What an algorithm is worth to someone who must choose among its policies by trying them: selection by a bandit.

    python -m benchmarks.selection RUNS ... [--policies 8] [--most 200] [--name NAME]

A table of final scores supposes that the best hyperparameters are known. Here all policies that an algorithm has ended
with on a task (its variants, points of grids, and seeds) are candidates; `--policies` of them are drawn, and every
trial episode goes to the one whose upper confidence bound is highest,

    mean + sqrt(2 ln(trials so far) / its trials)        each of them once first, scores from 0 to 1 (UCB1)

After every trial the policy of the highest mean is the choice, and its true score counts, the mean of all its episodes.
The result is that score against the number of trial episodes, over many draws (Jackson et al., "A Clean Slate for
Offline Reinforcement Learning", 2025). A trial draws one of the policy's final evaluation episodes, so that runs need
`--eval-episodes` of some tens. The table is printed; with `--name`, rows and curves go to
benchmarks/results/NAME.{csv,json,png}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.reporting.figures import png, style
from benchmarks.reporting.finished import Finished, find
from benchmarks.reporting.results import file, publish, write
from common.errors import Refused, exiting


@dataclass(frozen=True)
class Selection:
    """What is chosen among, and how."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with runs."""
    policies: int = 8
    """Candidates of each draw, or all if there are fewer."""
    most: int = 200
    """Trial episodes."""
    draws: int = 1000
    """Draws of candidates and trials."""
    name: str | None = None
    """Of the files in benchmarks/results; none are written without it."""

    def shown(self) -> list[int]:
        """The numbers of trials that the table shows."""
        return [trials for trials in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if trials <= self.most]


def bandit(episodes: np.ndarray, trials: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which policy each trial goes to and which is the choice after it, [draws, trials] both.

    `episodes` are scores from 0 to 1, [draws, policies, episodes]. Of equal policies any is taken. Source: Auer,
    Cesa-Bianchi & Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", 2002 (UCB1).
    """
    draws, policies, length = episodes.shape
    counts, sums = np.zeros((draws, policies)), np.zeros((draws, policies))
    row = np.arange(draws)
    tried, chosen = (np.empty((draws, trials), int) for _ in range(2))

    def highest(values: np.ndarray) -> np.ndarray:
        return np.where(values == values.max(axis=1, keepdims=True), rng.random(values.shape), -1.0).argmax(axis=1)

    for trial in range(trials):
        times = np.maximum(counts, 1)
        bound = np.where(counts > 0, sums / times + np.sqrt(2 * np.log(max(trial, 1)) / times), np.inf)
        tried[:, trial] = now = highest(bound)
        counts[row, now] += 1
        sums[row, now] += episodes[row, now, rng.integers(length, size=draws)]
        chosen[:, trial] = highest(np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf))
    return tried, chosen


def chosen_scores(episodes: np.ndarray, policies: int, trials: int, draws: int, seed: int = 0) -> np.ndarray:
    """True scores [draws, trials] of the choice after each trial, from scores in percent [policies, episodes]."""
    rng = np.random.default_rng(seed)
    candidates = rng.random((draws, len(episodes))).argsort(axis=1)[:, :policies]
    _, chosen = bandit(episodes[candidates] / 100, trials, rng)
    return episodes.mean(axis=1)[np.take_along_axis(candidates, chosen, axis=1)]


def policies_of(runs: Sequence[Finished]) -> dict[tuple[str, str], np.ndarray]:
    """Scores of the final evaluation episodes [policies, episodes] by task and algorithm. Refused if there are none."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for run in runs:
        if run.headline != "score":
            raise Refused(f"{run.task} has no score, which trials must have to be weighed against each other")
        for final in run.summary["final"]:
            if "episode_scores" not in final:
                raise Refused(f"{run.variant} on {run.task} has kept no scores of single episodes: train it anew")
            found.setdefault((run.task, run.config["algorithm"]), []).append(final["episode_scores"])
    for (task, algorithm), mine in found.items():
        if len({len(scores) for scores in mine}) > 1:
            raise Refused(f"{algorithm} on {task}: runs of different --eval-episodes cannot be candidates together")
    return {key: np.array(mine, float) for key, mine in found.items()}


def main(asked: Selection) -> None:
    """Print the table; write what is published."""
    for name in ("policies", "most", "draws"):
        if getattr(asked, name) < 1:
            raise Refused(f"--{name} must be at least 1, not {getattr(asked, name)}")
    found = policies_of(find(asked.runs))
    curves = {key: chosen_scores(mine, asked.policies, asked.most, asked.draws) for key, mine in found.items()}
    rows: list[dict[str, Any]] = []
    for (task, algorithm), scores in curves.items():
        mine = found[task, algorithm]
        about = {"task": task, "algorithm": algorithm, "policies": len(mine)}
        about |= {"mean_policy": mine.mean(), "best_policy": mine.mean(axis=1).max()}
        for trials in asked.shown():
            low, high = np.quantile(scores[:, trials - 1], (0.025, 0.975))
            after = {"trials": trials, "score": scores[:, trials - 1].mean(), "low": low, "high": high}
            rows.append(about | after)
    table = Table(title=f"score of the policy chosen among {asked.policies}, after so many trial episodes")
    for column in ("task", "algorithm", "policies", "mean", "best", *map(str, asked.shown())):
        table.add_column(column)
    for key, mine in found.items():
        cells = (mine.mean(), mine.mean(axis=1).max(), *(curves[key][:, t - 1].mean() for t in asked.shown()))
        table.add_row(*key, str(len(mine)), *(f"{cell:.1f}" for cell in cells))
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    if asked.name is not None:
        picture = png(draw(curves))
        publish(asked.name, rows, "benchmarks.selection", candidates=asked.policies, draws=asked.draws)
        write(file(asked.name, ".png"), picture)


def draw(curves: dict[tuple[str, str], np.ndarray]) -> Figure:
    """The chosen policy's score against trial episodes, a panel per task; the band holds 95 % of the draws."""
    tasks, algorithms = (list(dict.fromkeys(key[part] for key in curves)) for part in (0, 1))
    figure = Figure(figsize=(4.5 * len(tasks), 3.6), layout="constrained")
    for index, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), index + 1)
        for (where, algorithm), scores in curves.items():
            if where == task:
                look = style(algorithms.index(algorithm)) | {"markevery": 0.2}
                trials = np.arange(1, scores.shape[1] + 1)
                axes.plot(trials, scores.mean(axis=0), label=algorithm, **look)
                low, high = np.quantile(scores, (0.025, 0.975), axis=0)
                axes.fill_between(trials, low, high, color=look["color"], alpha=0.12, linewidth=0)
        axes.set(xscale="log", xlabel="trial episodes", ylabel="score of the policy chosen, %", title=task)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    exiting("selection", lambda: main(tyro.cli(Selection, description=__doc__)))
