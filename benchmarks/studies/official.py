"""Other people's implementations on our data, beside ours: the learning curves of both sides.

    python -m benchmarks.studies.official [--task hopper-medium] [--size 100000] [--updates 30000] [--num-seeds 3]
        --peer-python PYTHON [--corl CHECKOUT] [--iql CHECKOUT]
    python -m benchmarks.report runs/official --name official

TD3+BC of tinkoff-ai/CORL and IQL of ikostrikov/implicit_q_learning train, in a process of their own, on the very
transitions of a recipe, and our td3_bc.py and iql.py with the same settings: two layers of 256, minibatches of 256, one
discount, weights, schedules and normalisation. All policies are evaluated by the same code, in episodes with the same
seeds. Every side leaves a run directory that the report reads; one that is finished is not trained again. Calls with
other tasks or peers add to the same folder.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tyro
from rich.console import Console

from benchmarks.reporting.finished import begun, jobs
from benchmarks.reporting.results import commit_of
from common import datasets, recipes, tasks
from common.datasets import Dataset, cards
from common.errors import Refused, exiting
from common.evaluation import Evaluator
from common.runs import Table, write_json
from common.terminal import making

ROOT = Path(__file__).parents[2]
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

    def check(self) -> None:
        """Refuse what makes no sense, before anything is trained."""
        for name in ("size", "updates", "eval_every", "eval_episodes", "num_seeds"):
            if getattr(self, name) < 1:
                raise Refused(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.updates % self.eval_every:
            raise Refused(f"--updates {self.updates} must be a multiple of --eval-every {self.eval_every}")
        if self.task not in recipes.names():
            raise Refused(f"--task {self.task}: the recipes are {', '.join(recipes.names())}")
        checkouts = {name: getattr(self, name) for name in SIDES if getattr(self, name) is not None}
        if not checkouts:
            raise Refused(f"no peer to train: give a checkout with {' or '.join(f'--{name}' for name in SIDES)}")
        for name, checkout in checkouts.items():
            if not checkout.is_dir():
                raise Refused(f"--{name} {checkout}: there is no such folder")
        if shutil.which(self.peer_python) is None:
            raise Refused(f"--peer-python {self.peer_python}: there is no such program")


@dataclass(frozen=True)
class Side:
    """The peer's code or ours, on the task."""

    peer: str
    ours: bool
    options: Official

    @property
    def job(self) -> dict[str, str]:
        """Its line of suite.json."""
        algorithm, title, whose = SIDES[self.peer]
        folder = Path(self.options.task) / f"{algorithm}-{'ours' if self.ours else self.peer}"
        variant = f"{title}, {f'{algorithm}.py' if self.ours else whose}"
        return {"task": self.options.task, "variant": variant, "folder": str(folder)}

    @property
    def out(self) -> Path:
        """Its run directory."""
        return self.options.runs / self.job["folder"]

    def arguments(self) -> list[str]:
        """Its command line, without folders: of our file, or of this one."""
        options = self.options
        common = ["--eval-every", options.eval_every, "--eval-episodes", options.eval_episodes]
        if self.ours:
            data = f"minari:{recipes.dataset_id(options.task, options.size)}"
            schedule = ["--num-seeds", options.num_seeds, "--offline-steps", options.updates, *common]
            return [str(a) for a in ("--env", options.task, "--dataset", data, *schedule)]
        schedule = ["--updates", options.updates, *common, "--num-seeds", options.num_seeds]
        return [str(a) for a in ("--task", options.task, "--size", options.size, *schedule)]

    def finished(self) -> bool:
        """Whether there is nothing to train. Raises Refused if another run lies in its folder."""
        return begun(self.out, self.arguments()) and (self.out / "summary.json").is_file()


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
        with contextlib.suppress(BrokenPipeError):  # it may have ended by itself
            self.process.stdin.close()
        self.process.wait()

    def ask(self, question: bytes, count: int, more: bytes, dtype: type, answers: int) -> np.ndarray:
        """What it answers, `answers` numbers. Raises Refused if it has ended instead."""
        size = answers * np.dtype(dtype).itemsize
        try:
            self.process.stdin.write(question + np.int32(count).tobytes() + more)
            self.process.stdin.flush()
            answer = self.process.stdout.read(size)
        except BrokenPipeError:
            answer = b""
        if len(answer) < size:
            raise Refused(f"the peer's process has ended with status {self.process.wait()}: see above what it lacks")
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


