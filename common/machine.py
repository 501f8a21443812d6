"""The machine a program runs on, for modules that must not import JAX."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence


def cores() -> int:
    """Processor cores this process may use: those it is bound to, and no more than HEADSTART_CORES, if that is set."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("HEADSTART_CORES", "")
    return max(1, min(there, int(share))) if share.isdigit() else there


def tied(command: Sequence[str]) -> list[str]:
    """The command such that it does not outlive the thread that starts it, where util-linux is at hand."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else list(command)
