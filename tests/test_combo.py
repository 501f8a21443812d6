"""algorithms/combo.py against an independent NumPy computation, and its semantics; its model: test_dynamics.py."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    ACTION,
    OBSERVATION,
    adam_first_step,
    assert_only_terminations_stop,
    q_values,
    random_batch,
    shaken,
    tanh_normal,
)

from algorithms.combo import COMBO, PRESETS, Config
from common import tasks
from common.commandline import parse
from common.dynamics import ModelData

KEY, SIZE, REAL, COUNT = jax.random.key(3), 60, 3, 4
ROWS = 8
SMALL = {
    "hidden": (8, 6), "batch_size": ROWS, "model_hidden": (8,), "model_weight_decay": (1e-5, 1e-4), "members": 3,
    "elites": 2, "model_batch_size": 6, "rollout_batch": 9, "rollout_length": 2, "retained": 2, "real_ratio": 0.4,
    "actions": COUNT,
}  # fmt: skip


def make_prior() -> ModelData:
    return jax.tree.map(jnp.asarray, ModelData(**vars(random_batch(1, SIZE)), termination=tasks.never))


def make_agent(phase="offline", **values) -> COMBO:
    config, prior = Config(**(SMALL | values)), make_prior()
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = COMBO.create(config, jax.random.key(0), example, prior).enter(phase, jax.random.key(1), prior)
    parts = "actor", "critic", "target_critic", "temperature"
    own = dict(zip(parts, shaken(*(getattr(agent, part) for part in parts)), strict=True))
    return agent.replace(**own)


def alpha(agent):
    return np.exp(float(agent.temperature.params["params"]["log"]))


def numpy_difference(agent, batch, key, first):
    """C of both critics, action by action; the states of rho are those from row `first` on."""
    rows = jax.tree.map(lambda x: np.asarray(x)[first:], batch)
    uniform_key, present_key, next_key = jax.random.split(key, 3)
    shape = COUNT, *rows.action.shape
    found = []
    for k in range(COUNT):
        uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)[k]
        found.append((np.asarray(uniform), np.full(len(rows.reward), np.log(0.5**ACTION))))
        for source, own_key in ((rows.observation, present_key), (rows.next_observation, next_key)):
            noise = jax.random.normal(own_key, shape)[k]
            found.append(tanh_normal(agent.actor, source, noise, least_log_std=-5.0))
    terms = [q_values(agent.critic, (0, 1), rows.observation, action) - density for action, density in found]
    assert len(terms) == 3 * COUNT
    down = np.log(np.exp(np.stack(terms)).sum(0)).mean(-1)
    data = jax.tree.map(lambda x: np.asarray(x)[:REAL], batch)
    return down - q_values(agent.critic, (0, 1), data.observation, data.action).mean(-1)


@pytest.mark.parametrize(("rho", "first"), [("mix", 0), ("model", REAL)])
@pytest.mark.parametrize("backup", [False, True])
def test_the_critics_loss_equals_numpy(rho, first, backup):
    agent, batch = make_agent(rho=rho, backup_entropy=backup, weight=2.0), random_batch(2, ROWS)
    target_key, action_key = jax.random.split(KEY)
    noise = jax.random.normal(target_key, batch.action.shape)
    action, log_prob = tanh_normal(agent.actor, batch.next_observation, noise, least_log_std=-5.0)
    following = q_values(agent.target_critic, (0, 1), batch.next_observation, action).min(0)
    target = batch.reward + 0.99 * batch.mask * (following - backup * alpha(agent) * log_prob)
    q = q_values(agent.critic, (0, 1), batch.observation, batch.action)
    difference = numpy_difference(agent, batch, action_key, first)
    loss, metrics = agent.critic_loss(agent.critic.params, batch, KEY)
    np.testing.assert_allclose(metrics["difference"], difference.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss"], ((q - target) ** 2).mean(1).sum(), rtol=1e-4)
    np.testing.assert_allclose(loss, ((q - target) ** 2).mean(1).sum() + 2 * difference.sum(), rtol=1e-4)


def test_losses_of_actor_and_temperature_equal_numpy():
    agent, batch = make_agent(), random_batch(2, ROWS)
    noise = jax.random.normal(KEY, batch.action.shape)
    action, log_prob = tanh_normal(agent.actor, batch.observation, noise, least_log_std=-5.0)
    q = q_values(agent.critic, (0, 1), batch.observation, action).min(0)
    loss, metrics = agent.actor_loss(agent.actor.params, batch, KEY)
    np.testing.assert_allclose(loss, (alpha(agent) * log_prob - q).mean(), rtol=1e-4)
    loss, _ = agent.temperature_loss(agent.temperature.params, metrics["entropy"], ACTION)
    np.testing.assert_allclose(loss, np.log(alpha(agent)) * (-log_prob.mean() + ACTION), rtol=1e-4)


def test_only_terminations_stop():
    assert_only_terminations_stop(make_agent())


@pytest.mark.parametrize("rho", ["mix", "model"])
def test_values_are_pushed_down_where_they_must_be_and_up_on_the_data(rho):
    """A stop_gradient on the log-sum-exp would leave the values of other actions where they are."""
    agent, batch = make_agent(rho=rho), random_batch(2, ROWS)

    class Shifted:
        """Critics whose values are moved by a number for each evaluation: the derivatives are the pushes."""

        def __init__(self, others):
            self.others = others

        def __call__(self, observation, action, params=None):
            return agent.critic(observation, action, params=params) + self.others

    def conservative(others, own):
        q = agent.critic(batch.observation, batch.action) + own
        moved = agent.replace(critic=Shifted(others))
        return moved.difference(agent.critic.params, batch, q, KEY).sum()

    states = ROWS if rho == "mix" else ROWS - REAL
    others, own = jax.grad(conservative, argnums=(0, 1))(jnp.zeros((2, 3 * COUNT, states)), jnp.zeros((2, ROWS)))
    assert (np.asarray(others) > 0).all()
    np.testing.assert_allclose(np.asarray(others).sum(1), 1 / states, rtol=1e-5)
    expected = np.where(np.arange(ROWS) < REAL, -1 / REAL, 0.0)
    np.testing.assert_allclose(own, [expected, expected], rtol=1e-6)


def test_steps_are_taken_in_order():
    agent, batch = make_agent(offline_steps=100, learning_rate=1e-2), random_batch(2, ROWS)
    actor_key, critic_key = jax.random.split(KEY)
    after, _ = jax.jit(COMBO.update_once)(agent, batch, KEY, jnp.int32(51))
    slope = jax.grad(lambda p: agent.actor_loss(p, batch, actor_key)[0])(agent.actor.params)
    expected = adam_first_step(agent.actor.params, slope, 0.5e-4)
    chex.assert_trees_all_close(after.actor.params, expected, rtol=2e-3, atol=1e-7)
    by_the_new = agent.replace(actor=after.actor, temperature=after.temperature)
    slope = jax.grad(lambda p: by_the_new.critic_loss(p, batch, critic_key)[0])(agent.critic.params)
    expected = adam_first_step(agent.critic.params, slope, 1e-2)
    chex.assert_trees_all_close(after.critic.params, expected, rtol=2e-3, atol=2e-5)
    target = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, agent.target_critic.params, after.critic.params)
    chex.assert_trees_all_close(after.target_critic.params, target, rtol=1e-5)


def test_each_phase_moves_its_own():
    prior = make_prior()
    agent = make_agent("model")
    after, metrics = jax.jit(COMBO.update)(agent, agent.sample(KEY, None, prior), KEY, jnp.int32(1))
    assert set(metrics) == {"model_loss", "held_out_error", "stopped"}
    same = ("actor", "critic", "target_critic", "temperature")
    chex.assert_trees_all_equal(*([getattr(x, part) for part in same] for x in (agent, after)))
    agent = make_agent().renew(jnp.int32(1), prior)
    drawn = agent.sample(KEY, None, prior)
    known = {row.tobytes() for row in np.asarray(prior.next_observation)}
    from_data = [row.tobytes() in known for row in np.asarray(drawn.next_observation[0])]
    assert from_data == [True] * REAL + [False] * (ROWS - REAL)
    after, _ = jax.jit(COMBO.update)(agent, drawn, KEY, jnp.int32(1))
    chex.assert_trees_all_equal(after.dynamics, agent.dynamics)


def test_rollouts_may_have_uniform_actions_and_rewards_are_the_models():
    observation = jnp.asarray(np.random.default_rng(0).normal(size=(2000, OBSERVATION)), jnp.float32)
    agent = make_agent()
    np.testing.assert_array_equal(agent.imagined_action(observation, KEY), agent.explore(observation, KEY))
    action = np.asarray(make_agent(uniform_rollouts=True).imagined_action(observation, KEY))
    np.testing.assert_allclose(np.quantile(action, (0.1, 0.5, 0.9)), (-0.8, 0.0, 0.8), atol=0.05)
    prediction = agent.dynamics.step(observation, jnp.asarray(action), KEY)
    np.testing.assert_array_equal(agent.imagined_reward(prediction), prediction.reward)


def test_presets_are_offlinerl_kits():
    found = {}
    bodies, qualities = ("halfcheetah", "hopper", "walker2d"), ("medium", "medium-replay", "medium-expert")
    for name in (f"{body}-{quality}" for body in bodies for quality in qualities):
        c = parse(["--env", name], "combo", "", Config, PRESETS).config
        found[name] = c.rollout_length, c.weight
    assert found == {
        "halfcheetah-medium": (5, 0.5), "hopper-medium": (5, 5.0), "walker2d-medium": (1, 5.0),
        "halfcheetah-medium-replay": (5, 0.5), "hopper-medium-replay": (5, 0.5), "walker2d-medium-replay": (1, 0.5),
        "halfcheetah-medium-expert": (5, 5.0), "hopper-medium-expert": (5, 5.0), "walker2d-medium-expert": (1, 5.0),
    }  # fmt: skip
    assert (c.hidden, c.real_rows, c.actions, c.rho, c.phases[1]) == (
        (256,) * 3, 128, 10, "mix", ("offline", 1_000_000),
    )  # fmt: skip
    fields = {f.name for f in dataclasses.fields(Config)}
    for preset in PRESETS.values():
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
    assert "leaves no data in minibatches of 256" in Config(real_ratio=0.003).problem()
    assert "--elites 8" in Config(elites=8).problem()
