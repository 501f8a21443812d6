"""algorithms/fisher_brc.py and its mixture against an independent NumPy computation, and its semantics."""

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
    tanh_normal,
)

from algorithms.fisher_brc import PRESETS, Config, FisherBRC, density
from common.commandline import parse
from common.distributions import TanhMixture

KEY = jax.random.key(3)
COMPONENTS = 5


def make_agent(phase: str = "offline", **values) -> FisherBRC:
    config = Config(**({"hidden": (8, 6), "cloning_hidden": (8, 6), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = FisherBRC.create(config, jax.random.key(0), example, random_batch(1, 20))
    names = "behaviour", "actor", "critic", "target_critic", "temperature", "cloning_temperature"
    networks = shaken(*(getattr(agent, name) for name in names))
    return agent.replace(phase=phase, **dict(zip(names, networks, strict=True)))


def mixture(agent, observation):
    """Weights, means and log standard deviations [n, a, k] of the behaviour model."""
    own = parameters(agent.behaviour)
    features = mlp(np.asarray(observation, np.float64), own["MLP_0"])
    logits, mean, log_std = (dense(features, own[f"Dense_{i}"]).reshape(-1, ACTION, COMPONENTS) for i in range(3))
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True), mean, log_std


def log_mu(agent, observation, action):
    """One dimension after the other, by the change of variables, in double precision."""
    weights, mean, log_std = mixture(agent, observation)
    total = np.zeros(len(action))
    for d in range(ACTION):
        bound = np.float64(np.float32(1 - 1e-6))
        a = np.float64(action[:, d]).clip(-bound, bound)[:, None]
        z = (np.arctanh(a) - mean[:, d]) / np.exp(log_std[:, d])
        parts = weights[:, d] * np.exp(-0.5 * z**2) / (np.exp(log_std[:, d]) * np.sqrt(2 * np.pi))
        total += np.log(parts.sum(-1) / (1 - a[:, 0] ** 2))
    return total


def sampled(agent, observation, key):
    return tanh_normal(agent.actor, observation, jax.random.normal(key, (len(observation), ACTION)))


def temperature(network):
    return float(np.exp(np.float64(parameters(network)["log"])))


def random_mixture(rows=7):
    logits, mean, log_std = (jax.random.normal(jax.random.key(k), (rows, ACTION, COMPONENTS)) for k in range(3))
    return TanhMixture(logits, mean, 0.3 * log_std - 0.5)


def test_the_mixtures_density_is_one_per_dimension():
    """Each dimension's integrates to 1, and the density of an action is their product."""
    model = jax.tree.map(lambda x: x[:1, :1], random_mixture())
    before = np.linspace(-6, 6, 2001)
    inside = np.exp(model.log_prob(np.tanh(before)[:, None, None]).squeeze())
    np.testing.assert_allclose(np.trapezoid(inside * (1 - np.tanh(before) ** 2), before), 1, atol=2e-3)
    model, action = random_mixture(), random_batch(2, ROWS).action
    parts = [jax.tree.map(lambda x, d=d: x[:, d : d + 1], model).log_prob(action[:, d : d + 1]) for d in range(ACTION)]
    np.testing.assert_allclose(model.log_prob(action), sum(parts), rtol=1e-5)


def test_the_mixtures_samples_have_its_density():
    model = jax.tree.map(lambda x: x[0], random_mixture())
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (20_000, *x.shape)), model)
    before = np.arctanh(np.float64(many.sample(KEY)).clip(-1 + 1e-7, 1 - 1e-7))
    weights = np.asarray(jax.nn.softmax(model.logits))
    mean = (weights * np.asarray(model.mean)).sum(-1)
    square = (weights * (np.asarray(model.mean) ** 2 + np.exp(2 * np.asarray(model.log_std)))).sum(-1)
    std = np.sqrt(square - mean**2)
    np.testing.assert_allclose(before.mean(0), mean, atol=4 * std.max() / 141)
    np.testing.assert_allclose(before.std(0), std, rtol=0.1)
    # Dimensions are drawn each on its own.
    assert np.abs(np.corrcoef(before.T) - np.eye(ACTION)).max() < 0.05
    best = np.asarray(model.logits).argmax(-1)
    mode = np.tanh([np.asarray(model.mean)[d, k] for d, k in enumerate(best)])
    np.testing.assert_allclose(model.mode(), mode, rtol=1e-5)


