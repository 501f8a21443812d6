"""benchmarks/check.py: quiet where nothing has changed, loud where something has."""

import itertools

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
        fake(tmp_path / "old" / task / "a", task, [50, 52, 54, 49, 55, 51, 50, 53])
        fake(tmp_path / "old" / task / "b", task, [30] * 8)
    report.main(report.Report((tmp_path / "old",), "recorded"))
    return tmp_path


def new(folder, **scores) -> check.Check:
    """Runs of the variants with these scores on the second task, as recorded on the first."""
    fake(folder / "new" / TASKS[0] / "a", TASKS[0], [51, 53, 50])
    for variant, values in scores.items():
        fake(folder / "new" / TASKS[1] / variant, TASKS[1], values)
    return check.Check((folder / "new",), "recorded")


def test_quiet_where_nothing_has_changed(folder, capsys):
    assert check.main(new(folder, a=[47, 56, 50], b=[30, 31, 29])) == 0
    said = capsys.readouterr().out
    assert "3 compared, none worse" in said
    assert said.count("as recorded") == 4


def test_loud_where_something_is_worse(folder, capsys):
    assert check.main(new(folder, a=[35, 36, 34], b=[36, 37, 36])) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "worse than recorded: a on walker2d-medium" in said
    assert "better" in said
    assert "0.0061" in said  # 1 of the 165 ways to deal 3 of 11


def test_few_seeds_say_nothing(folder, capsys):
    for task in TASKS:
        fake(folder / "new" / task / "a", task, [5, 6])  # in 1 of 45 deals; 0.05 / 3 is less
    with pytest.raises(Refused, match="nothing to compare"):
        check.main(check.Check((folder / "new",), "recorded"))
    assert capsys.readouterr().out.count("too few seeds") == 3


def test_small_losses_of_several_variants_add_up(folder, capsys):
    scores = {"a": [50, 49, 52], "b": [29, 30, 30]}  # none of them rare
    for task in TASKS:
        for variant, values in scores.items():
            fake(folder / "new" / task / variant, task, values)
    assert check.main(check.Check((folder / "new",), "recorded")) == 0
    # A seed that is the worst of all for every variant is one bad seed, not four.
    again = [(np.arange(10.0), np.array([-1.0, 5.0, 5.0]))] * 4
    assert check.chance(again) == check.chance(again[:1])
    # Seeds that are each worst for another variant are together rarer than any by itself.
    apart = [(np.full(10, 9.0) + np.arange(10) % 2, np.where(np.arange(3) == k, 0.0, 9.5)) for k in range(3)]
    assert check.chance(apart) < 0.01 < min(check.chance([pair]) for pair in apart)


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


@pytest.mark.parametrize("shape", ["normal", "all or nothing"])
def test_false_alarms_are_as_rare_as_said(shape):
    """Scores from one and the same distribution, of ten recorded seeds and three new ones; and of two tasks."""
    rng = np.random.default_rng(0)

    def draw(count):
        return 100.0 * (rng.random(count) < 0.8) if shape == "all or nothing" else 50 + 7 * rng.normal(size=count)

    single = np.array([check.chance([(draw(10), draw(3))]) for _ in range(1000)])
    assert (single <= 0.05).mean() < 0.065
    assert (single <= 0.005).mean() < 0.012
    both = np.array([check.chance([(draw(3), draw(3)), (draw(10), draw(3))]) for _ in range(100)])
    assert (both <= 0.05).mean() <= 0.1
    # Seeds that are hard for both tasks alike.
    hard = [(draw(10), draw(3)) for _ in range(500)]
    alike = np.array([check.chance([(old, new), (old + 0.1 * draw(10), new + 0.1 * draw(3))]) for old, new in hard])
    assert (alike <= 0.05).mean() < 0.075
    if shape == "normal":
        assert (single <= 0.05).mean() > 0.035


def test_the_chance_is_the_share_of_deals_that_are_as_low():
    recorded, fresh = np.array([3.0, 4.0, 5.0]), np.array([1.0, 4.0])
    deals = list(itertools.combinations([3, 4, 5, 1, 4], 2))
    assert check.chance([(recorded, fresh)]) == sum(sum(deal) <= 5 for deal in deals) / len(deals)
    assert check.chance([(np.full(4, 100.0), np.full(3, 100.0))]) == 1.0
    # Over two tasks of as many seeds, which are dealt together: both at their lowest, in 1 of 10 deals.
    low = np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0])
    assert check.chance([low, (100 * low[0], 100 * low[1])]) == 0.1
    # Of as many seeds in one task and more in the other: in 1 of 10 times 1 of 15 deals, drawn at random.
    more = np.array([3.0, 4.0, 5.0, 6.0]), np.array([1.0, 2.0])
    assert check.chance([low, more]) == pytest.approx(1 / 150, abs=0.003)


def test_a_fault_is_planted_in_a_copy(tmp_path):
    right, wrong = alarm.FAULTS["mask ignored"]
    files = alarm.planted(tmp_path, right, wrong)
    assert files == ["edac.py", "iql.py", "redq_adaptive_bc.py", "rlpd.py", "td3_bc.py"]  # all that bootstrap
    assert right not in (tmp_path / "algorithms" / "iql.py").read_text()
    assert right in (alarm.ROOT / "algorithms" / "iql.py").read_text()
    with pytest.raises(Refused, match="cannot be planted"):
        alarm.planted(tmp_path, "no such text", "")
