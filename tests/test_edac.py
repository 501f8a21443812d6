"""algorithms/edac.py against an independent NumPy computation, and its semantics."""

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
    dense,
    member,
    mlp,
    parameters,
    q_values,
    random_batch,
    shaken,
    tanh_normal,
)

from algorithms.edac import EDAC, PRESETS, Config, Prior, Rows, soft_returns
from common import tasks
from common.commandline import parse
from common.datasets import Dataset
from common.replay import Replay

MEMBERS = 4


def with_ends(batch: object) -> Prior:
    """Rows of one episode that does not end by termination."""
    last = np.arange(len(batch.reward)) == len(batch.reward) - 1
    return Prior(**vars(batch), last=last, truncated=last)


def make_agent(prior=None, **values) -> EDAC:
    config = Config(**({"hidden": (16, 12), "ensemble": MEMBERS, "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = EDAC.create(config, jax.random.key(0), example, prior or with_ends(random_batch(1, 20)))
    networks = shaken(agent.actor, agent.critic, agent.target_critic, agent.temperature)
    return agent.replace(
        **dict(zip(("actor", "critic", "target_critic", "temperature"), networks, strict=True))
    )  # fmt: skip


def alpha_of(agent) -> float:
    return float(np.exp(np.asarray(parameters(agent.temperature)["log"], np.float64)))


def noise_of(key):
    return jax.random.normal(key, (ROWS, ACTION))


def numpy_action_slope(params, observation, action):
    """dQ/da of one critic without LayerNorm, layer by layer: [batch, action]."""
    x = np.concatenate([observation, action], -1).astype(np.float64)
    slope = None
    for index in range(sum(name.startswith("Dense") for name in params["MLP_0"])):
        kernel = np.asarray(params["MLP_0"][f"Dense_{index}"]["kernel"], np.float64)
        x = x @ kernel + params["MLP_0"][f"Dense_{index}"]["bias"]
        slope = np.broadcast_to(kernel, (len(x), *kernel.shape)) if slope is None else slope @ kernel
        slope = slope * (x > 0)[:, None]
        x = np.maximum(x, 0)
    return (slope @ np.asarray(params["Dense_0"]["kernel"], np.float64))[:, OBSERVATION:, 0]


@pytest.mark.parametrize("diversity", [True, False])
def test_critic_loss_equals_numpy(diversity):
    agent = make_agent(diversity=diversity, eta=3.0 if diversity else 0.0)
    batch, key = random_batch(2, ROWS), jax.random.key(3)
    next_action, log_prob = tanh_normal(agent.actor, batch.next_observation, noise_of(key), least_log_std=-5)
    next_q = q_values(agent.target_critic, range(MEMBERS), batch.next_observation, next_action).min(0)
    target = batch.reward + 0.99 * batch.mask * (next_q - alpha_of(agent) * log_prob)
    q = q_values(agent.critic, range(MEMBERS), batch.observation, batch.action)
    expected = ((q - target) ** 2).mean(-1).sum()
    if diversity:
        slopes = [numpy_action_slope(member(agent.critic, i), batch.observation, batch.action) for i in range(MEMBERS)]
        unit = [s / np.linalg.norm(s, axis=-1, keepdims=True) for s in slopes]
        pairs = [(unit[i] * unit[j]).sum(-1) for i in range(MEMBERS) for j in range(MEMBERS) if i != j]
        agreement = np.mean(sum(pairs)) / (MEMBERS - 1)
        expected += 3.0 * agreement
    loss, metrics = agent.critic_loss(agent.critic.params, batch, key)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert ("agreement" in metrics) == diversity
    if diversity:
        np.testing.assert_allclose(metrics["agreement"], agreement, rtol=1e-4)


def test_the_gradient_of_the_diversity_term_is_its_slope():
    """By central differences along a random direction, in the parameters of all critics; LayerNorm included."""
    agent, batch = make_agent(layer_norm=True), random_batch(2, ROWS)

    def term(params):
        return agent.values(params, batch)[1]

    params = agent.critic.params
    gradient = jax.grad(term)(params)
    size = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(gradient)))
    step = 1e-3 / size
    ahead, behind = (jax.tree.map(lambda x, g, s=s: x + s * step * g, params, gradient) for s in (1, -1))
    np.testing.assert_allclose((term(ahead) - term(behind)) / (2 * step), size**2, rtol=2e-2)


def test_critics_that_agree_everywhere_cost_n_and_opposites_least():
    agent, batch = make_agent(ensemble=2), random_batch(2, ROWS)
    same = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), agent.critic.params)
    np.testing.assert_allclose(agent.values(same, batch)[2]["agreement"], 2.0, rtol=1e-4)
    head = same["params"]["Dense_0"]
    opposite = {"params": same["params"] | {"Dense_0": {k: v * jnp.array([1.0, -1.0]).reshape(-1, *[1] * (v.ndim - 1))
                                                        for k, v in head.items()}}}  # fmt: skip
    np.testing.assert_allclose(agent.values(opposite, batch)[2]["agreement"], -2.0, rtol=1e-4)


