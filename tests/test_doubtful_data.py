"""Data that are sound but odd, doubtful, or too much: read rightly, told on the card, or refused by name."""

import fcntl
import json
import os
import time

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from minari.data_collector import EpisodeBuffer

from common import datasets, environments, recipes, tasks
from common.datasets import arrays, cards, doubts, downloads, memory, pixels
from common.errors import Refused

PENDULUM = tasks.find("Pendulum-v1")
HOPPER = tasks.find("hopper-medium")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "minari"


def walk(steps=60, episode=20, observation=3, action=1, reach=2.0):
    """Rows of a pendulum's layout, in which every episode is cut; each starts far from where the last one ended."""
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.normal(0, 0.05, (steps, observation)), axis=0) + 10.0 * (np.arange(steps) // episode)[:, None]
    return {
        "observations": path.astype(np.float32),
        "actions": rng.uniform(-reach, reach, (steps, action)).astype(np.float32),
        "rewards": rng.normal(size=steps).astype(np.float32),
        "terminals": np.zeros(steps, bool),
        "timeouts": np.arange(steps) % episode == episode - 1,
    }


def load(path, rows, task=PENDULUM):
    np.savez(path / "data.npz", **rows)
    return datasets.load(task, f"npz:{path / 'data.npz'}")


def warnings(data, task=PENDULUM):
    """The lines of the card that warn."""
    lines = cards.format_card(cards.card(data, task)).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == "WARNING"]


def refusal(source, task=PENDULUM):
    with pytest.raises(Refused) as refused:
        datasets.load(task, source)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ----------------------------------------------------------------------------- ends of episodes


def test_sound_data_have_no_warnings(tmp_path):
    assert warnings(load(tmp_path, walk())) == []


@pytest.mark.parametrize("last_is_marked", [False, True])
@pytest.mark.parametrize("rolled", [False, True])
def test_timeouts_that_are_never_set_are_made_up_by_the_time_limit(tmp_path, last_is_marked, rolled):
    rows = walk(600, 200)
    plain = load(tmp_path, rows)
    rows["timeouts"] = np.arange(600) == (599 if last_is_marked else -1)
    if rolled:  # successors that are the rows that follow, across ends as well
        rows["next_observations"] = np.roll(rows["observations"], -1, axis=0)
    data = load(tmp_path, rows)
    assert data.fingerprint == plain.fingerprint
    assert "longer than the time limit of 200 steps (1 of them): cut there" in warnings(data)[0]


def test_the_limit_counts_from_the_last_termination(tmp_path):
    rows = walk(500, 200)
    rows["terminals"][49] = True
    rows["timeouts"][:] = False
    data = load(tmp_path, rows)
    assert np.flatnonzero(data.terminated).tolist() == [49]
    assert len(data) == 500 - 3  # rows 249, 449 and the last lack their successors


def test_episodes_up_to_the_limit_are_left_alone_without_timeouts(tmp_path):
    rows = walk(400, 200)
    rows["terminals"], rows["timeouts"] = np.isin(np.arange(400), (150, 349)), np.zeros(400, bool)
    data = load(tmp_path, rows)
    assert (len(data), warnings(data)) == (399, [])


def test_a_recording_under_a_longer_limit_is_kept_and_counted(tmp_path):
    data = load(tmp_path, walk(600, 300))
    assert data.starts.tolist() == [0, 299]
    assert warnings(data) == []
    assert "(2 longer than the time limit of 200)" in cards.format_card(cards.card(data, PENDULUM))


def test_longer_episodes_beside_some_that_end_at_the_limit_are_doubtful(tmp_path):
    rows = walk(800, 200)
    rows["timeouts"][[399, 599]] = False
    assert "others are longer (1, up to 600 steps)" in warnings(load(tmp_path, rows))[0]


@pytest.mark.parametrize("count", [1, 3])
def test_terminals_that_all_stand_at_the_limit_are_doubtful(tmp_path, count):
    rows = walk(200 * count, 200)
    rows["terminals"], rows["timeouts"] = rows["timeouts"], rows["terminals"]
    data = load(tmp_path, rows)
    assert data.terminated.sum() == count
    assert f"all {count} terminals stand at the time limit of 200 steps" in warnings(data)[0]
    rows["terminals"][100] = True
    assert not any("all" in line for line in warnings(load(tmp_path, rows)))


