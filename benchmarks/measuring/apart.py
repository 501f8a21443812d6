"""What is timed in a process of its own, with its own packages, files or settings."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from typing import Any

from common.errors import Refused


class Apart:
    """A program that waits for a line, and answers it with a number; until it has said one, it prepares itself."""

    def __init__(self, command: Sequence[str], **more: Any):
        """Starts it; `more` is what Popen takes. Raises OSError."""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more)

    def trouble(self) -> str:
        """What is to be told if it ends without an answer."""
        raise NotImplementedError

    def ask(self, line: str = "") -> None:
        """Send a line; where nobody is there any more, nobody answers either."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def answer(self) -> float:
        """The number that it says next. Raises Refused."""
        said = self.process.stdout.readline()
        if not said:
            raise Refused(self.trouble())
        return float(said)

    def timing(self) -> float:
        """Seconds of what it times, once more. Raises Refused."""
        self.ask()
        return self.answer()

    def close(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait()
