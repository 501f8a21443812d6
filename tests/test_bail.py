"""algorithms/bail.py against an independent NumPy computation, and its semantics."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ROWS, adam_first_step, head, parameters, random_batch, shaken

from algorithms.bail import BAIL, PRESETS, Config, Prior, Rows
from common import tasks
from common.commandline import parse
from common.datasets import Dataset

KEY, SIZE = jax.random.key(3), 60


def make_prior(rows: int = SIZE) -> Prior:
    batch = random_batch(1, rows)
    return jax.tree.map(jnp.asarray, Prior(**vars(batch), gain=3 + 2 * np.random.default_rng(7).normal(size=rows)))


def make_agent(prior=None, **values) -> BAIL:
    config = Config(**({"hidden": (8, 6), "envelope_hidden": (8, 6), "batch_size": ROWS} | values))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    agent = BAIL.create(config, jax.random.key(0), example, make_prior() if prior is None else prior)
    actor, envelope = shaken(agent.actor, agent.envelope)
    phase = "offline" if agent.config.progressive else "envelope"
    return agent.replace(actor=actor, envelope=envelope, phase=phase)


def minibatch(seed: int, rows: int = ROWS, held_out=None) -> Rows:
    gain = np.random.default_rng(seed).normal(size=rows).astype(np.float32)
    held_out = np.arange(rows) % 3 == 0 if held_out is None else held_out
    return Rows(**vars(random_batch(seed, rows)), gain=gain, held_out=held_out)


def values(params, observation):
    own = jax.tree.map(np.asarray, params)["params"]
    return head(own, observation)[..., 0]


def numpy_penalty(value, gain, k):
    return np.array([(v - g) ** 2 if v >= g else k * (g - v) ** 2 for v, g in zip(value, gain, strict=True)])


def numpy_actor_losses(agent, batch):
    action = np.tanh(head(parameters(agent.actor), batch.observation))
    return ((action - np.asarray(batch.action, np.float64)) ** 2).mean(-1)


def scores(agent, observation, gain, selection):
    value = values(agent.best, observation)
    value = np.where(value < 1, np.exp(value - 1), value)
    return gain / value if selection == "ratio" else gain - value


def test_envelope_loss_equals_numpy():
    agent, batch = make_agent(penalty=50.0, envelope_weight_decay=0.3), minibatch(2)
    value, kept = values(agent.envelope.params, batch.observation), ~np.asarray(batch.held_out)
    losses = numpy_penalty(value, batch.gain, 50.0)
    assert (value >= batch.gain)[kept].any()
    assert (value < batch.gain)[kept].any()
    decay = sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(agent.envelope.params))
    loss, metrics = agent.envelope_loss(agent.envelope.params, batch)
    np.testing.assert_allclose(metrics["envelope_loss"], losses[kept].mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, losses[kept].mean() + 0.5 * 0.3 * decay, rtol=1e-5)


def test_an_envelope_below_the_returns_is_pushed_up_k_times_as_hard():
    agent = make_agent(penalty=50.0, envelope_weight_decay=0.0)
    batch = minibatch(2, held_out=np.zeros(ROWS, bool))
    value = values(agent.envelope.params, batch.observation).astype(np.float32)

    def slope(gap):
        rows = batch.replace(gain=value + np.float32(gap))
        return jax.grad(lambda p: agent.envelope_loss(p, rows)[0])(agent.envelope.params)["params"]["Dense_0"]["bias"]

    np.testing.assert_allclose(slope(0.5), -50 * slope(-0.5), rtol=1e-4)
    assert slope(0.5) < 0


def test_rows_that_are_held_out_teach_the_envelope_nothing():
    agent, batch = make_agent(), minibatch(2)
    elsewhere = batch.replace(gain=np.where(batch.held_out, batch.gain + 5, batch.gain))
    for other, same in ((elsewhere, True), (batch.replace(gain=batch.gain + 5), False)):
        one, two = (agent.update_envelope(x)[0].envelope.opt_state.mu for x in (batch, other))
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True)) == same


def test_a_fifth_is_held_out_and_never_the_best():
    prior = make_prior()
    splits = set()
    for seed in range(20):
        example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
        agent = BAIL.create(Config(hidden=(2,), envelope_hidden=(2,)), jax.random.key(seed), example, prior)
        chosen = np.asarray(agent.validation)
        assert len(set(chosen.tolist())) == SIZE // 5
        assert int(prior.gain.argmax()) not in chosen
        np.testing.assert_array_equal(np.flatnonzero(agent.held_out), np.sort(chosen))
        splits.add(tuple(sorted(chosen.tolist())))
    assert len(splits) == 20


def test_validation_loss_equals_numpy():
    agent, prior = make_agent(penalty=50.0), make_prior()
    rows = np.asarray(agent.validation)
    value = values(agent.envelope.params, np.asarray(prior.observation)[rows])
    after = agent.validate(prior)
    np.testing.assert_allclose(
        after.best_loss, numpy_penalty(value, np.asarray(prior.gain)[rows], 50).mean(), rtol=1e-5
    )


def moved(agent, by, steepness=1.0):
    """The agent whose envelope stands elsewhere: its last bias is a number to tell it by."""
    params = jax.tree.map(lambda x: x, agent.envelope.params)
    last = params["params"]["Dense_0"]
    params["params"]["Dense_0"] = {"kernel": steepness * last["kernel"], "bias": jnp.full(1, by, jnp.float32)}
    return agent.replace(envelope=agent.envelope.replace(params=params))


def bias(params):
    return float(params["params"]["Dense_0"]["bias"][0])


@pytest.mark.parametrize("progressive", [False, True])
def test_the_best_parameters_are_kept_and_really_restored(progressive):
    """The authors' are the living ones: they are never restored."""
    prior = make_prior()
    agent = make_agent(prior, patience=2, **({"envelope_steps": 0} if progressive else {}))
    validate = jax.jit(BAIL.validate)
    losses = {}
    for by in (0.0, 6.0, 12.0, 20.0):
        losses[by] = float(moved(agent, by).replace(best_loss=jnp.float32(jnp.inf)).validate(prior).best_loss)
    order = sorted(losses, key=losses.get)
    best, middle, worst = order[0], order[1], order[-1]
    agent = validate(moved(agent, middle), prior)
    assert (bias(agent.best), int(agent.strikes)) == (middle, 0)
    agent = validate(moved(agent, best), prior)
    assert (bias(agent.best), int(agent.strikes)) == (best, 0)
    agent = validate(moved(agent, worst), prior)
    assert (bias(agent.best), bias(agent.envelope.params), int(agent.strikes)) == (best, worst, 1)
    np.testing.assert_allclose(agent.best_loss, losses[best], rtol=1e-6)
    batch = minibatch(2)
    if progressive:
        agent = validate(moved(agent, worst), prior)
        assert bias(agent.envelope.params) == best
        # It learns on from there.
        assert bias(agent.update_envelope(batch)[0].envelope.params) != best
        return
    assert bias(agent.update_envelope(batch)[0].envelope.params) != worst
    agent = validate(moved(agent, worst), prior)
    assert int(agent.strikes) == 2
    stopped = agent.update_envelope(batch)[0]
    chex.assert_trees_all_equal(stopped.envelope, agent.envelope)
    restored = stopped.enter("offline", KEY, prior)
    assert bias(restored.envelope.params) == best
    own = np.asarray(restored.validation)
    value = values(restored.envelope.params, np.asarray(prior.observation)[own])
    np.testing.assert_allclose(
        numpy_penalty(value, np.asarray(prior.gain)[own], 1000).mean(), restored.best_loss, rtol=1e-5
    )


