"""algorithms/redq_adaptive_bc.py against NumPy, and its controller against trajectories worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ROWS, assert_only_terminations_stop, head, parameters, q_values, random_batch, shaken

from algorithms.redq_adaptive_bc import PRESETS, Config, REDQAdaptiveBC
from common import tasks
from common.errors import Refused
from common.replay import Episode, Replay, sample_union


def make_agent(**values) -> REDQAdaptiveBC:
    config = Config(**({"hidden": (8, 6), "ensemble": 4, "batch_size": ROWS, "utd": 4} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = REDQAdaptiveBC.create(config, jax.random.key(0), example, random_batch(1, 200))
    actor, target_actor, critic, target_critic = shaken(
        agent.actor, agent.target_actor, agent.critic, agent.target_critic
    )
    return agent.replace(actor=actor, target_actor=target_actor, critic=critic, target_critic=target_critic)


@pytest.mark.parametrize("subset", [1, 2, 4])
def test_critic_loss_equals_numpy(subset):
    agent, batch, key = make_agent(target_subset=subset), random_batch(2, ROWS), jax.random.key(3)
    noise_key, subset_key = jax.random.split(key)
    members = np.asarray(jax.random.choice(subset_key, 4, (subset,), replace=False))
    noise = np.asarray(0.1 * jax.random.normal(noise_key, batch.action.shape), np.float64).clip(-0.5, 0.5)
    next_action = (np.tanh(head(parameters(agent.target_actor), batch.next_observation)) + noise).clip(-1, 1)
    next_q = q_values(agent.target_critic, members, batch.next_observation, next_action).min(0)
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


def test_alpha_rises_when_returns_collapse_and_stops_at_its_offline_value():
    agent = make_agent(k_p=1e-4, k_d=1e-3, alpha_online=0.1).enter("online", jax.random.key(0), random_batch(1, 200))
    # At the target nothing moves. Then R = 0.2: 100 (1e-4 (-0.8) + 1e-3 0.8) = +0.072. Then stalled: -0.008.
    # Then a long collapse from 1 to 0: 1000 (-1e-4 + 1e-3) = +0.9, cut off.
    np.testing.assert_allclose(
        alphas(agent, [(1.0, 100), (0.2, 100), (0.2, 100), (1.0, 100), (0.0, 1000)]),
        [0.1, 0.172, 0.164, 0.164, 0.4], rtol=1e-5,
    )  # fmt: skip


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
    ongoing = agent.after_episode(Episode(jnp.array(False), jnp.float32(50.0), jnp.int32(100)))
    assert float(ongoing.alpha) == float(agent.alpha)
    assert np.isnan(float(ongoing.last_return))
    ended = agent.after_episode(Episode(jnp.array(True), jnp.float32(50.0), jnp.int32(100)))
    np.testing.assert_allclose(float(ended.alpha), 0.4 - 100 * 3e-5 * 0.5, rtol=1e-5)
    assert float(ended.last_return) == 0.5


def test_from_scratch_on_a_task_without_a_scale_of_returns_alpha_stays():
    agent = make_agent(**PRESETS["redq-scratch"])
    ended = agent.after_episode(Episode(jnp.array(True), jnp.float32(np.nan), jnp.int32(100)))
    assert float(ended.alpha) == 0.0


def test_going_online_keeps_a_twentieth_of_the_data_and_everything_else():
    agent = make_agent()
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


def test_a_task_without_a_scale_of_returns_is_refused():
    class Data:
        def batch(self, task):
            return random_batch(0, 3)

    with pytest.raises(Refused, match="--k-p 0 --k-d 0"):
        REDQAdaptiveBC.prepare(Config(), Data(), tasks.find("Hopper-v5"))
    REDQAdaptiveBC.prepare(Config(k_p=0.0, k_d=0.0), Data(), tasks.find("Hopper-v5"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"target_subset": 11}, "--target-subset"),
        ({"kept": 0.0}, "--kept"),
        ({"utd": 0}, "--utd"),
        ({"offline_steps": 0, "online_steps": 0}, "one phase longer"),
    ],
)
def test_impossible_values_are_named(values, told):
    assert told in Config(**values).problem()
