"""What labels are worth where the learner goes, and where only the expert goes: `python -m benchmarks.studies.labels`.

    python -m benchmarks.studies.labels [--tasks pointmaze-large hopper-medium] [--labels 10000] [--seeds 3]
        [--evaluations 10] [--episodes 10] [--round-episodes 3] [--linear-rounds 15] [--name small]

DAgger beside cloning of the expert's own episodes, which is DAgger with a beta of 1 in all rounds: the same expert,
policy, rounds and gradient steps, and a label at every environment step. Only the states differ. The learner alone is
evaluated after every so many labels. Rows and a picture, with the mean over seeds and all they span, go to
benchmarks/results/labels_NAME.{csv,json,png}.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from algorithms.dagger import DAgger
from benchmarks.reporting.figures import png, style
from benchmarks.reporting.results import command_of, file, publish, write
from common.errors import Refused, exiting
from common.interactive import train

VARIANTS: dict[str, dict[str, Any]] = {"DAgger": {}, "cloning": {"beta": "exponential", "decay": 1.0}}
"""Name -> values of the Config."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """What is compared."""

    tasks: tuple[str, ...] = ("pointmaze-large", "hopper-medium")
    """Tasks with an expert of their own."""
    labels: int = 10_000
    """At the end, of each run."""
    seeds: int = 3
    """Runs of each."""
    evaluations: int = 10
    """Of each run, evenly spaced."""
    episodes: int = 10
    """Of each evaluation."""
    round_episodes: int = 3
    """At least in each round, of both."""
    linear_rounds: int = 15
    """In which DAgger's expert gives way."""
    name: str = "small"
    """Of the result."""


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Score over labels, a panel per task: the mean over seeds, and the band that they span."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(4.2 * len(tasks), 3.6), layout="constrained")
    for number, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), number + 1)
        for which, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
            mine = [row for row in rows if (row["task"], row["variant"]) == (task, variant)]
            counts = sorted({row["labels"] for row in mine})
            scores = np.array([[row["score"] for row in mine if row["labels"] == count] for count in counts])
            look = style(which)
            axes.plot(counts, scores.mean(1), **look, label=variant)
            axes.fill_between(counts, scores.min(1), scores.max(1), color=look["color"], alpha=0.12, linewidth=0)
        axes.set(title=task, xlabel="labels", ylabel="score, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def main(study: Labels) -> None:
    """Train, write."""
    if study.labels % study.evaluations:
        raise Refused(f"--labels {study.labels} are not --evaluations {study.evaluations} times as many")
    rows, commands = [], []
    with tempfile.TemporaryDirectory() as folder:
        for task in study.tasks:
            for variant, values in VARIANTS.items():
                trained = train(
                    DAgger, env=task, num_seeds=study.seeds, steps=study.labels, checkpoint_every=0,
                    eval_every=study.labels // study.evaluations, eval_episodes=study.episodes,
                    out=Path(folder) / f"{task}-{variant}", round_episodes=study.round_episodes,
                    linear_rounds=study.linear_rounds, **values,
                )  # fmt: skip
                if trained.interrupted:
                    raise Refused("stopped: nothing is written")
                commands.append(command_of(trained.config))
                table = trained.evaluations
                rows += [
                    {"task": task, "variant": variant} | {
                        name: table[own][k].item()
                        for name, own in (("seed", "seed"), ("labels", "step"), ("score", "score"),
                                          ("success", "success"), ("return_mean", "return_mean"))
                    }
                    for k in range(len(table["step"]))
                ]  # fmt: skip
    name = f"labels_{study.name}"
    picture = png(draw(rows))
    publish(name, rows, "benchmarks.studies.labels", trained=commands)
    write(file(name, ".png"), picture)


if __name__ == "__main__":
    exiting("labels", lambda: main(tyro.cli(Labels, description=__doc__)))
