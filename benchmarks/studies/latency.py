"""How long a policy takes to act: `OPENBLAS_NUM_THREADS=1 python -m benchmarks.studies.latency`.

One observation of 29 numbers at a time, as on a robot, in microseconds: the median and the 99th percentile of many
calls of `policies.load`'s policy (JAX), of exported.py (NumPy) and of the graph (onnxruntime), the last two with one
thread, since several wait for one another. Both are medians over rounds, of which other programs disturb some.
Policies: a Gaussian of three layers of 256, without and with LayerNorm, and BCQ's choice among a hundred actions, with
two layers of 256. Rows go to benchmarks/results/latency.{csv,json}.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.reporting.results import publish
from benchmarks.studies.policies import agent_for, exported_of
from common import export
from common.errors import Refused, exiting
from common.policies import Policy

SIZES = 29, 8
POLICIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "Gaussian, 3 x 256": ("rlpd", {}, (256, 256, 256)),
    "Gaussian with LayerNorm, 3 x 256": ("edac", {"layer_norm": True}, (256, 256, 256)),
    "best of 100, 2 x 256": ("bcq", {}, (256, 256)),
}
"""Name -> algorithm file, values of its Config, hidden layers."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """How often is measured."""

    rounds: int = 20
    """Of each policy in each way."""
    calls: int = 500
    """In a round."""


def microseconds(call: Callable[[np.ndarray], Any], asked: Latency) -> dict[str, float]:
    """Median and 99th percentile of a call with one observation [o], each the median of the rounds'."""
    rows = np.random.default_rng(0).normal(size=(asked.calls, SIZES[0])).astype(np.float32)
    rounds = []
    for _ in range(1 + asked.rounds):  # the first is not counted
        taken = []
        for row in rows:
            start = time.perf_counter_ns()
            call(row)
            taken.append(time.perf_counter_ns() - start)
        rounds.append(np.quantile(taken, (0.5, 0.99)) / 1000)
    median, late = np.median(rounds[1:], axis=0).tolist()
    return {"median": round(median, 1), "p99": round(late, 1)}


def ways(name: str) -> dict[str, Callable[[np.ndarray], Any]]:
    """How a policy can be called -> the call."""
    import onnxruntime

    file, values, hidden = POLICIES[name]
    policy = exported_of(agent_for(file, values, hidden, SIZES), SIZES)
    found = {"JAX": Policy(policy.path, (policy.about, policy.arrays)), "NumPy": policy}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(export.graph(policy).SerializeToString(), options)
    except Refused:
        return found
    return found | {"ONNX": lambda row: session.run(None, {"observation": row[None]})}


def main(asked: Latency) -> None:
    """Measure, print, write. Raises Refused where NumPy would start threads."""
    threads = {"OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS")}
    if threads != {"OPENBLAS_NUM_THREADS": "1"}:
        raise Refused("NumPy would start threads, which wait for one another: set OPENBLAS_NUM_THREADS=1")
    rows = [
        {"policy": name, "way": way, **microseconds(call, asked), "calls": asked.rounds * asked.calls}
        for name in POLICIES
        for way, call in ways(name).items()
    ]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    publish("latency", rows, "benchmarks.studies.latency", environment=threads)


if __name__ == "__main__":
    exiting("latency", lambda: main(tyro.cli(Latency, description=__doc__)))
