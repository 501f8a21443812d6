"""What learned models know of their own errors: `python -m benchmarks.studies.dynamics [--tasks hopper-medium ...]`.

For each task, the model of common/dynamics.py learns from nine tenths of the episodes of a recipe, with MOPO's
settings, until it stops or for `--model-steps`. On the other episodes, windows of steps are played again: from their
first state, with the actions of the data, `--particles` times, each step drawn from the model anew. Two models are
compared: the ensemble, in which every step of every particle is an elite's, drawn anew, and its best member alone.

Errors are in units of the deviations that the data's observations have, root mean squares over their numbers. Columns,
per horizon: `predicted_error`, the particles' spread about their mean; `true_error`, of that mean from what came;
`calibration`, the first over the second, 1 where a model knows itself; `inside`, the share of numbers that lie in the
central 90 % of the particles; `rank_correlation` of both errors over windows; `penalty_correlation`, of MOPO's
uncertainty, summed over the steps, with the true error (the ensemble alone has one); `baseline_error`, of who says that
nothing changes. Rows go to benchmarks/results/NAME.{csv,json}, by default `dynamics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from algorithms.mopo import MOPO, Config
from benchmarks.reporting.results import file, publish
from common import datasets, recipes, tasks
from common.datasets import Dataset, transforms
from common.dynamics import Dynamics
from common.errors import Refused, exiting
from common.terminal import making

BLOCK = 500
"""Steps of the model in one call."""


@dataclass(frozen=True)
class Study:
    """What is measured."""

    tasks: tuple[str, ...] = ("hopper-medium", "hopper-medium-replay", "halfcheetah-medium", "walker2d-medium")
    """Tasks of the table that have recipes and continuous actions."""
    size: int = 100_000
    """Transitions of each."""
    model_steps: int = 100_000
    """Gradient steps, at most."""
    model_width: int = 200
    """Of the model's four hidden layers."""
    horizons: tuple[int, ...] = (1, 5, 10)
    """Steps from the first state."""
    windows: int = 1000
    """How many are played."""
    particles: int = 100
    """Of each window."""
    seed: int = 0
    """Of everything."""
    name: str = "dynamics"
    """Of the files in benchmarks/results."""


class Windows(NamedTuple):
    """Steps of the data, from their first states on."""

    observation: np.ndarray
    """[n, o]: the first states."""
    action: np.ndarray
    """[steps, n, a]"""
    following: np.ndarray
    """[steps, n, o]: what came."""


def windows_of(data: Dataset, steps: int, count: int, seed: int) -> Windows:
    """So many windows of so many steps, none across an episode's end. Raises Refused if there are none."""
    episode = transforms.episode_of(data)
    starts = np.flatnonzero(episode[: len(episode) - steps + 1] == episode[steps - 1 :])
    if not len(starts):
        raise Refused(f"no episode that is held out has {steps} steps: take more data, or shorter horizons")
    first = np.random.default_rng(seed).choice(starts, count, replace=len(starts) < count)
    rows = first + np.arange(steps)[:, None]
    return Windows(data.observation[first], data.action[rows].astype(np.float32), data.next_observation[rows])


def learnt(study: Study, data: Dataset, task: tasks.Task) -> tuple[Dynamics, int]:
    """The model with its best layers restored, and the steps that it has taken."""
    config = Config(hidden=(8,), model_hidden=(study.model_width,) * 4, rollout_batch=1, retained=1)
    prior = jax.tree.map(jnp.asarray, MOPO.prepare(config, data, task))
    example = jax.tree.map(lambda x: x[0], prior.transitions())
    begin_key, learn_key, end_key = jax.random.split(jax.random.key(study.seed), 3)
    agent = jax.jit(MOPO.create)(config, begin_key, example, prior).enter("model", begin_key, prior)
    learn = jax.jit(MOPO.update_offline, static_argnums=4, donate_argnums=0)
    for first in range(0, study.model_steps, BLOCK):
        numbers = first + 1 + jnp.arange(min(BLOCK, study.model_steps - first))
        keys = jax.vmap(lambda number: jax.random.fold_in(learn_key, number))(numbers)
        agent, metrics = learn(agent, keys, numbers, prior, False)
        if metrics["stopped"][-1]:
            break
    steps = int(agent.dynamics.network.opt_state.count)
    return agent.enter("offline", end_key, prior).dynamics, steps


