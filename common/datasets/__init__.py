"""Prior data: a source string -> validated transitions of a task.

Each source's reader (sources.py, *_sets.py) yields rows of source episodes; `_assemble` turns them into
transitions of the task by rules that are the same for every source:

- A row needs its successor. Where the source does not store it, it is the next row of the same source episode; the last
  row of an episode is dropped, unless the task terminated there (its successor is then its own observation, which no
  target uses). No transition joins two episodes: where the first observation of the next one stands as an episode's
  last successor, it is left out as if it were not stored.
- `terminated` is a true end of the task, `truncated` any other end of an episode: a time limit, a cut, the end of the
  file. Every episode ends with exactly one of them.
- Tasks that reach a goal are relabelled from the positions: reward 1 and terminated where the goal pursued is reached,
  else 0. Only where a goal is drawn and not observed, in D4RL's AntMaze, rewards of 0 and 1 that fit one such goal are
  kept: D4RL's files have one of their own. The task is over at the goal, so rows that start there (an agent resting)
  are dropped.
- Binary Adroit is relabelled from the observations: reward 0 where solved, else -1, never terminated.
- Where the task's environment never terminates, a terminal in the data is a time limit.
- Discrete actions, recorded by their numbers, become one-hot vectors; another number than the environment's is refused.
- Actions outside [-1, 1] are clipped to it and counted on the card: human demonstrations have them, and the environment
  clips as well. Beyond +-10, in units in which the environment takes [-1, 1], they are another's, and refused. In a
  dimension that the environment holds (its bounds coincide) they are 0.
- What is doubtful is read and stands on the card as a warning (doubts.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common import environments, recipes
from common.datasets import doubts, memory, naming
from common.datasets.arrays import check_keys, check_lengths
from common.datasets.downloads import is_here, within_reach
from common.datasets.rows import Episodes, Rows, fingerprint, validate
from common.datasets.sources import NEEDED, OPTIONAL, READERS, rows_of
from common.environments import Environment
from common.errors import Refused
from common.replay import Batch
from common.tasks import Task

ACTION_LIMIT = 10.0
"""Actions beyond it, brought to the environment's [-1, 1], are no actions of this environment."""
ACTION_MARGIN = 1e-5
"""Batches hold actions in +-(1 - margin), where a tanh policy has a finite log-density, as in RLPD's and IQL's code."""
_STRAY_SHARE = 1e-3
"""Share of a maze's positions that may lie inside walls: contacts are soft, but another maze shows at once."""
_ARRAYS = ("observation", "action", "reward", "terminated", "truncated", "next_observation")


@dataclass(frozen=True, eq=False)
class Dataset(Episodes):
    """Transitions in the order in which they were collected, episode after episode."""

    observation: np.ndarray
    """float32 [n, observation]"""
    action: np.ndarray
    """float32 [n, action], in [-1, 1]; discrete ones bool [n, action], one-hot"""
    reward: np.ndarray
    """float32 [n], raw: before the task's scale and shift"""
    terminated: np.ndarray
    """bool [n]: the task ended after this row"""
    truncated: np.ndarray
    """bool [n]: the episode ended after this row, but not the task"""
    next_observation: np.ndarray
    """float32 [n, observation]"""
    success: np.ndarray
    """bool [n]: the goal is reached or the object in place after the action; all False where that is unknown"""
    source: str
    """Where it came from, as "kind:name"."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the reader counted and what the source says about itself; JSON-able."""

    @property
    def fingerprint(self) -> str:
        """sha256 over names, types, shapes and contents of the arrays: equal data, equal fingerprint."""
        return fingerprint(self, _ARRAYS)

    @property
    def has_discrete_actions(self) -> bool:
        """Whether an action is one of `action.shape[1]`."""
        return self.action.dtype == bool

    def batch(self, task: Task) -> Batch:
        """All transitions with the task's training reward and mask, as float32 arrays on the host."""
        limit = np.float32(1 - ACTION_MARGIN)
        return Batch(
            observation=self.observation,
            action=self.action.astype(np.float32) if self.has_discrete_actions else self.action.clip(-limit, limit),
            reward=np.float32(task.reward_scale) * self.reward + np.float32(task.reward_shift),
            mask=1 - self.terminated.astype(np.float32),
            next_observation=self.next_observation,
        )


