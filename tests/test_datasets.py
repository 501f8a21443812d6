"""Prior data: readers, the rules that turn rows into transitions, refusals, the card."""

import contextlib
import http.server
import json
import os
import shutil
import socket
import threading
import time
import zipfile
from pathlib import Path

import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer

from common import datasets, environments, recipes, tasks
from common.datasets import cards, downloads
from common.errors import Refused

DOOR_DEMONSTRATIONS = Path(__file__).parents[2] / "shared/data/door-human.hdf5"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Minari's folder for this test alone, with no host to download from."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    return tmp_path / "minari"


def hopper_rows(lengths=(4, 3), terminal=(False, True)):
    """Two hopper episodes in D4RL's layout: the first cut by the time limit, the second a fall. Row i observes i."""
    count = sum(lengths)
    ends = np.cumsum(lengths) - 1
    rows = {
        "observations": np.repeat(np.arange(count, dtype=np.float32)[:, None], 11, axis=1),
        "actions": np.linspace(-0.9, 0.9, count * 3, dtype=np.float32).reshape(count, 3),
        "rewards": np.arange(count, dtype=np.float32) / 10,
        "terminals": np.zeros(count, bool),
        "timeouts": np.zeros(count, bool),
    }
    for end, is_terminal in zip(ends, terminal, strict=True):
        rows["terminals" if is_terminal else "timeouts"][end] = True
    return rows


@pytest.fixture
def write(tmp_path):
    """Write rows as an HDF5 file of D4RL's and return its source string."""

    def write(rows, name="data.hdf5"):
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in rows.items():
                file[key] = value
        return f"d4rl:{tmp_path / name}"

    return write


def load(source, task="hopper-medium"):
    return datasets.load(tasks.find(task), source)


def refusal(source, task="hopper-medium"):
    """The one line with which a source is refused."""
    with pytest.raises(Refused) as refused:
        load(source, task)
    line = str(refused.value)
    assert line
    assert "\n" not in line
    return line


def first_numbers(array):
    return array[:, 0].astype(int).tolist()


# ----------------------------------------------------------------------------- D4RL's layout


def test_two_episodes_without_next_observations(write):
    data = load(write(hopper_rows()))
    # Row 3 was cut by the time limit and its successor is not in the file; row 6 fell and needs none.
    assert first_numbers(data.observation) == [0, 1, 2, 4, 5, 6]
    assert first_numbers(data.next_observation) == [1, 2, 3, 5, 6, 6]
    assert data.terminated.tolist() == [False, False, False, False, False, True]
    assert data.truncated.tolist() == [False, False, True, False, False, False]
    assert data.starts.tolist() == [0, 3]
    np.testing.assert_allclose(data.reward, [0.0, 0.1, 0.2, 0.4, 0.5, 0.6])
    assert data.metadata["dropped_without_successor"] == 1
    assert [array.dtype for array in (data.observation, data.action, data.reward)] == [np.float32] * 3


def test_no_transition_joins_two_episodes(write):
    """What `roll(observation, -1)` gets wrong at every episode end, by time limit and by termination."""
    for lengths, terminal in (((4, 3), (False, True)), ((4, 3), (True, False)), ((2, 5), (False, False))):
        data = load(write(hopper_rows(lengths, terminal)))
        second = lengths[0]
        before, after = data.observation[:, 0] < second, data.next_observation[:, 0] < second
        np.testing.assert_array_equal(before, after)


def test_an_episode_cut_by_a_time_limit_has_mask_one(write):
    data = load(write(hopper_rows()))
    batch = data.batch(tasks.find("hopper-medium"))
    assert batch.mask.tolist() == [1, 1, 1, 1, 1, 0]
    assert data.truncated.any()
    assert (batch.mask[data.truncated] == 1).all()


def test_stored_next_observations_keep_every_row(write):
    rows = hopper_rows()
    rows["next_observations"] = rows["observations"] + 1
    rows["next_observations"][3] = 3.5
    data = load(write(rows))
    assert first_numbers(data.next_observation) == [1, 2, 3, 3, 5, 6, 7]
    assert data.truncated.tolist() == [False, False, False, True, False, False, False]
    assert data.terminated.tolist() == [False] * 6 + [True]


def test_without_timeouts_a_jump_between_rows_ends_the_episode(write):
    rows = hopper_rows()
    del rows["timeouts"]
    rows["next_observations"] = rows["observations"] + 1
    rows["next_observations"][3] = 50.0
    data = load(write(rows))
    assert np.flatnonzero(data.truncated).tolist() == [3]
    assert data.starts.tolist() == [0, 4]


def test_without_timeouts_and_next_observations_episodes_last_until_the_time_limit(write):
    """D4RL's own rule for its oldest files, counted from the last termination."""
    count = 2310
    rows = {
        "observations": np.repeat(np.arange(count, dtype=np.float32)[:, None], 11, axis=1),
        "actions": np.zeros((count, 3), np.float32),
        "rewards": np.zeros(count, np.float32),
        "terminals": np.arange(count) == 299,
    }
    data = load(write(rows))
    missing = set(range(count)) - set(first_numbers(data.observation))
    assert missing == {1299, 2299, 2309}
    assert first_numbers(data.observation[data.terminated]) == [299]
    assert first_numbers(data.observation[data.truncated]) == [1298, 2298, 2308]


def test_a_termination_at_the_time_limit_is_a_termination(write):
    rows = hopper_rows()
    rows["timeouts"][6] = True
    data = load(write(rows))
    assert data.terminated[-1]
    assert not data.truncated[-1]


def test_other_keys_columns_and_double_precision_change_nothing(write):
    plain = load(write(hopper_rows(), "plain.hdf5"))
    rows = {
        key: value[:, None] if value.ndim == 1 else value.astype(np.float64) for key, value in hopper_rows().items()
    }
    rows["terminals"] = rows["terminals"].astype(np.float32)
    rows["infos/qpos"] = np.zeros((7, 6))
    rows["metadata/policy/fc0/weight"] = np.zeros((3, 3))
    assert load(write(rows, "other.hdf5")).fingerprint == plain.fingerprint


def test_the_fingerprint_sees_every_array(write):
    fingerprints = {load(write(hopper_rows())).fingerprint}
    for key in ("observations", "actions", "rewards"):
        rows = hopper_rows()
        rows[key].flat[1] += 1e-3
        fingerprints.add(load(write(rows)).fingerprint)
    for key in ("terminals", "timeouts"):
        rows = hopper_rows()
        rows[key][1] = True
        fingerprints.add(load(write(rows)).fingerprint)
    assert len(fingerprints) == 6


# ----------------------------------------------------------------------------- refusals


def test_bad_files_are_refused(tmp_path, write):
    assert "no such file" in refusal(f"d4rl:{tmp_path / 'absent.hdf5'}")
    (tmp_path / "text.hdf5").write_text("not HDF5 at all")
    assert "cannot be read as HDF5" in refusal(f"d4rl:{tmp_path / 'text.hdf5'}")
    write(hopper_rows())
    whole = (tmp_path / "data.hdf5").read_bytes()
    for share in (0.02, 0.5, 0.98):
        (tmp_path / "cut.hdf5").write_bytes(whole[: int(share * len(whole))])
        assert "cannot be read as HDF5" in refusal(f"d4rl:{tmp_path / 'cut.hdf5'}")


