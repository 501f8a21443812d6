"""Processes that are asked: what is made in one calls its methods for another, and answers.

Both kinds are asked alike: `ask` has a method called, and `answer` returns what it returns. Between the two, a process
of its own is at work while others are.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from common.errors import EnvironmentFailed, Refused, one_line
from common.machine import tied
from common.stops import left_to_parent, sheltered

LOOKS = 0.2
"""Seconds between two looks, where others play."""


class Lost(Exception):
    """A process that plays has died, or could not make its environments; says which."""


class Inside:
    """What is made, in this process, asked as a Process is: what was asked is done when the answer is wanted."""

    def __init__(self, make: Callable[[], Any]):
        self.made = make()

    def ask(self, method: str, *arguments: Any) -> None:
        """Have a method called."""
        self._asked = method, arguments

    def answer(self) -> Any:
        """What it returns."""
        method, arguments = self._asked
        return getattr(self.made, method)(*arguments)

    def close(self) -> None:
        """Release what was made."""
        self.made.close()


class Process:
    """What is made in a process of its own, which ends with this one, however this one ends; its methods are asked."""

    def __init__(self, make: Callable[[], Any], name: str):
        """`make` goes there with what only this process knows, such as a function of a notebook; `name` says, for who
        reads of it, what it makes. Raises Lost."""
        try:
            beginning = cloudpickle.dumps(make)
        except Exception as error:  # whatever the objects that a function refers to raise
            why = f"{name} cannot be sent to a process that plays episodes ({one_line(error)})"
            raise Lost(why) from error
        # Not multiprocessing's own start: it would import the algorithm's file, and JAX with it, for every process.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        try:
            self._connection, theirs = Pipe()
            with theirs, sheltered():
                start = f"from common.processes import serve; serve({theirs.fileno()})"
                # Tied, since in the midst of a step it would not see that the connection has ended.
                self.process = subprocess.Popen(
                    tied([sys.executable, "-P", "-c", start]),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                )
        except OSError as error:
            raise Lost(f"a process that plays episodes cannot be started ({error.strerror})") from error
        try:
            self._connection.send_bytes(beginning)
        except OSError as error:
            raise self._lost() from error

    def ask(self, method: str, *arguments: Any) -> None:
        """Have a method of what was made called. Raises Lost."""
        try:
            self._connection.send((method, arguments))
        except OSError as error:
            raise self._lost() from error

    def answer(self, look: Callable[[], None] = lambda: None) -> Any:
        """What it returns; what fails there is raised here: Lost, and EnvironmentFailed. `look` is called meanwhile."""
        try:
            while not self._connection.poll(LOOKS):
                look()
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if isinstance(answer, Lost | EnvironmentFailed):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self.process.kill()
        self.process.wait()

    def _lost(self) -> Lost:
        with contextlib.suppress(EOFError, OSError):
            if isinstance(last := self._connection.recv(), Lost):
                return last
        return Lost(f"a process that plays episodes has ended with status {self.process.wait()}")


def serve(descriptor: int) -> None:
    """The life of a process that is asked, at the other end of a connection."""
    left_to_parent()
    # The connection ends where that process does.
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, OSError):
        try:
            made = connection.recv()()
        except (Refused, ImportError, AttributeError) as error:
            # As of an environment that only the other process knows, since its own main file has registered it.
            connection.send(Lost(f"a process that plays episodes cannot make its environments: {error}"))
            return
        while True:
            method, arguments = connection.recv()
            try:
                answer = getattr(made, method)(*arguments)
            except EnvironmentFailed as failure:
                answer = failure
            connection.send(answer)
