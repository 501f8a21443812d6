"""algorithms/cql.py against an independent NumPy computation, and its semantics."""

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
    q_values,
    random_batch,
    shaken,
    tanh_normal,
)
from scipy.special import logsumexp, softmax

from algorithms.cql import CQL, PRESETS, Config, Rows
from common import tasks
from common.commandline import parse
from common.datasets import Dataset
from common.replay import Batch, Episode, Replay

KEY = jax.random.key(3)
N = 4
EXAMPLE = jax.tree.map(lambda x: x[0], random_batch(0, 1))


def make_agent(**values) -> CQL:
    config = Config(**({"hidden": (8, 6), "actor_hidden": (7, 6), "batch_size": ROWS, "actions": N} | values))
    agent = CQL.create(config, jax.random.key(0), EXAMPLE, random_batch(1, 20))
    names = ["actor", "critic", "target_critic", "temperature"] + ["multiplier"] * config.lagrange
    return agent.replace(**dict(zip(names, shaken(*(getattr(agent, n) for n in names)), strict=True)))


def rows(seed: int) -> Rows:
    batch = random_batch(seed, ROWS)
    return Rows(**vars(batch), return_to_go=np.random.default_rng(seed).normal(size=ROWS).astype(np.float32))


def number(network) -> float:
    return float(np.exp(network.params["params"]["log"]))


def drawn(agent, observation, key, count):
    """Actions [count, batch, a] and log densities [count, batch]."""
    observation = np.broadcast_to(observation, (count, *observation.shape))
    noise = jax.random.normal(key, (*observation.shape[:-1], ACTION))
    return tanh_normal(agent.actor, observation, noise)


def candidates(agent, batch, key):
    """What the log-sum-exp is over: actions [3 N, batch, a] and log densities [3 N, batch]."""
    uniform_key, present_key, next_key = jax.random.split(key, 3)
    uniform = np.asarray(jax.random.uniform(uniform_key, (N, ROWS, ACTION), minval=-1, maxval=1), np.float64)
    sources = [(uniform, np.full((N, ROWS), np.log(0.5**ACTION)))]
    sources += [drawn(agent, batch.observation, present_key, N), drawn(agent, batch.next_observation, next_key, N)]
    return tuple(np.concatenate(parts) for parts in zip(*sources, strict=True))


def values_at(critic, observation, actions):
    return q_values(critic, range(2), np.broadcast_to(observation, (*actions.shape[:-1], 5)), actions)


def numpy_difference(agent, batch, key, least=-np.inf):
    actions, log_density = candidates(agent, batch, key)
    values = values_at(agent.critic, batch.observation, actions)
    if agent.config.calibrated:
        values[:, N:] = np.maximum(values[:, N:], batch.return_to_go)
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    return np.maximum(logsumexp(values - log_density, axis=1) - q, least)


def numpy_target(agent, batch, key):
    actions, _ = drawn(agent, batch.next_observation, key, N if agent.config.max_target else 1)
    q = values_at(agent.target_critic, batch.next_observation, actions)
    return batch.reward + 0.99 * batch.mask * q.min(0).max(0)


