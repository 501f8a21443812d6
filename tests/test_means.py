"""Means of metrics from row to row, and numbers that are not finite."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from common import tasks
from common.agent import MISSING, mean_of_present
from common.commandline import Run
from common.means import Means, first_not_finite, known
from common.programs import block_size, most_blocks
from common.progress import Progress
from common.reporting import Reporter
from common.runs import RunDirectory


def metrics(runs: int = 3, steps: int = 100) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    every = rng.normal(size=(runs, steps)).astype(np.float32) * np.geomspace(1e-6, 1e6, steps, dtype=np.float32)
    delayed = np.where(np.arange(steps) % 2 == 1, every, np.float32(MISSING))
    return {"critic_loss": every, "actor_loss": delayed, "none": np.full((runs, steps), MISSING, np.float32)}


@pytest.mark.parametrize("cuts", [[], [1], [50], [3, 4, 97], list(range(1, 100))])
def test_means_do_not_depend_on_how_steps_come(cuts):
    """Nor on a checkpoint between them."""
    told, means, whole = metrics(), Means(3), Means(3)
    whole.add(told)
    for start, end in zip([0, *cuts], [*cuts, 100], strict=True):
        state = json.loads(json.dumps(means.state()))
        means = Means(3)
        means.restore(state)
        means.add({name: values[:, start:end] for name, values in told.items()})
    expected, found = whole.take(), means.take()
    for name in told:
        np.testing.assert_array_equal(found[name], expected[name])
    assert (means.take(), means.state()) == ({}, {})


def test_means_are_those_of_what_there_is():
    told, means = metrics(), Means(3)
    means.add(told)
    found = means.take()
    assert all(values.dtype == np.float32 and values.shape == (3,) for values in found.values())
    np.testing.assert_allclose(found["critic_loss"], told["critic_loss"].mean(axis=1, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(found["actor_loss"], told["actor_loss"][:, 1::2].mean(axis=1, dtype=float), rtol=1e-6)
    assert np.isnan(found["none"]).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_mean_of_what_is_not_finite_is_not(wrong):
    told, means = metrics(), Means(3)
    told["critic_loss"][1, 7] = wrong
    means.add(told)
    found = means.take()["critic_loss"]
    assert np.isfinite(found).tolist() == [True, False, True]


def test_the_first_number_that_is_not_finite_is_found():
    told = metrics()
    assert first_not_finite(told) == {}
    told["q"] = told["critic_loss"].copy()
    told["actor_loss"][0, 9] = np.nan
    told["q"][0, 4] = np.inf
    told["q"][2, 5] = told["critic_loss"][2, 5] = np.nan
    assert first_not_finite(told) == {0: (4, "q"), 2: (5, "critic_loss")}


def test_the_mean_on_the_device_leaves_out_what_is_missing_and_nothing_else():
    values = jnp.array([1.0, MISSING, 4.0])
    assert float(mean_of_present(values)) == 2.5
    assert float(mean_of_present(jnp.full(3, MISSING))) == np.float32(MISSING)
    assert np.isnan(mean_of_present(values.at[0].set(jnp.nan)))
    assert np.isinf(mean_of_present(values.at[0].set(jnp.inf)))
    # As it was when NaN marked what is missing, bit for bit.
    many = jax.random.normal(jax.random.key(0), (1000,)).at[::3].set(MISSING)
    before = jnp.nanmean(jnp.where(many == MISSING, jnp.nan, many))
    assert float(mean_of_present(many)) == float(before)


def test_what_a_row_lacks_is_nan():
    found = known({"a": jnp.array([1.0, MISSING]), "b": jnp.array([jnp.inf, 2.0])})
    np.testing.assert_array_equal(found["a"], [1.0, np.nan])
    np.testing.assert_array_equal(found["b"], [np.inf, 2.0])


def test_a_loss_that_is_not_finite_is_told_once_and_kept(tmp_path):
    said = Console(file=io.StringIO(), width=200)
    progress = Progress({"offline": 50}, "offline", 7)
    task = tasks.find("InvertedPendulum-v5")
    reporter = Reporter(RunDirectory(tmp_path, "test"), said, task, Run(), progress, [3, 4], ["", ""])
    for step in (5, 6):
        reporter.not_finite(1, "critic_loss", step)
    assert said.file.getvalue() == "run 1 (seed 4): critic_loss is not finite at offline step 5\n"
    again = Progress(progress.phases)
    again.restore(json.loads(json.dumps(progress.state())))
    assert again.not_finite_at_step == {"1": {"phase": "offline", "step": 5, "metric": "critic_loss"}}


@pytest.mark.parametrize(
    ("steps", "period", "size"),
    [(1000, 1, 8), (1000, 2, 8), (5, 1, 5), (30, 3, 6), (7, 1, 7), (11, 1, 8), (1, 1, 1), (40, 20, 20), (12, 5, 5)],
)
def test_blocks_divide_an_interval_where_they_can(steps, period, size):
    assert block_size(steps, period) == size
    assert 1 <= most_blocks(size) * size <= 2000


def test_a_block_may_be_longer_than_a_call():
    assert most_blocks(3000) == 1
