"""Prior data: a source string -> validated transitions, and the card that says what they are.

Sources: `minari:ID`, `d4rl:FILE.hdf5`, `recipe:NAME`. Each reader yields rows of source episodes; `_assemble` turns
them into transitions of the task by rules that are the same for every source:

- A row needs its successor. Where the source does not store it, it is the next row of the same source episode; the last
  row of an episode is dropped, unless the task terminated there (its successor is then its own observation, which no
  target uses). No transition joins two episodes.
- `terminated` is a true end of the task, `truncated` any other end of an episode: a time limit, a cut, the end of the
  file. Every episode ends with exactly one of them.
- Tasks that reach a goal are relabelled from the positions: reward 1 and terminated where the goal pursued is reached,
  else 0. The task is over then, so rows that start at the goal (an agent resting there) are dropped.
- Binary Adroit is relabelled from the observations: reward 0 where solved, else -1, never terminated.
- Actions outside [-1, 1] are clipped to it and counted on the card: human demonstrations have them, and the environment
  clips as well. Beyond +-10 they are no actions of such an environment, and refused.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.storage.datasets_root_dir import get_dataset_path
from minari.storage.remotes import DEFAULT_REMOTE, get_cloud_storage

from common import environments, recipes
from common.errors import Refused
from common.replay import Batch
from common.tasks import Task

ACTION_MARGIN = 1e-5
"""Batches hold actions in +-(1 - margin), where a tanh policy has a finite log-density; every author's code does so."""
_ACTION_LIMIT = 10.0
_HOST_SECONDS = 4.0
"""How long a dataset host may take to answer at all."""
_ARRAYS = ("observation", "action", "reward", "terminated", "truncated", "next_observation")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions in the order in which they were collected, episode after episode."""

    observation: np.ndarray
    """float32 [n, observation]"""
    action: np.ndarray
    """float32 [n, action], in [-1, 1]"""
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

    def __len__(self) -> int:
        """The number of transitions."""
        return len(self.reward)

    @property
    def starts(self) -> np.ndarray:
        """int64 [episodes]: the first row of each episode."""
        return np.flatnonzero(np.concatenate([[True], (self.terminated | self.truncated)[:-1]]))

    @property
    def fingerprint(self) -> str:
        """sha256 over names, types, shapes and contents of the arrays: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def batch(self, task: Task) -> Batch:
        """All transitions with the task's training reward and mask, as float32 arrays on the host."""
        limit = np.float32(1 - ACTION_MARGIN)
        return Batch(
            observation=self.observation,
            action=self.action.clip(-limit, limit),
            reward=np.float32(task.reward_scale) * self.reward + np.float32(task.reward_shift),
            mask=1 - self.terminated.astype(np.float32),
            next_observation=self.next_observation,
        )


def load(task: Task, source: str | None = None, progress: recipes.Progress | None = None) -> Dataset | None:
    """The task's prior data from `source`, by default the task's own; None for a Gymnasium id without a source.

    `progress` is called while a recipe makes its data: see `recipes.make`.
    """
    source = source or task.default_dataset
    if source is None:
        if task.family == "gym":
            return None
        raise Refused(f"{task.name} has no downloadable data: give a file of D4RL's with --dataset d4rl:FILE.hdf5")
    kind, _, name = source.partition(":")
    if kind not in ("minari", "d4rl", "recipe") or not name:
        raise Refused(f"unknown dataset source {source!r}: the sources are minari:ID, d4rl:FILE.hdf5, recipe:NAME")
    if kind == "recipe":
        source_rows = _read_minari(task, source, recipes.make(name, progress=progress))
    elif kind == "minari":
        source_rows = _read_minari(task, source, name)
    else:
        source_rows = _read_d4rl(task, source, name)
    return _assemble(task, source, source_rows)


# ----------------------------------------------------------------------------- rows -> transitions


@dataclass
class _Rows:
    """What a reader found: rows of source episodes, not yet validated."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    """bool [n], as the source says"""
    boundary: np.ndarray
    """bool [n]: the next row belongs to another source episode"""
    next_observation: np.ndarray | None = None
    """None: the next row's observation"""
    metadata: dict[str, Any] = field(default_factory=dict)


