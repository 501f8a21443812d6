"""benchmarks/check.py: quiet where nothing has changed, loud where something has."""

import itertools
import json
import shutil

import numpy as np
import pytest
from test_sweep import fake, learnt_from, unscored

from benchmarks import check, report
from benchmarks.reporting import results
from benchmarks.studies import alarm
from common.errors import Refused

TASKS = ("hopper-medium", "walker2d-medium")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recorded report of two variants on two tasks, written once."""
    folder = tmp_path_factory.mktemp("recorded")
    for task in TASKS:
        fake(folder / "old" / task / "a", task, [50, 52, 54, 49, 55, 51, 50, 53])
        fake(folder / "old" / task / "b", task, [30] * 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "FOLDER", folder / "results")
        report.main(report.Report((folder / "old",), "recorded"))
    return folder


@pytest.fixture
def folder(recorded, tmp_path, monkeypatch):
    """The recorded report, to add to."""
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    return tmp_path


def new(folder, **scores) -> check.Check:
    """Runs of the variants with these scores on the second task, as recorded on the first."""
    fake(folder / "new" / TASKS[0] / "a", TASKS[0], [51, 53, 50])
    fake(folder / "new" / TASKS[0] / "b", TASKS[0], [30, 30, 30])
    for variant, values in scores.items():
        fake(folder / "new" / TASKS[1] / variant, TASKS[1], values)
    return check.Check((folder / "new",), "recorded")


def test_quiet_where_nothing_has_changed(folder, capsys):
    assert check.main(new(folder, a=[47, 56, 50], b=[30, 31, 29])) == 0
    said = capsys.readouterr().out
    assert "4 compared, none worse" in said
    assert said.count("as recorded") == 5
    assert "missing" not in said


def test_loud_where_something_is_worse(folder, capsys):
    assert check.main(new(folder, a=[35, 36, 34], b=[36, 37, 36])) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "worse than recorded: a on walker2d-medium" in said
    assert "better" in said
    assert "0.0061" in said  # 1 of the 165 ways to deal 3 of 11


def test_loud_where_only_all_together_are_worse(folder, capsys):
    """Every variant has a bad seed, each another one."""
    for k in range(3):
        fake(folder / "three" / f"v{k}", "hopper-medium", [9, 10] * 5)
        fake(folder / "again" / f"v{k}", "hopper-medium", [0 if seed == k else 9.5 for seed in range(3)])
    report.main(report.Report((folder / "three",), "three"))
    capsys.readouterr()
    assert check.main(check.Check((folder / "again",), "three")) == 1
    said = capsys.readouterr().out
    assert said.count("as recorded") == 3
    assert "worse than recorded: all together\n" in said


def test_loud_where_something_is_missing(folder, capsys):
    for variant, scores in (("a", [47, 56, 50]), ("b", [30, 31, 29])):
        fake(folder / "part" / TASKS[1] / variant, TASKS[1], scores)
    asked = check.Check((folder / "part",), "recorded")
    # A task by itself may be checked.
    assert check.main(asked) == 0
    said = capsys.readouterr().out
    assert f"not checked: {TASKS[0]}\n" in said
    assert "missing" not in said
    # Not if it is among the jobs of a sweep, of which none has finished.
    jobs = [{"task": task, "variant": variant, "folder": f"{task}/{variant}"} for task in TASKS for variant in "ab"]
    (folder / "part" / "suite.json").write_text(json.dumps({"jobs": jobs}))
    assert check.main(asked) == 1
    assert f"missing: a on {TASKS[0]}, b on {TASKS[0]}\n" in capsys.readouterr().out
    # Nor a variant on a task that another has finished.
    (folder / "part" / "suite.json").unlink()
    (folder / "part" / TASKS[1] / "b" / "summary.json").unlink()
    assert check.main(asked) == 1
    said = capsys.readouterr().out
    assert f"missing: b on {TASKS[1]}\n" in said
    assert "worse" not in said


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
    assert said.count("other data") == 2
    with pytest.raises(Refused, match="nonsense"):
        check.main(check.Check((folder / "new",), "nonsense"))


def test_every_variant_is_held_against_its_own_data(folder, capsys):
    scores = {"a": [50, 52, 54, 49, 55, 51, 50, 53], "b": [30, 31] * 4, "c": [20, 21] * 4}
    for variant, mine in scores.items():
        for path, seeds in ((folder / "several", mine), (folder / "again", mine[:3])):
            fake(path / variant, TASKS[0], seeds)
            # One has data of its own, one none at all.
            learnt_from(path / variant, {"a": {"fingerprint": "f"}, "b": {"fingerprint": "own"}}.get(variant))
    report.main(report.Report((folder / "several",), "several"))
    about = json.loads((folder / "results" / "several.json").read_text())
    assert {whose: card["fingerprint"] for whose, card in about["datasets"].items()} == {
        f"{TASKS[0]}, a": "f", f"{TASKS[0]}, b": "own",
    }  # fmt: skip
    capsys.readouterr()
    assert check.main(check.Check((folder / "again",), "several")) == 0
    said = capsys.readouterr().out
    assert "3 compared" in said
    assert "other data" not in said
    learnt_from(folder / "again" / "b", {"fingerprint": "f"})
    assert check.main(check.Check((folder / "again",), "several")) == 0
    said = capsys.readouterr().out
    assert "2 compared" in said
    assert said.count("other data") == 1


def test_returns_are_compared_where_a_task_has_no_score(folder, capsys):
    for path, scores in ((folder / "returns", [5, 6, 5, 6, 5, 6, 5, 6]), (folder / "again", [1, 2, 1])):
        fake(path / "a", "own:Own-v0", scores)
        unscored(path / "a")
    report.main(report.Report((folder / "returns",), "returns"))
    capsys.readouterr()
    assert check.main(check.Check((folder / "again",), "returns")) == 1
    said = capsys.readouterr().out
    assert "worse than recorded: a on own:Own-v0" in said
    assert "55.0" in said  # ten times the score, in fake()


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


def test_the_units_of_a_task_do_not_count():
    recorded = np.array([3.0, 4.0, 5.0, 4.0])
    fallen, risen = (recorded, np.array([1.0, 2.0, 3.0])), (recorded, np.array([4.0, 5.0, 5.0]))
    both = check.chance([fallen, risen])
    assert check.chance([fallen]) < both < check.chance([risen])
    for factor in (1000, 0.001):
        assert check.chance([fallen, (factor * risen[0], factor * risen[1])]) == both


def test_a_fault_is_planted_in_a_copy(tmp_path):
    right, wrong = alarm.FAULTS["mask ignored"]
    files = alarm.planted(tmp_path, right, wrong)
    bootstrapping = (
        "awac bcq bear brac combo cql discrete_bcq edac fisher_brc iql mopo rebrac redq_adaptive_bc rlpd td3_bc"
    )
    assert files == [f"{name}.py" for name in bootstrapping.split()]
    assert right not in (tmp_path / "algorithms" / "iql.py").read_text()
    assert right in (alarm.ROOT / "algorithms" / "iql.py").read_text()
    with pytest.raises(Refused, match="cannot be planted"):
        alarm.planted(tmp_path, "no such text", "")
