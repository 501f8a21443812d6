"""What a command keeps in memory, and whether it fits: counted, and told, before anything is written."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from common.commandline import Request
from common.errors import Refused
from common.machine import available_memory, in_words
from common.replay import Batch, blank

PROGRAMS = 2**28
"""Bytes, roughly: the programs, networks and simulations of a command. Arrays of fewer bytes are not what fails."""


def check_memory(
    request: Request,
    devices: int,
    observation_size: int,
    action_size: int,
    prior: Any = None,
    agent_class: type | None = None,
) -> str | None:
    """What the replay buffers, prior data and agents of a command take, in a line; None of what is sure to fit.

    `prior` are host arrays, which every device gets. Agents are counted if their class is given. Raises Refused where
    they, beside the programs, exceed the memory there is: of the machine, or of each accelerator.
    """
    runs, steps = request.number_of_runs, dict(request.config.phases).get("online", 0)
    one = blank(observation_size, action_size, request.config.expert is not None)
    row = sum(leaf.nbytes for leaf in jax.tree.leaves(one))
    on_host = jax.default_backend() == "cpu"
    sharing = devices if on_host else 1  # those of a CPU share one memory
    there = sharing * -(-runs // devices)
    buffers = there * steps * row
    known = sharing * sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(prior))
    fields = largest_agent(agent_class, request.config, observation_size, action_size, prior) if agent_class else {}
    # On a CPU, runs follow one another, and those before a call are kept until all are after it.
    copies = 1 + on_host + (on_host and request.run.eval_async)
    agents = copies * there * sum(fields.values())
    if buffers + known + agents < PROGRAMS:
        return None
    several = f"{runs} run{'s' * (runs > 1)}"
    parts = [f"replay buffers of {in_words(buffers)} ({several} x {steps:,} steps x {row:,} bytes)"] if buffers else []
    parts += [f"prior data of {in_words(known)}"] if known > 1e5 else []
    if agents > PROGRAMS:
        most = max(fields, key=fields.get)
        mostly = f", most of it `{most}`" if 2 * fields[most] > sum(fields.values()) else ""
        times = {1: "", 2: "twice ", 3: "three times "}[copies]
        parts += [f"agents of {in_words(agents)} ({several} x {times}{in_words(sum(fields.values()))}{mostly})"]
    free = available_memory() if on_host else _free_on_device()
    told = f"{' and '.join(parts)}, beside about {in_words(PROGRAMS)} for programs"
    fits = free is None or buffers + known + agents + PROGRAMS <= free
    if fits and not (on_host and _lacks_addresses(buffers, known + agents)):
        there = "" if free is None else f"; {in_words(free)} are free"
        return f"memory{'' if on_host else ' of each device'}: {told}{there}"
    short = f"where {in_words(free)} are free" if free is not None else "which the system does not give"
    raise Refused(
        f"too little memory: {told}, {short}; take "
        f"{'fewer online steps, ' * bool(buffers)}{'smaller agents, ' * (agents > PROGRAMS)}fewer runs at once, or a "
        "smaller --devices"
    )


def largest_agent(
    agent_class: type, config: Any, observation_size: int, action_size: int, prior: Any
) -> dict[str, int]:
    """Bytes of the fields of one run's agent, in the phase in which it is largest. Nothing is computed."""
    example = jax.eval_shape(lambda: blank(observation_size, action_size))

    def in_all_phases(config: Any, key: jax.Array, example: Batch, prior: Any) -> list[Any]:
        agents = [agent_class.create(config, key, example, prior)]
        for phase, steps in config.phases:
            if steps:
                agents.append(agents[-1].enter(phase, key, prior))
        return agents

    known = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.tree.map(np.asarray, prior))
    agents = jax.eval_shape(in_all_phases, config, jax.eval_shape(lambda: jax.random.key(0)), example, known)

    def sizes(agent: Any) -> dict[str, int]:
        parts = {
            f.name: getattr(agent, f.name) for f in dataclasses.fields(agent) if f.metadata.get("pytree_node", True)
        }
        return {
            name: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(part))
            for name, part in parts.items()
        }

    return max(map(sizes, agents), key=lambda fields: sum(fields.values()))


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
