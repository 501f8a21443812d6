"""Whether what a command keeps in memory fits, counted before anything is written."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from common.commandline import Request
from common.errors import Refused
from common.machine import available_memory, in_words

PROGRAMS = 2**28
"""Bytes, roughly: the programs, networks and simulations of a command. Arrays of fewer bytes are not what fails."""


def check_memory(request: Request, devices: int, observation_size: int, action_size: int, prior: Any = None) -> None:
    """Refuse a command whose replay buffers and prior data, beside its programs, exceed the memory there is.

    `prior` are host arrays, which every device gets. Raises Refused.
    """
    runs, steps = request.number_of_runs, dict(request.config.phases).get("online", 0)
    row = 4 * (2 * observation_size + action_size + 2)  # float32: two observations, action, reward, mask
    on_host = jax.default_backend() == "cpu"
    sharing = devices if on_host else 1  # those of a CPU share one memory
    buffers = sharing * -(-runs // devices) * steps * row
    known = sharing * sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(prior))
    if buffers + known < PROGRAMS:
        return
    free = available_memory() if on_host else _free_on_device()
    fits = free is None or buffers + known + PROGRAMS <= free
    if fits and not (on_host and _lacks_addresses(buffers, known)):
        return
    each = f"{runs} run{'s' * (runs > 1)} x {steps:,} steps x {row:,} bytes"
    parts = [f"replay buffers of {in_words(buffers)} ({each})"] if buffers else []
    parts += [f"prior data of {in_words(known)}"] if known else []
    short = f"where {in_words(free)} are free" if free is not None else "which the system does not give"
    raise Refused(
        f"too little memory: {' and '.join(parts)}, beside about {in_words(PROGRAMS)} for programs, {short}; take "
        f"{'fewer online steps, ' * bool(buffers)}fewer runs at once, or a smaller --devices"
    )


def _free_on_device() -> int | None:
    """Bytes that may be filled of an accelerator's memory; None where it does not tell."""
    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in statistics:
        return None
    return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)


def _lacks_addresses(buffers: int, known: int) -> bool:
    """Whether a limit on addresses (`ulimit -v`) is too low: buffers take twice as many, first empty, then copied."""
    try:
        _ = np.empty(buffers, np.uint8), np.empty(buffers + known, np.uint8)
    except MemoryError:
        return True
    return False
