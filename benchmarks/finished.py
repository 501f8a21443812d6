"""Finished run directories as they are found: whose they are, their final scores, their curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import Refused


@dataclass(frozen=True)
class Finished:
    """A variant on a task with all its seeds: a finished run directory, or one point of its grid."""

    task: str
    variant: str
    config: dict[str, Any]
    summary: dict[str, Any]
    evaluations: list[dict[str, str]]

    @property
    def headline(self) -> str:
        """The number that tells how good a policy is: the score where the task has one."""
        return "score" if self.summary["final"][0]["score"] is not None else "return_mean"

    def finals(self) -> np.ndarray:
        """[runs]: final scores in percent, or returns."""
        return np.array([final[self.headline] for final in self.summary["final"]], float)

    def curve(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Steps over all phases [k], scores [k, runs], and how many of those steps lie before the online phase."""
        ends: dict[str, int] = {}
        for row in self.evaluations:
            ends[row["phase"]] = max(ends.get(row["phase"], 0), int(row["step"]))
        starts, total = {}, 0
        for phase, end in ends.items():
            starts[phase], total = total, total + end
        points: dict[int, list[float]] = {}
        for row in self.evaluations:
            points.setdefault(starts[row["phase"]] + int(row["step"]), []).append(float(row[self.headline]))
        steps = np.array(sorted(points))
        return steps, np.array([points[step] for step in steps]), starts.get("online", 0)

    def steps_to_final(self) -> np.ndarray:
        """[runs]: steps until an evaluation first reaches 90 % of the run's final score."""
        steps, scores, _ = self.curve()
        return steps[(scores >= scores[-1] - 0.1 * np.abs(scores[-1])).argmax(axis=0)]

    def unrest(self) -> np.ndarray:
        """[runs]: standard deviation of the evaluations over the second half of the steps."""
        steps, scores, _ = self.curve()
        return scores[steps > steps[-1] / 2].std(axis=0)


def find(folders: Sequence[Path]) -> list[Finished]:
    """The finished runs below the folders, in a sweep's own order. Raises Refused if there are none."""
    found = []
    for folder in folders:
        named: dict[Path, tuple[str, str]] = {}
        if (folder / "suite.json").is_file():
            jobs = json.loads((folder / "suite.json").read_text())["jobs"]
            named = {folder / job["folder"]: (job["task"], job["variant"]) for job in jobs}
        below = sorted(path.parent for path in folder.rglob("summary.json"))
        for path in [p for p in named if p in below] + [p for p in below if p not in named]:
            config = json.loads((path / "config.json").read_text())
            task, variant = named.get(path, (config["run"]["env"], path.name))
            with (path / "eval.csv").open() as file:
                rows = list(csv.DictReader(file))
            found += points(Finished(task, variant, config, json.loads((path / "summary.json").read_text()), rows))
    if not found:
        raise Refused(f"no finished run (no summary.json) below {' or '.join(map(str, folders))}")
    return found


def points(run: Finished) -> list[Finished]:
    """The points of a run's grid, each a variant of its own, named after what it differs in."""
    finals: dict[str, list[dict[str, Any]]] = {}
    for final in run.summary["final"]:
        finals.setdefault(final["point"] or "", []).append(final)
    if len(finals) == 1:
        return [run]
    found = []
    for point, mine in finals.items():
        numbers = {str(final["run"]) for final in mine}
        diverged = {k: v for k, v in run.summary["diverged_at_step"].items() if k in numbers}
        summary = run.summary | {"final": mine, "diverged_at_step": diverged}
        rows = [row for row in run.evaluations if row["run"] in numbers]
        found.append(Finished(run.task, f"{run.variant}, {point}", run.config, summary, rows))
    return found


def names(runs: Sequence[Finished]) -> tuple[list[str], list[str]]:
    """Tasks and variants, in their order."""
    return list(dict.fromkeys(run.task for run in runs)), list(dict.fromkeys(run.variant for run in runs))


def scored(runs: Sequence[Finished]) -> dict[str, list[np.ndarray]]:
    """The scores per task, [seeds] each, of every variant that has run on all tasks; empty if a task has no score."""
    tasks, variants = names(runs)
    if any(run.headline != "score" for run in runs):
        return {}
    found = {variant: {run.task: run.finals() for run in runs if run.variant == variant} for variant in variants}
    return {variant: [mine[task] for task in tasks] for variant, mine in found.items() if len(mine) == len(tasks)}
