"""The table of tasks: names, scores, reward transforms, horizons."""

import csv
import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from common import scores, tasks
from common.errors import Refused

REFERENCE_SCORES = Path(__file__).parents[2] / "shared/reference/scores/d4rl_reference_scores.csv"


def test_table_is_complete():
    expected = {f"pointmaze-{maze}" for maze in ("umaze", "medium", "large")}
    mazes = ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    expected |= {f"antmaze-{maze}" for maze in mazes}
    hands, variants = ("pen", "door", "hammer", "relocate"), ("binary", "human", "cloned", "expert")
    expected |= {f"{hand}-{variant}" for hand in hands for variant in variants}
    bodies, qualities = (
        ("hopper", "halfcheetah", "walker2d"),
        ("random", "medium", "medium-replay", "medium-expert", "expert"),
    )
    expected |= {f"{body}-{quality}" for body in bodies for quality in qualities}
    expected |= {"cartpole-mixed", "acrobot-mixed"}
    assert set(tasks.names()) == expected


@pytest.mark.parametrize("name", tasks.names())
def test_every_entry_is_consistent(name):
    task = tasks.find(name)
    spec = gymnasium.registry[task.environment]
    assert task.name == name
    # The pen's 100 steps are D4RL's and RLPD's; everything else plays the environment's own limit.
    assert task.horizon == (100 if name.startswith("pen-") else spec.max_episode_steps)
    if task.default_dataset is not None:
        kind, _, source = task.default_dataset.partition(":")
        assert task.datasets[kind] == source


def test_gymnasium_ids_are_tasks_without_prior_data_or_score():
    task = tasks.find("Hopper-v5")
    assert (task.family, task.environment, task.horizon) == ("gym", "Hopper-v5", 1000)
    assert task.default_dataset is None
    assert not task.datasets
    assert np.isnan(task.score(1000.0, False))
    assert np.isnan(task.score(np.ones(3), np.zeros(3))).all()


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("pointmaze-larg", "pointmaze-large"),
        ("antmaze-large-divers", "antmaze-large-diverse"),
        ("Door-Binary", "door-binary"),
        ("hopper", "hopper-medium"),
        ("Hoper-v5", "Hopper-v5"),
        ("nonsense", "pointmaze-*"),
    ],
)
def test_unknown_task_is_refused_with_near_matches_in_one_line(wrong, near):
    with pytest.raises(Refused) as refused:
        tasks.find(wrong)
    assert wrong in str(refused.value)
    assert near in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_environment_whose_episodes_may_never_end_is_refused():
    gymnasium.register("Endless-v0", entry_point="nowhere:Endless")
    try:
        with pytest.raises(Refused, match=r"'Endless-v0' has no time limit.*max_episode_steps"):
            tasks.find("Endless-v0")
    finally:
        del gymnasium.registry["Endless-v0"]


def test_a_module_before_the_colon_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_robot_arm.py").write_text(
        "import gymnasium\ngymnasium.register('Arm-v0', entry_point='my_robot_arm:Arm', max_episode_steps=7)\n"
    )
    (tmp_path / "my_broken_arm.py").write_text("raise TypeError('no arm\\nat all')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert tasks.find("my_robot_arm:Arm-v0").horizon == 7
    del gymnasium.registry["Arm-v0"]
    for name, reason in (("my_broken_arm:Arm-v0", "no arm"), (":Arm-v0", "Empty module name"), (".arm:Arm-v0", "")):
        with pytest.raises(Refused, match="PYTHONPATH") as refused:
            tasks.find(name)
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_module_that_is_a_script_does_not_end_the_program(tmp_path, monkeypatch):
    (tmp_path / "my_script.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "my_assertion.py").write_text("x = 1\nassert x == 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, reason in (("my_script", "SystemExit: 0"), ("my_assertion", "AssertionError (")):
        with pytest.raises(Refused, match="PYTHONPATH") as refused:
            tasks.find(f"{name}:Arm-v0")
        assert reason in str(refused.value)
        assert f"{name}.py:2)" in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "told"), [("RobotLeg", "did you mean my_leg:RobotLeg-v0"), ("x", "gymnasium.register(id,")]
)
def test_a_module_without_the_environment_is_refused_by_what_it_registers(tmp_path, monkeypatch, asked, told):
    register = "import gymnasium\ngymnasium.register('RobotLeg-v0', entry_point='my_leg:Leg', max_episode_steps=7)\n"
    (tmp_path / "my_leg.py").write_text(register)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(Refused, match="my_leg was imported and registers no") as refused:
        tasks.find(f"my_leg:{asked}")
    assert told in str(refused.value)
    del gymnasium.registry["RobotLeg-v0"]
    del sys.modules["my_leg"]