def test_the_envelope_is_validated_once_more_as_its_phase_ends():
    prior = make_prior()
    agent = make_agent(prior).validate(prior)
    better = min((moved(agent, by) for by in (3.0, 6.0, 9.0)), key=lambda x: float(x.validate(prior).best_loss))
    assert float(better.validate(prior).best_loss) < float(agent.best_loss)
    chex.assert_trees_all_equal(better.enter("offline", KEY, prior).envelope.params, better.envelope.params)


@pytest.mark.parametrize("selection", ["ratio", "difference"])
def test_the_best_share_is_selected_of_all_rows(selection):
    prior = make_prior()
    agent = make_agent(prior, selection=selection, selected=0.21, batch_size=500)
    agent = moved(agent, 2.0, steepness=20.0)  # values on both sides of 1
    agent = agent.enter("offline", KEY, prior)
    value = values(agent.best, prior.observation)
    assert (value < 1).any()
    assert (value > 1).any()
    score = scores(agent, prior.observation, np.asarray(prior.gain, np.float64), selection)
    best = np.argsort(-score)[: int(0.21 * SIZE)]
    drawn = jax.jit(BAIL.sample, static_argnums=2)(agent, KEY, None, prior)
    rows = (np.asarray(drawn.observation)[0][:, None] == np.asarray(prior.observation)).all(-1).argmax(1)
    assert set(rows.tolist()) == set(best.tolist())
    other = {"ratio": "difference", "difference": "ratio"}[selection]
    assert set(best) != set(np.argsort(-scores(agent, prior.observation, prior.gain, other))[: int(0.21 * SIZE)])