def test_actor_cloning_and_temperature_losses_equal_numpy():
    agent, batch, key = make_agent(), random_batch(3, ROWS), jax.random.key(4)
    action, log_prob = tanh_normal(agent.actor, batch.observation, noise_of(key), least_log_std=-5)
    q = q_values(agent.critic, range(MEMBERS), batch.observation, action).min(0)
    loss, metrics = agent.actor_loss(agent.actor.params, batch, key)
    np.testing.assert_allclose(loss, np.mean(alpha_of(agent) * log_prob - q), rtol=1e-5)
    np.testing.assert_allclose(metrics["cloning"], np.mean((action - batch.action) ** 2), rtol=1e-5)

    _, likelihood = tanh_normal(agent.actor, batch.observation, action=batch.action, least_log_std=-5)
    loss, _ = agent.cloning_loss(agent.actor.params, batch, key)
    np.testing.assert_allclose(loss, np.mean(alpha_of(agent) * log_prob - likelihood), rtol=1e-5)

    loss, metrics = agent.temperature_loss(agent.temperature.params, jnp.float32(1.5), ACTION)
    np.testing.assert_allclose(loss, np.log(alpha_of(agent)) * (1.5 + ACTION), rtol=1e-5)
    np.testing.assert_allclose(metrics["temperature"], alpha_of(agent), rtol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_hybrids_terms_are_divided_by_their_own_size(sign):
    """The value term pulls the actor towards higher values whichever sign the loss has."""
    agent, batch, key = make_agent(cloning=0.5), random_batch(3, ROWS), jax.random.key(4)
    head = agent.critic.params["params"]["Dense_0"]
    moved = agent.critic.params["params"] | {"Dense_0": {**head, "bias": head["bias"] - sign * 50.0}}
    agent = agent.replace(critic=agent.critic.replace(params={"params": moved}))

    def terms(params):
        action, log_prob = agent.actor(batch.observation, params=params).sample_and_log_prob(key)
        q = agent.critic(batch.observation, action).min(axis=0)
        return (agent.temperature() * log_prob - q).mean(), jnp.square(action - batch.action).mean()

    value, cloning = terms(agent.actor.params)
    assert np.sign(value) == sign
    slope = jax.grad(lambda p: agent.actor_loss(p, batch, key)[0])(agent.actor.params)
    expected = jax.grad(lambda p: terms(p)[0] / abs(float(value)) + 0.5 * terms(p)[1] / float(cloning))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), slope, expected(agent.actor.params)
    )


@pytest.mark.parametrize("discount", [0.5, 0.99])
def test_soft_returns_equal_a_loop(discount):
    """Episodes that end by termination, by the time limit and by the end of the file, one of them of one row."""
    rng = np.random.default_rng(0)
    ends = {3: False, 4: True, 9: True, 15: False, 19: True}
    reward, bonus = rng.normal(size=20), rng.normal(size=20)
    last, truncated = np.zeros(20, bool), np.zeros(20, bool)
    for row, cut in ends.items():
        last[row], truncated[row] = True, cut
    expected = np.zeros(20)
    for t in reversed(range(20)):
        if truncated[t]:  # the same reward and entropy for ever
            expected[t] = reward[t] / (1 - discount) + bonus[t] * discount / (1 - discount)
        elif last[t]:
            expected[t] = reward[t]
        else:
            expected[t] = reward[t] + discount * (bonus[t + 1] + expected[t + 1])
    found = soft_returns(*(jnp.asarray(x, jnp.float32) for x in (reward, bonus)), last, truncated, discount)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_entering_the_returns_phase_computes_them_under_the_cloned_policy():
    prior = with_ends(random_batch(1, 50))
    agent = make_agent(prior, pretrain_steps=4, normalise=True)
    key = jax.random.key(5)
    after = jax.jit(EDAC.enter, static_argnums=1)(agent, "returns", key, prior)
    normal = (prior.observation - prior.observation.mean(0)) / (prior.observation.std(0) + 1e-3)
    entropies = []
    for row, row_key in zip(normal, jax.random.split(key, 50), strict=True):
        noise = jax.random.normal(row_key, (ACTION,))
        entropies.append(-tanh_normal(agent.actor, row, noise, least_log_std=-5)[1])
    expected = soft_returns(
        prior.reward, alpha_of(agent) * np.array(entropies, np.float32), prior.last, prior.truncated, 0.99
    )
    np.testing.assert_allclose(after.returns, expected, rtol=1e-3)
    drawn = after.sample(jax.random.key(0), None, prior)
    row = np.flatnonzero(prior.reward == np.asarray(drawn.reward)[0, 0])[0]
    assert drawn.return_to_go[0, 0] == after.returns[row]
    assert not isinstance(agent.sample(jax.random.key(0), None, prior), Rows)
    assert make_agent(prior).returns is None


