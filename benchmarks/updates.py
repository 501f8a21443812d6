"""How fast the algorithms update, beside the same updates in other people's code.

    python -m benchmarks.updates [--algorithms td3_bc iql bc edac redq_adaptive_bc] [--runs 1 5] [--rounds 7]
        --peer-python PYTHON --jax-corl CHECKOUT --unifloral CHECKOUT --corl CHECKOUT --adaptive-bc CHECKOUT

Everything is timed in turn, round after round, each peer in a process of its own that waits in between, so that all
share whatever the machine does meanwhile. A ratio is the median over rounds of our updates per second, of all runs
together, over theirs, of one. All have the same networks (two layers of 256; EDAC three, and ten critics), minibatches
of 256, and draw them from a million random transitions of walker's size; what is counted is critic steps, or the
actor's where there is no critic. Ours are the programs of training.py: whole intervals of the offline phase, and for
redq_adaptive_bc.py steps of the online phase, of twenty critic steps each. Rows go to
benchmarks/results/updates_BACKEND.{csv,json}.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from algorithms import bc, edac, iql, redq_adaptive_bc, td3_bc
from benchmarks.results import publish
from common import tasks
from common.datasets import Dataset
from common.machine import cores
from common.programs import Learner, Programs
from common.replay import Episode, Replay

TASK = "walker2d-medium"
OBSERVATION, ACTION, ROWS = 17, 6, 1_000_000
CAPACITY = 100_000
OURS: dict[str, tuple[ModuleType, type, dict[str, Any]]] = {
    "td3_bc": (td3_bc, td3_bc.TD3BC, {}),
    "iql": (iql, iql.IQL, {}),
    "bc": (bc, bc.BC, {}),
    "edac": (edac, edac.EDAC, {}),
    "redq_adaptive_bc": (redq_adaptive_bc, redq_adaptive_bc.REDQAdaptiveBC, {"target_noise": 0.2}),
}
"""Algorithm -> its file, its agent, and what differs from its defaults."""
UPDATES = {"td3_bc": 400, "iql": 400, "bc": 1000, "edac": 20, "redq_adaptive_bc": 100}
"""Critic steps per timing."""
PEERS = {
    "jax_corl": ("td3_bc", "iql"),
    "unifloral": ("td3_bc", "iql", "bc", "edac"),
    "corl": ("td3_bc", "iql", "bc", "edac"),
    "adaptive_bc": ("redq_adaptive_bc",),
}
"""Peer -> what it has."""


@dataclass(frozen=True)
class Updates:
    """What is measured."""

    algorithms: tuple[str, ...] = tuple(OURS)
    """Files of ours."""
    runs: tuple[int, ...] = (1, 5)
    """Numbers of runs side by side."""
    rounds: int = 7
    """Timings of everything."""
    jax_corl: Path | None = None
    """A checkout of nissymori/JAX-CORL."""
    unifloral: Path | None = None
    """A checkout of EmptyJackson/unifloral."""
    corl: Path | None = None
    """A checkout of tinkoff-ai/CORL."""
    adaptive_bc: Path | None = None
    """A checkout of zhaoyi11/adaptive_bc."""
    peer_python: str = sys.executable
    """The Python that can import them."""


class Ours:
    """The jitted offline phase of some runs, on random data; the online phase of an algorithm that lives there."""

    def __init__(self, algorithm: str, runs: int):
        module, agent_class, values = OURS[algorithm]
        rng = np.random.default_rng(0)
        data = Dataset(
            observation=rng.normal(size=(ROWS, OBSERVATION)).astype(np.float32),
            action=rng.uniform(-0.99, 0.99, size=(ROWS, ACTION)).astype(np.float32),
            reward=rng.normal(size=ROWS).astype(np.float32),
            terminated=np.zeros(ROWS, bool),
            truncated=np.arange(1, ROWS + 1) % 1000 == 0,
            next_observation=rng.normal(size=(ROWS, OBSERVATION)).astype(np.float32),
            success=np.zeros(ROWS, bool),
            source="random",
        )
        config, task = module.Config(**values), tasks.find(TASK)
        self.programs = programs = Programs(agent_class, config, runs, None, None)
        seeds = np.arange(runs, dtype=np.int32)
        self.seeds, self.prior = programs.place(seeds), programs.share(agent_class.prepare(config, data, task))
        example = jax.tree.map(lambda x: np.repeat(x[:1], runs, axis=0), data.batch(task))
        agent = programs.create(
            jax.tree.map(lambda x: np.full(runs, x, np.float32), config), seeds, example, self.prior
        )
        self.online = algorithm == "redq_adaptive_bc"
        agent = programs.enter(agent, self.seeds, "online" if self.online else "offline", self.prior)
        experience = None
        if self.online:
            experience = programs.place(jax.vmap(lambda row: Replay.create(row, CAPACITY))(example))
            self.played = example, Episode(np.zeros(runs, bool), np.zeros(runs, np.float32), np.ones(runs, np.int32))
        self.learner, self.utd = Learner(agent, experience), config.utd if self.online else 1
        self.updates, self.done, self.runs = UPDATES[algorithm], 0, runs
        self.first_calls = (self.timing() + self.timing()) * self.updates * runs

    def timing(self) -> float:
        """Seconds per update, all runs' counted."""
        start = time.perf_counter()
        if self.online:
            transition, episode = self.played
            for step in range(self.done // self.utd + 1, (self.done + self.updates) // self.utd + 1):
                self.learner, _, metrics = self.programs.learn(
                    self.learner, self.seeds, step, transition, episode, transition.observation, self.prior
                )
        else:
            agent, metrics = self.programs.offline(
                self.learner.agent, self.seeds, "offline", self.done, self.updates, self.prior
            )
            self.learner = self.learner.replace(agent=agent)
        jax.block_until_ready((self.learner, metrics))
        self.done += self.updates
        return (time.perf_counter() - start) / self.updates / self.runs


class Peer:
    """A peer's update in a process of its own; it answers each line with the seconds of one update."""

    def __init__(self, name: str, checkout: Path, algorithm: str, python: str):
        settings = {
            "algorithm": algorithm, "observation": OBSERVATION, "action": ACTION, "rows": ROWS,
            "hidden": [256, 256], "updates": UPDATES[algorithm],
        }  # fmt: skip
        script = Path(__file__).parent / "peers" / "updates.py"
        self.process = subprocess.Popen(
            [python, str(script), name.replace("_", "-"), str(checkout), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.first_calls = float(self.process.stdout.readline())

    def timing(self) -> float:
        """Seconds per update."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()


def measure(options: Updates, algorithm: str) -> list[dict[str, Any]]:
    """One row per peer and number of runs."""
    peers = {
        name: Peer(name, checkout, algorithm, options.peer_python)
        for name, has in PEERS.items()
        if algorithm in has and (checkout := getattr(options, name)) is not None
    }
    ours = {runs: Ours(algorithm, runs) for runs in options.runs}
    timings: dict[str | int, list[float]] = {name: [] for name in (*peers, *ours)}
    for _ in range(options.rounds):
        for name, timed in (*peers.items(), *ours.items()):
            timings[name].append(timed.timing())
    for peer in peers.values():
        peer.close()
    rows = []
    for name, timed in (*peers.items(), *ours.items()):
        values = timings[name]
        median = statistics.median(values)
        row = {
            "algorithm": algorithm,
            "whose": name if name in peers else "ours",
            "runs": 1 if name in peers else name,
            "ms_per_update_min": 1e3 * min(values),
            "ms_per_update_median": 1e3 * median,
            "ms_per_update_max": 1e3 * max(values),
            "first_two_calls_seconds": timed.first_calls,
        }
        for peer in PEERS:
            row[f"times_{peer}"] = (
                statistics.median(theirs / own for theirs, own in zip(timings[peer], values, strict=True))
                if peer in peers
                else None
            )
        rows.append(row)
    return rows


def main(options: Updates) -> None:
    """Measure, print, write."""
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
    rows = [row for algorithm in options.algorithms for row in measure(options, algorithm)]
    table = Table(title=f"updates, {jax.default_backend()}")
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*("" if v is None else v if isinstance(v, str) else f"{v:.3g}" for v in row.values()))
    Console(width=160).print(table)
    checkouts = {name: getattr(options, name) for name in PEERS}
    arguments = [f".../{Path(a).name}" if "/" in a else a for a in sys.argv[1:]]
    publish(
        f"updates_{jax.default_backend()}",
        rows,
        "python -m benchmarks.updates " + " ".join(arguments),
        peers={name: commit_of(checkout) for name, checkout in checkouts.items() if checkout is not None},
    )


def commit_of(checkout: Path) -> str:
    """What was measured against."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return head.stdout.strip() or "(no commit known)"


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", cores())
    main(tyro.cli(Updates, description=__doc__))
