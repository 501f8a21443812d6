"""What all algorithm files have from common/agent.py, over all of them at once."""

import dataclasses
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ACTION, OBSERVATION, random_batch
from served import agent_of

import algorithms
from common import agent as base
from common.agent import Agent, Hyperparameters, contains, interval_of, static, traced
from common.datasets import Dataset
from common.replay import Batch, Episode, Replay

MODULES = {
    path.stem: importlib.import_module(f"algorithms.{path.stem}")
    for path in sorted(Path(algorithms.__file__).parent.glob("*.py"))
    if path.stem != "__init__"
}


def some(*shown: str, of: Iterable[str] = MODULES) -> list:
    """Algorithms as parameters: these, and the others where pytest is asked for `--every`."""
    return [pytest.param(name, marks=() if name in shown else pytest.mark.every) for name in of]


SMALL = {
    "hidden": (8,), "actor_hidden": (8,), "vae_hidden": (8,), "batch_size": 6, "ensemble": 3, "utd": 4,
    "model_hidden": (8,), "model_weight_decay": (1e-5, 1e-4), "model_batch_size": 6, "rollout_batch": 7,
    "embedding": 8, "context": 4, "layers": 1,
}  # fmt: skip


def small(module, **values):
    names = {f.name for f in dataclasses.fields(module.Config)}
    return module.Config(**{k: v for k, v in (SMALL | values).items() if k in names})


def data(rows: int = 40) -> Dataset:
    batch, end = random_batch(1, rows), np.arange(rows) % 10 == 9
    return Dataset(
        batch.observation, batch.action, batch.reward, end & (np.arange(rows) < 20), end & (np.arange(rows) >= 20),
        batch.next_observation, np.zeros(rows, bool), "npz:test",
    )  # fmt: skip


def fresh(module, **values) -> tuple[Agent, Batch]:
    """A small agent as its offline phase begins, and its prior data."""
    from common import tasks

    kind, config = agent_of(module), small(module, **values)
    prior = jax.tree.map(jnp.asarray, kind.prepare(config, data(), tasks.find("hopper-medium")))
    example = jax.tree.map(lambda x: x[0], random_batch(0, 1))
    return kind.create(config, jax.random.key(0), example, prior).enter("offline", jax.random.key(1), prior), prior


@pytest.mark.parametrize("name", MODULES)
def test_every_hyperparameter_has_a_word_of_help(name):
    lines = inspect.getsource(MODULES[name].Config).splitlines()
    for field in dataclasses.fields(MODULES[name].Config):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
        assert "  # " in lines[at] or lines[at + 1].startswith('    """'), field.name


@pytest.mark.parametrize("name", MODULES)
def test_floats_are_numbers_of_a_grid_and_all_else_is_fixed(name):
    config = MODULES[name].Config()
    for field in dataclasses.fields(config):
        is_traced = field.metadata.get("pytree_node", True)
        assert is_traced <= isinstance(getattr(config, field.name), float), field.name
    assert len(jax.tree.leaves(config)) == sum(f.metadata.get("pytree_node", True) for f in dataclasses.fields(config))


def beside(interval: str, is_float: bool) -> list[float]:
    """Numbers just outside an interval."""
    low, high = map(float, interval[1:-1].split(","))
    step = 1e-6 if is_float else 1
    numbers = [low if interval[0] == "(" else low - step, high if interval[-1] == ")" else high + step]
    return [x for x in numbers if np.isfinite(x)] + ([float("nan"), float("inf"), -float("inf")] if is_float else [])


@pytest.mark.parametrize("name", MODULES)
def test_every_value_beside_its_interval_is_refused_by_name(name):
    config, refused = MODULES[name].Config(), 0
    assert config.problem() is None
    for field in dataclasses.fields(config):
        if (interval := interval_of(field)) is None:
            continue
        value = getattr(config, field.name)
        one = value[0] if isinstance(value, tuple) else value
        for number in beside(interval, isinstance(one, float)):
            wrong = (*value[:-1], number) if isinstance(value, tuple) else number
            told = dataclasses.replace(config, **{field.name: wrong}).problem()
            assert told is not None, (field.name, number)
            assert told.startswith(f"--{field.name.replace('_', '-')} must "), told
            assert str(number) in told
            refused += 1
    assert refused > 10


