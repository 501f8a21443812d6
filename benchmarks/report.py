"""From run directories to a table of final scores, a page with pictures, and the rows behind both.

    python -m benchmarks.report RUNS ... [--name NAME]

RUNS are folders with finished runs somewhere below them; a sweep's folder says which variant each run is, elsewhere a
run is called by its algorithm and the flags in which it differs; every point of a grid is a variant of its own. The
table is printed; report.html in the first folder holds it with learning curves, performance profiles, probabilities of
improvement, costs and commands; with `--name`, table, rows and curves are written to
benchmarks/results/NAME.{csv,md,json,png}, and every evaluation to NAME_evaluations.csv:

    final score      of every seed at the end of training, never the best on the way; diverged seeds count as they score
    mean of all      over tasks, which count alike, of the mean of each; only where every task has a score
    IQM of all       of all seeds but the lowest and the highest quarter; only of as many seeds on every task
    95 % interval    of each, by the percentile bootstrap that draws seeds anew within each task (stratified)
    steps to 90 %    until an evaluation first reaches nine tenths of the seed's own final score, of all phases; of
                     seeds that end above 0
    unrest           standard deviation of a seed's evaluations over the second half of its steps
    beside others    the place among published scores, for runs on D4RL's very data (benchmarks/reporting/published.py)
    drop, online     offline to online: what was lost right after the switch, and the mean over the online phase

The last columns, too, are means over tasks. The statistics are those of benchmarks/reporting/statistics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.reporting import figures, published
from benchmarks.reporting.finished import Finished, find, names, scored
from benchmarks.reporting.page import page
from benchmarks.reporting.results import ROOM, command_of, file, publish, write
from benchmarks.reporting.statistics import Statistic, balanced, interquartile_mean, interval, mean
from common import terminal
from common.errors import exiting
from common.runs import Table


@dataclass(frozen=True)
class Report:
    """What is reported."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with runs."""
    name: str | None = None
    """Of the files in benchmarks/results; none are written without it."""


