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

What the machine could do is timed alongside. Of the matrix products of an update, none counted twice that need be done
but once: their operations at the rate of one large dense product, which is a ceiling; and their own time, each shape by
itself, which an update can beat where XLA does several small ones at once. And what the compiled program reads and
writes in an update of all runs, beside the rate of copying a large array: where caches hold it, that can be beaten too.
`kernels` are those that it starts. Rows go to benchmarks/results/throughput_NAME.{csv,json}, a picture of them to
throughput_NAME.png; `--draw` draws it anew. On a GPU nobody reserves memory, so that there is room for peers.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measuring.ceilings import Copy, Products
from benchmarks.measuring.timed import OURS, PEERS, Ours, Peer
from benchmarks.reporting.figures import png, rates
from benchmarks.reporting.results import commit_of, file, publish, rows_of, write
from common.errors import Refused, exiting
from common.layers import Precision
from common.machine import cores


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


def measure(asked: Throughput, algorithm: str) -> list[dict[str, Any]]:
    """One row per peer and number of runs."""
    found = asked.peers(algorithm).items()
    peers = {name: Peer(name, checkout, algorithm, asked.peer_python) for name, checkout in found}
    ours = {runs: Ours(algorithm, runs, asked.hidden, asked.devices, asked.precision) for runs in asked.runs}
    bare, copy = Products(ours[asked.runs[0]].counts()), Copy()
    timings: dict[str | int, list[float]] = {name: [] for name in (*peers, *ours)}
    alone, dense, copied = [], [], []
    for _ in range(asked.rounds):
        for name, timed in (*peers.items(), *ours.items()):
            timings[name].append(timed.timing())
        alone.append(bare.alone())
        dense.append(bare.at_dense_rate())
        copied.append(copy.seconds_per_byte())
    for peer in peers.values():
        peer.close()
    rows = []
    for name, timed in (*peers.items(), *ours.items()):
        values, mine = timings[name], name not in peers
        memory, started = (timed.memory(), timed.started()) if mine else (None, None)
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
            "kernels": started and started.kernels,
            "megabytes_moved": started and started.bytes / 1e6,
            "of_copy_rate": started and statistics.median(
                started.bytes * c / (v * name) for c, v in zip(copied, values, strict=True)
            ),
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
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # peers inherit it
    jax.config.update("jax_enable_compilation_cache", False)  # how long it takes is among what is measured
    exiting("throughput", lambda: main(tyro.cli(Throughput, description=__doc__)))
