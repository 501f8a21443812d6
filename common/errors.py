"""The exceptions that a command line shows without a traceback, and how they and others are shown."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from common import output


class Refused(Exception):
    """A request that cannot be served: one line that names the thing and what would work (exit status 2)."""


class EnvironmentFailed(Exception):
    """An environment raised, or returned what is not finite: one line with its name, what it did, and the episode's
    step (exit status 2)."""


def one_line(error: BaseException) -> str:
    """An exception as part of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def placed(error: BaseException) -> str:
    """An exception of somebody else's code as part of one line: its type, its text, and where it was raised."""
    text = " ".join(str(error).split())[:200]
    passed_by = str(Path(__file__).parent), importlib.__file__, "<frozen"
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno}" for frame in frames if not frame.filename.startswith(passed_by)]
    return type(error).__name__ + (f": {text}" if text else "") + (f" ({places[-1]})" if places else "")


def exiting(name: str, command: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its status, None being success; `name` stands before a refusal's line.

    Nothing that the command says can make it fail, wherever its output goes.
    """
    output.guard()
    try:
        status = command()
    except (Refused, EnvironmentFailed) as refusal:
        print(f"{name}: {refusal}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    sys.exit(status)
