"""algorithms/awr.py against an independent NumPy computation, and its semantics."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ROWS, adam_first_step, dense, head, mlp, parameters, random_batch, shaken

from algorithms.awr import AWR, PRESETS, Config, Prior, Rows
from common import tasks
from common.agent import MISSING
from common.commandline import parse
from common.datasets import Dataset

KEY, SIZE = jax.random.key(3), 30
MARWIL = PRESETS["marwil"] | {"hidden": (8, 6), "batch_size": ROWS}
ENDS = np.array([6, 7, 15, 29])


def make_prior() -> Prior:
    """Four episodes, one of a single row; the first two terminate, the others are cut."""
    rows = random_batch(1, SIZE)
    inside = np.setdiff1d(np.arange(SIZE), ENDS)
    following = rows.next_observation.copy()
    following[inside] = rows.observation[inside + 1]
    mask = np.ones(SIZE, np.float32)
    mask[ENDS[:2]] = 0
    return jax.tree.map(jnp.asarray, Prior(**vars(rows.replace(next_observation=following, mask=mask)), ends=ENDS))


def make_agent(**values) -> AWR:
    config = Config(**({"hidden": (8, 6), "batch_size": ROWS, "return_unit": 3.0} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = AWR.create(config, jax.random.key(0), example, make_prior())
    actor, value = shaken(agent.actor, agent.value)
    return agent.replace(actor=actor, value=value, phase="offline")


def minibatch(seed: int, **values) -> Rows:
    rng = np.random.default_rng(seed)
    own = {"target": 4 * rng.normal(size=ROWS), "advantage": 2 * rng.normal(size=ROWS)} | values
    return Rows(**vars(random_batch(seed, ROWS)), **{k: np.asarray(v, np.float32) for k, v in own.items()})


def policy(agent, observation):
    """Mean and standard deviation, [n, a] each."""
    own = parameters(agent.actor)
    features = mlp(np.asarray(observation, np.float64), own["MLP_0"])
    mean = dense(features, own["Dense_0"])
    if agent.config.learned_std:
        return mean, np.exp(np.clip(dense(features, own["Dense_1"]), -20, 20))
    return mean, np.full_like(mean, agent.config.std)


def log_prob(agent, batch):
    mean, std = policy(agent, batch.observation)
    return (-0.5 * ((batch.action - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)


def v(agent, observation):
    return head(parameters(agent.value), observation)[..., 0]


def seen(agent, observation):
    return (np.asarray(observation, np.float64) - agent.normal.mean) / agent.normal.std


def numpy_returns(agent, prior, gamma, td_lambda):
    """Row by row, backwards."""
    rows = jax.tree.map(lambda x: np.asarray(x, np.float64), prior)
    ahead = 3.0 * v(agent, seen(agent, rows.next_observation))
    out = np.zeros(SIZE)
    for t in reversed(range(SIZE)):
        if t in ENDS:
            out[t] = rows.reward[t] + gamma * rows.mask[t] * ahead[t]
        else:
            out[t] = rows.reward[t] + gamma * ((1 - td_lambda) * ahead[t] + td_lambda * out[t + 1])
    return out, 3.0 * v(agent, seen(agent, rows.observation))


@pytest.mark.parametrize("td_lambda", [0.0, 0.7, 1.0])
def test_returns_and_advantages_equal_numpy(td_lambda):
    agent, prior = make_agent(td_lambda=td_lambda, discount=0.9), make_prior()
    target, value = numpy_returns(agent, prior, 0.9, td_lambda)
    after = jax.jit(AWR.evaluate)(agent, prior)
    np.testing.assert_allclose(after.target, target, rtol=1e-4, atol=1e-5)
    advantage = target - value
    expected = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
    np.testing.assert_allclose(after.advantage, expected, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_equal((after.actor, after.value), (agent.actor, agent.value))


def test_only_terminations_stop_and_nothing_crosses_an_episodes_end():
    agent, prior = make_agent(td_lambda=0.5), make_prior()
    returns = jax.jit(lambda prior: agent.returns(prior)[0])
    plain = np.asarray(returns(prior))
    for end, first, moves in ((6, 0, False), (7, 7, False), (15, 8, True), (29, 16, True)):
        elsewhere = prior.replace(next_observation=prior.next_observation.at[end].add(1.0))
        changed = np.flatnonzero(np.asarray(returns(elsewhere)) != plain)
        assert (end in changed) == moves
        assert ((changed >= first) & (changed <= end)).all()
    later = prior.replace(reward=prior.reward.at[16].add(1.0))
    assert np.flatnonzero(np.asarray(returns(later)) != plain).tolist() == [16]


def test_prepare_finds_where_episodes_end():
    rows, end = random_batch(1, 40), np.arange(40) % 10 == 9
    data = Dataset(
        rows.observation, rows.action, rows.reward, end & (np.arange(40) < 20), end & (np.arange(40) >= 20),
        rows.next_observation, np.zeros(40, bool), "npz:test",
    )  # fmt: skip
    prior = AWR.prepare(Config(), data, tasks.find("hopper-medium"))
    np.testing.assert_array_equal(prior.ends, [9, 19, 29, 39])
    np.testing.assert_array_equal(prior.mask[prior.ends], [0, 0, 1, 1])


def test_value_loss_equals_numpy():
    agent, batch = make_agent(), minibatch(2)
    expected = 0.5 * ((batch.target / 3 - v(agent, batch.observation)) ** 2).mean()
    loss, metrics = agent.value_loss(agent.value.params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["value"], 3 * v(agent, batch.observation).mean(), rtol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_actor_loss_equals_numpy(learned):
    values = {"learned_std": True, "log_std_bonus": 0.7} if learned else {"std": 0.3}
    agent = make_agent(inverse_temperature=0.8, largest_weight=2.0, bound_penalty=10.0, **values)
    agent = agent.replace(actor=agent.actor.replace(params=jax.tree.map(lambda x: 3 * x, agent.actor.params)))
    batch = minibatch(4)
    mean, std = policy(agent, batch.observation)
    weight = np.minimum(np.exp(0.8 * np.asarray(batch.advantage, np.float64)), 2.0)
    assert (weight == 2).any()
    assert (np.abs(mean) > 1).any()
    violation = (np.minimum(mean + 1, 0) ** 2 + np.maximum(mean - 1, 0) ** 2).sum(-1)
    bonus = 0.7 * np.log(std).mean(-1) if learned else 0
    expected = -(weight * (log_prob(agent, batch) + bonus)).mean() + 10 * 0.5 * violation.mean()
    loss, metrics = agent.actor_loss(agent.actor.params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], weight.mean(), rtol=1e-5)


def test_the_penalty_pulls_means_back_to_the_actions_and_lets_them_be_inside():
    agent = make_agent(bound_penalty=1e4, inverse_temperature=0.0)
    batch = minibatch(4)

    def slope(at, penalty):
        params = jax.tree.map(lambda x: 0 * x, agent.actor.params)
        params["params"]["Dense_0"]["bias"] = jnp.array([at, 0.0, 0.0])
        other = agent.replace(config=agent.config.replace(bound_penalty=penalty))
        return float(jax.grad(lambda p: other.actor_loss(p, batch)[0])(params)["params"]["Dense_0"]["bias"][0])

    for at in (-1.5, 1.5):
        np.testing.assert_allclose(slope(at, 1e4) - slope(at, 0.0), 1e4 * (at - np.sign(at)), rtol=1e-3)
    assert slope(0.9, 1e4) == slope(0.9, 0.0)


def test_the_bonus_widens_the_policy():
    def slope(bonus):
        agent = make_agent(learned_std=True, log_std_bonus=bonus)
        return jax.grad(lambda p: agent.actor_loss(p, minibatch(4))[0])(agent.actor.params)["params"]["Dense_1"]["bias"]

    assert (slope(1.0) < slope(0.0)).all()  # descending it, the logarithm of the deviation grows
    with_it, refused = Config(log_std_bonus=0.1), "--log-std-bonus needs"
    assert with_it.problem().startswith(refused)
    assert dataclasses.replace(with_it, learned_std=True).problem() is None


def test_an_iteration_is_steps_of_the_value_then_of_the_actor():
    agent, batch = make_agent(value_steps=2, actor_steps=3), minibatch(6)
    update = jax.jit(AWR.update_once)
    moved = []
    for number in range(1, 11):
        after, metrics = update(agent, batch, KEY, jnp.int32(number))
        value = not np.array_equal(
            after.value.params["params"]["Dense_0"]["bias"], agent.value.params["params"]["Dense_0"]["bias"]
        )
        actor = not np.array_equal(
            after.actor.params["params"]["Dense_0"]["bias"], agent.actor.params["params"]["Dense_0"]["bias"]
        )
        assert value != actor
        assert (metrics["value_loss"] != MISSING) == value
        assert (metrics["actor_loss"] != MISSING) == actor
        moved.append("V" if value else "A")
    assert "".join(moved) == "VVAAAVVAAA"


def test_all_data_are_evaluated_before_each_part():
    agent, prior = make_agent(value_steps=2, actor_steps=3), make_prior()
    renew = jax.jit(AWR.renew)
    renewed = [bool((renew(agent, jnp.int32(step), prior).target != 0).any()) for step in range(1, 11)]
    assert renewed == [True, False, True, False, False] * 2


def test_updates_offline_see_what_was_evaluated():
    """Against the methods called one by one."""
    agent, prior = make_agent(value_steps=1, actor_steps=2, learning_rate=0.1), make_prior()
    keys, steps = jax.random.split(jax.random.key(4), 4), 1 + jnp.arange(4)
    together, _ = jax.jit(AWR.update_offline, static_argnums=4)(agent, keys, steps, prior, False)
    alone = agent
    for key, step in zip(keys, steps, strict=True):
        sample_key, _ = jax.random.split(key)
        if int(step) in (1, 2, 4):
            alone = alone.evaluate(prior)
        rows = jax.tree.map(lambda x: x[0], alone.sample(sample_key, None, prior))
        alone = (alone.update_value if int(step) in (1, 4) else alone.update_actor)(rows)[0]
    chex.assert_trees_all_close(together, alone, rtol=1e-4, atol=1e-5)


def test_minibatches_carry_what_was_evaluated_of_their_rows():
    agent, prior = make_agent(batch_size=200), make_prior()
    agent = agent.evaluate(prior)
    drawn = agent.sample(KEY, None, prior)
    rows = np.abs(np.asarray(drawn.observation)[0][:, None] - seen(agent, prior.observation)).max(-1).argmin(1)
    assert set(rows.tolist()) == set(range(SIZE))
    for name, known in (("target", agent.target), ("advantage", agent.advantage), ("action", prior.action)):
        np.testing.assert_array_equal(getattr(drawn, name)[0], np.asarray(known)[rows])


def test_both_networks_learn_by_momentum():
    agent, batch = make_agent(learning_rate=0.3, actor_learning_rate=0.02, value_steps=2, actor_steps=2), minibatch(6)
    update = jax.jit(AWR.update_once)
    for name, loss, rate, number in (("value", "value_loss", 0.3, 1), ("actor", "actor_loss", 0.02, 3)):
        first = update(agent, batch, KEY, jnp.int32(number))[0]
        second = getattr(update(first, batch, KEY, jnp.int32(number + 1))[0], name).params
        slope = jax.grad(lambda p: getattr(agent, loss)(p, batch)[0])  # noqa: B023
        start = getattr(agent, name).params
        one = slope(start)
        middle = jax.tree.map(lambda x, g: x - rate * g, start, one)  # noqa: B023
        expected = jax.tree.map(lambda x, a, b: x - rate * (0.9 * a + b), middle, one, slope(middle))  # noqa: B023
        chex.assert_trees_all_close(second, expected, rtol=1e-4, atol=1e-6)


def test_marwils_step_equals_numpy():
    """The estimate moves first, and neither it nor the weight has a gradient."""
    agent = make_agent(**MARWIL, return_unit=3.0, moving_rate=0.25, moving_start=2.0, inverse_temperature=0.8)
    batch = minibatch(6)
    advantage = np.asarray(batch.target, np.float64) / 3 - v(agent, batch.observation)
    square = 2.0 + 0.25 * ((advantage**2).mean() - 2.0)
    weight = np.exp(0.8 * advantage / np.sqrt(square))
    after, metrics = jax.jit(AWR.update_once)(agent, batch, KEY, jnp.int32(1))
    np.testing.assert_allclose(after.square, square, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor_loss"], -(weight * log_prob(agent, batch)).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["value_loss"], 0.5 * (advantage**2).mean(), rtol=1e-5)

    def loss(params):
        log_prob = agent.actor(batch.observation, 1.0, params=params).log_prob(batch.action)
        return -(weight.astype(np.float32) * log_prob).mean()

    expected = adam_first_step(agent.actor.params, jax.grad(loss)(agent.actor.params), 1e-4)
    chex.assert_trees_all_close(after.actor.params, expected, rtol=2e-3, atol=1e-6)
    slope = jax.grad(lambda p: agent.value_loss(p, batch)[0])(agent.value.params)
    chex.assert_trees_all_close(
        after.value.params, adam_first_step(agent.value.params, slope, 1e-4), rtol=2e-3, atol=1e-6
    )


@pytest.mark.parametrize("values", [{}, MARWIL])
def test_without_inverse_temperature_it_is_cloning(values):
    """Whatever the advantages: the policy is that of the plain likelihood."""
    agent = make_agent(**(values | {"inverse_temperature": 0.0, "bound_penalty": 0.0, "value_steps": 1}))
    batch, update = minibatch(6), jax.jit(AWR.update_once)
    params = [
        update(agent, x, KEY, jnp.int32(2))[0].actor.params for x in (batch, minibatch(6, target=batch.target + 9))
    ]
    chex.assert_trees_all_equal(*params)
    rate = agent.config.actor_learning_rate

    def loss(params):
        return -agent.actor(batch.observation, agent.config.std, params=params).log_prob(batch.action).mean()

    cloned, _ = agent.actor.minimise(lambda p: (loss(p), {}), learning_rate=rate)
    chex.assert_trees_all_close(params[0], cloned.params, rtol=1e-5, atol=1e-7)
    warm = agent.replace(config=agent.config.replace(inverse_temperature=1.0))
    other = update(warm, batch, KEY, jnp.int32(2))[0].actor.params
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (other, params[0])), strict=True))


def test_it_acts_on_normalised_observations_within_the_actions():
    agent = make_agent(normalise=True)
    agent = agent.replace(actor=agent.actor.replace(params=jax.tree.map(lambda x: 3 * x, agent.actor.params)))
    raw = np.asarray(make_prior().observation)
    mean = policy(agent, (raw - raw.mean(0)) / (raw.std(0) + 1e-3))[0]
    assert np.abs(mean).max() > 1
    np.testing.assert_allclose(agent.act(raw), mean.clip(-1, 1), rtol=1e-3, atol=1e-4)


def test_presets_are_those_of_the_sources():
    def config(env, *arguments):
        return parse(["--env", env, *arguments], "awr", "", Config, PRESETS).config

    c = config("hopper-medium")
    assert c == dataclasses.replace(Config(), actor_learning_rate=1e-4)
    assert (c.learning_rate, c.td_lambda, c.inverse_temperature, c.largest_weight, c.std) == (
        1e-2,
        0.95,
        1.0,
        20.0,
        0.4,
    )
    assert (c.hidden, c.batch_size, c.value_steps, c.actor_steps, c.bound_penalty) == ((128, 64), 256, 200, 1000, 10.0)
    assert [config(f"{x}-expert").actor_learning_rate for x in ("halfcheetah", "walker2d")] == [5e-5, 2.5e-5]
    assert (config("pen-human").std, config("pen-human").actor_learning_rate) == (0.2, 5e-5)
    m = config("hopper-medium", "--preset", "marwil")
    assert (m.learning_rate, m.actor_learning_rate, m.batch_size, m.td_lambda) == (1e-4, 1e-4, 2000, 1.0)
    assert (m.inverse_temperature, m.log_std_bonus, m.moving_start, m.hidden) == (1.0, 0.0, 100.0, (256, 256))
    assert (m.adam, m.learned_std, m.weighting, m.bound_penalty) == (True, True, "moving", 0.0)
    for preset in PRESETS.values():
        fields = {f.name for f in dataclasses.fields(Config)}
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