def test_the_next_episodes_first_observation_is_nobodys_successor(tmp_path):
    rows = walk()
    plain = load(tmp_path, rows)
    rows["next_observations"] = np.concatenate([rows["observations"][1:], rows["observations"][-1:] + 0.01])
    data = load(tmp_path, rows)
    assert len(data) == 60 - 2  # the last row has a successor of its own
    assert np.abs(data.next_observation - data.observation).max() < 1
    assert "at 2 of 3 ends of episodes" in warnings(data)[0]
    np.testing.assert_array_equal(data.observation[:57], plain.observation)


def test_a_roll_gives_the_last_row_the_first_observation(tmp_path):
    rows = walk()
    plain = load(tmp_path, rows)
    rows["next_observations"] = np.roll(rows["observations"], -1, axis=0)
    assert load(tmp_path, rows).fingerprint == plain.fingerprint


def test_where_the_task_ended_no_successor_is_needed(tmp_path):
    rows = walk()
    rows["terminals"], rows["timeouts"] = rows["timeouts"], rows["terminals"]
    rows["next_observations"] = np.roll(rows["observations"], -1, axis=0)
    data = load(tmp_path, rows)
    assert (len(data), data.terminated.sum()) == (60, 3)
    ends = np.flatnonzero(data.terminated)
    np.testing.assert_array_equal(data.next_observation[ends], data.observation[ends])


def test_where_nothing_moves_an_end_is_no_reset(tmp_path):
    rows = walk()
    rows["observations"][:] = 1
    rows["next_observations"] = rows["observations"]
    data = load(tmp_path, rows)
    assert (len(data), warnings(data)) == (60, [])


def test_mazes_may_go_on_where_the_episode_before_has_ended(tmp_path):
    """Only a leap is a reset there: Minari's and D4RL's points keep walking to their next goals."""
    task = tasks.find("pointmaze-umaze")
    places = np.array([(x, -1.0) for x in (-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4)], np.float32)
    for leap, kept in ((False, 8), (True, 7)):
        path = places[[0, 1, 2, 3, 0, 1, 2, 3]] if leap else places
        rows = {
            "observations": np.concatenate([path, 0 * path], axis=1),
            "actions": np.zeros((8, 2), np.float32),
            "rewards": np.zeros(8, np.float32),
            "terminals": np.zeros(8, bool),
            "timeouts": np.arange(8) % 4 == 3,
        }
        rows["next_observations"] = np.concatenate([rows["observations"][1:], rows["observations"][-1:]])
        rows["next_observations"][-1, 0] += 0.1
        assert len(load(tmp_path, rows, task)) == kept


def test_observations_copied_as_successors_are_doubtful(tmp_path):
    rows = walk()
    rows["next_observations"] = rows["observations"]
    assert any("nothing ever moves" in line for line in warnings(load(tmp_path, rows)))


@pytest.mark.parametrize(("blank", "told"), [(9, False), (10, True), (60, False)])
def test_zeros_at_the_end_are_doubtful(tmp_path, blank, told):
    rows = walk()
    for key in ("observations", "actions", "rewards"):
        rows[key][60 - blank :] = 0
    assert any(f"the last {blank} of 60 rows" in line for line in warnings(load(tmp_path, rows))) is told


# ----------------------------------------------------------------------------- actions


@pytest.mark.parametrize(("reach", "told"), [(1.0, True), (2.0, False), (0.5, False), (1.1, False)])
def test_actions_that_fill_one_are_hardly_in_units_of_two(tmp_path, reach, told):
    rows = walk(reach=reach)
    rows["actions"][:2, 0] = -reach, reach
    assert (
        any("actions fill [-1, 1], where Pendulum-v1 takes -2 to 2" in w for w in warnings(load(tmp_path, rows)))
        is told
    )
    rows["actions"][:2, 0] = -1.5, 1.0
    assert not any("fill" in line for line in warnings(load(tmp_path, rows)))
    rows = walk(observation=11, action=3, reach=1.0)
    assert warnings(load(tmp_path, rows, HOPPER), HOPPER) == []


