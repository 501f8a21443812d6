"""algorithms/brac.py against an independent NumPy computation, and its semantics."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    ACTION,
    ROWS,
    adam_first_step,
    assert_only_terminations_stop,
    dense,
    mlp,
    parameters,
    q_values,
    random_batch,
    shaken,
)

from algorithms.brac import BRAC, PRESETS, Config
from common.commandline import parse
from common.distributions import squared_mmd

KEY = jax.random.key(3)
SAMPLES = 4


def make_agent(phase: str = "offline", **values) -> BRAC:
    config = Config(**({"hidden": (8, 6), "actor_hidden": (8, 6), "batch_size": ROWS, "warm_start": 0} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = BRAC.create(config, jax.random.key(0), example, random_batch(1, 20))
    names = "clone", "actor", "critic", "target_critic"
    networks = shaken(*(getattr(agent, name) for name in names))
    return agent.replace(phase=phase, **dict(zip(names, networks, strict=True)))


def policy(network, observation):
    """Mean and log standard deviation before the squashing."""
    own = parameters(network)
    features = mlp(np.asarray(observation, np.float64), own["MLP_0"])
    return dense(features, own["Dense_0"]), -5 + 2.5 * (np.tanh(dense(features, own["Dense_1"])) + 1)


def log_density(network, observation, action):
    """Of actions [..., n, a], by the change of variables."""
    mean, log_std = policy(network, observation)
    normal = -0.5 * ((np.arctanh(action) - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    return (normal - np.log(1 - action**2)).sum(-1)


def sampled(network, observation, key, *leading):
    """Actions [*leading, n, a] and their log densities."""
    mean, log_std = policy(network, observation)
    noise = np.asarray(jax.random.normal(key, (*leading, *mean.shape)), np.float64)
    action = np.tanh(mean + np.exp(log_std) * noise)
    return action, log_density(network, observation, action)


def numpy_divergence(agent, observation, key):
    own_key, clone_key = jax.random.split(key)
    action, log_prob = sampled(agent.actor, observation, own_key, SAMPLES)
    if agent.config.divergence == "kl":
        return (log_prob - log_density(agent.clone, observation, action.clip(-0.999, 0.999))).mean(0)
    other, _ = sampled(agent.clone, observation, clone_key, SAMPLES)
    total = np.zeros(len(observation))
    for i in range(SAMPLES):
        for j in range(SAMPLES):
            for sign, x, y in ((1, action, action), (1, other, other), (-2, action, other)):
                total += sign * np.exp(-np.abs(x[i] - y[j]).sum(-1) / agent.config.bandwidth) / SAMPLES**2
    return total


def numpy_mixed(agent, q):
    return agent.config.pessimism * q.min(0) + (1 - agent.config.pessimism) * q.max(0)


CASES = [
    {"divergence": "kl", "weight": 0.7},
    {"divergence": "mmd", "bandwidth": 0.5, "weight": 3.0},
    {"divergence": "kl", "value_penalty": False, "entropy_weight": 0.3, "pessimism": 0.75},
]


@pytest.mark.parametrize("values", CASES)
def test_divergence_equals_numpy(values):
    agent, batch = make_agent(**values), random_batch(2, ROWS)
    got = agent.divergence(agent.actor.params, batch.observation, KEY)
    np.testing.assert_allclose(got, numpy_divergence(agent, batch.observation, KEY), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("values", CASES)
def test_critic_loss_equals_numpy(values):
    agent, batch = make_agent(**values), random_batch(2, ROWS)
    action_key, divergence_key = jax.random.split(KEY)
    next_action, log_prob = sampled(agent.actor, batch.next_observation, action_key)
    value = numpy_mixed(agent, q_values(agent.target_critic, range(2), batch.next_observation, next_action))
    value -= agent.config.entropy_weight * log_prob
    if agent.config.value_penalty:
        value -= agent.config.weight * numpy_divergence(agent, batch.next_observation, divergence_key)
    target = batch.reward + 0.99 * batch.mask * value
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    loss, metrics = agent.critic_loss(agent.critic.params, batch, KEY)
    np.testing.assert_allclose(agent.target(batch, KEY), target, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(loss, ((q - target) ** 2).mean(-1).sum(), rtol=2e-4)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("values", CASES)
def test_actor_loss_equals_numpy(values):
    agent, batch = make_agent(**values), random_batch(4, ROWS)
    action_key, divergence_key = jax.random.split(KEY)
    action, log_prob = sampled(agent.actor, batch.observation, action_key)
    q = numpy_mixed(agent, q_values(agent.critic, range(2), batch.observation, action))
    divergence = numpy_divergence(agent, batch.observation, divergence_key)
    for w in (0.0, 1.0):
        expected = (agent.config.entropy_weight * log_prob + agent.config.weight * divergence - w * q).mean()
        loss, metrics = agent.actor_loss(agent.actor.params, batch, KEY, jnp.float32(w))
        np.testing.assert_allclose(loss, expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["divergence"], divergence.mean(), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], -log_prob.mean(), rtol=2e-4, atol=1e-5)


def test_cloning_loss_equals_numpy():
    agent, batch = make_agent("cloning"), random_batch(4, ROWS)
    batch.action[0], batch.action[1] = 1.0, -1.0
    agent = agent.replace(temperature=agent.temperature.replace(params={"params": {"value": jnp.float32(0.6)}}))
    _, log_prob = sampled(agent.clone, batch.observation, KEY)
    likelihood = log_density(agent.clone, batch.observation, np.float64(batch.action).clip(-0.999, 0.999))
    loss, metrics = agent.cloning_loss(agent.clone.params, batch, KEY)
    np.testing.assert_allclose(loss, (0.6 * log_prob - likelihood).mean(), rtol=2e-4)
    np.testing.assert_allclose(metrics["likelihood"], likelihood.mean(), rtol=2e-4)


def slope_of(loss, network, *inputs):
    return float(jax.grad(lambda p: loss(p, *inputs)[0])(network.params)["params"]["value"])


@pytest.mark.parametrize("value", [-0.5, 0.0, 0.6])
def test_the_clones_temperature_follows_its_entropy(value):
    agent, batch = make_agent("cloning"), random_batch(4, ROWS)
    agent = agent.replace(temperature=agent.temperature.replace(params={"params": {"value": jnp.float32(value)}}))
    entropy = -sampled(agent.clone, batch.observation, KEY)[1].mean()
    assert entropy < -ACTION, "the temperature rises"
    slope = slope_of(agent.temperature_loss, agent.temperature, batch, KEY)
    np.testing.assert_allclose(slope, entropy + ACTION, rtol=1e-4)
    assert agent.temperature_loss(agent.temperature.params, batch, KEY)[1]["temperature"] == np.float32(max(value, 0))
    # Where it would fall, it stops at 0.
    wide = agent.clone.params["params"]
    wide = {**wide, "Dense_0": jax.tree.map(jnp.zeros_like, wide["Dense_0"])}
    wide["Dense_1"] = {"kernel": jnp.zeros_like(wide["Dense_1"]["kernel"]), "bias": jnp.full(ACTION, 5.0)}
    agent = agent.replace(clone=agent.clone.replace(params={"params": wide}))
    slope = slope_of(agent.temperature_loss, agent.temperature, batch, KEY)
    assert (slope > 0) == (value > 0)
    assert (slope == 0) == (value <= 0)


@pytest.mark.parametrize(("value", "aim", "moves"), [
    (0.0, 1e5, False), (-1.0, 1e5, False), (0.0, -1e5, True), (-1.0, -1e5, True),
    (2.0, 1e5, True), (2.0, -1e5, True),
    (5.0, -1e5, False), (6.0, -1e5, False), (5.0, 1e5, True), (6.0, 1e5, True),
])  # fmt: skip
def test_a_learned_weight_rises_with_the_divergence_and_stays_in_its_bounds(value, aim, moves):
    agent, batch = make_agent(target_divergence=aim, largest_weight=5.0, learned_weight=True), random_batch(4, ROWS)
    agent = agent.replace(weight=agent.weight.replace(params={"params": {"value": jnp.float32(value)}}))
    assert agent.alpha() == np.clip(np.float32(value), 0, 5)
    slope = slope_of(agent.weight_loss, agent.weight, batch, KEY)
    expected = aim - numpy_divergence(agent, batch.observation, KEY).mean()
    np.testing.assert_allclose(slope, expected if moves else 0.0, rtol=1e-4)
    assert agent.weight_loss(agent.weight.params, batch, KEY)[1]["weight"] == agent.alpha()


def test_mmd_of_equal_samples_is_none_and_of_others_positive():
    x, y = (np.asarray(jax.random.uniform(jax.random.key(k), (3, 4, 2)), np.float32) for k in range(2))
    np.testing.assert_allclose(squared_mmd(x, x, 20.0), 0, atol=1e-6)
    near, far = squared_mmd(x, x + 0.1, 20.0), squared_mmd(x, x + 1.0, 20.0)
    assert near.shape == (3,)
    assert (near > 0).all()
    assert (near < far).all()
    assert (squared_mmd(x, y, 20.0) > 0).all()


@pytest.mark.parametrize("divergence", ["kl", "mmd"])
def test_the_divergence_pulls_the_policy_to_the_clone(divergence):
    """Its gradient is finite also at actions of +-1, and points the way."""
    agent, batch = make_agent(divergence=divergence, bandwidth=0.5, divergence_samples=64), random_batch(4, ROWS)
    same = agent.replace(actor=agent.actor.replace(params=agent.clone.params))

    def mean(p):
        return same.divergence(p, batch.observation, KEY).mean()

    assert abs(mean(agent.clone.params)) < 0.1
    assert mean(agent.actor.params) > 0.1 * (1 if divergence == "kl" else 0.1)
    for shift in (0.5, -0.5, 40.0):
        moved = jax.tree.map(lambda x: x, agent.clone.params)
        moved["params"]["Dense_0"] = {**moved["params"]["Dense_0"]}
        moved["params"]["Dense_0"]["bias"] += shift
        slope = jax.grad(mean)(moved)["params"]["Dense_0"]["bias"]
        assert np.isfinite(slope).all()
        if shift < 1:
            assert (slope * shift > 0).all()


def test_the_clone_has_no_gradient_from_what_follows():
    agent, batch = make_agent(), random_batch(4, ROWS)
    after, _ = agent.update_once(batch, KEY, jnp.int32(1))
    chex.assert_trees_all_equal((after.clone, after.temperature), (agent.clone, agent.temperature))
    assert after.weight is agent.weight


def test_the_next_action_and_divergence_are_of_the_next_state():
    agent, batch = make_agent(weight=2.0), random_batch(5, ROWS)
    batch = batch.replace(mask=np.ones(ROWS, np.float32))
    elsewhere = batch.replace(observation=batch.observation + 1)
    np.testing.assert_array_equal(agent.target(batch, KEY), agent.target(elsewhere, KEY))
    assert (agent.target(batch, KEY) != agent.target(batch.replace(next_observation=elsewhere.observation), KEY)).all()


@pytest.mark.parametrize("value_penalty", [True, False])
def test_a_time_limit_bootstraps_and_a_termination_does_not(value_penalty):
    assert_only_terminations_stop(make_agent(value_penalty=value_penalty))


def test_the_order_of_an_update():
    rates = {"critic_learning_rate": 1e-2, "actor_learning_rate": 2e-2, "weight_learning_rate": 3e-2}
    agent, batch = make_agent(learned_weight=True, target_rate=0.25, **rates), random_batch(6, ROWS)
    after, metrics = jax.jit(BRAC.update_once)(agent, batch, KEY, jnp.int32(1))
    critic_key, actor_key, weight_key = jax.random.split(KEY, 3)
    close = {"rtol": 2e-3, "atol": 5e-5}
    moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, agent.target_critic.params, agent.critic.params)
    chex.assert_trees_all_close(after.target_critic.params, moved, rtol=1e-5)
    then = agent.replace(target_critic=after.target_critic)
    slope = jax.grad(lambda p: then.critic_loss(p, batch, critic_key)[0])(agent.critic.params)
    chex.assert_trees_all_close(after.critic.params, adam_first_step(agent.critic.params, slope, 1e-2), **close)
    then = then.replace(critic=after.critic)
    slope = jax.grad(lambda p: then.actor_loss(p, batch, actor_key, 1.0)[0])(agent.actor.params)
    chex.assert_trees_all_close(after.actor.params, adam_first_step(agent.actor.params, slope, 2e-2), **close)
    then = then.replace(actor=after.actor)
    divergence = then.divergence(after.actor.params, batch.observation, weight_key).mean()
    assert divergence > 0
    np.testing.assert_allclose(after.alpha(), 0.1 + 3e-2, rtol=1e-4)
    np.testing.assert_allclose(metrics["weight"], 0.1, rtol=1e-6)


@pytest.mark.parametrize(("number", "ignored"), [(1, True), (3, True), (4, False)])
def test_values_are_ignored_during_the_warm_start(number, ignored):
    agent, batch = make_agent(warm_start=3), random_batch(6, ROWS)
    blind = agent.replace(critic=agent.critic.replace(params=jax.tree.map(jnp.zeros_like, agent.critic.params)))
    update = jax.jit(BRAC.update_once)
    # At a step size of 0 the actor still learns from the critics as they are.
    after, without = (
        update(x.replace(config=x.config.replace(critic_learning_rate=0.0)), batch, KEY, jnp.int32(number))[0]
        for x in (agent, blind)
    )
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after.actor.params, without.actor.params)
    assert all(jax.tree.leaves(same)) == ignored
    trained, _ = update(agent, batch, KEY, jnp.int32(number))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), trained.critic.params, agent.critic.params)
    assert any(jax.tree.leaves(moved)), "the critics learn from the first step on"


def test_cloning_moves_the_clone_and_its_temperature_alone():
    agent, batch = make_agent("cloning", cloning_learning_rate=1e-2), random_batch(6, ROWS)
    after, metrics = jax.jit(BRAC.update_once)(agent, batch, KEY, jnp.int32(1))
    clone_key, temperature_key = jax.random.split(KEY)
    slope = jax.grad(lambda p: agent.cloning_loss(p, batch, clone_key)[0])(agent.clone.params)
    expected = adam_first_step(agent.clone.params, slope, 1e-2)
    chex.assert_trees_all_close(after.clone.params, expected, rtol=2e-3, atol=5e-5)
    entropy = -sampled(after.clone, batch.observation, temperature_key)[1].mean()
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-4)
    np.testing.assert_allclose(after.temperature(), 1 + (1e-2 if entropy < -ACTION else -1e-2), rtol=1e-4)
    for name in ("actor", "critic", "target_critic", "weight"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(agent, name))


def test_the_clone_is_evaluated_while_it_is_learned_and_the_actor_afterwards():
    agent, rows = make_agent("cloning"), random_batch(7, 4).observation
    for phase, network in (("cloning", agent.clone), ("offline", agent.actor)):
        expected = np.tanh(policy(network, rows)[0])
        np.testing.assert_allclose(agent.enter(phase, KEY, None).act(rows), expected, rtol=1e-4, atol=1e-5)


def test_presets_are_those_of_both_scripts():
    def config(*arguments):
        return parse(["--env", "hopper-medium", *arguments], "brac", "", Config, PRESETS).config

    assert config() == Config()
    assert Config().phases == (("cloning", 300_000), ("offline", 500_000), ("online", 0))
    rates = "critic_learning_rate", "actor_learning_rate", "weight_learning_rate", "cloning_learning_rate"
    assert [getattr(Config(), rate) for rate in rates] == [1e-3, 3e-4, 1e-3, 5e-4]
    assert (Config().weight, Config().value_penalty, Config().learned_weight) == (0.1, True, False)
    later = config("--preset", "d4rl-evaluations")
    assert [getattr(later, rate) for rate in rates] == [1e-3, 3e-5, 1e-5, 5e-4]
    assert (later.weight, later.value_penalty) == (1.0, False)
    assert later.phases == (("cloning", 1_000_000), ("offline", 1_000_000), ("online", 0))
    for preset in PRESETS.values():
        fields = {f.name for f in dataclasses.fields(Config)}
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None


def test_there_is_no_online_phase():
    assert "online_steps" not in {f.name for f in dataclasses.fields(Config)}
