"""Our reader of D4RL's files against `qlearning_dataset` of Farama-Foundation/D4RL, taken out of it as it stands: which
transitions there are, their masks, their actions. Theirs drops the last row of an episode that a time limit cuts; ours
keeps it where the file holds its successor."""

from __future__ import annotations

import ast
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.studies.parity import harness as h
from common import datasets, tasks


def function() -> Any:
    """Theirs."""
    source = (h.checkout("D4RL") / "d4rl" / "__init__.py").read_text()
    found = next(n for n in ast.parse(source).body if getattr(n, "name", "") == "qlearning_dataset")
    space = {"np": np}
    exec(compile(ast.Module([found], []), "d4rl", "exec"), space)
    return space["qlearning_dataset"]


def columns(stored: bool) -> dict[str, np.ndarray]:
    """Hopper-shaped: episodes that terminate, are cut by the time limit, and one that the file cuts."""
    rng = np.random.default_rng(0)
    lengths = [7, 5, 9, 4, 6]
    n, ends = sum(lengths), np.cumsum(lengths) - 1
    observation = rng.standard_normal((n, 11)).astype(np.float32)
    following = np.roll(observation, -1, axis=0)
    following[ends] = rng.standard_normal((len(ends), 11))
    data = {
        "observations": observation, "actions": rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        "rewards": rng.standard_normal(n).astype(np.float32),
        "terminals": np.isin(np.arange(n), ends[[0, 2]]), "timeouts": np.isin(np.arange(n), ends[[1, 3]]),
    }  # fmt: skip
    data["actions"][3] = 1.0
    return data | ({"next_observations": following} if stored else {})


def check(stored: bool) -> None:
    """A file with next observations, or without."""
    table = h.Table(f"next observations {'' if stored else 'not '}stored")
    data, task = columns(stored), tasks.find("hopper-medium")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.hdf5"
        with h5py.File(path, "w") as file:
            for key, value in data.items():
                file[key] = value
        theirs = function()(h.namespace(get_dataset=lambda: data, _max_episode_steps=1000))
        batch = datasets.load(task, f"d4rl:{path}").batch(task)
    index = {row.tobytes(): i for i, row in enumerate(np.ascontiguousarray(batch.observation))}
    both = [(index[o.tobytes()], i) for i, o in enumerate(theirs["observations"]) if o.tobytes() in index]
    mine, other = (np.array(x) for x in zip(*both, strict=True))
    counts = len(data["rewards"]), len(theirs["rewards"]), len(batch.reward), len(both)
    table.row("transitions of the file, theirs, ours, of both", "{}, {}, {}, {}".format(*counts))
    table.row("rewards that differ", int((batch.reward[mine] != theirs["rewards"][other]).sum()))
    table.row("masks that differ", int((batch.mask[mine] != 1 - theirs["terminals"][other]).sum()))
    same = (batch.next_observation[mine] == theirs["next_observations"][other]).all(axis=1)
    table.row("successors that differ where the mask is 1", int((~same & (batch.mask[mine] == 1)).sum()))
    clipped = theirs["actions"][other].clip(-(1 - 1e-5), 1 - 1e-5)
    table.row("actions that differ, theirs clipped", int((batch.action[mine] != clipped).any(axis=1).sum()))


def main() -> None:
    """All cases."""
    check(stored=False)
    check(stored=True)


if __name__ == "__main__":
    main()