def test_intervals_by_hand():
    assert [contains("[0, 1)", x) for x in (-1e-9, 0, 0.5, 1, float("nan"))] == [False, True, True, False, False]
    assert [contains("(0, 1]", x) for x in (0, 1e-9, 1, 1 + 1e-9)] == [False, True, True, False]
    assert [contains("(-inf, inf)", x) for x in (-1e30, float("inf"), float("nan"))] == [True, False, False]
    assert not contains("[0, inf)", float("inf"))

    class Own(Hyperparameters):
        critic_learning_rate: float = 1e-3
        share: float = traced(0.5, "[0, 1]")
        rate: float = static(0.0, "[0, 1)")
        gain: float = -2.0
        members: int = 3
        later: int = 0
        kind: str = "one"
        offline_steps: int = static(5, "[0, inf)")

    found = {f.name: interval_of(f) for f in dataclasses.fields(Own)}
    assert found == {
        "critic_learning_rate": "(0, inf)", "share": "[0, 1]", "rate": "[0, 1)", "gain": "(-inf, inf)",
        "members": "[1, inf)", "later": "[0, inf)", "kind": None, "offline_steps": "[0, inf)",
    }  # fmt: skip
    assert jax.tree.leaves(Own()) == [1e-3, 0.5, -2.0]
    assert Own(gain=float("nan")).problem() == "--gain must be finite, not nan"
    assert Own(members=0).problem() == "--members must be at least 1, not 0"
    assert Own(share=2.0).problem() == "--share must lie in [0, 1], not 2.0"
    assert Own(offline_steps=0).problem() == "there is no step to learn at: raise one of --offline-steps"
    assert (Own().phases, Own().uses_prior_data, Own().random_steps) == ((("offline", 5), ("online", 0)), True, 0)


@pytest.mark.parametrize(
    "name",
    some("bear", "combo", "edac", of=[
        name for name in MODULES if agent_of(MODULES[name]).update is Agent.update
    ]),
)  # fmt: skip
def test_an_update_of_one_minibatch_is_the_algorithm_box(name):
    agent, prior = fresh(MODULES[name], policy_delay=1)
    batches = agent.sample(jax.random.key(2), None, prior)
    key = jax.random.key(3)
    updated, metrics = jax.jit(agent_of(MODULES[name]).update)(agent, batches, key, jnp.int32(7))
    (own_key,) = jax.random.split(key, 1)
    batch = jax.tree.map(lambda x: x[0], batches)
    by_hand, expected = jax.jit(agent_of(MODULES[name]).update_once)(agent, batch, own_key, jnp.int32(7))
    if agent.period:
        by_hand, more = jax.jit(agent_of(MODULES[name]).update_delayed)(by_hand, batch)
        expected |= more
    chex.assert_trees_all_close((updated, metrics), (by_hand, expected), rtol=1e-4, atol=1e-5)


def test_steps_may_have_no_metrics():
    agent, metrics = base.scan(lambda total, x: (total + x, {}), jnp.zeros(()), jnp.arange(3.0))
    assert (float(agent), metrics) == (3.0, {})


DELAYED = [name for name in MODULES if hasattr(MODULES[name].Config(), "policy_delay")]