class Held(gymnasium.Env):
    """Two joints, of which one is held."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(np.array([-2, 0.5], np.float32), np.array([2, 0.5], np.float32))

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.taken = action
        return np.zeros(3, np.float32), 0.0, False, False, {}


gymnasium.register("Held-v0", entry_point=Held, max_episode_steps=30)


@pytest.mark.parametrize(("recorded", "clipped"), [(0.5, 0), (0.75, 60)])
def test_a_held_joint_is_zero_in_data_and_its_value_in_the_environment(tmp_path, recorded, clipped):
    rows = walk(action=2)
    rows["actions"][:, 1] = recorded
    data = load(tmp_path, rows, tasks.find("Held-v0"))
    np.testing.assert_allclose(data.action[:19, 0], rows["actions"][:19, 0] / 2)
    assert (data.action[:, 1] == 0).all()
    assert data.metadata["actions_clipped"] == clipped
    environment = datasets.environment_of(tasks.find("Held-v0"), data)
    environment.reset(0)
    environment.step(np.array([0.5, -0.9], np.float32))
    assert environment.raw.unwrapped.taken.tolist() == [1.0, 0.5]
    environment.close()


def test_the_largest_number_is_no_bound(monkeypatch):
    widest = np.finfo(np.float32).max
    monkeypatch.setattr(Held, "action_space", Box(-widest, widest, (2,), np.float32))
    with pytest.raises(Refused, match="only bounded vectors"):
        environments.make(tasks.find("Held-v0"))


def test_further_parts_of_a_goals_observation_follow_by_name():
    parts = {key: np.full(2, value) for value, key in enumerate(["torque", "desired_goal", "force", "observation"])}
    parts["achieved_goal"] = np.full(2, 9)
    keys = environments.flat_keys(PENDULUM, parts)
    assert keys == ("achieved_goal", "observation", "desired_goal", "force", "torque")
    assert environments.flatten(parts, keys).tolist() == [9, 9, 3, 3, 1, 1, 2, 2, 0, 0]
    assert environments.flat_keys(tasks.find("pointmaze-umaze"), parts)[:2] == ("observation", "desired_goal")


# ----------------------------------------------------------------------------- HDF5


def h5(path, rows, change=lambda file: None):
    with h5py.File(path / "data.hdf5", "w") as file:
        for key, value in rows.items():
            file[key] = value
        change(file)
    return f"d4rl:{path / 'data.hdf5'}"


def replaced(key, **options):
    """A change of a file: this array created anew, without being written."""

    def change(file):
        shape = file[key].shape
        del file[key]
        file.create_dataset(key, shape, **options)

    return change


def test_flags_that_were_never_written_are_zeros(tmp_path):
    plain = datasets.load(PENDULUM, h5(tmp_path, walk()))
    data = datasets.load(PENDULUM, h5(tmp_path, walk(), replaced("terminals", dtype=bool)))
    assert data.fingerprint == plain.fingerprint
    assert warnings(data) == []
    terminated = datasets.load(PENDULUM, h5(tmp_path, walk(), replaced("terminals", dtype="f4", fillvalue=1)))
    assert terminated.terminated.all()


@pytest.mark.parametrize(("key", "fill"), [("rewards", 0.0), ("rewards", -1.0), ("observations", 0.0)])
def test_numbers_that_were_never_written_are_told(tmp_path, key, fill):
    data = datasets.load(PENDULUM, h5(tmp_path, walk(), replaced(key, dtype="f4", fillvalue=fill, chunks=True)))
    assert f"{key} were never written to the file: every number is {fill:g}" in warnings(data)


def test_a_view_of_a_file_that_is_gone_is_no_zeros(tmp_path):
    def change(file):
        del file["observations"]
        layout = h5py.VirtualLayout((60, 3), np.float32)
        layout[:] = h5py.VirtualSource("gone.hdf5", "x", (60, 3))
        file.create_virtual_dataset("observations", layout)

    source = h5(tmp_path, walk(), change)
    assert "/observations is a view of gone.hdf5, which is not there" in refusal(source)
    with h5py.File(tmp_path / "gone.hdf5", "w") as file:
        file["x"] = walk()["observations"]
    plain = load(tmp_path, walk())
    assert datasets.load(PENDULUM, source).fingerprint == plain.fingerprint


def test_a_filter_that_h5py_lacks_is_no_damage(tmp_path, monkeypatch):
    source = h5(tmp_path, {})
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for key, value in walk().items():
            file.create_dataset(key, data=value, compression="lzf" if key == "rewards" else None)
    monkeypatch.setattr(arrays.h5py.h5z, "filter_avail", lambda number: False)
    told = refusal(source)
    assert "/rewards is compressed with filter 32000 (lzf), which h5py has not" in told
    assert "delete" not in told


def test_an_array_without_a_shape_is_named(tmp_path):
    def change(file):
        del file["rewards"]
        file["rewards"] = h5py.Empty("f4")

    assert "/rewards is empty: it has no shape" in refusal(h5(tmp_path, walk(), change))


def test_elements_that_are_arrays_are_vectors(tmp_path):
    def change(file):
        del file["observations"]
        file.create_dataset("observations", (60,), np.dtype((np.float32, 3)))[...] = walk()["observations"]

    data = datasets.load(PENDULUM, h5(tmp_path, walk(), change))
    assert data.fingerprint == load(tmp_path, walk()).fingerprint


# ----------------------------------------------------------------------------- memory


def test_too_little_memory_is_told_in_numbers_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1_000)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("read"))
    np.savez(tmp_path / "data.npz", **walk())
    for source in (f"npz:{tmp_path / 'data.npz'}", h5(tmp_path, walk())):
        told = refusal(source)
        assert "needs about 0.0 MB of memory to be read, and 0.0 MB are left: raise the limit" in told
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert len(datasets.load(PENDULUM, f"npz:{tmp_path / 'data.npz'}")) == 57


def test_an_array_that_no_memory_takes_is_refused(tmp_path):
    def change(file):
        for key, shape in (("observations", (10**12, 3)), ("actions", (10**12, 1)), ("rewards", (10**12,))):
            del file[key]
            file.create_dataset(key, shape, np.float32, chunks=(1000, *shape[1:]))
        for key in ("terminals", "timeouts"):
            del file[key]
            file.create_dataset(key, (10**12,), bool, chunks=(1000,))

    assert "GB of memory to be read" in refusal(h5(tmp_path, walk(), change))


@pytest.mark.parametrize("where", ["common.datasets.sources.rows_of", "common.datasets._assemble", "numpy.frombuffer"])
def test_memory_that_runs_out_is_no_damage(tmp_path, monkeypatch, where):
    def full(*_, **__):
        raise MemoryError

    np.savez(tmp_path / "data.npz", **walk())
    monkeypatch.setattr(where, full)
    told = refusal(f"npz:{tmp_path / 'data.npz'}")
    assert "too little memory to read it" in told
    assert "damaged" not in told


def test_memory_that_runs_out_in_a_minari_set_or_for_the_card_is_no_damage(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    data = load(tmp_path, walk())
    write("mine/set-v0", [episode(5)])
    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__getitem__", full)
        assert "too little memory" in refusal("minari:mine/set-v0")
    monkeypatch.setattr(cards, "_duplicates", full)
    with pytest.raises(Refused, match="too little memory"):
        cards.card(data, PENDULUM)


# ----------------------------------------------------------------------------- Minari

SPACE = Box(-9, 9, (3,), np.float32)


def episode(length, observations=None, **changes):
    """One of Pendulum's layout that is cut at its end."""
    rng = np.random.default_rng(length)
    fields = {
        "observations": rng.normal(size=(length + 1, 3)).astype(np.float32) if observations is None else observations,
        "actions": rng.uniform(-1, 2, (length, 1)).astype(np.float32),
        "rewards": rng.normal(size=length),
        "terminations": np.zeros(length, bool),
        "truncations": np.arange(length) == length - 1,
    }
    return EpisodeBuffer(**fields | changes)


