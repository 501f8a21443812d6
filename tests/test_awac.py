"""algorithms/awac.py against an independent NumPy computation, and its semantics."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    ROWS,
    adam_first_step,
    assert_only_terminations_stop,
    head,
    parameters,
    q_values,
    random_batch,
    shaken,
)

from algorithms.awac import AWAC, PRESETS, Config
from common.commandline import parse

KEY = jax.random.key(3)


def make_agent(**values) -> AWAC:
    config = Config(**({"hidden": (8, 6), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = AWAC.create(config, jax.random.key(0), example, random_batch(1, 20))
    actor, critic, target_critic = shaken(agent.actor, agent.critic, agent.target_critic)
    return agent.replace(actor=actor, critic=critic, target_critic=target_critic)


def policy(agent, observation):
    """Mean and standard deviation."""
    own = parameters(agent.actor)
    return np.tanh(head(own, observation)), np.exp(np.clip(np.asarray(own["log_std"], np.float64), -5, 2))


def sampled(agent, observation, key):
    mean, std = policy(agent, observation)
    return (mean + std * np.asarray(jax.random.normal(key, mean.shape), np.float64)).clip(-1, 1)


def numpy_advantage(agent, batch, key):
    mean, _ = policy(agent, batch.observation)
    own = mean if agent.config.baseline == "mode" else sampled(agent, batch.observation, key)
    q, value = (q_values(agent.critic, range(2), batch.observation, a).min(0) for a in (batch.action, own))
    return q - value


def numpy_log_prob(agent, batch):
    mean, std = policy(agent, batch.observation)
    return (-0.5 * ((batch.action - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)


def test_critic_loss_equals_numpy():
    agent, batch = make_agent(), random_batch(2, ROWS)
    next_action = sampled(agent, batch.next_observation, KEY)
    next_q = q_values(agent.target_critic, range(2), batch.next_observation, next_action).min(0)
    target = batch.reward + 0.99 * batch.mask * next_q
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    loss, metrics = agent.critic_loss(agent.critic.params, batch, KEY)
    np.testing.assert_allclose(loss, ((q - target) ** 2).mean(-1).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-5)


@pytest.mark.parametrize("baseline", ["sample", "mode"])
@pytest.mark.parametrize("cut", [100.0, 1.1])
@pytest.mark.parametrize("weighting", ["clipped", "softmax"])
def test_actor_loss_equals_numpy(weighting, cut, baseline):
    agent = make_agent(weighting=weighting, temperature=0.3, largest_weight=cut, baseline=baseline)
    batch = random_batch(4, ROWS)
    advantage = numpy_advantage(agent, batch, KEY)
    ratio = np.exp(advantage / 0.3)
    assert (ratio > 1.1).any()
    assert (ratio < 1.1).any()
    weight = np.minimum(ratio, cut)
    if weighting == "softmax":
        weight *= ROWS / weight.sum()
    loss, metrics = agent.actor_loss(agent.actor.params, batch, KEY)
    np.testing.assert_allclose(loss, -(weight * numpy_log_prob(agent, batch)).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["advantage"], advantage.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["weight"], weight.mean(), rtol=1e-4)


def test_the_weight_has_no_gradient():
    agent, batch = make_agent(temperature=0.3), random_batch(4, ROWS)
    weight = np.minimum(np.exp(numpy_advantage(agent, batch, KEY) / 0.3), 100).astype(np.float32)
    expected = jax.grad(lambda p: -(weight * agent.actor(batch.observation, params=p).log_prob(batch.action)).mean())(
        agent.actor.params
    )
    got = jax.grad(lambda p: agent.actor_loss(p, batch, KEY)[0])(agent.actor.params)
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-5)


def test_the_next_action_is_of_the_next_state():
    """A port samples it at the state."""
    agent, batch = make_agent(), random_batch(5, ROWS)
    batch = batch.replace(mask=np.ones(ROWS, np.float32))
    elsewhere = batch.replace(observation=batch.observation + 1)
    np.testing.assert_array_equal(agent.target(batch, KEY), agent.target(elsewhere, KEY))
    assert (agent.target(batch, KEY) != agent.target(batch.replace(next_observation=elsewhere.observation), KEY)).all()


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert_only_terminations_stop(make_agent())


def test_the_actor_learns_from_the_critics_just_updated():
    agent, batch = make_agent(learning_rate=1e-2, target_rate=0.25), random_batch(6, ROWS)
    after, _ = jax.jit(AWAC.update_once)(agent, batch, KEY, jnp.int32(1))
    critic_key, actor_key = jax.random.split(KEY)
    slope = jax.grad(lambda p: agent.critic_loss(p, batch, critic_key)[0])(agent.critic.params)
    critic = adam_first_step(agent.critic.params, slope, 1e-2)
    chex.assert_trees_all_close(after.critic.params, critic, rtol=2e-3, atol=2e-5)
    moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, agent.target_critic.params, after.critic.params)
    chex.assert_trees_all_close(after.target_critic.params, moved, rtol=1e-5)
    later = agent.replace(critic=after.critic)
    slope = jax.grad(lambda p: later.actor_loss(p, batch, actor_key)[0])(agent.actor.params)
    chex.assert_trees_all_close(
        after.actor.params, adam_first_step(agent.actor.params, slope, 1e-2), rtol=2e-3, atol=2e-5
    )


def test_only_the_actors_kernels_decay():
    agent, batch = make_agent(weight_decay=0.5, learning_rate=0.1), random_batch(6, ROWS)
    plain = make_agent(learning_rate=0.1)
    after, without = (x.update_once(batch, KEY, jnp.int32(1))[0] for x in (agent, plain))
    chex.assert_trees_all_equal(after.critic.params, without.critic.params)
    shrunk = jax.tree_util.tree_map_with_path(
        lambda path, old, new: new - 0.1 * 0.5 * old if path[-1].key == "kernel" else new,
        agent.actor.params, without.actor.params,
    )  # fmt: skip
    chex.assert_trees_all_close(after.actor.params, shrunk, rtol=1e-4, atol=1e-6)


def test_observations_are_normalised_everywhere_alike():
    prior = random_batch(1, 200)
    prior = prior.replace(observation=3 + 2 * prior.observation, next_observation=3 + 2 * prior.next_observation)
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = AWAC.create(Config(hidden=(8,), batch_size=64), jax.random.key(0), example, prior)
    drawn = agent.sample(jax.random.key(1), None, prior)
    assert drawn.observation.shape == (1, 64, 5)
    known = (prior.observation - prior.observation.mean(0)) / (prior.observation.std(0) + 1e-3)
    distance = np.abs(np.asarray(drawn.observation)[0, :, None] - known).max(-1).min(1)
    assert distance.max() < 1e-4
    raw = prior.observation[:4]
    normal = (raw - prior.observation.mean(0)) / (prior.observation.std(0) + 1e-3)
    np.testing.assert_allclose(agent.act(raw), policy(agent, normal)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(agent.explore(raw, KEY), sampled(agent, normal, KEY), rtol=1e-4, atol=1e-5)


def test_softmax_weights_of_far_apart_advantages_are_finite():
    agent = make_agent(weighting="softmax", temperature=1e-3)
    weight = agent.weight(jnp.array([-50.0, 0.0, 70.0, 90.0]))
    np.testing.assert_allclose(weight, [0, 4 / 201, 400 / 201, 400 / 201], rtol=1e-5)


def test_presets_are_those_of_corl_and_rlkit():
    def config(env, *more):
        return parse(["--env", env, *more], "awac", "", Config, PRESETS).config

    assert config("hopper-medium") == dataclasses.replace(Config(), temperature=0.3333)
    assert config("antmaze-large-play").temperature == config("pen-human").temperature == 0.1
    for preset in PRESETS.values():
        fields = {f.name for f in dataclasses.fields(Config)}
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
    hand = config("pen-binary", "--preset", "hand")
    assert (hand.weighting, hand.baseline, hand.hidden, hand.batch_size) == ("softmax", "mode", (256, 256), 1024)
    assert (hand.learning_rate, hand.weight_decay, hand.target_rate, hand.normalise) == (3e-4, 1e-4, 0.005, False)
    assert (hand.offline_steps, hand.online_steps) == (25_000, 500_000)
    # Their beta, and where they cut advantages off (clip_score).
    assert (hand.temperature, hand.temperature * np.log(hand.largest_weight)) == (0.5, 0.5)
