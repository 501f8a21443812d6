"""Rollouts and decoding are counted in steps of all runs, beside a peer's."""

import csv
import dataclasses

import numpy as np
import pytest

from algorithms import mopo
from benchmarks.measuring import timed
from benchmarks.reporting import results
from benchmarks.studies import unrolling
from common.errors import Refused


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(timed, "ROWS", 200)
    for name, values in {
        "mopo": {"hidden": (8,), "model_hidden": (8,), "model_weight_decay": (0.0, 0.0), "members": 2, "elites": 1,
                 "rollout_batch": 10, "rollout_length": 2},
        "decision_transformer": {"embedding": 8, "layers": 1, "context": 3},
    }.items():  # fmt: skip
        monkeypatch.setitem(timed.OURS, name, (*timed.OURS[name][:2], values))
    monkeypatch.setitem(unrolling.STEPS, "rollouts", 20)
    monkeypatch.setitem(unrolling.STEPS, "decoding", 4)


def test_what_is_timed_is_a_time_of_imagining_and_episodes_of_all_runs(small):
    imagined = unrolling.rollouts(2)()
    assert imagined.rows.reward.shape == (2, 10 * 2 * mopo.Config().retained)
    unrolling.decoding(2, 3)()


def test_a_ratio_is_our_steps_per_second_over_theirs(small, tmp_path, monkeypatch):
    """Every timing of ours takes six seconds, and a peer half a second per step."""
    monkeypatch.setattr(unrolling, "seconds", lambda call: 6.0)
    (tmp_path / "python").write_text("#!/bin/sh\necho 1\nwhile read line; do echo 0.5; done\n")
    (tmp_path / "python").chmod(0o755)
    asked = unrolling.Unrolling(runs=(1, 2), episodes=3, rounds=2, name="test", jax_corl=tmp_path)
    unrolling.main(dataclasses.replace(asked, peer_python=str(tmp_path / "python")))
    with (tmp_path / "unrolling_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["part"], row["whose"], row["runs"], row["times_peer"]) for row in rows]
    assert found[:2] == [("rollouts", "ours", "1", ""), ("rollouts", "ours", "2", "")]
    assert [(part, whose, runs) for part, whose, runs, _ in found[2:]] == [
        ("decoding", "jax_corl", "1"), ("decoding", "ours", "1"), ("decoding", "ours", "2"),
    ]  # fmt: skip
    speeds = [float(row["steps_per_second"]) for row in rows]
    np.testing.assert_allclose(speeds, [20 / 6, 2 * 20 / 6, 2, 4 * 3 / 6, 2 * 4 * 3 / 6])
    np.testing.assert_allclose([float(row["times_peer"]) for row in rows[3:]], [1, 2])


def test_nothing_to_measure_is_refused():
    with pytest.raises(Refused, match="at least one of each"):
        unrolling.main(unrolling.Unrolling(runs=()))
