"""Our jitted updates against the eager ones that the other checks run, for every file: one program, one meaning."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import algorithms
from benchmarks.studies.parity import harness as h
from common import tasks
from common.agent import Agent
from common.datasets import Dataset
from common.networks import Network

SMALL = {"hidden": (32, 32), "actor_hidden": (32, 32), "batch_size": 16, "ensemble": 4, "utd": 4}
ROWS, UPDATES = 400, 3


def data() -> Dataset:
    """Random transitions of hopper's size, in episodes of twenty."""
    rng, end = np.random.default_rng(0), np.arange(ROWS) % 20 == 19
    observation, following = (rng.standard_normal((ROWS, h.OBSERVATION)).astype(np.float32) for _ in range(2))
    action = rng.uniform(-0.95, 0.95, (ROWS, h.ACTION)).astype(np.float32)
    reward, cut = rng.standard_normal(ROWS).astype(np.float32), np.arange(ROWS) < ROWS // 2
    return Dataset(observation, action, reward, end & ~cut, end & cut, following, np.zeros(ROWS, bool), "npz:random")


def real(tree: Any) -> Any:
    """Floating leaves in the precision of the check."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, h.REAL) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree
    )


def check(name: str) -> None:
    """An algorithm's file with the defaults of its small self, as its offline phase begins."""
    module = importlib.import_module(f"algorithms.{name}")
    own = (c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__)
    kind = next(c for c in own if issubclass(c, Agent))
    fields = {field.name for field in dataclasses.fields(module.Config)}
    config = module.Config(**{k: v for k, v in SMALL.items() if k in fields})
    prior = real(jax.tree.map(jnp.asarray, kind.prepare(config, data(), tasks.find("hopper-medium"))))
    agent = real(kind.create(config, jax.random.key(0), h.example(), prior)).enter("offline", jax.random.key(1), prior)
    parts = [part for part, value in vars(agent).items() if isinstance(value, Network)]
    start = {part: getattr(agent, part).params for part in parts}
    batches = [agent.sample(jax.random.key(number), None, prior) for number in range(UPDATES)]
    with jax.disable_jit():
        eager, losses = h.followed(agent, batches, parts)
    with h.mock.patch.object(kind, "update", jax.jit(kind.update)):
        compiled, metrics = h.followed(agent, batches, parts)
    table = h.Table(name)
    for key, value in losses[0].items():
        if np.isfinite(value):
            table.scalar(key, metrics[0][key], value)
    table.changes(compiled, eager, start, at=(1, UPDATES))


def main() -> None:
    """All files."""
    for path in sorted(Path(algorithms.__file__).parent.glob("*.py")):
        if path.stem != "__init__":
            check(path.stem)


if __name__ == "__main__":
    main()
