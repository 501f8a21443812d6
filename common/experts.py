"""Experts: who can be asked, at every step of an episode, what to do there.

A task's own expert is what its recipe makes data with, without noise: a planner in PointMaze, an ant's controller along
waypoints in AntMaze, the last stage of our own SAC in locomotion, our own DQN in classic control. Any other is a policy
that was trained: a folder of a run, or a policy file. They act by the observation alone; only AntMaze's also knows the
goal of the episode, which is drawn and not observed. So one that is asked again answers the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import policies
from common.environments import Environment
from common.errors import Refused
from common.exported import Exported, Unusable
from common.recipes import antmaze, behaviour, locomotion, pointmaze
from common.tasks import Task

Adviser = Callable[[Environment, np.ndarray], np.ndarray]
"""Of an environment and the observation [o] of its present episode, float32 [a] in [-1, 1], or one-hot."""


class Expert(NamedTuple):
    """Who is asked."""

    name: str
    """In words."""
    digest: str | None
    """sha256 of a policy's weights; None of a task's own expert, which is part of this code."""
    make: Callable[[], Adviser]
    """One for each environment."""


def find(asked: str, task: Task, environment: Environment) -> Expert:
    """The expert that is `asked` for: "" is the task's own, else a folder of a trained run, or a policy file.

    `environment` is one of the task's. Raises Refused where there is none, or if it does not fit.
    """
    if asked:
        return _trained(asked, task, environment)
    if task.family in _OWN and not (task.family == "antmaze" and environment.goal is None):
        name, make = _OWN[task.family]
        return Expert(name, None, lambda: make(task))
    raise Refused(
        f"--env {task.name} has no expert of its own: name one with --expert, a folder of a trained run or a policy "
        "file (RUN/policies/0.npz)"
    )


def _body(task: Task) -> Adviser:
    policy = behaviour.load(task.name.split("-")[0])[locomotion.EXPERT]
    return lambda environment, observation: policy.mode(observation)


def _classic(task: Task) -> Adviser:
    policy = behaviour.load_greedy(task.name.split("-")[0])
    return lambda environment, observation: np.eye(environment.action_size, dtype=np.float32)[policy(observation)]


_OWN: dict[str, tuple[str, Callable[[Task], Adviser]]] = {
    "pointmaze": ("the recipe's planner", lambda task: pointmaze.Planner()),
    "antmaze": ("the recipe's controller along waypoints", lambda task: antmaze.Guide()),
    "locomotion": ("the recipe's policy, at the end of its training", _body),
    "classic": ("the recipe's DQN", _classic),
}
"""Family -> what its recipe makes data with."""


def _trained(asked: str, task: Task, environment: Environment) -> Expert:
    """A policy that was trained."""
    policy = policies.load(asked)
    # In NumPy: one observation at a time, and the same numbers whatever runs beside it.
    policy = Exported(policy.path, (policy.about, policy.arrays))
    if policy.remembers:
        raise Refused(f"--expert {asked}: its policy remembers its episode, and cannot be asked at any state of others")
    if forms := policies.misfit(policy, environment):
        raise Refused(f"--expert {asked}: it sees {forms[0]}, {task.name} has {forms[1]}; name one of this task")
    digest = hashlib.sha256()
    for name in sorted(policy.arrays):
        digest.update(name.encode() + np.ascontiguousarray(policy.arrays[name]).tobytes())

    def advise(environment: Environment, observation: np.ndarray) -> np.ndarray:
        try:
            return policy.act(observation[None])[0].astype(np.float32)
        except Unusable as error:
            raise Refused(f"--expert {asked}: {error}") from error

    where = policy.about["provenance"]
    name = f"{where['algorithm']} on {where['task']}, seed {where['seed']}, {Path(asked)}"
    return Expert(name, digest.hexdigest(), lambda: advise)