@pytest.fixture(autouse=True)
def _quiet():
    import warnings as python_warnings

    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        yield


def write(name, episodes, space=SPACE):
    minari.create_dataset_from_buffers(
        name, episodes, observation_space=space, action_space=Box(-2, 2, (1,), np.float32), data_format="hdf5"
    )


def change_metadata(folder, name, **changes):
    path = folder / name / "data/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def nested(length):
    part = np.zeros((length + 1, 2), np.float32)
    return {"observation": part, "goal": {"kettle": part, "light": part}}


@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        ("observations", lambda array: array[:-1], "episode 1 has 6 observations for 6 rewards, where 7 are due"),
        ("actions", lambda array: array[1:], "episode 1 has 5 actions for 6 rewards"),
        ("terminations", lambda array: array[1:], "episode 1 has 5 terminations for 6 rewards"),
        ("observations", lambda array: array[:, :2], "episode 1 has observations or actions of another size"),
        ("actions", lambda array: array.astype("S4"), "episode 1 has actions of type |S4, expected numbers"),
    ],
)
def test_an_episode_that_does_not_fit_is_named_and_can_be_left_out(folder, key, change, told):
    write("mine/set-v0", [episode(5), episode(6), episode(7)])
    path = folder / "mine/set-v0/data/main_data.hdf5"
    with h5py.File(path, "a") as file:
        array = file[f"episode_1/{key}"][()]
        del file[f"episode_1/{key}"]
        file[f"episode_1/{key}"] = change(array)
    line = refusal("minari:mine/set-v0")
    assert told in line
    assert "; delete" not in line
    if "expected numbers" in told:
        return
    command = line.partition("`")[2].partition("`")[0]
    exec(command, {"h5py": h5py})
    data = datasets.load(PENDULUM, "minari:mine/set-v0")
    assert len(data) == 12
    assert "the file holds 2 episodes of 12 steps in all, and its metadata say 3 of 18" in warnings(data)[0]


