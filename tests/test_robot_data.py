"""Robots' data: LeRobot's folders, robomimic's files, and paths without a kind."""

import json
import re
import shutil
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

from common import datasets, resuming, tasks
from common.datasets import cards, memory, naming
from common.errors import Refused

FOREIGN = Path(__file__).parent / "foreign"
"""Files that LeRobot's and robomimic's own code has written: see the scripts beside them."""


class Arm(gymnasium.Env):
    """Spaces alone: `size` numbers are observed, two are acted with."""

    def __init__(self, size):
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (size,), np.float32), Box(-1, 1, (2,))


for size in (2, 3, 5, 6, 11):
    gymnasium.register(f"Arm{size}-v0", entry_point=Arm, kwargs={"size": size}, max_episode_steps=50)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow", reason="LeRobot's files need pyarrow (extra lerobot)")


def arm(size):
    return tasks.find(f"Arm{size}-v0")


def refusal(source, size=5):
    with pytest.raises(Refused) as refused:
        datasets.load(arm(size), source)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def warnings(data, size=5):
    lines = cards.format_card(cards.card(data, arm(size))).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == "WARNING"]


def line(data, size, name):
    """What the card says under a name."""
    lines = cards.format_card(cards.card(data, arm(size))).splitlines()
    return next((text.strip().removeprefix(name).strip() for text in lines if text.strip().startswith(name)), None)


def recording():
    """Episodes of 5, 12 and 4 steps of five numbers: the first and the last terminate; every successor is known."""
    rng = np.random.default_rng(0)
    lengths = (5, 12, 4)
    paths = [rng.normal(size=(length + 1, 5)).astype(np.float32) for length in lengths]
    ends = np.cumsum(lengths) - 1
    return {
        "observations": np.concatenate([path[:-1] for path in paths]),
        "next_observations": np.concatenate([path[1:] for path in paths]),
        "actions": rng.uniform(-1, 1, (21, 2)).astype(np.float32),
        "rewards": rng.normal(size=21).astype(np.float32),
        "terminals": np.isin(np.arange(21), ends[[0, 2]]),
        "timeouts": np.arange(21) == ends[1],
    }


def episodes(rows):
    """The rows of each episode."""
    ends = np.flatnonzero(rows["terminals"] | rows["timeouts"]) + 1
    return [{key: array[a:b] for key, array in rows.items()} for a, b in zip((0, *ends[:-1]), ends, strict=True)]


def write_hdf5(rows):
    with h5py.File("data.h5", "w") as file:
        for key, array in rows.items():
            file[key] = array
    return "data.h5"


def write_npz(rows):
    np.savez("data.npz", **rows)
    return "data.npz"


def write_minari(rows):
    buffers = [
        EpisodeBuffer(
            observations=np.append(e["observations"], e["next_observations"][-1:], axis=0),
            actions=e["actions"],
            rewards=e["rewards"],
            terminations=e["terminals"],
            truncations=e["timeouts"],
        )
        for e in episodes(rows)
    ]
    space = Box(-np.inf, np.inf, (5,), np.float32)
    minari.create_dataset_from_buffers(
        "arm-v0", buffers, observation_space=space, action_space=Box(-1, 1, (2,)), data_format="hdf5"
    )
    return "minari:arm-v0"


def write_robomimic(rows, first=8, dones=None):
    """Demonstrations 8, 9 and 10, so that the order of names is another one."""
    with h5py.File("demos.hdf5", "w") as file:
        for number, episode in enumerate(episodes(rows), first):
            group = file.create_group(f"data/demo_{number}")
            group["actions"], group["rewards"] = episode["actions"], episode["rewards"]
            group["dones"] = episode["terminals"].astype(np.int64) if dones is None else dones[number - first]
            for key, columns in (("robot0_eef_pos", slice(0, 3)), ("object", slice(3, 5))):
                group[f"obs/{key}"] = episode["observations"][:, columns]
                group[f"next_obs/{key}"] = episode["next_observations"][:, columns]
            group["obs/robot0_joint_pos"] = np.zeros((len(episode["rewards"]), 7))
    return "demos.hdf5"


