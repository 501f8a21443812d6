"""How far a command's runs have come: what the loops advance, checkpoints keep and reports read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

_OF_THIS_PROCESS = ("phases", "earlier_seconds", "began")
"""Fields that no checkpoint keeps as they are."""


class Left(NamedTuple):
    """How long it will take."""

    seconds: float
    whole: bool
    """Whether that is all: not where what comes later, a phase or the first evaluation, has never been timed."""


@dataclass
class Progress:
    """Phase and step of all runs, which move together, and what came of them and how long it took so far."""

    phases: Mapping[str, int]
    """Name -> steps of the phases that take place, in their order; there is at least one."""
    phase: str = ""
    """The present one; the first to begin with."""
    step: int = 0
    """Steps of the present phase that are done."""
    learning_seconds: float = 0.0
    """In the present phase: of updates, environment steps while learning included."""
    learning_steps: int = 0
    """In the present phase: the steps that took `learning_seconds`."""
    phase_evaluation_seconds: float = 0.0
    """In the present phase: of evaluations, while learning waits for them."""
    evaluation_seconds: float = 0.0
    """In all phases."""
    evaluations: int = 0
    """In all phases: those that took `evaluation_seconds`."""
    compile_seconds: float = 0.0
    """In all phases."""
    diverged_at_step: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Run, as JSON names it -> {"phase": ..., "step": ...} of its first action that was not finite."""
    not_finite_at_step: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Run, as JSON names it -> {"phase": ..., "step": ..., "metric": ...} of the first that was seen not to be
    finite; online it is looked at where a row of metrics is written."""
    owes_evaluation: bool = False
    """Whether the evaluation of the present step was left before its end."""
    evaluates_step: int | None = None
    """The step of the present phase whose evaluation goes on while others follow it; None without one."""
    owes_updates: bool = False
    """Whether the updates that follow the present step online were left before their end: then nothing of that step was
    reported yet."""
    episode_scores: list[list[float]] = field(default_factory=list)
    """[runs][episodes], percent: of the last evaluation; empty before it, and for tasks without a score."""
    earlier_seconds: float = 0.0
    """Of the processes before this one, up to the checkpoint that this one goes on from."""
    began: float = field(default_factory=time.perf_counter)
    """When this process began, by `time.perf_counter`."""

    def __post_init__(self) -> None:
        self.phase = self.phase or next(iter(self.phases))

    def order(self, phase: str) -> int:
        """The place of a phase among those there are."""
        return list(self.phases).index(phase)

    def total_at(self, step: int) -> int:
        """Steps of all phases up to this one of the present phase."""
        return sum(list(self.phases.values())[: self.order(self.phase)]) + step

    @property
    def total_step(self) -> int:
        """Steps of all phases so far."""
        return self.total_at(self.step)

    @property
    def total(self) -> int:
        """Steps of all phases when everything is done."""
        return sum(self.phases.values())

    @property
    def phase_is_over(self) -> bool:
        """Whether all steps of the present phase are done."""
        return self.step >= self.phases[self.phase]

    def enter(self, phase: str) -> None:
        """Begin a phase: its step, and what is counted by phase, start at 0."""
        self.phase, self.step = phase, 0
        self.learning_seconds, self.learning_steps, self.phase_evaluation_seconds = 0.0, 0, 0.0

    def learnt(self, steps: int, seconds: float) -> None:
        """Count steps that took so long."""
        self.learning_steps += steps
        self.learning_seconds += seconds

    def evaluated(self, seconds: float) -> None:
        """Count an evaluation for which learning has waited so long."""
        self.evaluations += 1
        self.evaluation_seconds += seconds
        self.phase_evaluation_seconds += seconds

    @property
    def speed(self) -> float:
        """Steps of each run per second while learning in this phase, evaluation not counted."""
        return self.learning_steps / max(1e-9, self.learning_seconds)

    @property
    def speed_with_evaluation(self) -> float:
        """The same with the time of this phase's evaluations counted."""
        return self.learning_steps / max(1e-9, self.learning_seconds + self.phase_evaluation_seconds)

    def left(self, eval_every: int, evaluating: float = 0.0) -> Left | None:
        """The time until all is done: remaining steps by their speed, remaining evaluations by their mean time so far.

        An evaluation follows every `eval_every` steps and each phase; `evaluating` is what is left of one on its way,
        as a share. None while nothing is known.
        """
        steps, later = self.phases[self.phase] - self.step, list(self.phases.values())[self.order(self.phase) + 1 :]
        if steps and not self.learning_steps:
            return None
        coming = -(-self.phases[self.phase] // eval_every) - self.step // eval_every if steps else 0
        evaluations = coming + sum(-(-total // eval_every) for total in later) + evaluating
        known = self.evaluations > 0
        seconds = steps / self.speed if steps else 0.0
        seconds += evaluations * self.evaluation_seconds / self.evaluations if known else 0.0
        return Left(seconds, not later and (known or not evaluations))

    def whole_seconds(self) -> float:
        """Of the command so far, once its data are there, without what an interruption lost."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, JSON-able."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_THIS_PROCESS}
        return kept | {"whole_seconds": self.whole_seconds()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; what else a checkpoint holds is left alone."""
        for name in state.keys() & {f.name for f in fields(self) if f.name not in _OF_THIS_PROCESS}:
            setattr(self, name, state[name])
        self.earlier_seconds = state["whole_seconds"]
