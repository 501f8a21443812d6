"""algorithms/td3_bc.py against an independent NumPy computation, and its semantics."""

import dataclasses

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
from common.commandline import parse
from common.datasets import Dataset
from common.errors import Refused
from common.replay import Replay


def with_returns(batch, seed=0):
    returns = np.random.default_rng(seed).normal(size=batch.reward.shape).astype(np.float32)
    return Prior(**vars(batch), return_to_go=returns)


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
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), slope, expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_losses_are_divided_by_their_own_size(share):
    """The gradient is that of (1 - l) log L_MC + l log L_TD + w log |C|, signed."""
    agent = make_agent(mixed=True, td_share=share, conservative=0.5)
    batch, key = with_returns(random_batch(2, ROWS)), jax.random.key(3)
    target_key, random_key = jax.random.split(key)
    target = numpy_target(agent, batch, target_key)
    random_actions = jax.random.uniform(random_key, (10, ROWS, ACTION), minval=-1.0, maxval=1.0)
    loss, _ = agent.critic_loss(agent.critic.params, batch, key)
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    q_random = np.stack([q_values(agent.critic, range(2), batch.observation, a) for a in np.asarray(random_actions)])
    gap = (np.log(np.exp(q_random).sum(0)) - q).mean(-1).sum()
    np.testing.assert_allclose(loss, 1.0 + 0.5 * np.sign(gap), rtol=1e-5)

    def logarithms(params):
        q = agent.critic(batch.observation, batch.action, params=params)
        td = jnp.square(q - target.astype(np.float32)).mean(-1).sum()
        returns = jnp.square(q - batch.return_to_go).mean(-1).sum()
        wide = jnp.stack([agent.critic(batch.observation, a, params=params) for a in random_actions])
        gap = (jax.nn.logsumexp(wide, axis=0) - q).mean(-1).sum()
        return share * jnp.log(td) + (1 - share) * jnp.log(returns) + 0.5 * jnp.sign(gap) * jnp.log(jnp.abs(gap))

    slope = jax.grad(lambda p: agent.critic_loss(p, batch, key)[0])(agent.critic.params)
    expected = jax.grad(logarithms)(agent.critic.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), slope, expected)


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
        assert np.isfinite(metrics["actor_loss"]) == moves
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


def test_imitation_clones_and_regresses_returns():
    agent = make_agent(learning_rate=1e-2, target_rate=0.25).enter("imitation", jax.random.key(0), None)
    batch = with_returns(random_batch(6, 1, ROWS))
    one = jax.tree.map(lambda x: x[0], batch)
    after, metrics = jax.jit(TD3BC.update)(agent, batch, jax.random.key(0), jnp.int32(3))
    clone = jax.grad(lambda p: jnp.square(agent.actor(one.observation, params=p) - one.action).mean())
    fit = jax.grad(
        lambda p: jnp.square(agent.critic(one.observation, one.action, params=p) - one.return_to_go).mean(-1).sum()
    )

    def same(got, expected):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-5), got, expected)

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
        TD3BC.prepare(Config(discount=1.0, mixed=True), data, tasks.find("hopper-medium"))


def test_observations_are_normalised_everywhere_alike():
    prior = with_returns(random_batch(1, 200))
    prior = prior.replace(observation=3 + 2 * prior.observation)
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = TD3BC.create(Config(hidden=(8,), actor_hidden=(8,), batch_size=5000), jax.random.key(0), example, prior)
    seen = np.asarray(agent.sample(jax.random.key(1), None, prior).observation)[0]
    np.testing.assert_allclose(seen.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(seen.std(0), 1, atol=0.1)
    raw = prior.observation[:4]
    np.testing.assert_allclose(agent.act(raw), agent.actor((raw - agent.mean) / agent.std), rtol=1e-5)
    experience = Replay.create(example, 4).insert(jax.tree.map(lambda x: x[0], random_batch(8, 1)))
    online = agent.sample(jax.random.key(2), experience, prior)
    assert not isinstance(online, Prior)
    known = np.concatenate([prior.observation, random_batch(8, 1).observation])
    distance = np.abs(np.asarray(online.observation)[0][:50, None] * agent.std + agent.mean - known).max(-1).min(1)
    assert distance.max() < 1e-4
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
        ({"td_share": 0.5}, "--mixed"),
        ({"td_share": 2.0, "mixed": True}, "--td-share"),
        ({"policy_delay": 0}, "--policy-delay"),
        ({"pretrain_steps": -1}, "--pretrain-steps"),
    ],
)
def test_impossible_values_are_named(values, told):
    assert told in Config(**values).problem()


def test_first_imitates_alpha_is_that_of_the_data_set():
    def alpha(*arguments):
        return parse(["--preset", "imitate-first", *arguments], "td3_bc", "", Config, PRESETS).config.alpha

    assert alpha("--env", "hopper-medium") == 10
    assert alpha("--env", "walker2d-medium-replay") == 5
    assert alpha("--env", "hopper-expert") == 2.5
    assert alpha("--env", "hopper-medium", "--alpha", "3") == 3
    with pytest.raises(Refused, match=r"td3_bc has imitate-first, imitate-first-adroit$"):
        parse(["--preset", "first"], "td3_bc", "", Config, PRESETS)


def test_every_point_of_a_grid_is_checked():
    with pytest.raises(Refused, match="need --mixed"):
        parse(["--grid.td-share", "1", "0.5"], "td3_bc", "", Config, PRESETS)
    assert len(parse(["--grid.td-share", "1", "0.5", "--mixed"], "td3_bc", "", Config, PRESETS).points()) == 2


def test_phases_and_presets():
    assert Config(pretrain_steps=5, offline_steps=7, online_steps=9).phases == (
        ("imitation", 5), ("offline", 7), ("online", 9),
    )  # fmt: skip
    for preset in PRESETS.values():
        fields = {f.name for f in dataclasses.fields(Config)}
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
