"""What is told of a command's runs: rows of its tables, lines at the terminal, the curve and the summary."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from common import points
from common.checkpoints import Saving
from common.commandline import Run
from common.curves import draw_curve
from common.evaluation import Outcome
from common.pacing import StepTimes
from common.progress import Progress
from common.runs import RunDirectory
from common.tasks import Task
from common.terminal import Bar
from common.trackers import Trackers

DRAWING_SHARE = 0.02
"""Of the time, for the curve while runs are trained."""
SHOWN_EVERY = 0.1
"""Seconds from one movement of the bar to the next, at least."""

LEADING = ("run", "seed", "step", "phase", "point")
"""Columns of the tables that say which run and when."""


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
        labels: Sequence[str],
    ):
        """Of runs with these seeds, [runs], at these points of the grid, [runs], which are empty without a grid."""
        self.directory, self.console, self.task, self.run = directory, console, task, run
        self.progress, self.seeds, self.labels = progress, seeds, labels
        self.drawing = Saving(1, DRAWING_SHARE)

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """With the trackers that are asked for, which go on from the present step, and a bar at the terminal."""
        progress, owed = self.progress, self.progress.evaluates_step
        told = progress.total_step if owed is None else progress.total_at(owed)
        self.trackers = Trackers(self.directory.path, self.run, self.directory.identifier, told)
        if owed is not None:
            self.trackers.postpone(self._later_metrics(owed))
        with contextlib.closing(self.trackers), Bar(self.console, progress.total, progress.total_step) as self.bar:
            yield

    def _later_metrics(self, step: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The rows of metrics.csv after a step of the present phase, by their step of all phases together."""
        for row in self.directory.metrics.rows():
            if row["phase"] == self.progress.phase and int(row["step"]) > step:
                numbers = {name: float(x) for name, x in row.items() if x and name not in LEADING}
                yield self.progress.total_at(int(row["step"])), [{"run": int(row["run"])} | numbers]

    def postpone(self) -> None:
        """Tell trackers of nothing more until `evaluated`, for they take steps in their order."""
        self.trackers.postpone()

    def announce(self, text: str) -> None:
        """One line for the person at the terminal."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def advance(self, description: str) -> None:
        """Move the bar to the present step."""
        progress = self.progress
        self.bar.advance(progress.total_step, description, progress.speed, progress.left(self.run.eval_every))

    def compiling(self) -> None:
        """Say so beside the bar, until it moves."""
        self.bar.say("compiling", self.progress.left(self.run.eval_every))

    def evaluating(self, done: int, total: int) -> None:
        """Say beside the bar how many of an evaluation's episodes, of all runs, are done."""
        left = self.progress.left(self.run.eval_every, 1 - done / total)
        self.bar.say(f"evaluating {done}/{total}", left)

    def resumed(self) -> None:
        """Drop the rows that were written after the checkpoint, and say where it goes on."""
        phase, step, order = self.progress.phase, self.progress.step, self.progress.order
        logged = step - self.progress.owes_updates
        evaluated = min(logged, step - self.progress.owes_evaluation)
        if self.progress.evaluates_step is not None:
            evaluated = self.progress.evaluates_step - 1
        for table, last in ((self.directory.metrics, logged), (self.directory.evaluations, evaluated)):
            place = order(phase), last
            table.keep(r for r in table.rows() if (order(r["phase"]), int(r["step"])) <= place)
        self.announce(f"resuming in the {phase} phase after step {step}")

    def log(self, metrics: Mapping[str, jax.Array], more: Sequence[Mapping[str, float]]) -> None:
        """Write a row of metrics for every run: `metrics` [runs] by name, and more of each run."""
        values, step = {name: np.asarray(value) for name, value in metrics.items()}, self.progress.step
        rows = [
            self._where(run, step) | {name: float(value[run]) for name, value in values.items()} | dict(more[run])
            for run in range(len(self.seeds))
        ]
        self.directory.metrics.append(rows)
        self.trackers.log("train", self.progress.total_step, rows)

    def evaluated(self, outcomes: Sequence[Outcome], step: int) -> None:
        """Write a row about the evaluation of every run after a step of the present phase, and say their mean."""
        rows = [self._where(run, step) | outcome.row(self.task) for run, outcome in enumerate(outcomes)]
        name = self.headline
        if name == "score":
            self.progress.episode_scores = [self.task.score(o.returns, o.success).tolist() for o in outcomes]
        self.directory.evaluations.append(rows)
        self.trackers.log("evaluation", self.progress.total_at(step), rows)
        if self.progress.total_step < self.progress.total and self.drawing.affordable():
            self.draw()
        values = np.array([row[name] for row in rows])
        at = f"{self.progress.phase} step {step}"
        if self.points == 1:
            mean = values.mean()
            self.bar.evaluated(f"{at:>20}   {name} {mean:7.2f}   runs: {points.each(values)}", f"{name} {mean:.4g}")
            return
        # Different settings have no mean.
        means = [values[[mine == label for mine in self.labels]].mean() for label in dict.fromkeys(self.labels)]
        self.bar.evaluated(f"{at:>20}   {name}, point by point: {points.each(means)}", f"{name} {points.span(means)}")

    def draw(self) -> None:
        """Replace curve.png by one that shows all evaluations so far."""
        start, count = time.perf_counter(), len(self.seeds)
        title = f"{self.task.name}, {count} run{'s' * (count > 1)}"
        draw_curve(self.directory, title, self.headline, self.progress.phases)
        self.drawing.done(start)

    @property
    def points(self) -> int:
        """How many points the grid has; 1 without a grid."""
        return len(set(self.labels))

    @property
    def headline(self) -> str:
        """The column of eval.csv that tells how good a policy is: the score where the task has one."""
        return "score" if np.isfinite(self.task.score(0.0, True)) else "return_mean"

    def diverged(self, run: int, step: int | None = None) -> None:
        """Note that an action of a run was not finite, and say so the first time, or if it is of an earlier step.

        At a `step` of the present phase, by default the present one.
        """
        phase, step = self.progress.phase, self.progress.step if step is None else step
        known = self.progress.diverged_at_step.get(str(run))
        if known is None or (known["phase"] == phase and step < known["step"]):
            self.progress.diverged_at_step[str(run)] = {"phase": phase, "step": step}
            self.announce(f"run {run} (seed {self.seeds[run]}) has diverged at {phase} step {step}")

    def not_finite(self, run: int, metric: str, step: int) -> None:
        """Note that a metric of a run was not finite, and say so the first time."""
        if str(run) not in self.progress.not_finite_at_step:
            phase = self.progress.phase
            self.progress.not_finite_at_step[str(run)] = {"phase": phase, "step": step, "metric": metric}
            self.announce(f"run {run} (seed {self.seeds[run]}): {metric} is not finite at {phase} step {step}")

    def interrupted(self, resumable: bool) -> None:
        """Draw the curve, say where it stops, and how it goes on."""
        self.draw()
        kept = f"continue with {self.directory.way}" if resumable else "checkpoints were off"
        self.announce(f"interrupted after step {self.progress.step}; {kept}")

    def finish(
        self, horizon: int, times: StepTimes | None = None, told: str = "", labels: Sequence[Path] = ()
    ) -> dict[str, Any]:
        """Draw the curve, write the summary, say the score; `horizon` is the environment's, in steps.

        `times` are what an online step took, `told` the same in words. `labels` are the data sets of what an expert has
        labelled, of every run.
        """
        progress, count = self.progress, len(self.seeds)
        finals = self._finals()
        ranked = points.ranked(finals, self.labels, self.seeds, self.headline)
        summary = {
            "final": [{"run": k, "seed": self.seeds[k], "point": self.labels[k]} | f for k, f in enumerate(finals)],
            **({"final_mean": points.mean(finals)} if self.points == 1 else {"points": ranked}),
            "diverged_at_step": progress.diverged_at_step,
            "not_finite_at_step": progress.not_finite_at_step,
            "steps_per_second": progress.speed,
            "steps_per_second_with_evaluation": progress.speed_with_evaluation,
            **({} if times is None else {"online_step_milliseconds": times._asdict()}),
            **({"labels": [str(path.relative_to(self.directory.path)) for path in labels]} if labels else {}),
            "learning_seconds": progress.learning_seconds,
            "evaluation_seconds": progress.evaluation_seconds,
            "compile_seconds": progress.compile_seconds,
            "whole_seconds": progress.whole_seconds(),
            "peak_memory_bytes": peak_memory(),
            "environment_horizon": horizon,
        }
        self.draw()
        self.directory.finish(summary)
        several, best = count > 1, ranked[0]
        if self.points > 1:
            for line in points.table(ranked, self.headline):
                self.announce(line)
        if told:
            self.announce(told)
        if labels:
            self.announce(f"labels in {labels[0].parent}: others learn from them with --dataset {labels[0]}")
        own = len(best["runs"])
        where = f" of the best of {self.points} points, {best['point']}" if self.points > 1 else ""
        self.announce(
            f"final {self.headline}{where}: {best['mean'][self.headline]:.2f}, "
            f"{f'mean of {own} runs, ' * (own > 1)}{self.run.eval_episodes} episodes{' each' * (own > 1)}; "
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

    def _where(self, run: int, step: int) -> dict[str, Any]:
        """The leading columns of a row about one run after a step of the present phase."""
        columns = {"run": run, "seed": self.seeds[run], "step": step, "phase": self.progress.phase}
        return columns | ({"point": self.labels[run]} if self.labels[run] else {})


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
