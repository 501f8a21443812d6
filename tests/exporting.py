"""Agents of every algorithm file, made without training: random numbers in the shapes that its networks have."""

import dataclasses
import functools

import jax
import numpy as np
from test_agent import MODULES, small

from common import policies, policyfiles, tasks
from common.exported import Exported

OBSERVATION, ACTION = 5, 3
CASES = [
    *((name, {}) for name in MODULES),
    *(("bc", {"policy": kind}) for kind in ("gaussian", "gmm", "categorical", "vae", "flow")),
    ("awr", {"learned_std": True}),
    ("brac", {"phase": "cloning"}),
    ("discrete_bcq", {"threshold": 0.0}),
    ("edac", {"layer_norm": True}),
    ("fisher_brc", {"phase": "cloning"}),
    ("rlpd", {"layer_norm": False}),
    ("td3_bc", {"layer_norm": True}),
]
"""File and values of its Config, or the phase."""
DRAWN = "bcq", "bear", "vae", "flow"
"""Files, and kinds of BC's policy, that draw their actions."""


def name_of(case) -> str:
    return "-".join([case[0], *(str(value) for value in case[1].values())])


def draws(case) -> bool:
    return case[0] in DRAWN or case[1].get("policy") in DRAWN


def agent_for(case, width=(16, 16), sizes=(OBSERVATION, ACTION)):
    """An agent of one run with arrays of NumPy."""
    return _agent(case[0], tuple(case[1].items()), width, sizes)


@functools.cache
def _agent(name, values, width, sizes):
    values = dict(values)
    phase = values.pop("phase", "offline")
    config = small(MODULES[name], hidden=width, actor_hidden=width, vae_hidden=width, cloning_hidden=width, **values)
    saved = {"algorithm": name, "config": dataclasses.asdict(config), "dataset": {}, "commit": None}
    shapes = policies.skeleton(saved, tasks.find("hopper-medium"), *sizes)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        where = jax.tree_util.keystr(path)
        if jax.dtypes.issubdtype(leaf.dtype, np.integer) or leaf.dtype == bool:
            return np.zeros(leaf.shape, leaf.dtype)
        if where.endswith("std"):
            return rng.uniform(0.5, 2, leaf.shape).astype(leaf.dtype)
        scale = leaf.shape[-2] ** -0.5 if len(leaf.shape) > 1 and "kernel" in where else 0.3
        offset = 1 if "'scale'" in where else 0
        return (offset + 1.5 * scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes).replace(config=config, phase=phase)


def faces(observation=OBSERVATION, action=ACTION, first=None, **values) -> dict:
    """The interface of an environment with actions in [-1, 1]."""
    seen = {"size": observation, "keys": None, "sizes": [observation], "origin": None}
    bounds = {"dtype": "float32", "low": [-1.0] * action, "high": [1.0] * action}
    return {"observation": seen | values, "action": {"size": action, "first": first, **bounds}}


def origin(**values) -> dict:
    some = {"algorithm": "rlpd", "task": "Line-v0", "seed": 0, "phase": "online", "step": 5, "evaluation": None}
    return some | values


def content_of(agent, interface=None):
    """What the file of an agent's policy holds."""
    return policyfiles.content(agent.portable(), interface or faces(), origin())


def exported_of(case, kind=Exported, **keywords):
    return kind("memory.npz", content_of(agent_for(case, **keywords)))


def observations(count: int, size=OBSERVATION, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