def test_episodes_that_the_metadata_do_not_know_are_read_and_told(folder):
    write("mine/set-v0", [episode(n) for n in range(3, 15)])
    with h5py.File(folder / "mine/set-v0/data/main_data.hdf5", "a") as file:
        file.copy("episode_3", "episode_12")
        file.create_group("notes")
    data = datasets.load(PENDULUM, "minari:mine/set-v0")
    assert "the file holds 13 episodes of 108 steps" in warnings(data)[0]
    assert np.diff(data.starts).tolist() == list(range(3, 15))  # in the order of their numbers, 2 before 10


@pytest.mark.parametrize(
    ("observations", "space", "told"),
    [
        (nested(5), None, "observations of goal that are nested (kettle, light), which is not supported"),
        ((np.zeros((6, 2), np.float32),) * 2, None, "has a tuple of observations"),
        ({"a": np.zeros((6, 2), np.float32), "b": np.zeros(6, np.float32)}, None, "'b': [6]"),
        ({"a": np.zeros((6, 2), np.float32), "b": np.zeros((5, 2), np.float32)}, None, "'b': [5, 2]"),
    ],
    ids=["nested", "tuple", "scalars", "ragged"],
)
def test_observations_in_other_parts_are_named_and_never_called_damaged(folder, observations, space, told):
    write("mine/set-v0", [episode(5)])
    with h5py.File(folder / "mine/set-v0/data/main_data.hdf5", "a") as file:
        del file["episode_0/observations"]

        def put(place, value):
            if isinstance(value, tuple):
                value = {f"_index_{number}": part for number, part in enumerate(value)}
            if not isinstance(value, dict):
                file[place] = value
                return
            for key, part in value.items():
                put(f"{place}/{key}", part)

        put("episode_0/observations", observations)
    line = refusal("minari:mine/set-v0")
    assert told in line
    assert "delete" not in line


def test_all_parts_of_a_goals_observation_are_read():
    box = Box(-9, 9, (1,), np.float32)
    keys = ("torque", "observation", "achieved_goal", "desired_goal")
    parts = {key: np.full((6, 1), value, np.float32) for value, key in enumerate(keys)}
    write("mine/goal-v0", [episode(5, parts)], Dict(dict.fromkeys(keys, box)))
    with pytest.raises(Refused, match="4 numbers per observation"):
        datasets.load(PENDULUM, "minari:mine/goal-v0")