def test_missing_keys_are_named(write):
    rows = hopper_rows()
    del rows["actions"], rows["terminals"]
    line = refusal(write(rows))
    assert "no actions and terminals" in line
    assert "observations, rewards, timeouts" in line


@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(write, key, value):
    rows = hopper_rows()
    rows[key][5] = value
    assert f"{key[:-1]} values, the first in row 5" in refusal(write(rows))


def test_wrong_lengths_shapes_and_types_are_refused(write):
    for key, value, told in (
        ("actions", np.zeros((6, 3), np.float32), "6 rows of actions for 7 of observations"),
        ("rewards", np.zeros(8, np.float32), "8 rows of rewards for 7 of observations"),
        ("rewards", np.zeros((7, 2), np.float32), "rewards are float32 [7, 2]"),
        ("observations", np.zeros(7, np.float32), "observations are float32 [7]"),
        ("actions", np.array([b"x"] * 7), "actions are |S1 [7]"),
        ("actions", np.zeros((7, 0), np.float32), "actions are float32 [7, 0]"),
        ("terminals", np.full(7, 0.5, np.float32), "0 or 1"),
        ("timeouts", np.zeros(3, bool), "3 rows of timeouts for 7 of observations"),
        ("next_observations", np.zeros((7, 12), np.float32), "differ in shape"),
    ):
        assert told in refusal(write(hopper_rows() | {key: value}))
    assert "is empty" in refusal(write({key: value[:0] for key, value in hopper_rows().items()}))
    scalars = {key: np.float32(0) for key in ("observations", "actions", "rewards", "terminals")}
    assert "observations" in refusal(write(scalars))


def test_data_without_a_single_successor_are_refused(write):
    rows = hopper_rows((1, 1), (False, False))
    assert "no transition is left" in refusal(write(rows))


def test_sizes_of_another_environment_are_refused(write):
    assert "11 numbers per observation, HalfCheetah-v4 has 17" in refusal(write(hopper_rows()), "halfcheetah-medium")
    rows = hopper_rows() | {"actions": np.zeros((7, 2), np.float32)}
    assert "2 numbers per action, Hopper-v4 has 3" in refusal(write(rows))


def test_unknown_sources_are_refused():
    for source in ("csv:file.csv", "data.csv", "minari:", ":x"):
        assert "the sources are minari:ID, d4rl:NAME, d4rl:FILE.hdf5, npz:FILE.npz, lerobot:FOLDER" in refusal(source)