def test_returns_loss_equals_numpy():
    agent, batch = make_agent(eta=2.0), random_batch(2, ROWS)
    rows = Rows(**vars(batch), return_to_go=np.arange(ROWS, dtype=np.float32))
    q = q_values(agent.critic, range(MEMBERS), batch.observation, batch.action)
    _, diversity, _ = agent.values(agent.critic.params, batch)
    loss, _ = agent.returns_loss(agent.critic.params, rows)
    np.testing.assert_allclose(loss, ((q - rows.return_to_go) ** 2).mean() + diversity, rtol=1e-5)


@pytest.mark.parametrize(
    ("phase", "moving"),
    [
        ("imitation", {"actor", "temperature"}),
        ("returns", {"critic", "target_critic"}),
        ("offline", {"actor", "temperature", "critic", "target_critic"}),
    ],
)
def test_each_phase_trains_its_own_networks(phase, moving):
    batch = random_batch(6, 2, ROWS)
    if phase == "returns":
        batch = Rows(**vars(batch), return_to_go=batch.reward)
    agent = make_agent().replace(phase=phase)
    after, metrics = jax.jit(EDAC.update)(agent, batch, jax.random.key(0), jnp.int32(1))
    for name in ("actor", "temperature", "critic", "target_critic"):
        pairs = zip(*(jax.tree.leaves(getattr(x, name).params) for x in (agent, after)), strict=True)
        assert any((a != b).any() for a, b in pairs) == (name in moving), name
    assert all(np.isfinite(v) for v in metrics.values())
    trained = after.critic if phase == "returns" else after.actor
    assert int(trained.opt_state.count) == 2


def test_the_order_is_temperature_then_actor_then_critics():
    """What is learnt later uses what was learnt before it, in the same step."""
    agent = make_agent(learning_rate=0.05, actor_learning_rate=0.05)
    batch, key = random_batch(6, 1, ROWS), jax.random.key(1)
    one = jax.tree.map(lambda x: x[0], batch)
    after, metrics = jax.jit(EDAC.update)(agent, batch, key, jnp.int32(1))
    actor_key, critic_key = jax.random.split(jax.random.split(key, 1)[0])
    warmed = agent.replace(temperature=after.temperature)
    assert float(metrics["actor_loss"]) == pytest.approx(
        float(warmed.actor_loss(agent.actor.params, one, actor_key)[0]), rel=1e-4
    )
    moved = warmed.replace(actor=after.actor)
    assert float(metrics["critic_loss"]) == pytest.approx(
        float(moved.critic_loss(agent.critic.params, one, critic_key)[1]["critic_loss"]), rel=1e-4
    )
    assert float(agent.actor_loss(agent.actor.params, one, actor_key)[0]) != pytest.approx(
        float(metrics["actor_loss"]), rel=1e-4
    )


def test_the_targets_move_a_little_towards_the_new_critics():
    agent, batch, key = make_agent(target_rate=0.1, learning_rate=0.05), random_batch(6, ROWS), jax.random.key(1)
    after, _ = agent.update_critic(batch, key)
    gradient = jax.grad(lambda params: agent.critic_loss(params, batch, key)[0])(agent.critic.params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
        after.critic.params, adam_first_step(agent.critic.params, gradient, 0.05),
    )  # fmt: skip
    jax.tree.map(
        lambda x, old, new: np.testing.assert_allclose(x, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-6),
        after.target_critic.params, agent.target_critic.params, after.critic.params,
    )  # fmt: skip


