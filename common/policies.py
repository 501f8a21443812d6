"""Policies in JAX: of a run directory, of a checkpoint of it, or of a policy file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from common import exported, points, policyfiles
from common.agent import Agent
from common.errors import Refused, one_line
from common.exported import Exported, Unusable
from common.resuming import began_in
from common.runs import RunDirectory, read_config

if TYPE_CHECKING:
    from common.environments import Environment

CHECKPOINTS = "checkpoints"
ROWS = 40
"""Of the made-up data with which an agent is made, for its structure alone."""


class Policy(Exported):
    """A policy as exported.Exported, compiled by JAX for each number of observations."""

    def __init__(self, path: Any, content: tuple[dict[str, Any], dict[str, np.ndarray]] | None = None):
        super().__init__(path, content)
        self._weights = jax.tree.map(jnp.asarray, self.arrays)
        self._compiled = jax.jit(functools.partial(exported.act, self.architecture, xp=jnp))
        self._further = jax.jit(functools.partial(exported.proceed, self.architecture, xp=jnp))

    def _act(self, rows: np.ndarray, seed: int | None) -> np.ndarray:
        with jax.default_matmul_precision("highest"):  # an accelerator would round coarsely
            return np.asarray(self._compiled(self._weights, rows, None if seed is None else np.uint32(seed)))

    def _proceed(self, memory: tuple, rows: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, tuple]:
        with jax.default_matmul_precision("highest"):
            action, memory = self._further(self._weights, memory, rows, rewards)
        return np.asarray(action), memory


def misfit(policy: Exported, environment: Environment) -> tuple[str, str] | None:
    """What a policy sees and does, and what an environment has, in words; None where these are the same."""
    mine = policy.observation_size, policy.action_size, policy.about["action"]["first"] is not None
    its = environment.observation_size, environment.action_size, environment.numbers is not None
    if mine == its:
        return None
    return tuple(f"{o} numbers and {a} {'discrete actions' if d else 'per action'}" for o, a, d in (mine, its))


def load(path: str | Path, run: int = 0) -> Policy:
    """The policy of a run: called as `policy(observation, seed=None)`, see exported.Exported; `policy.about` names it.

    `path` is a run directory, one of its `checkpoints/STEP`, or a policy file. A directory from before there were
    policy files is read from its newest checkpoint. Raises Refused.
    """
    path = Path(path)
    step = None
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        path, step = path.parents[1], int(path.name)
    try:
        if path.is_file() or not (path / "config.json").exists():
            if path.is_dir() or not path.exists():
                raise Refused(f"{path}: neither a run directory, nor a checkpoint of one, nor a policy file")
            return Policy(path)
        _, saved = RunDirectory.open(path)
        runs = len(points.of_runs(saved))
        if not 0 <= run < runs:
            raise Refused(f"{path}: has no run {run}; runs are 0 ... {runs - 1}")
        file = path / policyfiles.FOLDER / f"{run}.npz"
        if step is None and file.exists():
            return Policy(file)
        return Policy(path, from_checkpoint(path, saved, run, step))
    except Unusable as error:
        raise Refused(str(error)) from error


def from_checkpoint(folder: Path, saved: Mapping[str, Any], run: int, step: int | None) -> tuple[dict, dict]:
    """What the file of a run's policy would hold, by a checkpoint of it, by default the newest. Raises Refused."""
    from common import checkpoints, environments, tasks  # what a policy file needs nothing of

    with contextlib.chdir(began_in(folder.absolute(), saved)):
        task = tasks.find(saved["run"]["env"])
        mean = (saved["dataset"] or {}).get("observation_mean")  # says how long an observation is
        with contextlib.closing(environments.make(task, mean and len(mean))) as environment:
            faces = policyfiles.interface(environment)
            sizes = environment.observation_size, environment.action_size
    step, arrays, state = checkpoints.read(folder / CHECKPOINTS, step, "agent.")
    agent = skeleton(saved, task, *sizes).replace(phase=state["phase"])
    arrays = {name.removeprefix("agent."): leaf[run] for name, leaf in arrays.items()}
    try:
        agent = checkpoints.unflatten(agent, arrays, same_shapes=False)
    except Refused as refusal:
        raise Refused(f"{folder}: {one_line(refusal).removeprefix('--resume: ')}") from refusal
    origin = policyfiles.provenance(saved, run) | {"phase": state["phase"], "step": state["step"], "evaluation": None}
    return policyfiles.content(agent.portable(), faces, origin)


def skeleton(saved: Mapping[str, Any], task: Any, observation_size: int, action_size: int) -> Agent:
    """An agent of the shapes that a run's agents have, but for those that depend on its data. Raises Refused."""
    from common.datasets import Dataset
    from common.replay import Batch

    name = saved["algorithm"]
    try:
        module = importlib.import_module(f"algorithms.{name}")
    except ModuleNotFoundError as error:
        raise Refused(f"algorithms/{name}.py is not here, and its checkpoints cannot be read without it") from error
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
    agent_class = next(kind for kind in kinds if issubclass(kind, Agent))
    known = {field.name for field in dataclasses.fields(module.Config)}
    if unknown := [name for name in saved["config"] if name not in known]:
        raise Refused(f"algorithms/{name}.py has no {unknown[0]} any more: use the code of commit {saved['commit']}")
    config = module.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved["config"].items()})
    rng = np.random.default_rng(0)
    observation, following = rng.normal(size=(2, ROWS, observation_size)).astype(np.float32)
    action = rng.uniform(-1, 1, (ROWS, action_size)).astype(np.float32)
    nothing, ends = np.zeros(ROWS, np.float32), np.arange(ROWS) % 10 == 9
    data = Dataset(observation, action, nothing, ends, nothing > 0, following, nothing > 0, "npz:made-up")
    prior = None if saved["dataset"] is None else agent_class.prepare(config, data, task)
    row = Batch(observation[0], action[0], nothing[0], nothing[0], following[0])
    return jax.eval_shape(lambda key: agent_class.create(config, key, row, prior), jax.random.key(0))


def described(policy: Exported) -> str:
    """A policy's origin in one line."""
    origin = policy.about["provenance"]
    evaluation = origin["evaluation"]
    known = [name for name in ("score", "return_mean") if evaluation and evaluation[name] is not None]
    scored = f", {known[0].removesuffix('_mean')} {evaluation[known[0]]:.2f}" if known else ""
    where = f"{origin['algorithm']} on {origin['task']}, seed {origin['seed']}"
    return f"{where}, {origin['phase']} step {origin['step']}{scored}"


def command_of(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The run directory that a path is or lies in, and its config.json; None where it lies in none."""
    for folder in (path.absolute(), *path.absolute().parents[:2]):
        with contextlib.suppress(OSError, ValueError):
            return folder, read_config(folder)
    return path.absolute().parent, None