def _assemble(task: Task, source: str, rows: _Rows) -> Dataset:
    """Validated rows as transitions of the task: the rules at the top of this file."""
    _validate(source, rows)
    environment = environments.open_form(task, rows.observation.shape[1], rows.action.shape[1])
    try:
        count = len(rows.reward)
        observation, boundary = rows.observation, rows.boundary.copy()
        boundary[-1] = True
        if rows.next_observation is None:
            known = ~boundary
            next_observation = np.where(known[:, None], np.roll(observation, -1, axis=0), observation)
        else:
            known = np.ones(count, bool)
            next_observation = rows.next_observation
        reward, terminated = rows.reward, rows.terminal
        keep = np.ones(count, bool)
        if task.reaches_goal:
            success = environment.reached(observation, next_observation) & known
            reward, terminated = success.astype(np.float32), success
            first = np.concatenate([[True], boundary[:-1]])
            keep = first | ~environment.reached(observation, observation)
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
        action = environment.unscaled(rows.action)
        outside = np.abs(action) > 1
        metadata = rows.metadata | {
            "rows": count,
            "dropped_without_successor": count - resting - int(keep.sum()),
            "dropped_at_goal": resting,
            "actions_clipped": int(outside.sum()),
            "actions_clipped_share": float(outside.mean()),
            "action_largest": float(np.abs(action).max()),
        }
        dataset = Dataset(
            observation=observation[keep],
            action=action[keep].clip(-1, 1).astype(np.float32),
            reward=reward[keep],
            terminated=terminated[keep],
            truncated=end & ~terminated[keep],
            next_observation=next_observation[keep],
            success=success[keep],
            source=source,
            metadata=metadata,
        )
        environments.check_maze(environment, dataset)
        return dataset
    finally:
        environment.close()


def _validate(source: str, rows: _Rows) -> None:
    """Refuse rows that are not data; leave floats as float32 and flags as bool."""
    count = len(rows.observation)
    if not count:
        raise Refused(f"{source} is empty: it has no transitions")
    for name, dimensions in {"observation": 2, "next_observation": 2, "action": 2, "reward": 1}.items():
        array = getattr(rows, name)
        if array is None:
            continue
        if array.dtype.kind not in "fiub" or array.ndim != dimensions or 0 in array.shape:
            raise Refused(f"{source}: {name}s are {array.dtype} {list(array.shape)}, expected numbers, {dimensions}-D")
        if len(array) != count:
            raise Refused(f"{source}: {len(array)} {name}s for {count} observations; the file is damaged or foreign")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        broken = ~np.isfinite(array)
        if broken.any():
            row = int(np.flatnonzero(broken.reshape(count, -1).any(axis=1))[0])
            raise Refused(f"{source}: {int(broken.sum())} NaN or infinite {name} values, the first in row {row}")
        setattr(rows, name, array)
    if rows.next_observation is not None and rows.next_observation.shape != rows.observation.shape:
        raise Refused(f"{source}: observations and next_observations differ in shape")
    for name in ("terminal", "boundary"):
        flags = getattr(rows, name)
        if flags.shape != (count,) or flags.dtype.kind not in "fiub" or not np.isin(flags, (0, 1)).all():
            raise Refused(
                f"{source}: episode ends must be {count} values 0 or 1, not {flags.dtype} {list(flags.shape)}"
            )
        setattr(rows, name, flags.astype(bool))
    largest = float(np.abs(rows.action).max())
    if largest > _ACTION_LIMIT:
        raise Refused(f"{source}: actions up to {largest:.3g}; expected them in [-1, 1] (a little more is clipped)")


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


# ----------------------------------------------------------------------------- d4rl:FILE.hdf5


