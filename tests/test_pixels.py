"""V-D4RL's two layouts: which frames a transition joins, what is refused."""

import h5py
import numpy as np
import pytest

from common.datasets import pixels
from common.errors import Refused


def episode(length: int, start: int, size: int = 6, terminal: bool = False) -> dict[str, np.ndarray]:
    """Frame k shows the number start + k; the action and reward that led to it are its number / 100."""
    numbers = np.arange(start, start + length + 1)
    rows = {
        "image": np.broadcast_to(numbers[:, None, None, None], (length + 1, size, size, 3)).astype(np.uint8),
        "action": np.repeat(numbers[:, None], 2, axis=1) / 100,
        "reward": numbers / 100,
        "is_first": np.arange(length + 1) == 0,
        "is_last": np.arange(length + 1) == length,
        "is_terminal": (np.arange(length + 1) == length) & terminal,
        "discount": 1.0 - ((np.arange(length + 1) == length) & terminal),
    }
    rows["action"][0], rows["reward"][0] = np.nan, np.nan  # belong to no transition
    return rows


EPISODES = [episode(3, 0), episode(2, 10, terminal=True), episode(1, 20)]


@pytest.fixture
def archives(tmp_path):
    for number, rows in enumerate(EPISODES):
        np.savez_compressed(tmp_path / f"{number}-{len(rows['reward']) - 1}.npz", **rows)
    return tmp_path


@pytest.fixture
def table(tmp_path):
    joined = {key: np.concatenate([rows[key] for rows in EPISODES]) for key in EPISODES[0]}
    (tmp_path / "table").mkdir()
    with h5py.File(tmp_path / "table" / "data.hdf5", "w") as file:
        file.create_dataset("observation", data=joined["image"].transpose(0, 3, 1, 2), compression="gzip")
        file["action"], file["discount"] = joined["action"], joined["discount"]
        file["reward"] = joined["reward"][:, None]
        file["step_type"] = np.where(joined["is_first"], 0, np.where(joined["is_last"], 2, 1)).astype(float)
    return tmp_path / "table"


def refusal(folder) -> str:
    with pytest.raises(Refused) as refused:
        pixels.load(f"vd4rl:{folder}")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_transition_joins_the_frames_before_and_after_its_action(archives):
    data = pixels.load(f"vd4rl:{archives}")
    assert len(data) == 6
    assert data.frames.dtype == np.uint8
    assert len(data.frames) == 9  # T + 1 of each episode, none twice
    before = data.observation(np.arange(6), stack=1)[:, 0, 0, 0]
    after = data.observation(np.arange(6), stack=1, after=True)[:, 0, 0, 0]
    assert before.tolist() == [0, 1, 2, 10, 11, 20]
    assert after.tolist() == [1, 2, 3, 11, 12, 21]
    np.testing.assert_allclose(data.reward, after / 100)
    np.testing.assert_allclose(data.action[:, 1], after / 100)
    assert data.terminated.tolist() == [False, False, False, False, True, False]
    assert data.truncated.tolist() == [False, False, True, False, False, True]
    assert data.starts.tolist() == [0, 3, 5]


def test_stacks_repeat_the_first_frame_and_never_reach_into_another_episode(archives):
    data = pixels.load(f"vd4rl:{archives}")
    stacks = data.observation(np.array([0, 2, 3, 4, 5]), stack=3)
    assert stacks.shape == (5, 6, 6, 9)
    assert stacks[:, 0, 0, ::3].tolist() == [[0, 0, 0], [0, 1, 2], [10, 10, 10], [10, 10, 11], [20, 20, 20]]
    later = data.observation(np.array([0, 4, 5]), stack=3, after=True)
    assert later[:, 0, 0, ::3].tolist() == [[0, 0, 1], [10, 11, 12], [20, 20, 21]]


def test_both_layouts_are_the_same_data(archives, table):
    first, second = pixels.load(f"vd4rl:{archives}"), pixels.load(f"vd4rl:{table}")
    assert first.fingerprint == second.fingerprint


def test_bad_folders_are_refused(archives, table, tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no folder of V-D4RL's" in refusal(tmp_path / "empty")
    for change, words in (
        ({"image": np.zeros((4, 6, 6, 3))}, "expected uint8"),
        ({"image": np.zeros((4, 6, 6, 1), np.uint8)}, "3 channels"),
        ({"image": np.zeros((4, 8, 8, 3), np.uint8)}, "differ in the sizes"),
        ({"reward": np.full(4, np.inf)}, "infinite reward"),
        ({"action": np.zeros((3, 2))}, "3 rows of action for 4 of image"),
        ({"is_first": np.ones(4, bool)}, "not one episode"),
    ):
        np.savez(archives / "0-3.npz", **EPISODES[0] | change)
        assert words in refusal(archives)
    (archives / "0-3.npz").write_bytes((archives / "1-2.npz").read_bytes()[:200])
    assert "damaged" in refusal(archives)
    with h5py.File(table / "data.hdf5", "a") as file:
        file["step_type"][2] = 0
    assert "step_type" in refusal(table)
    (table / "data.hdf5").write_bytes((table / "data.hdf5").read_bytes()[:500])
    assert "cannot be read as HDF5" in refusal(table)