def test_a_recipe_says_what_it_stands_for(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    for name, size, instead in (("pointmaze-umaze", 60, None), ("hopper-random", 90, "d4rl:hopper-random-v2")):
        monkeypatch.setitem(recipes.SIZES, name, size)
        data = datasets.load(tasks.find(name))
        assert (data.source, len(data)) == (f"recipe:{name}", size)
        assert data.metadata.get("instead_of") == instead
    assert datasets.load(tasks.find("Hopper-v5")) is None


# ----------------------------------------------------------------------------- actions out of bounds


def test_actions_a_little_outside_are_clipped_and_counted(write):
    rows = hopper_rows()
    rows["actions"][0] = (1.5, -1.0, 1.0)
    rows["actions"][5, 2] = -2.0
    data = load(write(rows))
    assert data.action[0].tolist() == [1.0, -1.0, 1.0]
    assert data.action.min() == -1.0
    assert data.metadata["actions_clipped"] == 2
    assert data.metadata["actions_clipped_share"] == pytest.approx(2 / 21)
    assert data.metadata["action_largest"] == 2.0


def test_batches_keep_a_margin_for_the_density_of_tanh_policies(write):
    rows = hopper_rows()
    rows["actions"][:] = (1.5, -1.0, 0.5)
    action = load(write(rows)).batch(tasks.find("hopper-medium")).action
    assert np.isfinite(np.arctanh(action)).all()
    np.testing.assert_allclose(action, np.tile((1.0, -1.0, 0.5), (6, 1)), atol=2e-5)


def test_absurd_actions_are_refused(write):
    rows = hopper_rows()
    rows["actions"][2, 1] = -10.5
    assert "actions from -10.5 to" in refusal(write(rows))


def test_actions_are_judged_in_the_environments_own_units(write):
    """Pendulum's torque lies within 2."""
    rows = hopper_rows()
    rows["observations"] = rows["observations"][:, :3]
    for largest, fits in ((2.0, True), (19.0, True), (21.0, False)):
        rows["actions"] = np.linspace(-largest, largest, 7, dtype=np.float32)[:, None]
        if fits:
            assert load(write(rows), "Pendulum-v1").metadata["action_largest"] == pytest.approx(largest / 2)
        else:
            assert "takes -2 to 2" in refusal(write(rows), "Pendulum-v1")


# ----------------------------------------------------------------------------- goals

# Free cells of the U: along the bottom, up the right side, back along the top; the goal is its end, (-4, 4).
U_PATH = [
    (-4, -4),
    (0, -4),
    (4, -4),
    (4, 0),
    (4, 4),
    (0, 4),
    (-3.6, 4),
    (-4, 4),
    (-3.7, 4),
    (-1, 4),
    (-3.6, 4),
    (-1, 4),
]


def frame_of(width):
    """Where the U's middle has its place in data of this width: D4RL's origin is the start, 0.75 its goals' mean."""
    return np.array([4.75, 4.75]) if width == 29 else np.zeros(2)


def ant_rows(width, goal=(-4, 4)):
    """One source episode of an ant that reaches the goal, rests there, walks off and comes back."""
    count = len(U_PATH)
    observation = np.zeros((count, width), np.float32)
    observation[:, :2] = U_PATH + frame_of(width)
    if width == 31:
        observation[:, 29:] = goal
    return {
        "observations": observation,
        "actions": np.zeros((count, 8), np.float32),
        "rewards": np.full(count, 7.0, np.float32),
        "terminals": np.zeros(count, bool),
        "timeouts": np.arange(count) == count - 1,
    }


@pytest.mark.parametrize("width", [29, 31])
def test_goals_are_relabelled_and_the_episode_is_cut_there(write, width):
    """Mask from success: the data themselves have no terminals, and reward that goes on at the goal."""
    data = load(write(ant_rows(width)), "antmaze-umaze")
    # Reached after rows 5 and 9. Rows 6 to 8 and 10 start at the goal; row 11 is the last, without a successor.
    positions = np.array(U_PATH)[[0, 1, 2, 3, 4, 5, 9]] + frame_of(width)
    np.testing.assert_allclose(data.observation[:, :2], positions)
    assert data.terminated.tolist() == data.success.tolist() == [False] * 5 + [True, True]
    assert data.reward.tolist() == [0.0] * 5 + [1.0, 1.0]
    assert not data.truncated.any()
    assert data.metadata["dropped_at_goal"] == 4
    assert data.metadata["dropped_without_successor"] == 1
    batch = data.batch(tasks.find("antmaze-umaze"))
    assert batch.reward.tolist() == [-1.0] * 5 + [0.0, 0.0]
    assert batch.mask.tolist() == [1.0] * 5 + [0.0, 0.0]


def labelled(goal):
    """The rows of `ant_rows(29)` as D4RL's script labels them for a goal, given in the frame of U_PATH."""
    rows = ant_rows(29)
    reached = np.linalg.norm(np.array(U_PATH[1:]) - goal, axis=1) <= 0.5
    rows["rewards"] = np.append(reached, 0).astype(np.float32)
    rows["terminals"] = rows["rewards"] == 1
    return rows


@pytest.mark.parametrize(
    ("goal", "reaching"), [((-3.25, 4), [5, 7, 9]), ((-3.25, 4.3), [5, 9]), ((-4.4, 4), [6]), ((-4.4, 4.25), [6])]
)
def test_labels_of_a_goal_that_d4rls_antmaze_may_draw_are_kept(write, goal, reaching):
    """The ant comes, rests, leaves and comes back; the goal is not the mean of what is drawn."""
    rows = labelled(goal)
    assert np.flatnonzero(rows["rewards"]).tolist() == reaching
    data = load(write(rows), "antmaze-umaze")
    # Rows that start at that goal are dropped, and the last, without a successor.
    kept = [row for row in range(11) if row - 1 not in reaching]
    np.testing.assert_allclose(data.observation[:, :2] - frame_of(29), np.array(U_PATH)[kept], atol=1e-6)
    assert data.success.tolist() == data.terminated.tolist() == [row in reaching for row in kept]
    np.testing.assert_array_equal(data.reward, data.success)
    assert data.metadata["own_labels"] is True
    assert "(the data's own labels)" in cards.format_card(cards.card(data, tasks.find("antmaze-umaze")))


@pytest.mark.parametrize(
    "rewards",
    [
        {},
        dict.fromkeys(range(12), 1.0),
        {3: -3.0, 4: 0.5},
        {2: 1.0},
        {4: 1.0, 5: 1.0},
        {5: 1.0, 8: 0.25},
    ],
    ids=["none", "all", "dense", "elsewhere", "elsewhere too", "not 0 and 1"],
)
def test_rewards_that_are_no_labels_of_the_task_are_replaced(write, rewards):
    plain = load(write(ant_rows(29), "plain.hdf5"), "antmaze-umaze")
    rows = ant_rows(29) | {"rewards": np.zeros(12, np.float32)}
    for row, reward in rewards.items():
        rows["rewards"][row] = reward
    data = load(write(rows), "antmaze-umaze")
    assert data.fingerprint == plain.fingerprint
    assert data.metadata["own_labels"] is False
    assert "(labelled by the task's goal)" in cards.format_card(cards.card(data, tasks.find("antmaze-umaze")))


@pytest.mark.parametrize(
    ("places", "kept"),
    [
        (((-2.8, 4), (-2.8, 4)), True),  # 0.75 m to where goals end, and 0.45 m
        (((-2.7, 4), (-2.7, 4)), False),
        (((-2.9, 5.1), (-2.9, 5.1)), True),
        (((-2.85, 5.15), (-2.85, 5.15)), False),  # the corner: 0.57 m from the last goal
        (((-4.4, 4), (-3.41, 4)), True),
        (((-4.4, 4), (-3.39, 4)), False),  # two goals, as of data collected in the environment itself
    ],
)
def test_labels_are_kept_where_one_goal_may_be(write, places, kept):
    rows = ant_rows(29)
    rows["observations"][[6, 10], :2] = places + frame_of(29)
    rows["rewards"] = np.zeros(12, np.float32)
    rows["rewards"][[5, 9]] = 1
    assert load(write(rows), "antmaze-umaze").metadata["own_labels"] is kept


@pytest.mark.parametrize("successors", [False, True])
def test_an_episodes_last_label_may_be_of_the_next_one(write, successors):
    """D4RL's script labels a row by the one that follows, also where that is another episode's start."""
    start, there, away = (np.array(place) + frame_of(29) for place in ((-4, -4), (-3.5, 4), (0, 4)))
    path = [start, there, away, start, away, away, there, away, away]
    rows = {key: value[:9] for key, value in ant_rows(29).items()}
    rows["observations"][:, :2] = path
    rows["timeouts"] = np.isin(np.arange(9), [2, 5, 8])
    rows["rewards"] = np.isin(np.arange(9), [0, 5]).astype(np.float32)
    if successors:
        rows["next_observations"] = rows["observations"].copy()
        rows["next_observations"][:, :2] = [there, away, start, away, away, away, away, away, away]
    data = load(write(rows), "antmaze-umaze")
    assert data.metadata["own_labels"] is True
    assert np.flatnonzero(data.success).tolist() == np.flatnonzero(data.reward).tolist() == [0]


def test_terminals_of_d4rls_mazes_do_not_end_the_source_episode(write):
    """D4RL marks the goal as terminal while the ant walks on: the successor of that row is the next one."""
    rows = ant_rows(29)
    rows["terminals"][[5, 9]] = True
    plain = load(write(ant_rows(29), "plain.hdf5"), "antmaze-umaze")
    assert load(write(rows), "antmaze-umaze").fingerprint == plain.fingerprint


def test_success_in_goal_data_lies_in_percent_however_long_the_agent_rests(write):
    task = tasks.find("antmaze-umaze")
    card = cards.card(load(write(ant_rows(31)), task.name), task)
    assert 0 <= task.score(card["return_mean"], card["success_rate"]) <= 100
    assert card["return_quantiles"]["1"] == 1.0


def test_the_goal_is_the_one_pursued_not_the_next(write):
    """Where reaching a goal sets the next one, the new goal shows in the successor."""
    rows = ant_rows(31)
    rows["observations"][6:, 29:] = (4, 4)
    data = load(write(rows), "antmaze-umaze")
    assert first_numbers(data.observation[data.success]) == [0]  # row 5, at x = 0


def test_data_without_any_episode_ends_are_refused_where_they_are_not_d4rls(write):
    rows = ant_rows(29)
    del rows["timeouts"]
    assert "neither timeouts nor next_observations" in refusal(write(rows), "antmaze-umaze")
    rows = hopper_rows()
    del rows["timeouts"]
    assert "neither timeouts nor next_observations" in refusal(write(rows), "Hopper-v5")
    assert len(load(write(rows), "hopper-medium")) == 7


def test_another_frame_and_the_mirrored_maze_are_refused(write):
    for change in (lambda x, y: (x, y), lambda x, y: (4 - x, y + 4)):
        rows = ant_rows(29)
        rows["observations"][:, :2] = [change(*position) for position in U_PATH]
        assert "inside walls" in refusal(write(rows), "antmaze-umaze")


# ----------------------------------------------------------------------------- Adroit


def put_in_place(hand, simulation, share):
    """Move the object (or its goal) so far towards success: 0 leaves it, 1 solves the task."""
    model, data = simulation.model, simulation.data
    if hand == "door":
        data.qpos[simulation.door_hinge_addrs] = 1.5 * share
    elif hand == "hammer":
        data.qpos[26] = 0.09 * share  # the nail
    elif hand == "relocate":
        target, ball = simulation.target_obj_site_id, data.xpos[simulation.obj_body_id]
        model.site_pos[target] += share * (ball - data.site_xpos[target])
    else:
        target, pen = simulation.target_obj_body_id, data.xquat[simulation.obj_body_id]
        model.body_quat[target] = (1 - share) * model.body_quat[target] + share * pen
        model.site_pos[simulation.eps_ball_site_id] += share * (
            data.xpos[simulation.obj_body_id] - data.site_xpos[simulation.eps_ball_site_id]
        )


@pytest.mark.parametrize("hand", ["pen", "door", "hammer", "relocate"])
def test_success_is_read_from_observations_as_the_environment_reads_it(hand):
    task = tasks.find(f"{hand}-binary")
    environment = environments.make(task)
    simulation = environment.raw.unwrapped
    model = {name: getattr(simulation.model, name).copy() for name in ("site_pos", "body_quat")}
    told, seen = [], []
    rng = np.random.default_rng(0)
    for seed in range(4):
        for share in (0.0, 0.5, 0.85, 0.9, 0.95, 1.0):
            for name, value in model.items():
                getattr(simulation.model, name)[:] = value
            environment.reset(seed)
            put_in_place(hand, simulation, share)
            for _ in range(3):
                step = environment.step(rng.uniform(-1, 1, environment.action_size).astype(np.float32))
                told.append(step.success)
                seen.append(step.next_observation)
    environment.close()
    assert 0 < np.sum(told) < len(told)
    np.testing.assert_array_equal(datasets.solved(task, np.array(seen)), told)


def door_rows():
    """Three steps of a door that opens and falls shut again, and a second episode without success."""
    observation = np.zeros((7, 39), np.float32)
    observation[:, 28] = (0.0, 1.0, 1.4, 0.2, 0.0, 1.0, 1.34)
    return {
        "observations": observation,
        "actions": np.zeros((7, 28), np.float32),
        "rewards": np.arange(7, dtype=np.float32),
        "terminals": np.zeros(7, bool),
        "timeouts": np.isin(np.arange(7), (3, 6)),
    }


def test_binary_adroit_is_relabelled_and_never_terminates(write):
    data = load(write(door_rows()), "door-binary")
    assert data.success.tolist() == [False, True, False, False, False]
    assert data.reward.tolist() == [-1.0, 0.0, -1.0, -1.0, -1.0]
    assert not data.terminated.any()
    assert data.truncated.tolist() == [False, False, True, False, True]
    assert (data.batch(tasks.find("door-binary")).mask == 1).all()


def test_binary_adroit_has_mask_one_even_where_the_data_terminate(write):
    """And a row whose successor the file does not have cannot stay: its mask would let it bootstrap from itself."""
    rows = door_rows()
    rows["terminals"], rows["timeouts"] = rows["timeouts"], rows["terminals"]
    data = load(write(rows), "door-binary")
    assert len(data) == 5
    assert not data.terminated.any()


def test_dense_adroit_keeps_its_reward(write):
    data = load(write(door_rows()), "door-human")
    assert data.reward.tolist() == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert data.success.tolist() == [False, True, False, False, False]


def test_the_door_demonstrations():
    """Real data with real data's warts; the figures are those of reference/environments.md, section 6."""
    if not DOOR_DEMONSTRATIONS.exists():
        pytest.skip("the 25 human demonstrations of door opening are not on this machine")
    task = tasks.find("door-binary")
    data = load(f"d4rl:{DOOR_DEMONSTRATIONS}", task.name)
    card = cards.card(data, task)
    assert (card["rows"], card["transitions"], card["episodes"]) == (6729, 6729 - 25, 25)
    assert card["episode_length"] == {"min": 222.0, "median": 270.0, "max": 299.0}
    assert card["success_episodes"] == 7
    assert card["success_share_of_steps"] == pytest.approx(0.055, abs=5e-4)
    assert (card["actions_clipped"], round(card["actions_clipped_share"], 3)) == (10_595, 0.056)
    assert card["action_largest"] == pytest.approx(1.37, abs=0.01)
    assert (card["terminated"], card["truncated"]) == (0, 25)
    assert set(card["reward_values"]) == {"-1", "0"}


# ----------------------------------------------------------------------------- Minari


def write_minari(name, episodes, observation_space, action_size):
    """An ordinary Minari data set in this test's folder, from (observations, actions, rewards, terminated) tuples."""
    buffers = []
    for observations, actions, rewards, terminated in episodes:
        last = np.arange(len(rewards)) == len(rewards) - 1
        buffers.append(
            EpisodeBuffer(
                observations=observations,
                actions=actions,
                rewards=rewards,
                terminations=last & terminated,
                truncations=last & (not terminated),
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffers,
        observation_space=observation_space,
        action_space=Box(-1, 1, (action_size,), np.float32),
        code_permalink="test",
        author="test",
        author_email="test",
        algorithm_name="test",
        description="test",
        eval_env="Hopper-v5",
    )


@pytest.mark.filterwarnings("ignore:env_spec is None")
def test_minari_vectors():
    rows = hopper_rows()
    episodes = []
    for part, terminated in ((slice(0, 4), False), (slice(4, 7), True)):
        observation = rows["observations"][part]
        observation = np.concatenate([observation, observation[-1:] + 1])
        episodes.append((observation, rows["actions"][part], rows["rewards"][part], terminated))
    write_minari("test/hopper-v0", episodes, Box(-np.inf, np.inf, (11,), np.float64), 3)
    data = load("minari:test/hopper-v0")
    assert first_numbers(data.observation) == [0, 1, 2, 3, 4, 5, 6]
    assert first_numbers(data.next_observation) == [1, 2, 3, 4, 5, 6, 7]
    assert np.flatnonzero(data.truncated).tolist() == [3]
    assert np.flatnonzero(data.terminated).tolist() == [6]
    assert data.source == "minari:test/hopper-v0"
    assert data.metadata["dataset_id"] == "test/hopper-v0"


@pytest.mark.filterwarnings("ignore:env_spec is None")
def test_minari_and_d4rl_give_the_same_transitions(write):
    rows = hopper_rows()
    rows["next_observations"] = rows["observations"] + 1
    rows["next_observations"][3] = 3.5  # not where the next episode starts
    parts = ((slice(0, 4), False), (slice(4, 7), True))
    episodes = [
        (
            np.concatenate([rows["observations"][part], rows["next_observations"][part][-1:]]),
            rows["actions"][part],
            rows["rewards"][part],
            terminated,
        )
        for part, terminated in parts
    ]
    write_minari("test/hopper-v0", episodes, Box(-np.inf, np.inf, (11,), np.float64), 3)
    assert load("minari:test/hopper-v0").fingerprint == load(write(rows)).fingerprint


@pytest.mark.filterwarnings("ignore:env_spec is None")
def test_minari_antmaze_has_the_goal_in_its_31_numbers_and_is_relabelled():
    """Minari's AntMaze: dictionary observations, no terminations, reward 1 again and again at the goal."""
    path = np.array(U_PATH, float)
    goals = np.tile((-4.0, 4.0), (len(path), 1))
    body = np.arange(len(path) * 27, dtype=float).reshape(-1, 27)
    observations = {"achieved_goal": path, "desired_goal": goals, "observation": body}
    space = Dict({key: Box(-np.inf, np.inf, value.shape[1:], np.float64) for key, value in observations.items()})
    steps = len(path) - 1
    write_minari("test/antmaze-v0", [(observations, np.zeros((steps, 8)), np.ones(steps), False)], space, 8)
    data = load("minari:test/antmaze-v0", "antmaze-umaze")
    assert data.observation.shape[1] == 31
    np.testing.assert_allclose(data.observation[0], np.concatenate([path[0], body[0], goals[0]]))
    assert data.reward.tolist() == [0.0] * 5 + [1.0, 1.0]
    assert data.terminated.tolist() == [False] * 5 + [True, True]
    environment = datasets.environment_of(tasks.find("antmaze-umaze"), data)
    assert environment.observation_size == 31
    environment.close()


def point_episodes(goals):
    """Points that walk along the U, one to each goal: observations [T + 1, 4], and the goals [T + 1, 2]."""
    path = np.zeros((len(U_PATH), 4), np.float32)
    path[:, :2] = np.array(U_PATH) / 4
    return [(path, np.tile(np.array(goal, np.float32), (len(path), 1))) for goal in goals]


@pytest.mark.filterwarnings("ignore:env_spec is None")
def test_minari_pointmaze_has_its_own_goal_in_its_6_numbers():
    """Minari's PointMaze: dictionary observations, and each episode another goal, within 0.45 m."""
    episodes, goals = [], [(1.0, -0.1), (-1.0, 1.0)]
    for path, goal in point_episodes(goals):
        observations = {"achieved_goal": path[:, :2], "desired_goal": goal, "observation": path}
        steps = len(path) - 1
        episodes.append((observations, np.zeros((steps, 2)), np.full(steps, 7.0), False))
    space = Dict({key: Box(-np.inf, np.inf, value.shape[1:], np.float32) for key, value in observations.items()})
    write_minari("test/pointmaze-v0", episodes, space, 2)
    data = load("minari:test/pointmaze-v0", "pointmaze-umaze")
    np.testing.assert_allclose(data.observation[0], [*path[0], *goals[0]])
    # To (1, -0.1): reached after row 2 by (1, 0). To (-1, 1): after row 5 by (-0.9, 1), and again after row 9.
    first = np.flatnonzero((data.observation[:, 4:] == np.float32(goals[0])).all(axis=1))
    assert np.flatnonzero(data.success).tolist() == [2, len(first) + 5, len(data) - 1]
    np.testing.assert_array_equal(data.reward, data.success)
    np.testing.assert_array_equal(data.terminated, data.success)
    environment = datasets.environment_of(tasks.find("pointmaze-umaze"), data)
    assert environment.observation_size == 6
    assert np.ptp([environment.reset(seed)[4:] for seed in range(20)], axis=0).min() > 1
    environment.close()


@pytest.mark.filterwarnings("ignore:env_spec is None")
def test_pointmaze_of_4_numbers_has_one_goal(write):
    """From Minari or from a file of D4RL's, whatever reward the source has: within 0.5 m of (-1, 1)."""
    ((path, _),) = point_episodes([(0, 0)])
    path[6, :2] = (-1, 0.52)  # within 0.5, not within 0.45
    path[9] = path[11] = (0.3, -1, 0, 0)
    steps = len(path) - 1
    episode = (path, np.zeros((steps, 2)), np.full(steps, 7.0), False)
    write_minari("test/maze2d-v0", [episode], Box(-np.inf, np.inf, (4,), np.float32), 2)
    data = load("minari:test/maze2d-v0", "pointmaze-umaze")
    # Reached after rows 5 and 9; rows 6 to 8 and 10 start there.
    np.testing.assert_array_equal(data.observation, path[[0, 1, 2, 3, 4, 5, 9]])
    assert data.terminated.tolist() == data.success.tolist() == [False] * 5 + [True, True]
    assert data.reward.tolist() == [0.0] * 5 + [1.0, 1.0]
    rows = {
        "observations": path,
        "actions": np.zeros((len(path), 2), np.float32),
        "rewards": np.full(len(path), 7.0, np.float32),
        "terminals": np.zeros(len(path), bool),
        "timeouts": np.arange(len(path)) == steps,
    }
    assert load(write(rows), "pointmaze-umaze").fingerprint == data.fingerprint
    labels = np.arange(len(path)) == 5  # of one of the two arrivals: this goal is not drawn, so that none are kept
    labelled = load(write(rows | {"rewards": labels.astype(np.float32)}, "labelled.hdf5"), "pointmaze-umaze")
    assert labelled.fingerprint == data.fingerprint
    assert labelled.metadata["own_labels"] is False
    environment = datasets.environment_of(tasks.find("pointmaze-umaze"), data)
    assert environment.observation_size == 4
    environment.close()


def test_the_forms_of_pointmaze_do_not_mix(planned, write):
    """Neither within a data set nor as a width that is neither form."""
    source, place = planned
    with h5py.File(place / "data/main_data.hdf5", "a") as file:
        four = file["episode_1/observations"][()]
        del file["episode_1/observations"]
        file["episode_1/observations"] = np.concatenate([four, np.zeros((len(four), 2), np.float32)], axis=1)
    assert "episode 1 has observations or actions of another size" in refusal(source, "pointmaze-umaze")
    rows = {key: value[:7] for key, value in ant_rows(29).items()}
    rows |= {"observations": np.zeros((7, 5), np.float32), "actions": np.zeros((7, 2), np.float32)}
    assert "5 numbers per observation, PointMaze_UMaze-v3 has 4 or 6" in refusal(write(rows), "pointmaze-umaze")


@pytest.fixture
def planned(folder):
    """A small data set of the planner: its source and its folder."""
    name = recipes.make("pointmaze-umaze", size=200)
    return f"minari:{name}", folder / name


def test_damaged_minari_folders_are_refused(planned):
    source, place = planned
    assert len(load(source, "pointmaze-umaze")) == 200
    file, description = place / "data/main_data.hdf5", place / "data/metadata.json"
    whole, told = file.read_bytes(), json.loads(description.read_text())
    for damaged in (whole[:100], whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        assert "cannot be read" in refusal(source, "pointmaze-umaze")
    file.unlink()
    assert "cannot be read" in refusal(source, "pointmaze-umaze")
    file.write_bytes(whole)
    description.write_text("{")
    assert "cannot be read" in refusal(source, "pointmaze-umaze")
    description.write_text(json.dumps(told | {"minari_version": "0.1.0"}))
    assert "of Minari 0.1.0" in refusal(source, "pointmaze-umaze")
    description.write_text("[]")
    assert "cannot be read" in refusal(source, "pointmaze-umaze")


def test_ragged_minari_episodes_are_refused(planned):
    source, place = planned
    with h5py.File(place / "data/main_data.hdf5", "a") as file:
        rewards = file["episode_0/rewards"][()]
        del file["episode_0/rewards"]
        file["episode_0/rewards"] = rewards[:-1]
    assert "episode 0 has" in refusal(source, "pointmaze-umaze")


def test_reading_a_foreign_folder_runs_none_of_its_code(planned):
    """Without spaces in the metadata Minari would make the environment that they name."""
    source, place = planned
    description = place / "data/metadata.json"
    told = json.loads(description.read_text())
    del told["observation_space"]
    told["env_spec"] = json.dumps({"id": "Evil-v0", "entry_point": "os:abort", "kwargs": {}})
    description.write_text(json.dumps(told))
    assert "does not say its spaces" in refusal(source, "pointmaze-umaze")


@pytest.mark.parametrize("name", ["D4RL/door/human", "../../etc/passwd-v0", "a b-v0", "/tmp/x-v0"])
def test_malformed_minari_ids_are_refused(name):
    assert "is not a Minari id" in refusal(f"minari:{name}", "door-human")


# ----------------------------------------------------------------------------- hosts


def test_an_unreachable_host_is_refused_within_seconds(folder):
    before = time.monotonic()
    line = refusal(None, "door-expert")
    assert time.monotonic() - before < 3
    for told in (
        "minari:D4RL/door/expert-v2",
        "http://127.0.0.1:9 does not answer",
        "MINARI_DATASETS_PATH",
        "d4rl:",
    ):
        assert told in line
    assert not list(folder.rglob("*"))


def test_out_of_reach_a_task_with_a_recipe_makes_its_data_and_says_so(folder, monkeypatch):
    monkeypatch.setitem(recipes.SIZES, "antmaze-umaze", 60)
    task = tasks.find("antmaze-umaze")
    data = datasets.load(task)
    assert data.source == "recipe:antmaze-umaze"
    shown = cards.format_card(cards.card(data, task))
    assert "recipe:antmaze-umaze for antmaze-umaze" in shown
    assert "NOT d4rl:antmaze-umaze-v2" in shown
    # Asked for by name as well, as a sweep does that began out of reach; but not where it is another task's.
    assert "NOT d4rl" in cards.format_card(cards.card(datasets.load(task, "recipe:antmaze-umaze"), task))
    other = tasks.find("antmaze-umaze-diverse")
    assert "NOT d4rl" not in cards.format_card(cards.card(datasets.load(other, "recipe:antmaze-umaze"), other))
    # Within reach, the published data come first; on this machine, nobody is asked.
    asked = []
    monkeypatch.setattr(datasets, "within_reach", lambda source: asked.append(source) or True)
    assert datasets.default_source(task) == "d4rl:antmaze-umaze-v2"
    assert asked == ["d4rl:antmaze-umaze-v2"]
    there = folder.parent / "d4rl/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
    there.parent.mkdir()
    there.touch()
    monkeypatch.setattr(datasets, "within_reach", lambda source: pytest.fail("asked a host"))
    assert datasets.default_source(task) == "d4rl:antmaze-umaze-v2"


def test_a_host_that_stays_silent_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = time.monotonic()
        assert not downloads.answers(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.3)
        assert time.monotonic() - before < 2


def test_any_answer_shows_that_a_host_is_there():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        assert downloads.answers(f"http://127.0.0.1:{server.getsockname()[1]}", seconds=3)


def test_the_remote_is_respected(monkeypatch):
    monkeypatch.setenv("MINARI_REMOTE", "ftp://somewhere")
    assert "MINARI_REMOTE is 'ftp://somewhere'" in refusal(None, "pen-human")


class Host:
    """Stands for Minari's client: hands out a folder, or fails half-way."""

    def __init__(self, original, error=None):
        self.original, self.error = original, error

    def download_dataset(self, name, path):
        target = Path(path) / name
        if self.error is None:
            shutil.copytree(self.original, target)
        else:
            (target / "data").mkdir(parents=True)
            (target / "data/metadata.json").write_text("{}")
            raise self.error


def test_a_download_arrives_as_a_whole_and_works_offline_afterwards(planned, folder, monkeypatch):
    source, place = planned
    original = folder.parent / "host"
    os.rename(place, original)
    monkeypatch.setattr(downloads, "within_reach", lambda source: True)
    monkeypatch.setattr(downloads, "get_cloud_storage", lambda: Host(original, ConnectionError("gone\nhalf-way")))
    assert "could not be downloaded from hf://farama-minari (gone half-way)" in refusal(source, "pointmaze-umaze")
    assert not place.exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    # Another process may be first.
    monkeypatch.setattr(downloads, "get_cloud_storage", lambda: Host(original))
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (shutil.copytree(a, b), rename(a, b)))
    first = load(source, "pointmaze-umaze")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    monkeypatch.setattr(os, "rename", rename)
    shutil.rmtree(place)
    assert load(source, "pointmaze-umaze").fingerprint == first.fingerprint
    monkeypatch.setattr(downloads, "within_reach", lambda source: pytest.fail("asked the host again"))
    assert load(source, "pointmaze-umaze").fingerprint == first.fingerprint


# ----------------------------------------------------------------------------- NumPy archives, OGBench


def test_an_archive_with_d4rls_keys_is_the_same_data(write, tmp_path):
    rows = hopper_rows()
    np.savez(tmp_path / "plain.npz", **rows, note=np.array("other keys are left alone"))
    np.savez_compressed(tmp_path / "small.npz", **rows | {"observations": np.asfortranarray(rows["observations"])})
    same = {load(s).fingerprint for s in (write(rows), *(f"npz:{tmp_path / n}.npz" for n in ("plain", "small")))}
    assert len(same) == 1


def test_bad_archives_are_refused(tmp_path):
    path = tmp_path / "data.npz"
    source = f"npz:{path}"
    assert "no such file" in refusal(source)
    np.savez(path, **hopper_rows())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as a NumPy archive" in refusal(source)
    path.write_bytes(whole.replace(b"(7, 11)", b"(9, 11)"))  # also breaks the checksum
    assert "cannot be read as a NumPy archive" in refusal(source)
    np.savez(path, **hopper_rows() | {"rewards": np.array([{"runs": "code"}] * 7, object)})
    assert "Python objects" in refusal(source)
    rows = hopper_rows()
    del rows["terminals"], rows["actions"]
    np.savez(path, **rows)
    assert "no actions and terminals in it" in refusal(source)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in hopper_rows():
            file.writestr(f"{name}.npy", bytes(50_000_000) if name == "observations" else b"")
    assert refusal(source)


def ogbench_rows(lengths=(3, 2)):
    """OGBench's layout: the last row of each trajectory is a state without a successor. Row i observes i."""
    count = sum(lengths)
    terminals = np.zeros(count, np.float32)
    terminals[np.cumsum(lengths) - 1] = 1
    return {
        "observations": np.repeat(np.arange(count)[:, None], 11, axis=1).astype(np.float64),
        "actions": np.zeros((count, 3)),
        "terminals": terminals,
        "rewards": np.arange(count) - 1.0,
        "masks": np.ones(count),
    }


def test_ogbench_trajectories_keep_their_last_state(tmp_path):
    rows = ogbench_rows((4, 3, 2))
    rows["masks"][1] = 0
    np.savez(tmp_path / "data.npz", **rows)
    data = load(f"ogbench:{tmp_path / 'data.npz'}")
    assert first_numbers(data.observation) == [0, 1, 2, 4, 5, 7]
    assert first_numbers(data.next_observation) == [1, 2, 3, 5, 6, 8]
    assert data.reward.tolist() == [-1, 0, 1, 3, 4, 6]
    assert data.terminated.tolist() == [False, True, False, False, False, False]
    assert data.truncated.tolist() == [False, False, True, False, True, True]


def test_bad_ogbench_archives_are_refused(tmp_path):
    source = f"ogbench:{tmp_path / 'data.npz'}"
    for change, words in (
        ({"terminals": np.ones(5)}, "every row ends a trajectory"),
        ({"terminals": np.full(5, 0.5)}, "values 0 or 1"),
        ({"actions": np.zeros((4, 3))}, "4 rows of actions for 5 of observations"),
        ({"masks": np.full(5, 2.0)}, "values 0 or 1"),
        ({"rewards": np.full(5, np.nan)}, "NaN"),
    ):
        np.savez(tmp_path / "data.npz", **ogbench_rows() | change)
        assert words in refusal(source)
    rows = ogbench_rows()
    del rows["rewards"]
    np.savez(tmp_path / "data.npz", **rows)
    assert "no rewards: choose one of OGBench's tasks" in refusal(source)
    assert "no name" in refusal("ogbench:../secret")


@contextlib.contextmanager
def served(folder):
    """A host of the files in `folder`: its address, and what it is asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            asked.append((self.command, self.path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_an_ogbench_archive_is_downloaded_once_and_as_a_whole(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    np.savez(tmp_path / "there" / "maze-v0.npz", **ogbench_rows())
    with served(tmp_path / "there") as (address, asked):
        monkeypatch.setattr(downloads, "OGBENCH_URL", address)
        monkeypatch.setattr(downloads, "OGBENCH_FOLDER", tmp_path / "here")
        with pytest.raises(Refused, match=r"other-v0 could not be downloaded from .*404"):
            downloads.fetch("ogbench:other-v0")
        assert not list((tmp_path / "here").iterdir())
        for _ in range(2):
            downloads.fetch("ogbench:maze-v0")
    assert [call for call in asked if "maze" in call[1]] == [("GET", "/maze-v0.npz")]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["maze-v0.npz"]
    assert (tmp_path / "here/maze-v0.npz").read_bytes() == (tmp_path / "there/maze-v0.npz").read_bytes()


def test_d4rls_own_files_are_known_by_name(tmp_path, monkeypatch, write):
    """Downloaded once, to where D4RL keeps them; of a set that is not there, one line says what works."""
    line = refusal("d4rl:hopper-medium-v2")
    here = tmp_path / "d4rl/hopper_medium-v2.hdf5"
    for told in ("d4rl:hopper-medium-v2 is not on this machine and http://127.0.0.1:9 does not answer", str(here)):
        assert told in line
    expected = load(write(hopper_rows()))
    (tmp_path / "there/gym_mujoco_v2").mkdir(parents=True)
    shutil.copy(tmp_path / "data.hdf5", tmp_path / "there/gym_mujoco_v2/hopper_medium-v2.hdf5")
    (tmp_path / "there/gym_mujoco_v2/hopper_random-v2.hdf5").write_text("<html>Please log in</html>")
    with served(tmp_path / "there") as (address, asked):
        monkeypatch.setenv("D4RL_REMOTE", f"{address}/")
        for _ in range(2):
            data = load("d4rl:hopper-medium-v2")
        missing, foreign = (refusal(f"d4rl:hopper-{quality}-v2") for quality in ("expert", "random"))
    assert "could not be downloaded from" in missing
    assert "or data made here with --dataset recipe:hopper-expert" in missing
    assert "what arrived is no .hdf5 file" in foreign
    assert (data.source, data.fingerprint) == ("d4rl:hopper-medium-v2", expected.fingerprint)
    assert [path for command, path in asked if command == "GET" and "medium" in path] == [
        "/gym_mujoco_v2/hopper_medium-v2.hdf5"
    ]
    assert list(here.parent.iterdir()) == [here]
    assert "no such file; give the path of an HDF5 file, or a name" in refusal("d4rl:hopper-medium-v7")
    here.write_bytes(here.read_bytes()[:1000])
    assert f"delete {here} and load it again" in refusal("d4rl:hopper-medium-v2")


def test_every_set_of_d4rls_has_its_name_and_place():
    """Each task with data of D4RL's; the places are d4rl/infos.py's."""
    named = {where for name in tasks.names() if (where := tasks.find(name).datasets.get("d4rl"))}
    assert named == set(downloads.D4RL_FILES)
    for name, place in {
        "halfcheetah-medium-replay-v2": "gym_mujoco_v2/halfcheetah_medium_replay-v2.hdf5",
        "door-human-v1": "hand_dapg_v1/door-human-v1.hdf5",
        "antmaze-umaze-v2": "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        "antmaze-medium-diverse-v2": "ant_maze_v2/"
        "Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
        "antmaze-large-play-v2": "ant_maze_v2/"
        "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
    }.items():
        assert downloads.D4RL_FILES[name] == place


def test_an_ogbench_task_has_the_rewards_and_masks_of_its_package(tmp_path):
    ogbench = pytest.importorskip("ogbench")
    name = "pointmaze-medium-navigate-singletask-task1-v0"
    environment = environments.make(tasks.find(name))
    rows = {"observations": [], "actions": [], "terminals": [], "qpos": [], "qvel": []}
    rng = np.random.default_rng(0)
    for _ in range(3):
        environment.reset(0)
        for step in range(20):
            simulation = environment.raw.unwrapped.data
            goal = environment.raw.unwrapped.cur_goal_xy
            place = goal + rng.normal(0, 0.3, 2) if step > 10 else simulation.qpos.copy()
            rows["observations"].append(place)
            rows["qpos"].append(place)
            rows["qvel"].append(simulation.qvel.copy())
            rows["actions"].append(rng.uniform(-1, 1, 2))
            rows["terminals"].append(float(step == 19))
    path = tmp_path / "data.npz"
    for file in (path, tmp_path / "data-val.npz"):  # their loader wants both
        np.savez(file, **{key: np.array(value, np.float32) for key, value in rows.items()})
    _, theirs, _ = ogbench.make_env_and_datasets(name, dataset_path=str(path))
    data = load(f"ogbench:{path}", name)
    np.testing.assert_array_equal(data.observation, theirs["observations"])
    np.testing.assert_array_equal(data.next_observation, theirs["next_observations"])
    np.testing.assert_array_equal(data.reward, theirs["rewards"])
    np.testing.assert_array_equal(1 - data.terminated, theirs["masks"])
    assert 0 < data.terminated.mean() < 1


def test_terminals_of_an_environment_that_never_terminates_are_time_limits(tmp_path):
    rows = hopper_rows() | {"observations": np.zeros((7, 17)), "actions": np.zeros((7, 6))}
    np.savez(tmp_path / "data.npz", **rows)
    data = load(f"npz:{tmp_path / 'data.npz'}", "halfcheetah-medium")
    assert not data.terminated.any()
    assert data.metadata["terminals_that_are_time_limits"] == 1
    assert len(data.starts) == 2


# ----------------------------------------------------------------------------- the card


def test_the_card_counts_what_is_there(write):
    rows = hopper_rows()
    rows["observations"][5] = rows["observations"][4]
    rows["actions"][5] = rows["actions"][4]
    rows["actions"][0, 0] = 1.25
    task = tasks.find("hopper-medium")
    data = load(write(rows))
    card = cards.card(data, task)
    assert json.loads(json.dumps(card)) == card
    assert card["task"] == "hopper-medium"
    assert card["source"] == data.source
    assert card["fingerprint"] == data.fingerprint
    assert (card["transitions"], card["episodes"], card["terminated"], card["truncated"]) == (6, 2, 1, 1)
    assert card["episode_length"] == {"min": 3.0, "median": 3.0, "max": 3.0}
    assert card["return_quantiles"]["0"] == pytest.approx(0.3)
    assert card["return_quantiles"]["1"] == pytest.approx(1.5)
    assert card["reward_values"] is None
    assert card["duplicates"] == 1
    assert card["nans"] == 0
    np.testing.assert_allclose(card["observation_mean"], data.observation.mean(axis=0))
    np.testing.assert_allclose(card["observation_std"], data.observation.std(axis=0), rtol=1e-5)
    text = cards.format_card(card)
    for told in ("1 entries clipped", "7 rows; dropped: 1 without a next observation", "1 terminated, 1 truncated"):
        assert told in text
    assert len({line.index(line.split()[1]) for line in text.splitlines()}) == 1  # aligned


def test_the_card_has_d4rls_score_where_episodes_have_one(write):
    task = tasks.find("hopper-medium")
    card = cards.card(load(write(hopper_rows())), task)
    # Returns 0 + 0.1 + 0.2, the row without a successor left out, and 0.4 + 0.5 + 0.6.
    assert card["score_quantiles"]["0"] == pytest.approx(task.score(0.3, False))
    assert card["score_quantiles"]["1"] == pytest.approx(task.score(1.5, False))
    assert "percent of D4RL's expert" in cards.format_card(card)
    maze = tasks.find("antmaze-umaze")
    assert cards.card(datasets.load(maze, write(ant_rows(29))), maze)["score_quantiles"] is None


def test_a_set_that_bears_a_published_name_must_have_its_size(write):
    rows = door_rows()
    task = tasks.find("door-human")
    for name, flagged in (("door-human-v1.hdf5", True), ("mine.hdf5", False)):
        card = cards.card(datasets.load(task, write(rows, name)), task)
        assert ("of this name has 6,729" in cards.format_card(card)) == flagged
    assert cards.difference_from_published("minari:D4RL/antmaze/large-play-v1", 1000, 1_000_000) is None
    assert "1,000 of 1,000,000" in cards.difference_from_published("minari:D4RL/antmaze/large-play-v2", 10, 99)
    assert cards.difference_from_published("recipe:antmaze-large-play", 10, 99) is None
    for name, rows in (("antmaze-umaze-v2", 1_000_000), ("hopper-medium-v2", 999_906), ("door-human-v1", 6_729)):
        assert cards.difference_from_published(f"d4rl:{name}", 7, rows) is None
        assert "where D4RL's set of this name has" in cards.difference_from_published(f"d4rl:{name}", 7, rows // 2)
    assert cards.difference_from_published("d4rl:mine.hdf5", 7, 8) is None


def test_the_card_lists_few_reward_values(write):
    task = tasks.find("door-binary")
    card = cards.card(load(write(door_rows()), task.name), task)
    assert card["reward_values"] == {"-1": 4, "0": 1}
    assert card["success_episodes"] == 1
    assert card["success_rate"] == 0.5
    assert "-1: 4, 0: 1" in cards.format_card(card)


def test_data_in_other_units_are_brought_to_unit_actions(write):
    """Pendulum's torque is recorded in [-2, 2]."""
    rows = hopper_rows()
    rows["observations"], rows["actions"] = (
        rows["observations"][:, :3],
        np.linspace(-2, 2, 7, dtype=np.float32)[:, None],
    )
    data = load(write(rows), "Pendulum-v1")
    np.testing.assert_allclose(data.action[:3, 0], np.linspace(-1, 1, 7)[:3], rtol=1e-6)
    assert data.metadata["actions_clipped"] == 0


# ----------------------------------------------------------------------------- discrete actions


def cart_rows(dtype=np.int64, column=False):
    """Seven rows of CartPole's, two episodes: the first cut by the time limit, the second a fall."""
    rows = hopper_rows()
    rows["observations"] = rows["observations"][:, :4]
    rows["actions"] = np.array([0, 1, 1, 0, 0, 1, 0], dtype)
    if column:
        rows["actions"] = rows["actions"][:, None]
    return rows


@pytest.mark.parametrize(("dtype", "column"), [(np.int64, False), (np.uint8, True), (np.float32, False)])
def test_discrete_actions_become_one_hot(tmp_path, write, dtype, column):
    np.savez(tmp_path / "cart.npz", **cart_rows(dtype, column))
    for source in (f"npz:{tmp_path / 'cart.npz'}", write(cart_rows(dtype, column))):
        data = load(source, "CartPole-v1")
        assert data.has_discrete_actions
        assert data.action.tolist() == np.eye(2, dtype=bool)[[0, 1, 1, 0, 1, 0]].tolist()  # row 3 has no successor
        batch = data.batch(tasks.find("CartPole-v1"))
        assert (batch.action.dtype, batch.action.tolist()) == (np.float32, data.action.astype(float).tolist())
        card = cards.card(data, tasks.find("CartPole-v1"))
        assert json.loads(json.dumps(card)) == card
        assert card["action_counts"] == [3, 3]
        assert "one of 2: 50.0%, 50.0%" in cards.format_card(card)
        datasets.environment_of(tasks.find("CartPole-v1"), data).close()


@pytest.mark.parametrize("wrong", [[0, 1, 2, 0, 0, 1, 0], [0, 1, -1, 0, 0, 1, 0], [0, 1, 0.5, 0, 0, 1, 0]])
def test_a_number_that_is_no_action_is_refused(write, wrong):
    rows = cart_rows() | {"actions": np.array(wrong)}
    told = refusal(write(rows), "CartPole-v1")
    assert "CartPole-v1 takes a whole number per row, 0 to 1" in told


def test_vectors_for_discrete_actions_and_the_reverse_are_refused(write):
    rows = cart_rows() | {"actions": np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 0, 1, 0]]}
    assert "takes a whole number per row, 0 to 1" in refusal(write(rows), "CartPole-v1")
    rows = hopper_rows() | {"actions": np.zeros(7, np.int64)}
    assert "expected numbers, 2-D" in refusal(write(rows), "hopper-medium")
    assert "4 numbers per observation" in refusal(write(cart_rows()), "Acrobot-v1")


def test_minaris_discrete_actions_are_read(folder):
    space = Box(-np.inf, np.inf, (4,), np.float32)
    episode = EpisodeBuffer(
        observations=np.arange(16, dtype=np.float32).reshape(4, 4), actions=np.array([1, 0, 1]), rewards=np.ones(3),
        terminations=np.array([False, False, True]), truncations=np.zeros(3, bool),
    )  # fmt: skip
    minari.create_dataset_from_buffers(
        "mine/cart-v0", [episode], observation_space=space, action_space=Discrete(2), algorithm_name="none",
        author="nobody", author_email="nobody@example.org", code_permalink="none", eval_env=None,
    )  # fmt: skip
    data = load("minari:mine/cart-v0", "CartPole-v1")
    assert data.action.tolist() == [[False, True], [True, False], [False, True]]
    assert data.terminated.tolist() == [False, False, True]