def test_the_mixtures_samples_move_with_means_and_deviations_and_not_with_weights():
    slopes = jax.grad(lambda model: model.sample(KEY).sum())(random_mixture())
    assert not slopes.logits.any()
    assert slopes.mean.any()
    assert slopes.log_std.any()
    assert ((slopes.mean != 0).sum(-1) == 1).all(), "the component that was drawn"


def test_density_equals_numpy_and_is_finite_at_the_bounds():
    agent, batch = make_agent(), random_batch(2, ROWS)
    batch.action[0], batch.action[1] = 1.0, -1.0
    model = agent.behaviour(batch.observation)
    np.testing.assert_allclose(
        density(model, batch.action), log_mu(agent, batch.observation, batch.action), rtol=1e-3, atol=1e-4
    )
    slope = jax.grad(lambda a: density(model, a).sum())(jnp.asarray(batch.action))
    assert np.isfinite(slope).all()


def test_cloning_loss_equals_numpy():
    agent, batch = make_agent("cloning"), random_batch(4, ROWS)
    drawn = agent.behaviour(batch.observation).sample(KEY)
    entropy, likelihood = (-log_mu(agent, batch.observation, drawn), log_mu(agent, batch.observation, batch.action))
    loss, metrics = agent.cloning_loss(agent.behaviour.params, batch, KEY)
    alpha = temperature(agent.cloning_temperature)
    np.testing.assert_allclose(loss, -(alpha * entropy + likelihood).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], entropy.mean(), rtol=1e-4)
    # The entropy is a term of the gradient: it widens a narrow model, beyond what the likelihood alone would do.
    params = {"params": {**agent.behaviour.params["params"]}}
    last = params["params"]["Dense_2"]
    params["params"]["Dense_2"] = {**last, "bias": last["bias"] - 3}

    def slope(value):
        scalar = agent.cloning_temperature.replace(params={"params": {"log": jnp.log(value)}})
        other = agent.replace(cloning_temperature=scalar)
        gradient = jax.grad(lambda p: other.cloning_loss(p, batch, KEY)[0])(params)
        return gradient["params"]["Dense_2"]["bias"].sum()

    assert slope(2.0) - slope(1.0) < -1


@pytest.mark.parametrize("penalty", [0.0, 0.1, 3.0])
def test_critic_loss_equals_numpy(penalty):
    agent, batch = make_agent(penalty=penalty), random_batch(2, ROWS)
    target_key, action_key = jax.random.split(KEY)
    next_action, _ = sampled(agent, batch.next_observation, target_key)
    offset = q_values(agent.target_critic, range(2), batch.next_observation, next_action).min(0)
    value = offset + log_mu(agent, batch.next_observation, next_action)
    target = batch.reward + 5 + 0.99 * batch.mask * value
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    q += log_mu(agent, batch.observation, batch.action)
    action, step, slopes = sampled(agent, batch.observation, action_key)[0], 1e-6, []
    for d in range(ACTION):
        shift = step * np.eye(ACTION)[d]
        up, down = (q_values(agent.critic, range(2), batch.observation, action + s * shift) for s in (1, -1))
        slopes.append((up - down) / (2 * step))
    slope = np.square(slopes).sum(0).mean(-1).sum()
    np.testing.assert_allclose(agent.target(batch, target_key), target, rtol=1e-4, atol=1e-4)
    loss, metrics = agent.critic_loss(agent.critic.params, batch, KEY)
    np.testing.assert_allclose(metrics["slope"], slope, rtol=1e-3)
    np.testing.assert_allclose(metrics["critic_loss"], ((q - target) ** 2).mean(-1).sum(), rtol=1e-4)
    np.testing.assert_allclose(loss, ((q - target) ** 2).mean(-1).sum() + penalty * slope, rtol=1e-4)


