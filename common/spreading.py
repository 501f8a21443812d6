"""How the programs of a command are computed for all its runs: how many at once, on which devices, how precisely."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from common.errors import Refused
from common.layers import Precision, activations

STATIC = ("phase", "block", "grouped")
"""Parameters of a program that are fixed when it is compiled."""
SAME = ("step", "first", "blocks", "most", "prior")
"""Parameters of a program that are the same for all runs; all others have the runs as their leading axis."""


def isolated(function: Callable, backend: str) -> Callable:
    """`function`, rounding the same whatever it is computed beside, and however many times: a program of its own.

    The compiler would else fuse it with what surrounds it, and a loop of one pass would be no loop to it.
    """
    if backend != "cpu":
        return lambda *inputs: jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(inputs)))

    @jax.jit
    def program(*inputs: Any) -> Any:
        with set_xla_metadata(inlineable=None):  # its parts are no programs of their own
            return function(*inputs)

    return set_xla_metadata(inlineable="false")(program)


def count_devices(runs: int, asked: int | None) -> int:
    """Over how many devices runs are spread: what was asked for, or as many as there are. Raises Refused."""
    most = min(jax.device_count(), runs)
    if asked is not None and asked > most:
        raise Refused(f"--devices {asked}: {jax.device_count()} present, for {runs} run{'s' * (runs > 1)}")
    return asked or most


class Spread:
    """The axis of runs.

    A run is a slice along the leading axis. `width` runs are computed at once on each device (vmap) and the chunks
    follow one another (`lax.map`); with several devices the axis is sharded over a mesh first. Width 1 computes a run
    exactly as it is computed alone on as many devices; it is the default on a CPU, where the working set of one run
    should stay in the cache. An accelerator takes all at once.

    Where the runs do not divide evenly over the devices, the axis is filled up: arrays on the devices have `rows` >=
    `runs` entries, and host arrays `runs`. At width 1 the entries beyond the runs are zeros that nothing is computed
    for, so that the last runs have the whole CPU; else they repeat the last run.

    With the `precision` "bfloat16" only updates are computed in it: actions are those of the parameters, whose type
    stays what it is.
    """

    def __init__(
        self,
        runs: int,
        width: int | None,
        devices: int | None,
        precision: Precision = "default",
        among: Sequence[jax.Device] | None = None,
    ):
        """For so many of the devices that there are, or, if these are not meant, `among` others."""
        count = count_devices(runs, devices)
        self.runs, self.rows = runs, -(-runs // count) * count
        self.backend = jax.default_backend() if among is None else among[0].platform
        own = (among or jax.devices())[:count]
        self.mesh = jax.make_mesh((count,), ("runs",), (AxisType.Auto,), devices=own)
        self.width = width or (1 if self.backend == "cpu" else self.rows // count)
        self.precision = precision

    def products(self) -> contextlib.AbstractContextManager:
        """In which programs are traced, so that matrix products have the precision asked for."""
        return jax.default_matmul_precision("highest") if self.precision == "float32" else contextlib.nullcontext()

    def rounding(self) -> contextlib.AbstractContextManager:
        """In which updates are traced, so that their layers have the precision asked for."""
        return activations("bfloat16" if self.precision == "bfloat16" else None)

    def over_runs(self, function: Callable) -> Callable:
        """`function` of one run, made a function of the runs on one device."""
        program = isolated(function, self.backend)

        def alone(arguments: tuple) -> Any:
            return program(*arguments)

        def unless_filling(argument: tuple) -> Any:
            needed, arguments = argument
            nothing = jax.eval_shape(alone, arguments)
            return jax.lax.cond(
                needed,
                alone,
                lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing),
                arguments,
            )

        def mapped(*arguments: Any) -> Any:
            runs = jax.tree.leaves(arguments)[0].shape[0]
            if self.width == 1 and self.rows > self.runs:
                number = jax.lax.axis_index("runs") * runs + jnp.arange(runs)
                return jax.lax.map(unless_filling, (number < self.runs, arguments))
            if self.width == 1:
                return jax.lax.map(alone, arguments)
            if self.width >= runs:
                return jax.vmap(function)(*arguments)
            return jax.lax.map(lambda x: function(*x), arguments, batch_size=self.width)

        return mapped

    def fill(self, tree: Any) -> Any:
        """Host arrays [runs, ...] as [rows, ...]."""
        if self.rows == self.runs:
            return tree
        return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], self.rows - self.runs, axis=0)]), tree)

    def host(self, tree: Any) -> Any:
        """Device arrays [rows, ...] as host arrays [runs, ...]; waits for them."""
        return jax.tree.map(lambda x: np.asarray(x)[: self.runs], tree)

    def place(self, tree: Any) -> Any:
        """Host arrays [runs, ...] put on the devices, filled up and spread along the axis of runs."""
        return jax.device_put(self.fill(tree), NamedSharding(self.mesh, PartitionSpec("runs")))

    def share(self, tree: Any) -> Any:
        """Host arrays put on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))


class Program:
    """A function of the runs on one device as one jitted call for all runs, spread over all devices.

    What a parameter is follows from its name: see STATIC and SAME. Whatever the function returns has the runs as its
    leading axis. A call takes what is on the devices, [rows, ...], as it is, and host arrays of `runs`. Of what it
    returns, an array is brought to the host, [runs, ...]: actions, for which the call waits. Agents, learners and
    metrics stay on the devices.
    """

    def __init__(self, spread: Spread, function: Callable, donates: bool = False):
        """Of a function with positional parameters; `donates` gives the memory of the first to what is returned."""
        self.spread, self.names = spread, tuple(inspect.signature(function).parameters)
        functools.update_wrapper(self, function)

        @functools.wraps(function)
        def on_all(*arguments: Any) -> Any:
            fixed, moving = self._split(arguments)
            on_each_device = jax.shard_map(
                lambda *parts: function(**fixed, **dict(zip(moving, parts, strict=True))),
                mesh=spread.mesh,
                in_specs=tuple(PartitionSpec() if name in SAME else PartitionSpec("runs") for name in moving),
                out_specs=PartitionSpec("runs"),
                check_vma=False,
            )
            with spread.products():
                return on_each_device(*moving.values())

        static = [number for number, name in enumerate(self.names) if name in STATIC]
        self.jitted = jax.jit(on_all, static_argnums=static, donate_argnums=0 if donates else ())

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns for all runs."""
        returned = self.jitted(*self._ready(arguments))
        if not isinstance(returned, tuple):
            return self._returned(returned)
        return tuple(self._returned(part) for part in returned)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """What a call with such arguments runs, traced. Once its `compile` has been called, no call waits for it."""
        return self.jitted.lower(*self._ready(arguments))

    def fixed(self, arguments: Sequence[Any]) -> tuple:
        """The static ones of a call's arguments, for which it is compiled anew."""
        return tuple(self._split(arguments)[0].values())

    def _split(self, arguments: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The static arguments and the others, by name."""
        named = dict(zip(self.names, arguments, strict=True))
        return {n: x for n, x in named.items() if n in STATIC}, {n: x for n, x in named.items() if n not in STATIC}

    def _ready(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments with numbers as int32 and host arrays filled up."""
        ready = []
        for name, argument in zip(self.names, arguments, strict=True):
            if name in SAME and isinstance(argument, int):
                argument = np.int32(argument)
            elif name not in (*SAME, *STATIC) and self.spread.rows > self.spread.runs:
                argument = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else self.spread.fill(x), argument)
            ready.append(argument)
        return ready

    def _returned(self, returned: Any) -> Any:
        return self.spread.host(returned) if isinstance(returned, jax.Array) else returned
