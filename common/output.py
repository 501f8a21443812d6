"""Output that stops nothing: what cannot be written to a terminal, a pipe or a log is lost in silence."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO


class Tolerant:
    """A text stream that writes what it can: not to a closed pipe, a full disk, or a stream that has ended."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, if that can be done; the length, as if it had been."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write all."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Push on what is written, if that can be done."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def open_standard_streams() -> None:
    """Lead those of this process that are closed to nowhere.

    Else a file that is opened later would have the number of one, and take what libraries write.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest number that is free
            os.set_inheritable(number, True)


def guard() -> None:
    """Make this process's output, which may be closed or know few letters, such that nothing fails for it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Tolerant):
            continue
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Tolerant(stream))