def _read_d4rl(task: Task, source: str, name: str) -> _Rows:
    """D4RL's HDF5 layout, old and new: with or without `timeouts`, `next_observations`, `infos/*`."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise Refused(f"{source}: there is no such file; download one of D4RL's HDF5 files and give its path")
    needed, optional = ("observations", "actions", "rewards", "terminals"), ("timeouts", "next_observations")
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in needed if not isinstance(file.get(key), h5py.Dataset)]
            if missing:
                found = ", ".join(sorted(map(str, file))) or "nothing"
                raise Refused(f"{source} is not a D4RL file: no {' and '.join(missing)} in it (it has {found})")
            arrays = {key: _array(file[key]) for key in (*needed, *optional) if isinstance(file.get(key), h5py.Dataset)}
    except Refused:
        raise
    except Exception as error:  # h5py raises whatever a damaged file makes it raise
        raise Refused(f"{source} cannot be read as HDF5 (truncated or another format): {_line(error)}") from error
    for key in ("rewards", "terminals", "timeouts"):
        # Some files store these as columns.
        if key in arrays and arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
    rows = _Rows(
        observation=arrays["observations"],
        action=arrays["actions"],
        reward=arrays["rewards"],
        terminal=arrays["terminals"],
        boundary=arrays.get("timeouts", np.zeros(len(arrays["rewards"]), bool)),
        next_observation=arrays.get("next_observations"),
    )
    _validate(source, rows)
    # A goal reached does not end an episode of D4RL's mazes: the agent goes on to its next goal.
    if not task.reaches_goal:
        rows.boundary = rows.boundary | rows.terminal
    if rows.next_observation is not None:
        jump = np.abs(rows.next_observation[:-1] - rows.observation[1:]).max(axis=1) > 1e-6
        rows.boundary = rows.boundary | np.append(jump, True)
    elif "timeouts" not in arrays:
        if task.reaches_goal or task.horizon is None:
            raise Refused(f"{source} has neither timeouts nor next_observations: nothing says where its episodes end")
        # D4RL's own rule for these files: an episode that did not terminate lasted until the time limit.
        starts = np.concatenate([[0], np.flatnonzero(rows.terminal) + 1])
        index = np.arange(len(rows.reward))
        age = index - starts[np.searchsorted(starts, index, side="right") - 1]
        rows.boundary = rows.boundary | (age % task.horizon == task.horizon - 1)
    return rows


def _array(dataset: h5py.Dataset) -> np.ndarray:
    """An HDF5 array, at least one-dimensional."""
    # A damaged shape must not fill the memory; no compression reaches 1:1100.
    claimed, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if claimed > 1100 * stored + (1 << 20):
        raise ValueError(f"{dataset.name} claims {claimed:,} bytes and holds {stored:,}")
    return np.atleast_1d(dataset[()])


# ----------------------------------------------------------------------------- minari:ID


def _read_minari(task: Task, source: str, name: str) -> _Rows:
    """A Minari data set, from the local folder (MINARI_DATASETS_PATH), downloaded into it first where it is missing."""
    try:
        parse_dataset_id(name)
    except (ValueError, TypeError) as error:
        raise Refused(f"{source} is not a Minari id: expected (namespace/)name-vN") from error
    folder = get_dataset_path(name) / "data"
    if not folder.is_dir():
        _download(source, name)
    try:
        metadata = MinariStorage.read_raw_metadata(folder)
        # Without its spaces Minari would make the environment that the file names, which may be any code at all.
        if not {"observation_space", "action_space"} <= metadata.keys():
            raise Refused(f"{source}: {folder} does not say its spaces; delete it and load it again")
        if metadata.get("minari_version") not in minari.supported_dataset_versions:
            raise Refused(
                f"{source} is of Minari {metadata.get('minari_version')}, which {minari.__version__} can't read"
            )
        columns: list[tuple[np.ndarray, ...]] = []
        for number, episode in enumerate(_minari_episodes(folder, metadata)):
            observation = episode["observations"]
            keys = environments.flat_keys(task, observation) if isinstance(observation, dict) else None
            observation = environments.flatten(observation, keys)
            length = len(episode["rewards"])
            if len(observation) != length + 1 or len(episode["actions"]) != length:
                raise ValueError(f"episode {number} has {len(observation)} observations for {length} rewards")
            last = np.arange(length) == length - 1
            columns.append(
                (
                    observation[:-1],
                    observation[1:],
                    episode["actions"],
                    episode["rewards"],
                    episode["terminations"],
                    last,
                )
            )
        if not columns:
            raise Refused(f"{source} is empty: it has no episodes")
        joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    except Refused:
        raise
    except Exception as error:  # as above, in three file formats
        raise Refused(f"{source}: {folder} cannot be read ({_line(error)}); delete it and load it again") from error
    observation, next_observation, action, reward, terminal, boundary = joined
    told = ("dataset_id", "algorithm_name", "code_permalink", "env_spec", "ref_min_score", "ref_max_score", "recipe")
    return _Rows(
        observation,
        action,
        reward,
        terminal,
        boundary,
        next_observation,
        metadata={key: metadata[key] for key in told if key in metadata},
    )


def _minari_episodes(folder: Path, metadata: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Minari's episodes: `observations` [T + 1, ...] (an array or a dictionary of them), `actions` [T, ...]...."""
    if metadata["data_format"] != "hdf5":
        storage = MinariStorage.read(folder)
        yield from storage.get_episodes(range(storage.total_episodes))
        return
    with h5py.File(folder / "main_data.hdf5", "r") as file:
        for number in range(metadata["total_episodes"]):
            group = file[f"episode_{number}"]
            observations = group["observations"]
            yield {key: _array(group[key]) for key in ("actions", "rewards", "terminations")} | {
                "observations": {key: _array(part) for key, part in observations.items()}
                if isinstance(observations, h5py.Group)
                else _array(observations)
            }


