"""The sources of prior data: what each kind of file holds, as rows of source episodes, before any task's rules.

    minari:ID         a Minari data set, downloaded once into MINARI_DATASETS_PATH; MINARI_REMOTE chooses the host
    d4rl:NAME         one of D4RL's own files, downloaded once into its folder, D4RL_DATASET_DIR or ~/.d4rl/datasets;
                      D4RL_REMOTE chooses another host
    d4rl:FILE.hdf5    D4RL's layout, old and new: with or without `timeouts`, `next_observations`, `infos/*`
    npz:FILE.npz      the same keys in a NumPy archive
    ogbench:NAME      an OGBench data set, downloaded once into ~/.ogbench/data, or a file: ogbench:FILE.npz
    lerobot:FOLDER    a LeRobot data set, v3 or v2.1; ?reward=end and ?keys=... behind it (lerobot_sets.py)
    robomimic:FILE    robomimic's HDF5; ?keys=... and ?mask=... behind it (robomimic_sets.py)

(`recipe:NAME` is a Minari data set made on this machine: recipes/.) A file is read as arrays of numbers and nothing
else: no pickle is loaded, and no code that a file names is run. Whatever cannot be read is refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from common import environments
from common.datasets import memory
from common.datasets.arrays import Header, all_bytes, archive, existing_file, hdf5
from common.datasets.downloads import can_be_downloaded, fetch, file_of
from common.datasets.lerobot_sets import read_lerobot
from common.datasets.minari_sets import read_minari
from common.datasets.robomimic_sets import read_robomimic
from common.datasets.rows import Rows, flags, validate
from common.errors import Refused, one_line
from common.tasks import Task

NEEDED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


# ----------------------------------------------------------------------------- d4rl:NAME or FILE.hdf5, npz:FILE.npz


def read_d4rl(task: Task, source: str, name: str) -> Rows:
    """D4RL's HDF5 layout, old and new: with or without `timeouts`, `next_observations`, `infos/*`.

    Of one of its own files by name, downloaded first where it is missing, or of any file.
    """
    fetch(source)
    remedy = "give the path of an HDF5 file, or a name such as hopper-medium-v2"
    path = existing_file(source, file_of("d4rl", name), remedy)
    arrays, unwritten = hdf5(source, path, NEEDED, OPTIONAL, _needed_memory, _again(source))
    rows = rows_of(task, source, arrays)
    # Flags may well be left as they were created, if nothing ended.
    told = [key for key in unwritten if key not in ("terminals", "timeouts")]
    rows.warnings += [f"{key} were never written to the file: every number is {arrays[key].flat[0]:g}" for key in told]
    return rows


def read_npz(task: Task, source: str, name: str) -> Rows:
    """A NumPy archive with the keys of D4RL's files."""
    path = existing_file(source, file_of("npz", name), "give the path of a NumPy archive with D4RL's keys")
    return rows_of(task, source, archive(source, path, NEEDED, OPTIONAL, _needed_memory))


def _again(source: str) -> str:
    """How a damaged file is had again, where it is a published one."""
    kind, _, name = source.partition(":")
    return f"; delete {file_of(kind, name)} and load it again" if can_be_downloaded(source) else ""


def _needed_memory(headers: Mapping[str, Header]) -> int:
    """Bytes to read a file; arrays that are not in single precision are there twice."""
    converted = {key: header for key, header in headers.items() if header.dtype != np.float32}
    count, width = headers["observations"].shape[0], headers["observations"].width
    return all_bytes(converted) + memory.of_rows(count, width, headers["actions"].width)


def rows_of(task: Task, source: str, arrays: Mapping[str, np.ndarray]) -> Rows:
    """Rows from the arrays of D4RL's layout."""
    rows = Rows(
        observation=arrays["observations"],
        action=arrays["actions"],
        reward=arrays["rewards"],
        terminal=arrays["terminals"],
        boundary=arrays.get("timeouts", np.zeros(len(arrays["observations"]), bool)),
        next_observation=arrays.get("next_observations"),
    )
    validate(source, rows)
    is_told = task.horizon is None or bool(rows.boundary[:-1].any())
    # A goal reached does not end an episode of D4RL's mazes: the agent goes on to its next goal.
    if not task.reaches_goal:
        rows.boundary = rows.boundary | rows.terminal
    if rows.next_observation is not None:
        jump = np.abs(rows.next_observation[:-1] - rows.observation[1:]).max(axis=1) > 1e-6
        is_told |= bool(jump[~rows.boundary[:-1]].any())
        rows.boundary = rows.boundary | np.append(jump, True)
    elif "timeouts" not in arrays and (
        task.reaches_goal or task.family not in ("locomotion", "adroit", "adroit-binary")
    ):
        raise Refused(
            f"{source} has neither timeouts nor next_observations: nothing says where its episodes end; "
            "add timeouts, 1 in the last row of each episode that did not terminate"
        )
    if not is_told:
        _cut_at_time_limit(task, rows, "timeouts" in arrays)
    if rows.next_observation is not None:
        _leave_resets_out(task, rows)
    return rows


