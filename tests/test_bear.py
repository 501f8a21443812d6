"""algorithms/bear.py against an independent NumPy computation, and its semantics."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    ACTION,
    OBSERVATION,
    ROWS,
    adam_first_step,
    assert_only_terminations_stop,
    dense,
    latents,
    mlp,
    parameters,
    q_values,
    random_batch,
    shaken,
    vae_decode,
    vae_loss,
)

from algorithms.bear import BEAR, PRESETS, Config, mmd
from common import tasks
from common.commandline import parse

KEY = jax.random.key(3)


def make_agent(phase: str = "offline", **values) -> BEAR:
    config = Config(**({"hidden": (8, 6), "vae_hidden": (7, 9), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = BEAR.create(config, jax.random.key(0), example, random_batch(1, 20))
    names = "vae", "actor", "target_actor", "critic", "target_critic", "dual"
    networks = dict(zip(names, shaken(*(getattr(agent, name) for name in names)), strict=True))
    return agent.replace(phase=phase, **networks)


def repeated(rows, count):
    return np.repeat(np.asarray(rows, np.float64)[:, None], count, axis=1)


def samples(actor, observation, key, clip=np.inf):
    """Of the policy, before their tanh: one per row of observations."""
    p = parameters(actor)
    h = mlp(np.asarray(observation, np.float64), p["MLP_0"])
    noise = np.asarray(jax.random.normal(key, (*observation.shape[:-1], ACTION)), np.float64).clip(-clip, clip)
    return dense(h, p["Dense_0"]) + np.exp(dense(h, p["Dense_1"]).clip(-5, 2)) * noise


def numpy_mmd(x, u, kernel, sigma):
    """Of one state: samples [n, a], pair by pair."""

    def k(one, other):
        distance = abs(one - other).sum() if kernel == "laplacian" else ((one - other) ** 2).sum()
        return np.exp(-distance / (2 * sigma))

    def mean(ones, others):
        return np.mean([k(one, other) for one in ones for other in others])

    return np.sqrt(mean(x, x) + mean(u, u) - 2 * mean(x, u) + 1e-6)


def numpy_target(agent, batch, key):
    c, states = agent.config, repeated(batch.next_observation, agent.config.target_candidates)
    q = q_values(agent.target_critic, range(2), states, np.tanh(samples(agent.target_actor, states, key)))
    lam = c.pessimism
    best = [max(lam * min(pair) + (1 - lam) * max(pair) for pair in row) for row in q.transpose(1, 2, 0)]
    return batch.reward + c.discount * batch.mask * np.array(best)


def test_vae_loss_equals_numpy():
    agent, batch = make_agent(), random_batch(2, ROWS)
    loss, metrics = agent.vae_loss(agent.vae.params, batch, KEY)
    expected, error = vae_loss(agent.vae, batch, KEY, 0.5)
    np.testing.assert_allclose([loss, metrics["reconstruction"]], [expected, error], rtol=1e-5)


@pytest.mark.parametrize("kernel", ["laplacian", "gaussian"])
def test_the_discrepancy_equals_numpy(kernel):
    rng = np.random.default_rng(0)
    x, u = rng.normal(0, 2, (ROWS, 4, ACTION)), rng.normal(1, 3, (ROWS, 4, ACTION))
    for sigma in (0.7, 20.0):
        expected = [numpy_mmd(*pair, kernel, sigma) for pair in zip(x, u, strict=True)]
        np.testing.assert_allclose(mmd(jnp.float32(x), jnp.float32(u), kernel, sigma), expected, rtol=1e-4)
    # Where the samples all but agree, single precision still tells by how much.
    x, near = np.float32(0.05 * x), np.float32(0.05 * x + 0.01)
    expected = [numpy_mmd(*np.float64(pair), kernel, 20.0) for pair in zip(x, near, strict=True)]
    np.testing.assert_allclose(mmd(x, near, kernel, 20.0), expected, rtol=1e-4)
    np.testing.assert_allclose(mmd(x, x, kernel, 20.0), 1e-3, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["laplacian", "gaussian"])
def test_the_discrepancys_slope_draws_samples_to_the_datas(kernel):
    """Finite also where samples coincide; and every sample has one."""
    x = jnp.zeros((1, 4, ACTION))
    slope = jax.grad(lambda u: mmd(x, u, kernel, 20.0).sum())
    away = jnp.full((1, 4, ACTION), 2.0) + 0.1 * jnp.arange(4.0)[None, :, None]
    assert (slope(away) > 1e-4).all()
    assert (slope(-away) < -1e-4).all()
    assert jnp.isfinite(slope(x)).all()


@pytest.mark.parametrize(("pessimism", "candidates"), [(0.75, 10), (1.0, 3), (0.0, 3)])
def test_critic_loss_equals_numpy(pessimism, candidates):
    agent, batch = make_agent(pessimism=pessimism, target_candidates=candidates), random_batch(2, ROWS)
    target = numpy_target(agent, batch, KEY)
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    loss, metrics = agent.critic_loss(agent.critic.params, batch, KEY)
    np.testing.assert_allclose(loss, ((q - target) ** 2).mean(-1).sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-5)
    expected = jax.grad(
        lambda p: (
            jnp.square(agent.critic(batch.observation, batch.action, params=p) - jnp.float32(target)).mean(-1).sum()
        )
    )(agent.critic.params)
    got = jax.grad(lambda p: agent.critic_loss(p, batch, KEY)[0])(agent.critic.params)
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("phase", ["matching", "offline"])
@pytest.mark.parametrize(("kernel", "valued", "clip"), [("laplacian", 1, 10.0), ("gaussian", 4, 0.5)])
def test_actor_loss_equals_numpy(phase, kernel, valued, clip):
    agent = make_agent(phase, kernel=kernel, valued=valued, matched=4, sample_noise_clip=clip, bandwidth=5.0)
    batch = random_batch(4, ROWS)
    states, (vae_key, own_key) = repeated(batch.observation, 4), jax.random.split(KEY)
    data = vae_decode(agent.vae, states, latents((ROWS, 4), vae_key))
    own = samples(agent.actor, states, own_key, clip)
    assert (np.abs(own).max() > 1) or clip == 0.5  # before the tanh
    distance = np.mean([numpy_mmd(*pair, kernel, 5.0) for pair in zip(data, own, strict=True)])
    expected = np.exp(np.asarray(parameters(agent.dual)["log"], np.float64)) * distance
    if phase == "offline":
        # Critics that cross within the samples of a state: the least of means is not the mean of the least.
        own_critic = jax.tree.map(lambda x: x, agent.critic.params)
        q = q_values(agent.critic, range(2), states, np.tanh(own))
        own_critic["params"]["Dense_0"]["bias"] += jnp.float32([[0.0], [np.median(q[0] - q[1])]])
        agent = agent.replace(critic=agent.critic.replace(params=own_critic))
        q = q_values(agent.critic, range(2), states[:, :valued], np.tanh(own[:, :valued]))
        expected -= q.mean(-1).min(0).mean()
        assert valued == 1 or abs(q.mean(-1).min(0).mean() - q.min(0).mean()) > 1e-3
    loss, metrics = agent.actor_loss(agent.actor.params, batch, KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["mmd"], distance, rtol=1e-4)


def test_the_policy_matches_alone_in_the_first_phase_and_is_drawn_both_ways_after_it():
    """The share of alpha in the slope is that of the MMD; the critics have none in the first phase."""
    batch, slopes = random_batch(4, ROWS), {}
    slope = jax.jit(lambda agent: jax.grad(lambda p: agent.actor_loss(p, batch, KEY)[0])(agent.actor.params))
    for phase in ("matching", "offline"):
        agent = make_agent(phase)
        other = agent.replace(critic=agent.critic.replace(params=jax.tree.map(lambda x: 2 * x, agent.critic.params)))
        doubled = agent.replace(
            dual=agent.dual.replace(params=jax.tree.map(lambda x: x + np.log(2), agent.dual.params))
        )
        slopes[phase] = slope(agent), slope(other), slope(doubled)
    plain, other, doubled = slopes["matching"]
    chex.assert_trees_all_equal(plain, other)
    chex.assert_trees_all_close(doubled, jax.tree.map(lambda x: 2 * x, plain), rtol=1e-4, atol=1e-7)
    later, elsewhere, twice = slopes["offline"]
    chex.assert_trees_all_close(
        twice, jax.tree.map(lambda x, y: x + y, later, plain), rtol=1e-3, atol=1e-6
    )  # one MMD's slope more
    assert (
        max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (later, elsewhere)), strict=True)) > 1e-3
    )
    # What is left of it without the MMD climbs the smaller value.
    agent, step = make_agent("offline"), jax.tree.map(lambda x, y: x - y, later, plain)
    moved = agent.replace(
        actor=agent.actor.replace(params=jax.tree.map(lambda x, g: x - 0.01 * g, agent.actor.params, step))
    )
    own_key = jax.random.split(KEY)[1]

    def value(agent):
        own = samples(agent.actor, repeated(batch.observation, 4), own_key)[:, 0]
        return q_values(agent.critic, range(2), batch.observation, np.tanh(own)).min(0).mean()

    assert value(moved) > value(agent) + 1e-6


def test_alpha_rises_above_the_threshold_falls_below_it_and_is_clipped():
    agent = make_agent(threshold=0.05)
    before = float(agent.dual())
    for discrepancy, sign in ((0.2, 1), (0.01, -1)):
        slope = jax.grad(lambda p, d=discrepancy: agent.dual_loss(p, jnp.float32(d))[0])(agent.dual.params)
        np.testing.assert_allclose(slope["params"]["log"], -before * (discrepancy - 0.05), rtol=1e-5)
        dual, _ = agent.dual.minimise(agent.dual_loss, jnp.float32(discrepancy), learning_rate=1e-2)
        assert sign * (float(dual()) - before) > 0
    batch = random_batch(6, ROWS)
    update = jax.jit(BEAR.update_once)
    for start, threshold, bound in ((9.9999, 0.0, 10.0), (-4.9999, 50.0, -5.0), (1.0, 0.0, 1.001)):
        params = {"params": {"log": jnp.float32(start)}}
        config = dataclasses.replace(agent.config, threshold=threshold, dual_learning_rate=1e-3)
        after, _ = update(
            agent.replace(config=config, dual=agent.dual.replace(params=params)), batch, KEY, jnp.int32(1)
        )
        np.testing.assert_allclose(after.dual.params["params"]["log"], bound, rtol=1e-6)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert_only_terminations_stop(make_agent())


@pytest.mark.parametrize("phase", ["matching", "offline"])
def test_each_step_sees_what_the_ones_before_have_become(phase):
    rates = {"learning_rate": 1e-2, "actor_learning_rate": 3e-3, "dual_learning_rate": 2e-2}
    agent = make_agent(phase, target_rate=0.25, policy_target_rate=0.5, **rates)
    batch = random_batch(6, ROWS)
    after, metrics = jax.jit(BEAR.update_once)(agent, batch, KEY, jnp.int32(1))
    now = agent
    for name, key, rate in zip(("vae", "critic", "actor"), jax.random.split(KEY, 3), (1e-2, 1e-2, 3e-3), strict=True):
        before = getattr(now, name)
        slope, _ = jax.grad(getattr(now, f"{name}_loss"), has_aux=True)(before.params, batch, key)
        chex.assert_trees_all_close(
            getattr(after, name).params, adam_first_step(before.params, slope, rate), rtol=2e-3, atol=2e-5
        )
        if name == "actor":  # alpha moves by the MMD of before the policy's step
            np.testing.assert_allclose(metrics["mmd"], now.actor_loss(before.params, batch, key)[1]["mmd"], rtol=1e-4)
        now = now.replace(**{name: getattr(after, name)})
    rise = np.sign(float(metrics["mmd"]) - 0.05) * 2e-2
    logs = [float(x.dual.params["params"]["log"]) for x in (agent, after)]
    np.testing.assert_allclose(logs[1] - logs[0], rise, rtol=1e-3)
    for name, rate in (("actor", 0.5), ("critic", 0.25)):
        old, new = (getattr(x, f"target_{name}").params for x in (agent, after))
        moved = jax.tree.map(lambda old, new, r=rate: (1 - r) * old + r * new, old, getattr(after, name).params)
        chex.assert_trees_all_close(new, moved, rtol=1e-5, atol=1e-6)
    assert metrics.keys() == {"vae_loss", "reconstruction", "critic_loss", "q", "actor_loss", "mmd", "alpha"}


def test_the_targets_policy_is_the_policy_by_default():
    agent, batch = make_agent(), random_batch(6, ROWS)
    after, _ = jax.jit(BEAR.update_once)(agent, batch, KEY, jnp.int32(1))
    chex.assert_trees_all_equal(after.target_actor.params, after.actor.params)


def test_an_evaluation_takes_the_best_of_its_candidates_by_the_first_critic():
    agent = make_agent(candidates=40)
    observation = random_batch(3, 2, 4).observation
    action = np.asarray(jax.jit(BEAR.act)(agent, observation))
    assert action.shape == (2, 4, ACTION)
    differs = 0
    for place in np.ndindex(2, 4):
        key = jax.random.fold_in(jax.random.key(0), observation[place].view(np.uint32).sum(dtype=np.uint32))
        states = np.tile(observation[place], (40, 1))
        actions = np.tanh(samples(agent.actor, states, key))
        best, other = q_values(agent.critic, range(2), states, actions).argmax(-1)
        differs += best != other
        np.testing.assert_allclose(action[place], actions[best], rtol=1e-4, atol=1e-5)
    assert differs
    np.testing.assert_allclose(agent.act(observation[1:, :2]), action[1:, :2], atol=1e-6)
    for name in ("actor", "critic"):
        broken = getattr(agent, name).replace(params=jax.tree.map(lambda x: x * jnp.nan, getattr(agent, name).params))
        assert not np.isfinite(agent.replace(**{name: broken}).act(np.ones((2, OBSERVATION), np.float32))).any()


def test_presets_are_those_of_both_sources():
    def config(env, *flags):
        return parse(["--env", env, *flags], "bear", "", Config, PRESETS).config

    assert config("hopper-medium") == Config()
    c = Config()
    assert (c.learning_rate, c.actor_learning_rate, c.dual_learning_rate) == (3e-4, 1e-4, 1e-3)
    assert (c.hidden, c.vae_hidden, c.batch_size) == ((256, 256), (750, 750), 256)
    assert c.phases == (("matching", 40_000), ("offline", 2_960_000), ("online", 0))
    assert (c.bandwidth, c.threshold, c.matched, c.valued, c.target_candidates, c.candidates) == (
        20,
        0.05,
        4,
        1,
        10,
        100,
    )
    for env, kernel in (("walker2d-expert", "laplacian"), ("halfcheetah-medium-replay", "gaussian")):
        assert config(env) == dataclasses.replace(Config(), kernel=kernel)
    first = config("halfcheetah-medium", "--preset", "first-code")
    assert (first.kernel, first.bandwidth, first.matched, first.valued, first.sample_noise_clip) == (
        "laplacian",
        10,
        5,
        5,
        0.5,
    )
    assert (first.policy_target_rate, first.target_rate, first.candidates, first.batch_size) == (0.005, 0.005, 10, 100)
    assert first.learning_rate == first.actor_learning_rate == first.dual_learning_rate == 1e-3
    assert first.phases == (("matching", 20_000), ("offline", 980_000), ("online", 0))
    walker = config("walker2d-medium", "--preset", "first-code")
    assert (walker.kernel, walker.bandwidth, walker.hidden) == ("gaussian", 20, (400, 300))
    assert {f"locomotion/halfcheetah-{q}" for q in tasks.QUALITIES} <= PRESETS.keys()
    assert dataclasses.replace(c, valued=5).problem().startswith("--valued 5 ")
    assert dataclasses.replace(c, matching_steps=0).problem() is None
