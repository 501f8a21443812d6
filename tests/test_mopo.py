"""algorithms/mopo.py against an independent NumPy computation, and its semantics."""

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
    q_values,
    random_batch,
    shaken,
    tanh_normal,
)  # fmt: skip

from algorithms.mopo import MOPO, PRESETS, Config
from common import dynamics, tasks
from common.commandline import parse
from common.dynamics import ModelData, Prediction

KEY, SIZE = jax.random.key(3), 60
SMALL = {
    "hidden": (8, 6), "batch_size": 20, "model_hidden": (8,), "model_weight_decay": (1e-5, 1e-4), "members": 3,
    "elites": 2, "model_batch_size": 6, "rollout_batch": 9, "rollout_length": 3, "retained": 2, "real_ratio": 0.25,
}  # fmt: skip


def make_prior(termination=tasks.never) -> ModelData:
    return jax.tree.map(jnp.asarray, ModelData(**vars(random_batch(1, SIZE)), termination=termination))


def make_agent(phase="offline", prior=None, **values) -> MOPO:
    config = Config(**(SMALL | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    prior = make_prior() if prior is None else prior
    agent = MOPO.create(config, jax.random.key(0), example, prior).enter(phase, jax.random.key(1), prior)
    parts = "actor", "critic", "target_critic", "temperature"
    own = dict(zip(parts, shaken(*(getattr(agent, part) for part in parts)), strict=True))
    return agent.replace(**own)


def alpha(agent):
    return np.exp(float(agent.temperature.params["params"]["log"]))


def numpy_target(agent, batch, key):
    noise = jax.random.normal(key, batch.action.shape)
    action, log_prob = tanh_normal(agent.actor, batch.next_observation, noise, least_log_std=-5.0)
    q = q_values(agent.target_critic, (0, 1), batch.next_observation, action).min(0)
    limited = min(alpha(agent), agent.config.greatest_temperature)
    return batch.reward + 0.99 * batch.mask * (q - limited * log_prob)


@pytest.mark.parametrize("limit", [1.0, 0.3])
def test_losses_equal_numpy(limit):
    agent, batch = make_agent(greatest_temperature=limit), random_batch(2, ROWS)
    q = q_values(agent.critic, (0, 1), batch.observation, batch.action)
    expected = ((q - numpy_target(agent, batch, KEY)) ** 2).mean(1).sum()
    np.testing.assert_allclose(agent.critic_loss(agent.critic.params, batch, KEY)[0], expected, rtol=1e-4)
    noise = jax.random.normal(KEY, batch.action.shape)
    action, log_prob = tanh_normal(agent.actor, batch.observation, noise, least_log_std=-5.0)
    q = q_values(agent.critic, (0, 1), batch.observation, action).min(0)
    limited = min(alpha(agent), limit)
    loss, metrics = agent.actor_loss(agent.actor.params, batch, KEY)
    np.testing.assert_allclose(loss, (limited * log_prob - q).mean(), rtol=1e-4)
    loss, _ = agent.temperature_loss(agent.temperature.params, metrics["entropy"], ACTION)
    np.testing.assert_allclose(loss, np.log(alpha(agent)) * (-log_prob.mean() + ACTION), rtol=1e-4)


def test_only_terminations_stop():
    assert_only_terminations_stop(make_agent())


def test_imagined_rewards_are_lowered_by_the_largest_deviation_or_by_disagreement():
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=(2, 3, 5, OBSERVATION + 1)).astype(np.float32)
    deviation, reward = np.abs(deviation), rng.normal(size=5).astype(np.float32)
    prediction = Prediction(jnp.zeros((5, OBSERVATION)), reward, mean, deviation)
    found = make_agent(penalty=2.0).imagined_reward(prediction)
    np.testing.assert_allclose(found, reward - 2 * np.sqrt((deviation**2).sum(-1)).max(0), rtol=1e-5)
    found = make_agent(penalty=2.0, uncertainty="disagreement").imagined_reward(prediction)
    apart = mean[..., :-1] - mean[..., :-1].mean(0)
    np.testing.assert_allclose(found, reward - 2 * np.sqrt((apart**2).sum(-1)).max(0), rtol=1e-5)


def test_steps_are_taken_in_order_and_the_actors_gets_shorter():
    agent, batch = make_agent(offline_steps=100, learning_rate=1e-2), random_batch(2, ROWS)
    critic_key, actor_key = jax.random.split(KEY)
    after, _ = jax.jit(MOPO.update_once)(agent, batch, KEY, jnp.int32(51))
    slope = jax.grad(lambda p: agent.critic_loss(p, batch, critic_key)[0])(agent.critic.params)
    expected = adam_first_step(agent.critic.params, slope, 1e-2)
    chex.assert_trees_all_close(after.critic.params, expected, rtol=2e-3, atol=2e-5)
    by_the_new = agent.replace(critic=after.critic)
    slope = jax.grad(lambda p: by_the_new.actor_loss(p, batch, actor_key)[0])(agent.actor.params)
    expected = adam_first_step(agent.actor.params, slope, 0.5e-4)
    chex.assert_trees_all_close(after.actor.params, expected, rtol=2e-3, atol=1e-7)
    target = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, agent.target_critic.params, after.critic.params)
    chex.assert_trees_all_close(after.target_critic.params, target, rtol=1e-5)
    steady = make_agent(decay=False)
    steps = [steady.update_once(batch, KEY, jnp.int32(number))[0].actor.params for number in (1, 51)]
    chex.assert_trees_all_equal(*steps)


