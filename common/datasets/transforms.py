"""What algorithms make of a data set before they train: returns, steps ahead, filters, mixtures, scales.

Episodes are those of the data set: none of these functions looks across an episode's end. An episode ends in one of two
ways, and the difference matters to every return: after a termination nothing follows; a truncated episode (a time
limit, a cut, the end of the file) would have gone on.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from common.datasets import Dataset
from common.errors import Refused


def lengths(data: Dataset) -> np.ndarray:
    """int64 [episodes]: transitions of each episode."""
    return np.diff(np.append(data.starts, len(data)))


def episode_of(data: Dataset) -> np.ndarray:
    """int64 [n]: the episode each row belongs to, counted from 0."""
    return np.repeat(np.arange(len(data.starts)), lengths(data))


def episode_returns(data: Dataset) -> np.ndarray:
    """float64 [episodes]: undiscounted sums of the raw reward."""
    return np.add.reduceat(data.reward.astype(np.float64), data.starts)


def returns_to_go(data: Dataset, reward: np.ndarray, discount: float, continued: bool = False) -> np.ndarray:
    """float32 [n]: the discounted sum of `reward` [n] from each row to its episode's end.

    `continued` assumes that the last reward of a truncated episode would have repeated for ever: it counts as
    reward / (1 - discount), as in "First imitate, then improve"'s Monte-Carlo targets. It needs discount < 1.
    """
    if continued and not discount < 1:
        raise Refused("returns of episodes that go on for ever need a discount below 1")
    tail = reward.astype(np.float64)
    if continued:
        tail = np.where(data.truncated, tail / (1 - discount), tail)
    out = np.empty(len(data))
    size = lengths(data)
    # Backwards through all episodes at once, the longest first, so that those still running are a prefix.
    order = np.argsort(-size, kind="stable")
    last = data.starts[order] + size[order] - 1
    running = np.zeros(len(order))
    for age in range(int(size.max())):
        alive = np.searchsorted(-size[order], -age, side="left")
        rows = last[:alive] - age
        running[:alive] = tail[rows] + discount * running[:alive]
        out[rows] = running[:alive]
    return out.astype(np.float32)


def continued_returns(data: Dataset, reward: np.ndarray, discount: float) -> np.ndarray:
    """float32 [n]: returns to go of as many rewards as the row's episode has, also where a time limit cut it (BAIL).

    A row of a cut episode goes on where the episode was nearest to its last state, by the distance of observations,
    among the rows that have enough rewards left for it.
    """
    out = returns_to_go(data, reward, discount).astype(np.float64)
    for start, size in zip(data.starts, lengths(data), strict=True):
        if data.terminated[start + size - 1]:
            continue
        own = out[start : start + size].copy()
        observation = data.observation[start : start + size].astype(np.float64)
        distance = np.linalg.norm(observation - observation[-1], axis=1)
        # The first row of all that are nearest, up to each row.
        nearer = np.append(True, distance[1:] < np.minimum.accumulate(distance)[:-1])
        nearest = np.maximum.accumulate(np.where(nearer, np.arange(size), 0))
        row = np.arange(1, size)
        left = size - row
        joined = nearest[left]
        surplus = np.append(own, 0.0)[joined + row]  # what follows after `size` rewards; none at joined == left
        out[start + row] += discount**left * own[joined] - discount**size * surplus
    return out.astype(np.float32)


def next_action(data: Dataset) -> np.ndarray:
    """float32 [n, action]: the action taken in the next state; at an episode's end, where none is known, its own."""
    end = data.terminated | data.truncated
    return np.where(end[:, None], data.action, np.roll(data.action, -1, axis=0))


class StepsAhead(NamedTuple):
    """Transitions over several steps: `reward + discount * mask * V(next_observation)` is their target."""

    reward: np.ndarray
    """float32 [n]: discounted sum over the steps"""
    discount: np.ndarray
    """float32 [n]: discount to the power of the steps taken"""
    mask: np.ndarray
    """float32 [n]: 0 where the task terminated within the steps"""
    next_observation: np.ndarray
    """float32 [n, observation]"""


