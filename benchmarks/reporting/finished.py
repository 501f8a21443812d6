"""Finished run directories as they are found: whose they are, their final scores, their curves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting.results import without_folder
from benchmarks.reporting.variants import Said, called
from common.errors import Refused
from common.runs import Table

DEEPEST = 5
"""Folders from a sweep's down to a run's, at most: a task's name may be a path."""


@dataclass(frozen=True)
class Finished:
    """A variant on a task with all its seeds: a finished run directory, or one point of its grid."""

    folder: Path
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
        """[runs]: steps until an evaluation first reaches 90 % of the run's final score; nan if that is not above 0."""
        steps, scores, _ = self.curve()
        reached = steps[(scores >= scores[-1] - 0.1 * np.abs(scores[-1])).argmax(axis=0)]
        # A score of 0 is a random policy's: there was nothing to reach. A return's sign says nothing.
        return np.where((scores[-1] > 0) | (self.headline != "score"), reached, np.nan)

    def unrest(self) -> np.ndarray:
        """[runs]: standard deviation of the evaluations over the second half of the steps."""
        steps, scores, _ = self.curve()
        return scores[steps > steps[-1] / 2].std(axis=0)


def load(path: Path, *keys: str) -> dict[str, Any]:
    """What a JSON file holds, these keys among it. Raises Refused, naming the file, if it does not."""
    try:
        content = json.loads(path.read_text())
        missing = [key for key in keys if key not in content]
    except (OSError, ValueError, TypeError) as error:
        raise Refused(f"{path}: cannot be read ({error}); train anew, or move it away") from error
    if missing:
        raise Refused(f"{path}: {', '.join(missing)} missing; train anew, or move it away")
    return content


def begun(out: Path, arguments: Sequence[str]) -> bool:
    """Whether the run with these arguments, `--out` left out, has begun in `out`. Raises Refused if another has."""
    if not (out / "config.json").exists():
        return False
    if without_folder(load(out / "config.json", "arguments")["arguments"]) != list(arguments):
        raise Refused(f"{out} holds another run than is asked for now: move it away to train anew")
    return True


def jobs(folder: Path) -> list[dict[str, str]]:
    """Folder, task and variant of every job of a sweep's folder; of any other there are none."""
    path = folder / "suite.json"
    return load(path, "jobs")["jobs"] if path.is_file() else []


def named(path: Path) -> tuple[str, str, str, int] | None:
    """What a sweep calls the run in a folder: its task, its variant, and its place among the sweep's; None without."""
    path = path.resolve()
    for above in list(path.parents)[:DEEPEST]:
        for number, job in enumerate(jobs(above)):
            if above / job["folder"] == path:
                return job["task"], job["variant"], str(above), number
    return None


def find(folders: Sequence[Path]) -> list[Finished]:
    """The finished runs below the folders, in a sweep's own order; others are called by what they differ in.

    Raises Refused if there are none, if one cannot be read, or if two are the same variant on the same task.
    """
    read: dict[Path, Finished] = {}
    anonymous: list[Path] = []
    for folder in folders:
        below = {path.parent: named(path.parent) for path in sorted(folder.rglob("summary.json"))}
        swept = sorted((job for job in below.items() if job[1]), key=lambda job: job[1][2:])
        for path, name in [*swept, *(other for other in below.items() if not other[1])]:
            if path.resolve() in read:
                continue
            read[path.resolve()] = opened(path, name and name[:2])
            if name is None:
                anonymous.append(path.resolve())
    said = [Said(path, read[path].task, read[path].config) for path in anonymous]
    for path, variant in zip(anonymous, called(said), strict=True):
        read[path] = dataclasses.replace(read[path], variant=variant)
    found: dict[tuple[str, str], Finished] = {}
    for whole in read.values():
        for run in points(whole):
            twin = found.setdefault((run.task, run.variant), run)
            if twin is not run:
                raise Refused(
                    f"{twin.folder} and {run.folder} both hold {run.variant} on {run.task}: report them apart, "
                    "one folder at a time"
                )
    if not found:
        raise Refused(f"no finished run (no summary.json) below {' or '.join(map(str, folders))}")
    return list(found.values())


def opened(path: Path, named: tuple[str, str] | None = None) -> Finished:
    """The finished run in a folder, with the task and variant that a sweep has for it."""
    config = load(path / "config.json", "algorithm", "run", "dataset", "commit")
    summary = load(path / "summary.json", "final", "diverged_at_step", "steps_per_second")
    task, variant = named or (config["run"]["env"], path.name)
    rows = Table(path / "eval.csv").rows()
    if not rows:
        raise Refused(f"{path / 'eval.csv'}: holds no evaluations; train anew, or move it away")
    return Finished(path, task, variant, config, summary, rows)


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
        variant = f"{run.variant}, {point}"
        found.append(dataclasses.replace(run, variant=variant, summary=summary, evaluations=rows))
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