def write_lerobot(rows, version="v3.0", drop=(), rename=None, success=None):
    """A folder of LeRobot's layout, an episode a file, the second one's first."""
    import pyarrow
    import pyarrow.parquet

    tables, count = [], 0
    for number, episode in enumerate(episodes(rows)):
        length = len(episode["rewards"])
        columns = {
            "observation.state": episode["observations"][:, :3],
            "observation.more": episode["observations"][:, 3:],
            "next.observation.state": episode["next_observations"][:, :3],
            "next.observation.more": episode["next_observations"][:, 3:],
            "action": episode["actions"],
            "next.reward": episode["rewards"],
            "next.done": episode["terminals"],
            "episode_index": np.full(length, number),
            "frame_index": np.arange(length),
        }
        columns = {(rename or {}).get(key, key): array for key, array in columns.items() if key not in drop}
        tables.append(columns)
        count += length
    shutil.rmtree("demos", ignore_errors=True)
    names = ["chunk-000/file-010", "chunk-000/file-002", "chunk-001/file-000"]
    if version == "v2.1":
        names = [f"chunk-000/episode_{number:06d}" for number in range(3)]
    for name, columns in zip(names, tables, strict=True):
        cells = {}
        for key, array in columns.items():
            flat = pyarrow.array(array.reshape(-1))
            cells[key] = pyarrow.FixedSizeListArray.from_arrays(flat, array.shape[1]) if array.ndim > 1 else flat
        path = Path(f"demos/data/{name}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(cells), path)
    about = [{"episode_index": k, "length": len(t["episode_index"]), "tasks": ["a"]} for k, t in enumerate(tables)]
    for one, succeeded in zip(about, success or (), strict=False):
        one["success"] = succeeded
    Path("demos/meta/episodes/chunk-000").mkdir(parents=True)
    if version == "v2.1":
        Path("demos/meta/episodes.jsonl").write_text("\n".join(map(json.dumps, about)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(about), "demos/meta/episodes/chunk-000/file-000.parquet")
    kinds = {key: {"dtype": str(array.dtype), "shape": [*array.shape[1:]] or [1]} for key, array in tables[0].items()}
    kinds |= {
        "observation.images.top": {"dtype": "video", "shape": [480, 640, 3]},
        "timestamp": {"dtype": "float32", "shape": [1]},
    }
    told = {"codebase_version": version, "total_episodes": 3, "total_frames": count, "features": kinds}
    Path("demos/meta/info.json").write_text(json.dumps(told))
    return "demos"


# ----------------------------------------------------------------------------- one recording, every layout


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_every_layout_of_one_recording_gives_the_same_data(pyarrow, version):
    rows = recording()
    sources = [
        write_npz(rows),
        write_hdf5(rows),
        write_minari(rows),
        write_robomimic(rows),
        write_lerobot(rows, version),
    ]
    first, *others = [datasets.load(arm(5), source) for source in sources]
    assert (len(first), first.starts.tolist(), first.terminated.sum()) == (21, [0, 5, 17], 2)
    for data in others:
        assert data.fingerprint == first.fingerprint
        for name in ("observation", "action", "reward", "terminated", "truncated", "next_observation"):
            np.testing.assert_array_equal(getattr(data, name), getattr(first, name))
        assert warnings(data) == []
    assert {data.source.partition(":")[0] for data in others} == {"d4rl", "minari", "robomimic", "lerobot"}


def test_without_successors_the_next_frame_is_taken_within_the_episode(pyarrow):
    rows = recording()
    data = datasets.load(arm(5), write_lerobot(rows, drop=("next.observation.state",)))
    del rows["next_observations"]
    assert data.fingerprint == datasets.load(arm(5), write_npz(rows)).fingerprint
    assert len(data) == 20  # the cut episode's last row has no successor


# ----------------------------------------------------------------------------- LeRobot


def test_lerobots_own_file_is_read(pyarrow):
    """Written by lerobot 0.4.4."""
    with np.load(FOREIGN / "lerobot.npz") as file:
        rows = dict(file)
    data = datasets.load(arm(6), f"{FOREIGN}/lerobot")
    keys = ("observation.state", "observation.environment_state", "observation.force")
    seen = np.concatenate([rows[key] for key in keys], axis=1)
    kept = np.delete(np.arange(12), 8)  # the failed episode's last frame has no successor
    np.testing.assert_array_equal(data.observation, seen[kept])
    np.testing.assert_array_equal(data.action, rows["action"][kept])
    np.testing.assert_array_equal(data.reward, rows["next.reward"][kept, 0])
    np.testing.assert_array_equal(np.flatnonzero(data.terminated), [3, 10])
    np.testing.assert_array_equal(np.flatnonzero(data.truncated), [7])
    np.testing.assert_array_equal(data.next_observation[4:8], seen[5:9])
    assert warnings(data, 6) == []
    assert line(data, 6, "observed") == (
        "observation.state (3), observation.environment_state (2), observation.force (1)"
    )
    assert line(data, 6, "left out") == "observation.grid (float32), observation.images.top (image)"
    ended = datasets.load(arm(6), f"lerobot:{FOREIGN}/lerobot?reward=end")
    assert ended.fingerprint == data.fingerprint


def test_keys_are_chosen_in_any_order(pyarrow):
    source = f"lerobot:{write_lerobot(recording())}?keys=observation.more,observation.state"
    data = datasets.load(arm(5), source)
    np.testing.assert_array_equal(data.observation, recording()["observations"][:, [3, 4, 0, 1, 2]])
    np.testing.assert_array_equal(data.next_observation, recording()["next_observations"][:, [3, 4, 0, 1, 2]])
    assert data.source == source
    data = datasets.load(arm(3), "lerobot:demos?keys=observation.state")
    assert line(data, 3, "left out").startswith("observation.more (float32)")


@pytest.mark.parametrize(
    ("success", "version", "ends"),
    [
        ((True, False, True), "v3.0", [4, 19]),
        ((False, True, False), "v2.1", [16]),
        (None, "v3.0", [4, 16, 20]),
    ],
)
def test_a_reward_at_the_end_of_successes(pyarrow, success, version, ends):
    write_lerobot(recording(), version, ("next.reward", "next.done", "next.observation.more"), success=success)
    assert "no next.reward" in refusal("lerobot:demos")
    data = datasets.load(arm(5), "lerobot:demos?reward=end")
    failed = 3 - len(ends)
    assert len(data) == 21 - failed  # a failed episode's last frame has no successor
    due = np.zeros(21, bool)
    due[{2: [4, 20], 1: [16], 3: [4, 16, 20]}[len(ends)]] = True
    dropped = {2: [16], 1: [4, 20], 3: []}[len(ends)]
    np.testing.assert_array_equal(data.terminated, np.delete(due, dropped))
    np.testing.assert_array_equal(data.reward, data.terminated.astype(np.float32))
    assert data.truncated.sum() == failed
    assert any("all 3 are taken for successes" in text for text in warnings(data)) == (success is None)


def test_frames_after_the_end_are_left_out(pyarrow):
    rows = recording()
    path = write_lerobot(rows, rename={"next.done": "next.success"})
    assert datasets.load(arm(5), path).terminated.sum() == 2
    import pyarrow.parquet as parquet

    file = Path("demos/data/chunk-000/file-010.parquet")
    table = parquet.read_table(file)
    table = table.rename_columns(["next.done" if name == "next.success" else name for name in table.column_names])
    place = table.column_names.index("next.done")
    parquet.write_table(table.set_column(place, "next.done", [[False, False, True, True, True]]), file)
    for name in ("chunk-000/file-002", "chunk-001/file-000"):
        path = Path(f"demos/data/{name}.parquet")
        other = parquet.read_table(path)
        path.unlink()
        parquet.write_table(
            other.rename_columns(["next.done" if n == "next.success" else n for n in other.column_names]), path
        )
    info = Path("demos/meta/info.json")
    info.write_text(info.read_text().replace("next.success", "next.done"))
    data = datasets.load(arm(5), "demos")
    assert (len(data), data.starts.tolist()) == (19, [0, 3, 15])
    assert "2 rows of episodes that were over" in line(data, 5, "left out")


def test_doubtful_folders_are_warned_about(pyarrow):
    rows = recording()
    rows["terminals"] |= rows["timeouts"]
    assert "next.done ends all 3 episodes" in warnings(datasets.load(arm(5), write_lerobot(rows)))[0]
    assert "none is taken" in warnings(datasets.load(arm(5), write_lerobot(recording(), drop=("next.done",))))[0]
    write_lerobot(recording())
    Path("demos/data/chunk-001/file-000.parquet").unlink()
    data = datasets.load(arm(5), "demos")
    assert (len(data), "2 episodes of 17 frames in all" in warnings(data)[0]) == (17, True)


def replaced(path, old, new):
    path = Path("demos", path)
    path.write_text(path.read_text().replace(old, new))


REFUSALS = {
    "v1.6": (lambda: replaced("meta/info.json", "v3.0", "v1.6"), "convert it"),
    "v2.0": (lambda: replaced("meta/info.json", "v3.0", "v2.0"), "convert_dataset_v20_to_v21.py"),
    "v4.0": (lambda: replaced("meta/info.json", "v3.0", "v4.0"), "v2.1 and v3 are read"),
    "no info": (lambda: Path("demos/meta/info.json").unlink(), "no meta/info.json"),
    "no json": (lambda: replaced("meta/info.json", "{", "["), "cannot be read as LeRobot's"),
    "no action": (lambda: replaced("meta/info.json", '"action"', '"motor"'), "no action"),
    "no column": (lambda: replaced("meta/info.json", "observation.more", "observation.less"), "promises"),
    "other width": (lambda: replaced("meta/info.json", "[2]", "[4]"), "should have 4 numbers"),
    "no frames": (lambda: shutil.rmtree("demos/data"), "no Parquet file"),
    "no parquet": (lambda: Path("demos/data/chunk-000/file-002.parquet").write_bytes(b"PAR1"), "cannot be read"),
    "pointers": (
        lambda: Path("demos/data/chunk-000/file-002.parquet").write_text("version https://git-lfs.github.com/spec/v1"),
        "git lfs pull",
    ),
    "twice": (
        lambda: shutil.copy("demos/data/chunk-000/file-002.parquet", "demos/data/chunk-000/file-003.parquet"),
        "frames of episode 1",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_sound_folder_is_refused(pyarrow, name):
    damage, words = REFUSALS[name]
    write_lerobot(recording())
    damage()
    assert words in refusal("lerobot:demos")


def test_options_that_there_are_not_are_refused(pyarrow):
    write_lerobot(recording())
    assert "each once, not ?rewards=end" in refusal("lerobot:demos?rewards=end")
    assert "each once, not ?keys" in refusal("lerobot:demos?keys")
    assert "?reward=end gives 1" in refusal("lerobot:demos?reward=sparse")
    assert "'observation.images.top'; it has observation.state" in refusal("lerobot:demos?keys=observation.images.top")
    assert "or twice" in refusal("lerobot:demos?keys=observation.state,observation.state")
    write_npz(recording())
    assert "npz files have no options" in refusal("data.npz?keys=a")


def test_memory_is_told_before_frames_are_read(pyarrow, monkeypatch):
    write_lerobot(recording())
    write_robomimic(recording())
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    for source in ("lerobot:demos", "robomimic:demos.hdf5"):
        assert re.search(r"needs about 0.0 MB of memory to be read, and 0.0 MB are left", refusal(source))


# ----------------------------------------------------------------------------- robomimic


def test_robomimics_own_file_is_read():
    """Written by robomimic 0.3.0, with dones at successes and at the ends of recordings."""
    source = f"robomimic:{FOREIGN}/robomimic.hdf5"
    data = datasets.load(arm(11), source)
    keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
    with h5py.File(FOREIGN / "robomimic.hdf5") as file:
        demos = [file[f"data/demo_{number}"] for number in (2, 9, 10)]
        seen, after = (
            np.concatenate([np.concatenate([demo[f"{name}/{key}"] for key in keys], axis=1) for demo in demos])
            for name in ("obs", "next_obs")
        )
        actions = np.concatenate([demo["actions"] for demo in demos])
        assert [demo["dones"][()].tolist() for demo in demos] == [[0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0, 1]]
    kept = [0, 1, 3, 4, 5, 7, 8, 9, 10, 11]  # no row after the first success of an episode
    np.testing.assert_array_equal(data.observation, seen[kept].astype(np.float32))
    np.testing.assert_array_equal(data.next_observation, after[kept].astype(np.float32))
    np.testing.assert_allclose(data.action, actions[kept], rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(data.terminated), [1, 4])
    np.testing.assert_array_equal(np.flatnonzero(data.truncated), [9])
    assert line(data, 11, "left out") == "agentview_image, robot0_joint_pos, 2 rows of episodes that were over"
    assert "1 dones stand where the reward is 0" in warnings(data, 11)[0]
    chosen = datasets.load(arm(5), f"{source}?mask=train?keys=robot0_gripper_qpos,robot0_eef_pos")
    assert chosen.starts.tolist() == [0, 2]
    np.testing.assert_array_equal(
        chosen.observation, seen[[0, 1, 7, 8, 9, 10, 11]][:, [7, 8, 0, 1, 2]].astype(np.float32)
    )


def test_a_done_without_a_reward_is_an_end_where_rewards_are_dense():
    rows = recording()
    rows["rewards"][20] = 0
    data = datasets.load(arm(5), write_robomimic(rows))
    assert (data.terminated.sum(), warnings(data)) == (2, [])


def broken(change):
    write_robomimic(recording())
    with h5py.File("demos.hdf5", "a") as file:
        change(file)


def cut(file):
    array = file["data/demo_9/actions"][:-1]
    del file["data/demo_9/actions"]
    file["data/demo_9/actions"] = array


def widen(file):
    del file["data/demo_9/obs/object"]
    file["data/demo_9/obs/object"] = np.zeros((12, 3))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda file: file.__delitem__("data/demo_9/dones"), "", "demo_9 has no dones"),
        (lambda file: file.__delitem__("data/demo_8/obs"), "", "dataset_states_to_obs.py"),
        (lambda file: file.__delitem__("data"), "", "no group data"),
        (lambda file: [file.__delitem__(f"data/demo_{n}") for n in (8, 9, 10)], "", "no demonstrations"),
        (cut, "", "rows of rewards for 11 actions"),
        (widen, "", "demo_9 has obs/object of another size than demo_8"),
        (lambda file: None, "?mask=train", "its masks are none"),
        (lambda file: file.__setitem__("mask/a", np.array([b"demo_7"])), "?mask=a", "names demo_7"),
        (lambda file: None, "?keys=object,rgb", "'rgb'; it has object, robot0_eef_pos, robot0_joint_pos"),
    ],
)
def test_what_is_no_sound_file_is_refused(change, options, words):
    broken(change)
    assert words in refusal(f"robomimic:demos.hdf5{options}")


def test_what_stands_beside_demonstrations_is_told():
    broken(lambda file: (file.create_group("data/take_1"), file["data/demo_8"].attrs.__setitem__("num_samples", 4)))
    told = warnings(datasets.load(arm(5), "demos.hdf5"))
    assert "left out: take_1" in told[0]
    assert "1 demonstrations have other lengths" in told[1]


# ----------------------------------------------------------------------------- paths alone


def test_a_path_alone_is_told_by_its_contents(tmp_path):
    write_npz(recording())
    write_hdf5(recording())
    write_robomimic(recording())
    assert naming.with_kind("data.npz") == "npz:data.npz"
    assert naming.with_kind("data.h5") == "d4rl:data.h5"
    assert naming.with_kind("demos.hdf5?mask=a") == "robomimic:demos.hdf5?mask=a"
    for source in ("minari:a/b-v0", "d4rl:data.h5", "hopper", "recipe:data.npz", str(tmp_path)):
        assert naming.with_kind(source) == source
    assert "no such file" in refusal("none.h5")
    np.savez("play.npz", masks=np.zeros(3), **recording() | {"next_observations": 0, "timeouts": 0})
    with np.load("play.npz") as file:
        np.savez("play.npz", **{key: file[key] for key in file if key not in ("next_observations", "timeouts")})
    assert "name it npz:play.npz or ogbench:play.npz" in refusal("play.npz")
    with h5py.File("other.h5", "w") as file:
        file["images"] = np.zeros(3)
    assert "neither as D4RL's files" in refusal("other.h5")
    Path("bad.h5").write_text("no")
    Path("bad.npz").write_text("no")
    assert "cannot be read as HDF5" in refusal("bad.h5")
    assert "cannot be read as a NumPy archive" in refusal("bad.npz")


def test_places_hold_from_other_folders(tmp_path):
    write_npz(recording())
    Path("demos/meta").mkdir(parents=True)
    assert resuming.whole("data.npz") == f"{tmp_path}/data.npz"
    assert resuming.whole("robomimic:a.h5?keys=b,c") == f"robomimic:{tmp_path}/a.h5?keys=b,c"
    assert resuming.whole("lerobot:demos?reward=end") == f"lerobot:{tmp_path}/demos?reward=end"
    assert resuming.whole("demos") == f"{tmp_path}/demos"
    (tmp_path / "work").mkdir()
    shutil.move("data.npz", "work/data.npz")
    saved = {"run": {"out": "runs/a", "dataset": "data.npz", "env": "Arm5-v0"}, "began_in": str(tmp_path / "work")}
    assert resuming.began_in(tmp_path / "runs" / "a", saved) == tmp_path / "work"


def test_every_kind_that_is_read_can_be_named():
    assert set(datasets.READERS) <= set(naming.KINDS)
    assert set(naming.FILES) | set(naming.OPTIONS) <= set(datasets.READERS)
