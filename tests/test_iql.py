"""algorithms/iql.py against an independent NumPy computation, and its semantics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ACTION, OBSERVATION, ROWS, adam_first_step, head, parameters, q_values, random_batch, shaken

from algorithms.iql import IQL, PRESETS, Config, Prior
from common import tasks
from common.commandline import parse
from common.datasets import Dataset
from common.replay import Replay


def make_agent(**values) -> IQL:
    config = Config(**({"hidden": (8, 6), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = IQL.create(config, jax.random.key(0), example, Prior(random_batch(1, 20), jnp.float32(2.0)))
    actor, value, critic, target = shaken(agent.actor, agent.value, agent.critic, agent.target_critic)
    return agent.replace(actor=actor, value=value, critic=critic, target_critic=target)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_value_loss_equals_numpy(expectile):
    agent, batch = make_agent(expectile=expectile), random_batch(2, ROWS)
    value = head(parameters(agent.value), batch.observation)[:, 0]
    gap = q_values(agent.target_critic, range(2), batch.observation, batch.action).min(0) - value
    expected = np.mean([(1 - expectile if u < 0 else expectile) * u * u for u in gap])
    loss, metrics = agent.value_loss(agent.value.params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["value"], value.mean(), rtol=1e-5)


@pytest.mark.parametrize("largest", [100.0, 1.1])
def test_actor_loss_equals_numpy(largest):
    agent, batch = make_agent(inverse_temperature=2.0, largest_weight=largest), random_batch(3, ROWS)
    value = head(parameters(agent.value), batch.observation)[:, 0]
    advantage = q_values(agent.target_critic, range(2), batch.observation, batch.action).min(0) - value
    weight = np.minimum(np.exp(2.0 * advantage), largest)
    p = parameters(agent.actor)
    mean, std = np.tanh(head(p, batch.observation)), np.exp(np.asarray(p["log_std"], np.float64))
    density = np.exp(-0.5 * ((batch.action - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    loss, metrics = agent.actor_loss(agent.actor.params, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, -np.mean(weight * np.log(density).sum(-1)), rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], weight.mean(), rtol=1e-5)
    if largest == 1.1:
        assert (weight == 1.1).any()
        assert (weight < 1.1).any()


def test_critic_loss_equals_numpy_and_never_asks_the_policy():
    agent, batch = make_agent(), random_batch(4, ROWS)
    next_value = head(parameters(agent.value), batch.next_observation)[:, 0]
    target = batch.reward + 0.99 * batch.mask * next_value
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    loss, _ = agent.critic_loss(agent.critic.params, batch)
    np.testing.assert_allclose(loss, np.mean((q - target) ** 2), rtol=1e-5)
    other = agent.replace(actor=agent.actor.replace(params=jax.tree.map(lambda x: x + 1, agent.actor.params)))
    assert other.critic_loss(agent.critic.params, batch)[0] == loss


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    agent, batch = make_agent(), random_batch(5, 2)
    for mask, moves in ((1.0, True), (0.0, False)):
        rows = batch.replace(mask=np.full(2, mask, np.float32))
        elsewhere = rows.replace(next_observation=rows.next_observation + 1)
        same = agent.critic_loss(agent.critic.params, rows)[0] == agent.critic_loss(agent.critic.params, elsewhere)[0]
        assert same != moves


def test_one_step_is_value_actor_critic_target_each_with_what_came_before():
    """Against the losses, applied in the order of the authors' code with Adam's first step by hand."""
    agent, batch, key = make_agent(learning_rate=1e-2, target_rate=0.25), random_batch(6, 1, ROWS), jax.random.key(1)
    after, _ = jax.jit(IQL.update)(agent, batch, key, 1)
    one = jax.tree.map(lambda x: x[0], batch)
    (step_key,) = jax.random.split(key, 1)

    def stepped(network, loss):
        return adam_first_step(network.params, jax.grad(lambda p: loss(p)[0])(network.params), 1e-2)

    def same(network, expected):
        chex.assert_trees_all_close(network.params, expected, rtol=2e-3, atol=2e-5)

    value = stepped(agent.value, lambda p: agent.value_loss(p, one))
    same(after.value, value)
    with_value = agent.replace(value=after.value)
    same(after.actor, stepped(agent.actor, lambda p: with_value.actor_loss(p, one, step_key)))
    same(after.critic, stepped(agent.critic, lambda p: with_value.critic_loss(p, one)))
    tracked = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, agent.target_critic.params, after.critic.params)
    same(after.target_critic, tracked)


def test_the_actors_step_follows_a_cosine_only_without_an_online_phase():
    agent = make_agent(learning_rate=1.0, offline_steps=100)
    rates = [float(agent.actor_learning_rate(jnp.int32(step))) for step in (1, 51, 101)]
    np.testing.assert_allclose(rates, [1.0, 0.5, 0.0], atol=1e-6)
    agent = make_agent(learning_rate=1.0, offline_steps=100, online_steps=10)
    assert {float(agent.actor_learning_rate(jnp.int32(step))) for step in (1, 51, 105)} == {1.0}


def test_minibatches_come_from_the_data_and_online_from_both_with_rewards_rescaled():
    agent = make_agent(batch_size=400, utd=3)
    prior = Prior(random_batch(1, 20).replace(reward=np.full(20, 5.0, np.float32)), jnp.float32(2.0))
    offline = agent.sample(jax.random.key(0), None, prior)
    assert offline.reward.shape == (1, 400)
    assert (np.asarray(offline.reward) == 10.0).all()
    experience = Replay.create(jax.tree.map(lambda x: x[0], random_batch(0, 1)), 50)
    for value in range(20):
        experience = experience.insert(jax.tree.map(lambda x, v=value: x[v], random_batch(7, 20).replace(
            reward=np.full(20, -1.0, np.float32))))  # fmt: skip
    online = agent.sample(jax.random.key(0), experience, prior)
    assert online.reward.shape == (3, 400)
    values, counts = np.unique(np.asarray(online.reward), return_counts=True)
    assert values.tolist() == [-2.0, 10.0]
    assert abs(counts[0] / counts.sum() - 0.5) < 0.05  # twenty rows each


def test_rewards_of_locomotion_are_brought_to_scale_and_no_others():
    """Episodes that return 1, 4 and 9 - one terminated, one cut by the time limit, one by the end of the file."""
    reward = np.array([2, -1, 4, 3, 3, 3], np.float32)
    data = Dataset(
        observation=np.zeros((6, OBSERVATION), np.float32), action=np.zeros((6, ACTION), np.float32), reward=reward,
        terminated=np.array([0, 1, 0, 0, 0, 0], bool), truncated=np.array([0, 0, 1, 0, 0, 1], bool),
        next_observation=np.zeros((6, OBSERVATION), np.float32), success=np.zeros(6, bool), source="npz:test",
    )  # fmt: skip

    def rewards(name: str, *flags: str) -> np.ndarray:
        config = parse(["--env", name, "--batch-size", "64", *flags], "iql", "", Config, PRESETS).config
        prior = IQL.prepare(config, data, tasks.find(name))
        agent = IQL.create(config, jax.random.key(0), jax.tree.map(lambda x: x[0], prior.rows), prior)
        return np.unique(agent.sample(jax.random.key(1), None, prior).reward)

    np.testing.assert_allclose(rewards("hopper-medium", "--hidden", "8"), [-125, 250, 375, 500])  # 1000 / (9 - 1)
    assert rewards("hopper-medium", "--hidden", "8", "--no-rescale-rewards").tolist() == [-1, 2, 3, 4]
    assert rewards("pointmaze-umaze", "--hidden", "8").tolist() == [-2, 1, 2, 3]  # -1 per step


def test_dropout_acts_in_training_alone():
    agent, batch = make_agent(actor_dropout=0.5), random_batch(3, ROWS)
    losses = {float(agent.actor_loss(agent.actor.params, batch, jax.random.key(k))[0]) for k in range(3)}
    assert len(losses) == 3
    np.testing.assert_array_equal(agent.act(batch.observation), agent.act(batch.observation))


def test_it_explores_by_sampling_within_the_bounds():
    agent = make_agent()
    observation = np.zeros((500, OBSERVATION), np.float32)
    actions = np.asarray(agent.explore(observation, jax.random.key(0)))
    assert actions.shape == (500, ACTION)
    assert np.abs(actions).max() <= 1
    assert actions.std(axis=0).min() > 0.3
    assert np.unique(np.asarray(agent.act(observation)), axis=0).shape[0] == 1


def test_presets_are_those_of_the_paper():
    assert (PRESETS["antmaze"]["expectile"], PRESETS["antmaze"]["inverse_temperature"]) == (0.9, 10.0)
    assert (PRESETS["locomotion"]["expectile"], PRESETS["locomotion"]["inverse_temperature"]) == (0.7, 3.0)
    assert PRESETS["adroit"]["actor_dropout"] == 0.1
    assert Config().problem() is None
