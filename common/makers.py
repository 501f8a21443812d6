"""Functions that make an environment: their names as tasks, and their way into processes that play."""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable

import cloudpickle
import gymnasium
from gymnasium.wrappers import TimeLimit

from common.errors import one_line

ENDING = "()"
"""How the name of such a task ends."""


class Maker:
    """A function that makes an environment; pickled, it takes along what only this process knows."""

    def __init__(self, function: Callable[[], gymnasium.Env]):
        self.function = function

    def __call__(self) -> gymnasium.Env:
        """A fresh environment."""
        return self.function()

    def __reduce__(self) -> tuple:
        try:
            return _unpacked, (cloudpickle.dumps(self.function),)
        except Exception as error:  # whatever the objects that a function refers to raise
            raise pickle.PicklingError(
                f"{name_of(self.function)} cannot be sent to a process that plays episodes ({one_line(error)})"
            ) from error


def _unpacked(function: bytes) -> Maker:
    return Maker(pickle.loads(function))


def name_of(function: Callable) -> str:
    """`module:name()` of what another process can import, else `name()`: of a session's, a lambda, a partial."""
    bare = function.func if isinstance(function, functools.partial) else function
    name = getattr(bare, "__qualname__", type(bare).__name__).rpartition(".")[2].strip("<>")
    module = getattr(bare, "__module__", "__main__")
    found = getattr(sys.modules.get(module), name, None)
    return f"{module}:{name}{ENDING}" if module != "__main__" and found is function else f"{name}{ENDING}"


def time_limit(environment: gymnasium.Env) -> int | None:
    """Steps after which an environment's episodes are cut; None where nothing says so."""
    limits = [environment.spec.max_episode_steps] if environment.spec is not None else []
    while isinstance(environment, gymnasium.Wrapper):
        if isinstance(environment, TimeLimit):
            limits.append(environment._max_episode_steps)
        environment = environment.env
    return min((limit for limit in limits if limit is not None), default=None)