def test_the_penalty_is_of_the_offset_alone_and_flattens_it():
    """It is at the policy's actions, has no term of log mu, and one step down its gradient lowers it."""
    agent, batch = make_agent(penalty=1.0), random_batch(2, ROWS)

    def slope(params, agent=agent, batch=batch):
        return agent.critic_loss(params, batch, KEY)[1]["slope"]

    before = slope(agent.critic.params)
    gradient = jax.grad(slope)(agent.critic.params)
    assert slope(jax.tree.map(lambda x, g: x - 1e-2 * g, agent.critic.params, gradient)) < before
    elsewhere = agent.replace(behaviour=shaken(agent.behaviour)[0])
    np.testing.assert_array_equal(slope(agent.critic.params, elsewhere), before)
    np.testing.assert_array_equal(slope(agent.critic.params, batch=batch.replace(action=-batch.action)), before)
    assert slope(agent.critic.params, agent.replace(actor=shaken(agent.actor)[0])) != before


def test_actor_loss_equals_numpy():
    agent, batch = make_agent(), random_batch(4, ROWS)
    action, log_prob = sampled(agent, batch.observation, KEY)
    q = q_values(agent.critic, range(2), batch.observation, action).min(0) + log_mu(agent, batch.observation, action)
    loss, metrics = agent.actor_loss(agent.actor.params, batch, KEY)
    np.testing.assert_allclose(loss, (temperature(agent.temperature) * log_prob - q).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], -log_prob.mean(), rtol=1e-4)


def test_the_actor_climbs_the_behaviours_density():
    """Through the action: with a flat offset its mean moves towards the data's."""
    agent, batch = make_agent(), random_batch(4, ROWS)
    flat = jax.tree.map(jnp.zeros_like, agent.critic.params)
    model = jax.tree.map(jnp.zeros_like, agent.behaviour.params)["params"]
    model["Dense_1"]["bias"] += 0.5
    agent = agent.replace(
        critic=agent.critic.replace(params=flat), behaviour=agent.behaviour.replace(params={"params": model})
    )
    policy = jax.tree.map(jnp.zeros_like, agent.actor.params)
    policy["params"]["Dense_1"]["bias"] -= 3.0
    slope = jax.grad(lambda p: agent.actor_loss(p, batch, KEY)[0])(policy)["params"]["Dense_0"]["bias"]
    assert (slope < 0).all()


def test_both_temperatures_aim_at_minus_the_actions_dimensions():
    agent = make_agent()
    for network in (agent.temperature, agent.cloning_temperature):
        for entropy in (-ACTION - 1.0, -ACTION + 1.0):
            slope = jax.grad(lambda p, h=entropy: agent.temperature_loss(p, h, ACTION)[0])(network.params)
            np.testing.assert_allclose(slope["params"]["log"], temperature(network) * (entropy + ACTION), rtol=1e-5)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert_only_terminations_stop(make_agent())
    agent, batch = make_agent(), random_batch(5, ROWS)
    batch = batch.replace(mask=np.zeros(ROWS, np.float32))
    np.testing.assert_allclose(agent.target(batch, KEY), batch.reward + 5, rtol=1e-6)


def test_the_next_action_is_of_the_next_state():
    agent, batch = make_agent(), random_batch(5, ROWS)
    batch = batch.replace(mask=np.ones(ROWS, np.float32))
    elsewhere = batch.replace(observation=batch.observation + 1)
    np.testing.assert_array_equal(agent.target(batch, KEY), agent.target(elsewhere, KEY))
    assert (agent.target(batch, KEY) != agent.target(batch.replace(next_observation=elsewhere.observation), KEY)).all()


def test_the_order_of_an_update():
    agent, batch = make_agent(learning_rate=1e-2, target_rate=0.25), random_batch(6, ROWS)
    after, _ = jax.jit(FisherBRC.update_once)(agent, batch, KEY, jnp.int32(1))
    critic_key, actor_key = jax.random.split(KEY)
    close = {"rtol": 2e-3, "atol": 5e-5}
    slope = jax.grad(lambda p: agent.critic_loss(p, batch, critic_key)[0])(agent.critic.params)
    chex.assert_trees_all_close(after.critic.params, adam_first_step(agent.critic.params, slope, 1e-2), **close)
    moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, agent.target_critic.params, after.critic.params)
    chex.assert_trees_all_close(after.target_critic.params, moved, rtol=1e-5)
    later = agent.replace(critic=after.critic)
    slope, metrics = jax.grad(lambda p: later.actor_loss(p, batch, actor_key), has_aux=True)(agent.actor.params)
    chex.assert_trees_all_close(after.actor.params, adam_first_step(agent.actor.params, slope, 1e-2), **close)
    sign = 1 if metrics["entropy"] > -ACTION else -1
    np.testing.assert_allclose(after.temperature(), temperature(agent.temperature) * np.exp(-1e-2 * sign), rtol=1e-4)
    chex.assert_trees_all_equal(
        (after.behaviour, after.cloning_temperature), (agent.behaviour, agent.cloning_temperature)
    )


