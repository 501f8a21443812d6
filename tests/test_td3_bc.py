"""algorithms/td3_bc.py against an independent NumPy computation, and its semantics."""

import dataclasses
import itertools

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
    head,
    parameters,
    q_values,
    random_batch,
    shaken,
)

from algorithms.td3_bc import PRESETS, TD3BC, Config, Prior
from common import tasks
from common.agent import MISSING
from common.commandline import parse
from common.datasets import Dataset
from common.errors import Refused
from common.replay import Replay


def with_returns(batch, seed=0):
    returns = np.random.default_rng(seed).normal(size=batch.reward.shape).astype(np.float32)
    return Prior(**(vars(batch) | {"return_to_go": returns}))


def make_agent(**values) -> TD3BC:
    config = Config(**({"hidden": (8, 6), "actor_hidden": (7,), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = TD3BC.create(config, jax.random.key(0), example, with_returns(random_batch(1, 20)))
    actor, target_actor, critic, target_critic = shaken(
        agent.actor, agent.target_actor, agent.critic, agent.target_critic
    )
    return agent.replace(actor=actor, target_actor=target_actor, critic=critic, target_critic=target_critic)


def actions_of(actor, observation):
    return np.tanh(head(parameters(actor), observation))


def numpy_target(agent, batch, key):
    noise = np.asarray(0.2 * jax.random.normal(key, batch.action.shape), np.float64).clip(-0.5, 0.5)
    next_action = (actions_of(agent.target_actor, batch.next_observation) + noise).clip(-1, 1)
    next_q = q_values(agent.target_critic, range(2), batch.next_observation, next_action).min(0)
    return batch.reward + 0.99 * batch.mask * next_q


@pytest.mark.parametrize("layer_norm", [True, False])
def test_critic_loss_equals_numpy(layer_norm):
    agent, batch, key = make_agent(layer_norm=layer_norm), random_batch(2, ROWS), jax.random.key(3)
    target = numpy_target(agent, batch, jax.random.split(key)[0])
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    loss, metrics = agent.critic_loss(agent.critic.params, batch, key)
    np.testing.assert_allclose(loss, ((q - target) ** 2).mean(-1).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-5)


def test_actor_loss_equals_numpy():
    agent, batch = make_agent(alpha=2.0).replace(cloning=jnp.float32(0.7)), random_batch(3, ROWS)
    action = actions_of(agent.actor, batch.observation)
    q = q_values(agent.critic, [0], batch.observation, action)[0]
    expected = -2.0 / np.abs(q).mean() * q.mean() + 0.7 * np.mean((action - batch.action) ** 2)
    loss, metrics = agent.actor_loss(agent.actor.params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["cloning"], np.mean((action - batch.action) ** 2), rtol=1e-5)


def test_no_gradient_flows_through_the_actors_normalisation():
    """The slope of the value term is lambda times the slope of the mean value, lambda held fixed."""
    agent, batch = make_agent(), random_batch(3, ROWS)
    slope = jax.grad(lambda p: agent.replace(cloning=0.0).actor_loss(p, batch)[0])(agent.actor.params)

    def value(params):
        return agent.critic(batch.observation, agent.actor(batch.observation, params=params))[0]

    scale = 2.5 / np.abs(value(agent.actor.params)).mean()
    expected = jax.grad(lambda p: -scale * value(p).mean())(agent.actor.params)
    chex.assert_trees_all_close(slope, expected, rtol=1e-4, atol=1e-6)


def mixed_terms(agent, batch, key):
    """Functions of the critics' parameters: L_Q, L_MC and C, and the target of the first by NumPy."""
    target_key, random_key = jax.random.split(key)
    target = numpy_target(agent, batch, target_key).astype(np.float32)
    random_actions = jax.random.uniform(random_key, (10, ROWS, ACTION), minval=-1.0, maxval=1.0)

    def q(params):
        return agent.critic(batch.observation, batch.action, params=params)

    def gap(params):
        wide = jnp.stack([agent.critic(batch.observation, a, params=params) for a in random_actions])
        return (jax.nn.logsumexp(wide, axis=0) - q(params)).mean(-1).sum()

    return (
        lambda params: jnp.square(q(params) - target).mean(-1).sum(),
        lambda params: jnp.square(q(params) - batch.return_to_go).mean(-1).sum(),
        gap,
    )


def numpy_gap(agent, batch, key):
    actions = np.asarray(jax.random.uniform(jax.random.split(key)[1], (10, ROWS, ACTION), minval=-1.0, maxval=1.0))
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    q_random = np.stack([q_values(agent.critic, range(2), batch.observation, a) for a in actions])
    return (np.log(np.exp(q_random).sum(0)) - q).mean(-1).sum()


def assert_slope(loss, logarithms, params):
    """Of a loss of terms divided by their own size, the gradient is that of their logarithms."""
    slope, expected = jax.grad(loss)(params), jax.grad(logarithms)(params)
    chex.assert_trees_all_close(slope, expected, rtol=1e-3, atol=1e-5)


def favoured(agent, batch):
    """The agent with steeper critics, and the batch with corner actions that they prefer to random ones: C < 0."""
    layers = agent.critic.params["params"]
    steep = layers | {"Dense_0": jax.tree.map(lambda x: 50 * x, layers["Dense_0"])}
    agent = agent.replace(critic=agent.critic.replace(params={"params": steep}))
    corners = np.array(list(itertools.product([-1, 1], repeat=ACTION)), np.float32)
    q = [q_values(agent.critic, range(2), batch.observation, np.tile(c, (ROWS, 1))).sum(0) for c in corners]
    return agent, batch.replace(action=corners[np.argmax(q, axis=0)])


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_losses_of_imitation_are_divided_by_their_own_size(share, negative):
    """The gradient is that of (1 - l) log L_MC + l log L_Q + w log |C|, signed."""
    agent = make_agent(mixed=True, td_share=share, conservative=0.5, pretrain_steps=1)
    batch, key = with_returns(random_batch(4, ROWS)), jax.random.key(3)
    if negative:
        agent, batch = favoured(agent, batch)
    td, returns, gap = mixed_terms(agent, batch, key)
    sign = -1 if negative else 1
    assert np.sign(numpy_gap(agent, batch, key)) == sign
    loss, metrics = agent.imitation_loss(agent.critic.params, batch, key)
    np.testing.assert_allclose(loss, 1.0 + 0.5 * sign, rtol=1e-5)
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    np.testing.assert_allclose(metrics["critic_loss"], ((q - batch.return_to_go) ** 2).mean(-1).sum(), rtol=1e-5)
    assert_slope(
        lambda p: agent.imitation_loss(p, batch, key)[0],
        lambda p: share * jnp.log(td(p)) + (1 - share) * jnp.log(returns(p)) + 0.5 * sign * jnp.log(jnp.abs(gap(p))),
        agent.critic.params,
    )


@pytest.mark.parametrize("rows", [with_returns(random_batch(2, ROWS)), random_batch(2, ROWS)])
def test_mixed_losses_after_imitation_know_no_returns(rows):
    """The gradient is that of log L_Q + w log |C|, signed, for the data alone and with experience."""
    agent, key = make_agent(mixed=True, td_share=0.3, conservative=0.5, pretrain_steps=1), jax.random.key(3)
    td, _, gap = mixed_terms(agent, with_returns(rows), key)
    assert numpy_gap(agent, rows, key) > 0
    loss, metrics = agent.critic_loss(agent.critic.params, rows, key)
    np.testing.assert_allclose(loss, 1.0 + 0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics["critic_loss"], td(agent.critic.params), rtol=1e-5)
    assert_slope(
        lambda p: agent.critic_loss(p, rows, key)[0],
        lambda p: jnp.log(td(p)) + 0.5 * jnp.log(gap(p)),
        agent.critic.params,
    )


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert_only_terminations_stop(make_agent())


def test_the_actor_and_all_targets_move_every_second_critic_step():
    agent, batch = make_agent(), random_batch(6, 1, ROWS)
    update = jax.jit(TD3BC.update)
    for step, moves in ((1, False), (2, True), (3, False), (4, True)):
        after, metrics = update(agent, batch, jax.random.key(step), jnp.int32(step))
        for name in ("actor", "target_actor", "target_critic"):
            pairs = zip(*(jax.tree.leaves(getattr(x, name).params) for x in (agent, after)), strict=True)
            assert any((a != b).any() for a, b in pairs) == moves, (name, step)
        assert (metrics["actor_loss"] != MISSING) == moves
        assert int(after.critic.opt_state.count) == int(agent.critic.opt_state.count) + 1


def test_several_critic_steps_in_one_update_use_their_own_minibatches():
    agent, batch = make_agent(), random_batch(6, 4, ROWS)
    after, _ = jax.jit(TD3BC.update)(agent, batch, jax.random.key(0), jnp.int32(1))
    assert int(after.critic.opt_state.count) == 4
    assert int(after.actor.opt_state.count) == 2
    changed = batch.replace(reward=batch.reward.copy())
    changed.reward[2] += 1
    other, _ = jax.jit(TD3BC.update)(agent, changed, jax.random.key(0), jnp.int32(1))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after.critic.params, other.critic.params)),
                                              strict=True))  # fmt: skip


