"""algorithms/redq_adaptive_bc.py against NumPy, and its controller against trajectories worked out by hand."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    ROWS,
    adam_first_step,
    assert_only_terminations_stop,
    head,
    parameters,
    q_values,
    random_batch,
    shaken,
)
from rich.console import Console

from algorithms.redq_adaptive_bc import PRESETS, Config, REDQAdaptiveBC
from common import command, tasks
from common.agent import MISSING
from common.commandline import parse
from common.errors import Refused
from common.replay import Episode, Replay, sample_union

NOTHING = Replay.create(jax.tree.map(lambda x: x[0], random_batch(0, 1)), 1)
"""An experience that the controller does not look at."""


def make_agent(**values) -> REDQAdaptiveBC:
    config = Config(**({"hidden": (8, 6), "ensemble": 4, "batch_size": ROWS, "utd": 4} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = REDQAdaptiveBC.create(config, jax.random.key(0), example, random_batch(1, 200))
    actor, target_actor, critic, target_critic = shaken(
        agent.actor, agent.target_actor, agent.critic, agent.target_critic
    )
    return agent.replace(actor=actor, target_actor=target_actor, critic=critic, target_critic=target_critic)


def config_of(*arguments) -> Config:
    """What a command line asks for."""
    return parse(arguments, "redq_adaptive_bc", "", Config, PRESETS).config


@pytest.mark.parametrize(("subset", "spread", "clip"), [(1, 0.1, 0.5), (2, 0.8, 0.3), (4, 0.8, 0.3)])
def test_critic_loss_equals_numpy(subset, spread, clip):
    agent = make_agent(target_subset=subset, target_noise=spread, noise_clip=clip)
    batch, key = random_batch(2, ROWS), jax.random.key(3)
    # Far states have actions near the borders, at which the noise is cut off once more.
    batch = batch.replace(next_observation=5 * batch.next_observation)
    noise_key, subset_key = jax.random.split(key)
    members = np.asarray(jax.random.choice(subset_key, 4, (subset,), replace=False))
    unclipped = spread * np.asarray(jax.random.normal(noise_key, batch.action.shape), np.float64)
    policy = np.tanh(head(parameters(agent.target_actor), batch.next_observation))
    noise = unclipped.clip(-clip, clip)
    assert (noise != unclipped).any() == (spread > clip)
    assert (np.abs(policy + noise) > 1).any()
    next_q = q_values(agent.target_critic, members, batch.next_observation, (policy + noise).clip(-1, 1)).min(0)
    target = batch.reward + 0.99 * batch.mask * next_q
    q = q_values(agent.critic, range(4), batch.observation, batch.action)
    loss, _ = agent.critic_loss(agent.critic.params, batch, key)
    np.testing.assert_allclose(loss, np.mean((q - target) ** 2), rtol=1e-5)


def test_actor_loss_equals_numpy():
    agent, batch = make_agent().replace(alpha=jnp.float32(0.3)), random_batch(3, ROWS)
    action = np.tanh(head(parameters(agent.actor), batch.observation))
    q = q_values(agent.critic, range(4), batch.observation, action).mean(0)
    cloning = np.mean((action - batch.action) ** 2)
    loss, metrics = agent.actor_loss(agent.actor.params, batch)
    np.testing.assert_allclose(loss, -q.mean() / np.abs(q).mean() + 0.3 * cloning, rtol=1e-5)
    np.testing.assert_allclose(metrics["cloning"], cloning, rtol=1e-5)


def alphas(agent, episodes):
    """Alpha after each of these episodes of (normalised return, length)."""
    out = []
    for value, length in episodes:
        agent = agent.adapted(jnp.float32(value), jnp.int32(length))
        out.append(float(agent.alpha))
    return out


def test_alpha_falls_while_returns_improve_from_below_the_target():
    agent = make_agent(k_p=1e-4, k_d=1e-3)
    # 100 steps at 1e-4 (R - 1): -0.008, -0.006, -0.004; the derivative term sees no fall.
    np.testing.assert_allclose(alphas(agent, [(0.2, 100), (0.4, 100), (0.6, 100)]), [0.392, 0.386, 0.382], rtol=1e-5)


def test_alpha_keeps_falling_while_returns_stall_and_stops_at_zero():
    agent = make_agent(k_p=1e-3, k_d=1e-3)
    np.testing.assert_allclose(alphas(agent, [(0.5, 400)] * 3), [0.2, 0.0, 0.0], atol=1e-6)


def test_alpha_rises_when_returns_collapse_and_stops_at_its_bound_whatever_it_was_offline():
    agent = make_agent(k_p=1e-4, k_d=1e-3, alpha_offline=100.0, alpha_online=0.1)
    assert float(agent.alpha) == 100
    agent = agent.enter("online", jax.random.key(0), random_batch(1, 200))
    # At the target nothing moves. Then R = 0.2: 100 (1e-4 (-0.8) + 1e-3 0.8) = +0.072. Then stalled: -0.008.
    # Then a long collapse from 1 to 0: 1000 (-1e-4 + 1e-3) = +0.9, cut off.
    np.testing.assert_allclose(
        alphas(agent, [(1.0, 100), (0.2, 100), (0.2, 100), (1.0, 100), (0.0, 1000)]),
        [0.1, 0.172, 0.164, 0.164, 0.4], rtol=1e-5,
    )  # fmt: skip
    bound = agent.replace(config=agent.config.replace(most_online=8.0))
    np.testing.assert_allclose(alphas(bound, [(1.0, 100), (0.0, 10_000)]), [0.1, 8.0], rtol=1e-5)


def test_above_the_target_alpha_rises():
    np.testing.assert_allclose(
        alphas(make_agent(k_p=1e-4, k_d=0.0).replace(alpha=jnp.float32(0.1)), [(1.5, 100)]), [0.105], rtol=1e-5
    )


def test_counted_per_step_alpha_moves_as_in_the_text_and_once_per_episode_hardly_at_all():
    """The paper's constants, a poor agent, 15 episodes of 1000 steps ("similar alpha after 10-15 episodes")."""
    poor = [(0.1, 1000)] * 15
    assert alphas(make_agent(), poor)[-1] < 0.05
    np.testing.assert_allclose(alphas(make_agent(once_per_episode=True), poor)[-1], 0.4 - 15 * 3e-5 * 0.9, rtol=1e-5)