def test_each_phase_moves_its_own():
    prior = make_prior()
    agent = make_agent("model")
    batches = agent.sample(KEY, None, prior)
    assert batches.observation.shape == (1, 3, 6, OBSERVATION)
    after, metrics = jax.jit(MOPO.update)(agent, batches, KEY, jnp.int32(1))
    assert set(metrics) == {"model_loss", "held_out_error", "stopped"}
    same = ("actor", "critic", "target_critic", "temperature")
    chex.assert_trees_all_equal(*([getattr(x, part) for part in same] for x in (agent, after)))
    assert int(after.dynamics.network.opt_state.count) == 1
    agent = make_agent().renew(jnp.int32(1), prior)
    after, _ = jax.jit(MOPO.update)(agent, agent.sample(KEY, None, prior), KEY, jnp.int32(1))
    chex.assert_trees_all_equal(after.dynamics, agent.dynamics)


def test_the_model_is_validated_once_in_as_many_steps_as_its_data_have_minibatches():
    prior = make_prior()
    agent = make_agent("model")
    perfect = agent.replace(dynamics=agent.dynamics.replace(best_error=jnp.zeros(3)))  # each validation is a strike
    strikes = [int(perfect.renew(jnp.int32(step), prior).dynamics.strikes) for step in range(1, 18)]
    assert [step for step, count in enumerate(strikes, 1) if count] == [1, 9, 17]  # 48 rows, 6 at a time


def test_the_offline_phase_begins_with_the_best_model():
    prior = make_prior()
    agent = make_agent("model")
    validated = agent.replace(dynamics=agent.dynamics.validate(prior, 5))
    worse = jax.tree.map(lambda x: x + 3, validated.dynamics.network.params)
    spoilt = validated.replace(
        dynamics=validated.dynamics.replace(network=validated.dynamics.network.replace(params=worse))
    )
    found = spoilt.enter("offline", KEY, prior).dynamics
    chex.assert_trees_all_equal(dynamics.layers(found.network.params), dynamics.layers(agent.dynamics.network.params))
    assert found.elites.tolist() == np.argsort(np.asarray(found.error(prior)))[:2].tolist()


def below_zero(next_observation, reward):
    """Half of all observations end an episode."""
    return next_observation[..., 0] < 0


