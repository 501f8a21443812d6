"""The data card: what a data set is, in numbers, printed at start and kept with the run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common import tasks
from common.datasets import Dataset, memory
from common.datasets.pixels import PixelDataset
from common.recipes import locomotion
from common.tasks import Task

# From the pages of the Adroit sets at minari.farama.org and the list of remote sets in Farama-Foundation/Minari#242.
PUBLISHED = {
    "door-human": (25, 6_729),
    "hammer-human": (25, 11_310),
    "door-expert": (5_000, 1_000_000),
    "hammer-expert": (5_000, 1_000_000),
    "antmaze-umaze": (1_430, 1_000_000),
    "antmaze-medium-play": (1_000, 1_000_000),
    "antmaze-medium-diverse": (1_000, 1_000_000),
    "antmaze-large-play": (1_000, 1_000_000),
    "antmaze-large-diverse": (1_000, 1_000_000),
}
"""Name of a published set, without its version -> its episodes and rows. Files that bear a name and hold something else
circulate."""
D4RL_ROWS = {
    "pen-human": 5_000, "hammer-human": 11_310, "door-human": 6_729, "relocate-human": 9_942,
    "pen-cloned": 500_000, "hammer-cloned": 1_000_000, "door-cloned": 1_000_000, "relocate-cloned": 1_000_000,
    "pen-expert": 500_000, "hammer-expert": 1_000_000, "door-expert": 1_000_000, "relocate-expert": 1_000_000,
    **{name: 1_000_000 for name in tasks.names() if tasks.find(name).family == "antmaze"},
    **{name: locomotion.usual_size(name) for name in tasks.names() if tasks.find(name).family == "locomotion"},
}  # fmt: skip
"""Name of one of D4RL's own sets, without its version -> its rows, as Fu et al., 2020, give them."""
D4RL_SLACK = 1e-3
"""Those are round numbers: a file holds up to this share less."""
_QUANTILES = (0, 0.25, 0.5, 0.75, 1)


def difference_from_published(source: str, episodes: int, rows: int) -> str | None:
    """In words, how a set that bears a published name differs from what was published; None if it does not."""
    kind, _, name = source.partition(":")
    if kind not in ("minari", "d4rl"):
        return None
    bare = name.removeprefix("D4RL/") if kind == "minari" else Path(name).stem
    bare = re.sub(r"[-_]v\d+$", "", bare.lower()).replace("/", "-").replace("_", "-")
    if kind == "d4rl":
        whole = D4RL_ROWS.get(bare)
        if whole is None or abs(rows - whole) <= D4RL_SLACK * whole:
            return None
        return f"{rows:,} rows, where D4RL's set of this name has {whole:,}"
    published = PUBLISHED.get(bare)
    if published in (None, (episodes, rows)):
        return None
    return (
        f"{episodes:,} episodes of {rows:,} rows in all, where the published set of this name has "
        f"{published[0]:,} of {published[1]:,}"
    )


def card(dataset: Dataset, task: Task) -> dict[str, Any]:
    """What a data set is, JSON-able: printed at start, kept with the run. Rewards and returns are raw.

    Of success nothing (None), where the task has no notion of it.
    """
    with memory.told(dataset.source):
        return _card(dataset, task)