def test_actor_and_temperature_have_a_learning_rate_and_the_critics_theirs():
    agent, batch = make_agent(learning_rate=0.01, actor_learning_rate=0.05), random_batch(6, 1, ROWS)
    after, _ = jax.jit(EDAC.update)(agent, batch, jax.random.key(1), jnp.int32(1))
    for name, rate in (("actor", 0.05), ("temperature", 0.05), ("critic", 0.01)):
        pairs = zip(*(jax.tree.leaves(getattr(x, name).params) for x in (agent, after)), strict=True)
        # Adam's first step is its step size, wherever there is a gradient.
        assert max(float(jnp.abs(x - y).max()) for x, y in pairs) == pytest.approx(rate, rel=1e-3), name


def test_policies_and_minibatches_have_normalised_observations():
    """Acting, exploring, and learning from data and from experience."""
    prior = with_ends(random_batch(1, 50))
    agent, key = make_agent(prior, normalise=True, utd=2), jax.random.key(5)
    mean, std = prior.observation.mean(0), prior.observation.std(0) + 1e-3
    states = random_batch(3, ROWS).observation + 2
    p, normal = parameters(agent.actor), (states - mean) / std
    mode = np.tanh(dense(mlp(normal.astype(np.float64), p["MLP_0"]), p["Dense_0"]))
    np.testing.assert_allclose(agent.act(states), mode, rtol=1e-4, atol=1e-5)
    sampled, _ = tanh_normal(agent.actor, normal, noise_of(key), least_log_std=-5)
    np.testing.assert_allclose(agent.explore(states, key), sampled, rtol=1e-4, atol=1e-5)

    example = jax.tree.map(lambda x: x[0], random_batch(0, 1)).replace(reward=np.float32(-77))
    experience = Replay.create(example, 20)
    for _ in range(20):
        experience = experience.insert(example)
    raw = {float(r): (o, n) for r, o, n in zip(prior.reward, prior.observation, prior.next_observation, strict=True)}
    raw[-77.0] = example.observation, example.next_observation
    for source in (None, experience):
        drawn = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), agent.sample(key, source, prior))
        assert (-77 in drawn.reward) == (source is not None)
        for row, reward in enumerate(drawn.reward):
            found = drawn.observation[row], drawn.next_observation[row]
            np.testing.assert_allclose(found, (np.array(raw[float(reward)]) - mean) / std, rtol=1e-4, atol=1e-5)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert_only_terminations_stop(make_agent())


def data_of(rewards) -> Dataset:
    """Four rows: an episode that terminates and one that is cut."""
    return Dataset(
        observation=np.zeros((4, 11), np.float32), action=np.zeros((4, 3), np.float32),
        reward=np.array(rewards, np.float32), terminated=np.array([False, True, False, False]),
        truncated=np.array([False, False, False, True]), next_observation=np.zeros((4, 11), np.float32),
        success=np.zeros(4, bool), source="npz:test",
    )  # fmt: skip


def test_data_are_prepared_with_their_episodes_ends():
    prior = EDAC.prepare(Config(), data_of([1, 2, 3, 5]), tasks.find("hopper-medium"))
    assert prior.last.tolist() == [False, True, False, True]
    assert prior.truncated.tolist() == [False, False, False, True]
    assert prior.mask.tolist() == [1, 0, 1, 1]
    assert prior.reward.tolist() == [1, 2, 3, 5]


def test_rewards_are_normalised_where_that_is_asked_for():
    task, config = tasks.find("hopper-medium"), Config(normalise_reward=True)
    prior = EDAC.prepare(config, data_of([-2, 0, 0, 6]), task)
    np.testing.assert_allclose(prior.reward, (np.array([-2, 0, 0, 6]) - 1) / 3, rtol=1e-6)
    assert prior.reward.dtype == np.float32
    # All alike: nothing to learn, and no number that is none.
    assert EDAC.prepare(config, data_of([4, 4, 4, 4]), task).reward.tolist() == [0, 0, 0, 0]