@pytest.mark.parametrize(
    "values",
    [{}, {"max_target": True}, {"lagrange": True, "least_difference": 4.0}, {"calibrated": True, "lagrange": True}],
)
def test_critic_loss_equals_numpy(values):
    agent, batch = make_agent(weight=0.7, **values), rows(2)
    target_key, action_key = jax.random.split(KEY)
    each = numpy_difference(agent, batch, action_key, values.get("least_difference", -np.inf))
    if "least_difference" in values:
        assert 0 < (each == 4.0).mean() < 1
    difference = each.mean(-1)
    q = q_values(agent.critic, range(2), batch.observation, batch.action)
    td = ((q - numpy_target(agent, batch, target_key)) ** 2).mean(-1).sum()
    weight = 0.7 * number(agent.multiplier) if "lagrange" in values else 0.7
    loss, metrics = agent.critic_loss(agent.critic.params, batch, KEY)
    np.testing.assert_allclose(loss, td + weight * difference.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_loss"], td, rtol=1e-4)
    np.testing.assert_allclose(metrics["difference"], difference.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-4, atol=1e-6)
    if "calibrated" in values:
        own = values_at(agent.critic, batch.observation, candidates(agent, batch, action_key)[0])[:, N:]
        np.testing.assert_allclose(metrics["bounded"], (own < batch.return_to_go).mean(), rtol=1e-5)
        assert 0 < metrics["bounded"] < 1


class Table:
    """In the critics' place: their "parameters" are their values; it keeps what it was asked."""

    def __call__(self, observation, action, params):
        self.observation, self.action = observation, action
        return params


def slopes(agent, batch, values, q):
    """Of the conservative terms' sum, by the values of all candidates [2, 3 N, batch] and of the data [2, batch]."""
    table = Table()
    agent = agent.replace(critic=table)
    of_values, of_q = jax.grad(lambda v, q: agent.difference(v, batch, q, KEY)[0].sum(), (0, 1))(values, q)
    return np.asarray(of_values), np.asarray(of_q), table


def test_the_values_of_actions_outside_the_data_are_pushed_down():
    """A port stops this gradient; one takes the log-sum-exp across critics, one over one action per source, and one
    over 3 values instead of 3 N."""
    agent, batch = make_agent(), rows(4)
    rng = np.random.default_rng(0)
    values, q = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3 * N, ROWS), (2, ROWS)))
    of_values, of_q, table = slopes(agent, batch, values, q)
    actions, log_density = candidates(agent, batch, KEY)
    assert of_values.shape == (2, 3 * N, ROWS)
    assert (of_values > 0).all()
    np.testing.assert_allclose(of_values.sum(axis=1), 1 / ROWS, rtol=1e-5)
    np.testing.assert_allclose(of_values, softmax(values - log_density, axis=1) / ROWS, rtol=1e-3)
    np.testing.assert_allclose(of_q, -1 / ROWS, rtol=1e-5)
    # All at s, those drawn for s' included.
    np.testing.assert_array_equal(table.observation, np.broadcast_to(batch.observation, (3 * N, ROWS, 5)))
    np.testing.assert_allclose(table.action, actions, rtol=1e-3, atol=1e-5)
    # The critics' own steps follow it: without the error of the values, C falls.
    steep = make_agent(weight=100.0)
    gradient = jax.grad(lambda p: steep.critic_loss(p, batch, KEY)[0])(steep.critic.params)
    after = steep.critic.replace(params=jax.tree.map(lambda x, g: x - 1e-5 * g, steep.critic.params, gradient))
    before, later = (
        float(steep.critic_loss(critic.params, batch, KEY)[1]["difference"]) for critic in (steep.critic, after)
    )
    assert later < before