def test_nothing_after_a_termination_is_learnt_from():
    prior = make_prior(below_zero)
    agent = make_agent(prior=prior, penalty=0.0, rollout_batch=40, rollout_length=4)
    rows, kept = jax.jit(MOPO.rollout, static_argnums=4)(
        agent, prior.observation[:40], jnp.arange(40) < 30, KEY, below_zero
    )
    kept, over = np.asarray(kept), np.asarray(rows.next_observation[..., 0]) < 0
    expected = np.arange(40) < 30
    for step in range(4):
        np.testing.assert_array_equal(kept[step], expected)
        expected = expected & ~over[step]
        if step:
            np.testing.assert_array_equal(rows.observation[step], rows.next_observation[step - 1])
    assert 0 < expected.sum() < 30
    np.testing.assert_array_equal(rows.mask, 1 - over.astype(np.float32))
    after = jax.jit(MOPO.renew)(agent, jnp.int32(1), prior)
    size, stored = int(after.imagined.size), after.imagined.rows
    assert 40 < size < 160
    real = {row.tobytes() for row in np.asarray(prior.observation)}
    for at in range(size):
        observation = np.asarray(stored.observation[at])
        # From the data, or from a row that did not end: its first number is not below 0.
        assert observation.tobytes() in real or observation[0] >= 0
    assert (np.asarray(stored.reward[size:]) == 0).all()
    drawn = [after.sample(jax.random.key(k), None, prior).observation[0, 5:] for k in range(20)]
    assert np.abs(np.concatenate(drawn)).sum(-1).min() > 0  # no row that is not filled


def test_rollouts_come_when_they_are_due_from_states_of_the_data_and_the_oldest_go():
    prior = make_prior()
    agent, renew = make_agent(rollout_every=4), jax.jit(MOPO.renew)
    inserted, now = [], agent
    for step in range(1, 10):
        now = renew(now, jnp.int32(step), prior)
        inserted.append(int(now.imagined.inserted))
    assert inserted == [27] * 4 + [54] * 4 + [81]
    assert now.imagined.capacity == int(now.imagined.size) == 54
    starts = np.asarray(now.imagined.rows.observation[:9])
    assert {row.tobytes() for row in starts} <= {row.tobytes() for row in np.asarray(prior.observation)}
    first = renew(agent, jnp.int32(1), prior).imagined.rows.observation[:27]
    assert not np.array_equal(first, now.imagined.rows.observation[:27])


def test_many_rollouts_go_in_chunks(monkeypatch):
    prior = make_prior()
    whole = make_agent().renew(jnp.int32(1), prior).imagined
    monkeypatch.setattr(dynamics, "CHUNK", 4)  # three chunks of three
    chunks = make_agent().renew(jnp.int32(1), prior).imagined
    assert int(chunks.inserted) == int(whole.inserted) == 27
    monkeypatch.setattr(dynamics, "CHUNK", 5)  # two of five, of which one is too many
    assert int(make_agent().renew(jnp.int32(1), prior).imagined.inserted) == 27


@pytest.mark.parametrize(("ratio", "real"), [(0.25, 5), (0.05, 1), (0.0, 0), (0.99, 19)])
def test_minibatches_are_data_first_and_imagined_rows_afterwards(ratio, real):
    prior = make_prior()
    agent = make_agent(real_ratio=ratio).renew(jnp.int32(1), prior)
    drawn = agent.sample(KEY, None, prior)
    known = {row.tobytes() for row in np.asarray(prior.next_observation)}
    assert [row.tobytes() in known for row in np.asarray(drawn.next_observation[0])] == [True] * real + [False] * (
        20 - real
    )
    assert Config(real_ratio=0.05).real_rows == 12