def test_online_minibatches_come_from_data_and_experience_together():
    prior = with_ends(random_batch(1, 20))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    experience = Replay.create(example, 20)
    for _ in range(20):
        experience = experience.insert(example.replace(reward=np.float32(-77)))
    agent = make_agent(prior, utd=3, batch_size=500)
    drawn = agent.enter("online", jax.random.key(0), prior).sample(jax.random.key(1), experience, prior)
    assert drawn.reward.shape == (3, 500)
    assert abs(float((drawn.reward == -77).mean()) - 0.5) < 0.05


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"diversity": False}, "--eta 0"),
        ({"pretrain_steps": 1}, "--pretrain-steps"),
        ({"pretrain_steps": 4, "discount": 1.0}, "--discount below 1"),
        ({"normalise_reward": True, "online_steps": 100}, "--no-normalise-reward"),
    ],
)
def test_values_that_do_not_go_together_are_named(values, told):
    assert told in Config(**values).problem()


def test_fresh_critics_and_policies_are_close_to_zero_as_their_authors_have_them():
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = EDAC.create(
        Config(hidden=(256, 256), ensemble=4), jax.random.key(0), example, with_ends(random_batch(1, 20))
    )
    last = {"critic": (agent.critic, ("Dense_0",), 3e-3), "actor": (agent.actor, ("Dense_0", "Dense_1"), 1e-3)}
    for network, layers, bound in last.values():
        for layer in layers:
            for name in ("kernel", "bias"):
                values = np.abs(network.params["params"][layer][name])
                assert 0 < values.max() <= bound
            assert np.abs(network.params["params"][layer]["kernel"]).mean() == pytest.approx(bound / 2, rel=0.1)


def test_phases_and_presets():
    assert Config(pretrain_steps=5, offline_steps=7, online_steps=9).phases == (
        ("imitation", 2), ("returns", 3), ("offline", 7), ("online", 9),
    )  # fmt: skip

    def config(*arguments):
        return parse(arguments, "edac", "", Config, PRESETS).config

    hopper = config("--env", "hopper-medium")
    assert (hopper.ensemble, hopper.eta, hopper.layer_norm) == (50, 1.0, False)
    expert = config("--env", "walker2d-expert")
    assert (expert.ensemble, expert.eta) == (50, 5.0)
    mixed = config("--env", "walker2d-medium-expert")
    assert (mixed.ensemble, mixed.eta) == (10, 5.0)
    assert config("--env", "hopper-medium", "--preset", "imitate-first").ensemble == 50
    # "First Imitate" counts imitation among its steps.
    totals = {"halfcheetah-medium": 1e6, "walker2d-medium-replay": 12e6, "hopper-expert": 3e6, "door-human": 3e5}
    totals |= {"antmaze-umaze": 3e6, "antmaze-large-play": 3e6}
    for task, total in totals.items():
        first = config("--env", task, "--preset", "imitate-first")
        assert (first.pretrain_steps, first.pretrain_steps + first.offline_steps) == (20_000, total)
    umaze = config("--env", "antmaze-umaze", "--preset", "imitate-first")
    assert (umaze.ensemble, umaze.eta, config("--env", "antmaze-umaze").ensemble) == (50, 10.0, 10)
    assert config("--env", "pointmaze-umaze", "--preset", "imitate-first").offline_steps == 50_000
    sac_n = config("--env", "hopper-medium", "--preset", "sac-n")
    assert (sac_n.ensemble, sac_n.diversity, sac_n.eta) == (500, False, 0.0)
    sizes = {
        "hopper-expert": 500, "hopper-medium-replay": 200, "halfcheetah-expert": 10, "walker2d-random": 20,
        "walker2d-expert": 100, "pen-human": 100, "relocate-expert": 100, "pointmaze-umaze": 10,
    }  # fmt: skip
    for task, members in sizes.items():
        assert config("--env", task, "--preset", "sac-n").ensemble == members
    fields = {f.name for f in dataclasses.fields(Config)}
    for preset in PRESETS.values():
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
    pen = config("--env", "pen-human")
    assert (pen.learning_rate, pen.actor_learning_rate) == pytest.approx((3e-4, 3e-5))
    assert (pen.ensemble, pen.eta, pen.normalise_reward, pen.offline_steps) == (20, 1000.0, True, 200_000)
    pen = config("--env", "pen-human", "--preset", "imitate-first-adroit")
    assert (pen.ensemble, pen.eta, pen.cloning, pen.pretrain_steps) == (20, 1000.0, 1.0, 200_000)
    assert (pen.actor_learning_rate, pen.normalise_reward, pen.offline_steps) == (3e-4, False, 100_000)
