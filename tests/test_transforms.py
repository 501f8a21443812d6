"""Transforms against values worked out by hand, on episodes that end in each of the three ways."""

import dataclasses

import numpy as np
import pytest

from common.datasets import Dataset, transforms
from common.errors import Refused

# Episode A terminates after three steps, B is cut by the time limit after two, C by the end of the file after two.
REWARD = np.array([1, 2, 3, 10, 20, 5, 7], np.float32)
NUMBER = np.arange(7, dtype=np.float32)


@pytest.fixture
def data() -> Dataset:
    next_number = np.array([1, 2, 2.5, 4, 4.5, 6, 6.5], np.float32)
    return Dataset(
        observation=NUMBER[:, None],
        action=NUMBER[:, None] / 10,
        reward=REWARD,
        terminated=np.array([0, 0, 1, 0, 0, 0, 0], bool),
        truncated=np.array([0, 0, 0, 0, 1, 0, 1], bool),
        next_observation=next_number[:, None],
        success=np.zeros(7, bool),
        source="test:data",
    )


def test_returns_to_go(data):
    plain = transforms.returns_to_go(data, REWARD, 1.0)
    np.testing.assert_allclose(plain, [6, 5, 3, 30, 20, 12, 7])
    half = transforms.returns_to_go(data, REWARD, 0.5)
    np.testing.assert_allclose(half, [1 + 1 + 0.75, 2 + 1.5, 3, 10 + 10, 20, 5 + 3.5, 7])


def test_a_truncated_episode_goes_on_with_its_last_reward_for_ever(data):
    continued = transforms.returns_to_go(data, REWARD, 0.5, continued=True)
    # 20 / (1 - 0.5) = 40 and 7 / 0.5 = 14 at the two truncations; nothing changes where the task terminated.
    np.testing.assert_allclose(continued, [2.75, 3.5, 3, 10 + 20, 40, 5 + 7, 14])
    with pytest.raises(Refused, match="below 1"):
        transforms.returns_to_go(data, REWARD, 1.0, continued=True)


def test_returns_of_a_transformed_reward(data):
    np.testing.assert_allclose(transforms.returns_to_go(data, REWARD - 1, 1.0), [3, 3, 2, 28, 19, 10, 6])


def test_many_episodes_of_random_lengths_against_a_loop():
    rng = np.random.default_rng(0)
    end = rng.random(500) < 0.1
    end[-1] = True
    terminated = end & (rng.random(500) < 0.5)
    reward = rng.normal(size=500).astype(np.float32)
    column = reward[:, None]
    data = Dataset(column, column, reward, terminated, end & ~terminated, column, end, "test:data")
    expected, following = np.zeros(500), 0.0
    for row in reversed(range(500)):
        if terminated[row]:
            following = reward[row]
        elif end[row]:
            following = reward[row] / (1 - 0.9)
        else:
            following = reward[row] + 0.9 * following
        expected[row] = following
    np.testing.assert_allclose(transforms.returns_to_go(data, reward, 0.9, True), expected, rtol=1e-5, atol=1e-5)


def test_the_next_action_never_comes_from_another_episode(data):
    np.testing.assert_allclose(transforms.next_action(data)[:, 0], [0.1, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6])