def test_runs_side_by_side_learn_what_they_learn_alone():
    """Under vmap, where of two models one has stopped, and through rollouts."""
    prior = make_prior(below_zero)
    first = make_agent("model", rollout_every=2, patience=1)
    second = first.replace(dynamics=first.dynamics.replace(strikes=jnp.int32(1), best_error=jnp.zeros(3)))
    keys, steps = jax.random.split(KEY, 4), 1 + jnp.arange(4)

    def whole(agent):
        agent, of_model = agent.update_offline(keys, 1 + steps, prior, False)
        return agent.enter("offline", KEY, prior).update_offline(keys, steps, prior, False), of_model

    together, of_models = jax.jit(jax.vmap(whole))(jax.tree.map(lambda *x: jnp.stack(x), first, second))
    assert of_models["stopped"].tolist() == [[0] * 4, [1] * 4]
    alone = jax.jit(whole)
    for number, agent in enumerate((first, second)):
        (after, metrics), of_model = alone(agent)
        assert int(after.imagined.inserted) == int(together[0].imagined.inserted[number]) > 20
        own = jax.tree.map(lambda x, number=number: x[number], (together[1], of_models))
        chex.assert_trees_all_close(own, (metrics, of_model), rtol=1e-2, atol=1e-3)


def config(task, *arguments) -> Config:
    return parse(["--env", task, *arguments], "mopo", "", Config, PRESETS).config


def test_presets_are_offlinerl_kits_and_the_authors():
    bodies, kit = ("halfcheetah", "hopper", "walker2d"), {}
    for task in (f"{body}-{quality}" for body in bodies for quality in ("medium", "medium-replay", "medium-expert")):
        kit[task] = (c := config(task)).rollout_length, c.penalty
    assert kit == {
        "halfcheetah-medium": (5, 0.5), "hopper-medium": (5, 5.0), "walker2d-medium": (5, 0.5),
        "halfcheetah-medium-replay": (5, 0.5), "hopper-medium-replay": (5, 2.5), "walker2d-medium-replay": (1, 2.5),
        "halfcheetah-medium-expert": (5, 2.5), "hopper-medium-expert": (5, 5.0), "walker2d-medium-expert": (1, 2.5),
    }  # fmt: skip
    theirs = {}
    for task in (f"{b}-{q}" for b in bodies for q in ("random", "medium", "medium-replay", "medium-expert")):
        c = config(task, "--preset", "authors-code")
        theirs[task] = c.rollout_length, c.penalty
        assert c.target_entropy_per_action * {"hopper": 3}.get(task.split("-")[0], 6) == -3
        assert (c.actor_learning_rate, c.learning_rate, c.decay) == (3e-4, 3e-4, False)
    assert theirs == {
        "halfcheetah-random": (5, 0.5), "halfcheetah-medium": (1, 1.0), "halfcheetah-medium-replay": (5, 1.0),
        "halfcheetah-medium-expert": (5, 5.0), "hopper-random": (5, 1.0), "hopper-medium": (5, 5.0),
        "hopper-medium-replay": (5, 1.0), "hopper-medium-expert": (5, 1.0), "walker2d-random": (1, 1.0),
        "walker2d-medium": (5, 5.0), "walker2d-medium-replay": (1, 1.0), "walker2d-medium-expert": (1, 2.0),
    }  # fmt: skip
    c = config("hopper-medium")
    assert (c.members, c.elites, c.model_hidden, c.model_weight_decay) == (
        7, 5, (200,) * 4, (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4),
    )  # fmt: skip
    assert (c.rollout_batch, c.rollout_every, c.retained, c.real_ratio, c.imagined_rows) == (
        50_000, 1000, 5, 0.05, 1_250_000,
    )  # fmt: skip
    assert c.phases == (("model", 200_000), ("offline", 3_000_000))
    fields = {f.name for f in dataclasses.fields(Config)}
    for preset in PRESETS.values():
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"elites": 8}, "--elites 8 of --members 7"),
        ({"model_hidden": (200, 200)}, "--model-weight-decay has 5 numbers for the 3 layers of --model-hidden"),
        ({"rollout_every": 1}, "2^31 rows or more"),
    ],
)
def test_values_that_do_not_go_together_are_refused(values, words):
    assert Config().problem() is None
    assert words in Config(**values).problem()


def test_a_task_of_which_no_termination_is_known_is_refused():
    task = tasks.find("Humanoid-v5")
    assert "Humanoid-v5: a model has to know how its episodes terminate" in Config().misfit(task)
    assert Config(ending="never").misfit(task) is None
    assert Config().misfit(tasks.find("hopper-medium")) is None
