"""What the person at the terminal sees beside single lines: the bars of what takes long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bar:
    """What the person at the terminal sees: announcements, one line per evaluation, a live bar between them."""

    def __init__(self, console: Console, total: int, done: int):
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[last]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("collecting", total=total, completed=done, speed="", last="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, step: int, description: str, speed: float) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=step, description=description, speed=f"{speed:.0f} steps/s")

    def evaluated(self, text: str, short: str) -> None:
        """One line that stays, and its short form beside the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)
        self.progress.update(self.task, last=short)


@contextlib.contextmanager
def making(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar for data that are being made, from the first call with the transitions made so far and in all."""
    with Progress(console=console, transient=True) as progress:
        bar: list[TaskID] = []

        def advance(made: int, total: int) -> None:
            if not bar:
                bar.append(progress.add_task("making data", total=total))
            progress.update(bar[0], completed=made)

        yield advance
