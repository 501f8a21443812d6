"""Agents of every algorithm file, made without training: random numbers in the shapes that its networks have."""

import functools

import numpy as np

from benchmarks.studies import policies
from common import policyfiles
from common.exported import Exported

OBSERVATION, ACTION = 5, 3
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
    return policies.agent_for(name, dict(values), width, sizes)


def faces(observation=OBSERVATION, action=ACTION, first=None, **values) -> dict:
    """The interface of an environment with actions in [-1, 1]."""
    interface = policies.interface(observation, action, first)
    return interface | {"observation": interface["observation"] | values}


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