@pytest.mark.parametrize("mixed", [False, True])
def test_imitation_clones_and_regresses_returns(mixed):
    agent = make_agent(learning_rate=1e-2, target_rate=0.25, mixed=mixed, conservative=0.5 * mixed)
    agent = agent.enter("imitation", jax.random.key(0), None)
    batch = with_returns(random_batch(6, 1, ROWS))
    one = jax.tree.map(lambda x: x[0], batch)
    after, metrics = jax.jit(TD3BC.update)(agent, batch, jax.random.key(0), jnp.int32(3))
    clone = jax.grad(lambda p: jnp.square(agent.actor(one.observation, params=p) - one.action).mean())
    (step_key,) = jax.random.split(jax.random.key(0), 1)
    _, returns, gap = mixed_terms(agent, one, step_key)
    fit = jax.grad((lambda p: jnp.log(returns(p)) + 0.5 * jnp.log(gap(p))) if mixed else returns)

    def same(got, expected):
        chex.assert_trees_all_close(got, expected, rtol=2e-3, atol=2e-5)

    same(after.actor.params, adam_first_step(agent.actor.params, clone(agent.actor.params), 1e-2))
    same(after.critic.params, adam_first_step(agent.critic.params, fit(agent.critic.params), 1e-2))
    for target, online in (("target_actor", "actor"), ("target_critic", "critic")):
        old, new = getattr(agent, target).params, getattr(after, online).params
        same(getattr(after, target).params, jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, old, new))
    q = q_values(agent.critic, range(2), one.observation, one.action)
    np.testing.assert_allclose(metrics["critic_loss"], ((q - one.return_to_go) ** 2).mean(-1).sum(), rtol=1e-5)
    assert after.enter("offline", jax.random.key(0), None).critic is after.critic


