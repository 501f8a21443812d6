"""Aggregates and intervals against exact distributions, and against what rliable computes from the same scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reporting import statistics

RLIABLE = json.loads((Path(__file__).parent / "rliable.json").read_text())


def strata(name: str) -> list[np.ndarray]:
    """Per task [runs]."""
    return list(np.array(RLIABLE["scores"][name]).T)


def test_the_interval_is_a_stratified_bootstrap():
    """Against the exact distribution: two seeds per task, so that each task's mean takes three values."""
    low, high = statistics.interval([np.array([0.0, 2.0]), np.array([10.0, 14.0])], statistics.mean)
    # The least mean, (0 + 10) / 2 = 5, has probability 1/16, so has the largest, 8: both lie beyond 2.5 %.
    assert (low, high) == (5.0, 8.0)
    normal = np.random.default_rng(0).normal(size=200)
    low, high = statistics.interval([normal], statistics.mean)
    expected = 1.96 * normal.std() / np.sqrt(200)
    np.testing.assert_allclose([low, high], normal.mean() + expected * np.array([-1, 1]), atol=0.02)


@pytest.mark.parametrize("name", ["X", "Y"])
def test_aggregates_and_intervals_equal_rliables(name):
    gap = lambda scores: statistics.optimality_gap(scores, 60.0)  # noqa: E731
    for index, statistic in enumerate((statistics.mean, statistics.interquartile_mean, gap)):
        point = statistic(strata(name))
        np.testing.assert_allclose(point, RLIABLE["mean_iqm_gap"][name][index], rtol=1e-12)
        theirs = [bound[index] for bound in RLIABLE["mean_iqm_gap_intervals"][name]]
        np.testing.assert_allclose(statistics.interval(strata(name), statistic), theirs, atol=0.25)  # both are drawn


@pytest.mark.parametrize("name", ["X", "Y"])
def test_profiles_equal_rliables(name):
    shares, bands = statistics.profile(strata(name), np.array(RLIABLE["taus"]))
    np.testing.assert_allclose(shares, RLIABLE["profiles"][name], rtol=1e-12)
    np.testing.assert_allclose(bands, RLIABLE["profile_bands"][name], atol=1.01 / len(np.concatenate(strata(name))))


def test_the_probability_of_improvement_equals_rliables():
    value, bounds = statistics.improvement(strata("X"), strata("Y"))
    np.testing.assert_allclose(value, RLIABLE["probability_of_improvement"], rtol=1e-12)
    np.testing.assert_allclose(bounds, RLIABLE["probability_of_improvement_interval"], atol=0.02)
    tied, _ = statistics.improvement([np.array([1.0, 2.0])], [np.array([2.0, 2.0, 0.0])])
    np.testing.assert_allclose(tied, (0 + 0 + 1 + 0.5 + 0.5 + 1) / 6)


def test_tasks_of_unequally_many_scores_count_alike():
    uneven = [np.array([1.0, 1.0, 1.0]), np.array([5.0])]
    shares, bands = statistics.profile(uneven, np.array([0.0, 3.0]))
    assert shares.tolist() == [1.0, 0.5]
    assert bands.tolist() == [[1.0, 0.5]] * 2  # nothing varies
    assert statistics.mean(uneven) == 3
    assert statistics.optimality_gap(uneven, 4.0) == (3 + 0) / 2
    assert statistics.interval(uneven, statistics.mean).tolist() == [3, 3]
    assert not statistics.balanced(uneven)
    assert statistics.balanced(strata("X"))
