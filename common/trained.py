"""What a training that was started in Python returns."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.runs import Table, read_config

TEXTS = ("phase", "point")
"""Columns that hold no numbers."""


class Trained:
    """The runs of one training, in the order of points of the grid, each with its seeds."""

    def __init__(self, folder: Path, summary: dict[str, Any] | None):
        """`folder` is the run directory; without a `summary` the training was stopped."""
        self.folder, self.summary = folder, summary
        self.config: dict[str, Any] = read_config(folder)
        """What config.json holds: how the runs began."""

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped before its end: `resume` goes on."""
        return self.summary is None

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """The columns of metrics.csv, [rows] each."""
        return columns(self.folder / "metrics.csv")

    @cached_property
    def evaluations(self) -> dict[str, np.ndarray]:
        """The columns of eval.csv, [rows] each."""
        return columns(self.folder / "eval.csv")

    @property
    def scores(self) -> np.ndarray:
        """float [runs]: of the last evaluation, the score in percent, or the mean return where the task has no score;
        empty before the first evaluation."""
        table = self.evaluations
        if not table:
            return np.zeros(0)
        values = table["return_mean"] if np.isnan(table["score"]).all() else table["score"]
        return np.array([values[table["run"] == run][-1] for run in np.unique(table["run"])])

    def policy(self, run: int = 0) -> Any:
        """The policy of a run, as `common.library.load` gives it. Raises Refused."""
        from common.policies import load  # not before it is needed

        return load(self.folder, run)

    def __repr__(self) -> str:
        scores = ", ".join(f"{score:.4g}" for score in self.scores)
        end = " (interrupted; resume goes on)" if self.interrupted else ""
        return f"{self.config['algorithm']} on {self.config['run']['env']}: scores [{scores}]; {self.folder}{end}"


def columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table: whole numbers, other numbers, nan where a row has none, or texts."""
    rows = Table(path).rows()
    found = {}
    for name in Table(path).columns():
        cells = [row[name] or "" for row in rows]
        if name in TEXTS:
            found[name] = np.array(cells)
        else:
            numbers = np.array([float(cell or "nan") for cell in cells])
            is_count = all(cell.isdigit() for cell in cells)
            found[name] = numbers.astype(int) if is_count else numbers
    return found
