"""From run directories to a table of final scores, learning curves, and the rows behind both.

    python -m benchmarks.report RUNS ... [--name NAME]

RUNS are folders with finished runs somewhere below them; a sweep's folder says which variant each run is, elsewhere a
run is called by its folder. Printed, and written to benchmarks/results/NAME.{csv,md,json,png} if `--name` is given:

    final score      of every seed at the end of training, never the best on the way; diverged seeds count as they score
    mean, IQM        over all seeds and tasks; the interquartile mean leaves out the lowest and the highest quarter
    95 % interval    of either, by the percentile bootstrap that draws seeds anew within each task (stratified)
    steps to 90 %    until an evaluation first reaches nine tenths of the seed's own final score, of all phases
    unrest           standard deviation of a seed's evaluations over the second half of its steps
    drop, online     offline to online: what was lost right after the switch, and the mean over the online phase

IQM and stratified bootstrap are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", NeurIPS 2021.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.results import FOLDER, command_of, publish
from benchmarks.statistics import Statistic, interquartile_mean, interval, mean
from common.errors import Refused

STYLES = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)), (0, (8, 2, 1, 2))]


@dataclass(frozen=True)
class Report:
    """What is reported."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with runs."""
    name: str | None = None
    """Of the files in benchmarks/results; none are written without it."""


@dataclass(frozen=True)
class Finished:
    """One finished run directory: a variant on a task, with all its seeds."""

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
            found.append(Finished(task, variant, config, json.loads((path / "summary.json").read_text()), rows))
    if not found:
        raise Refused(f"no finished run (no summary.json) below {' or '.join(map(str, folders))}")
    return found


def rows_of(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """One row per task, variant and seed (and point of a grid): its final scores."""
    rows = []
    for run in runs:
        for final, steps, unrest in zip(run.summary["final"], run.steps_to_final(), run.unrest(), strict=True):
            rows.append({
                "task": run.task,
                "variant": run.variant,
                "algorithm": run.config["algorithm"],
                "seed": final["seed"],
                "point": json.dumps(final["point"]) if final["point"] else "",
                "score": final["score"],
                "return": final["return_mean"],
                "success": final["success"],
                "steps_to_90_percent": int(steps),
                "unrest": float(unrest),
                "offline": final.get("offline"),
                "drop": final.get("drop"),
                "online_mean": final.get("online_mean"),
                "diverged": str(final["run"]) in run.summary["diverged_at_step"],
                "steps_per_second": run.summary["steps_per_second"],
            })  # fmt: skip
    return rows


def table(runs: Sequence[Finished]) -> str:
    """Final scores in Markdown: a row per variant, a column per task, and all tasks together if there are several."""
    tasks, variants = (list(dict.fromkeys(getattr(run, name) for run in runs)) for name in ("task", "variant"))
    switched = any("drop" in run.summary["final"][0] for run in runs)
    head = ["variant", *tasks, *(["mean of all", "IQM of all"] if len(tasks) > 1 else [])]
    head += ["steps to 90 %", "unrest", *(["drop", "online mean"] if switched else [])]
    lines = [head, ["---"] * len(head)]
    for variant in variants:
        mine = {run.task: run for run in runs if run.variant == variant}
        cells = [variant]
        for task in tasks:
            cells.append(with_interval([mine[task].finals()], mean) if task in mine else "")
        strata = [run.finals() for run in mine.values()]
        if len(tasks) > 1:
            whole = len(mine) == len(tasks)
            cells += [with_interval(strata, f) if whole else "" for f in (mean, interquartile_mean)]
        cells.append(f"{np.concatenate([run.steps_to_final() for run in mine.values()]).mean():,.0f}")
        cells.append(f"{np.concatenate([run.unrest() for run in mine.values()]).mean():.2g}")
        if switched:
            for key in ("drop", "online_mean"):
                values = [f[key] for run in mine.values() for f in run.summary["final"] if key in f]
                cells.append(f"{np.mean(values):.1f}" if values else "")
        diverged = sum(len(run.summary["diverged_at_step"]) for run in mine.values())
        cells[0] += f" ({diverged} diverged)" if diverged else ""
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def with_interval(strata: Sequence[np.ndarray], statistic: Statistic) -> str:
    """A statistic, and its interval if there are seeds to draw from."""
    whole = np.concatenate(strata)
    digits = 1 if np.abs(whole).max() > 10 else 2
    value = f"{statistic(whole):.{digits}f}"
    if min(len(stratum) for stratum in strata) < 2:
        return value
    low, high = interval(strata, statistic)
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def draw(runs: Sequence[Finished], path: Path) -> None:
    """Mean score against steps, a panel per task; the band spans all seeds, a grey line is the switch to online."""
    tasks, variants = (list(dict.fromkeys(getattr(run, name) for run in runs)) for name in ("task", "variant"))
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.5, 3.2 * rows + 0.4 + 0.2 * len(variants)), layout="constrained")
    handles = {}
    for index, task in enumerate(tasks):
        axes = figure.add_subplot(rows, columns, index + 1)
        for run in (run for run in runs if run.task == task):
            number = variants.index(run.variant)
            steps, scores, switch = run.curve()
            style = {"color": f"C{number % 10}", "linestyle": STYLES[number % len(STYLES)]}
            handles[run.variant] = axes.plot(steps, scores.mean(1), **style, linewidth=1.8)[0]
            if scores.shape[1] > 1:
                axes.fill_between(steps, scores.min(1), scores.max(1), color=style["color"], alpha=0.12, linewidth=0)
            if switch:
                axes.axvline(switch, color="0.5", linewidth=0.8)
        axes.set(title=task, xlabel="steps", ylabel="score, %" if run.headline == "score" else "return")
        axes.grid(alpha=0.3)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(3, len(handles)), fontsize="small")
    figure.savefig(path, dpi=130)


def main(report: Report) -> None:
    """Print the table; write it, the rows and the curves."""
    runs = find(report.runs)
    text = table(runs)
    seeds = sorted({len(run.summary["final"]) for run in runs})
    note = f"Final scores, mean and 95 % interval over {' or '.join(map(str, seeds))} runs."
    console = Console()
    console.print(text, highlight=False, soft_wrap=True)
    console.print(note, highlight=False)
    if report.name is None:
        return
    cards = {run.task: run.config["dataset"] for run in runs if run.config["dataset"]}
    stem = publish(
        report.name,
        rows_of(runs),
        "python -m benchmarks.report " + " ".join(sys.argv[1:]),
        runs={f"{run.task}, {run.variant}": command_of(run.config) for run in runs},
        commits=sorted({str(run.config["commit"]) for run in runs}),
        datasets={
            task: {key: card[key] for key in ("source", "fingerprint", "transitions")} for task, card in cards.items()
        },
        evaluation_episodes=sorted({run.config["run"]["eval_episodes"] for run in runs}),
    )
    stem.with_suffix(".md").write_text(f"{text}\n\n{note}\n")
    draw(runs, FOLDER / f"{report.name}.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Report, description=__doc__))
    except Refused as refusal:
        print(f"report: {refusal}", file=sys.stderr)
        sys.exit(2)
