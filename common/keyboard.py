"""The keys that somebody presses at the terminal, one by one, and a terminal that is put back however that ends."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator

from common import stops
from common.errors import Refused


def check() -> None:
    """Raise Refused where there is no terminal at which somebody could press a key."""
    try:
        termios.tcgetattr(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError, termios.error) as error:
        raise Refused("somebody at the terminal decides, and standard input is none: start it at one") from error


class Keys:
    """Keys, read at a rate: the time between two looks is that of an environment step."""

    def __init__(self, rate: float):
        """Looks a second."""
        self.period, self.next = 1 / rate, 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, keys come as they are pressed and are not shown; Ctrl-C is a signal as ever. Raises Refused."""
        check()
        self.file = sys.stdin.fileno()
        before = termios.tcgetattr(self.file)

        def put_back() -> None:
            with contextlib.suppress(termios.error):  # it is gone
                termios.tcsetattr(self.file, termios.TCSANOW, before)

        with stops.undone(put_back):
            tty.setcbreak(self.file, termios.TCSANOW)
            yield

    def pressed(self) -> str:
        """The keys since the last look, once it is time for the next."""
        keys = b""
        self.next = max(self.next + self.period, time.monotonic())
        while (left := self.next - time.monotonic()) > 0 or not keys:
            if not select.select([self.file], [], [], max(left, 0.0))[0]:
                break
            try:
                read = os.read(self.file, 64)
            except OSError:
                read = b""
            if not read:  # the terminal is gone, of which there is a signal
                break
            keys += read
        return keys.decode(errors="replace")
