"""Trackers outside the run directory: TensorBoard, Weights & Biases and Trackio."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import points
from common.commandline import Run
from common.errors import Refused
from common.runs import read_config

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""Flag, and extra, of a tracker -> its package."""
PROJECT = "headstart"
"""Where neither a flag nor a variable of the tracker's names another."""


class Trackers:
    """Those that are asked for. Each is told the whole configuration: run, config, grid, data card, versions."""

    def __init__(self, directory: Path, run: Run, identifier: str, done: int):
        """For a run with this identifier that has done so many steps: it goes on where it was."""
        self.board: Board | None = None
        self.others: list[Any] = []
        """With `log` and `finish`."""
        self.later: list[tuple[str, int, Sequence[Mapping[str, Any]]]] | None = None
        """What waits for an evaluation of an earlier step; None where nothing has to."""
        self.is_resumable = run.checkpoint_every != 0
        if not (run.tensorboard or run.wandb or run.trackio):
            return
        config = read_config(directory)
        if run.tensorboard:
            self.board = Board(directory / "tensorboard", config, done)
        if run.wandb:
            import wandb

            self.others.append(
                wandb.init(
                    project=run.project or os.environ.get("WANDB_PROJECT") or PROJECT,
                    group=run.group,  # without one, as without a name, it looks at its variables, as for the entity
                    name=run.name,
                    dir=str(directory),
                    config=config,
                    id=identifier,
                    resume="allow",
                )
            )
        if run.trackio:
            import trackio

            self.others.append(
                trackio.init(
                    project=run.project or PROJECT,
                    group=run.group,
                    name=run.name or f"{config['algorithm']}-{config['run']['env']}-{identifier[:8]}",
                    config=config,
                    resume="allow" if done else "never",
                    embed=False,  # which would start a server in a notebook
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
            )

    @staticmethod
    def check(run: Run) -> None:
        """Refuse a tracker that is not installed."""
        for flag, package in PACKAGES.items():
            if getattr(run, flag) and importlib.util.find_spec(package) is None:
                raise Refused(f"--{flag}: {package} is not installed; pip install -e '.[{flag}]'")

    def postpone(self, metrics: Iterable[tuple[int, Sequence[Mapping[str, Any]]]] = ()) -> None:
        """Keep these rows of metrics.csv, by their steps, and all that follow, until an evaluation is told of.

        That is of an earlier step, and Weights & Biases takes no step that lies behind its last.
        """
        if self.later is None:
            self.later = [("train", step, rows) for step, rows in metrics]

    def log(self, kind: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell of some rows of metrics.csv or eval.csv, at this step of all phases together."""
        if self.later is not None and kind != "evaluation":
            self.later.append((kind, step, rows))
            return
        self._send(kind, step, rows)
        self._send_later()

    def _send_later(self) -> None:
        later, self.later = self.later or (), None
        for told in later:
            self._send(*told)

    def _send(self, kind: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send the numbers of rows."""
        for row in rows if self.board or self.others else ():
            values = {
                name: value
                for name, value in row.items()
                if name not in ("run", "seed", "step") and isinstance(value, int | float)
            }
            if self.board is not None:
                self.board.log(kind, step, row["run"], values)
            for other in self.others:
                # Of a step that it has seen already, before an interruption, Weights & Biases takes nothing.
                other.log({f"{kind}/{name}/run{row['run']}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Flush what is pending. What waits for an evaluation is told by a run that goes on, if one can."""
        if not self.is_resumable:
            self._send_later()
        if self.board is not None:
            self.board.close()
        for other in self.others:
            other.finish()


class Board:
    """TensorBoard's events, with the configuration as a text, and each run's last evaluation beside its
    hyperparameters."""

    def __init__(self, folder: Path, config: Mapping[str, Any], done: int):
        """In this folder, after so many steps."""
        from tensorboardX import SummaryWriter

        self.folder, self.config = folder, config
        self.writer = SummaryWriter(str(folder), purge_step=done + 1)
        if not done:
            self.writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", 0)
        self.last: dict[int, tuple[int, dict[str, float]]] = {}
        """Run -> step and numbers of its last evaluation."""

    def log(self, kind: str, step: int, run: int, values: Mapping[str, float]) -> None:
        """The numbers of a row; what is not finite it would warn of."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}/run{run}", value, step)
        if kind == "evaluation":
            self.last[run] = step, values

    def close(self) -> None:
        """Flush, and tell what the hyperparameters have come to."""
        for run, (step, values) in self.last.items():
            # What it keeps of an earlier end would stay beside this one.
            shutil.rmtree(self.folder / f"run{run}", ignore_errors=True)
            self.writer.add_hparams(self.hyperparameters(run), values, name=f"run{run}", global_step=step)
        self.writer.close()

    def hyperparameters(self, run: int) -> dict[str, Any]:
        """Those of a run: the Config's at its point of the grid, and its seed."""
        found = points.of_runs(self.config)[run]
        return {name: value if isinstance(value, int | float | str) else str(value) for name, value in found.items()}
