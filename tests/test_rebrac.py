"""algorithms/rebrac.py against an independent NumPy computation, and its semantics."""

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
    head,
    parameters,
    q_values,
    random_batch,
    shaken,
)

from algorithms.rebrac import PRESETS, Config, Prior, ReBRAC
from common import tasks
from common.agent import MISSING
from common.commandline import parse
from common.datasets import Dataset
from common.replay import Batch, Replay

KEY = jax.random.key(3)


def with_next_actions(batch, seed=0):
    following = np.random.default_rng(seed).uniform(-1, 1, size=batch.action.shape).astype(np.float32)
    return Prior(**(vars(batch) | {"next_action": following}))


def make_agent(**values) -> ReBRAC:
    config = Config(**({"hidden": (8, 6), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = ReBRAC.create(config, jax.random.key(0), example, with_next_actions(random_batch(1, 20)))
    actor, target_actor, critic, target_critic = shaken(
        agent.actor, agent.target_actor, agent.critic, agent.target_critic
    )
    return agent.replace(actor=actor, target_actor=target_actor, critic=critic, target_critic=target_critic)


def actions_of(actor, observation):
    return np.tanh(head(parameters(actor), observation))


def numpy_target(agent, batch, penalty, key=KEY, scale=1.0, shift=0.0):
    noise = np.asarray(0.2 * jax.random.normal(key, batch.action.shape), np.float64).clip(-0.5, 0.5)
    own = (actions_of(agent.target_actor, batch.next_observation) + noise).clip(-1, 1)
    value = q_values(agent.target_critic, range(2), batch.next_observation, own).min(0)
    if penalty:
        value -= penalty * ((own - batch.next_action) ** 2).sum(-1)
    return scale * batch.reward + shift + 0.99 * batch.mask * value


@pytest.mark.parametrize("layer_norm", [True, False])
def test_critic_loss_equals_numpy(layer_norm):
    agent = make_agent(layer_norm=layer_norm, critic_penalty=0.7, reward_scale=3.0, reward_shift=-2.0)
    batch = with_next_actions(random_batch(2, ROWS))
    target = numpy_target(agent, batch, 0.7, scale=3.0, shift=-2.0)
    np.testing.assert_allclose(agent.target(batch, KEY), target, rtol=1e-5, atol=1e-5)
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    loss, metrics = agent.critic_loss(agent.critic.params, batch, KEY)
    np.testing.assert_allclose(loss, ((q - target) ** 2).mean(-1).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_actor_loss_equals_numpy(share):
    agent, batch = make_agent(actor_penalty=0.4).replace(share=jnp.float32(share)), random_batch(3, ROWS)
    action = actions_of(agent.actor, batch.observation)
    each = q_values(agent.critic, range(2), batch.observation, action)
    q, distance = each.min(0), ((action - batch.action) ** 2).sum(-1)
    assert (each.argmin(0) == 0).any()
    assert (each.argmin(0) == 1).any()
    loss, metrics = agent.actor_loss(agent.actor.params, batch)
    np.testing.assert_allclose(loss, (share * 0.4 * distance - q / np.abs(q).mean()).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["cloning"], distance.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["actor_penalty"], share * 0.4, rtol=1e-6)


def test_no_gradient_flows_through_the_actors_normalisation():
    """The slope of the value term is lambda times the slope of the mean value, lambda held fixed."""
    agent, batch = make_agent(actor_penalty=0.0), random_batch(3, ROWS)

    def value(params):
        return agent.critic(batch.observation, agent.actor(batch.observation, params=params)).min(0)

    scale = 1 / np.abs(value(agent.actor.params)).mean()
    expected = jax.grad(lambda p: -scale * value(p).mean())(agent.actor.params)
    slope = jax.grad(lambda p: agent.actor_loss(p, batch)[0])(agent.actor.params)
    chex.assert_trees_all_close(slope, expected, rtol=1e-4, atol=1e-6)


def test_the_actors_penalty_pulls_towards_the_datas_action():
    """Its gradient with respect to the action is 2 beta_1 (pi(s) - a) / n, for every number of the action."""
    agent, batch = make_agent(actor_penalty=0.4), random_batch(3, ROWS)
    without = agent.replace(config=dataclasses.replace(agent.config, actor_penalty=0.0))

    def bias(one):
        return jax.grad(lambda p: one.actor_loss(p, batch)[0])(agent.actor.params)["params"]["Dense_0"]["bias"]

    action = actions_of(agent.actor, batch.observation)
    by_hand = (2 * 0.4 * (action - batch.action) * (1 - action**2)).mean(0)
    np.testing.assert_allclose(bias(agent) - bias(without), by_hand, rtol=1e-3, atol=1e-6)


def test_the_critics_penalty_falls_on_every_number_of_the_next_action_and_not_behind_a_termination():
    agent, batch = make_agent(critic_penalty=0.7), with_next_actions(random_batch(5, ROWS))
    assert 0 < batch.mask.sum() < ROWS
    before = np.asarray(agent.target(batch, KEY))
    for axis in range(ACTION):
        moved = batch.replace(next_action=batch.next_action + 10 * np.eye(ACTION, dtype=np.float32)[axis])
        farther = np.asarray(agent.target(moved, KEY)) - before
        assert (farther[batch.mask == 0] == 0).all()
        assert (farther[batch.mask == 1] < -0.99 * 0.7 * 50).all()


def test_the_next_action_is_of_the_next_state():
    agent, batch = make_agent(), with_next_actions(random_batch(5, ROWS))
    batch = batch.replace(mask=np.ones(ROWS, np.float32))
    elsewhere = batch.replace(observation=batch.observation + 1, action=-batch.action)
    np.testing.assert_array_equal(agent.target(batch, KEY), agent.target(elsewhere, KEY))


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert_only_terminations_stop(make_agent(), with_next_actions(random_batch(5, 2)))
    assert_only_terminations_stop(make_agent().replace(phase="online"))


def test_no_pair_of_actions_joins_two_episodes():
    """Three episodes: terminated, cut by the time limit, cut by the end of the file."""
    number = np.arange(7, dtype=np.float32)
    data = Dataset(
        observation=np.tile(number[:, None], 11), action=np.tile(number[:, None] / 10, 3), reward=number,
        terminated=np.arange(7) == 1, truncated=np.isin(np.arange(7), (4, 6)),
        next_observation=np.tile(number[:, None] + 0.5, 11), success=np.zeros(7, bool), source="npz:test",
    )  # fmt: skip
    prior = ReBRAC.prepare(Config(), data, tasks.find("hopper-medium"))
    # Rows 4 and 6 are followed by nothing: only a reader that rolls over episodes has a next action for row 4.
    assert prior.reward.tolist() == [0, 1, 2, 3, 5]
    assert prior.mask.tolist() == [1, 0, 1, 1, 1]
    assert prior.observation[:, 0].tolist() == [0, 1, 2, 3, 5]
    assert prior.next_observation[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 5.5]
    bootstrapped = prior.mask == 1
    np.testing.assert_allclose(prior.next_action[bootstrapped, 0], [0.1, 0.3, 0.4, 0.6])
    assert (prior.next_action != 0.2)[:, 0].all()


def test_layer_norm_follows_the_relu_and_only_in_the_critics():
    agent = make_agent()
    layers = agent.critic.params["params"]["MLP_0"]
    assert {k: v["bias"].shape for k, v in layers.items() if k.startswith("LayerNorm")} == {
        "LayerNorm_0": (2, 8), "LayerNorm_1": (2, 6),
    }  # fmt: skip
    assert not any("LayerNorm" in name for name in agent.actor.params["params"]["MLP_0"])
    # With a last layer that sums, a LayerNorm behind the ReLU gives the sum of its biases, before it does not.
    params = jax.tree.map(lambda x: x, agent.critic.params)
    params["params"]["Dense_0"] = {"kernel": jnp.ones((2, 6, 1)), "bias": jnp.zeros((2, 1))}
    layers = params["params"]["MLP_0"]["LayerNorm_1"]
    layers["scale"] = jnp.ones((2, 6))
    batch = random_batch(2, ROWS)
    q = agent.critic(batch.observation, batch.action, params=params)
    np.testing.assert_allclose(q, np.repeat(layers["bias"].sum(-1)[:, None], ROWS, 1), rtol=1e-4, atol=1e-5)


def test_parameters_begin_as_the_authors():
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = ReBRAC.create(Config(hidden=(64, 400)), jax.random.key(0), example, None)
    for network, inputs, last in ((agent.actor, OBSERVATION, 1e-3), (agent.critic, OBSERVATION + ACTION, 3e-3)):
        params = network.params["params"]
        for index, size in enumerate((inputs, 64)):
            layer = params["MLP_0"][f"Dense_{index}"]
            assert (layer["bias"] == np.float32(0.1)).all()
            bound = 1 / np.sqrt(size)
            assert 0.98 * bound < np.abs(layer["kernel"]).max() <= bound
            assert abs(np.std(layer["kernel"]) * np.sqrt(3) / bound - 1) < 0.1
        kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
        assert 0.95 * last < np.abs(kernel).max() <= last
        assert 0 < np.abs(bias).max() <= last
    for name in ("actor", "critic"):
        chex.assert_trees_all_equal(getattr(agent, name).params, getattr(agent, f"target_{name}").params)


def test_the_actor_and_all_targets_move_every_second_critic_step():
    agent, batch = make_agent(), jax.tree.map(lambda x: x[None], with_next_actions(random_batch(6, ROWS)))
    update = jax.jit(ReBRAC.update)
    for step, moves in ((1, False), (2, True), (3, False), (4, True)):
        after, metrics = update(agent, batch, jax.random.key(step), jnp.int32(step))
        for name in ("actor", "target_actor", "target_critic"):
            pairs = zip(*(jax.tree.leaves(getattr(x, name).params) for x in (agent, after)), strict=True)
            assert any((a != b).any() for a, b in pairs) == moves, (name, step)
        assert (metrics["actor_loss"] != MISSING) == moves
        assert int(after.critic.opt_state.count) == int(agent.critic.opt_state.count) + 1


def test_the_actor_learns_from_the_critics_just_updated_and_its_target_from_the_actor_before():
    agent = make_agent(learning_rate=1e-2, actor_learning_rate=2e-2, target_rate=0.25, policy_delay=1)
    batch = with_next_actions(random_batch(6, ROWS))

    @jax.jit
    def update(agent):
        middle, _ = agent.update_once(batch, KEY, jnp.int32(1))
        return middle, middle.update_delayed(batch)[0]

    middle, after = update(agent)
    slope = jax.grad(lambda p: agent.critic_loss(p, batch, KEY)[0])(agent.critic.params)
    expected = adam_first_step(agent.critic.params, slope, 1e-2)
    chex.assert_trees_all_close(after.critic.params, expected, rtol=2e-3, atol=2e-5)
    chex.assert_trees_all_equal(middle.actor.params, agent.actor.params)
    slope = jax.grad(lambda p: middle.actor_loss(p, batch)[0])(agent.actor.params)
    expected = adam_first_step(agent.actor.params, slope, 2e-2)
    chex.assert_trees_all_close(after.actor.params, expected, rtol=2e-3, atol=2e-5)
    for target, towards in (("target_actor", agent.actor), ("target_critic", after.critic)):
        old = getattr(agent, target).params
        moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, old, towards.params)
        chex.assert_trees_all_close(getattr(after, target).params, moved, rtol=1e-5, atol=1e-6)


def test_online_there_is_no_critic_penalty():
    agent, batch = make_agent(critic_penalty=0.7), random_batch(2, ROWS)
    online = agent.enter("online", KEY, None)
    np.testing.assert_allclose(online.target(batch, KEY), numpy_target(agent, batch, 0.0), rtol=1e-5, atol=1e-5)
    assert online.critic is agent.critic
    with pytest.raises(AttributeError):
        agent.enter("offline", KEY, None).target(batch, KEY)


@pytest.mark.parametrize("least", [0.0, 0.5])
def test_online_the_actors_penalty_falls_linearly(least):
    """The authors' coefficient at step i, counted from 0: max(least, (n - i) / n)."""
    agent = make_agent(online_steps=5, utd=2, least_share=least, actor_penalty=0.4)
    assert [float(agent.enter("offline", KEY, None).share_left(jnp.int32(n))) for n in (1, 7, 10)] == [1, 1, 1]
    online = agent.enter("online", KEY, None)
    shares = [float(online.share_left(jnp.int32(n))) for n in range(1, 11)]
    np.testing.assert_allclose(shares, [max(least, (10 - i) / 10) for i in range(10)], rtol=1e-6)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), random_batch(6, ROWS))
    after, metrics = jax.jit(ReBRAC.update)(online, batch, KEY, jnp.int32(4))
    np.testing.assert_allclose([after.share, metrics["actor_penalty"] / 0.4], max(least, 0.3), rtol=1e-6)


def test_minibatches_online_are_half_data():
    example, prior = jax.tree.map(lambda x: x[0], random_batch(0, 1)), with_next_actions(random_batch(1, 20))
    agent, experience = make_agent(batch_size=8, utd=3), Replay.create(example, 30)
    collected = random_batch(8, 10)
    for row in range(10):
        experience = experience.insert(jax.tree.map(lambda x, r=row: x[r], collected))
    offline = agent.sample(KEY, None, prior)
    assert offline.next_action.shape == (1, 8, ACTION)
    # The next action is that of its row.
    row = np.abs(np.asarray(offline.reward)[0, :, None] - prior.reward).argmin(1)
    np.testing.assert_array_equal(offline.next_action[0], prior.next_action[row])
    online = agent.sample(KEY, experience, prior)
    assert type(online) is Batch
    assert online.observation.shape == (3, 8, OBSERVATION)
    assert np.isin(np.asarray(online.reward), prior.reward).sum(1).tolist() == [4, 4, 4]
    assert np.isin(np.asarray(online.reward), collected.reward).sum(1).tolist() == [4, 4, 4]


def test_it_explores_with_noise_within_the_bounds():
    agent = make_agent(exploration_noise=0.1)
    observation = np.zeros((2000, OBSERVATION), np.float32)
    noise = np.asarray(agent.explore(observation, KEY) - agent.act(observation))
    assert np.abs(noise.std() - 0.1) < 0.01
    assert np.abs(np.asarray(make_agent(exploration_noise=5.0).explore(observation, KEY))).max() <= 1


def config(env):
    return parse(["--env", env], "rebrac", "", Config, PRESETS).config


@pytest.mark.parametrize(
    ("env", "actor", "critic"),
    [
        ("halfcheetah-random", 0.001, 0.1), ("halfcheetah-medium", 0.001, 0.01), ("halfcheetah-expert", 0.01, 0.01),
        ("halfcheetah-medium-expert", 0.01, 0.1), ("halfcheetah-medium-replay", 0.01, 0.001),
        ("hopper-random", 0.001, 0.01), ("hopper-medium", 0.01, 0.01), ("hopper-expert", 0.1, 0.1),
        ("hopper-medium-expert", 0.1, 0.01), ("hopper-medium-replay", 0.05, 0.5),
        ("walker2d-random", 0.01, 0), ("walker2d-medium", 0.05, 0.1), ("walker2d-expert", 0.01, 0.5),
        ("walker2d-medium-expert", 0.01, 0.01), ("walker2d-medium-replay", 0.05, 0.01),
        ("antmaze-umaze", 0.003, 0.002), ("antmaze-umaze-diverse", 0.003, 0.001), ("antmaze-medium-play", 0.001, 5e-4),
        ("antmaze-medium-diverse", 0.001, 0), ("antmaze-large-play", 0.002, 0.001),
        ("antmaze-large-diverse", 0.002, 0.002),
        ("pen-human", 0.1, 0.5), ("pen-cloned", 0.05, 0.5), ("pen-expert", 0.01, 0.01),
        ("door-human", 0.1, 0.1), ("door-cloned", 0.01, 0.1), ("door-expert", 0.05, 0.01),
        ("hammer-human", 0.01, 0.5), ("hammer-cloned", 0.1, 0.5), ("hammer-expert", 0.01, 0.01),
        ("relocate-human", 0.1, 0.01), ("relocate-cloned", 0.1, 0.01), ("relocate-expert", 0.05, 0.01),
    ],
)  # fmt: skip
def test_presets_are_those_of_the_authors(env, actor, critic):
    """configs/rebrac of DT6A/ReBRAC."""
    found, family = config(env), tasks.find(env).family
    assert (found.actor_penalty, found.critic_penalty) == (actor, critic)
    rates = {"locomotion": (1e-3, 1e-3), "antmaze": (5e-5, 3e-4), "adroit": (3e-4, 3e-4)}[family]
    assert (found.learning_rate, found.actor_learning_rate) == rates
    assert found.batch_size == (1024 if family == "locomotion" else 256)
    assert found.discount == (0.999 if family == "antmaze" else 0.99)
    assert (found.hidden, found.layer_norm, found.offline_steps) == ((256, 256, 256), True, 1_000_000)


def test_antmazes_rewards_are_100_at_the_goal_and_0_elsewhere():
    task, found = tasks.find("antmaze-umaze"), config("antmaze-umaze")
    learnt = [found.reward_scale * (task.reward_scale * r + task.reward_shift) + found.reward_shift for r in (0, 1)]
    assert learnt == [0, 100]


def test_all_presets_are_valid_and_of_a_task():
    names = set(tasks.names())
    for name, preset in PRESETS.items():
        fields = {f.name for f in dataclasses.fields(Config)}
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
        assert "/" not in name or name.split("/")[1] in names
    assert Config(offline_steps=5, online_steps=9).phases == (("offline", 5), ("online", 9))
