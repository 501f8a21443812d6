"""Means of what updates tell, from one row of metrics.csv to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from common.agent import MISSING


class Means:
    """Of every metric, for every run, over the steps since the last row that have such a number.

    They are summed in double precision, one after the other, so that a mean does not depend on how many steps come in
    one call, or whether a checkpoint lies between them.
    """

    def __init__(self, runs: int):
        self.runs = runs
        self.sums: dict[str, np.ndarray] = {}
        """[runs] each"""
        self.counts: dict[str, np.ndarray] = {}
        """[runs] each"""

    def add(self, metrics: Mapping[str, np.ndarray]) -> None:
        """Count the metrics of some more steps, [runs, steps] each."""
        for name, values in metrics.items():
            is_there = values != MISSING
            before = self.sums.get(name, np.zeros(self.runs))
            terms = np.column_stack([before, np.where(is_there, values, 0.0).astype(np.float64)])
            with np.errstate(invalid="ignore"):  # of infinities of both signs
                self.sums[name] = np.add.accumulate(terms, axis=1)[:, -1]
            self.counts[name] = self.counts.get(name, np.zeros(self.runs, int)) + is_there.sum(axis=1)

    def take(self) -> dict[str, np.ndarray]:
        """The means, float32 [runs] each, nan where no step had such a number; what follows is counted anew."""
        with np.errstate(invalid="ignore", over="ignore"):  # 0 / 0 is what it should be
            means = {name: (total / self.counts[name]).astype(np.float32) for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-able."""
        return {name: [self.sums[name].tolist(), self.counts[name].tolist()] for name in self.sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.sums = {name: np.array(sums, float) for name, (sums, _) in state.items()}
        self.counts = {name: np.array(counts, int) for name, (_, counts) in state.items()}


def known(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The metrics of one step, [runs] each, nan where it has no such number."""
    values = {name: np.asarray(value) for name, value in metrics.items()}
    return {name: np.where(value == MISSING, np.float32(np.nan), value) for name, value in values.items()}


def first_not_finite(metrics: Mapping[str, np.ndarray]) -> dict[int, tuple[int, str]]:
    """Of metrics of some steps, [runs, steps] each: run -> the first step with one that is not finite, counted from 0,
    and its name; that of a loss, where there are several."""
    found: dict[int, tuple[int, bool, str]] = {}
    for name, values in metrics.items():
        wrong = ~np.isfinite(values)
        for run in np.flatnonzero(wrong.any(axis=1)).tolist():
            candidate = int(wrong[run].argmax()), not name.endswith("loss"), name
            found[run] = min(found.get(run, candidate), candidate)
    return {run: (step, name) for run, (step, _, name) in found.items()}
