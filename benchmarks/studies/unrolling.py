"""Steps of imagined rollouts, and of a transformer's decoding, per second, beside other people's code.

    python -m benchmarks.studies.unrolling [--runs 1 5] [--episodes 10] [--rounds 5] [--name NAME]
        [--unifloral CHECKOUT --jax-corl CHECKOUT --peer-python PYTHON]

Rollouts are those of one time of imagining by mopo.py, 50,000 of five steps in a model of seven members, of walker's
size and that has learnt nothing, of all runs in one vmap on one device, where a training on a CPU takes one run after
another; Unifloral's MOPO imagines as many in one of its own size. Decoding is the step of
decision_transformer.py in evaluations: an action each for the episodes of all runs, in one call, from the 20 steps
before it. JAX-CORL decodes one episode at a time; its function is compiled here, which its evaluation leaves out.
All are timed in turn, round after round, as in benchmarks/throughput.py; a ratio is the median over rounds of our
steps per second, of all runs together, over theirs. Rows go to benchmarks/results/unrolling_NAME.{csv,json}.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measuring.timed import OBSERVATION, Peer, Prepared
from benchmarks.reporting.results import commit_of, file, publish
from common.errors import Refused, exiting

PEERS = {"rollouts": ("mopo", "unifloral"), "decoding": ("decision_transformer", "jax_corl")}
"""What is timed -> the file of ours, and who else has it."""
STEPS = {"rollouts": 250_000, "decoding": 200}
"""Of one run per timing: of a time of imagining, and of an environment."""


@dataclass(frozen=True)
class Unrolling:
    """What is measured."""

    runs: tuple[int, ...] = (1, 5)
    """Numbers of runs side by side."""
    episodes: int = 10
    """Of each run, decoded together."""
    rounds: int = 5
    """Timings of everything."""
    name: str = "cpu"
    """Of the files in benchmarks/results, after "unrolling_"."""
    unifloral: Path | None = None
    """A checkout of EmptyJackson/unifloral."""
    jax_corl: Path | None = None
    """A checkout of nissymori/JAX-CORL."""
    peer_python: str = sys.executable
    """The Python that can import them."""


def rollouts(runs: int) -> Callable[[], Any]:
    """One time of imagining of some runs."""
    ours = Prepared("mopo", runs)
    agents, prior = ours.learner.agent, ours.prior
    imagine = jax.jit(jax.vmap(lambda agent, step: agent.imagine(agent.imagined, step, prior), (0, None)))
    return lambda: imagine(agents, np.int32(1))


def decoding(runs: int, episodes: int) -> Callable[[], Any]:
    """Steps of all episodes of some runs as evaluations take them, from and to the host."""
    ours = Prepared("decision_transformer", runs)
    programs, agents = ours.programs, ours.learner.agent
    seen = np.random.default_rng(0).normal(size=(runs, episodes, OBSERVATION)).astype(np.float32)
    told = np.zeros((runs, episodes), np.float32), np.zeros((runs, episodes), bool)

    def decode() -> None:
        memory = programs.room(agents, episodes)
        for _ in range(STEPS["decoding"]):
            actions, memory = programs.proceed(memory, agents, seen, *told)
            np.asarray(actions)

    return decode


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(asked: Unrolling, part: str) -> list[dict[str, Any]]:
    """One row of the peer and of every number of runs."""
    algorithm, name = PEERS[part]
    checkout = getattr(asked, name)
    peer = None if checkout is None else Peer(name, checkout, algorithm, asked.peer_python, part, STEPS[part])
    ours = {runs: rollouts(runs) if part == "rollouts" else decoding(runs, asked.episodes) for runs in asked.runs}
    at_once = 1 if part == "rollouts" else asked.episodes
    for call in ours.values():
        seconds(call)
    taken: dict[int, list[float]] = {runs: [] for runs in ours}
    theirs = []
    for _ in range(asked.rounds):
        if peer is not None:
            theirs.append(peer.timing())
        for runs, call in ours.items():
            taken[runs].append(seconds(call) / (STEPS[part] * at_once * runs))
    if peer is not None:
        peer.close()

    def row(whose: str, runs: int, each: list[float]) -> dict[str, Any]:
        ratio = statistics.median(t / mine for t, mine in zip(theirs, each, strict=True)) if theirs else None
        speed = 1 / statistics.median(each)
        return {"part": part, "whose": whose, "runs": runs, "steps_per_second": speed, "times_peer": ratio}

    peers = [row(name, 1, theirs)] if theirs else []
    return peers + [row("ours", runs, each) for runs, each in taken.items()]


def main(asked: Unrolling) -> None:
    """Measure, print, write."""
    if min(asked.episodes, asked.rounds, *asked.runs or (0,)) < 1:
        raise Refused("--runs, --episodes and --rounds: at least one of each")
    name = f"unrolling_{asked.name}"
    file(name, ".csv")  # refuses a name that cannot be before anything is measured
    rows = [row for part in PEERS for row in measure(asked, part)]
    table = Table("part", "whose", "runs", "steps per second", "times the peer's")
    for row in rows:
        numbers = ("" if row[key] is None else f"{row[key]:.3g}" for key in ("steps_per_second", "times_peer"))
        table.add_row(row["part"], row["whose"], str(row["runs"]), *numbers)
    Console().print(table)
    checkouts = {peer: getattr(asked, peer) for _, peer in PEERS.values()}
    publish(
        name,
        rows,
        "benchmarks.studies.unrolling",
        episodes=asked.episodes,
        peers={peer: commit_of(checkout) for peer, checkout in checkouts.items() if checkout is not None},
    )


if __name__ == "__main__":
    exiting("unrolling", lambda: main(tyro.cli(Unrolling, description=__doc__)))
