"""What a machine could do: the matrix products of an update without the rest of it, and copying what it moves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval


class Product(NamedTuple):
    """A matrix product as `jax.lax.dot_general` takes it."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    dimensions: tuple

    def flops(self) -> float:
        """Multiplications and additions."""
        (_, contracted), (_, batch) = self.dimensions
        free = [size for axis, size in enumerate(self.right) if axis not in (*contracted, *batch)]
        return 2.0 * float(np.prod(self.left)) * float(np.prod(free))

    def timed(self, repeated: int = 10) -> Callable[[], float]:
        """A function that does it some times in a row, so that dispatch does not count, and says how long one took."""
        left, rights = jnp.ones(self.left), jnp.ones((repeated, *self.right))
        series = jax.jit(
            lambda left, rights: jax.lax.map(lambda right: jax.lax.dot_general(left, right, self.dimensions), rights)
        )

        def seconds() -> float:
            start = time.perf_counter()
            jax.block_until_ready(series(left, rights))
            return (time.perf_counter() - start) / repeated

        seconds()
        return seconds


def products(function: Callable, *arguments: Any, rarely: float = 1.0) -> Counter[Product]:
    """The matrix products that a call of the function needs, and how many of each.

    What nothing depends on is left out, and what is asked for twice with the same operands is counted once, as XLA does
    it. Of the branches of a condition, the one with more to do is entered in the share `rarely` of the cases.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(needed, rarely)


def _count(jaxpr: Any, rarely: float) -> Counter[Product]:
    found: Counter[Product] = Counter()
    known: dict[Hashable, list[int]] = {}  # what has been computed -> the numbers of its results
    numbers = iter(range(10**9))

    def walk(jaxpr: Any, inputs: Sequence[Hashable]) -> list[Hashable]:
        number: dict[Any, Hashable] = dict(zip(jaxpr.invars, inputs, strict=True))
        number |= {variable: next(numbers) for variable in jaxpr.constvars}

        def of(atom: Any) -> Hashable:
            return str(atom.val) if hasattr(atom, "val") else number[atom]

        for equation in jaxpr.eqns:
            name, parameters = equation.primitive.name, equation.params
            operands = [of(v) for v in equation.invars]
            inner = next((p.jaxpr for p in parameters.values() if hasattr(p, "jaxpr")), None)
            if name == "scan":
                body = _count(inner, rarely)
                found.update({product: count * parameters["length"] for product, count in body.items()})
                results = [next(numbers) for _ in equation.outvars]
            elif name == "cond":
                branches = [_count(branch.jaxpr, rarely) for branch in parameters["branches"]]
                costliest = max(branches, key=lambda c: sum(product.flops() * n for product, n in c.items()))
                found.update({product: count * rarely for product, count in costliest.items()})
                results = [next(numbers) for _ in equation.outvars]
            elif inner is not None and len(inner.invars) == len(operands) and name != "while":
                results = walk(inner, operands)
            else:
                key = (name, str(parameters), *operands)
                if key not in known:
                    known[key] = [next(numbers) for _ in equation.outvars]
                    if name == "dot_general":
                        left, right = (v.aval.shape for v in equation.invars)
                        found[Product(left, right, parameters["dimension_numbers"])] += 1
                results = known[key]
            number.update(zip(equation.outvars, results, strict=True))
        return [of(v) for v in jaxpr.outvars]

    walk(jaxpr, [next(numbers) for _ in jaxpr.invars])
    return found


DENSE = Product((2048, 2048), (2048, 2048), (((1,), (0,)), ((), ())))
"""Large enough to run at the machine's full rate."""


class Products:
    """The matrix products of one update, without the update."""

    def __init__(self, counts: Counter[Product]):
        self.flops = sum(product.flops() * count for product, count in counts.items())
        self.parts = [(product.timed(), count) for product, count in counts.items()]
        self.dense = DENSE.timed(repeated=2)

    def alone(self) -> float:
        """Seconds of all of them, one after another."""
        return sum(seconds() * count for seconds, count in self.parts)

    def at_dense_rate(self) -> float:
        """Seconds of as many operations in one large product."""
        return self.flops / DENSE.flops() * self.dense()


COPIED = 2**26
"""Numbers of float32 in an array that no cache holds."""


class Copy:
    """Reading and writing memory at the machine's full rate."""

    def __init__(self) -> None:
        self.array = jnp.ones(COPIED)
        self.program = jax.jit(lambda x: -x)
        self.seconds_per_byte()

    def seconds_per_byte(self) -> float:
        """Of those read and those written together."""
        start = time.perf_counter()
        jax.block_until_ready(self.program(self.array))
        return (time.perf_counter() - start) / (2 * self.array.nbytes)