def n_step(data: Dataset, reward: np.ndarray, discount: float, steps: int) -> StepsAhead:
    """Each row with the `steps` rewards from it on, or with those that are left of its episode: exact either way."""
    if steps < 1:
        raise Refused(f"n-step returns need at least one step, not {steps}")
    count = len(data)
    remaining = np.repeat(data.starts + lengths(data), lengths(data)) - np.arange(count)  # rows left, itself included
    taken = np.minimum(remaining, steps)
    total = np.zeros(count)
    for ahead in range(steps):
        inside = ahead < taken
        total[inside] += discount**ahead * reward[np.flatnonzero(inside) + ahead]
    final = np.arange(count) + taken - 1
    return StepsAhead(
        total.astype(np.float32),
        (discount**taken).astype(np.float32),
        1 - data.terminated[final].astype(np.float32),
        data.next_observation[final],
    )


def select(data: Dataset, episodes: np.ndarray) -> Dataset:
    """The data set of these episodes (int [k], each once), in their order in `data`."""
    chosen = np.isin(np.arange(len(data.starts)), episodes)
    return _rows(data, chosen[episode_of(data)])


def top_fraction(data: Dataset, fraction: float) -> Dataset:
    """The episodes of highest return, whole ones, until they hold `fraction` of the transitions (%BC; at least one)."""
    if not 0 < fraction <= 1:
        raise Refused(f"the top fraction must lie in (0, 1], not {fraction}")
    order = np.argsort(-episode_returns(data), kind="stable")
    filled = np.cumsum(lengths(data)[order])
    return select(data, order[: 1 + np.searchsorted(filled, fraction * len(data) * (1 - 1e-12))])


def subsample(data: Dataset, fraction: float, seed: int) -> Dataset:
    """A random share of the episodes, at least one."""
    if not 0 < fraction <= 1:
        raise Refused(f"the share of episodes kept must lie in (0, 1], not {fraction}")
    episodes = len(data.starts)
    kept = np.random.default_rng(seed).permutation(episodes)[: max(1, round(fraction * episodes))]
    return select(data, kept)


def split(data: Dataset, validation: float, seed: int) -> tuple[Dataset, Dataset]:
    """Training and validation data: a random share of the episodes, whole ones, goes to the second."""
    episodes = len(data.starts)
    held_out = round(validation * episodes)
    if not 0 < held_out < episodes:
        raise Refused(f"{validation:g} of {episodes} episodes leaves nothing to train on or nothing to validate with")
    shuffled = np.random.default_rng(seed).permutation(episodes)
    return select(data, shuffled[held_out:]), select(data, shuffled[:held_out])


def mix(*parts: Dataset) -> Dataset:
    """The data sets one after another, as D4RL's medium-expert is made."""
    sizes = {(part.observation.shape[1], part.action.shape[1]) for part in parts}
    if len(sizes) > 1:
        raise Refused(f"data of different sizes cannot be mixed: {' and '.join(part.source for part in parts)}")
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("observation", "action", "reward", "terminated", "truncated", "next_observation", "success")
    }
    return Dataset(
        **joined, source=" + ".join(p.source for p in parts), metadata={"parts": [p.metadata for p in parts]}
    )


def return_range_scale(data: Dataset, reward: np.ndarray, most: float = 1000.0) -> float:
    """The factor that brings the returns of the best and the worst episode `most` apart (IQL's locomotion rewards)."""
    returns = np.add.reduceat(reward.astype(np.float64), data.starts)
    spread = float(returns.max() - returns.min())
    if spread == 0:
        raise Refused(
            f"{data.source}: all episodes have the same return, which gives rewards no scale: "
            "--no-rescale-rewards takes them as they are"
        )
    return most / spread


def _rows(data: Dataset, keep: np.ndarray) -> Dataset:
    """The rows where `keep` [n]; whole episodes only."""
    arrays = {
        f.name: getattr(data, f.name)[keep] for f in dataclasses.fields(data) if f.name not in ("source", "metadata")
    }
    return dataclasses.replace(data, **arrays)
