"""How fast the algorithms update, beside the matrix products they consist of and beside other people's code.

    python -m benchmarks.throughput [--algorithms rlpd iql ...] [--runs 1 5] [--devices N] [--hidden 128 128]
        [--rounds 7] [--name NAME]
    python -m benchmarks.throughput --peer-python PYTHON --rlpd CHECKOUT --jax-corl CHECKOUT --unifloral CHECKOUT
        --corl CHECKOUT --adaptive-bc CHECKOUT --bcq CHECKOUT
    python -m benchmarks.throughput --draw NAME

Everything is timed in turn, round after round, each peer in a process of its own that waits in between, so that all
share whatever the machine does meanwhile. A ratio is the median over rounds of our updates per second, of all runs
together, over theirs, of one. All have the same networks (two layers of 256; CQL, AWAC and ReBRAC three; RLPD and EDAC
three, and ten critics) and minibatches of 256, but for BCQ, BEAR, BRAC, Fisher-BRC, AWR and BAIL, which have those of
their papers. They draw from random transitions, a million of walker's size, but for RLPD's authors, who get the same
minibatches again and again and are spared the drawing; what is counted is critic steps, or the actor's where there is
no critic. Ours are those of programs.py: whole intervals of the offline phase; for rlpd.py and redq_adaptive_bc.py
steps of the online phase, of twenty critic steps each. On a GPU, peers in PyTorch are put there too, and waited for.

Two measures of what the machine could do are timed alongside, from the matrix products of an update, none counted twice
that need be done but once: their operations at the rate of one large dense product, which is a ceiling; and their own
time, each shape by itself, which an update can beat where XLA does several small ones at once. Rows go to
benchmarks/results/throughput_NAME.{csv,json}, a picture of them to throughput_NAME.png; `--draw` draws it anew.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.interpreters import partial_eval
from rich.console import Console
from rich.table import Table

from algorithms import (
    awac,
    awr,
    bail,
    bc,
    bcq,
    bear,
    brac,
    cql,
    decision_transformer,
    discrete_bcq,
    edac,
    fisher_brc,
    iql,
    mopo,
    rebrac,
    redq_adaptive_bc,
    rlpd,
    td3_bc,
)
from benchmarks.reporting.figures import png, rates
from benchmarks.reporting.results import commit_of, file, publish, rows_of, write
from common import tasks
from common.datasets import Dataset
from common.errors import Refused, exiting
from common.layers import Precision
from common.machine import cores
from common.programs import Learner, Programs, block_size
from common.replay import Episode, Replay

TASK = "walker2d-medium"
OBSERVATION, ACTION, ROWS = 17, 6, 1_000_000
CAPACITY = 100_000
OURS: dict[str, tuple[ModuleType, type, dict[str, Any]]] = {
    "rlpd": (rlpd, rlpd.RLPD, {"hidden": (256, 256, 256), "target_subset": 1, "backup_entropy": False}),
    "td3_bc": (td3_bc, td3_bc.TD3BC, {}),
    "iql": (iql, iql.IQL, {}),
    "bc": (bc, bc.BC, {}),
    "edac": (edac, edac.EDAC, {}),
    "cql": (cql, cql.CQL, {}),
    "awac": (awac, awac.AWAC, {}),
    "rebrac": (rebrac, rebrac.ReBRAC, {"batch_size": 256}),
    "bcq": (bcq, bcq.BCQ, {}),
    "bear": (bear, bear.BEAR, {}),
    "brac": (brac, brac.BRAC, {}),
    "fisher_brc": (fisher_brc, fisher_brc.FisherBRC, {}),
    "awr": (awr, awr.AWR, {}),
    "bail": (bail, bail.BAIL, {}),
    "discrete_bcq": (discrete_bcq, discrete_bcq.DiscreteBCQ, {"batch_size": 256}),
    "mopo": (mopo, mopo.MOPO, {"hidden": (256, 256, 256)}),
    "decision_transformer": (decision_transformer, decision_transformer.DecisionTransformer, {}),
    "redq_adaptive_bc": (redq_adaptive_bc, redq_adaptive_bc.REDQAdaptiveBC, {"target_noise": 0.2}),
}
"""Algorithm -> its file, its agent, and what differs from its defaults."""
ONLINE = ("rlpd", "redq_adaptive_bc")
UPDATES = {
    "rlpd": 60, "td3_bc": 400, "iql": 400, "bc": 1000, "edac": 20, "cql": 40, "awac": 200, "rebrac": 200,
    "bcq": 40, "bear": 40, "brac": 40, "fisher_brc": 40, "awr": 1200, "bail": 100, "discrete_bcq": 400,
    "mopo": 1000, "decision_transformer": 20, "redq_adaptive_bc": 100,
}  # fmt: skip
"""Critic steps per timing; of MOPO as many as one time of imagining is for."""
PEERS = {
    "rlpd": ("rlpd",),
    "jax_corl": ("td3_bc", "iql", "awac", "cql", "decision_transformer"),
    "unifloral": ("td3_bc", "iql", "bc", "edac", "rebrac", "mopo"),
    "corl": ("td3_bc", "iql", "bc", "edac", "awac", "cql"),
    "adaptive_bc": ("redq_adaptive_bc",),
    "bcq": ("bcq",),
}
"""Peer -> what it has. Unifloral's CQL draws one action where the paper's draws ten, and is no measure of ours."""


@dataclass(frozen=True)
class Throughput:
    """What is measured."""

    algorithms: tuple[str, ...] = tuple(OURS)
    """Files of ours."""
    runs: tuple[int, ...] = (1, 5)
    """Numbers of runs side by side."""
    precision: Precision = "default"
    """Of our updates; peers have their own."""
    devices: int | None = None
    """Devices to spread them over; default as in training."""
    hidden: tuple[int, ...] | None = None
    """Width of each hidden layer of all networks; without peers."""
    rounds: int = 7
    """Timings of everything."""
    name: str | None = None
    """Of the files in benchmarks/results, after "throughput_"; default: cpu, gpu or tpu."""
    draw: str | None = None
    """Measure nothing: draw the picture of the rows of this name."""
    rlpd: Path | None = None
    """A checkout of ikostrikov/rlpd."""
    jax_corl: Path | None = None
    """A checkout of nissymori/JAX-CORL."""
    unifloral: Path | None = None
    """A checkout of EmptyJackson/unifloral."""
    corl: Path | None = None
    """A checkout of tinkoff-ai/CORL."""
    adaptive_bc: Path | None = None
    """A checkout of zhaoyi11/adaptive_bc."""
    bcq: Path | None = None
    """A checkout of sfujim/BCQ."""
    peer_python: str = sys.executable
    """The Python that can import them."""

    def peers(self, algorithm: str) -> dict[str, Path]:
        """The checkouts that have this algorithm."""
        checkouts = {name: getattr(self, name) for name, has in PEERS.items() if algorithm in has}
        return {name: checkout for name, checkout in checkouts.items() if checkout is not None}


# ---------------------------------------------------------------------- matrix products


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


# ---------------------------------------------------------------------- who is timed


def actions(rng: np.random.Generator, discrete: bool) -> np.ndarray:
    """[ROWS, ACTION]; one-hot vectors if discrete."""
    if discrete:
        return np.eye(ACTION, dtype=np.float32)[rng.integers(ACTION, size=ROWS)]
    return rng.uniform(-0.99, 0.99, size=(ROWS, ACTION)).astype(np.float32)


class Ours:
    """The jitted offline phase of some runs, on random data; the online phase of an algorithm that lives there."""

    def __init__(
        self,
        algorithm: str,
        runs: int,
        hidden: tuple[int, ...] | None = None,
        devices: int | None = None,
        precision: Precision = "default",
    ):
        module, agent_class, values = OURS[algorithm]
        rng = np.random.default_rng(0)
        data = Dataset(
            observation=rng.normal(size=(ROWS, OBSERVATION)).astype(np.float32),
            action=actions(rng, module.Config.discrete_actions),
            reward=rng.normal(size=ROWS).astype(np.float32),
            terminated=np.zeros(ROWS, bool),
            truncated=np.arange(1, ROWS + 1) % 1000 == 0,
            next_observation=rng.normal(size=(ROWS, OBSERVATION)).astype(np.float32),
            success=np.zeros(ROWS, bool),
            source="random",
        )
        config, task = module.Config(**values), tasks.find(TASK)
        if hidden is not None:
            actor = {"actor_hidden": hidden} if hasattr(config, "actor_hidden") else {}
            config = config.replace(hidden=hidden, **actor)
        self.config, self.programs = config, Programs(agent_class, config, runs, None, devices, precision)
        programs, seeds = self.programs, np.arange(runs, dtype=np.int32)
        self.seeds, self.prior = programs.place(seeds), programs.share(agent_class.prepare(config, data, task))
        example = jax.tree.map(lambda x: np.repeat(x[:1], runs, axis=0), data.batch(task))
        agent = programs.create(
            jax.tree.map(lambda x: np.full(runs, x, np.float32), config), seeds, example, self.prior
        )
        self.online = algorithm in ONLINE
        agent = programs.enter(agent, self.seeds, "online" if self.online else "offline", self.prior)
        experience = None
        if self.online:
            experience = programs.place(jax.vmap(lambda row: Replay.create(row, CAPACITY))(example))
            self.played = example, Episode(np.zeros(runs, bool), np.zeros(runs, np.float32), np.ones(runs, np.int32))
        self.learner, self.utd = Learner(agent, experience), config.utd if self.online else 1
        self.updates, self.done, self.runs = UPDATES[algorithm], 0, runs
        start = time.perf_counter()
        self.program = self.compiled()
        compiling = time.perf_counter() - start
        self.first_calls = compiling + (self.timing() + self.timing()) * self.updates * runs

    def timing(self) -> float:
        """Seconds per update, all runs' counted."""
        start = time.perf_counter()
        if self.online:
            for step in range(self.done // self.utd + 1, (self.done + self.updates) // self.utd + 1):
                self.learner, _, metrics = self.programs.learn(*self.arguments(step))
        else:
            agent, metrics = self.programs.offline(*self.offline_arguments())
            self.learner = self.learner.replace(agent=agent)
        jax.block_until_ready((self.learner, metrics))
        self.done += self.updates
        return (time.perf_counter() - start) / self.updates / self.runs

    def arguments(self, step: int) -> tuple:
        """Of one step of the online phase."""
        transition, episode = self.played
        return self.learner, self.seeds, step, transition, episode, transition.observation, self.prior

    def offline_arguments(self) -> tuple:
        """Of the next timed updates of the offline phase."""
        agent = self.learner.agent
        grouped = agent.are_whole_groups(self.done, self.updates)
        block = block_size(self.updates, agent.period if grouped else 1)
        return agent, self.seeds, "offline", self.done, block, self.updates // block, grouped, self.prior

    def counts(self) -> Counter[Product]:
        """The matrix products of one update of one run."""
        agent, experience = jax.tree.map(lambda x: x[0], (self.learner.agent, self.learner.experience))
        batches = jax.eval_shape(lambda key: agent.sample(key, experience, self.prior), jax.random.key(0))
        delay = getattr(self.config, "policy_delay", 1)
        found = products(agent.update, batches, jax.random.key(0), jnp.int32(1), rarely=1 / delay)
        return Counter({product: count / self.utd for product, count in found.items()})

    def compiled(self) -> jax.stages.Compiled:
        """What is timed."""
        if self.online:
            return self.programs.learn.lower(*self.arguments(1)).compile()
        return self.programs.offline.lower(*self.offline_arguments()).compile()

    def memory(self) -> int | None:
        """Bytes that the program holds on each device, data included; None where XLA does not tell."""
        used = self.program.memory_analysis()
        if used is None:
            return None
        whole = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
        return whole - used.alias_size_in_bytes


class Peer:
    """A peer's update in a process of its own; it answers each line with the seconds of one update."""

    def __init__(self, name: str, checkout: Path, algorithm: str, python: str):
        module, _, values = OURS[algorithm]
        config = module.Config(**values)
        settings = {
            "algorithm": algorithm, "observation": OBSERVATION, "action": ACTION, "rows": ROWS,
            "hidden": getattr(config, "hidden", ()), "updates": UPDATES[algorithm],
            "utd": config.utd if algorithm in ONLINE else 1,
        }  # fmt: skip
        script, flag = Path(__file__).parent / "studies" / "peers" / "theirs.py", name.replace("_", "-")
        command = [python, str(script), flag, str(checkout), json.dumps(settings)]
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        except OSError as error:
            raise Refused(f"--peer-python {python}: cannot be started ({error.strerror})") from error
        self.trouble = f"--{flag} {checkout}: its {algorithm} does not run under {python}"
        self.first_calls = self.answer()

    def answer(self) -> float:
        """The number that it says next."""
        said = self.process.stdout.readline()
        if not said:
            raise Refused(self.trouble)
        return float(said)

    def timing(self) -> float:
        """Seconds per update."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()


def measure(asked: Throughput, algorithm: str) -> list[dict[str, Any]]:
    """One row per peer and number of runs."""
    found = asked.peers(algorithm).items()
    peers = {name: Peer(name, checkout, algorithm, asked.peer_python) for name, checkout in found}
    ours = {runs: Ours(algorithm, runs, asked.hidden, asked.devices, asked.precision) for runs in asked.runs}
    bare = Products(ours[asked.runs[0]].counts())
    timings: dict[str | int, list[float]] = {name: [] for name in (*peers, *ours)}
    alone, dense = [], []
    for _ in range(asked.rounds):
        for name, timed in (*peers.items(), *ours.items()):
            timings[name].append(timed.timing())
        alone.append(bare.alone())
        dense.append(bare.at_dense_rate())
    for peer in peers.values():
        peer.close()
    rows = []
    for name, timed in (*peers.items(), *ours.items()):
        values, mine = timings[name], name not in peers
        memory = timed.memory() if mine else None
        median = statistics.median(values)
        rows.append({
            "algorithm": algorithm,
            "whose": "ours" if mine else name,
            "runs": name if mine else 1,
            "updates_per_second": 1 / median,
            "ms_per_update_min": 1e3 * min(values),
            "ms_per_update_median": 1e3 * median,
            "ms_per_update_max": 1e3 * max(values),
            "first_two_calls_seconds": timed.first_calls,
            "program_mib": None if memory is None else memory / 2**20,
            "mflop_of_products": bare.flops / 1e6,
            "of_dense_rate": statistics.median(d / v for d, v in zip(dense, values, strict=True)),
            "of_products_alone": statistics.median(a / v for a, v in zip(alone, values, strict=True)),
        } | {
            f"times_{peer}": statistics.median(theirs / v for theirs, v in zip(timings[peer], values, strict=True))
            if peer in peers else None
            for peer in PEERS
        })  # fmt: skip
    return rows


def main(asked: Throughput) -> None:
    """Measure, print, write; or draw only."""
    if asked.draw is not None:
        draw(f"throughput_{asked.draw}", rows_of("throughput", asked.draw))
        return
    unknown = [name for name in asked.algorithms if name not in OURS]
    if unknown:
        raise Refused(f"--algorithms {unknown[0]}: there are {', '.join(OURS)}")
    if min(len(asked.algorithms), asked.rounds, *asked.runs or (0,)) < 1:
        raise Refused("--algorithms, --rounds and --runs: at least one of each")
    layerless = [name for name in asked.algorithms if not hasattr(OURS[name][0].Config(), "hidden")]
    if asked.hidden is not None and layerless:
        raise Refused(f"--hidden: {layerless[0]} has no such layers; name others with --algorithms")
    name = f"throughput_{asked.name or jax.default_backend()}"
    file(name, ".csv")  # refuses a name that cannot be before anything is measured
    if asked.hidden is not None and any(asked.peers(algorithm) for algorithm in OURS):
        raise Refused("--hidden: the peers' networks have their own widths; measure without them")
    console, rows = Console(width=200), []
    for algorithm in asked.algorithms:
        found = measure(asked, algorithm)
        rows += found
        mine = (f"{row['updates_per_second']:.4g} ({row['whose']}, {row['runs']})" for row in found)
        console.print(f"{algorithm}, updates per second: {', '.join(mine)}", highlight=False, soft_wrap=True)
    table = Table(title=f"throughput, {jax.default_backend()}")
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*("" if v is None else v if isinstance(v, str) else f"{v:.3g}" for v in row.values()))
    console.print(table)
    checkouts = {name: getattr(asked, name) for name in PEERS}
    publish(
        name,
        rows,
        "benchmarks.throughput",
        peers={name: commit_of(checkout) for name, checkout in checkouts.items() if checkout is not None},
    )
    draw(name, rows)


def draw(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the picture of the rows."""
    write(file(name, ".png"), png(rates(rows)))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", cores())
    jax.config.update("jax_enable_compilation_cache", False)  # how long it takes is among what is measured
    exiting("throughput", lambda: main(tyro.cli(Throughput, description=__doc__)))
