"""What trains the recipes' policies: n-step transitions worked out by hand, which stages become which quality, and
policies on the host beside the networks that were trained."""

import jax
import numpy as np

from algorithms.discrete_bcq import Scores
from benchmarks.makers.classic_policies import greedy, mean_return
from benchmarks.makers.locomotion_policies import choose
from benchmarks.makers.parallel_sac import Memory, Pace, policy
from common import tasks
from common.networks import Network, TanhNormalActor

PACE = Pace(
    simulations=2, discount=0.5, steps_ahead=3, random_steps=0, updates=1, capacity=20
)  # fmt: skip


def remember(steps):
    """Memory of two simulations; a step is (reward, terminated, truncated) of each, observed as its number."""
    memory = Memory(PACE, 1, 1)
    for number, step in enumerate(steps):
        reward, terminated, truncated = (np.array(column) for column in zip(*step, strict=True))
        before = np.full((2, 1), number, np.float32)
        memory.add(before, before, reward.astype(np.float32), terminated, truncated, before + 1)
    return memory


def test_three_step_returns_stop_where_an_episode_ends():
    go = (1.0, False, False)
    memory = remember([(go, go), (go, (4.0, True, False)), (go, go), ((8.0, False, True), go), (go, go)])
    rows = memory.rows
    assert memory.size == 6  # the steps whose next two are known, of both simulations
    rewards, masks = rows.reward[:6].reshape(3, 2), rows.mask[:6].reshape(3, 2)
    following = rows.next_observation[:6, 0].reshape(3, 2)
    # The first runs on until its fourth step, which a time limit cuts: it bootstraps from there, two steps on.
    np.testing.assert_allclose(rewards[:, 0], [1 + 0.5 + 0.25, 1 + 0.5 + 0.25 * 8, 1 + 0.5 * 8])
    np.testing.assert_allclose(masks[:, 0], [0.125, 0.125, 0.25])
    assert following[:, 0].tolist() == [3, 4, 4]
    # The second terminates at its second step, and nothing follows.
    np.testing.assert_allclose(rewards[:, 1], [1 + 0.5 * 4, 4, 1 + 0.5 + 0.25])
    np.testing.assert_allclose(masks[:, 1], [0, 0, 0.125])


def test_only_what_is_remembered_is_drawn_and_the_oldest_is_forgotten():
    go = (1.0, False, False)
    memory = remember([(go, go)] * 15)
    assert memory.size == 20
    drawn = memory.draw(np.random.default_rng(0), (3, 100))
    assert drawn.observation.shape == (3, 100, 1)
    assert set(np.unique(drawn.observation).tolist()) == set(range(3, 13))


def test_a_policy_on_the_host_samples_what_the_network_does():
    network = Network.create(TanhNormalActor((8, 6), 2), jax.random.key(0), np.zeros(3, np.float32))
    observation = np.random.default_rng(0).normal(size=(1, 3)).astype(np.float32)
    told = network(observation)
    drawn = np.arctanh(policy(network)(observation.repeat(20_000, axis=0), np.random.default_rng(1)).astype(np.float64))
    np.testing.assert_allclose(drawn.mean(axis=0), told.mean[0], atol=0.05)
    np.testing.assert_allclose(drawn.std(axis=0), np.exp(told.log_std[0]), rtol=0.05)


def test_a_dqn_on_the_host_chooses_what_the_network_does():
    network = Network.create(Scores((8, 6), 3), jax.random.key(0), np.zeros(4, np.float32))
    observation = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    chosen = greedy(network)(observation)
    np.testing.assert_array_equal(chosen, network(observation).argmax(-1))
    assert len(np.unique(chosen)) > 1


def test_the_mean_return_of_a_cart_that_is_always_pushed_to_one_side():
    task, pushed = tasks.find("cartpole-mixed"), []

    def one_side(observation):
        pushed.append(len(observation))
        return np.ones(len(observation), int)

    mean = mean_return(task, one_side, 20)
    assert 8 <= mean <= 11
    assert sum(pushed) == 20 * mean  # a reward of 1 per step of those still running


def test_medium_is_the_first_stage_with_two_fifths_of_the_expert_and_replay_leads_to_it():
    scores = [0.0, 10, 20, 35, 37, 20, 60, 80, 90, 85, 70, 60]
    replay, expert = choose(scores)
    assert expert == 8  # the best of the last third
    assert replay == [0, 1, 2, 3, 4]  # 37 is the first above 36
    replay, _ = choose([0.0] * 40 + [50.0] * 30)
    assert (len(replay), replay[0], replay[-1]) == (10, 0, 40)