@pytest.mark.parametrize("name", DELAYED)
def test_groups_of_steps_give_the_numbers_of_single_ones(name):
    agent, prior = fresh(MODULES[name], policy_delay=3)
    keys, steps = jax.random.split(jax.random.key(4), 6), 1 + jnp.arange(6)
    learn = jax.jit(type(agent).update_offline, static_argnums=4)
    for one, other in zip(learn(agent, keys, steps, prior, True), learn(agent, keys, steps, prior, False), strict=True):
        chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-6)
    after, metrics = learn(agent, keys, steps, prior, True)
    assert (int(after.critic.opt_state.count), int(after.actor.opt_state.count)) == (6, 2)
    # MISSING, where a step has no such number, is finite.
    assert all(np.isfinite(x).all() and x.shape == (6,) for x in metrics.values())
    assert (metrics["actor_loss"] == base.MISSING).tolist() == [True, True, False] * 2


@pytest.mark.parametrize("name", ["td3_bc", "rlpd"])
def test_what_is_written_for_accelerators_gives_the_same_numbers(name, monkeypatch):
    agent, prior = fresh(MODULES[name], policy_delay=3)
    keys, steps = jax.random.split(jax.random.key(4), 6), 1 + jnp.arange(6)

    def learnt():
        return jax.jit(lambda *x: type(agent).update_offline(*x, grouped=name == "td3_bc"))(agent, keys, steps, prior)

    expected = learnt()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    chex.assert_trees_all_close(learnt(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", DELAYED)
@pytest.mark.parametrize(("utd", "conditionals"), [(4, 0), (3, 1)])
def test_groups_of_steps_hold_no_conditional(name, utd, conditionals):
    """An accelerator waits for the host at each."""
    agent, prior = fresh(MODULES[name], policy_delay=2)
    batches = jax.tree.map(lambda x: jnp.stack([x[:5]] * utd), prior)
    program = jax.make_jaxpr(type(agent).update)(agent, batches, jax.random.key(0), jnp.int32(1))
    assert str(program).count(" cond[") == conditionals
    keys = jax.random.split(jax.random.key(4), 2 * utd)
    offline = jax.make_jaxpr(type(agent).update_offline, static_argnums=4)
    assert " cond[" not in str(offline(agent, keys, 1 + jnp.arange(2 * utd), prior, True))


def test_minibatches_online_are_of_data_and_experience_together():
    module = MODULES["iql"]
    agent, prior = fresh(module)
    experience = Replay.create(jax.tree.map(lambda x: x[0], random_batch(0, 1)), 5)
    drawn = agent.sample(jax.random.key(0), experience, prior)
    assert drawn.observation.shape == (4, 6, OBSERVATION)
    assert drawn.action.shape == (4, 6, ACTION)
    assert type(drawn) is Batch


@pytest.mark.parametrize("name", MODULES)
def test_a_phase_is_entered_and_nothing_else_is_changed(name):
    agent, prior = fresh(MODULES[name])
    other = agent.enter("other", jax.random.key(0), prior)
    assert other.phase == "other"
    chex.assert_trees_all_equal(other.replace(phase=agent.phase), agent)
    over = Episode(jnp.bool_(False), jnp.float32(0), jnp.int32(1))
    experience = Replay.create(jax.tree.map(lambda x: x[0], random_batch(0, 1)), 5)
    chex.assert_trees_all_equal(agent.after_episode(over, experience), agent)


@pytest.mark.parametrize("name", MODULES)
def test_a_wrong_axis_is_refused_and_not_broadcast(name):
    """Rewards [n, 1] beside values [n] would give a loss over [n, n]."""
    agent, prior = fresh(MODULES[name])
    batches = agent.sample(jax.random.key(2), None, prior)
    wrong = batches.replace(reward=batches.reward[..., None], mask=batches.mask[..., None])
    with pytest.raises((AssertionError, TypeError, ValueError)):
        agent.update(wrong, jax.random.key(3), jnp.int32(1))


def test_a_loss_divided_by_its_size_has_the_gradient_of_its_logarithm():
    for x in (3.0, -0.2):
        np.testing.assert_allclose(base.scaled(jnp.float32(x)), np.sign(x))
        np.testing.assert_allclose(jax.grad(base.scaled)(x), 1 / abs(x), rtol=1e-6)
