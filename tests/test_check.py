"""benchmarks/check.py: quiet where nothing has changed, loud where something has."""

import numpy as np
import pytest
from test_sweep import fake

from benchmarks import alarm, check, report, results
from common.errors import Refused

TASKS = ("hopper-medium", "walker2d-medium")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recorded report of two variants on two tasks."""
    for module in (results, report, check):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "results")
    for task in TASKS:
        fake(tmp_path / "old" / task / "a", task, [50, 52, 54, 49, 55])
        fake(tmp_path / "old" / task / "b", task, [30, 30, 30, 30, 30])
    report.main(report.Report((tmp_path / "old",), "recorded"))
    return tmp_path


def new(folder, **scores) -> check.Check:
    """Runs of the variants with these scores on the second task, as recorded on the first."""
    fake(folder / "new" / TASKS[0] / "a", TASKS[0], [51, 53])
    for variant, values in scores.items():
        fake(folder / "new" / TASKS[1] / variant, TASKS[1], values)
    return check.Check((folder / "new",), "recorded")


def test_quiet_where_nothing_has_changed(folder, capsys):
    assert check.main(new(folder, a=[47, 56, 50], b=[30, 31, 29])) == 0
    said = capsys.readouterr().out
    assert "3 compared, none worse" in said
    assert said.count("as recorded") == 3


def test_loud_where_something_is_worse(folder, capsys):
    assert check.main(new(folder, a=[35, 36, 34], b=[36, 37, 36])) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "worse than recorded: a on walker2d-medium" in said
    assert "better" in said


def test_what_cannot_be_compared_is_said(folder, capsys):
    asked = new(folder, c=[1, 2])
    fake(folder / "new" / "hopper-expert" / "a", "hopper-expert", [1])
    for path in (folder / "new").rglob("config.json"):
        if TASKS[0] in str(path):
            path.write_text(path.read_text().replace('"fingerprint": "f"', '"fingerprint": "g"'))
    with pytest.raises(Refused, match="nothing to compare"):
        check.main(asked)
    said = capsys.readouterr().out
    assert said.count("not recorded") == 2
    assert said.count("other data") == 1
    with pytest.raises(Refused, match="nonsense"):
        check.main(check.Check((folder / "new",), "nonsense"))


def test_false_alarms_are_as_rare_as_said():
    """Scores from one and the same normal distribution, of five recorded seeds and three new ones."""
    rng = np.random.default_rng(0)
    old, again = 50 + 7 * rng.normal(size=(4000, 5)), 50 + 7 * rng.normal(size=(4000, 3))
    bounds = np.array([check.prediction(scores, 3, 0.05, 0.0) for scores in old])
    outside = (again.mean(1) < bounds[:, 0]) | (again.mean(1) > bounds[:, 1])
    assert 0.035 < outside.mean() < 0.065


def test_a_fault_is_planted_in_a_copy(tmp_path):
    right, wrong = alarm.FAULTS["mask ignored"]
    files = alarm.planted(tmp_path, right, wrong)
    assert files == ["edac.py", "iql.py", "redq_adaptive_bc.py", "rlpd.py", "td3_bc.py"]  # all that bootstrap
    assert right not in (tmp_path / "algorithms" / "iql.py").read_text()
    assert right in (alarm.ROOT / "algorithms" / "iql.py").read_text()
    with pytest.raises(Refused, match="cannot be planted"):
        alarm.planted(tmp_path, "no such text", "")
