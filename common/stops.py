"""Signals that ask a command to stop: answered in a line at once, and obeyed as soon as nothing is lost by it.

A command's own process is watched from its first line to its last (`commanding`). A thread reads the signals, so that
the answer waits for nothing. While there is nothing to lose, an exception takes the main thread out of whatever it is
doing; if that does not get through to it within PATIENCE, the process ends without it. Where there is something to lose
(`noting`), a signal is noted, and the loop looks for it. A second signal ends the process at once.

In a process of somebody else's, such as a notebook's, signals are noted while runs are trained, and a second one does
what it did before. Processes that help take no notice of any (`sheltered`, `left_to_parent`): the one that they help
ends them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C; what schedulers and `kill` send; a terminal that closes; what Slurm can be told to send ahead of time."""
ANSWER = "stopping; again to stop without a checkpoint"
PATIENCE = 1.0
"""Seconds that the main thread has to come out of one long call, where nothing is lost."""
AGAIN = 0.05
"""Seconds to the next try, where it came to nothing."""
CLEARING = 5.0
"""Seconds that it has then to clear up."""
LAST_WORDS = 1.0
"""Seconds to write the last line, for nobody may take what is written."""

T = TypeVar("T")


class Stopped(BaseException):
    """There was a signal, and nothing is lost by leaving."""


class Aside(Generic[T]):
    """Work in a thread of its own."""

    def __init__(self, work: Callable[[], T]):
        self._work = work
        self._returned: list[T] = []
        self._raised: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._returned.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asks for the result
            self._raised.append(error)

    def is_over(self, patience: float = 0.0) -> bool:
        """Whether it has ended, for which no more than so many seconds are waited."""
        self._thread.join(patience)
        return not self._thread.is_alive()

    def result(self, look: Callable[[], None]) -> T:
        """What it returns; what it raises is raised here. Until it has ended `look` is called, which may leave it."""
        while not self.is_over(0.1):
            look()
        if self._raised:
            raise self._raised[0]
        return self._returned[0]


class Watch:
    """What is known of the signals of this process."""

    def __init__(self, announce: Callable[[str], None], owns_process: bool):
        """`announce` is told the answer. Only a process that it owns does the watch ever end."""
        self.announce, self.owns_process = announce, owns_process
        self.received: int | None = None
        """The first signal's number, once there was one."""
        self.is_noting = False
        """Whether signals are noted; else they take the main thread out of what it does."""
        self.remedy = ""
        """What helps after an end at which nothing was lost, such as how to resume."""
        self.heard = threading.Event()
        """Set once the thread has read a signal."""
        self.left = threading.Event()
        """Set once the main thread is on its way out."""
        self.answering: threading.Thread | None = None
        """Says so to the user."""
        self.parting = threading.Lock()
        """Held by the thread that says the last line."""
        self.before: dict[int, Any] = {}

    def install(self) -> None:
        """Handle the signals. In threads that are not the main one nothing can: there, nothing is noted."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            now = signal.getsignal(number)
            # A process that was told to survive its terminal (nohup) goes on.
            if now == self.handle or (number == signal.SIGHUP and now is signal.SIG_IGN):
                continue
            self.before.setdefault(number, signal.signal(number, self.handle))

    def listen(self) -> None:
        """Have a thread read the signals, whatever the main thread does."""
        reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.hook_before, sys.unraisablehook = sys.unraisablehook, self.not_raised
        signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self.read, args=(reader,), daemon=True, name="signals").start()

    def uninstall(self) -> None:
        """Signals do again what they did before; in a process of its own, which has nothing left to do, they end it."""
        if self.owns_process:
            sys.unraisablehook = self.hook_before
            signal.set_wakeup_fd(-1)
            self.writer.close()
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if self.owns_process else handler)
        self.before = {}

    def read(self, reader: socket.socket) -> None:
        """The life of the thread."""
        with reader:
            while numbers := reader.recv(64):
                for number in numbers:
                    # Others may have handlers of their own for a while, as a simulator's.
                    if number in SIGNALS and signal.getsignal(number) == self.handle:
                        self.arrived(number)

    def arrived(self, number: int) -> None:
        """Answer the first signal; end the process at the second, or if the main thread does not hear the first."""
        if self.received is not None:
            end(128 + number)
        self.received = number
        # In threads of their own, since a terminal may take nothing, and the next signal must still be read.
        self.answering = threading.Thread(target=self.announce, args=(ANSWER,), daemon=True)
        self.answering.start()
        self.heard.set()
        if not self.is_noting:
            threading.Thread(target=self.see_it_end, daemon=True).start()

    def see_it_end(self) -> None:
        """End the process if the main thread does not, unless it has come to where signals are noted."""
        if not self.left.wait(PATIENCE):
            if not self.is_noting:
                self.end_here()
            return
        threading.Event().wait(CLEARING)
        self.end_here()

    def end_here(self) -> NoReturn:
        """End the process, at which nothing is lost."""
        text = self.farewell()
        if not text:
            threading.Event().wait(CLEARING)  # the main thread is about to
        end(128 + self.received, self.announce, text)

    def farewell(self) -> str:
        """The last line; empty where another thread has it already, and ends the process."""
        if not self.parting.acquire(blocking=False):
            return ""
        return f"interrupted; {self.remedy}" if self.remedy else "interrupted"

    def handle(self, number: int, _: Any) -> None:
        """In the main thread, between two of its steps."""
        if not self.owns_process:
            if self.received is None:
                self.received = number
                for other, handler in self.before.items():
                    signal.signal(other, handler)
                self.announce(ANSWER)
            return
        # Both hear of a signal, in any order; of one that came while signals were noted, the loop has heard.
        if not self.left.is_set() and self.heard.wait(PATIENCE) and not self.is_noting:
            self.leave()

    def leave(self) -> NoReturn:
        """Take the main thread out of what it does."""
        self.left.set()
        raise Stopped

    def not_raised(self, unraisable: Any) -> None:
        """Python's hook for exceptions that it ignores, as in the callbacks of its garbage collector: leave again."""
        if unraisable.exc_type is not Stopped:
            self.hook_before(unraisable)
            return
        self.left.clear()
        threading.Thread(target=self.raise_again, daemon=True).start()
        threading.Thread(target=self.see_it_end, daemon=True).start()

    def raise_again(self) -> None:
        """Raise Stopped in the main thread, once it is out of where exceptions are ignored."""
        threading.Event().wait(AGAIN)
        thread = ctypes.c_ulong(threading.main_thread().ident)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Stopped))

    @contextlib.contextmanager
    def noting(self) -> Iterator[Watch]:
        """Signals are noted inside."""
        self.install()  # again, where a simulator has put others in their place
        self.is_noting = True
        if self.received is not None:  # and has not got through
            self.is_noting = False
            self.leave()
        try:
            yield self
        finally:
            self.is_noting = False

    def look(self) -> None:
        """Raise Stopped if a signal was noted."""
        if self.received is not None:
            raise Stopped

    def aside(self, work: Callable[[], T]) -> T:
        """What `work()` returns, which holds the main thread for long, such as a compiler; leaves it to itself, and
        raises Stopped, once a signal is noted."""
        return Aside(work).result(self.look) if self.before else work()


