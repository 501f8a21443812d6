"""LeRobot's data sets: a folder with meta/info.json and tables of frames in Parquet files, layouts v3 and v2.1.

A frame is an observation and the action taken at it; `next.reward`, `next.done` and `next.success`, which need not be
there, are what the action led to. Of the observations those that are vectors are read; videos and images are left out.
A frame's successor is the next one, unless `next.observation.*` columns beside the observations' say it.

Only columns of numbers are read from the tables, by pyarrow (extra `lerobot`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.datasets import memory, naming
from common.datasets.rows import Rows, column, flags, until_over, validate
from common.errors import Refused, one_line
from common.tasks import Task

STATE = "observation.state"
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index")
_INDICES = ("episode_index", "frame_index")
_ENDS = ("next.reward", "next.done", "next.success")
_LFS = b"version https://git-lfs"
_REMEDY = "?reward=end gives 1 at the end of every episode that succeeded, and 0 elsewhere"
Columns = dict[str, np.ndarray]


def read_lerobot(task: Task, source: str, name: str) -> Rows:
    """A folder of LeRobot's: `keys` chooses observations and their order, `reward=end` makes a reward of success.

    By default `observation.state` and then whatever else of `observation.*` is a vector, as info.json orders them.
    """
    options = naming.options(source)
    if options.get("reward", "end") != "end":
        raise Refused(f"{source}: the reward can be `end`: {_REMEDY}")
    folder = Path(naming.parts(source)[1]).expanduser()
    if not (folder / "meta" / "info.json").is_file():
        raise Refused(
            f"{source}: there is no meta/info.json in {folder}; give the folder of a LeRobot data set (LeRobot keeps "
            "its own in ~/.cache/huggingface/lerobot)"
        )
    _check_pyarrow(source)
    try:
        return until_over(task, _rows(source, folder, options))
    except (Refused, MemoryError):
        raise
    except Exception as error:  # whatever damaged files make json and Arrow raise
        raise Refused(f"{source}: {folder} cannot be read as LeRobot's ({one_line(error)})") from error


def _rows(source: str, folder: Path, options: Mapping[str, str]) -> Rows:
    """All frames, validated."""
    info = json.loads((folder / "meta" / "info.json").read_text(encoding="utf-8"))
    is_old = _is_v21(source, info)
    features = {key: _width(feature) for key, feature in info["features"].items()}
    keys = _keys(source, features, options.get("keys"))
    optional = [key for key in (*_ENDS, *(f"next.{key}" for key in keys)) if features.get(key)]
    wanted = {key: features[key] for key in (*keys, "action", *optional)} | dict.fromkeys(_INDICES, 1)
    frames = _read(source, _tables(folder / "data", "episode" if is_old else "file"), wanted)
    episodes = _episodes(source, folder, is_old)
    boundary = _in_order(source, frames)
    warnings = _other_counts(info, episodes, boundary)
    reward, terminal = (
        _reward_of_success(source, frames, episodes, boundary, warnings)
        if "reward" in options
        else _recorded_reward(source, frames, boundary, warnings)
    )
    has_next = all(f"next.{key}" in frames for key in keys)
    used = {*wanted, *_BOOKKEEPING, *_ENDS}
    rows = Rows(
        observation=np.concatenate([frames[key] for key in keys], axis=1),
        action=frames["action"],
        reward=reward,
        terminal=terminal,
        boundary=boundary,
        next_observation=np.concatenate([frames[f"next.{key}"] for key in keys], axis=1) if has_next else None,
        metadata={
            "observed": {key: features[key] for key in keys},
            "left_out": [f"{key} ({info['features'][key]['dtype']})" for key in features if key not in used],
        },
        warnings=warnings,
    )
    validate(source, rows)
    return rows


def _check_pyarrow(source: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401 - an extra
    except ImportError as error:
        raise Refused(f"{source} is in Parquet files, which need pyarrow: pip install -e '.[lerobot]'") from error


def _is_v21(source: str, info: Mapping[str, Any]) -> bool:
    """Whether it is of the older of the two layouts that are read; any other is refused."""
    version = str(info["codebase_version"])
    if re.fullmatch(r"v3\.\d+", version):
        return False
    if version == "v2.1":
        return True
    if re.fullmatch(r"v[12]\.\d+", version):
        raise Refused(
            f"{source} is of LeRobot's layout {version}, and v2.1 and v3 are read: convert it with the scripts of "
            "LeRobot's releases (convert_dataset_v1_to_v2.py, convert_dataset_v20_to_v21.py)"
        )
    raise Refused(f"{source} is of LeRobot's layout {version!r}, and v2.1 and v3 are read")


def _width(feature: Mapping[str, Any]) -> int:
    """Numbers per frame of a feature that is a vector; 0 of any other."""
    try:
        is_number = np.dtype(feature["dtype"]).kind in "fiub"
    except TypeError:  # "video", "image" and whatever else is no type of numbers
        return 0
    shape = feature["shape"]
    return int(shape[0]) if is_number and len(shape) == 1 else 0


def _keys(source: str, features: Mapping[str, int], chosen: str | None) -> list[str]:
    """The observations that are read, in their order."""
    vectors = [key for key, width in features.items() if width and key.startswith("observation.")]
    if not features.get("action"):
        raise Refused(f"{source} has no action that is a vector: its features are {', '.join(features)}")
    if chosen is None:
        keys = sorted(vectors, key=lambda key: key != STATE)
        if not keys:
            raise Refused(f"{source} has no observation that is a vector: its features are {', '.join(features)}")
        return keys
    return naming.chosen_keys(source, chosen, vectors)


def _tables(folder: Path, stem: str) -> list[Path]:
    """The files of a table, in the order of their numbers."""
    paths = folder.glob(f"chunk-*/{stem}[-_]*.parquet")
    return sorted(
        paths, key=lambda path: [int(number) for number in re.findall(r"\d+", f"{path.parent.name}/{path.stem}")]
    )


def _read(source: str, paths: Sequence[Path], wanted: Mapping[str, int]) -> Columns:
    """These columns of all files, [n, width]. Raises Refused where the memory cannot take them."""
    import pyarrow.parquet

    if not paths:
        raise Refused(f"{source} has no frames: there is no Parquet file in data/chunk-*")
    size = steps = 0
    for path in paths:
        _check_fetched(source, path)
        about = pyarrow.parquet.read_metadata(path)
        steps += about.num_rows
        for group in range(about.num_row_groups):
            parts = [about.row_group(group).column(number) for number in range(about.num_columns)]
            size += sum(p.total_uncompressed_size for p in parts if _name(p.path_in_schema) in wanted)
    width = sum(width for key, width in wanted.items() if key.startswith("observation."))
    memory.check(source, size + memory.of_rows(steps, width, wanted["action"]))
    read = []
    for path in paths:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        table = file.read(list(wanted), use_threads=False)
        where = f"{source}: {path.parent.name}/{path.name}"
        if missing := [key for key in wanted if key not in table.column_names]:
            raise Refused(f"{where} has no column {missing[0]}, which info.json promises")
        read.append({key: _numbers(where, key, table.column(key), width) for key, width in wanted.items()})
    return {key: np.concatenate([columns[key] for columns in read]) for key in wanted}


def _name(path: str) -> str:
    """The column of a path such as observation.state.list.element."""
    return re.sub(r"\.list\.(element|item)$", "", path)


def _check_fetched(source: str, path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise Refused(f"{source}: {path.name} is a pointer to a file that was not fetched: git lfs pull")


def _numbers(where: str, key: str, cells: Any, width: int) -> np.ndarray:
    """A column of numbers, or of lists of `width` of them, as [n, width]."""
    import pyarrow
    import pyarrow.compute

    array = cells.combine_chunks()
    if isinstance(array, pyarrow.ChunkedArray):  # of a table without rows
        array = pyarrow.concat_arrays(array.chunks) if array.num_chunks else pyarrow.array([], array.type)
    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    count, kind = len(array), array.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        lengths = set(pyarrow.compute.unique(pyarrow.compute.list_value_length(array)).to_pylist())
        if lengths - {width}:
            raise Refused(f"{where}: {key} should have {width} numbers in every frame, as info.json says")
        array = array.flatten()
    kind = array.type
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)):
        raise Refused(f"{where}: {key} is {kind}, expected numbers")
    if array.null_count:
        raise Refused(f"{where}: {key} is empty in some frames")
    if len(array) != count * width:
        raise Refused(f"{where}: {key} should have {width} numbers in every frame, as info.json says")
    return array.to_numpy(zero_copy_only=False).reshape(count, width)


def _in_order(source: str, frames: Columns) -> np.ndarray:
    """Bring the frames into the order of episodes and frames; bool [n], the last of each episode."""
    episode, frame = (column(frames[key]) for key in _INDICES)
    if not len(frame):
        raise Refused(f"{source} is empty: it has no frames")
    if {episode.dtype.kind, frame.dtype.kind} - {"i", "u"}:
        raise Refused(f"{source}: episode_index and frame_index are no whole numbers")
    order = np.lexsort((frame, episode))
    if (np.diff(order) != 1).any():
        for key, array in frames.items():
            frames[key] = array[order]
        episode, frame = episode[order], frame[order]
    boundary = np.append(episode[1:] != episode[:-1], True)
    starts = np.flatnonzero(np.append(True, boundary[:-1]))
    due = np.arange(len(frame)) - starts[np.cumsum(np.append(False, boundary[:-1]))]
    if (frame != due).any():
        wrong = int(episode[np.flatnonzero(frame != due)[0]])
        raise Refused(
            f"{source}: the frames of episode {wrong} are not numbered 0, 1, 2, ...: some are missing or twice"
        )
    return boundary


def _episodes(source: str, folder: Path, is_old: bool) -> Columns:
    """What the table of episodes says of each: `episode_index`, `length` and, where it is there, `success`."""
    if is_old:
        path = folder / "meta" / "episodes.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        told = [json.loads(line) for line in lines if line.strip()]
    else:
        import pyarrow.parquet

        told = []
        for path in _tables(folder / "meta" / "episodes", "file"):
            _check_fetched(source, path)
            file = pyarrow.parquet.ParquetFile(path)
            there = [key for key in ("episode_index", "length", "success") if key in file.schema_arrow.names]
            told += file.read(there, use_threads=False).to_pylist()
    keys = [key for key in ("episode_index", "length", "success") if told and all(key in one for one in told)]
    return {key: np.array([one[key] for one in told]) for key in keys}


def _other_counts(info: Mapping[str, Any], episodes: Columns, boundary: np.ndarray) -> list[str]:
    """The warning that the folder says other numbers than were read."""
    held = int(boundary.sum()), len(boundary)
    told = info.get("total_episodes", held[0]), info.get("total_frames", held[1])
    if told == held and "length" in episodes:
        told = len(episodes["length"]), int(episodes["length"].sum())
    if told == held:
        return []
    return [
        f"the folder holds {held[0]:,} episodes of {held[1]:,} frames in all, and its meta says {told[0]} of "
        f"{told[1]}: all that it holds are read"
    ]


def _reward_of_success(
    source: str, frames: Columns, episodes: Columns, boundary: np.ndarray, warnings: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Reward and terminal: 1 in the last frame of every episode that succeeded."""
    ends = np.flatnonzero(boundary)
    if "next.success" in frames:
        success = flags(source, "next.success", frames["next.success"], len(boundary))
        succeeded = np.logical_or.reduceat(success, np.append(0, ends[:-1] + 1))
    elif {"success", "episode_index"} <= episodes.keys():
        told = dict(zip(episodes["episode_index"].tolist(), episodes["success"].tolist(), strict=True))
        numbers = column(frames["episode_index"])[ends].tolist()
        if missing := [number for number in numbers if number not in told]:
            raise Refused(f"{source}: meta/episodes says nothing of episode {missing[0]}")
        succeeded = flags(source, "success", np.array([told[number] for number in numbers]), len(ends))
    else:
        succeeded = np.ones(len(ends), bool)
        warnings.append(
            f"nothing says which episodes succeeded (next.success, or success in meta/episodes): all {len(ends):,} are "
            "taken for successes"
        )
    terminal = np.zeros(len(boundary), bool)
    terminal[ends[succeeded]] = True
    return terminal.astype(np.float32), terminal


def _recorded_reward(
    source: str, frames: Columns, boundary: np.ndarray, warnings: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Reward and terminal as they were recorded; LeRobot's `next.done` may stand at every end, however it came."""
    if "next.reward" not in frames:
        raise Refused(f"{source} has no next.reward, from which to learn; {_REMEDY}")
    count = len(boundary)
    told = {key: flags(source, key, frames[key], count) for key in _ENDS[1:] if key in frames}
    done, success = told.get("next.done"), told.get("next.success")
    if success is not None:
        terminal = success & (boundary if done is None else done)
    elif done is not None:
        terminal = done
        if done[boundary].all():
            warnings.append(
                f"next.done ends all {int(boundary.sum()):,} episodes and nothing says whether by a time limit "
                "(no next.success): learnt as terminations"
            )
    else:
        terminal = np.zeros(count, bool)
        warnings.append("nothing says which episodes ended the task (next.done, next.success): none is taken to have")
    return column(frames["next.reward"]), terminal
