"""How exactly exported policies act as their agents do: `python -m benchmarks.studies.policies`.

For every algorithm file, and every kind of policy that it has, an agent of random weights with networks of two layers
of 256, and 10,000 observations of 29 numbers. Compared with its own `act`, compiled by JAX, are exported.py with NumPy
and the graph with onnxruntime: the largest difference of an action in [-1, 1]. Where a policy chooses, among drawn
actions, components, bins or discrete actions, two may be as good up to rounding: rows in which another one was chosen
are counted, and left out of the difference. Policies that draw have no graph, nor have those that remember their
episode, of which the first action is compared. Rows go to
benchmarks/results/policies.{csv,json}.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import algorithms
from benchmarks.reporting.results import publish
from common import export, policies, policyfiles, tasks
from common.agent import Agent
from common.errors import Refused, exiting
from common.exported import Exported

FILES = sorted(path.stem for path in Path(algorithms.__file__).parent.glob("*.py") if path.stem != "__init__")
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FILES),
    *(("bc", {"policy": kind}) for kind in ("gaussian", "gmm", "categorical", "vae", "flow")),
    ("awr", {"learned_std": True}),
    ("brac", {"phase": "cloning"}),
    ("discrete_bcq", {"threshold": 0.0}),
    ("edac", {"layer_norm": True}),
    ("fisher_brc", {"phase": "cloning"}),
    ("td3_bc", {"layer_norm": True}),
]
"""File, and values of its Config or the phase: every kind of policy that there is."""
CHOOSING = "best", "mixture", "categorical", "greedy"
"""Kinds of exported.py that choose."""
OTHER = 1e-3
"""From this difference on, it is another choice."""
CHUNK = 100
"""Observations at once: a choice among a hundred actions takes as many times the memory."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared."""

    observations: int = 10_000
    """How many."""
    width: int = 256
    """Of the two hidden layers."""
    seed: int = 0
    """Of weights and observations."""


def agent_for(
    name: str, values: Mapping[str, Any], hidden: tuple[int, ...], sizes: tuple[int, int], seed: int = 0
) -> Agent:
    """An agent of an algorithm file that has learnt nothing, its weights random, for observations and actions of these
    sizes; arrays of NumPy."""
    module = importlib.import_module(f"algorithms.{name}")
    known = {field.name: field.default for field in dataclasses.fields(module.Config)}
    widths = {field: hidden for field in known if field.endswith("hidden")}
    config = module.Config(**widths | {field: value for field, value in values.items() if field in known})
    saved = {"algorithm": name, "config": dataclasses.asdict(config), "dataset": {}, "commit": None}
    shapes = policies.skeleton(saved, tasks.find("hopper-medium"), *sizes)
    rng = np.random.default_rng(seed)

    def weights(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        where = jax.tree_util.keystr(path)
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        if where.endswith("std"):
            return rng.uniform(0.5, 2, leaf.shape).astype(leaf.dtype)
        scale = 1.5 * leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 and "kernel" in where else 0.45
        return (("'scale'" in where) + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    agent = jax.tree_util.tree_map_with_path(weights, shapes)
    return agent.replace(config=config, phase=values.get("phase", "offline"))


def interface(observation: int, action: int, first: int | None = None) -> dict[str, Any]:
    """That of an environment with vectors to see, and actions in [-1, 1] or discrete ones counted from `first`."""
    seen = {"size": observation, "keys": None, "sizes": [observation], "origin": None}
    bounds = {"dtype": "float32", "low": [-1.0] * action, "high": [1.0] * action}
    return {"observation": seen, "action": {"size": action, "first": first, **bounds}}


def exported_of(agent: Agent, sizes: tuple[int, int], is_discrete: bool = False) -> Exported:
    """An agent's policy, as its file would hold it."""
    faces = interface(*sizes, first=0 if is_discrete else None)
    origin = {"algorithm": type(agent).__name__, "task": None, "seed": 0, "phase": "offline", "step": 0}
    return Exported("an agent", policyfiles.content(agent.portable(), faces, origin | {"evaluation": None}))


def difference(found: np.ndarray, expected: np.ndarray, chooses: bool) -> tuple[float, int]:
    """The largest, of actions [n, a], and in how many rows another was chosen."""
    distance = np.abs(found - expected).max(axis=-1)
    other = distance > OTHER if chooses else np.zeros(len(distance), bool)
    return float(distance[~other].max()), int(other.sum())


def compare(study: Study, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A row about one policy."""
    import onnxruntime

    sizes = 29, 8
    agent = agent_for(name, values, (study.width, study.width), sizes, study.seed)
    policy = exported_of(agent, sizes, agent.config.discrete_actions)
    kind = policy.architecture["kind"]
    rows = np.random.default_rng(study.seed + 1).normal(size=(study.observations, sizes[0])).astype(np.float32)
    chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
    compiled, chooses = jax.jit(type(agent).act), kind in CHOOSING
    expected = np.concatenate([np.asarray(compiled(agent, chunk)) for chunk in chunks])
    acted = []
    for chunk in chunks:
        policy.reset()
        acted.append(policy.act(chunk))
    found = np.concatenate(acted)
    numpy, numpy_other = difference(found, expected, chooses)
    row = {
        "file": f"{name}.py", "policy": " ".join(f"{key}={value}" for key, value in values.items()), "kind": kind,
        "observations": len(rows), "numpy": f"{numpy:.1e}", "numpy_other_choices": numpy_other,
    }  # fmt: skip
    try:
        session = onnxruntime.InferenceSession(export.graph(policy).SerializeToString())
    except Refused:
        return row | {"onnx": "remembers" if policy.remembers else "draws", "onnx_other_choices": ""}
    found = np.concatenate([session.run(None, {"observation": chunk})[0] for chunk in chunks])
    found = np.eye(sizes[1], dtype=np.float32)[found] if agent.config.discrete_actions else found
    onnx, onnx_other = difference(found, expected, chooses)
    return row | {"onnx": f"{onnx:.1e}", "onnx_other_choices": onnx_other}


def main(study: Study) -> None:
    """Compare, print, write."""
    rows = [compare(study, name, values) for name, values in CASES]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    publish("policies", rows, "benchmarks.studies.policies")


if __name__ == "__main__":
    exiting("policies", lambda: main(tyro.cli(Study, description=__doc__)))