def test_the_authors_code_averages_past_returns():
    agent = make_agent(**{k: v for k, v in PRESETS["authors-code"].items() if k != "utd"})
    # The first episode is its own past: 10 (3e-5 (0.5 - 1.05)); then the average 0.5 stands in both terms.
    first = 0.4 + 10 * 3e-5 * (0.5 - 1.05)
    second = min(0.4, first + 10 * (3e-5 * (0.5 - 1.05) + 1e-4 * (0.5 - 0.1)))
    average = 0.5 + 0.05 * (0.1 - 0.5)
    third = second + 10 * 3e-5 * (average - 1.05)
    np.testing.assert_allclose(alphas(agent, [(0.5, 10), (0.1, 10), (0.6, 10)]), [first, second, third], rtol=1e-5)


def test_alpha_moves_only_when_an_episode_has_ended():
    agent = make_agent()
    ongoing = agent.after_episode(Episode(jnp.array(False), jnp.float32(50.0), jnp.int32(100)), NOTHING)
    assert float(ongoing.alpha) == float(agent.alpha)
    assert np.isnan(float(ongoing.last_return))
    ended = agent.after_episode(Episode(jnp.array(True), jnp.float32(50.0), jnp.int32(100)), NOTHING)
    np.testing.assert_allclose(float(ended.alpha), 0.4 - 100 * 3e-5 * 0.5, rtol=1e-5)
    assert float(ended.last_return) == 0.5


def test_from_scratch_on_a_task_without_a_scale_of_returns_alpha_stays():
    agent = make_agent(**PRESETS["redq-scratch"])
    ended = agent.after_episode(Episode(jnp.array(True), jnp.float32(np.nan), jnp.int32(100)), NOTHING)
    assert float(ended.alpha) == 0.0


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({}, 200),  # fewer than stay at least
        ({"kept_at_least": 50}, 50),
        ({"kept_at_least": 50, "kept": 0.5}, 100),
        ({"kept_at_least": 1}, 10),
        ({"kept_at_least": 1, "kept": 0.001}, 1),
        ({"kept_at_least": 1, "kept": 1.0}, 200),
        ({"kept": 1.0}, 200),
    ],
)
def test_a_share_of_the_data_stays_and_some_rows_at_least(values, rows):
    agent = make_agent(**values)
    assert agent.kept.shape == (rows,)
    kept = agent.enter("online", jax.random.key(3), random_batch(1, 200)).kept
    assert len(set(np.asarray(kept).tolist())) == len(kept) == rows


