"""The one exception that the command line shows without a traceback, and how it and others are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class Refused(Exception):
    """A request that cannot be served: one line that names the thing and what would work (exit status 2)."""


def one_line(error: BaseException) -> str:
    """An exception as part of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def exiting(name: str, command: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its status, None being success; `name` stands before a refusal's line."""
    try:
        status = command()
    except Refused as refusal:
        print(f"{name}: {refusal}", file=sys.stderr)
        status = 2
    sys.exit(status)
