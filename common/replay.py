"""Transitions on the device: the batch, the ring buffer of one run, and the ways minibatches are drawn.

Everything here is a pure function of one run; programs.py adds the axis of runs by `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class Batch(struct.PyTreeNode):
    """Transitions; every array has the batch as its leading axis (or axes)."""

    observation: jax.Array
    """[..., observation]"""
    action: jax.Array
    """[..., action], each in [-1, 1]; a discrete action is one-hot"""
    reward: jax.Array
    """[...]"""
    mask: jax.Array
    """[...], 0 where the episode terminated, else 1: an episode cut by a time limit has mask 1."""
    next_observation: jax.Array
    """[..., observation]"""

    def transitions(self) -> Batch:
        """The same rows without what a subclass adds."""
        return Batch(self.observation, self.action, self.reward, self.mask, self.next_observation)

    def normalised(self, normal: Callable[[jax.Array], jax.Array]) -> Self:
        """The same rows with both observations passed through `normal`."""
        return self.replace(observation=normal(self.observation), next_observation=normal(self.next_observation))


class Advised(Batch):
    """Transitions with what an expert would have done; `action` is what was done, the expert's or the learner's."""

    advice: jax.Array
    """[..., action]: the expert's."""
    labelled: jax.Array
    """bool [...]: the advice is something to learn."""


def blank(observation_size: int, action_size: int, advised: bool = False) -> Batch:
    """One transition of zeros on the host, as experience has them; with an expert's advice if `advised`."""
    observation, action, number = (np.zeros(shape, np.float32) for shape in (observation_size, action_size, ()))
    row = Batch(observation, action, number, number, observation)
    return Advised(**vars(row), advice=action, labelled=np.zeros((), bool)) if advised else row


class Episode(struct.PyTreeNode):
    """How the episode that a transition belongs to stands after it."""

    over: jax.Array
    """bool []: it ended with this transition."""
    score: jax.Array
    """float32 []: the task's score so far, in percent."""
    length: jax.Array
    """int32 []: environment steps so far."""


class Replay(struct.PyTreeNode):
    """A ring buffer of transitions: the newest overwrites the oldest once `capacity` rows are filled."""

    rows: Batch
    """[capacity, ...]"""
    inserted: jax.Array
    """Transitions ever inserted, int32."""

    @classmethod
    def create(cls, example: Batch, capacity: int) -> Self:
        """An empty buffer for transitions shaped like one unbatched `example`."""
        rows = jax.tree.map(lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.asarray(x).dtype), example)
        return cls(rows, jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        """Rows the buffer can hold."""
        return self.rows.reward.shape[0]

    @property
    def size(self) -> jax.Array:
        """Rows filled so far, int32."""
        return jnp.minimum(self.inserted, self.capacity)

    def insert(self, transition: Batch) -> Self:
        """The buffer with one unbatched transition added."""
        position = self.inserted % self.capacity
        rows = jax.tree.map(lambda buffer, x: buffer.at[position].set(x), self.rows, transition)
        return self.replace(rows=rows, inserted=self.inserted + 1)

    def extend(self, rows: Batch, kept: jax.Array) -> Self:
        """The buffer with those of many transitions [n, ...] added that are `kept`, bool [n], in their order: at most
        as many as it holds."""
        place = jnp.where(kept, (self.inserted + jnp.cumsum(kept) - 1) % self.capacity, self.capacity)
        # A place behind the last one is none, and the row is left out.
        added = jax.tree.map(lambda buffer, x: buffer.at[place].set(x, mode="drop"), self.rows, rows)
        return self.replace(rows=added, inserted=self.inserted + kept.sum(dtype=jnp.int32))


def sample(key: jax.Array, rows: Batch, size: jax.Array | int, shape: tuple[int, ...]) -> Batch:
    """Transitions drawn uniformly with replacement from the first `size` rows: arrays [*shape, ...]."""
    index = jax.random.randint(key, shape, 0, size)
    return jax.tree.map(lambda x: x[index], rows)


def sample_mixed(
    key: jax.Array, replay: Replay, prior: Batch, steps: int, batch_size: int, prior_ratio: float
) -> Batch:
    """Minibatches [steps, batch_size, ...] of which exactly `round(prior_ratio * batch_size)` rows each are prior data.

    The prior rows come first. With ratio 1/2 this is RLPD's symmetric sampling (Ball et al., 2023, section 4.1).
    """
    prior_rows = round(prior_ratio * batch_size)
    prior_key, replay_key = jax.random.split(key)
    drawn = sample(prior_key, prior, prior.reward.shape[0], (steps, prior_rows))
    experienced = sample(replay_key, replay.rows, replay.size, (steps, batch_size - prior_rows))
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), drawn, experienced)


def sample_union(
    key: jax.Array, replay: Replay, prior: Batch, steps: int, batch_size: int, kept: jax.Array | None = None
) -> Batch:
    """Minibatches [steps, batch_size, ...] drawn uniformly from the prior data and the replay taken together.

    The same as a replay buffer initialised with the prior data and large enough to keep it, without a copy per run.
    Of the prior data, only the rows at `kept` [k] take part, if it is given.
    """
    known = prior.reward.shape[0] if kept is None else kept.shape[0]
    index = jax.random.randint(key, (steps, batch_size), 0, known + replay.size)
    is_prior = index < known
    old_index = jnp.where(is_prior, index, 0)
    if kept is not None:
        old_index = kept[old_index]

    def pick(old: jax.Array, new: jax.Array) -> jax.Array:
        chosen = is_prior.reshape(is_prior.shape + (1,) * (old.ndim - 1))
        return jnp.where(chosen, old[old_index], new[jnp.where(is_prior, 0, index - known)])

    return jax.tree.map(pick, prior, replay.rows)


def accumulated(own: jax.Array, share: jax.Array) -> jax.Array:
    """x [n] with x_t = own_t + share_t x_{t+1}, nothing following the last row: returns of episodes in a row, of which
    each ends where `share` is 0. In a logarithmic number of steps."""

    def join(later: tuple[jax.Array, jax.Array], row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return row[0] + row[1] * later[0], row[1] * later[1]

    return jax.lax.associative_scan(join, (own, share), reverse=True)[0]