def test_densities_are_those_the_actions_were_drawn_with():
    agent, batch = make_agent(), rows(5)
    actions, log_density = agent.candidates(batch, KEY)
    expected = candidates(agent, batch, KEY)
    np.testing.assert_allclose(actions, expected[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(log_density, expected[1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(log_density[:N], -ACTION * np.log(2), rtol=1e-6)
    assert np.ptp(log_density[N:]) > 1
    elsewhere = agent.candidates(batch.replace(next_observation=batch.next_observation + 1), KEY)[0]
    np.testing.assert_array_equal(elsewhere[: 2 * N], actions[: 2 * N])
    assert (elsewhere[2 * N :] != actions[2 * N :]).all()


def test_no_gradient_passes_where_the_bound_wins():
    agent, batch = make_agent(calibrated=True), rows(4)
    rng = np.random.default_rng(0)
    values, q = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3 * N, ROWS), (2, ROWS)))
    of_values, of_q, _ = slopes(agent, batch, values, q)
    bounded = (values < batch.return_to_go) & (np.arange(3 * N) >= N)[:, None]  # not the uniform ones
    assert 0.2 < bounded.mean() < 0.6
    np.testing.assert_array_equal(of_values == 0, bounded)
    assert (of_values[~bounded] > 0).all()
    # The bound is of the value: the density is subtracted afterwards.
    logits = np.where(bounded, batch.return_to_go, values) - candidates(agent, batch, KEY)[1]
    np.testing.assert_allclose(of_values, np.where(bounded, 0, softmax(logits, axis=1) / ROWS), rtol=1e-3, atol=1e-7)
    # The values of the data's actions have no bound.
    np.testing.assert_allclose(of_q, -1 / ROWS, rtol=1e-5)
    # Without --calibrated there is none.
    assert (slopes(make_agent(), batch, values, q)[0] > 0).all()


def test_no_gradient_passes_where_the_term_is_cut_off():
    agent, batch = make_agent(least_difference=2.0), rows(4)
    values = np.zeros((2, 3 * N, ROWS), np.float32)
    logs = logsumexp(-candidates(agent, batch, KEY)[1], axis=0)
    above = np.arange(ROWS) % 2 == 0
    q = np.stack([np.where(above, logs - 2.5, logs - 1.5)] * 2).astype(np.float32)
    of_values, of_q, _ = slopes(agent, batch, values, q)
    np.testing.assert_array_equal(of_values > 0, np.broadcast_to(above, of_values.shape))
    np.testing.assert_array_equal(of_q < 0, np.broadcast_to(above, of_q.shape))


def test_the_target_is_of_the_next_state_and_has_no_entropy():
    for values in ({}, {"max_target": True}):
        agent, batch = make_agent(**values), rows(5)
        np.testing.assert_allclose(agent.target(batch, KEY), numpy_target(agent, batch, KEY), rtol=1e-4, atol=1e-5)
        elsewhere = batch.replace(observation=batch.observation + 1)
        np.testing.assert_array_equal(agent.target(batch, KEY), agent.target(elsewhere, KEY))
        hotter = agent.replace(temperature=agent.temperature.replace(params={"params": {"log": jnp.float32(3)}}))
        np.testing.assert_array_equal(agent.target(batch, KEY), hotter.target(batch, KEY))


def test_the_minimum_over_critics_is_taken_before_the_maximum_over_actions():
    """As in JaxCQL and Cal-QL; the other order gives 3 here, and one action alone 1."""
    values = jnp.broadcast_to(jnp.array([[1.0, 4.0, 2.0, 0.0], [3.0, 1.0, 2.0, 3.0]])[..., None], (2, N, ROWS))
    agent, batch = make_agent(max_target=True).replace(target_critic=lambda *_: values), rows(5)
    np.testing.assert_allclose(agent.target(batch, KEY), batch.reward + 0.99 * batch.mask * 2, rtol=1e-5)


@pytest.mark.parametrize("max_target", [True, False])
def test_a_time_limit_bootstraps_and_a_termination_does_not(max_target):
    assert_only_terminations_stop(make_agent(max_target=max_target))


def test_actor_loss_equals_numpy():
    agent, batch = make_agent(), rows(6)
    action, log_prob = tanh_normal(agent.actor, batch.observation, jax.random.normal(KEY, (ROWS, ACTION)))
    q = q_values(agent.critic, range(2), batch.observation, action).min(0)
    loss, metrics = agent.actor_loss(agent.actor.params, batch, KEY)
    np.testing.assert_allclose(loss, (number(agent.temperature) * log_prob - q).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], -log_prob.mean(), rtol=1e-4)


def test_cloning_is_of_the_datas_actions():
    """A port's likelihood ignores them and is that of a fresh sample."""
    agent, batch = make_agent().enter("cloning", KEY, None), rows(6)
    _, log_prob = tanh_normal(agent.actor, batch.observation, jax.random.normal(KEY, (ROWS, ACTION)))
    _, likelihood = tanh_normal(agent.actor, batch.observation, action=batch.action)
    loss, _ = agent.actor_loss(agent.actor.params, batch, KEY)
    np.testing.assert_allclose(loss, (number(agent.temperature) * log_prob - likelihood).mean(), rtol=1e-4)
    limit = np.full((ROWS, ACTION), 1 - 1e-5, np.float32)
    for action in (limit, -limit):
        assert np.isfinite(agent.actor_loss(agent.actor.params, batch.replace(action=action), KEY)[0])
    # The critics learn as ever meanwhile.
    update = jax.jit(CQL.update_once)
    cloning, _ = update(agent, batch, KEY, jnp.int32(1))
    offline, _ = update(agent.enter("offline", KEY, None), batch, KEY, jnp.int32(1))
    chex.assert_trees_all_close(cloning.critic.params, offline.critic.params, rtol=1e-5)
    assert not np.allclose(cloning.actor.params["params"]["Dense_0"]["bias"],
                           offline.actor.params["params"]["Dense_0"]["bias"], rtol=1e-5)  # fmt: skip


