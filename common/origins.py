"""Where an algorithm's class comes from: a file, or a Python session, such as a notebook's."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import sys
from pathlib import Path
from typing import Any, NamedTuple

from common.agent import Agent
from common.runs import digests


class Origin(NamedTuple):
    """Of an agent's class."""

    name: str
    """The file's, without .py; of a class of a session the class's own."""
    class_name: str
    digests: dict[str, str]
    """sha256 of what its numbers depend on: its file, or its source and the file of what it extends; common/."""
    session: dict[str, Any] | None
    """Of a class of a session: the class, the file of what it extends, and its source, where Python has kept it; None
    where the class has a file."""


def of(agent_class: type) -> Origin:
    """The origin of an agent's class."""
    name, file = agent_class.__name__, file_of(agent_class)
    if file is not None:
        return Origin(file.stem, name, digests(file), None)
    base = next((path for parent in agent_class.__mro__ if parent is not Agent and (path := file_of(parent))), None)
    source = source_of(agent_class)
    found = digests(base)
    if source is not None:
        found[name] = hashlib.sha256(source.encode()).hexdigest()
    return Origin(name, name, found, {"class": name, "extends": base and base.name, "source": source})


def file_of(some_class: type) -> Path | None:
    """The file that a class can be had from again; None of a class of a session, or of a function's."""
    if "<locals>" in some_class.__qualname__:
        return None
    try:
        return Path(inspect.getfile(some_class)).resolve()
    except (OSError, TypeError):
        return None


def source_of(some_class: type) -> str | None:
    """The source of a class, also of one in a cell of a notebook, by its methods; None where it is not kept."""
    for method in vars(some_class).values():
        if not inspect.isfunction(method) or method.__module__ != some_class.__module__:
            continue
        text = "".join(linecache.getlines(method.__code__.co_filename, vars(sys.modules[method.__module__])))
        for node in ast.walk(ast.parse(text)):
            inside = isinstance(node, ast.ClassDef) and node.name == some_class.__name__
            if inside and node.lineno <= method.__code__.co_firstlineno <= node.end_lineno:
                return inspect.cleandoc("\n" + ast.get_source_segment(text, node, padded=True))
    return None