def test_returns_go_on_for_ever_after_a_time_limit_and_stop_at_a_termination():
    """Three episodes: terminated, cut by the time limit, cut by the end of the file."""
    rewards = np.array([1, 2, 3, 4, 5], np.float32)
    data = Dataset(
        observation=np.zeros((5, 11), np.float32), action=np.zeros((5, 3), np.float32), reward=rewards,
        terminated=np.array([False, True, False, False, False]), truncated=np.array([False, False, False, True, True]),
        next_observation=np.zeros((5, 11), np.float32), success=np.zeros(5, bool), source="npz:test",
    )  # fmt: skip
    prior = TD3BC.prepare(Config(discount=0.5, pretrain_steps=1), data, tasks.find("hopper-medium"))
    np.testing.assert_allclose(prior.return_to_go, [1 + 0.5 * 2, 2, 3 + 0.5 * 8, 8, 10])
    assert prior.mask.tolist() == [1, 0, 1, 1, 1]
    # Where nothing learns them, they are not computed, and no discount is too large.
    unused = TD3BC.prepare(Config(discount=1.0), data, tasks.find("hopper-medium"))
    assert np.isnan(unused.return_to_go).all()
    with pytest.raises(Refused, match="below 1"):
        TD3BC.prepare(Config(discount=1.0, pretrain_steps=1), data, tasks.find("hopper-medium"))


