"""Functions that make an environment, and their names as tasks."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable

import gymnasium
from gymnasium.wrappers import TimeLimit

ENDING = "()"
"""How the name of such a task ends."""


def name_of(function: Callable) -> str:
    """`module:name()` of what another process can import, else `name()`: of a session's, a lambda, a partial."""
    bare = inspect.unwrap(function)
    bare = bare.func if isinstance(bare, functools.partial) else bare
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