def test_temperature_and_multiplier_move_towards_their_aims():
    agent = make_agent(lagrange=True, gap=2.0, weight=3.0)

    def slope(loss, network, *inputs):
        return float(jax.grad(lambda p: loss(p, *inputs)[0])(network.params)["params"]["log"])

    # The target entropy is -ACTION.
    assert slope(agent.temperature_loss, agent.temperature, -ACTION + 0.5, ACTION) == pytest.approx(0.5)
    assert slope(agent.temperature_loss, agent.temperature, -ACTION - 0.5, ACTION) == pytest.approx(-0.5)
    multiplier = number(agent.multiplier)
    assert slope(agent.multiplier_loss, agent.multiplier, 2.5) == pytest.approx(-3 * multiplier * 0.5, rel=1e-4)
    assert slope(agent.multiplier_loss, agent.multiplier, 1.5) == pytest.approx(3 * multiplier * 0.5, rel=1e-4)
    fresh = CQL.create(agent.config, KEY, EXAMPLE, random_batch(1, 20))
    assert (number(fresh.temperature), number(fresh.multiplier)) == pytest.approx((1, np.e))


def test_every_network_learns_from_the_same_parameters():
    agent, batch = make_agent(lagrange=True, learning_rate=1e-2, actor_learning_rate=2e-2, target_rate=0.25), rows(6)
    after, metrics = jax.jit(CQL.update_once)(agent, batch, KEY, jnp.int32(1))
    actor_key, critic_key = jax.random.split(KEY)
    inputs = {
        "actor": (agent.actor_loss, (batch, actor_key), 2e-2),
        "temperature": (agent.temperature_loss, (metrics["entropy"], ACTION), 2e-2),
        "critic": (agent.critic_loss, (batch, critic_key), 1e-2),
        "multiplier": (agent.multiplier_loss, (metrics["difference"],), 1e-2),
    }
    for name, (loss, others, rate) in inputs.items():
        network = getattr(agent, name)
        slope = jax.grad(lambda p, loss=loss, others=others: loss(p, *others)[0])(network.params)
        expected = adam_first_step(network.params, slope, rate)
        chex.assert_trees_all_close(getattr(after, name).params, expected, rtol=2e-3, atol=1e-4)
    moved = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, agent.target_critic.params, after.critic.params)
    chex.assert_trees_all_close(after.target_critic.params, moved, rtol=1e-5)


def test_a_policy_begins_narrow_and_its_width_is_learned():
    agent = CQL.create(Config(hidden=(8,), actor_hidden=(64, 64)), KEY, EXAMPLE, random_batch(1, 20))
    policy = agent.actor(random_batch(2, 50).observation)
    np.testing.assert_allclose(policy.log_std, -1, atol=0.1)
    np.testing.assert_allclose(policy.mean, 0, atol=0.1)
    gradient = jax.grad(lambda p: agent.actor_loss(p, rows(2), KEY)[0])(agent.actor.params)["params"]
    assert gradient["log_std_scale"] != 0
    assert gradient["log_std_offset"] != 0


def episodes(reward, terminated, truncated) -> Dataset:
    batch = random_batch(7, len(reward))
    ends = (np.asarray(x, bool) for x in (terminated, truncated))
    return Dataset(
        batch.observation, batch.action, np.asarray(reward, np.float32), *ends, batch.next_observation,
        np.zeros(len(reward), bool), "npz:test",
    )  # fmt: skip


