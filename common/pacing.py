"""What one step of an online phase takes, for who has a control rate to keep."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

KEPT = 1000
"""Steps, the newest, of which the medians are."""
ACTS = 11
"""Actions chosen in a row to find what one takes."""


class StepTimes(NamedTuple):
    """Medians in milliseconds, each of all runs of the command together."""

    act: float
    """To choose an action"""
    environment: float
    """To step the environment, and to reset it where an episode has ended"""
    update: float
    """To keep the transition and to learn from minibatches; without learning, to keep it"""

    def line(self, updates: int, workers: int = 1) -> str:
        """Them in words; `updates` is how many gradient steps follow one environment step (`--utd`), `workers` how many
        processes could step the environments side by side (`--env-workers`)."""
        rate = 1000 / max(1e-6, sum(self))
        told = ", ".join(f"{name} {value:.3g} ms" for name, value in self._asdict().items())
        advice = ""
        if self.update == max(self) and updates > 1:
            advice = f"; --utd below {updates} makes updates shorter"
        elif self.environment == max(self) and workers > 1:
            advice = f"; --env-workers {workers} may step environments faster"
        return f"one online step: {told} (medians), {rate:.3g} steps/s at most{advice}"


class Pace:
    """Notes how long the steps of an online phase take, in this process."""

    def __init__(self) -> None:
        self.steps: deque[tuple[float, float]] = deque(maxlen=KEPT)

    def note(self, environment: float, learning: float) -> None:
        """A step's seconds in the environment, and in the call that learns and chooses the next action."""
        self.steps.append((environment, learning))

    def times(self, choose: Callable[[], object]) -> StepTimes | None:
        """The medians; None without a step. `choose` chooses an action, changes nothing, and is ready to be called.

        Updates and actions are one program, so that acting is timed by itself, and the rest is the update.
        """
        if not self.steps:
            return None
        acting = []
        for _ in range(ACTS):
            start = time.perf_counter()
            choose()
            acting.append(time.perf_counter() - start)
        environment, learning = (statistics.median(seconds) for seconds in zip(*self.steps, strict=True))
        act = min(statistics.median(acting), learning)
        return StepTimes(*(1000 * seconds for seconds in (act, environment, learning - act)))
