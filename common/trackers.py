"""Trackers outside the run directory: TensorBoard and Weights & Biases."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.commandline import Run
from common.errors import Refused


class Trackers:
    """TensorBoard and Weights & Biases, where asked for."""

    def __init__(self, directory: Path, run: Run, identifier: str, done: int):
        """For a run with this identifier that has done so many steps: it goes on where it was."""
        self.writer = self.wandb = None
        if run.tensorboard:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=done + 1)
        if run.wandb:
            import wandb

            self.wandb = wandb.init(
                project="headstart", dir=str(directory), config=dataclasses.asdict(run), id=identifier, resume="allow"
            )

    @staticmethod
    def check(run: Run) -> None:
        """Refuse a tracker that is not installed."""
        for asked, flag, package in ((run.tensorboard, "tensorboard", "tensorboardX"), (run.wandb, "wandb", "wandb")):
            if asked and importlib.util.find_spec(package) is None:
                raise Refused(f"--{flag}: {package} is not installed; pip install -e '.[{flag}]'")

    def log(self, kind: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send the numbers of some rows of metrics.csv or eval.csv, at this step of all phases together."""
        if self.writer is None and self.wandb is None:
            return
        for row in rows:
            values = {
                f"{kind}/{name}/run{row['run']}": value
                for name, value in row.items()
                if name not in ("run", "seed", "step") and isinstance(value, int | float)
            }
            if self.writer is not None:
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)
            if self.wandb is not None:
                # Of a step that it has seen already, before an interruption, it takes nothing.
                self.wandb.log(values, step=step)

    def close(self) -> None:
        """Flush what is pending."""
        if self.writer is not None:
            self.writer.close()
        if self.wandb is not None:
            self.wandb.finish()
