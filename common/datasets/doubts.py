"""What is doubtful about rows that can be read: a line each, for the card."""

from __future__ import annotations

import numpy as np

from common.datasets.rows import Rows
from common.environments import Environment
from common.tasks import Task

_FULL = 0.95
"""Actions that reach so far towards -1 and towards 1, and never beyond, fill [-1, 1]."""
_BLANK_ROWS = 10
"""So many rows of nothing but zeros at a file's end were hardly recorded."""


def of(task: Task, rows: Rows, environment: Environment) -> list[str]:
    """The warnings about validated rows of a task, with actions in the environment's own units."""
    found = _ends_at_limit(task, rows), _beside_the_limit(task, rows), _unit_actions(rows, environment), _blank(rows)
    return [line for line in (*found, _standing_successors(rows)) if line]


def beyond_limit(task: Task, rows: Rows) -> dict[str, int]:
    """How many source episodes are longer than the task's time limit, and the limit, where it means something."""
    if not _has_limit(task):
        return {}
    return {"longer_than_limit": int((_lengths(rows) > task.horizon).sum()), "time_limit": task.horizon}


def _has_limit(task: Task) -> bool:
    """Whether source episodes end as the task's do: those of mazes and of OGBench pass goals as they go."""
    return task.horizon is not None and not task.reaches_goal and task.family != "ogbench"


def _ends(rows: Rows) -> np.ndarray:
    return np.flatnonzero(np.append((rows.boundary | rows.terminal)[:-1], True))


def _lengths(rows: Rows) -> np.ndarray:
    return np.diff(_ends(rows), prepend=-1)


def _ends_at_limit(task: Task, rows: Rows) -> str | None:
    """The old interface's `done` was set by the time limit as well."""
    lengths = _lengths(rows)[rows.terminal[_ends(rows)]]
    if not _has_limit(task) or task.never_terminates or not len(lengths) or (lengths != task.horizon).any():
        return None
    return (
        f"all {len(lengths):,} terminals stand at the time limit of {task.horizon:,} steps and are learnt as "
        "terminations: if it is the limit that ended those episodes, make them timeouts"
    )


def _beside_the_limit(task: Task, rows: Rows) -> str | None:
    """Where the limit has ended some episodes, no other can be longer."""
    if not _has_limit(task):
        return None
    lengths = _lengths(rows)
    longer = lengths[lengths > task.horizon]
    if not len(longer) or (lengths != task.horizon).all():
        return None
    return (
        f"episodes end at the time limit of {task.horizon:,} steps, and others are longer ({len(longer):,}, up to "
        f"{longer.max():,} steps): ends may be missing, where transitions lead from one episode into the next"
    )


def _unit_actions(rows: Rows, environment: Environment) -> str | None:
    """Replay buffers of other libraries keep actions in [-1, 1]."""
    if environment.numbers is not None or not environment.is_rescaled:
        return None
    low, high = rows.action.min(), rows.action.max()
    if not (-1 <= low <= -_FULL and _FULL <= high <= 1):
        return None
    space = environment.raw.action_space
    return (
        f"actions fill [-1, 1], where {environment.task.environment} takes {space.low.min():.3g} to "
        f"{space.high.max():.3g}: if they are shares of its bounds, bring them to its units"
    )


def _blank(rows: Rows) -> str | None:
    """A recorder that allots its arrays and is stopped leaves zeros."""
    written = np.flatnonzero(
        rows.observation.any(axis=1) | (rows.reward != 0) | rows.action.reshape(len(rows.reward), -1).any(axis=1)
    )
    blank = len(rows.reward) - 1 - written[-1] if len(written) else 0
    if blank < _BLANK_ROWS:
        return None
    return f"the last {blank:,} of {len(rows.reward):,} rows hold nothing but zeros: a recording that ended before?"


def _standing_successors(rows: Rows) -> str | None:
    """Observations that were copied as their own successors."""
    if rows.next_observation is None or not np.array_equal(rows.next_observation, rows.observation):
        return None
    if (rows.observation == rows.observation[0]).all():
        return None
    return "next_observations equal observations in every row: nothing ever moves in these data"
