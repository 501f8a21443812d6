"""What is told of a command's runs: rows of its tables, lines at the terminal, the curve and the summary."""

from __future__ import annotations

import contextlib
import itertools
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from common.commandline import Run
from common.evaluation import Outcome
from common.foreign import figures
from common.progress import Progress
from common.runs import RunDirectory, writing
from common.tasks import Task
from common.terminal import Bar
from common.trackers import Trackers

Figure = figures().Figure


class Reporter:
    """Tells of a command's runs: to the run directory, the terminal and the trackers."""

    def __init__(
        self,
        directory: RunDirectory,
        console: Console,
        task: Task,
        run: Run,
        progress: Progress,
        seeds: Sequence[int],
        points: Sequence[str],
    ):
        """Of runs with these seeds, [runs], at these points of the grid, [runs], which are empty without a grid."""
        self.directory, self.console, self.task, self.run = directory, console, task, run
        self.progress, self.seeds, self.points = progress, seeds, points

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """With the trackers that are asked for, which go on from the present step, and a bar at the terminal."""
        done = self.progress.total_step
        self.trackers = Trackers(self.directory.path, self.run, self.directory.identifier, done)
        with contextlib.closing(self.trackers), Bar(self.console, self.progress.total, done) as self.bar:
            yield

    def announce(self, text: str) -> None:
        """One line for the person at the terminal."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def advance(self, description: str) -> None:
        """Move the bar to the present step."""
        self.bar.advance(self.progress.total_step, description, self.progress.speed)

    def resumed(self) -> None:
        """Drop the rows that were written after the checkpoint, and say where it goes on."""
        phase, step, order = self.progress.phase, self.progress.step, self.progress.order
        for table in (self.directory.metrics, self.directory.evaluations):
            owed = self.progress.owes_evaluation and table is self.directory.evaluations
            place = order(phase), step - owed
            table.keep(r for r in table.rows() if (order(r["phase"]), int(r["step"])) <= place)
        self.announce(f"resuming in the {phase} phase after step {step}")

    def log(self, metrics: Mapping[str, jax.Array], more: Sequence[Mapping[str, float]]) -> None:
        """Write a row of metrics for every run: `metrics` [runs] by name, and more of each run."""
        values = {name: np.asarray(value) for name, value in metrics.items()}
        rows = [
            self._where(run) | {name: float(value[run]) for name, value in values.items()} | dict(more[run])
            for run in range(len(self.seeds))
        ]
        self.directory.metrics.append(rows)
        self.trackers.log("train", self.progress.total_step, rows)

    def evaluated(self, outcomes: Sequence[Outcome]) -> None:
        """Write a row about the evaluation of every run, and say their mean."""
        rows = [self._where(run) | outcome.row(self.task) for run, outcome in enumerate(outcomes)]
        name = self.headline
        if name == "score":
            self.progress.episode_scores = [self.task.score(o.returns, o.success).tolist() for o in outcomes]
        self.directory.evaluations.append(rows)
        self.trackers.log("evaluation", self.progress.total_step, rows)
        values = np.array([row[name] for row in rows])
        few = len(values) <= 12
        each = " ".join(f"{v:.4g}" for v in values) if few else f"{values.min():.4g} ... {values.max():.4g}"
        step = f"{self.progress.phase} step {self.progress.step}"
        self.bar.evaluated(f"{step:>20}   {name} {values.mean():7.2f}   runs: {each}", f"{name} {values.mean():.4g}")

    @property
    def headline(self) -> str:
        """The column of eval.csv that tells how good a policy is: the score where the task has one."""
        return "score" if np.isfinite(self.task.score(0.0, True)) else "return_mean"

    def diverged(self, run: int) -> None:
        """Note that an action of a run was not finite, and say so the first time."""
        if str(run) not in self.progress.diverged_at_step:
            phase, step = self.progress.phase, self.progress.step
            self.progress.diverged_at_step[str(run)] = {"phase": phase, "step": step}
            self.announce(f"run {run} (seed {self.seeds[run]}) has diverged at {phase} step {step}")

    def not_finite(self, run: int, metric: str, step: int) -> None:
        """Note that a metric of a run was not finite, and say so the first time."""
        if str(run) not in self.progress.not_finite_at_step:
            phase = self.progress.phase
            self.progress.not_finite_at_step[str(run)] = {"phase": phase, "step": step, "metric": metric}
            self.announce(f"run {run} (seed {self.seeds[run]}): {metric} is not finite at {phase} step {step}")

    def interrupted(self, resumable: bool) -> None:
        """Say where it stops, and how it goes on."""
        kept = f"continue with --resume {self.directory.path}" if resumable else "checkpoints were off"
        self.announce(f"interrupted after step {self.progress.step}; {kept}")

    def finish(self, horizon: int) -> dict[str, Any]:
        """Draw the curve, write the summary, say the score; `horizon` is the environment's, in steps."""
        progress, count = self.progress, len(self.seeds)
        finals = self._finals()
        summary = {
            "final": [{"run": k, "seed": self.seeds[k], "point": self.points[k]} | f for k, f in enumerate(finals)],
            "final_mean": {k: float(np.mean([f[k] for f in finals])) for k in finals[0] if k != "episode_scores"},
            "diverged_at_step": progress.diverged_at_step,
            "not_finite_at_step": progress.not_finite_at_step,
            "steps_per_second": progress.speed,
            "steps_per_second_with_evaluation": progress.speed_with_evaluation,
            "learning_seconds": progress.learning_seconds,
            "evaluation_seconds": progress.evaluation_seconds,
            "compile_seconds": progress.compile_seconds,
            "whole_seconds": progress.whole_seconds(),
            "peak_memory_bytes": peak_memory(),
            "environment_horizon": horizon,
        }
        title = f"{self.task.name}, {count} run{'s' * (count > 1)}"
        draw_curve(self.directory, title, self.headline, progress.phases)
        self.directory.finish(summary)
        several = count > 1
        self.announce(
            f"final {self.headline}: {summary['final_mean'][self.headline]:.2f}, "
            f"{f'mean of {count} runs, ' * several}{self.run.eval_episodes} episodes{' each' * several}; "
            f"{progress.speed:.1f} steps/s{' of every run' * several}; results in {self.directory.path}"
        )
        return summary

    def _finals(self) -> list[dict[str, Any]]:
        """What became of each run."""
        rows = self.directory.evaluations.rows()
        phases = self.progress.phases
        end = list(phases.items())[-1]
        last = [row for row in rows if (row["phase"], int(row["step"])) == end]
        finals: list[dict[str, Any]] = [{k: float(r[k]) for k in ("score", "success", "return_mean")} for r in last]
        if self.progress.episode_scores:
            for final, scores in zip(finals, self.progress.episode_scores, strict=True):
                final["episode_scores"] = scores
        if "online" in phases and len(phases) > 1:
            for run, final in enumerate(finals):
                final |= online_progress([row for row in rows if int(row["run"]) == run], self.headline)
        return finals

    def _where(self, run: int) -> dict[str, Any]:
        """The leading columns of a row about one run."""
        columns = {"run": run, "seed": self.seeds[run], "step": self.progress.step, "phase": self.progress.phase}
        return columns | ({"point": self.points[run]} if self.points[run] else {})