def train_peer(side: Side, data: Dataset, file: Path) -> None:
    """All seeds of a peer, one after another, into a run directory as the report reads it."""
    options, name, out = side.options, side.peer, side.out
    task, checkout = tasks.find(options.task), getattr(options, name)
    rows, finals, learning, evaluation = [], [], 0.0, 0.0
    for seed in range(options.num_seeds):
        settings = {"data": str(file), "seed": seed, "updates": options.updates, "family": task.family}
        evaluator = Evaluator(lambda: datasets.environment_of(task, data), 1, options.eval_episodes)
        with Peer(options.peer_python, name, checkout, settings) as peer:
            for step in range(options.eval_every, options.updates + 1, options.eval_every):
                learning += peer.train(options.eval_every)
                start = time.perf_counter()
                (outcome,) = evaluator(lambda x, peer=peer: peer.act(x, data.action.shape[1]), [seed], step)
                evaluation += time.perf_counter() - start
                rows.append({"run": seed, "seed": seed, "step": step, "phase": "offline", **outcome.row(task)})
        evaluator.close()
        finals.append({"run": seed, "seed": seed, "point": {}} | rows[-1])
    out.mkdir(parents=True, exist_ok=True)
    Table(out / "eval.csv").keep(sorted(rows, key=lambda row: row["step"]))
    config = {
        "algorithm": SIDES[name][0],
        "arguments": side.arguments(),
        "command": " ".join(["python -m benchmarks.studies.official", *side.arguments(), f"--{name} ..."]),
        "commit": commit_of(checkout),
        "dataset": cards.card(data, task),
        "run": {"env": options.task, "eval_episodes": options.eval_episodes},
    }
    write_json(out / "config.json", config)
    summary = {
        "final": finals,
        "diverged_at_step": {},
        # As of runs side by side, of which each would have this rate.
        "steps_per_second": options.updates / learning,
        "learning_seconds": learning,
        "evaluation_seconds": evaluation,
        "whole_seconds": learning + evaluation,
    }
    write_json(out / "summary.json", summary)


def train_ours(side: Side) -> None:
    """The command, resumed where it has begun. Raises Refused if it fails."""
    program = [sys.executable, str(ROOT / "algorithms" / f"{SIDES[side.peer][0]}.py")]
    asked = ["--resume"] if begun(side.out, side.arguments()) else [*side.arguments(), "--out"]
    done = subprocess.run([*program, *asked, str(side.out)])
    if done.returncode:
        raise Refused(f"{side.out}: training has ended with status {done.returncode}; the same command goes on")


def describe(folder: Path, sides: Sequence[Side]) -> None:
    """Add to suite.json, by which a report calls the runs, what these folders are; those of earlier calls stay."""
    known = {job["folder"]: job for job in (*jobs(folder), *(side.job for side in sides))}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "suite.json", {"jobs": list(known.values())})


def main(options: Official) -> None:
    """Make the data; train each side that has not finished."""
    options.check()
    task = tasks.find(options.task)
    sides = [Side(name, ours, options) for name in SIDES if getattr(options, name) for ours in (False, True)]
    missing = [side for side in sides if not side.finished()]
    console = Console()
    with making(console) as progress:
        source = f"minari:{recipes.make(options.task, options.size, progress=progress)}"
    describe(options.runs, sides)
    if not missing:
        return
    data = datasets.load(task, source)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(
            file, observations=data.observation, actions=data.action, rewards=data.reward,
            next_observations=data.next_observation, terminals=data.terminated.astype(np.float32),
            timeouts=data.truncated.astype(np.float32),
        )  # fmt: skip
        for side in missing:
            console.print(f"{options.task}: {side.job['variant']}")
            if side.ours:
                train_ours(side)
            else:
                train_peer(side, data, file)


if __name__ == "__main__":
    exiting("official", lambda: main(tyro.cli(Official, description=__doc__)))
