"""robomimic's demonstrations: an HDF5 file with the groups data/demo_0, data/demo_1 and so on.

Of each: `actions`, `rewards`, `dones`, and observations by name in `obs` and, one step later, in `next_obs`; the group
`mask` lists demonstrations under names. Layout and the meaning of `dones`: robomimic's dataset_states_to_obs.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from common.datasets import memory, naming
from common.datasets.arrays import all_bytes, array_of, check_readable, existing_file, header_of, is_unwritten
from common.datasets.rows import Rows, column, flags, until_over, validate
from common.errors import Refused, one_line
from common.tasks import Task

ARM = ("eef_pos", "eef_quat", "gripper_qpos")
"""What robomimic's configurations observe of each robot, robot0 and robot1, before the object."""
_ARRAYS = ("actions", "rewards", "dones")
Columns = dict[str, np.ndarray]


def read_robomimic(task: Task, source: str, name: str) -> Rows:
    """A file of robomimic's layout: `keys` chooses observations and their order, `mask` one of the file's lists.

    By default the low-dimensional keys of robomimic's configurations, else every key that holds vectors.
    """
    options = naming.options(source)
    path = Path(naming.parts(source)[1]).expanduser()
    existing_file(source, path, "give the path of an HDF5 file in robomimic's layout")
    try:
        with h5py.File(path, "r") as file:
            demos, warnings = _demos(source, file, options.get("mask"))
            first = file["data"][demos[0]]
            keys = _keys(source, first, options.get("keys"))
            warnings += _check(source, path, file, demos, keys)
            has_next = all(f"next_obs/{key}" in file["data"][demo] for key in keys for demo in demos)
            read = [_read(f"{source}: {demo}", file["data"][demo], keys, has_next) for demo in demos]
            for demo, columns in zip(demos, read, strict=True):
                if other := [name for name in columns if columns[name].shape[1:] != read[0][name].shape[1:]]:
                    raise Refused(
                        f"{source}: {demo} has {other[0]} of another size than {demos[0]}: foreign or damaged"
                    )
            left_out = sorted(set(first["obs"]) - set(keys))
            joined = {key: np.concatenate([columns[key] for columns in read]) for key in read[0]}
    except (Refused, MemoryError):
        raise
    except Exception as error:  # h5py raises whatever a damaged file makes it raise
        raise Refused(f"{source} cannot be read as robomimic's HDF5: {one_line(error)}") from error
    ends = np.cumsum([len(columns["rewards"]) for columns in read]) - 1
    widths = {key: joined[f"obs/{key}"].shape[1] for key in keys}
    rows = Rows(
        observation=np.concatenate([joined[f"obs/{key}"] for key in keys], axis=1),
        action=joined["actions"],
        reward=joined["rewards"],
        terminal=flags(source, "dones", joined["dones"], len(joined["dones"])),
        boundary=np.isin(np.arange(ends[-1] + 1), ends),
        next_observation=np.concatenate([joined[f"next_obs/{key}"] for key in keys], axis=1) if has_next else None,
        metadata={"observed": widths, "left_out": left_out},
        warnings=warnings,
    )
    validate(source, rows)
    _cut_without_reward(rows)
    return until_over(task, rows)


def _demos(source: str, file: h5py.File, mask: str | None) -> tuple[list[str], list[str]]:
    """The demonstrations that are read, by their numbers, and warnings about what stands beside them."""
    if not isinstance(file.get("data"), h5py.Group):
        held = ", ".join(sorted(file)) or "nothing"
        raise Refused(f"{source} has no group data, in which robomimic keeps demonstrations (it has {held})")
    there = [name for name in file["data"] if re.fullmatch(r"demo_\d+", name)]
    others = sorted(set(file["data"]) - set(there))
    warnings = [f"in data, but no demo_N, and left out: {', '.join(others)}"] if others else []
    if mask is not None:
        lists = sorted(file["mask"]) if isinstance(file.get("mask"), h5py.Group) else []
        if mask not in lists:
            raise Refused(f"{source}: there is no such list; its masks are {', '.join(lists) or 'none'}")
        named = [name.decode() if isinstance(name, bytes) else str(name) for name in file["mask"][mask][()].tolist()]
        if missing := sorted(set(named) - set(there)):
            raise Refused(f"{source}: the list names {missing[0]}, which the file does not hold")
        there = sorted(set(named))
    if not there:
        raise Refused(f"{source} is empty: it has no demonstrations (data/demo_0)")
    return sorted(there, key=lambda name: (int(name[5:]), name)), warnings