def far_from_zero(batch):
    """Observations of mean 3 and next ones of mean -7, so that none is all but normalised by chance."""
    return batch.replace(observation=3 + 2 * batch.observation, next_observation=-7 + 2 * batch.next_observation)


def assert_rows(agent, drawn, *sources):
    """Every drawn row is a row of one of the sources, with both its observations normalised."""

    def joined(batch):
        parts = batch.observation, batch.action, batch.reward[..., None], batch.mask[..., None], batch.next_observation
        return np.concatenate([np.asarray(x) for x in parts], axis=-1)

    mean, std = (np.asarray(x) for x in (agent.normal.mean, agent.normal.std))
    raw = drawn.replace(
        observation=drawn.observation * std + mean, next_observation=drawn.next_observation * std + mean
    )
    rows = joined(raw).reshape(-1, 2 * OBSERVATION + ACTION + 2)
    known = np.concatenate([joined(source) for source in sources])
    assert np.abs(rows[:, None] - known).max(-1).min(1).max() < 1e-4


def test_observations_are_normalised_everywhere_alike():
    prior = far_from_zero(with_returns(random_batch(1, 200)))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = TD3BC.create(
        Config(hidden=(8,), actor_hidden=(8,), batch_size=500, utd=3, exploration_noise=0.0),
        jax.random.key(0), example, prior,
    )  # fmt: skip
    np.testing.assert_allclose(agent.normal.mean, prior.observation.mean(0), rtol=1e-4)
    np.testing.assert_allclose(agent.normal.std, prior.observation.std(0) + 1e-3, rtol=1e-4)
    offline = agent.sample(jax.random.key(1), None, prior)
    assert offline.observation.shape == (1, 500, OBSERVATION)
    assert_rows(agent, offline, prior)
    assert isinstance(offline, Prior)
    collected, experience = far_from_zero(random_batch(8, 100)), Replay.create(example, 100)
    for row in range(100):
        experience = experience.insert(jax.tree.map(lambda x, r=row: x[r], collected))
    online = agent.sample(jax.random.key(2), experience, prior)
    assert not isinstance(online, Prior)
    assert online.observation.shape == (3, 500, OBSERVATION)
    assert_rows(agent, online, prior, collected)
    assert abs(np.isin(np.asarray(online.reward), collected.reward).mean() - 1 / 3) < 0.05
    raw = prior.observation[:4]
    expected = actions_of(agent.actor, (raw - np.asarray(agent.normal.mean)) / np.asarray(agent.normal.std))
    np.testing.assert_allclose(agent.act(raw), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(agent.explore(raw, jax.random.key(3)), expected, rtol=1e-4, atol=1e-6)
    unnormalised = TD3BC.create(dataclasses.replace(agent.config, normalise=False), jax.random.key(0), example, prior)
    np.testing.assert_array_equal(unnormalised.normal(raw), raw)


def test_going_online_keeps_networks_and_optimisers_and_sets_the_cloning_weight():
    agent = make_agent(online_cloning=0.25, online_steps=1)
    assert float(agent.cloning) == 1
    after = agent.enter("online", jax.random.key(0), None)
    assert float(after.cloning) == 0.25
    assert after.critic is agent.critic
    assert after.actor is agent.actor


def test_it_explores_with_noise_within_the_bounds():
    agent = make_agent(exploration_noise=0.1)
    observation = np.zeros((2000, OBSERVATION), np.float32)
    noise = np.asarray(agent.explore(observation, jax.random.key(0)) - agent.act(observation))
    assert np.abs(noise.std() - 0.1) < 0.01
    assert np.abs(np.asarray(make_agent(exploration_noise=5.0).explore(observation, jax.random.key(0)))).max() <= 1


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"td_share": 0.5, "pretrain_steps": 1}, "--mixed"),
        ({"conservative": 0.5}, "--mixed"),
        ({"td_share": 0.5, "mixed": True}, "--pretrain-steps"),
        ({"td_share": 0.5, "mixed": True, "online_steps": 1}, "--pretrain-steps"),
    ],
)
def test_values_that_do_not_go_together_are_named(values, told):
    assert told in Config(**values).problem()


