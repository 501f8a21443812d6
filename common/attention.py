"""Layers of transformers, as GPT-2 has them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.layers import affine


class Linear(nn.Module):
    """A linear layer that begins as GPT-2's: kernel normal with a deviation of 0.02, bias zero."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] to [..., features]."""
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        return affine(x, kernel, self.param("bias", nn.initializers.zeros, (self.features,)))


class Block(nn.Module):
    """A layer of GPT-2: LayerNorm, attention, then LayerNorm and a hidden layer of ReLU, each added to its input."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array, last: int | None = None) -> jax.Array:
        """Tokens [..., t, e] to [..., t, e], or only those of the `last` so many; `seen` bool [..., t, t] tells which
        token (of the second axis) a token (of the first) may look at."""
        width, is_fixed = x.shape[-1], not self.has_rng("dropout")
        heads = Linear(3 * width)(nn.LayerNorm(epsilon=1e-5)(x)).reshape(*x.shape[:-1], 3, self.heads, -1)
        query, key, value = (heads[..., part, :, :] for part in range(3))
        if last is not None:
            x, query, seen = x[..., -last:, :], query[..., -last:, :, :], seen[..., -last:, :]
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / jnp.sqrt(query.shape[-1]).astype(x.dtype)
        weights = nn.softmax(jnp.where(seen[..., None, :, :], scores, -jnp.inf))
        weights = nn.Dropout(self.dropout, deterministic=is_fixed)(weights)
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value).reshape(x.shape)
        x = x + nn.Dropout(self.dropout, deterministic=is_fixed)(Linear(width)(mixed))
        hidden = nn.relu(Linear(4 * width)(nn.LayerNorm(epsilon=1e-5)(x)))
        return x + nn.Dropout(self.dropout, deterministic=is_fixed)(Linear(width)(hidden))