def test_n_step_stops_at_every_end(data):
    two = transforms.n_step(data, REWARD, 0.5, 2)
    np.testing.assert_allclose(two.reward, [1 + 1, 2 + 1.5, 3, 10 + 10, 20, 5 + 3.5, 7])
    np.testing.assert_allclose(two.discount, [0.25, 0.25, 0.5, 0.25, 0.5, 0.25, 0.5])
    np.testing.assert_allclose(two.mask, [1, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(two.next_observation[:, 0], [2, 2.5, 2.5, 4.5, 4.5, 6.5, 6.5])
    one = transforms.n_step(data, REWARD, 0.5, 1)
    np.testing.assert_allclose(one.reward, REWARD)
    np.testing.assert_allclose(one.next_observation, data.next_observation)
    np.testing.assert_allclose(one.mask, 1 - data.terminated)


def test_the_best_episodes_fill_the_fraction(data):
    # Returns 6, 30, 12 over 3, 2 and 2 rows.
    assert transforms.episode_returns(data).tolist() == [6, 30, 12]
    for fraction, rows in (
        (0.01, [3, 4]),
        (2 / 7, [3, 4]),
        (0.3, [3, 4, 5, 6]),
        (4 / 7, [3, 4, 5, 6]),
        (1.0, range(7)),
    ):
        assert transforms.top_fraction(data, fraction).observation[:, 0].tolist() == list(rows)
    for wrong in (0, -0.1, 1.1):
        with pytest.raises(Refused):
            transforms.top_fraction(data, wrong)


def test_splits_and_samples_keep_episodes_whole(data):
    train, validation = transforms.split(data, 1 / 3, seed=0)
    assert len(train.starts) == 2
    assert len(validation.starts) == 1
    together = np.concatenate([train.observation, validation.observation])[:, 0]
    assert sorted(together.tolist()) == list(range(7))
    again, _ = transforms.split(data, 1 / 3, seed=0)
    assert again.fingerprint == train.fingerprint
    assert len({transforms.split(data, 1 / 3, seed=s)[1].fingerprint for s in range(20)}) == 3
    for share in (0.0, 0.1, 0.9, 1.0):
        with pytest.raises(Refused):
            transforms.split(data, share, seed=0)
    assert len(transforms.subsample(data, 0.34, seed=1).starts) == 1
    assert transforms.subsample(data, 1.0, seed=1).fingerprint == data.fingerprint


def test_mixtures_are_the_parts_one_after_another(data):
    both = transforms.mix(data, data)
    assert len(both) == 14
    assert both.starts.tolist() == [0, 3, 5, 7, 10, 12]
    assert both.source == "test:data + test:data"
    column = np.zeros((7, 2), np.float32)
    wide = dataclasses.replace(data, observation=column, next_observation=column)
    with pytest.raises(Refused, match="different sizes"):
        transforms.mix(data, wide)


def test_reward_scale(data):
    assert transforms.return_range_scale(data, REWARD) == pytest.approx(1000 / 24)
    with pytest.raises(Refused, match="same return"):
        transforms.return_range_scale(data, np.zeros(7, np.float32))


def test_returns_of_a_cut_episode_go_on_from_the_nearest_state():
    """Against the sum itself, reward by reward, on a random walk over a grid: of states as near, the first counts."""
    rng = np.random.default_rng(3)
    size = np.array([1, 2, 9, 30, 12])
    end = np.zeros(size.sum(), bool)
    end[np.cumsum(size) - 1] = True
    terminated = end & (np.arange(size.sum()) < 12)
    terminated[[0]] = False
    observation = np.cumsum(rng.integers(-1, 2, size=(len(end), 2)), axis=0).astype(np.float32)
    reward = rng.normal(size=len(end)).astype(np.float32)
    data = Dataset(observation, observation, reward, terminated, end & ~terminated, observation, end, "test:data")
    expected = transforms.returns_to_go(data, reward, 0.9).astype(np.float64)
    assert terminated.sum() == 2
    jumps = set()
    for start, count in zip(data.starts, size, strict=True):
        last = start + count - 1
        if terminated[last]:
            continue
        for row in range(start, last + 1):
            own = list(reward[row : last + 1])
            missing = count - len(own)
            if missing:
                candidates = range(start, last + 1 - missing + 1)  # rows with at least as many rewards as are missing
                near = min(candidates, key=lambda i: (np.linalg.norm(observation[i] - observation[last]), i))
                jumps.add(near - start)
                own += list(reward[near : near + missing])
            assert len(own) == count
            expected[row] = sum(0.9**k * r for k, r in enumerate(own))
    assert len(jumps) > 5
    np.testing.assert_allclose(transforms.continued_returns(data, reward, 0.9), expected, rtol=1e-5, atol=1e-6)