def draw_curve(directory: RunDirectory, title: str, metric: str, phases: Mapping[str, int]) -> None:
    """Draw curve.png, `metric` against steps: a run is a thin line, the mean of a grid point a thick one.

    `phases` are the names and steps of the phases, drawn one after another. Raises Refused if it cannot be written.
    """
    starts = dict(zip(phases, itertools.accumulate(phases.values(), initial=0), strict=False))
    rows = directory.evaluations.rows()
    if not rows:
        return
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        line = groups.setdefault(row.get("point", ""), {}).setdefault(row["run"], [])
        line.append((starts[row["phase"]] + float(row["step"]), float(row[metric])))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, (point, lines) in enumerate(groups.items()):
        color = f"C{index % 10}"
        for line in lines.values():
            axes.plot(*zip(*line, strict=True), color=color, alpha=0.35, linewidth=1)
        steps = sorted({x for line in lines.values() for x, _ in line})
        mean = [np.mean([y for line in lines.values() for at, y in line if at == x]) for x in steps]
        label = (f"{point}: " if point else "") + f"mean of {len(lines)} run{'s' * (len(lines) > 1)}"
        axes.plot(steps, mean, color=color, linewidth=2, marker="o", markersize=3, label=label)
    for phase, start in starts.items():
        if len(starts) > 1:
            axes.axvline(start, color="0.6", linestyle=":", linewidth=1)
            axes.annotate(f" {phase}", (start, 1), xycoords=("data", "axes fraction"), va="top", color="0.4")
    kind = "environment steps" if list(starts) == ["online"] else "updates" if "online" not in starts else "steps"
    axes.set(xlabel=kind, ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    temporary = directory.path / ".curve.partial.png"
    with writing(directory.path / "curve.png"):
        figure.savefig(temporary, dpi=150)
        temporary.replace(directory.path / "curve.png")


def online_progress(rows: list[dict[str, str]], name: str) -> dict[str, float]:
    """What became of a policy that was trained offline, from the rows of eval.csv of one run.

    `offline`: its last offline evaluation. `drop`: what it had lost at its worst evaluation in the first tenth of the
    online phase (at the first one, if that comes later); negative if it had only gained. `online_mean`: the mean of
    all online evaluations; 100 minus it is the regret, where scores are in percent.
    """
    offline = [float(row[name]) for row in rows if row["phase"] != "online"][-1]
    online = [(int(row["step"]), float(row[name])) for row in rows if row["phase"] == "online"]
    early = [value for step, value in online if step <= online[-1][0] / 10] or [online[0][1]]
    return {
        "offline": offline,
        "drop": offline - min(early),
        "online_mean": float(np.mean([value for _, value in online])),
    }


def peak_memory() -> int:
    """The most memory this process has held, in bytes: the accelerator's where there is one, else the host's."""
    statistics = jax.devices()[0].memory_stats() or {}
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return statistics.get("peak_bytes_in_use", host)
