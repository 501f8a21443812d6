"""benchmarks/studies/returns.py: a trained run is asked for returns."""

import csv

import numpy as np
import pytest
from served import serving

from algorithms import bc, decision_transformer
from benchmarks.reporting import results
from benchmarks.studies import returns
from common import environments, recipes, tasks
from common.errors import Refused
from common.evaluation import episode_seed
from common.library import load


def test_a_run_is_asked_for_several_returns_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setitem(recipes.SIZES, "cartpole-mixed", 500)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    asked = "--env cartpole-mixed --embedding 8 --layers 1 --context 3 --batch-size 16 --offline-steps 30 --warm-up 5"
    asked = [*asked.split(), "--learning-rate", 0.01, "--eval-every", 30, "--eval-episodes", 1, "--num-seeds", 2]
    serving(decision_transformer)(*asked, "--out", tmp_path / "run")
    study = returns.Returns(tmp_path / "run", asked=(0.0, 30.0, -5000.0), episodes=2, name="test")
    returns.main(study)
    with (tmp_path / "results" / "returns_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(float(r["asked"]), r["run"]) for r in rows] == [(a, r) for a in (0, 30, -5000) for r in "01"]
    assert (tmp_path / "results" / "returns_test.png").stat().st_size > 1000
    assert len({r["return_mean"] for r in rows}) > 2
    # By hand: the file of a run's policy, asked for the same, in episodes one after the other.
    environment = environments.make(tasks.find("cartpole-mixed"))
    for row in rows[2:]:
        policy, reached = load(tmp_path / "run", int(row["run"])), []
        policy.architecture["numbers"]["asked"] = float(row["asked"]) / 100
        for number in range(2):
            policy.reset()
            observation = environment.reset(episode_seed(int(row["seed"]), 1, 0, number))
            reward, total, over = 0.0, 0.0, False
            while not over:
                taken = environment.step(policy.act(observation[None], reward=reward)[0])
                observation, reward, over = taken.next_observation, taken.reward, taken.terminated or taken.truncated
                total += reward
            reached.append(total)
        assert float(row["return_mean"]) == np.mean(reached)
    environment.close()


def test_a_run_that_is_asked_for_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    monkeypatch.setitem(recipes.SIZES, "pointmaze-umaze", 500)
    asked = "--env pointmaze-umaze --hidden 8 --batch-size 16 --offline-steps 5 --eval-every 5 --eval-episodes 1"
    serving(bc)(*asked.split(), "--out", tmp_path / "run")
    with pytest.raises(Refused, match=r"bc is asked for no return; name a run of one that has target_return"):
        returns.main(returns.Returns(tmp_path / "run"))