def _download(source: str, name: str) -> None:
    """Fetch a Minari data set as a whole or not at all."""
    remote = os.environ.get("MINARI_REMOTE", DEFAULT_REMOTE)
    kind = remote.partition("://")[0]
    hosts = {"hf": os.environ.get("HF_ENDPOINT", "https://huggingface.co"), "gcp": "https://storage.googleapis.com"}
    offline = (
        f"offline, a copy in {get_dataset_path(name)} (MINARI_DATASETS_PATH chooses the folder), "
        "or a D4RL file (--dataset d4rl:FILE.hdf5) works"
    )
    if kind not in hosts:
        raise Refused(f"MINARI_REMOTE is {remote!r}: expected hf://ORGANISATION or gcp://BUCKET")
    if not _answers(hosts[kind]):
        raise Refused(f"{source} is not on this machine and {hosts[kind]} does not answer; {offline}")
    target = get_dataset_path(name)
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=get_dataset_path()) as temporary:
            get_cloud_storage().download_dataset(name, Path(temporary))
            if not (Path(temporary) / name / "data").is_dir():
                raise Refused(f"{source}: {remote} has no such data set; `minari list remote` shows what it has")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(Path(temporary) / name, target)
    except Refused:
        raise
    except Exception as error:  # the client libraries of two clouds, and the disk
        raise Refused(f"{source} could not be downloaded from {remote} ({_line(error)}); {offline}") from error


def _answers(url: str, seconds: float = _HOST_SECONDS) -> bool:
    """Whether a host answers at all, proxies respected. Minari itself would try for 23 seconds and fill the screen."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # an answer, if not a friendly one
        except urllib.error.URLError as error:
            # Python's certificates may lack the host's issuer where the client library's have it.
            if not isinstance(error.reason, ssl.SSLCertVerificationError):
                return
        except (OSError, ValueError, http.client.HTTPException):
            return
        answered.set()

    # A thread, because no timeout bounds the look-up of a name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _line(error: BaseException) -> str:
    """An exception as part of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# ----------------------------------------------------------------------------- the card