def load(
    task: Task,
    source: str | None = None,
    progress: recipes.Progress | None = None,
    announce: recipes.Announce | None = None,
) -> Dataset | None:
    """The task's prior data from `source`, by default `default_source`; None for a Gymnasium id without a source.

    `source` is KIND:WHAT, or a file or folder that is told by its contents (naming.py).

    `progress` is called while a recipe makes its data, `announce` with lines that say what is made in place of what and
    how long it takes: see `recipes.make`.
    """
    asked, source = source, source or default_source(task)
    if source is None:
        return None
    source = naming.with_kind(source)
    kind, _, name = source.partition(":")
    if kind not in (*READERS, "recipe") or not name:
        raise Refused(
            f"unknown dataset source {source!r}: the sources are minari:ID, d4rl:NAME, d4rl:FILE.hdf5, npz:FILE.npz, "
            "lerobot:FOLDER, robomimic:FILE.hdf5, ogbench:NAME, recipe:NAME, or a file alone (vd4rl:FOLDER holds "
            "images, which no algorithm here learns from yet)"
        )
    if announce and asked is None and kind == "recipe" and source != task.default_dataset and not recipes.is_made(name):
        announce(
            f"{task.default_dataset} is not here and its host does not answer: making {source} instead "
            f"({recipes.SIZES[name]:,} rows; kept in {recipes.folder_of(name)})"
        )
    with memory.told(source):
        if kind == "recipe":
            rows = READERS["minari"](task, source, recipes.make(name, progress=progress, announce=announce))
        else:
            rows = READERS[kind](task, source, name)
        if kind == "recipe" and name == task.datasets.get("recipe") and task.default_dataset != source:
            rows.metadata["instead_of"] = task.default_dataset
        return _assemble(task, source, rows)


def of_arrays(task: Task, arrays: Mapping[str, Any], source: str = "given:arrays") -> Dataset:
    """Data of a task from arrays with the keys of D4RL's files, by the rules for files. Raises Refused."""
    check_keys(source, NEEDED, arrays, arrays)
    found = {key: np.asarray(arrays[key]) for key in (*NEEDED, *OPTIONAL) if key in arrays}
    check_lengths(source, {key: len(array) if array.ndim else 0 for key, array in found.items()})
    return _assemble(task, source, rows_of(task, source, found))


def check_counted(data: Dataset) -> None:
    """Refuse transitions that were not read as others are, and so lack what readers count."""
    if not {"rows", "source_episodes", "dropped_without_successor"} <= data.metadata.keys():
        raise Refused(
            f"{data.source} is a Dataset that no reader made, such as a mix: give its rows as a dict of arrays with "
            f"the keys {', '.join((*NEEDED, *OPTIONAL))}"
        )


def default_source(task: Task) -> str | None:
    """The task's own data: the published ones, or its recipe where those are not on this machine nor within reach."""
    published, recipe = task.default_dataset, task.datasets.get("recipe")
    if recipe is None or published == f"recipe:{recipe}" or is_here(published):
        return published
    return published if within_reach(published) else f"recipe:{recipe}"


def environment_of(task: Task, data: Dataset) -> Environment:
    """The environment of a task, in the form that its data have. Raises Refused for data from another environment."""
    environment = environments.make(task, data.observation.shape[1], data.action.shape[1])
    _check_maze(environment, data)
    return environment


def _check_maze(environment: Environment, data: Dataset) -> None:
    """Refuse data that were collected in another maze than the one that is played."""
    if not environment.task.reaches_goal:
        return
    stray = environment.inside_walls(data.observation).mean()
    if stray > _STRAY_SHARE:
        raise Refused(
            f"{environment.task.name}: {stray:.1%} of the positions in {data.source} lie inside walls of the maze "
            "that is played: another maze, a mirrored one or another frame; what works is "
            + ("D4RL's, whose origin is the start" if environment.origin.any() else "gymnasium-robotics', centred")
        )


def _assemble(task: Task, source: str, rows: Rows) -> Dataset:
    """Validated rows as transitions of the task: the rules at the top of this file."""
    validate(source, rows)
    environment = environments.make(
        task, rows.observation.shape[1], rows.action.shape[1] if rows.action.ndim > 1 else None
    )
    try:
        action, told = _actions(source, rows.action, environment)
        count = len(rows.reward)
        observation, boundary = rows.observation, rows.boundary.copy()
        boundary[-1] = True
        if rows.next_observation is None:
            known = ~boundary
            next_observation = np.where(known[:, None], np.roll(observation, -1, axis=0), observation)
        elif rows.unknown is not None:
            known = ~rows.unknown
            next_observation = np.where(known[:, None], rows.next_observation, observation)
        else:
            known = np.ones(count, bool)
            next_observation = rows.next_observation
        reward, terminated = rows.reward, rows.terminal
        time_limits = int(terminated.sum()) if task.never_terminates else 0
        if time_limits:
            terminated = np.zeros(count, bool)
        keep = np.ones(count, bool)
        own_labels = None  # only a goal's are replaced
        if task.reaches_goal:
            # Without the last rows of episodes: D4RL's script labels them by where the next one starts.
            inside = known & ~boundary
            own_labels = _mark_one_goal(environment, rows.reward[inside], next_observation[inside])
            if own_labels:
                success = (rows.reward == 1) & known & environment.near_goals(next_observation)
                at_goal = np.concatenate([[False], success[:-1]])
            else:
                success = environment.reached(observation, next_observation) & known
                at_goal = environment.reached(observation, observation)
            reward, terminated = success.astype(np.float32), success
            first = np.concatenate([[True], boundary[:-1]])
            keep = first | ~at_goal
        elif task.family == "ogbench":
            success = rows.terminal
        else:
            success = solved(task, next_observation) & known
            if task.family == "adroit-binary":
                reward, terminated = success.astype(np.float32) - 1, np.zeros(count, bool)
        resting = count - int(keep.sum())
        keep &= known | terminated
        if not keep.any():
            raise Refused(f"{source}: no transition is left: every row lacks its successor or starts at the goal")

        # Rows of one episode share a number: it rises wherever the next row does not continue this one.
        episode = np.concatenate([[0], np.cumsum(boundary | terminated | ~keep)[:-1]])[keep]
        end = np.concatenate([episode[1:] != episode[:-1], [True]])
        metadata = rows.metadata | {
            "rows": count,
            "source_episodes": int(boundary.sum()),
            "dropped_without_successor": count - resting - int(keep.sum()),
            "dropped_at_goal": resting,
            "own_labels": own_labels,
            "terminals_that_are_time_limits": time_limits,
            "warnings": [*rows.warnings, *doubts.of(task, rows, environment)],
            **doubts.beyond_limit(task, rows),
            **told,
        }
        dataset = Dataset(
            observation=observation[keep],
            action=action[keep],
            reward=reward[keep],
            terminated=terminated[keep],
            truncated=end & ~terminated[keep],
            next_observation=next_observation[keep],
            success=success[keep],
            source=source,
            metadata=metadata,
        )
        _check_maze(environment, dataset)
        return dataset
    finally:
        environment.close()


