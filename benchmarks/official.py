"""Other people's implementations on our data, beside ours: the learning curves of both sides.

    python -m benchmarks.official [--task hopper-medium] [--size 100000] [--updates 30000] [--num-seeds 3]
        --peer-python PYTHON [--corl CHECKOUT] [--iql CHECKOUT]
    python -m benchmarks.report runs/official --name official

TD3+BC of tinkoff-ai/CORL and IQL of ikostrikov/implicit_q_learning train, in a process of their own, on the very
transitions of a recipe, and our td3_bc.py and iql.py with the same settings: two layers of 256, minibatches of 256, one
discount, weights, schedules and normalisation. All policies are evaluated by the same code, in episodes with the same
seeds. Every side leaves a run directory that the report reads; one that is finished is not trained again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tyro
from rich.console import Console

from benchmarks.throughput import commit_of
from common import datasets, environments, tasks
from common.datasets import Dataset, cards
from common.evaluation import Evaluator
from common.runs import Table, making, write_json

ROOT = Path(__file__).parents[1]
SIDES = {"corl": ("td3_bc", "TD3+BC", "CORL"), "iql": ("iql", "IQL", "its authors")}
"""Peer -> our file, the algorithm's name, and whose code the peer is."""


@dataclass(frozen=True)
class Official:
    """What is trained."""

    task: str = "hopper-medium"
    """A task with recipe data."""
    size: int = 100_000
    """Transitions to make."""
    updates: int = 30_000
    """Gradient steps; the schedules end there."""
    eval_every: int = 5000
    """Updates between evaluations."""
    eval_episodes: int = 20
    """Episodes per evaluation."""
    num_seeds: int = 3
    """Of every side."""
    corl: Path | None = None
    """A checkout of tinkoff-ai/CORL."""
    iql: Path | None = None
    """A checkout of ikostrikov/implicit_q_learning."""
    peer_python: str = sys.executable
    """The Python that can import them."""
    runs: Path = Path("runs/official")
    """Where the run directories lie."""


class Peer:
    """One seed of a peer's agent, in a process of its own."""

    def __init__(self, python: str, name: str, checkout: Path, settings: dict[str, Any]):
        script = Path(__file__).parent / "peers" / "train.py"
        self.process = subprocess.Popen(
            [python, str(script), name, str(checkout), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.stdin.close()
        self.process.wait()

    def ask(self, question: bytes, count: int, more: bytes, dtype: type, answers: int) -> np.ndarray:
        """What it answers, `answers` numbers."""
        self.process.stdin.write(question + np.int32(count).tobytes() + more)
        self.process.stdin.flush()
        answer = self.process.stdout.read(answers * np.dtype(dtype).itemsize)
        if len(answer) < answers * np.dtype(dtype).itemsize:
            raise RuntimeError(f"the peer's process ended: status {self.process.wait()}")
        return np.frombuffer(answer, dtype)

    def train(self, updates: int) -> float:
        """The seconds that so many updates took."""
        return float(self.ask(b"T", updates, b"", np.float64, 1)[0])

    def act(self, observations: np.ndarray, action_size: int) -> np.ndarray:
        """Actions [..., a] for observations [..., o]."""
        leading = observations.shape[:-1]
        count = int(np.prod(leading))
        rows = np.ascontiguousarray(observations, np.float32).tobytes()
        return self.ask(b"A", count, rows, np.float32, count * action_size).reshape(*leading, action_size)


def train_peer(options: Official, name: str, data: Dataset, file: Path, out: Path) -> None:
    """All seeds of a peer, one after another, into a run directory as the report reads it."""
    task, checkout = tasks.find(options.task), getattr(options, name)
    rows, finals, seconds = [], [], 0.0
    for seed in range(options.num_seeds):
        settings = {"data": str(file), "seed": seed, "updates": options.updates}
        evaluator = Evaluator(lambda: environments.make(task, data), 1, options.eval_episodes)
        with Peer(options.peer_python, name, checkout, settings) as peer:
            for step in range(options.eval_every, options.updates + 1, options.eval_every):
                seconds += peer.train(options.eval_every)
                (outcome,) = evaluator(lambda x, peer=peer: peer.act(x, data.action.shape[1]), [seed], step)
                rows.append({"run": seed, "seed": seed, "step": step, "phase": "offline", **outcome.row(task)})
        evaluator.close()
        finals.append({"run": seed, "seed": seed, "point": {}} | rows[-1])
    out.mkdir(parents=True, exist_ok=True)
    Table(out / "eval.csv").keep(sorted(rows, key=lambda row: row["step"]))
    config = {
        "algorithm": SIDES[name][0],
        "command": f"python -m benchmarks.official --task {options.task} --size {options.size} "
        f"--updates {options.updates} --eval-every {options.eval_every} --num-seeds {options.num_seeds} --{name} ...",
        "commit": commit_of(checkout),
        "dataset": cards.card(data, task),
        "run": {"env": options.task, "eval_episodes": options.eval_episodes},
    }
    write_json(out / "config.json", config)
    summary = {
        "final": finals,
        "diverged_at_step": {},
        "steps_per_second": options.num_seeds * options.updates / seconds,
    }
    write_json(out / "summary.json", summary)


def train_ours(options: Official, name: str, source: str, out: Path) -> None:
    """The command, resumed where it has begun."""
    program = [sys.executable, str(ROOT / "algorithms" / f"{SIDES[name][0]}.py")]
    arguments = [
        "--env", options.task, "--dataset", source, "--num-seeds", options.num_seeds,
        "--offline-steps", options.updates, "--eval-every", options.eval_every,
        "--eval-episodes", options.eval_episodes, "--out", out,
    ]  # fmt: skip
    begun = (out / "config.json").is_file()
    subprocess.run(program + (["--resume", str(out)] if begun else [str(a) for a in arguments]), check=True)


def main(options: Official) -> None:
    """Make the data; train each side that has not finished."""
    task = tasks.find(options.task)
    console = Console()
    with making(console) as progress:
        source = f"minari:{datasets.recipes.make(options.task, options.size, progress=progress)}"
        data = datasets.load(task, source)
    jobs = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(
            file, observations=data.observation, actions=data.action, rewards=data.reward,
            next_observations=data.next_observation, terminals=data.terminated.astype(np.float32),
            timeouts=data.truncated.astype(np.float32),
        )  # fmt: skip
        for name, (algorithm, title, whose) in SIDES.items():
            if getattr(options, name) is None:
                continue
            for side, variant in ((name, f"{title}, {whose}"), ("ours", f"{title}, {algorithm}.py")):
                relative = Path(options.task) / f"{algorithm}-{side}"
                jobs.append({"task": options.task, "variant": variant, "folder": str(relative)})
                out = options.runs / relative
                if (out / "summary.json").is_file():
                    continue
                console.print(f"{options.task}: {variant}")
                if side == "ours":
                    train_ours(options, name, source, out)
                else:
                    train_peer(options, name, data, file, out)
    write_json(options.runs / "suite.json", {"jobs": jobs})


if __name__ == "__main__":
    main(tyro.cli(Official, description=__doc__))