def _cut_at_time_limit(task: Task, rows: Rows, has_timeouts: bool) -> None:
    """D4RL's own rule for its files: an episode that did not terminate lasted until the time limit."""
    starts = np.concatenate([[0], np.flatnonzero(rows.terminal & rows.boundary) + 1])
    index = np.arange(len(rows.reward))
    age = index - starts[np.searchsorted(starts, index, side="right") - 1]
    cuts = (age % task.horizon == task.horizon - 1) & ~rows.boundary
    rows.boundary = rows.boundary | cuts
    beyond = int((age == task.horizon).sum())
    if beyond and (has_timeouts or rows.next_observation is not None):
        rows.warnings.append(
            f"no timeouts are set and episodes are longer than the time limit of {task.horizon:,} steps ({beyond:,} of "
            "them): cut there, as D4RL does; where they ended elsewhere, set timeouts in their last rows"
        )


def _leave_resets_out(task: Task, rows: Rows) -> None:
    """Mark the rows whose successor is the first observation of the next episode.

    Environments that reset by themselves return it at an episode's end, and so does `roll(observations, -1)`. In mazes
    an episode may go on where the one before has ended: only a leap beyond any other step is a reset there.
    """
    ends = np.flatnonzero(np.append(rows.boundary[:-1], True))
    before, after = rows.observation[ends], rows.next_observation[ends]
    resets = (after == rows.observation[(ends + 1) % len(rows.reward)]).all(axis=1) & (after != before).any(axis=1)
    if task.reaches_goal and resets.any():
        step = np.linalg.norm(rows.next_observation[:, :2] - rows.observation[:, :2], axis=1)
        resets &= step[ends] > np.delete(step, ends).max(initial=0.0)
    if not resets.any():
        return
    rows.unknown = np.zeros(len(rows.reward), bool)
    rows.unknown[ends[resets]] = True
    rows.warnings.append(
        f"next_observations hold the next episode's first observation at {int(resets.sum()):,} of {len(ends):,} ends "
        "of episodes, as environments that reset by themselves return it: not used"
    )


# ----------------------------------------------------------------------------- ogbench:NAME


def read_ogbench(task: Task, source: str, name: str) -> Rows:
    """OGBench's archives for one of its single-task environments, downloaded first where the file is missing.

    Observations hold the last state of every trajectory, marked in `terminals`. Rewards and masks are OGBench's own:
    `rewards` and `masks` of the file, else its package's relabelling. They are functions of the state acted in, so that
    the task is over from the first state at the goal on. `terminal` is 1 - mask.
    """
    fetch(source)
    path = existing_file(source, file_of("ogbench", name), "give the path of one of OGBench's archives, or its name")
    states = ("qpos", "qvel", "button_states")
    keys = ("observations", "actions", "terminals"), ("rewards", "masks", *states)
    arrays = archive(source, path, *keys, _needed_memory, _again(source))
    ends = flags(source, "terminals", arrays.pop("terminals"), len(arrays["observations"]))
    ends[-1] = True
    starts_something = ~ends
    if not starts_something.any():
        raise Refused(f"{source} has no transitions: every row ends a trajectory")
    is_next = np.append(False, starts_something[:-1])
    rows = {key: array[starts_something] for key, array in arrays.items()}
    if not {"rewards", "masks"} <= rows.keys():
        rows |= _relabelled(task, source, rows)
    terminal = 1 - flags(source, "masks", rows["masks"], len(rows["masks"])).astype(np.int8)
    return Rows(
        observation=rows["observations"],
        action=rows["actions"],
        reward=rows["rewards"],
        terminal=terminal,
        boundary=np.append(ends[1:], True)[starts_something],
        next_observation=arrays["observations"][is_next],
    )


def _relabelled(task: Task, source: str, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`rewards` and `masks` of a single task, by OGBench's own rule."""
    if task.family != "ogbench":
        raise Refused(
            f"{source} has no rewards: choose one of OGBench's tasks, such as "
            "--env antmaze-large-navigate-singletask-task1-v0"
        )
    if "qpos" not in rows:
        raise Refused(f"{source} has neither rewards and masks nor the states (qpos) from which they follow")
    environment = environments.make(task)
    try:
        from ogbench.relabel_utils import relabel_dataset  # there, since the environment is

        labelled = dict(rows)
        relabel_dataset(task.environment, environment.raw, labelled)
        return {key: labelled[key] for key in ("rewards", "masks")}
    except Exception as error:  # whatever foreign states make it raise
        raise Refused(f"{source} cannot be relabelled for {task.name}: {one_line(error)}") from error
    finally:
        environment.close()


Reader = Callable[[Task, str, str], Rows]
READERS: dict[str, Reader] = {
    "minari": read_minari,
    "d4rl": read_d4rl,
    "npz": read_npz,
    "ogbench": read_ogbench,
    "lerobot": read_lerobot,
    "robomimic": read_robomimic,
}
"""Kind of source -> its reader, called with the task, the whole source string and the part after the colon."""
