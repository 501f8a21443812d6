"""How fast an RLPD update is, beside the matrix products it consists of, and beside the authors' code.

    python -m benchmarks.throughput [--size paper] [--runs 1 8] [--rounds 10] [--against CHECKOUT --peer-python PYTHON]

Everything is timed in turn, round after round in one process (the peer in its own, which waits in between), so that all
share whatever the machine does meanwhile. Ratios are medians of the rounds' ratios. FLOPs are those of the matrix
products, forward and backward; the ceilings are a dense product and the critics' own batched products, measured
alongside. A table is printed; rows go to benchmarks/results/throughput_SIZE_BACKEND.{csv,json}.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from algorithms.rlpd import RLPD, Config
from benchmarks.results import publish
from common import environments, tasks
from common.machine import cores
from common.programs import Learner, Programs
from common.replay import Batch, Episode, Replay

OBSERVATION, ACTION = 29, 8
"""AntMaze, as in the paper."""
PRIOR, CAPACITY = 200_000, 100_000
FIRST = 3
"""Calls whose excess over the median is the time to compile: a program may compile again on its second call."""
SIZES = {
    "paper": Config(hidden=(256, 256, 256), target_subset=1, backup_entropy=False),
    "small": Config(hidden=(128, 128), utd=10),
}


@dataclass(frozen=True)
class Throughput:
    """What is measured."""

    size: Literal["paper", "small"] = "paper"
    """paper: AntMaze's networks at 20 updates per step; small: two layers of 128 at 10."""
    runs: tuple[int, ...] = (1, 8)
    """Numbers of runs side by side."""
    width: int | None = None
    """Runs computed at once on each device; default as in training."""
    rounds: int = 10
    """Timings of everything."""
    calls: int = 3
    """Environment steps per timing."""
    against: Path | None = None
    """A checkout of ikostrikov/rlpd to measure alongside."""
    peer_python: str = sys.executable
    """The Python that can import it."""