def _keys(source: str, demo: h5py.Group, chosen: str | None) -> list[str]:
    """The observations that are read, in their order."""
    if not isinstance(demo.get("obs"), h5py.Group):
        raise Refused(f"{source}: {demo.name} has no obs: robomimic's dataset_states_to_obs.py extracts them")
    sets = {key: item for key, item in demo["obs"].items() if isinstance(item, h5py.Dataset) and item.shape is not None}
    vectors = sorted(key for key, item in sets.items() if len(header_of(item).shape) in (1, 2))
    if chosen is not None:
        return naming.chosen_keys(source, chosen, vectors)
    usual = [key for robot in ("robot0", "robot1") for part in ARM if (key := f"{robot}_{part}") in vectors]
    keys = [*usual, *(["object"] if "object" in vectors else [])] if usual else vectors
    if not keys:
        raise Refused(f"{source}: no observation is a vector (it has {', '.join(sorted(demo['obs'])) or 'none'})")
    return keys


def _check(source: str, path: Path, file: h5py.File, demos: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Refuse by the headers what is missing, cannot be read or takes too much memory; warnings about the rest."""
    size = steps = width = shape = 0
    unwritten, miscounted = set(), 0
    for demo in demos:
        group = file["data"][demo]
        headers = {}
        for name in (*_ARRAYS, *(f"obs/{key}" for key in keys), *(f"next_obs/{key}" for key in keys)):
            item = group.get(name)
            if item is None and name.startswith("next_obs/"):
                continue
            if not isinstance(item, h5py.Dataset):
                raise Refused(f"{source}: {demo} has no {name}; complete it or leave it out with a list (?mask=...)")
            check_readable(source, path, item)
            headers[name] = header_of(item)
            if is_unwritten(item) and name != "dones":
                unwritten.add(name)
        size += all_bytes(headers)
        steps += headers["actions"].shape[0]
        shape = headers["actions"].width
        width = sum(headers[f"obs/{key}"].width for key in keys)
        told = group.attrs.get("num_samples")
        miscounted += told is not None and told != headers["actions"].shape[0]
    memory.check(source, size + memory.of_rows(steps, width, shape))
    lines = [f"{name} were never written to the file, in one demonstration or more" for name in sorted(unwritten)]
    if miscounted:
        lines.append(f"{miscounted:,} demonstrations have other lengths than their num_samples: all they hold is read")
    return lines


def _read(which: str, group: h5py.Group, keys: Sequence[str], has_next: bool) -> Columns:
    """The arrays of one demonstration."""
    columns: Columns = {name: _numbers(which, group, name) for name in _ARRAYS}
    columns |= {name: column(columns[name]) for name in ("rewards", "dones")}
    length = len(columns["actions"])
    for key in keys:
        for name in (f"obs/{key}", *([f"next_obs/{key}"] if has_next else [])):
            array = _numbers(which, group, name)
            columns[name] = array[:, None] if array.ndim == 1 else array
    for name, array in columns.items():
        if len(array) != length:
            raise Refused(f"{which} has {len(array):,} rows of {name} for {length:,} actions: damaged or foreign")
    return columns


def _numbers(which: str, group: h5py.Group | Mapping, name: str) -> np.ndarray:
    """An array, if it is one of numbers."""
    array = array_of(which, group[name])
    if array.dtype.kind not in "fiub":
        raise Refused(f"{which} has {name} of type {array.dtype}, expected numbers")
    return array


def _cut_without_reward(rows: Rows) -> None:
    """Where rewards are 0 and 1, robomimic's `dones` stand at successes and, as it is asked, at every end as well."""
    unrewarded = rows.terminal & (rows.reward == 0)
    if not unrewarded.any() or not np.isin(rows.reward, (0, 1)).all():
        return
    rows.terminal = rows.terminal & ~unrewarded
    rows.boundary = rows.boundary | unrewarded
    rows.warnings.append(
        f"{int(unrewarded.sum()):,} dones stand where the reward is 0: taken for ends of recordings (robomimic's "
        "done_mode 1 and 2), not for terminations"
    )
