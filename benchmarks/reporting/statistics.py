"""What a handful of seeds says: aggregates, their intervals, performance profiles, probability of improvement.

The definitions of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021,
and the figures of their rliable (tests/test_statistics.py). Scores are given per task, [seeds] each. Tasks count alike,
also where they have not equally many; only the interquartile mean has no meaning then. An interval is the percentile
bootstrap at 95 %, seeds drawn anew within each task (stratified).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import trim_mean

RESAMPLES = 10_000
Statistic = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Of scores per task, [..., n] each, to [...]."""


def mean(strata: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over tasks of the mean of each."""
    return np.mean([scores.mean(axis=-1) for scores in strata], axis=0)


def interquartile_mean(strata: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the middle half of all scores together, of tasks with equally many (`balanced`)."""
    return trim_mean(np.concatenate(strata, axis=-1), 0.25, axis=-1)


def balanced(strata: Sequence[np.ndarray]) -> bool:
    """Whether every task has as many scores."""
    return len({scores.shape[-1] for scores in strata}) == 1


def optimality_gap(strata: Sequence[np.ndarray], goal: float = 100.0) -> np.ndarray:
    """By how much the scores fall short of `goal` on average; to exceed it counts for nothing."""
    return goal - mean([np.minimum(scores, goal) for scores in strata])


def resampled(strata: Sequence[np.ndarray], seed: int, resamples: int = RESAMPLES) -> list[np.ndarray]:
    """Each stratum [n] drawn anew with replacement, [resamples, n]."""
    rng = np.random.default_rng(seed)
    return [stratum[rng.integers(0, len(stratum), (resamples, len(stratum)))] for stratum in strata]


def interval(strata: Sequence[np.ndarray], statistic: Statistic, seed: int = 0) -> np.ndarray:
    """[2]: the 95 % interval of a statistic."""
    return np.percentile(statistic(resampled(strata, seed)), [2.5, 97.5])


def profile(strata: Sequence[np.ndarray], thresholds: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The share of the scores above each threshold, [k], and its 95 % intervals, [2, k]."""

    def above(scores: Sequence[np.ndarray], threshold: float) -> np.ndarray:
        return mean([task > threshold for task in scores])

    drawn = resampled(strata, seed, 2000)
    bands = [np.percentile(above(drawn, threshold), [2.5, 97.5]) for threshold in thresholds]
    return np.array([above(strata, threshold) for threshold in thresholds]), np.transpose(bands)


def improvement(
    strata: Sequence[np.ndarray], others: Sequence[np.ndarray], seed: int = 0, resamples: int = 2000
) -> tuple[float, np.ndarray]:
    """The probability that a run beats one of the others on the same task, and its 95 % interval [2].

    Averaged over tasks; a tie counts half. `strata` and `others` are the tasks in the same order.
    """

    def probability(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """[..., n] and [..., k] to [...]."""
        return ((np.sign(mine[..., :, None] - theirs[..., None, :]) + 1) / 2).mean(axis=(-2, -1))

    drawn, against = resampled(strata, seed, resamples), resampled(others, seed + 1, resamples)
    value = np.mean([probability(a, b) for a, b in zip(strata, others, strict=True)])
    spread = np.mean([probability(a, b) for a, b in zip(drawn, against, strict=True)], axis=0)
    return float(value), np.percentile(spread, [2.5, 97.5])