def flops(config: Config) -> float:
    """Floating-point operations of all matrix products of one environment step's update of one run."""

    def layers(size: int, out: int) -> list[int]:
        widths = [size, *config.hidden, out]
        return [2 * config.batch_size * a * b for a, b in itertools.pairwise(widths)]

    critic, actor = layers(OBSERVATION + ACTION, 1), layers(OBSERVATION, 2 * ACTION)
    forward, first = sum(critic), critic[0]
    members, targets = config.ensemble, config.target_subset
    # A critic step: actor and target forward; online forward, weight gradients, input gradients but the first layer's.
    critic_step = sum(actor) + targets * forward + members * (3 * forward - first)
    # The actor step: the actor likewise; critics forward and input gradients down to the action.
    actor_step = 3 * sum(actor) - actor[0] + members * 2 * forward
    return float(config.utd * critic_step + actor_step)


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Seconds per call, waiting for the device."""
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


class Update:
    """The jitted environment step of training.py for some runs, on random data."""

    def __init__(self, config: Config, runs: int, width: int | None):
        rng = np.random.default_rng(0)

        def random(*leading: int) -> Batch:
            return Batch(
                observation=rng.normal(size=(*leading, OBSERVATION)).astype(np.float32),
                action=rng.uniform(-1, 1, size=(*leading, ACTION)).astype(np.float32),
                reward=rng.normal(size=leading).astype(np.float32),
                mask=np.ones(leading, np.float32),
                next_observation=rng.normal(size=(*leading, OBSERVATION)).astype(np.float32),
            )

        self.programs = programs = Programs(RLPD, config, runs, width, None)
        seeds = np.arange(runs, dtype=np.int32)
        self.seeds = programs.place(seeds)
        self.prior = programs.share(random(PRIOR))
        self.transition = random(runs)
        self.episode = Episode(np.zeros(runs, bool), np.zeros(runs, np.float32), np.ones(runs, np.int32))
        configs = jax.tree.map(lambda x: np.full(runs, x, np.float32), config)
        agent = programs.create(configs, seeds, self.transition, self.prior)
        rows = random(1, CAPACITY)
        rows = jax.tree.map(lambda x: np.repeat(x, runs, axis=0), rows)
        self.learner = programs.place(Learner(agent, Replay(rows, np.full(runs, CAPACITY, np.int32))))
        self.step = 0
        self.first_calls = FIRST * seconds(self, FIRST)

    def __call__(self) -> np.ndarray:
        """One environment step: insert, sample, update, act."""
        self.step += 1
        step = self.seeds, self.step, self.transition, self.episode, self.transition.next_observation
        self.learner, action, _ = self.programs.learn(self.learner, *step, self.prior)
        return action

    def collect(self) -> np.ndarray:
        """The same without sampling and updating."""
        self.step += 1
        step = self.seeds, self.step, self.transition, self.episode, self.transition.next_observation
        self.learner, action = self.programs.collect(self.learner, *step)
        return action

    def act(self) -> np.ndarray:
        """The policy alone."""
        return self.programs.act(self.learner.agent, self.transition.observation)


def products(config: Config) -> dict[str, tuple[Callable[[], Any], float]]:
    """The ceilings: name -> a call and its FLOPs."""
    big = jnp.ones((2048, 2048))
    width, members = config.hidden[0], config.ensemble
    x = jnp.ones((members, config.batch_size, width))
    once = 2.0 * members * config.batch_size * width * width
    dense = jax.jit(lambda a, b: a @ b)
    # Ten in a row with other right sides, as in the scan, so that dispatch does not count.
    repeat = 10

    def series(product: str) -> Callable:
        return jax.jit(lambda left, rights: jax.lax.map(lambda right: jnp.einsum(product, left, right), rights))

    forward, backward, weights = (series(p) for p in ("nbi,nio->nbo", "nbo,nio->nbi", "nbi,nbo->nio"))
    kernels = jnp.ones((repeat, members, width, width))
    gradients = jnp.ones((repeat, *x.shape))
    return {
        "dense product 2048^3": (lambda: dense(big, big), 2.0 * 2048**3),
        "batched product, forward": (lambda: forward(x, kernels), repeat * once),
        "batched product, input gradient": (lambda: backward(x, kernels), repeat * once),
        "batched product, weight gradient": (lambda: weights(x, gradients), repeat * once),
    }


class Peer:
    """The authors' update in a process of its own; it answers each line with the seconds of one timing."""

    def __init__(self, options: Throughput, config: Config):
        settings = {
            "hidden": config.hidden, "ensemble": config.ensemble, "subset": config.target_subset, "utd": config.utd,
            "batch_size": config.batch_size, "backup_entropy": config.backup_entropy,
            "observation": OBSERVATION, "action": ACTION, "first": FIRST, "calls": options.calls,
        }  # fmt: skip
        command = [options.peer_python, str(Path(__file__).parent / "peers" / "rlpd_authors.py"), str(options.against)]
        self.process = subprocess.Popen(
            [*command, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first_calls = float(self.process.stdout.readline())

    def timing(self) -> float:
        """Seconds per environment step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def environment_seconds(steps: int = 2000) -> float:
    """Seconds per step of the AntMaze environment with random actions."""
    environment = environments.make(tasks.find("antmaze-large-diverse"))
    actions = np.random.default_rng(0).uniform(-1, 1, size=(steps, environment.action_size)).astype(np.float32)
    environment.reset(0)
    start = time.perf_counter()
    for action in actions:
        if environment.step(action).truncated:
            environment.reset(0)
    elapsed = time.perf_counter() - start
    environment.close()
    return elapsed / steps


def main(options: Throughput) -> None:
    """Measure, print, write."""
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
    config = SIZES[options.size]
    peer = Peer(options, config) if options.against else None
    ceilings = products(config)
    for call, _ in ceilings.values():
        jax.block_until_ready(call())
    updates = {runs: Update(config, runs, options.width) for runs in options.runs}
    single = updates[options.runs[0]]
    single.collect(), single.act()
    jax.block_until_ready([u() for u in updates.values()])

    timings: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, (call, _) in ceilings.items():
            timings.setdefault(name, []).append(seconds(call, 5))
        if peer is not None:
            timings.setdefault("authors' update, 1 run", []).append(peer.timing())
        for runs, update in updates.items():
            timings.setdefault(label(runs), []).append(seconds(update, options.calls))
        timings.setdefault("insert and act", []).append(seconds(single.collect, 20))
        timings.setdefault("act", []).append(seconds(single.act, 20))
    timings["environment step"] = [environment_seconds() for _ in range(3)]
    report(options, config, timings, {name: count for name, (_, count) in ceilings.items()}, updates, peer)


def label(runs: int) -> str:
    """The name of an update's row."""
    return f"update, {runs} run{'s' * (runs > 1)}"


def report(
    options: Throughput,
    config: Config,
    timings: dict[str, list[float]],
    counts: dict[str, float],
    updates: dict[int, Update],
    peer: Peer | None,
) -> None:
    """The table and the files."""
    first = label(options.runs[0])
    dense = timings["dense product 2048^3"]
    batched = [timings[f"batched product, {kind}"] for kind in ("forward", "input gradient", "weight gradient")]
    counts = counts | {label(runs): runs * flops(config) for runs in options.runs}
    counts["authors' update, 1 run"] = flops(config)
    rows = []
    for name, values in timings.items():
        row = {
            "what": name,
            "ms_min": 1e3 * min(values),
            "ms_median": 1e3 * statistics.median(values),
            "ms_max": 1e3 * max(values),
            "gflops": counts[name] / statistics.median(values) / 1e9 if name in counts else None,
            "of_dense_rate": None,
            "of_batched_rate": None,
            "times_first_update": statistics.median(values) / statistics.median(timings[first]),
            "compile_seconds": None,
        }
        if name in counts and len(values) == len(dense):
            rate = [counts[name] / v for v in values]
            ceiling = [2.0 * 2048**3 / d for d in dense]
            row["of_dense_rate"] = statistics.median(r / c for r, c in zip(rate, ceiling, strict=True))
            # The harmonic mean of the three products: forward and both gradients are as many FLOPs each.
            mixed = [3 * counts["batched product, forward"] / sum(b) for b in zip(*batched, strict=True)]
            row["of_batched_rate"] = statistics.median(r / c for r, c in zip(rate, mixed, strict=True))
        if len(values) == len(dense):
            pairs = zip(values, timings[first], strict=True)
            row["times_first_update"] = statistics.median(v / own for v, own in pairs)
        rows.append(row)
    first_calls = {label(runs): update.first_calls for runs, update in updates.items()}
    if peer is not None:
        first_calls["authors' update, 1 run"] = peer.first_calls
    for row in rows:
        if row["what"] in first_calls:
            row["compile_seconds"] = first_calls[row["what"]] - FIRST * row["ms_median"] / 1e3

    table = Table(title=f"RLPD, {options.size} size, {jax.default_backend()}: {flops(config) / 1e9:.1f} GFLOP per step")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(*("" if v is None else v if isinstance(v, str) else f"{v:.3g}" for v in row.values()))
    Console(width=140).print(table)
    publish(
        f"throughput_{options.size}_{jax.default_backend()}",
        rows,
        "python -m benchmarks.throughput " + " ".join(f".../{Path(a).name}" if "/" in a else a for a in sys.argv[1:]),
        peer=None if options.against is None else peer_commit(options.against),
        gflop_per_step=flops(config) / 1e9,
    )


def peer_commit(checkout: Path) -> str:
    """What was measured against."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return f"ikostrikov/rlpd {head.stdout.strip() or '(no commit known)'}"


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", cores())
    main(tyro.cli(Throughput, description=__doc__))