MAZE = {"calibrated": True, "reward_scale": 10.0, "reward_shift": 5.0}
R = [5.0, 0.99 * 5 - 5, 0.99 * (0.99 * 5 - 5) - 5][::-1]
"""Of three steps to the goal: rewards are -5, -5 and 5."""


def test_returns_of_the_data():
    """One episode that reaches the goal, and one that the time limit cuts, which fails for ever."""
    data = episodes([0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1])
    prior = CQL.prepare(Config(**MAZE), data, tasks.find("antmaze-umaze"))
    np.testing.assert_allclose(prior.return_to_go, [*R, -500, -500], rtol=1e-5)
    np.testing.assert_array_equal(prior.reward, [-1, -1, 0, -1, -1])  # brought to scale when drawn
    assert type(CQL.prepare(Config(), data, tasks.find("antmaze-umaze"))) is Batch


def play(agent, rewards, terminated, experience=None, ends=True):
    """The agent and its experience after an episode of these rewards."""
    experience = Replay.create(EXAMPLE, 12) if experience is None else experience
    for age, reward in enumerate(rewards):
        last = ends and age + 1 == len(rewards)
        mask = np.float32(not (last and terminated))
        experience = experience.insert(EXAMPLE.replace(reward=np.float32(reward), mask=mask))
        agent = agent.after_episode(Episode(jnp.bool_(last), jnp.float32(0), jnp.int32(age + 1)), experience)
    return agent, experience


def test_returns_of_episodes_online():
    agent, experience = play(make_agent(**MAZE, online_steps=12), [-1, -1, 0], True)
    np.testing.assert_allclose(agent.returns[:3], R, rtol=1e-5)
    assert int(agent.finished) == 3
    agent, experience = play(agent, [-1] * 4, False, experience)
    np.testing.assert_allclose(agent.returns[:7], [*R, *[-500] * 4], rtol=1e-5)
    assert int(agent.finished) == 7
    # An episode under way changes no other's, and does not count.
    agent, experience = play(agent, [-1, -1], False, experience, ends=False)
    np.testing.assert_allclose(agent.returns[:7], [*R, *[-500] * 4], rtol=1e-5)
    np.testing.assert_array_equal(agent.returns[9:], 0)
    assert int(agent.finished) == 7
    plain = make_agent(online_steps=12)
    assert plain.after_episode(Episode(jnp.bool_(True), jnp.float32(0), jnp.int32(3)), experience) is plain


def prior_rows(config) -> Batch:
    batch = random_batch(8, 30).replace(reward=np.full(30, -3, np.float32))
    return Rows(**vars(batch), return_to_go=np.full(30, -30, np.float32)) if config.calibrated else batch


def test_minibatches_online_have_a_fixed_share_of_data_and_no_row_without_a_return():
    config = MAZE | {"online_steps": 12, "batch_size": 40, "utd": 3, "offline_ratio": 0.25}
    agent = make_agent(**config)
    prior = prior_rows(agent.config)
    sample = jax.jit(CQL.sample)
    agent, experience = play(agent, [-1], True, ends=False)
    first = sample(agent, KEY, experience, prior)
    np.testing.assert_array_equal(first.reward, np.full((3, 40), -25.0))
    np.testing.assert_array_equal(first.return_to_go, np.full((3, 40), -30.0))
    agent, experience = play(make_agent(**config), [-1, -1, 0], True)
    agent, experience = play(agent, [-7] * 5, False, experience, ends=False)
    drawn = sample(agent, KEY, experience, prior)
    assert type(drawn) is Rows
    np.testing.assert_array_equal((drawn.reward == -25).sum(1), [10] * 3)
    new = drawn.reward != -25
    assert set(np.unique(drawn.reward[new])) == {-5, 5}
    np.testing.assert_allclose(np.unique(drawn.return_to_go[new]), np.sort(R), rtol=1e-5)
    # Without calibration, the present episode is drawn as well.
    plain = make_agent(**config | {"calibrated": False})
    drawn = sample(plain, KEY, experience, prior_rows(plain.config))
    np.testing.assert_array_equal((drawn.reward == -25).sum(1), [10] * 3)
    assert (drawn.reward == -65).any()


