"""algorithms/bc.py: every policy's loss against an independent NumPy computation, and what each is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ACTION, OBSERVATION, ROWS, dense, mlp, parameters, random_batch, shaken

from algorithms.bc import BC, POLICIES, Config
from common import tasks
from common.datasets import Dataset

KEY = jax.random.key(4)


def make_agent(policy: str, **values) -> BC:
    config = Config(policy=policy, **({"hidden": (8, 6), "batch_size": ROWS, "components": 3, "bins": 5} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = BC.create(config, jax.random.key(0), example, random_batch(1, 20))
    (network,) = shaken(agent.policy)
    return agent.replace(policy=network)


def normal(agent, batch):
    return (np.asarray(batch.observation, np.float64) - agent.normal.mean) / agent.normal.std


def gaussian(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def numpy_loss(agent, batch):
    c, p, x = agent.config, parameters(agent.policy), normal(agent, batch)
    action = np.asarray(batch.action, np.float64)
    match c.policy:
        case "deterministic":
            return np.mean((np.tanh(dense(mlp(x, p["features"]), p["mean"])) - action) ** 2)
        case "gaussian":
            mean, std = np.tanh(dense(mlp(x, p["features"]), p["mean"])), np.exp(p["log_std"])
            return -np.log(gaussian(action, mean, std)).sum(-1).mean()
        case "gmm":
            h = mlp(x, p["features"])
            means = np.tanh(dense(h, p["means"])).reshape(ROWS, 3, ACTION)
            stds = np.exp(dense(h, p["log_stds"]).clip(-5, 2)).reshape(ROWS, 3, ACTION)
            logits = dense(h, p["logits"])
            weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            return -np.log((weights * gaussian(action[:, None], means, stds).prod(-1)).sum(-1)).mean()
        case "categorical":
            logits = dense(mlp(x, p["features"]), p["logits"]).reshape(ROWS, ACTION, 5)
            probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            total = 0.0
            for row in range(ROWS):
                for d in range(ACTION):
                    index = next(b for b in range(5) if action[row, d] < -1 + 0.4 * (b + 1) or b == 4)
                    total -= np.log(probabilities[row, d, index])
            return total / ROWS
        case "vae":
            h = mlp(np.concatenate([x, action], -1), p["encoder"])
            mean, log_std = dense(h, p["mean"]), dense(h, p["log_std"]).clip(-4, 15)
            z = mean + np.exp(log_std) * np.asarray(jax.random.normal(KEY, mean.shape), np.float64)
            decoded = np.tanh(dense(mlp(np.concatenate([x, z], -1), p["decoder"]), p["action"]))
            divergence = -0.5 * (1 + 2 * log_std - mean**2 - np.exp(log_std) ** 2)
            return np.mean((decoded - action) ** 2) + 0.5 * divergence.mean()
        case "flow":
            noise_key, time_key = jax.random.split(KEY)
            noise = np.asarray(jax.random.normal(noise_key, action.shape), np.float64)
            time = np.asarray(jax.random.uniform(time_key, (ROWS,)), np.float64)[:, None]
            between = (1 - time) * noise + time * action
            velocity = dense(mlp(np.concatenate([x, between, time], -1), p["features"]), p["out"])
            return np.mean((velocity - (action - noise)) ** 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_loss_equals_numpy(policy):
    agent, batch = make_agent(policy), random_batch(2, ROWS)
    loss, _ = agent.loss(agent.policy.params, batch, KEY)
    np.testing.assert_allclose(loss, numpy_loss(agent, batch), rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_actions_are_actions_and_the_same_for_the_same_observation(policy):
    agent = make_agent(policy)
    observation = np.random.default_rng(0).normal(size=(2, 9, OBSERVATION)).astype(np.float32)
    action = np.asarray(agent.act(observation))
    assert action.shape == (2, 9, ACTION)
    assert np.abs(action).max() <= 1
    np.testing.assert_array_equal(action, agent.act(observation))
    # Whatever stands beside it.
    np.testing.assert_allclose(np.asarray(agent.act(observation[1:, :3])), action[1:, :3], atol=1e-6)


def test_the_policy_learns_and_acts_on_normalised_observations():
    """Of data whose mean is far from 0, against NumPy; what is drawn from them stays as it is until then."""
    prior = random_batch(1, 200)
    prior = prior.replace(observation=30 + 5 * prior.observation)
    example = jax.tree.map(lambda x: x[0], prior)
    config = Config(hidden=(8, 6), batch_size=500)
    for normalise in (True, False):
        agent = BC.create(dataclasses.replace(config, normalise=normalise), jax.random.key(0), example, prior)
        p, x = parameters(agent.policy), prior.observation.astype(np.float64)
        if normalise:
            x = (x - x.mean(0)) / (x.std(0) + 1e-3)
        action = np.tanh(dense(mlp(x, p["features"]), p["mean"]))
        np.testing.assert_allclose(agent.act(prior.observation), action, rtol=1e-4, atol=1e-5)
        loss, _ = agent.loss(agent.policy.params, prior, KEY)
        np.testing.assert_allclose(loss, np.mean((action - prior.action) ** 2), rtol=1e-4)
        batches = agent.sample(jax.random.key(1), None, prior)
        assert batches.observation.shape == (1, 500, OBSERVATION)
        drawn = jax.tree.map(lambda x: x[0], batches)
        rows = (drawn.observation[:, None] == prior.observation).all(-1)
        assert (rows.sum(1) == 1).all()
        assert rows.any(0).mean() > 0.8
        np.testing.assert_array_equal(drawn.action, prior.action[rows.argmax(1)])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_that_has_diverged_gives_no_action(policy):
    agent = make_agent(policy)
    broken = agent.replace(policy=agent.policy.replace(params=jax.tree.map(lambda x: x * jnp.nan, agent.policy.params)))
    assert np.isfinite(agent.act(np.ones((4, OBSERVATION), np.float32))).all()
    assert not np.isfinite(broken.act(np.ones((4, OBSERVATION), np.float32))).any()


@pytest.mark.parametrize("policy", ["vae", "flow"])
def test_what_is_drawn_differs_between_observations(policy):
    """At all but the same observation the policy is the same, and the draws are not."""
    agent = make_agent(policy)
    observation = np.tile(np.float32(0.3), (200, OBSERVATION)) + 1e-6 * np.arange(200, dtype=np.float32)[:, None]
    spread = np.asarray(agent.act(observation)).std(axis=0)
    assert (spread > 1e-3).all()


def two_ways(count: int = 4000):
    """In one state half the demonstrations go left, half go right: the mean, straight on, is what nobody does."""
    rng = np.random.default_rng(0)
    action = np.where(rng.random((count, 1)) < 0.5, -0.7, 0.7) + rng.normal(0, 0.03, (count, 1))
    observation = rng.normal(0, 1, (count, 2))
    return random_batch(0, count).replace(
        observation=observation.astype(np.float32), action=action.astype(np.float32),
        next_observation=observation.astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_multimodal_policies_choose_a_way_and_the_others_the_mean(policy):
    data = jax.tree.map(jnp.asarray, two_ways())
    config = Config(policy=policy, hidden=(64, 64), batch_size=256, learning_rate=1e-3, kl_weight=0.01)
    agent = BC.create(config, jax.random.key(0), jax.tree.map(lambda x: x[0], data), data)

    @jax.jit
    def train(agent):
        def step(agent, key):
            draw, learn = jax.random.split(key)
            return agent.update(agent.sample(draw, None, data), learn, 1)[0], None

        return jax.lax.scan(step, agent, jax.random.split(jax.random.key(1), 1500))[0]

    distance = np.abs(np.abs(np.asarray(train(agent).act(data.observation[:300]))) - 0.7)[:, 0]
    if policy in ("deterministic", "gaussian"):
        assert np.median(distance) > 0.5
    elif policy == "vae":
        # Between the modes of the decoder lies a narrow band of latents.
        assert np.mean(distance < 0.2) > 0.6
    else:
        assert np.mean(distance < 0.15) > 0.85


def test_filtered_cloning_sees_the_best_episodes_alone():
    reward = np.array([1, 1, 9, 9, 2, 2], np.float32)
    ends = np.array([False, True] * 3)
    data = Dataset(
        observation=np.arange(6, dtype=np.float32)[:, None].repeat(11, 1), action=np.zeros((6, 3), np.float32),
        reward=reward, terminated=ends, truncated=np.zeros(6, bool),
        next_observation=np.zeros((6, 11), np.float32), success=np.zeros(6, bool), source="npz:test",
    )  # fmt: skip
    task = tasks.find("hopper-medium")
    assert BC.prepare(Config(top_fraction=0.3), data, task).observation[:, 0].tolist() == [2, 3]
    assert BC.prepare(Config(), data, task).observation[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_one_update_is_one_step_of_adam():
    agent, batch = make_agent("deterministic"), random_batch(3, ROWS)
    gradient = jax.grad(lambda p: agent.loss(p, batch, KEY)[0])(agent.policy.params)
    after, metrics = agent.update_once(batch, KEY, jnp.int32(1))
    for old, slope, new in zip(*(jax.tree.leaves(x) for x in (agent.policy.params, gradient, after.policy.params)),
                               strict=True):  # fmt: skip
        np.testing.assert_allclose(new, old - 3e-4 * slope / (np.abs(slope) + 1e-8), rtol=1e-3, atol=1e-6)
    assert metrics.keys() == {"loss"}
