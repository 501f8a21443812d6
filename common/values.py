"""Values of a Run or of a Config that are given in Python: their kinds, and what a command line would say."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np

from common import commandline, counts
from common.commandline import Request, Run
from common.errors import Refused


def kinds(some_class: type) -> dict[str, Any]:
    """Field of a Run or a Config -> its type."""
    hints = typing.get_type_hints(some_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(some_class)}


def converted(kind: Any, value: Any) -> Any:
    """A value as one of this kind, such as a list as a tuple, 1e6 as a count. Raises ValueError, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else converted(next(part for part in parts if part is not types.NoneType), value)
    if origin is Literal:
        return _expect(value in parts, " or ".join(map(repr, parts)), value)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError("a sequence")
        return tuple(converted(parts[0], each) for each in value)
    if kind is Path:
        return Path(_expect(isinstance(value, str | os.PathLike), "a path", value))
    if kind is bool:
        return bool(_expect(isinstance(value, bool | np.bool_), "True or False", value))
    if kind is int:
        value = counts.like(0, value)
        return int(
            _expect(isinstance(value, numbers.Integral) and not isinstance(value, bool), "a whole number", value)
        )
    if kind is float:
        return float(_expect(isinstance(value, numbers.Real) and not isinstance(value, bool), "a number", value))
    return _expect(not isinstance(kind, type) or isinstance(value, kind), f"a {getattr(kind, '__name__', kind)}", value)


def _expect(holds: bool, what: str, value: Any) -> Any:
    if not holds:
        raise ValueError(what)
    return value


def checked(kinds: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values for fields of these kinds. Raises Refused."""
    found = {}
    for name, value in given.items():
        try:
            found[name] = converted(kinds[name], value)
        except ValueError as error:
            raise Refused(f"{name}={value!r}: must be {error}") from error
    return found


def divided(config_class: type, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of the run, and those of the config. Raises Refused for what neither has."""
    of_run, of_config = kinds(Run), kinds(config_class)
    for name in given:
        if name not in of_run.keys() | of_config.keys():
            near = difflib.get_close_matches(name, (of_run | of_config).keys(), 1)
            hint = f"did you mean {near[0]}?" if near else f"{config_class.__name__} has {', '.join(of_config)}"
            raise Refused(f"{name}: no such value of a run or of {config_class.__name__}; {hint}")
    return (
        checked(of_run, {name: value for name, value in given.items() if name not in of_config}),
        checked(of_config, {name: value for name, value in given.items() if name in of_config}),
    )


def grid(config_class: type, given: Mapping[str, Iterable[float]], beside: Iterable[str]) -> dict[str, tuple]:
    """A grid, field -> values; no value of it may stand `beside` it. Raises Refused."""
    found = {}
    for name, points in given.items():
        if name not in commandline.traced_fields(config_class):
            raise Refused(commandline.no_axis(f"grid[{name!r}]", name, config_class))
        if name in beside:
            raise Refused(f"{name} beside grid[{name!r}]: the grid's values would replace it; leave one of them out")
        found |= checked({name: tuple[float, ...]}, {name: points})
        if not found[name]:
            raise Refused(f"grid[{name!r}]: has no values; name some, as in (0.99, 0.995)")
    return found


def arguments(request: Request, named: Iterable[str]) -> list[str]:
    """The command line that asks for the same, with these values of the Run and the Config named in it."""
    words = []
    for name in named:
        value = getattr(request.run if hasattr(request.run, name) else request.config, name)
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(f"{flag}={value}")
    for name, points in request.grid.items():
        words += [f"--grid.{name.replace('_', '-')}", *map(repr, points)]
    return words
