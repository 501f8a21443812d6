"""Updates per second of this checkout beside those of another, timed in turn: has a change made an algorithm slower?

    git worktree add ../before COMMIT
    python -m benchmarks.studies.before ../before [--algorithms rlpd td3_bc ...] [--runs 1 5] [--rounds 7] [--name NAME]

Each side times its own files as its own `benchmarks.throughput` does, in a process of its own that waits in between,
with the same Python and packages. A ratio is the median over rounds of our updates per second over the other's; the
least and the greatest of the rounds are told too. Rows go to benchmarks/results/before_NAME.{csv,json}.
"""

from __future__ import annotations

import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from benchmarks.measuring.apart import Apart
from benchmarks.measuring.timed import OURS
from benchmarks.reporting.results import commit_of, file, publish
from common.errors import Refused, exiting

HERE = Path(__file__).parents[2]
TIMING = """
import sys
from pathlib import Path
import jax
from common.machine import cores
jax.config.update("jax_num_cpu_devices", cores())
jax.config.update("jax_enable_compilation_cache", False)
try:
    from benchmarks.measuring.timed import Ours
except ImportError:  # where it was once
    from benchmarks.throughput import Ours
found = Path(sys.modules[Ours.__module__].__file__)
if not found.is_relative_to(Path.cwd()):
    sys.exit(f"{found} is not of this checkout")
timed = Ours(sys.argv[1], int(sys.argv[2]))
print(0, flush=True)
for _ in sys.stdin:
    print(timed.timing(), flush=True)
"""
"""What runs in either checkout: an answer for each line."""


@dataclass(frozen=True)
class Before:
    """What is compared."""

    checkout: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKOUT")]
    """The other one."""
    algorithms: tuple[str, ...] = ("rlpd", "td3_bc", "iql", "bc", "edac", "redq_adaptive_bc")
    """Files that both have."""
    runs: tuple[int, ...] = (1, 5)
    """Numbers of runs side by side."""
    rounds: int = 7
    """Timings of everything."""
    name: str = "cpu"
    """Of the files in benchmarks/results, after "before_"."""


class Side(Apart):
    """An algorithm of one checkout: its answers are the seconds of an update, all runs' counted."""

    def __init__(self, checkout: Path, algorithm: str, runs: int):
        """Compiles; raises Refused where that fails."""
        self.checkout, self.algorithm = checkout, algorithm
        environment = os.environ | {"PYTHONPATH": str(checkout), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        super().__init__([sys.executable, "-c", TIMING, algorithm, str(runs)], cwd=checkout, env=environment)
        self.answer()

    def trouble(self) -> str:
        """As Apart.trouble."""
        return f"{self.checkout}: its {self.algorithm} cannot be timed"


def compare(asked: Before, algorithm: str, runs: int) -> dict[str, Any]:
    """The row of an algorithm and a number of runs."""
    before, now = (Side(checkout, algorithm, runs) for checkout in (asked.checkout.absolute(), HERE))
    pairs = [(before.timing(), now.timing()) for _ in range(asked.rounds)]
    before.close()
    now.close()
    ratios = [old / new for old, new in pairs]
    old, new = (1 / statistics.median(side) for side in zip(*pairs, strict=True))
    return {
        "algorithm": algorithm,
        "runs": runs,
        "updates_per_second_before": old,
        "updates_per_second": new,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main(asked: Before) -> None:
    """Measure, print and write."""
    if unknown := [name for name in asked.algorithms if name not in OURS]:
        raise Refused(f"--algorithms {unknown[0]}: there are {', '.join(OURS)}")
    if min(asked.rounds, *asked.runs or (0,)) < 1:
        raise Refused("--rounds and --runs must be at least 1")
    if not (asked.checkout / "benchmarks").is_dir():
        raise Refused(f"{asked.checkout}: is no checkout of this project")
    name = f"before_{asked.name}"
    file(name, ".csv")  # refuses a name that cannot be before anything is measured
    rows = []
    for algorithm in asked.algorithms:
        for runs in asked.runs:
            rows.append(row := compare(asked, algorithm, runs))
            Console(width=200).print(
                f"{algorithm}, {runs} runs: {row['updates_per_second_before']:.4g} before, "
                f"{row['updates_per_second']:.4g} now, {row['ratio']:.3g} times "
                f"({row['ratio_min']:.3g} to {row['ratio_max']:.3g})",
                highlight=False,
            )
    publish(name, rows, "benchmarks.studies.before", before=commit_of(asked.checkout))


if __name__ == "__main__":
    exiting("before", lambda: main(tyro.cli(Before, description=__doc__)))