def _actions(source: str, action: np.ndarray, environment: Environment) -> tuple[np.ndarray, dict[str, Any]]:
    """Recorded actions as a data set has them, [n, action], and how many entries were clipped, for the card."""
    space, numbers = environment.raw.action_space, environment.numbers
    if numbers is not None:
        if action.ndim == 2 and action.shape[1] == 1:
            action = action[:, 0]
        if action.ndim != 1 or not np.isin(action, numbers).all():
            raise Refused(
                f"{source}: actions are {list(action.shape)}, from {action.min():.3g} to {action.max():.3g}, where "
                f"{environment.task.environment} takes a whole number per row, {numbers[0]} to {numbers[-1]}"
            )
        return environment.unscaled(action), {"actions_clipped": 0, "actions_clipped_share": 0.0, "action_largest": 1.0}
    if action.ndim == 1:
        raise Refused(f"{source}: actions are {action.dtype} {list(action.shape)}, expected numbers, 2-D")
    unit = environment.unscaled(action)
    largest, outside = float(np.abs(unit).max()), (np.abs(unit) > 1) | (environment.held & (unit != 0))
    if largest > ACTION_LIMIT:
        raise Refused(
            f"{source}: actions from {action.min():.3g} to {action.max():.3g}, where {environment.task.environment} "
            f"takes {space.low.min():.3g} to {space.high.max():.3g} (a little more is clipped): other units, or "
            "another environment's"
        )
    return np.where(environment.held, 0, unit.clip(-1, 1)).astype(np.float32), {
        "actions_clipped": int(outside.sum()),
        "actions_clipped_share": float(outside.mean()),
        "action_largest": largest,
    }


def _mark_one_goal(environment: Environment, reward: np.ndarray, next_observation: np.ndarray) -> bool:
    """Whether rewards [n] are those of one goal that D4RL's AntMaze may have drawn."""
    if not environment.draws_goal or set(np.unique(reward).tolist()) != {0.0, 1.0}:
        return False
    reached = next_observation[reward == 1]
    widths = np.ptp(reached[:, :2].astype(np.float64), axis=0)
    return bool(environment.near_goals(reached).all() and (widths <= environments.GOAL_WIDTH).all())


# gymnasium_robotics/envs/adroit_hand/adroit_*.py, step(): when the object is where it should be, in observations.
_NAIL_IN = np.array([0.04067961, -0.00362358], np.float32)
"""m: x and y of the nail driven in. The hammer's observation has the nail's position and not its goal, which differs
between episodes in height only, as the nail does."""


def solved(task: Task, observation: np.ndarray) -> np.ndarray:
    """bool [n]: whether Adroit's object is where it should be in each observation [n, observation]; else all False."""
    match task.environment:
        case "AdroitHandDoor-v1":
            return observation[:, 28] >= 1.35
        case "AdroitHandHammer-v1":
            return np.linalg.norm(observation[:, 42:44] - _NAIL_IN, axis=1) < 0.01
        case "AdroitHandPen-v1":
            aligned = np.sum(observation[:, 33:36] * observation[:, 36:39], axis=1) > 0.95
            return aligned & (np.linalg.norm(observation[:, 39:42], axis=1) < 0.075)
        case "AdroitHandRelocate-v1":
            return np.linalg.norm(observation[:, 36:39], axis=1) < 0.1
    return np.zeros(len(observation), bool)
