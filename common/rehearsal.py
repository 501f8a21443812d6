"""A rehearsal before anything is written: whether an environment can be played as a command will play it.

Environments of the table are known, and are only made. Any other plays a reset and a step. Nothing of it is kept, and
an episode depends on its seed and its actions alone, so that no number changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from typing import NamedTuple

import numpy as np

from common import environments
from common.commandline import Request
from common.environments import Environment
from common.errors import EnvironmentFailed, Refused
from common.tasks import Task


def plays_several(request: Request) -> bool:
    """Whether a command has more than one environment at a time."""
    if request.run.single_environment:
        return False
    collects = dict(request.config.phases).get("online", 0) > 0
    return collects or request.number_of_runs * request.run.eval_episodes > 1


class Rehearsed(NamedTuple):
    """What is known of an environment."""

    observation_size: int
    """Numbers per observation, in the first of the environment's forms."""
    action_size: int
    """Numbers per action."""
    alone: str | None
    """Why there can be only one at a time; None if there can be more, or one is enough."""


def rehearse(task: Task, discrete: bool, several: bool) -> Rehearsed:
    """Make the task's environment, play its beginning, and make another beside it where there will be `several`.

    `discrete` tells the actions of the algorithm. Raises Refused.
    """
    alone = None
    with contextlib.closing(environments.make(task)) as environment:
        check_actions(environment, discrete)
        if task.family == "gym":
            try:
                environment.reset(0)
                environment.step(np.zeros(environment.action_size, np.float32))
            except EnvironmentFailed as error:
                raise Refused(f"{error}{_remedy(environment)}") from error
            if several:
                alone = _why_not_another(task)
        return Rehearsed(environment.observation_size, environment.action_size, alone)


def sharing(request: Request, why: str) -> Request:
    """The request, to be served by the only environment that there can be. Raises Refused where that will not do."""
    shared = dataclasses.replace(request, run=dataclasses.replace(request.run, single_environment=True))
    problem = check_single(shared) or shared.run.problem()
    if problem:
        raise Refused(f"{request.run.env} can exist only once at a time ({why}): {problem}")
    return shared


def check_single(request: Request) -> str | None:
    """Why one environment is not enough for a request that has no other, or None."""
    if not request.run.single_environment or request.number_of_runs == 1:
        return None
    return (
        f"{request.number_of_runs} runs cannot share one environment; start them one after another, each without "
        "--num-seeds and --grid"
    )


def check_actions(environment: Environment, discrete: bool) -> None:
    """Refuse an environment for an algorithm with other actions: `discrete` ones, or vectors."""
    if (environment.numbers is not None) != discrete:
        own, other = ("discrete", "continuous") if discrete else ("continuous", "discrete")
        raise Refused(
            f"{environment.task.name} has actions {environment.raw.action_space}, and this algorithm has {own} ones: "
            f"choose another task, or an algorithm with {other} actions"
        )


def _why_not_another(task: Task) -> str | None:
    try:
        with contextlib.closing(environments.make(task)) as other:
            other.reset(0)
    except (Refused, EnvironmentFailed) as error:
        return str(error)
    return None


def _remedy(environment: Environment) -> str:
    """What to change in an environment that has failed, where it has the interface of gym before 0.26."""
    bare = environment.raw.unwrapped
    parameters = inspect.signature(bare.reset).parameters
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not any_keyword and not {"seed", "options"} <= parameters.keys():
        return "; define reset(self, *, seed=None, options=None)"
    with contextlib.suppress(Exception, SystemExit):  # it has failed already; only what it returns is of interest
        if not isinstance(returned := bare.reset(seed=0), tuple | list) or len(returned) != 2:
            return "; reset must return observation, info"
        action = environment.raw.action_space.sample()
        if not isinstance(returned := bare.step(action), tuple | list) or len(returned) != 5:
            return "; step must return observation, reward, terminated, truncated, info"
    return ""
