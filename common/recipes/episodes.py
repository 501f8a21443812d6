"""Episodes as recipes make them, and every core put to making them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from minari.data_collector import EpisodeBuffer

from common.machine import cores
from common.stops import Stopped, left_to_parent, sheltered

FEW = 5000
"""Transitions that are made before other processes have started."""

Stream = Callable[..., Generator[Any, None, None]]
"""`stream(function, *arguments)` yields function(*arguments, number) for number = 0, 1, 2, ..., without end."""


class Episode(NamedTuple):
    """One episode of T steps."""

    observations: np.ndarray
    """float32 [T + 1, observation]"""
    actions: np.ndarray
    """[T, action], in the environment's own units; of discrete actions their numbers, [T]"""
    rewards: np.ndarray
    """float64 [T]"""
    terminated: bool = False
    """Whether it ends because the task does; otherwise it is truncated."""

    def until(self, length: int) -> Episode:
        """Its first `length` steps; truncated there, if that is not all."""
        whole = length >= len(self.actions)
        return Episode(
            self.observations[: length + 1],
            self.actions[:length],
            self.rewards[:length],
            self.terminated and whole,
        )

    def buffer(self) -> EpisodeBuffer:
        """As Minari stores it."""
        last = np.arange(len(self.actions)) == len(self.actions) - 1
        return EpisodeBuffer(
            observations=self.observations,
            actions=self.actions,
            rewards=self.rewards,
            terminations=last & self.terminated,
            truncations=last & (not self.terminated),
        )


def first(episodes: Iterable[Episode], size: int) -> Iterator[Episode]:
    """Episodes of `size` transitions in all; the last one is cut there."""
    for episode in episodes:
        yield episode.until(size)
        size -= len(episode.actions)
        if size <= 0:
            return


@contextlib.contextmanager
def workers(size: int) -> Iterator[Stream]:
    """A `Stream` on every core; in this process alone if no more than `FEW` transitions are wanted.

    What it yields does not depend on how many processes there are. Functions are those of a module.
    """
    if size <= FEW:
        yield _one_by_one
        return
    count = cores()
    with sheltered():  # it starts a process that keeps its books
        # Not by fork: JAX and its threads may be running.
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin_to_help)
    with pool:

        def stream(function: Callable[..., Any], *arguments: Any) -> Generator[Any, None, None]:
            pending: deque[Future] = deque()
            number = 0
            try:
                while True:
                    with sheltered():  # where there are not all processes yet, this starts one
                        while len(pending) < 3 * count:
                            pending.append(pool.submit(function, *arguments, number))
                            number += 1
                    yield pending.popleft().result()
            except GeneratorExit:  # enough
                for future in pending:
                    future.cancel()

        try:
            yield stream
        except Stopped:
            # This process ends, and its pool before it, without the episodes that nobody wants any more.
            for process in multiprocessing.active_children():
                process.kill()
            pool.shutdown(wait=True)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_to_help() -> None:
    """In a new process: leave signals to the one that it helps, and end with it, however it ends."""
    left_to_parent()
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _one_by_one(function: Callable[..., Any], *arguments: Any) -> Generator[Any, None, None]:
    number = 0
    while True:
        yield function(*arguments, number)
        number += 1