def test_going_online_keeps_a_twentieth_of_the_data_and_everything_else():
    agent = make_agent(kept_at_least=1)
    prior = random_batch(1, 200)
    after = agent.enter("online", jax.random.key(3), prior)
    kept = np.asarray(after.kept)
    assert len(set(kept.tolist())) == 10
    assert kept.max() < 200
    assert after.critic is agent.critic
    assert not np.array_equal(kept, agent.enter("online", jax.random.key(4), prior).kept)
    # Online, these rows and the experience, uniformly.
    prior = prior.replace(reward=np.arange(200, dtype=np.float32))
    experience = Replay.create(jax.tree.map(lambda x: x[0], prior), 50)
    for _ in range(30):
        experience = experience.insert(jax.tree.map(lambda x: x[0], prior).replace(reward=np.float32(-1)))
    drawn = np.asarray(after.sample(jax.random.key(0), experience, jax.tree.map(jnp.asarray, prior)).reward).ravel()
    drawn = np.concatenate([drawn, *(
        np.asarray(sample_union(jax.random.key(k), experience, jax.tree.map(jnp.asarray, prior), 4, 500,
                                after.kept).reward).ravel() for k in range(2))])  # fmt: skip
    assert set(drawn.tolist()) == {-1.0, *kept.tolist()}
    assert abs(np.mean(drawn == -1) - 0.75) < 0.05


def gradient_step(agent, batch, key, number):
    """The agent after one gradient step, and the step's metrics."""
    after, metrics = agent.gradient_steps(
        jax.tree.map(lambda x: x[None], batch), key[None], jnp.array([number], jnp.int32)
    )
    return after, {name: value[0] for name, value in metrics.items()}


def test_the_last_step_of_each_policy_delay_moves_actor_and_targets_by_the_new_critic():
    agent = make_agent(policy_delay=3, target_rate=0.1, learning_rate=0.05)
    batch, key = random_batch(6, ROWS), jax.random.key(0)
    still = ("actor", "target_actor", "target_critic")
    for number in (1, 2, 4):
        after, metrics = gradient_step(agent, batch, key, number)
        for name in still:
            chex.assert_trees_all_equal(getattr(after, name).params, getattr(agent, name).params)
        assert int(after.critic.opt_state.count) == 1
        assert metrics["actor_loss"] == MISSING
    after, metrics = gradient_step(agent, batch, key, 3)
    gradient = jax.grad(lambda params: agent.critic_loss(params, batch, key)[0])(agent.critic.params)
    near = jax.tree_util.Partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(near, after.critic.params, adam_first_step(agent.critic.params, gradient, 0.05))
    learnt = agent.replace(critic=after.critic)
    loss, gradient = jax.value_and_grad(lambda params: learnt.actor_loss(params, batch)[0])(agent.actor.params)
    near(metrics["actor_loss"], loss)
    jax.tree.map(near, after.actor.params, adam_first_step(agent.actor.params, gradient, 0.05))
    for name in ("actor", "critic"):
        before, online = getattr(agent, f"target_{name}").params, getattr(after, name).params
        expected = jax.tree.map(lambda x, y: 0.9 * np.asarray(x) + 0.1 * np.asarray(y), before, online)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            getattr(after, f"target_{name}").params, expected,
        )  # fmt: skip


@pytest.mark.parametrize(("steps", "moved"), [(1, [0, 0, 1, 1, 1, 2]), (2, [0, 1, 2, 2, 3, 4]), (4, [1, 2, 4])])
def test_the_policy_delay_counts_on_from_one_environment_step_to_the_next(steps, moved):
    agent, update = make_agent(policy_delay=3), jax.jit(REDQAdaptiveBC.update)
    counts = []
    for step in range(1, len(moved) + 1):
        agent, _ = update(agent, random_batch(6, steps, ROWS), jax.random.key(0), jnp.int32(step))
        counts.append(int(agent.actor.opt_state.count))
    assert counts == moved


def test_exploration_is_the_policy_with_noise_within_the_actions():
    agent, key = make_agent(exploration_noise=0.8), jax.random.key(7)
    states = 5 * random_batch(3, ROWS).observation
    policy = np.tanh(head(parameters(agent.actor), states))
    np.testing.assert_allclose(agent.act(states), policy, rtol=1e-5, atol=1e-6)
    noisy = policy + 0.8 * np.asarray(jax.random.normal(key, policy.shape))
    assert (np.abs(noisy) > 1).any()
    np.testing.assert_allclose(agent.explore(states, key), noisy.clip(-1, 1), rtol=1e-5, atol=1e-6)


def test_twenty_critic_steps_are_ten_of_the_actor():
    agent, batch = make_agent(utd=4), random_batch(6, 4, ROWS)
    after, metrics = jax.jit(REDQAdaptiveBC.update)(agent, batch, jax.random.key(0), jnp.int32(3))
    assert int(after.critic.opt_state.count) == 4
    assert int(after.actor.opt_state.count) == 2
    np.testing.assert_allclose(metrics["alpha"], 0.4, rtol=1e-6)