@pytest.mark.parametrize("selection", ["ratio", "difference"])
def test_the_progressive_form_selects_within_the_minibatch_by_the_best_envelope(selection):
    agent = make_agent(selection=selection, envelope_steps=0, selected=0.5, learning_rate=1e-2)
    agent = agent.replace(best=moved(agent, 1.0, steepness=40.0).envelope.params)
    batch = minibatch(4, 16)
    score = scores(agent, batch.observation, batch.gain, selection)
    by_the_present_one = scores(agent.replace(best=agent.envelope.params), batch.observation, batch.gain, selection)
    assert set(np.argsort(score)[8:]) != set(np.argsort(by_the_present_one)[8:])
    chosen = score >= np.sort(score)[8]
    assert chosen.sum() == 8
    after, metrics = jax.jit(BAIL.update_once)(agent, batch, KEY, jnp.int32(1))
    np.testing.assert_allclose(metrics["actor_loss"], (chosen * numpy_actor_losses(agent, batch)).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["selected_return"], batch.gain[chosen].mean(), rtol=1e-5)
    slope = jax.grad(lambda p: agent.actor_loss(p, batch, chosen)[0])(agent.actor.params)
    expected = adam_first_step(agent.actor.params, slope, 1e-2)
    chex.assert_trees_all_close(after.actor.params, expected, rtol=2e-3, atol=2e-5)
    slope = jax.grad(lambda p: agent.envelope_loss(p, batch)[0])(agent.envelope.params)
    expected = adam_first_step(agent.envelope.params, slope, 3e-3)
    chex.assert_trees_all_close(after.envelope.params, expected, rtol=2e-3, atol=2e-5)


def test_each_phase_moves_one_network():
    prior = make_prior()
    agent, batch = make_agent(prior), minibatch(2)
    first, metrics = jax.jit(BAIL.update_once)(agent, batch, KEY, jnp.int32(1))
    chex.assert_trees_all_equal(first.actor, agent.actor)
    assert {"envelope_loss", "envelope", "validation_loss"} == set(metrics)
    assert bias(first.envelope.params) != bias(agent.envelope.params)
    later = first.enter("offline", KEY, prior)
    after, metrics = jax.jit(BAIL.update_once)(later, batch, KEY, jnp.int32(1))
    chex.assert_trees_all_equal(after.envelope, later.envelope)
    np.testing.assert_allclose(metrics["actor_loss"], numpy_actor_losses(later, batch).mean(), rtol=1e-5)


def test_it_is_validated_at_the_right_steps():
    prior = make_prior()
    for progressive in (False, True):
        agent = make_agent(prior, validate_every=3, **({"envelope_steps": 0} if progressive else {}))
        marked = agent.replace(best_loss=jnp.float32(0.0))  # no loss is better: each validation is a strike
        strikes = [int(marked.renew(jnp.int32(step), prior).strikes) for step in range(1, 8)]
        assert strikes == [1, 0, 0, 1, 0, 0, 1]
    cloning = make_agent(prior, validate_every=3).enter("offline", KEY, prior)
    chex.assert_trees_all_equal(cloning.renew(jnp.int32(1), prior), cloning)


def data(reward) -> Dataset:
    rows, end = random_batch(1, 40), np.arange(40) % 10 == 9
    return Dataset(
        rows.observation, rows.action, np.asarray(reward, np.float32), end & (np.arange(40) < 20),
        end & (np.arange(40) >= 20), rows.next_observation, np.zeros(40, bool), "npz:test",
    )  # fmt: skip


def test_negative_returns_are_shifted_so_that_the_least_is_zero():
    task, reward = tasks.find("hopper-medium"), np.random.default_rng(0).normal(size=40)
    plain = BAIL.prepare(Config(shift=False), data(reward), task).gain
    assert plain.min() < 0
    np.testing.assert_allclose(BAIL.prepare(Config(), data(reward), task).gain, plain - plain.min(), rtol=1e-6)
    positive = data(np.abs(reward))
    np.testing.assert_array_equal(
        BAIL.prepare(Config(), positive, task).gain, BAIL.prepare(Config(shift=False), positive, task).gain
    )


def test_presets_are_the_authors():
    def config(*arguments):
        return parse(["--env", "hopper-medium", *arguments], "bail", "", Config, PRESETS).config

    c = config()
    assert (c.envelope_learning_rate, c.envelope_weight_decay, c.penalty, c.patience) == (3e-3, 2e-2, 1000.0, 4)
    assert (c.learning_rate, c.hidden, c.envelope_hidden, c.batch_size) == (1e-3, (400, 300), (128, 128), 1000)
    assert (c.selected, c.selection, c.discount, c.validate_every) == (0.25, "ratio", 0.99, 1000)
    assert c.phases == (("envelope", 50_000), ("offline", 200_000), ("online", 0))
    p = config("--preset", "progressive")
    assert p == dataclasses.replace(c, envelope_steps=0, offline_steps=250_000, validate_every=1250)
    assert p.progressive
    assert not c.progressive
    for preset in PRESETS.values():
        fields = {f.name for f in dataclasses.fields(Config)}
        assert Config(**{k: v for k, v in preset.items() if k in fields}).problem() is None