def rows_of(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """One row per task, variant and seed: its final scores."""
    rows = []
    for run in runs:
        for final, steps, unrest in zip(run.summary["final"], run.steps_to_final(), run.unrest(), strict=True):
            rows.append({
                "task": run.task,
                "variant": run.variant,
                "algorithm": run.config["algorithm"],
                "seed": final["seed"],
                "score": final["score"],
                "return": final["return_mean"],
                "success": final["success"],
                "steps_to_90_percent": None if np.isnan(steps) else int(steps),
                "unrest": float(unrest),
                "offline": final.get("offline"),
                "drop": final.get("drop"),
                "online_mean": final.get("online_mean"),
                "diverged": str(final["run"]) in run.summary["diverged_at_step"],
                "steps_per_second": run.summary["steps_per_second"],
            })  # fmt: skip
    return rows


def evaluations_of(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """One row per task, variant, seed and evaluation: what the curves are drawn from."""
    kept = ("seed", "phase", "step", "episodes", "score", "return_mean")
    return [
        {"task": run.task, "variant": run.variant} | {key: row[key] for key in kept}
        for run in runs
        for row in run.evaluations
    ]


def table(runs: Sequence[Finished]) -> list[list[str]]:
    """Final scores: a head, then a row per variant; a column per task, and all tasks together if there are several."""
    tasks, variants = names(runs)
    switched = any("drop" in run.summary["final"][0] for run in runs)
    ran = {variant: {run.task: run for run in runs if run.variant == variant} for variant in variants}
    strata = scored(runs) if len(tasks) > 1 else {}
    together: dict[str, Statistic] = {"mean of all": mean} if strata else {}
    if strata and all(map(balanced, strata.values())):
        together["IQM of all"] = interquartile_mean
    head = ["variant", *tasks, *together, "steps to 90 %", "unrest", *(["drop", "online mean"] if switched else [])]
    lines = [head]
    for variant, mine in ran.items():
        cells = [variant]
        for task in tasks:
            cells.append(with_interval([mine[task].finals()], mean) if task in mine else "")
        cells += [with_interval(strata[variant], f) if variant in strata else "" for f in together.values()]
        steps = [run.steps_to_final() for run in mine.values()]
        steps = [some[~np.isnan(some)] for some in steps if not np.isnan(some).all()]
        cells.append(f"{mean(steps):,.0f}" if steps else "")
        # What is in the tasks' own units has a mean over tasks only if these are scores.
        alike = len(mine) == 1 or all(run.headline == "score" for run in mine.values())
        cells.append(f"{mean([run.unrest() for run in mine.values()]):.2g}" if alike else "")
        if switched:
            for key in ("drop", "online_mean"):
                finals = [run.summary["final"] for run in mine.values() if key in run.summary["final"][0]]
                values = [np.array([final[key] for final in seeds]) for seeds in finals]
                cells.append(f"{mean(values):.1f}" if values and alike else "")
        diverged = sum(len(run.summary["diverged_at_step"]) for run in mine.values())
        cells[0] += f" ({diverged} diverged)" if diverged else ""
        lines.append(cells)
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table, its head first."""
    head, *rest = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rest))


def with_interval(strata: Sequence[np.ndarray], statistic: Statistic) -> str:
    """A statistic, and its interval if there are seeds to draw from."""
    digits = 1 if np.abs(np.concatenate(strata)).max() > 10 else 2
    value = f"{statistic(strata):.{digits}f}"
    if min(len(stratum) for stratum in strata) < 2:
        return value
    low, high = interval(strata, statistic)
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def datasets_of(runs: Sequence[Finished]) -> dict[str, dict[str, Any]]:
    """What the data were, by task; by task and variant where runs of a task have learnt from different data."""
    found: dict[str, dict[str, Any]] = {}
    for task in names(runs)[0]:
        cards = {
            run.variant: {key: run.config["dataset"][key] for key in ("source", "fingerprint", "transitions")}
            for run in runs
            if run.task == task and run.config["dataset"]
        }
        several = len({card["fingerprint"] for card in cards.values()}) > 1
        found |= {f"{task}, {variant}" if several else task: card for variant, card in cards.items()}
    return found


def main(report: Report) -> None:
    """Print the table; write the page, and what is published."""
    runs = find(report.runs)
    finals = table(runs)
    text = markdown(finals)
    seeds = sorted({len(run.summary["final"]) for run in runs})
    note = f"Final scores, mean and 95 % interval over {' or '.join(map(str, seeds))} runs."
    console = terminal.console()
    console.print(text, highlight=False, soft_wrap=True)
    console.print(note, soft_wrap=True)
    if beside := published.ranks(runs):
        text += f"\n\n{markdown(beside)}"
        console.print(markdown(beside), highlight=False, soft_wrap=True)
    written = report.runs[0] / "report.html"
    write(written, page(report.name or report.runs[0].resolve().name, note, finals, runs))
    console.print(f"with curves and costs: {written}", highlight=False, soft_wrap=True)
    if report.name is None:
        return
    curves = figures.png(figures.curves(runs))
    publish(
        report.name,
        rows_of(runs),
        "benchmarks.report",
        runs={f"{run.task}, {run.variant}": command_of(run.config) for run in runs},
        commits=sorted({str(run.config["commit"]) for run in runs}),
        datasets=datasets_of(runs),
        evaluation_episodes=sorted({run.config["run"]["eval_episodes"] for run in runs}),
    )
    Table(file(report.name, "_evaluations.csv"), ROOM).keep(evaluations_of(runs))
    write(file(report.name, ".md"), f"{text}\n\n{note}\n")
    write(file(report.name, ".png"), curves)


if __name__ == "__main__":
    exiting("report", lambda: main(tyro.cli(Report, description=__doc__)))