def test_arrow_says_what_to_install(folder, monkeypatch):
    write("mine/set-v0", [episode(5)])
    change_metadata(folder, "mine/set-v0", data_format="arrow")

    def missing(*_):
        raise ImportError("pyarrow is not installed")

    monkeypatch.setattr("common.datasets.minari_sets.MinariStorage.read", missing)
    assert refusal("minari:mine/set-v0").endswith("which needs pyarrow: pip install pyarrow")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("mine/set-v0", "put a sound copy in its place"),
        ("D4RL/pen/human-v2", "delete it and load it again"),
        ("headstart/pointmaze-umaze-v0", "delete it and make it again"),
    ],
)
def test_only_what_can_be_had_again_is_to_be_deleted(folder, name, remedy):
    write(name, [episode(5)])
    (folder / name / "data/main_data.hdf5").write_bytes(b"no HDF5")
    line = refusal(f"minari:{name}")
    assert "cannot be read" in line
    assert line.endswith(remedy)
    assert ("delete" in line) == ("mine" not in name)


def test_columns_float_flags_and_integers_are_the_same_episodes(folder):
    numbers = np.arange(1, 7) % 3 - 1.0
    plain = episode(6, actions=numbers[:, None], terminations=np.arange(6) == 5, truncations=np.zeros(6, bool))
    odd = episode(
        6,
        actions=numbers[:, None].astype(np.int64),
        rewards=np.asarray(plain.rewards)[:, None],
        terminations=np.asarray(plain.terminations)[:, None].astype(np.float32),
        truncations=np.zeros(6, bool),
    )
    write("mine/plain-v0", [plain])
    write("mine/odd-v0", [odd])
    first, second = (datasets.load(PENDULUM, f"minari:mine/{name}-v0") for name in ("plain", "odd"))
    assert first.fingerprint == second.fingerprint
    assert first.terminated.sum() == 1


def test_an_episode_without_steps_adds_nothing(folder):
    write("mine/set-v0", [episode(5), episode(6)])
    whole = datasets.load(PENDULUM, "minari:mine/set-v0")
    with h5py.File(folder / "mine/set-v0/data/main_data.hdf5", "a") as file:
        for key, value in {"observations": np.zeros((1, 3)), "actions": np.zeros((0, 1))}.items():
            file[f"episode_2/{key}"] = value
        for key in ("rewards", "terminations", "truncations"):
            file[f"episode_2/{key}"] = np.zeros(0)
    assert datasets.load(PENDULUM, "minari:mine/set-v0").fingerprint == whole.fingerprint


# ----------------------------------------------------------------------------- OGBench, images


def test_ogbenchs_flags_may_be_columns(tmp_path):
    rows = walk()
    rows = {"terminals": rows.pop("timeouts").astype(np.float32), "masks": np.ones(60), **rows} | {
        "terminals": (np.arange(60) % 20 == 19).astype(np.float32)
    }
    fingerprints = set()
    for columns in (False, True):
        shaped = {key: value[:, None] if columns and value.ndim == 1 else value for key, value in rows.items()}
        np.savez(tmp_path / "data.npz", **shaped)
        fingerprints.add(datasets.load(PENDULUM, f"ogbench:{tmp_path / 'data.npz'}").fingerprint)
    assert len(fingerprints) == 1


def test_flags_and_rewards_of_images_may_be_columns(tmp_path):
    rows = {
        "observation": np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8),
        "action": np.zeros((10, 2), np.float32),
        "reward": np.arange(10, dtype=np.float32),
        "discount": np.ones(10, np.float32),
        "step_type": np.where(np.arange(10) % 5 == 0, 0, np.where(np.arange(10) % 5 == 4, 2, 1)),
    }
    fingerprints = set()
    for columns in (False, True):
        shaped = {key: value[:, None] if columns and value.ndim == 1 else value for key, value in rows.items()}
        h5(tmp_path, shaped)
        fingerprints.add(pixels.load(f"vd4rl:{tmp_path}").fingerprint)
    assert len(fingerprints) == 1
    h5(tmp_path, rows, replaced("observation", dtype=np.uint8))
    with pytest.raises(Refused, match="never written"):
        pixels.load(f"vd4rl:{tmp_path}")