def _card(dataset: Dataset, task: Task) -> dict[str, Any]:
    solved = np.logical_or.reduceat(dataset.success, dataset.starts)
    values, counts = np.unique(dataset.reward, return_counts=True)
    few = len(values) <= 5
    arrays = (dataset.observation, dataset.action, dataset.reward, dataset.next_observation)
    told = dataset.metadata
    return {
        "task": task.name,
        **_episodes(dataset),
        "score_quantiles": _score_quantiles(dataset, task),
        "differs_from_published": difference_from_published(dataset.source, told["source_episodes"], told["rows"]),
        "reward_values": {f"{value:g}": int(count) for value, count in zip(values, counts, strict=True)}
        if few
        else None,
        "reward_range": _floats((values[0], values[-1])),
        "success_episodes": int(solved.sum()) if task.knows_success else None,
        "success_rate": float(solved.mean()) if task.knows_success else None,
        "success_share_of_steps": float(dataset.success.mean()) if task.knows_success else None,
        "action_range": _floats((dataset.action.min(), dataset.action.max())),
        "action_counts": dataset.action.sum(axis=0).tolist() if dataset.has_discrete_actions else None,
        "duplicates": _duplicates(np.concatenate([dataset.observation, dataset.action], axis=1)),
        "nans": int(sum(np.count_nonzero(~np.isfinite(array)) for array in arrays)),
        "observation_mean": _floats(dataset.observation.mean(axis=0, dtype=np.float64)),
        "observation_std": _floats(dataset.observation.std(axis=0, dtype=np.float64)),
        **told,
    }


def format_card(card: dict[str, Any]) -> str:
    """The card as a few aligned lines, without the long fields."""
    dropped = []
    if card["dropped_without_successor"]:
        dropped.append(f"{card['dropped_without_successor']:,} without a next observation")
    if card["dropped_at_goal"]:
        dropped.append(f"{card['dropped_at_goal']:,} resting at the goal")
    rows = f" of {card['rows']:,} rows; dropped: {', '.join(dropped)}" if dropped else ""
    low, high = card["reward_range"]
    rewards = card["reward_values"]
    limits = card["terminals_that_are_time_limits"]
    lines = _episode_lines(card)
    lines["source"] += f" for {card['task']}"
    if card["score_quantiles"] is not None:
        expert = "the recipe's own policy" if card["action_counts"] else "D4RL's expert"
        lines["score"] = _spread(card["score_quantiles"], ".1f") + f", percent of {expert}"
    lines["transitions"] += rows
    if "observed" in card:
        lines["observed"] = ", ".join(f"{key} ({width})" for key, width in card["observed"].items())
    if card.get("left_out"):
        lines["left out"] = ", ".join(card["left_out"])
    lines["episodes"] += f" ({limits:,} terminals are time limits: this task never terminates)" if limits else ""
    if card.get("longer_than_limit"):
        lines["episodes"] += f" ({card['longer_than_limit']:,} longer than the time limit of {card['time_limit']:,})"
    lines |= {
        "reward": (
            ", ".join(f"{value}: {count:,}" for value, count in rewards.items())
            if rewards
            else f"{low:.4g} to {high:.4g}"
        )
        + {None: "", True: " (the data's own labels)", False: " (labelled by the task's goal)"}[card["own_labels"]],
    }
    if card["success_episodes"] is not None:
        lines["success"] = (
            f"{card['success_episodes']:,} of {card['episodes']:,} episodes ({card['success_rate']:.1%}), "
            f"{card['success_share_of_steps']:.1%} of the steps"
        )
    lines["action"] = _action_line(card)
    lines["duplicates"] = f"{card['duplicates']:,} pairs of observation and action"
    if "instead_of" in card:
        lines["RECIPE"] = f"made on this machine, NOT {card['instead_of']}"
    warnings = list(card.get("warnings", ()))
    if card["differs_from_published"]:
        warnings.insert(0, f"not the published data: {card['differs_from_published']}")
    return _aligned([*lines.items(), *(("WARNING", text) for text in warnings)])


def _duplicates(rows: np.ndarray) -> int:
    """How many rows repeat an earlier one: float32 [n, width], compared by a 64-bit hash of their bits."""
    weights = np.random.default_rng(0).integers(0, 2**64, rows.shape[1], dtype=np.uint64, endpoint=False) | np.uint64(1)
    words = np.ascontiguousarray(rows).view(np.uint32)
    hashes = np.zeros(len(rows), np.uint64)
    for word, weight in zip(words.T, weights, strict=True):
        hashes = (hashes ^ word) * weight
        hashes ^= hashes >> np.uint64(29)
    return len(rows) - len(np.unique(hashes))


