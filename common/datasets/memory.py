"""What a data set takes of the machine's memory, told with numbers before it is read rather than as a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from common.errors import Refused
from common.machine import available_memory, in_words

_COPIES = 2.4
"""Bytes at the peak of reading to bytes of the transitions that are kept, as measured."""
_REMEDY = "raise the limit (ulimit -v, Slurm's --mem, the container's), take a machine with more, or fewer rows"


def of_rows(count: int, observation: int, action: int) -> int:
    """Bytes that it takes to read so many transitions, with so many numbers per observation and action."""
    return int(_COPIES * 4 * count * (2 * observation + action + 1))


def check(source: str, needed: int) -> None:
    """Raise Refused where reading needs more bytes than there are."""
    left = available_memory()
    if left is not None and needed > left:
        raise Refused(
            f"{source} needs about {in_words(needed)} of memory to be read, and {in_words(left)} are left: " + _REMEDY
        )


@contextlib.contextmanager
def told(source: str) -> Iterator[None]:
    """Memory that runs out all the same, as one line: it is no fault of the data."""
    left = available_memory()
    try:
        yield
    except MemoryError as error:
        there = "" if left is None else f" ({in_words(left)} were left)"
        raise Refused(f"{source}: there is too little memory to read it{there}: {_REMEDY}") from error