def test_observations_are_normalised_everywhere_alike():
    prior = random_batch(1, 200)
    prior = prior.replace(observation=3 + 2 * prior.observation, next_observation=3 + 2 * prior.next_observation)
    agent = CQL.create(Config(hidden=(8,), actor_hidden=(8,), batch_size=64, normalise=True), KEY, EXAMPLE, prior)
    drawn = agent.sample(jax.random.key(1), None, prior)
    assert drawn.observation.shape == (1, 64, 5)
    mean, std = prior.observation.mean(0), prior.observation.std(0) + 1e-3
    for name in ("observation", "next_observation"):
        known = (getattr(prior, name) - mean) / std
        distance = np.abs(np.asarray(getattr(drawn, name))[0, :, None] - known).max(-1).min(1)
        assert distance.max() < 1e-4
    raw = prior.observation[:4]
    normal, noise = (raw - mean) / std, jax.random.normal(KEY, (4, ACTION))
    np.testing.assert_allclose(agent.act(raw), tanh_normal(agent.actor, normal, 0 * noise)[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(agent.explore(raw, KEY), tanh_normal(agent.actor, normal, noise)[0], rtol=1e-3)


def test_phases_presets_and_conflicts():
    assert Config(cloning_steps=3, offline_steps=5, online_steps=7).phases == (
        ("cloning", 3), ("offline", 5), ("online", 7),
    )  # fmt: skip
    assert "--discount below 1" in Config(calibrated=True, discount=1.0).problem()
    assert Config(discount=1.0).problem() is None

    def config(env, *arguments):
        return parse(["--env", env, *arguments], "cql", "", Config, PRESETS).config

    # CORL's.
    hopper = config("hopper-medium")
    assert (hopper.weight, hopper.actor_learning_rate, hopper.learning_rate) == (10.0, 3e-5, 3e-4)
    assert (hopper.normalise, hopper.lagrange, hopper.max_target, hopper.calibrated) == (True, False, False, False)
    assert (hopper.hidden, hopper.actor_hidden, hopper.offline_steps) == ((256,) * 3, (256,) * 3, 1_000_000)
    # Cal-QL's, whose rewards of 0 and 1 are -1 and 0 here: 10 r - 5.
    maze, calibrated = (config("antmaze-large-play", *preset) for preset in ((), ("--preset", "calql")))
    assert (maze.weight, maze.lagrange, maze.gap, maze.max_target) == (5.0, True, 0.8, True)
    assert (maze.hidden, maze.actor_hidden, maze.actor_learning_rate) == ((256,) * 4, (256, 256), 1e-4)
    assert [maze.scaled(r) for r in (-1, 0)] == [-5, 5]
    assert (maze.calibrated, maze.online_steps, maze.offline_ratio) == (False, 0, 0.5)
    assert calibrated == maze.replace(calibrated=True, online_steps=1_000_000)
    pen, door = (config(f"{hand}-binary", "--preset", "calql") for hand in ("pen", "door"))
    assert (pen.weight, pen.lagrange, pen.max_target, pen.offline_steps) == (1.0, False, True, 20_000)
    assert (pen.hidden, pen.actor_hidden, pen.online_steps) == ((512,) * 3, (512, 512), 200_000)
    assert door == pen.replace(online_steps=1_000_000)
    assert [pen.scaled(r) for r in (-1, 0)] == [-5, 5]
    # CQL's own code.
    own = config("walker2d-medium", "--preset", "authors-code")
    assert (own.weight, own.actor_learning_rate, own.normalise, own.lagrange) == (5.0, 1e-4, False, False)
    assert (own.cloning_steps, own.cloning_steps + own.offline_steps) == (40_000, 3_000_000)
    own = config("antmaze-umaze", "--preset", "authors-code")
    assert (own.weight * own.gap, own.lagrange, own.max_target, own.hidden) == (5.0, True, False, (256,) * 3)
    assert [own.scaled(r) for r in (-1, 0)] == [-2, 2]
    # Dense Adroit has none.
    assert config("pen-human") == Config()
    fields = {f.name for f in dataclasses.fields(Config)}
    for preset in PRESETS.values():
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
