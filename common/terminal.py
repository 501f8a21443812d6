"""What the person at the terminal sees: lines, and the bars of what takes long.

Where nobody looks on, in a pipe, a file or a terminal that cannot redraw a line, there are no bars, only whole lines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

from common.progress import Left

WIDE = 110
"""Columns of a terminal from which on there is room for more than the necessary."""
ENDLESS = 1000
"""Columns of what is no terminal."""


def console(stderr: bool = False) -> Console:
    """What prints lines as they are: brackets and colons in names are no markup, and only a terminal has an edge."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not made.is_terminal:
        made.width = ENDLESS
    return made


class Bar:
    """Announcements, one line per evaluation, a live bar between them."""

    def __init__(self, console: Console, total: int, done: int):
        self.console = console
        more: list[ProgressColumn] = [TextColumn("{task.fields[last]}"), TimeElapsedColumn()]
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(40 if console.width >= WIDE else 10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            *(more if console.width >= WIDE else ()),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self.phase = "starting"
        self.task = self.progress.add_task(self.phase, total=total, completed=done, speed="", last="", left="")

    def __enter__(self) -> Bar:
        if self.console.is_interactive:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_interactive:  # elsewhere it would leave an empty line
            self.progress.stop()

    def advance(self, step: int, description: str, speed: float, left: Left | None) -> None:
        """Move the bar."""
        self.phase = description
        shown = f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.2g} steps/s" if speed else ""
        self.progress.update(self.task, completed=step, description=description, speed=shown, left=in_words(left))

    def say(self, description: str, left: Left | None) -> None:
        """What happens meanwhile, before the bar moves again."""
        self.progress.update(self.task, description=description, left=in_words(left))

    def evaluated(self, text: str, short: str) -> None:
        """One line that stays, and its short form beside the bar, which stands where it stood."""
        self.console.print(text, highlight=False, soft_wrap=True)
        self.progress.update(self.task, description=self.phase, last=short)


def in_words(left: Left | None) -> str:
    """How long it will take; nothing while nothing is known."""
    if left is None:
        return ""
    return f"{'' if left.whole else '> '}{timedelta(seconds=round(left.seconds))} left"


@contextlib.contextmanager
def making(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar for data that are being made, from the first call with the transitions made so far and in all."""
    if not console.is_interactive:
        yield lambda made, total: None
        return
    with Progress(console=console, transient=True) as progress:
        bar: list[TaskID] = []

        def advance(made: int, total: int) -> None:
            if not bar:
                bar.append(progress.add_task("making data", total=total))
            progress.update(bar[0], completed=made)

        yield advance
