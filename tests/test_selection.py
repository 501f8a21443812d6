"""benchmarks/selection.py: a bandit that tries policies, beside computations by hand."""

import csv
import json
import math

import numpy as np
import pytest
from test_sweep import fake, unscored

from benchmarks import selection
from benchmarks.reporting import results
from common.errors import Refused


def test_every_policy_is_tried_once_and_then_the_best_is_chosen():
    scores = selection.chosen_scores(np.array([[10.0] * 4, [90.0] * 4, [50.0] * 4]), policies=3, trials=4, draws=600)
    # After one trial the choice is the one tried, any of three; after two, the better of two of them.
    assert scores[:, 0].mean() == pytest.approx(50, abs=5)
    assert scores[:, 1].mean() == pytest.approx((90 + 90 + 50) / 3, abs=4)
    assert (scores[:, 2:] == 90).all()


def test_trials_go_where_the_bound_is_highest():
    """Two policies that always score 0.9 and 0.5, after two trials: by the formula, trial by trial."""
    tried, chosen = selection.bandit(np.array([[[0.9], [0.5]]]), 40, np.random.default_rng(0))
    assert sorted(tried[0, :2].tolist()) == [0, 1]
    times = [1, 1]
    for trial in range(2, 40):
        bounds = [mean + math.sqrt(2 * math.log(trial) / n) for mean, n in zip((0.9, 0.5), times, strict=True)]
        assert tried[0, trial] == bounds.index(max(bounds))
        times[tried[0, trial]] += 1
    assert 5 < times[1] < times[0]
    assert (chosen[0, 1:] == 0).all()


def test_noise_is_averaged_out_and_fewer_candidates_find_less():
    rng = np.random.default_rng(0)
    chances = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.8])
    episodes = 100.0 * (rng.random((6, 2000)) < chances[:, None])
    all_of_them = selection.chosen_scores(episodes, 6, 400, 300)
    few = selection.chosen_scores(episodes, 2, 400, 300)
    assert all_of_them[:, 5].mean() < all_of_them[:, 50].mean() < all_of_them[:, -1].mean()
    assert all_of_them[:, -1].mean() > 76
    best_of_two = np.mean([max(a, b) for a in chances for b in chances if a != b])
    assert few[:, -1].mean() == pytest.approx(100 * best_of_two, abs=4)


def with_episodes(folder, spread=0):
    for path in folder.rglob("summary.json"):
        summary = json.loads(path.read_text())
        for final in summary["final"]:
            final["episode_scores"] = [final["score"] - spread, final["score"] + spread]
        path.write_text(json.dumps(summary))


def test_what_cannot_be_chosen_among_is_refused(tmp_path):
    fake(tmp_path / "a", "hopper-medium", [10, 20])
    with_episodes(tmp_path)
    for name in ("policies", "most", "draws"):
        for number in (0, -1):
            with pytest.raises(Refused, match=f"--{name} must be at least 1, not {number}"):
                selection.main(selection.Selection((tmp_path,), **{name: number}))
    # Of runs with more episodes, a mean says more.
    fake(tmp_path / "b", "hopper-medium", [30])
    summary = tmp_path / "b" / "summary.json"
    summary.write_text(summary.read_text().replace('"score": 30', '"score": 30, "episode_scores": [30, 30, 30]'))
    with pytest.raises(Refused, match="td3_bc on hopper-medium: runs of different --eval-episodes"):
        selection.main(selection.Selection((tmp_path,)))
    unscored(tmp_path / "b")
    with pytest.raises(Refused, match="hopper-medium has no score"):
        selection.main(selection.Selection((tmp_path,)))


def test_the_table_groups_by_task_and_algorithm(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    fake(tmp_path / "runs" / "a", "hopper-medium", [10, 20])
    fake(tmp_path / "runs" / "b", "hopper-medium", [30, 80])
    fake(tmp_path / "runs" / "c", "walker2d-medium", [40])
    with pytest.raises(Refused, match="train it anew"):
        selection.main(selection.Selection((tmp_path / "runs",)))
    with_episodes(tmp_path / "runs")
    selection.main(selection.Selection((tmp_path / "runs",), policies=4, most=10, draws=50, name="chosen"))
    assert "after so many trial episodes" in " ".join(capsys.readouterr().out.split())
    with (tmp_path / "results" / "chosen.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["task"], r["policies"], r["trials"]) for r in rows][:5] == [
        ("hopper-medium", "4", "1"), ("hopper-medium", "4", "2"), ("hopper-medium", "4", "5"),
        ("hopper-medium", "4", "10"), ("walker2d-medium", "1", "1"),
    ]  # fmt: skip
    assert (float(rows[3]["score"]), float(rows[3]["best_policy"]), float(rows[3]["mean_policy"])) == (80, 80, 35)
    assert (tmp_path / "results" / "chosen.png").stat().st_size > 5000