@pytest.mark.parametrize(
    ("name", "family"), [("nowhere:Arm-v0", "gym"), ("Hopper-v5", "gym"), ("hopper-medium", "locomotion")]
)
def test_a_family_is_known_without_a_module(name, family):
    assert tasks.family(name) == family


def test_goal_tasks_score_the_share_of_successes_not_the_return():
    """An agent that rests at the goal collects reward again and again: its return is not its success rate."""
    for name in ("pointmaze-large", "antmaze-umaze"):
        score = tasks.find(name).score(np.array([250.0, 1.0, 0.0]), np.array([True, True, False]))
        np.testing.assert_array_equal(score, [100.0, 100.0, 0.0])
        assert tasks.find(name).score(250.0, 0.25) == 25.0


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("pointmaze-umaze", True),
        ("antmaze-large-play", True),
        ("door-binary", True),
        ("pen-cloned", True),
        ("hopper-medium", False),
        ("cartpole-mixed", False),
        ("Pendulum-v1", False),
    ],
)
def test_locomotion_and_gymnasium_ids_have_no_notion_of_success(name, known):
    assert tasks.find(name).knows_success is known


@pytest.mark.parametrize(("name", "horizon"), [("door-binary", 200), ("pen-binary", 100)])
def test_binary_adroit_scores_the_share_of_solved_steps(name, horizon):
    task = tasks.find(name)
    assert task.score(-float(horizon), False) == 0.0
    assert task.score(-0.25 * horizon, True) == 75.0
    assert task.score(0.0, True) == 100.0


def test_normalised_score_is_d4rls():
    hopper = tasks.find("hopper-medium-replay")
    assert hopper.score(-20.272305, False) == pytest.approx(0.0)
    assert hopper.score(3234.3, False) == pytest.approx(100.0)
    np.testing.assert_allclose(hopper.score(np.array([1607.0138475, 3234.3]), np.zeros(2)), [50.0, 100.0])
    # The door demonstrations' mean return, raw and normalised.
    assert tasks.find("door-human").score(794.0, False) == pytest.approx(28.96, abs=0.01)


@pytest.mark.parametrize("name", ["cartpole", "acrobot"])
def test_classic_control_is_scored_between_random_actions_and_the_recipes_policy(name):
    told = json.loads((Path(__file__).parents[1] / "benchmarks/results/classic_policies.json").read_text())["returns"]
    task = tasks.find(f"{name}-mixed")
    assert task.reference == (told[name]["random"], told[name]["greedy"])
    assert task.score(told[name]["random"], False) == 0
    assert task.score(told[name]["greedy"], False) == 100


def test_the_table_of_reference_scores():
    table = scores.table()
    assert len(table) == 147
    assert all(expert > random for random, expert in table.values())
    assert scores.reference("hopper-medium-v2") == (-20.272305, 3234.3)
    assert scores.normalised("hopper-medium-v2", -20.272305) == 0
    np.testing.assert_allclose(scores.normalised("antmaze-umaze-v2", [0.0, 0.25, 1.0]), [0, 25, 100])
    with pytest.raises(Refused, match="no data set 'hopper-medium-v9'"):
        scores.reference("hopper-medium-v9")


def test_frozen_references_equal_d4rls_table():
    if not REFERENCE_SCORES.exists():
        pytest.skip("D4RL's table of reference scores is not on this machine")
    with REFERENCE_SCORES.open() as file:
        published = {
            row["dataset"]: (float(row["ref_min_score"]), float(row["ref_max_score"])) for row in csv.DictReader(file)
        }
    assert scores.table() == published


@pytest.mark.parametrize(
    ("name", "scale", "shift"),
    [
        ("pointmaze-umaze", 1, -1),
        ("antmaze-large-play", 1, -1),
        ("door-binary", 1, 0),
        ("pen-expert", 1, 0),
        ("walker2d-medium", 1, 0),
        ("Hopper-v5", 1, 0),
    ],
)
def test_reward_transform(name, scale, shift):
    task = tasks.find(name)
    assert (task.reward_scale, task.reward_shift) == (scale, shift)