_undoings: list[Callable[[], None]] = []
"""What is to be undone before this process ends."""


@contextlib.contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """`undo` is called when what is inside ends, and also where the process is ended in the midst of it (`end`)."""
    _undoings.append(undo)
    try:
        yield
    finally:
        _undoings.remove(undo)
        undo()


_watch: Watch | None = None
"""That of a process which is a command's own."""


@contextlib.contextmanager
def commanding(announce: Callable[[str], None]) -> Iterator[Watch]:
    """What is inside is all that this process is for: a signal ends it, with status 128 and the signal's number."""
    global _watch
    _watch = watch = Watch(announce, owns_process=True)
    watch.install()
    watch.listen()
    status: Any = 0
    try:
        yield watch
    except Stopped:
        watch.left.set()
        status = 128 + watch.received
        watch.answering.join(PATIENCE)
        if text := watch.farewell():
            watch.announce(text)
        else:
            threading.Event().wait(CLEARING)
    except SystemExit as leaving:
        status = leaving.code
    finally:
        watch.uninstall()
        _watch = None
    if watch.answering is None:
        sys.exit(status)
    # Without Python's own clearing up, which ends badly where threads are compiling still.
    watch.answering.join(PATIENCE)
    gc.collect()  # what the exception has held on to, such as semaphores
    end(status if isinstance(status, int) else int(status is not None))


@contextlib.contextmanager
def noting(announce: Callable[[str], None]) -> Iterator[Watch]:
    """Signals are noted inside, whosever this process is."""
    if _watch is not None:
        with _watch.noting() as watch:
            yield watch
        return
    watch = Watch(announce, owns_process=False)
    try:
        with watch.noting():
            yield watch
    finally:
        watch.uninstall()


def remedy(text: str) -> None:
    """What helps from here on if the process is ended by a signal."""
    if _watch is not None:
        _watch.remedy = text


def end(status: int, announce: Callable[[str], None] = print, text: str = "") -> NoReturn:
    """End the process here and now, with a last line, a cursor at the terminal and no wait for either."""

    def last_words() -> None:
        if text:
            announce(text)
        # Nobody is left to hear of what cannot be written.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[?25h")
            sys.stdout.flush()
            sys.stderr.flush()

    for undo in _undoings:
        with contextlib.suppress(Exception):  # what it was done to is gone
            undo()
    words = threading.Thread(target=last_words, daemon=True)
    words.start()
    words.join(LAST_WORDS)
    os._exit(status)


@contextlib.contextmanager
def sheltered() -> Iterator[None]:
    """A process that is started inside gets none of the signals until it is ready to (`left_to_parent`).

    Else Ctrl-C, which reaches a whole group of processes, would end it in the midst of its imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def left_to_parent() -> None:
    """In a process that helps another: the signals are for that one, which ends this one."""
    for number in SIGNALS:
        # Not SIG_IGN, which what this process may start would inherit.
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def while_importing() -> None:
    """Until a command is watched, a signal ends a program that is an algorithm's file in one line.

    Nothing is touched where anything else imports this, such as a notebook or a test.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None or Path(file).resolve().parent.name != "algorithms":
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end_importing)


def _end_importing(number: int, _: Any) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted before anything was begun\n")
    os._exit(128 + number)
