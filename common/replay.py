"""Transitions on the device: the batch, the ring buffer of one run, and the ways minibatches are drawn from them."""

from __future__ import annotations

from typing import Self

import jax
import jax.numpy as jnp
from flax import struct


class Batch(struct.PyTreeNode):
    """Transitions; every array has the batch as its leading axis (or axes)."""

    observation: jax.Array
    """[..., observation]"""
    action: jax.Array
    """[..., action], each in [-1, 1]"""
    reward: jax.Array
    """[...]"""
    mask: jax.Array
    """[...], 0 where the episode terminated, else 1: an episode cut by a time limit has mask 1."""
    next_observation: jax.Array
    """[..., observation]"""