def test_cloning_moves_the_behaviour_model_and_its_temperature_alone():
    agent, batch = make_agent("cloning"), random_batch(6, ROWS)
    after, metrics = jax.jit(FisherBRC.update_once)(agent, batch, KEY, jnp.int32(1))
    slope = jax.grad(lambda p: agent.cloning_loss(p, batch, KEY)[0])(agent.behaviour.params)
    expected = adam_first_step(agent.behaviour.params, slope, 1e-3)
    chex.assert_trees_all_close(after.behaviour.params, expected, rtol=2e-3, atol=5e-6)
    sign = 1 if metrics["entropy"] > -ACTION else -1
    np.testing.assert_allclose(
        after.cloning_temperature(), temperature(agent.cloning_temperature) * np.exp(-1e-3 * sign), rtol=1e-5
    )
    for name in ("actor", "critic", "target_critic", "temperature"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(agent, name))


def test_the_schedule_of_cloning_is_the_authors():
    """A step sees the rate of the number of steps before it; a boundary itself is still before the fall."""
    agent = make_agent()
    for number, rate in ((1, 1e-3), (800_001, 1e-3), (800_002, 1e-4), (900_001, 1e-4), (900_002, 1e-5), (10**6, 1e-5)):
        np.testing.assert_allclose(agent.cloning_rate(jnp.int32(number)), rate, rtol=1e-5)
    short = make_agent("cloning", cloning_steps=10)
    batch = random_batch(6, ROWS)
    update = jax.jit(FisherBRC.update_once)
    moves = []
    for number in (9, 10, 11):
        after, _ = update(short, batch, KEY, jnp.int32(number))
        change = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.behaviour.params, short.behaviour.params)
        moves.append(max(jax.tree.leaves(change)))
    np.testing.assert_allclose(moves, [1e-3, 1e-4, 1e-5], rtol=0.05)


def test_the_behaviour_model_is_evaluated_while_it_is_learned_and_the_actor_afterwards():
    agent, rows = make_agent("cloning"), random_batch(7, 4).observation
    weights, mean, _ = mixture(agent, rows)
    expected = np.tanh(np.take_along_axis(mean, weights.argmax(-1)[..., None], -1)[..., 0])
    np.testing.assert_allclose(agent.act(rows), expected, rtol=1e-4, atol=1e-5)
    expected = tanh_normal(agent.actor, rows, np.zeros((4, ACTION)))[0]
    np.testing.assert_allclose(agent.enter("offline", KEY, None).act(rows), expected, rtol=1e-4, atol=1e-5)


def test_fresh_offsets_and_policies_are_near_zero():
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = FisherBRC.create(Config(), jax.random.key(0), example, random_batch(1, 20))
    rows = random_batch(8, 50)
    assert np.abs(agent.critic(rows.observation, rows.action)).max() < 0.05
    for distribution in (agent.actor(rows.observation), agent.behaviour(rows.observation)):
        assert all(np.abs(x).max() < 0.05 for x in jax.tree.leaves(distribution))


def test_presets_are_those_of_the_script_and_mazes_have_no_bonus():
    def config(env):
        return parse(["--env", env], "fisher_brc", "", Config, PRESETS).config

    c = config("hopper-medium")
    assert c == Config()
    assert (c.penalty, c.reward_bonus, c.target_entropy_per_action, c.components) == (0.1, 5.0, -1.0, 5)
    assert (c.learning_rate, c.cloning_learning_rate, c.target_rate) == (3e-4, 1e-3, 0.005)
    assert (c.hidden, c.cloning_hidden, c.batch_size) == ((256,) * 3, (256,) * 2, 256)
    assert c.phases == (("cloning", 1_000_000), ("offline", 1_000_000), ("online", 0))
    assert config("antmaze-umaze").reward_bonus == config("pointmaze-large").reward_bonus == 0
    for preset in PRESETS.values():
        fields = {f.name for f in dataclasses.fields(Config)}
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