def played(dynamics: Dynamics, windows: Windows, particles: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where particles are after each step, [steps, particle, n, o], and the mean of MOPO's uncertainty, [steps, n]."""
    start = jnp.broadcast_to(windows.observation, (particles, *windows.observation.shape))

    def step(now: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        action, key = x
        keys = jax.random.split(key, particles)
        found = jax.lax.map(lambda x: dynamics.step(x[0], action, x[1]), (now, keys))
        uncertainty = jnp.linalg.norm(found.deviation, axis=-1).max(axis=1).mean(axis=0)
        return found.next_observation, (found.next_observation, uncertainty)

    keys = jax.random.split(key, windows.action.shape[0])
    return jax.tree.map(np.asarray, jax.jit(lambda: jax.lax.scan(step, start, (windows.action, keys))[1])())


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each of [n]."""
    return np.argsort(np.argsort(values))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's."""
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def measured(
    positions: np.ndarray, uncertainty: np.ndarray | None, windows: Windows, scale: np.ndarray, horizon: int
) -> dict[str, Any]:
    """The columns of one horizon, of particles [steps, particle, n, o] in units of `scale` [o]."""

    def size(x: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(x / scale).mean(axis=-1))

    there, came = positions[horizon - 1].astype(np.float64), windows.following[horizon - 1].astype(np.float64)
    predicted = size(there.std(axis=0))
    true = size(there.mean(axis=0) - came)
    low, high = np.quantile(there, (0.05, 0.95), axis=0)
    whole = (float(np.sqrt(np.square(x).mean())) for x in (predicted, true, size(windows.observation - came)))
    of_predicted, of_true, of_nothing = whole
    summed = None if uncertainty is None else uncertainty[:horizon].sum(axis=0)
    return {
        "horizon": horizon, "predicted_error": f"{of_predicted:.4g}", "true_error": f"{of_true:.4g}",
        "calibration": f"{of_predicted / of_true:.3f}", "inside": f"{((low <= came) & (came <= high)).mean():.3f}",
        "rank_correlation": f"{correlation(predicted, true):.3f}",
        "penalty_correlation": "" if summed is None else f"{correlation(summed, true):.3f}",
        "baseline_error": f"{of_nothing:.4g}",
    }  # fmt: skip


def rows_of(study: Study, name: str, console: Console) -> list[dict[str, Any]]:
    """The rows of one task."""
    task = tasks.find(name)
    with making(console) as progress:
        identifier = recipes.make(name, study.size, progress=progress)
    console.print(f"{name}: a model learns", highlight=False)
    data = datasets.load(task, f"minari:{identifier}")
    training, held_out = transforms.split(data, 0.1, study.seed)
    dynamics, steps = learnt(study, training, task)
    console.print(f"{name}: {study.windows} windows are played, {steps} steps were learnt", highlight=False)
    windows = windows_of(held_out, max(study.horizons), study.windows, study.seed)
    scale = training.observation.std(axis=0).astype(np.float64) + 1e-6
    rows = []
    for model, own in (("ensemble", dynamics), ("best member", dynamics.replace(elites=dynamics.elites[:1]))):
        positions, uncertainty = played(own, windows, study.particles, jax.random.key(study.seed + 1))
        of_all = uncertainty if model == "ensemble" else None
        about = {"task": name, "model": model, "model_steps": steps}
        rows += [about | measured(positions, of_all, windows, scale, horizon) for horizon in study.horizons]
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows, for a terminal."""
    drawn = Table(*rows[0])
    for row in rows:
        drawn.add_row(*map(str, row.values()))
    return drawn


def main(study: Study) -> None:
    """Learn, play, print, write."""
    file(study.name, ".csv")  # refuses a name that cannot be before anything is made
    unknown = [name for name in study.tasks if name not in recipes.names() or tasks.family(name) == "classic"]
    if unknown:
        raise Refused(f"--tasks {unknown[0]}: has no recipe with continuous actions")
    console = Console(width=200)
    rows = [row for name in study.tasks for row in rows_of(study, name, console)]
    console.print(table(rows))
    publish(study.name, rows, "benchmarks.studies.dynamics")


if __name__ == "__main__":
    exiting("dynamics", lambda: main(tyro.cli(Study, description=__doc__)))