def test_a_time_limit_bootstraps_and_a_termination_does_not():
    assert_only_terminations_stop(make_agent())


def test_redq_from_scratch_has_no_data_and_clones_nothing():
    fields = {f.name for f in dataclasses.fields(Config)}
    values = {k: v for k, v in PRESETS["redq-scratch"].items() if k in fields}
    config = Config(**values)
    assert config.problem() is None
    assert not config.uses_prior_data
    assert config.phases == (("offline", 0), ("online", 250_000))
    assert config.random_steps == 5000
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = REDQAdaptiveBC.create(config, jax.random.key(0), example, None)
    assert float(agent.alpha) == 0
    assert float(agent.adapted(jnp.float32(0.1), jnp.int32(1000)).alpha) == 0


def test_a_task_without_a_scale_of_returns_is_refused_at_every_point_of_a_grid(tmp_path, monkeypatch):
    task = tasks.find("Hopper-v5")
    assert "--k-p 0 --k-d 0" in Config().misfit(task)
    assert "--k-p 0 --k-d 0" in Config(k_p=0.0).misfit(task)
    assert Config(k_p=0.0, k_d=0.0).misfit(task) is None
    assert Config().misfit(tasks.find("hopper-medium")) is None
    monkeypatch.chdir(tmp_path)
    scratch = ["--env", "Hopper-v5", "--preset", "redq-scratch"]
    for arguments in (["--k-d", "1e-4"], ["--grid.k-p", "0", "3e-5"]):
        with pytest.raises(Refused, match="Hopper-v5 has no normalised return"):
            command.serve(REDQAdaptiveBC, Config, PRESETS, [*scratch, *arguments], Console())
    assert not list(tmp_path.iterdir())
    # Offline nothing adapts.
    offline = Config(online_steps=0, alpha_online=5.0)
    assert offline.problem() is None
    assert offline.misfit(tasks.find("Hopper-v5")) is None
    assert "--alpha-online" in dataclasses.replace(offline, online_steps=100_000).problem()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"target_subset": 11}, "--target-subset"),
        ({"offline_steps": 0, "online_steps": 0}, "no step to learn at"),
        ({"alpha_online": 0.8}, "raise --most-online"),
        ({"offline_steps": 0, "start_training": 5000, "online_steps": 5000}, "--start-training 5000 leaves no step"),
        ({"start_training": 5000, "online_steps": 200}, "below --online-steps 200"),
    ],
)
def test_values_that_do_not_go_together_are_named(values, told):
    assert told in Config(**values).problem()


def test_possible_values_are_not():
    for values in (
        {},
        {"alpha_offline": 100.0},
        {"alpha_online": 0.8, "most_online": 0.8},
        {"start_training": 4999, "online_steps": 5000},
        {"online_steps": 0},
    ):
        assert Config(**values).problem() is None


def test_a_grid_above_the_bound_is_refused():
    fixed = ("--env", "hopper-medium", "--k-p", "0", "--k-d", "0", "--grid.alpha-online", "0.2")
    assert config_of(*fixed, "0.3").k_p == 0
    with pytest.raises(Refused, match=r"--alpha-online 0\.6 .* --most-online 0\.4"):
        config_of(*fixed, "0.6")
    assert config_of(*fixed, "0.6", "--most-online", "0.6").most_online == pytest.approx(0.6)


def test_presets():
    assert config_of("--env", "hopper-random") == Config()
    narrow = config_of("--env", "walker2d-random")
    assert (narrow.alpha_offline, narrow.alpha_online, narrow.most_online) == (100.0, 0.4, 0.4)
    assert config_of("--env", "pointmaze-umaze") == Config(kept_at_least=1)
    code = config_of("--env", "walker2d-random", "--preset", "authors-code")
    assert (code.alpha_offline, code.alpha_online, code.k_p, code.k_d, code.utd) == (100.0, 0.4, 3e-5, 1e-4, 10)
    hand = config_of("--env", "door-expert", "--preset", "authors-code")
    assert (hand.alpha_offline, hand.alpha_online, hand.most_online, hand.utd) == (8.0, 8.0, 8.0, 1)
    # Twenty times their locomotion's, as alpha is.
    assert (hand.k_p, hand.k_d) == pytest.approx((20 * code.k_p, 20 * code.k_d))
    assert (hand.target_return, hand.smoothed) == (code.target_return, code.smoothed)
    assert config_of("--env", "door-human", "--preset", "authors-code").alpha_online == pytest.approx(0.4)
    scratch = config_of("--env", "walker2d-random", "--preset", "redq-scratch")
    assert (scratch.alpha_offline, scratch.alpha_online, scratch.most_online) == (0.0, 0.0, 0.0)
