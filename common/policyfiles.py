"""policies/ of a run directory: what each run has learnt to do, in a small file that needs no JAX (exported.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium.spaces import Dict

from common import exported, points
from common.environments import Environment
from common.errors import Refused
from common.portable import Portable
from common.progress import Progress
from common.runs import RunDirectory, finite, read_config, replacing, writing

FOLDER = "policies"
UNLIKE = 0.05
"""By how much an action may differ from the agent's own: accelerators round products coarsely."""
KEPT = ("algorithm", "id", "commit", "versions", "matmul_precision")
"""What a policy's file tells of its command, of config.json."""


def interface(environment: Environment) -> dict[str, Any]:
    """How observations and actions of a Gymnasium environment become those of policies, JSON-able."""
    space, keys = environment.raw.observation_space, environment.keys
    parts = [space] if not isinstance(space, Dict) else [space[key] for key in keys]
    action: dict[str, Any] = {"size": environment.action_size, "first": None}
    if environment.numbers is not None:
        action["first"] = environment.numbers.start
    else:
        own = environment.raw.action_space
        action |= {"dtype": str(own.dtype), "low": own.low.tolist(), "high": own.high.tolist()}
    return {
        "observation": {
            "size": environment.observation_size,
            "keys": None if keys is None else list(keys),
            "sizes": [part.shape[0] for part in parts],
            "origin": environment.origin.tolist() if environment.draws_goal else None,
        },
        "action": action,
    }


def provenance(saved: Mapping[str, Any], run: int) -> dict[str, Any]:
    """Where a policy comes from, by the command's config.json; what changes while it learns is missing yet."""
    values = points.of_runs(saved)[run]
    seed = values.pop("seed")
    return {
        **{key: saved[key] for key in KEPT},
        "task": saved["run"]["env"],
        "dataset": saved["dataset"] and saved["dataset"]["source"],
        "run": run,
        "seed": seed,
        "config": values,
    }


def content(portable: Portable, faces: Mapping[str, Any], origin: Mapping[str, Any]) -> tuple[dict, dict]:
    """What a policy's file says, and its arrays, of an agent's policy, `interface` and `provenance`."""
    architecture, arrays = portable.split()
    about = {"format": exported.FORMAT, "architecture": architecture, **faces, "provenance": dict(origin)}
    return finite(about), arrays


class PolicyFiles:
    """The files of all runs of a command, each replaced at once."""

    def __init__(
        self, directory: RunDirectory, environment: Environment, progress: Progress, announce: Callable[[str], None]
    ):
        """`announce` is told, in a line, why there are none, if so."""
        self.directory, self.progress, self.announce = directory, progress, announce
        self.interface = interface(environment)
        self.is_checked = False
        """Whether the policies were seen to do what their agents do."""
        self.problem: str | None = None
        """Why there can be none."""

    def check(self, agents: Any, observations: np.ndarray, actions: np.ndarray) -> None:
        """Keep from writing what is not `act` of these agents on the host, seen in their evaluation, [runs, n, ...].

        A changed copy of an algorithm may act otherwise, and have inherited what it says of its policy.
        """
        self.is_checked = True
        for run, (rows, expected) in enumerate(zip(observations, actions, strict=True)):
            if (portable := self._portable(agents, run)) is None:
                return
            with np.errstate(all="ignore"):  # of a run that has diverged
                architecture, arrays = portable.split()
                found = exported.act(architecture, arrays, np.ascontiguousarray(rows, np.float32))
                distance = np.abs(found - expected).max(-1)
            if np.isfinite(distance).any() and (median := np.nanmedian(distance)) > UNLIKE:
                kind = type(agents).__name__
                self._refuse(f"{kind}.portable is not what its act does (actions differ by {median:.2g}): override it")
                return

    def write(self, agents: Any) -> None:
        """Write those of agents on the host, [runs, ...]. Raises Refused if the disk does not take them."""
        if self.problem:
            return
        folder = self.directory.path / FOLDER
        saved = read_config(self.directory.path)
        evaluated = self._evaluated()
        for run in range(len(jax.tree.leaves(agents)[0])):
            if (portable := self._portable(agents, run)) is None:
                return
            at = {"phase": self.progress.phase, "step": self.progress.step, "evaluation": evaluated.get(run)}
            about, arrays = content(portable, self.interface, provenance(saved, run) | at)
            path = folder / f"{run}.npz"
            with writing(path):
                folder.mkdir(exist_ok=True)
                save(path, about, arrays)

    def _portable(self, agents: Any, run: int) -> Portable | None:
        """What one run's agent says of its policy; None, and nothing is written any more, if it cannot be told."""
        try:
            return jax.tree.map(lambda x: x[run], agents).portable()
        except Refused as refusal:
            self._refuse(str(refusal))
            return None

    def _refuse(self, problem: str) -> None:
        self.problem = problem
        self.announce(f"no {FOLDER}/: {problem}")

    def _evaluated(self) -> dict[int, dict[str, Any]]:
        """Run -> its last row of eval.csv, with the step of all phases together."""
        found = {}
        for row in self.directory.evaluations.rows():
            phases = list(self.progress.phases.items())
            before = sum(steps for _, steps in phases[: self.progress.order(row["phase"])])
            numbers = {name: float(row[name]) for name in ("episodes", "score", "success", "return_mean")}
            step = int(row["step"])
            found[int(row["run"])] = {"phase": row["phase"], "step": step, "total_step": before + step} | numbers
        return found


def save(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Replace a policy's file at once. Raises OSError."""
    told = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, about=told, **arrays)
