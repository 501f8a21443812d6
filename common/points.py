"""The points of a grid, each with its seeds: what became of them, best first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FEW = 12
"""So many numbers are told one by one, of more the least and the greatest."""


def of_runs(saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The Config's values and the seed of each run of a command, by its config.json."""
    grid, first, count = saved["grid"], saved["run"]["seed"], saved["run"]["num_seeds"]
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [saved["config"] | point | {"seed": first + k} for point in points for k in range(count)]


def mean(finals: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of runs with one setting: the mean of each number of what became of them."""
    return {name: float(np.mean([final[name] for final in finals])) for name in finals[0] if name != "episode_scores"}


def ranked(
    finals: Sequence[Mapping[str, Any]], labels: Sequence[str], seeds: Sequence[int], headline: str
) -> list[dict[str, Any]]:
    """The points of these runs, [runs], by the mean of their `headline`, the greatest first and nan last."""
    found = []
    for label in dict.fromkeys(labels):
        runs = [run for run, mine in enumerate(labels) if mine == label]
        own = [finals[run] for run in runs]
        found.append({
            "point": label,
            "runs": runs,
            "seeds": [seeds[run] for run in runs],
            "mean": mean(own),
            headline: [final[headline] for final in own],
        })  # fmt: skip
    return sorted(found, key=lambda point: order(point["mean"][headline]))


def order(value: float) -> float:
    """By which values are sorted, the greatest first and nan last."""
    return math.inf if math.isnan(value) else -value


def table(points: Sequence[Mapping[str, Any]], headline: str) -> list[str]:
    """One line per point, its mean and its seeds' numbers, below a head."""
    width = max(len("best first"), *(len(point["point"]) for point in points))
    lines = [f"{'best first':<{width}}  {headline:>11}  seed by seed"]
    for point in points:
        lines.append(f"{point['point']:<{width}}  {point['mean'][headline]:>11.2f}  {each(point[headline])}")
    return lines


def each(values: Sequence[float]) -> str:
    """Numbers in one line."""
    if len(values) <= FEW:
        return " ".join(f"{value:.4g}" for value in values)
    return span(values)


def span(values: Sequence[float]) -> str:
    """The least and the greatest of numbers."""
    return f"{min(values):.4g} ... {max(values):.4g}"