def first_imitate(*arguments):
    return parse(["--preset", "imitate-first", *arguments], "td3_bc", "", Config, PRESETS).config


def test_first_imitates_alpha_is_that_of_the_data_set():
    assert first_imitate("--env", "hopper-medium").alpha == 10
    assert first_imitate("--env", "hopper-medium", "--alpha", "3").alpha == 3
    with pytest.raises(Refused, match=r"td3_bc has imitate-first, imitate-first-adroit$"):
        parse(["--preset", "first"], "td3_bc", "", Config, PRESETS)


@pytest.mark.parametrize(
    ("bodies", "qualities", "alpha", "total"),
    [
        ("halfcheetah", "medium medium-replay", 20, 100_000),
        ("hopper", "medium medium-replay", 10, 500_000),
        ("walker2d", "medium medium-replay", 5, 500_000),
        ("halfcheetah hopper walker2d", "random medium-expert expert", 2.5, 1_000_000),
        ("pen door hammer relocate", "human cloned expert", 1, 300_000),
    ],
)
def test_first_imitates_alpha_and_steps_are_those_of_its_authors(bodies, qualities, alpha, total):
    """Their configurations, whose steps include the 10,000 of imitation (200,000 of Adroit's, with both terms)."""
    for body, quality in itertools.product(bodies.split(), qualities.split()):
        config = first_imitate("--env", f"{body}-{quality}")
        assert (config.alpha, config.pretrain_steps) == (alpha, 10_000)
        assert config.pretrain_steps + config.offline_steps == total
        assert (config.hidden, config.actor_hidden, config.layer_norm) == ((256,) * 2, (256,) * 3, True)
        if total == 300_000:
            task = ["--env", f"{body}-{quality}", "--preset", "imitate-first-adroit"]
            config = parse(task, "td3_bc", "", Config, PRESETS).config
            assert (config.alpha, config.pretrain_steps, config.offline_steps) == (1, 200_000, 100_000)
            assert (config.mixed, config.td_share, config.conservative) == (True, 0, 1)


@pytest.mark.parametrize("maze", ["umaze", "medium", "large"])
def test_imitation_first_keeps_the_small_networks_of_the_small_maze(maze):
    config = first_imitate("--env", f"pointmaze-{maze}")
    assert (config.hidden, config.actor_hidden, config.layer_norm) == ((128,) * 2, (128,) * 3, True)
    family = PRESETS["pointmaze"]
    assert (config.offline_steps, config.discount) == (family["offline_steps"], family["discount"]) == (50_000, 0.995)


def test_every_point_of_a_grid_is_checked():
    grid = ["--grid.td-share", "0", "0.5", "--pretrain-steps", "1"]
    with pytest.raises(Refused, match="need --mixed"):
        parse(grid, "td3_bc", "", Config, PRESETS)
    assert len(parse([*grid, "--mixed"], "td3_bc", "", Config, PRESETS).points()) == 2


def test_phases_and_presets():
    assert Config(pretrain_steps=5, offline_steps=7, online_steps=9).phases == (
        ("imitation", 5), ("offline", 7), ("online", 9),
    )  # fmt: skip
    for preset in PRESETS.values():
        fields = {f.name for f in dataclasses.fields(Config)}
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