# ----------------------------------------------------------------------------- the card, substitutes


@pytest.mark.parametrize(("name", "known"), [("hopper-medium", False), ("door-human", True)])
def test_success_is_on_the_card_where_it_is_known(tmp_path, name, known):
    task = tasks.find(name)
    sizes = {"hopper-medium": (11, 3), "door-human": (39, 28)}[name]
    card = cards.card(load(tmp_path, walk(60, 20, *sizes, reach=1.0), task), task)
    assert (card["success_rate"] is not None) is known
    assert ("\n  success " in cards.format_card(card)) is known


def test_a_substitute_is_announced_before_it_is_made(folder, monkeypatch):
    said, make = [], recipes.make
    monkeypatch.setitem(recipes.SIZES, "hopper-random", 60)
    monkeypatch.setattr(recipes, "make", lambda *rest, **more: (said.append("made"), make(*rest, **more))[1])
    datasets.load(tasks.find("hopper-random"), announce=said.append)
    line, made = said
    assert made == "made"
    assert line.startswith(
        "d4rl:hopper-random-v2 is not here and its host does not answer: making recipe:hopper-random"
    )
    assert f"(60 rows; kept in {folder / 'headstart/hopper-random-v0'})" in line
    # Not once it is there, nor where it is asked for, nor where it is the task's own.
    for task, source in (("hopper-random", None), ("hopper-random", "recipe:hopper-random"), ("pointmaze-umaze", None)):
        monkeypatch.setitem(recipes.SIZES, "pointmaze-umaze", 60)
        said.clear()
        datasets.load(tasks.find(task), source, announce=said.append)
        assert said == ["made"]


def test_how_long_making_takes_is_told_once_it_is_known(monkeypatch):
    clock = iter([100.0, 105.0, 110.0, 120.0])
    monkeypatch.setattr(recipes.time, "monotonic", lambda: next(clock))
    said = []
    estimate = recipes._Estimate(1_000_000, said.append)
    for made in (500, 3000, 5500, 10_000):
        estimate(made)
    assert said == ["making 1,000,000 rows: about 33 minutes left"]


def test_folders_of_killed_writers_go_at_once(folder):
    """But not what another process is writing now, nor what is not ours."""
    for name in (".recipe-killed", ".recipe-older", ".recipe-busy", ".recipe-begun", ".download-x"):
        (folder / name / "dataset").mkdir(parents=True)
    for name in (".recipe-killed", ".recipe-busy"):
        (folder / name / "lock").touch()
    for name in (".recipe-killed", ".recipe-older", ".recipe-busy"):
        os.utime(folder / name, (time.time() - 60,) * 2)
    with (folder / ".recipe-busy/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recipes.make("pointmaze-umaze", size=100)
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".download-x", ".recipe-begun", ".recipe-busy", "headstart"]


def test_published_files_alone_are_loaded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "OGBENCH_FOLDER", tmp_path)
    (tmp_path / "maze-v0.npz").write_bytes(b"no archive")
    assert f"delete {tmp_path / 'maze-v0.npz'} and load it again" in refusal("ogbench:maze-v0")
    assert "delete" not in refusal(f"ogbench:{tmp_path / 'maze-v0.npz'}")


def test_doubts_are_the_same_for_every_reader(tmp_path):
    """They are about rows, whatever file these are from."""
    rows = walk(400, 200)
    rows["terminals"], rows["timeouts"] = rows["timeouts"], rows["terminals"]
    source = h5(tmp_path, rows)
    assert warnings(datasets.load(PENDULUM, source)) == warnings(load(tmp_path, rows))
    environment = environments.make(PENDULUM)
    last = np.arange(200) == 199
    own = {"observations": np.ones((201, 3), np.float32), "terminations": last, "truncations": np.zeros(200, bool)}
    write("mine/set-v0", [episode(200, **own), episode(200, **own)])
    assert "all 2 terminals stand at the time limit" in warnings(datasets.load(PENDULUM, "minari:mine/set-v0"))[0]
    environment.close()
    assert doubts.beyond_limit(tasks.find("antmaze-umaze"), None) == {}
