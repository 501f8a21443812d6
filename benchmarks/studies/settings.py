"""Updates per second under other settings of XLA and JAX, timed in turn: `python -m benchmarks.studies.settings`.

Settings are taken when a process starts, so that each has a process of its own, which answers with the seconds of one
update. Whether a setting changes what is computed is told as well: by how much the parameters after the timed updates
differ from those of the settings as they are, in units of the largest of each array. Rows go to
benchmarks/results/settings_NAME.{csv,json}.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from benchmarks.measuring.apart import Apart
from benchmarks.measuring.timed import OURS, Ours
from benchmarks.reporting.results import file, publish
from common.errors import Refused, exiting

AS_IT_IS = "as it is"
SETTINGS: dict[str, dict[str, str]] = {
    AS_IT_IS: {},
    "kernels side by side": {"XLA_FLAGS": "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT"},
    "loops and conditionals captured": {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"},
    "command buffers off": {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="},
    "products in full precision": {"JAX_DEFAULT_MATMUL_PRECISION": "highest"},
}
"""Name -> environment variables; XLA's flags are put behind those that are there."""

END = "end"
"""The last line for a process."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    algorithms: tuple[str, ...] = ("rlpd", "td3_bc", "iql", "bc")
    """Files of ours."""
    runs: tuple[int, ...] = (1, 10)
    """Numbers of runs side by side."""
    settings: tuple[str, ...] = tuple(SETTINGS)
    """Which of them, beside those as they are."""
    hidden: tuple[int, ...] | None = None
    """Width of each hidden layer of all networks; default: the algorithm's."""
    rounds: int = 4
    """Timings of everything."""
    name: str | None = None
    """Of the files in benchmarks/results, after "settings_"; default: cpu, gpu or tpu."""


class Timed(Apart):
    """An algorithm in a process with its own settings: its answers are the seconds of an update."""

    def __init__(self, setting: str, asked: Mapping[str, Any], folder: Path):
        """Starts it; it compiles while others do."""
        values = dict(SETTINGS[setting])
        if "XLA_FLAGS" in values:
            values["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {values['XLA_FLAGS']}".strip()
        self.setting, self.parameters = setting, folder / f"{len(list(folder.iterdir()))}.npz"
        self.parameters.touch()
        start = "from benchmarks.studies.settings import answer; answer()"
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | values
        super().__init__([sys.executable, "-c", start], env=environment)
        self.ask(json.dumps(asked | {"parameters": str(self.parameters)}))

    def trouble(self) -> str:
        """As Apart.trouble."""
        return f"{self.setting}: its process has ended with status {self.process.wait()}"

    def learnt(self) -> list[np.ndarray]:
        """The parameters now; the process ends."""
        self.ask(END)
        self.answer()
        self.process.wait()
        with np.load(self.parameters) as arrays:
            return [arrays[name] for name in arrays.files]


def answer() -> None:
    """The life of such a process: seconds of an update for each line, until one says END."""
    asked = json.loads(sys.stdin.readline())
    ours = Ours(asked["algorithm"], asked["runs"], asked["hidden"] and tuple(asked["hidden"]))
    print(0, flush=True)
    for line in sys.stdin:
        if line.strip() == END:
            break
        print(ours.timing(), flush=True)
    leaves = [x for x in jax.tree.leaves(ours.learner.agent) if np.issubdtype(x.dtype, np.floating)]
    np.savez(asked["parameters"], *map(np.asarray, leaves))
    print(0, flush=True)


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest between two lists of arrays, in units of the largest number of each array."""
    pairs = zip(one, other, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs if a.size)


def measure(asked: Settings, algorithm: str, runs: int) -> list[dict[str, Any]]:
    """One row per setting."""
    wanted = {"algorithm": algorithm, "runs": runs, "hidden": asked.hidden}
    with tempfile.TemporaryDirectory() as folder:
        timed = []
        for setting in (AS_IT_IS, *(name for name in asked.settings if name != AS_IT_IS)):
            timed.append(Timed(setting, wanted, Path(folder)))
            timed[-1].answer()  # has compiled
        seconds = [[one.timing() for one in timed] for _ in range(asked.rounds)]
        learnt = [one.learnt() for one in timed]
    columns = list(zip(*seconds, strict=True))
    return [
        {
            "algorithm": algorithm,
            "runs": runs,
            "setting": one.setting,
            "updates_per_second": 1 / statistics.median(mine),
            "times_as_it_is": statistics.median(a / b for a, b in zip(columns[0], mine, strict=True)),
            "parameters_differ_by": difference(found, learnt[0]),
        }
        for one, mine, found in zip(timed, columns, learnt, strict=True)
    ]


def main(asked: Settings) -> None:
    """Measure, print and write."""
    for what, known in (("algorithms", OURS), ("settings", SETTINGS)):
        if unknown := [name for name in getattr(asked, what) if name not in known]:
            raise Refused(f"--{what} {unknown[0]}: there are {', '.join(known)}")
    if min(asked.rounds, *asked.runs or (0,)) < 1:
        raise Refused("--rounds and --runs must be at least 1")
    name = f"settings_{asked.name or jax.default_backend()}"
    file(name, ".csv")  # refuses a name that cannot be before anything is measured
    console, rows = Console(width=200), []
    for algorithm in asked.algorithms:
        for runs in asked.runs:
            for row in measure(asked, algorithm, runs):
                rows.append(row)
                console.print(
                    f"{algorithm}, {runs} runs, {row['setting']}: {row['updates_per_second']:.4g} updates per second, "
                    f"{row['times_as_it_is']:.3g} times; parameters differ by {row['parameters_differ_by']:.2g}",
                    highlight=False,
                    soft_wrap=True,
                )
    publish(name, rows, "benchmarks.studies.settings")


if __name__ == "__main__":
    exiting("settings", lambda: main(tyro.cli(Settings, description=__doc__)))