def pixel_card(dataset: PixelDataset) -> dict[str, Any]:
    """What a data set of images is, JSON-able."""
    return {
        **_episodes(dataset),
        "frames": list(dataset.frames.shape),
        "frame_bytes": dataset.frames.nbytes,
        "action_range": _floats((dataset.action.min(), dataset.action.max())),
        **dataset.metadata,
    }


def format_pixel_card(card: dict[str, Any]) -> str:
    """The card of images as a few aligned lines."""
    count, height, width, _ = card["frames"]
    lines = _episode_lines(card) | {
        "frames": f"{count:,} of {height} x {width} pixels, {card['frame_bytes'] / 1e6:,.1f} MB",
        "action": "{:.3g} to {:.3g}".format(*card["action_range"]) + f"; {card['actions_clipped']:,} entries clipped",
    }
    return _aligned(lines.items())


def _episodes(dataset: Dataset | PixelDataset) -> dict[str, Any]:
    """What both kinds of data have: where they are from, how many episodes, how they end, what they return."""
    starts = dataset.starts
    lengths = np.diff(np.append(starts, len(dataset)))
    returns = np.add.reduceat(dataset.reward.astype(np.float64), starts)
    return {
        "source": dataset.source,
        "fingerprint": dataset.fingerprint,
        "transitions": len(dataset),
        "episodes": len(starts),
        "episode_length": dict(zip(("min", "median", "max"), _floats(np.quantile(lengths, (0, 0.5, 1))), strict=True)),
        "terminated": int(dataset.terminated.sum()),
        "truncated": int(dataset.truncated.sum()),
        "return_quantiles": {f"{q:g}": float(np.quantile(returns, q)) for q in _QUANTILES},
        "return_mean": float(returns.mean()),
    }


def _score_quantiles(dataset: Dataset, task: Task) -> dict[str, float] | None:
    """Of the normalised return, where episodes have one: not in mazes, whose data pass goals as they go."""
    if task.reference is None or task.family not in ("locomotion", "adroit", "classic"):
        return None
    returns = np.add.reduceat(dataset.reward.astype(np.float64), dataset.starts)
    return {f"{q:g}": float(task.score(np.quantile(returns, q), 0.0)) for q in _QUANTILES}


def _episode_lines(card: dict[str, Any]) -> dict[str, str]:
    length = card["episode_length"]
    return {
        "source": card["source"],
        "fingerprint": f"sha256 {card['fingerprint'][:16]}",
        "transitions": f"{card['transitions']:,}",
        "episodes": (
            f"{card['episodes']:,} of {length['min']:.0f} to {length['max']:.0f} steps "
            f"(median {length['median']:.0f}); "
            f"{card['terminated']:,} terminated, {card['truncated']:,} truncated"
        ),
        "return": _spread(card["return_quantiles"], ".4g"),
    }


def _action_line(card: dict[str, Any]) -> str:
    if card["action_counts"]:
        shares = ", ".join(f"{count / card['transitions']:.1%}" for count in card["action_counts"])
        return f"one of {len(card['action_counts'])}: {shares}"
    if card["actions_clipped"]:
        return (
            f"{card['actions_clipped']:,} entries clipped to [-1, 1] ({card['actions_clipped_share']:.1%}, "
            f"largest {card['action_largest']:.3g})"
        )
    return "{:.3g} to {:.3g}".format(*card["action_range"])


def _spread(quantiles: dict[str, float], form: str) -> str:
    return " / ".join(f"{value:{form}}" for value in quantiles.values()) + "  (min, quartiles, max)"


def _aligned(lines: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"  {name:<12} {text}" for name, text in lines)


def _floats(values: Any) -> list[float]:
    return [float(value) for value in values]