def card(dataset: Dataset, task: Task) -> dict[str, Any]:
    """What a data set is, JSON-able: printed at start, kept with the run. Rewards and returns are raw."""
    starts = dataset.starts
    lengths = np.diff(np.append(starts, len(dataset)))
    returns = np.add.reduceat(dataset.reward.astype(np.float64), starts)
    solved = np.logical_or.reduceat(dataset.success, starts)
    values, counts = np.unique(dataset.reward, return_counts=True)
    few = len(values) <= 5
    arrays = (dataset.observation, dataset.action, dataset.reward, dataset.next_observation)
    return {
        "task": task.name,
        "source": dataset.source,
        "fingerprint": dataset.fingerprint,
        "transitions": len(dataset),
        "episodes": len(starts),
        "episode_length": dict(zip(("min", "median", "max"), _floats(np.quantile(lengths, (0, 0.5, 1))), strict=True)),
        "terminated": int(dataset.terminated.sum()),
        "truncated": int(dataset.truncated.sum()),
        "return_quantiles": dict(
            zip(("0", "0.25", "0.5", "0.75", "1"), _floats(np.quantile(returns, (0, 0.25, 0.5, 0.75, 1))), strict=True)
        ),
        "return_mean": float(returns.mean()),
        "reward_values": {f"{value:g}": int(count) for value, count in zip(values, counts, strict=True)}
        if few
        else None,
        "reward_range": _floats((values[0], values[-1])),
        "success_episodes": int(solved.sum()),
        "success_rate": float(solved.mean()),
        "success_share_of_steps": float(dataset.success.mean()),
        "action_range": _floats((dataset.action.min(), dataset.action.max())),
        "duplicates": _duplicates(np.concatenate([dataset.observation, dataset.action], axis=1)),
        "nans": int(sum(np.count_nonzero(~np.isfinite(array)) for array in arrays)),
        "observation_mean": _floats(dataset.observation.mean(axis=0, dtype=np.float64)),
        "observation_std": _floats(dataset.observation.std(axis=0, dtype=np.float64)),
        **dataset.metadata,
    }


def format_card(card: dict[str, Any]) -> str:
    """The card as a few aligned lines, without the long fields."""
    length, quantiles = card["episode_length"], card["return_quantiles"]
    dropped = []
    if card["dropped_without_successor"]:
        dropped.append(f"{card['dropped_without_successor']:,} without a successor")
    if card["dropped_at_goal"]:
        dropped.append(f"{card['dropped_at_goal']:,} resting at the goal")
    rows = f" of {card['rows']:,} rows; dropped: {', '.join(dropped)}" if dropped else ""
    low, high = card["reward_range"]
    rewards = card["reward_values"]
    lines = {
        "source": f"{card['source']} for {card['task']}",
        "fingerprint": f"sha256 {card['fingerprint'][:16]}",
        "transitions": f"{card['transitions']:,}{rows}",
        "episodes": (
            f"{card['episodes']:,} of {length['min']:.0f} to {length['max']:.0f} steps "
            f"(median {length['median']:.0f}); "
            f"{card['terminated']:,} terminated, {card['truncated']:,} truncated"
        ),
        "return": " / ".join(f"{value:.4g}" for value in quantiles.values()) + "  (min, quartiles, max)",
        "reward": (
            ", ".join(f"{value}: {count:,}" for value, count in rewards.items())
            if rewards
            else f"{low:.4g} to {high:.4g}"
        ),
        "success": (
            f"{card['success_episodes']:,} of {card['episodes']:,} episodes ({card['success_rate']:.1%}), "
            f"{card['success_share_of_steps']:.1%} of the steps"
        ),
        "action": (
            f"{card['actions_clipped']:,} entries clipped to [-1, 1] ({card['actions_clipped_share']:.1%}, "
            f"largest {card['action_largest']:.3g})"
            if card["actions_clipped"]
            else "{:.3g} to {:.3g}".format(*card["action_range"])
        ),
        "duplicates": f"{card['duplicates']:,} pairs of observation and action",
    }
    return "\n".join(f"  {name:<12} {text}" for name, text in lines.items())


def _duplicates(rows: np.ndarray) -> int:
    """How many rows repeat an earlier one: float32 [n, width], compared by a 64-bit hash of their bits."""
    weights = np.random.default_rng(0).integers(0, 2**64, rows.shape[1], dtype=np.uint64, endpoint=False) | np.uint64(1)
    words = np.ascontiguousarray(rows).view(np.uint32)
    hashes = np.zeros(len(rows), np.uint64)
    for word, weight in zip(words.T, weights, strict=True):
        hashes = (hashes ^ word) * weight
        hashes ^= hashes >> np.uint64(29)
    return len(rows) - len(np.unique(hashes))


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]
