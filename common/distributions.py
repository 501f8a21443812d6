"""Distributions over actions, each a pytree of arrays with the batch as its leading axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


def one_hot_argmax(values: jax.Array) -> jax.Array:
    """The discrete action of the largest of `values` [..., a], one-hot [..., a]; NaN beside a value that is NaN."""
    best = jax.nn.one_hot(values.argmax(-1), values.shape[-1], dtype=values.dtype)
    return jnp.where(jnp.isnan(values).any(-1, keepdims=True), jnp.nan, best)


def squared_mmd(x: jax.Array, y: jax.Array, scale: jax.Array | float, gaussian: bool = False) -> jax.Array:
    """The squared maximum mean discrepancy, [...], between samples [..., sample, a]; each is also its own neighbour.

    The kernel is exp(-d / scale): d is the sum over dimensions of the distances, of their squares if `gaussian`.
    """

    def similarity(x: jax.Array, y: jax.Array) -> jax.Array:
        difference = x[..., :, None, :] - y[..., None, :, :]
        distance = (jnp.square if gaussian else jnp.abs)(difference).sum(axis=-1)
        # The kernel minus 1, which cancels below: in single precision 1 would hide what matters.
        return jnp.expm1(-distance / scale).mean(axis=(-2, -1))

    return similarity(x, x) + similarity(y, y) - 2 * similarity(x, y)


class Normal(struct.PyTreeNode):
    """A diagonal Gaussian."""

    mean: jax.Array
    """[..., a]"""
    log_std: jax.Array
    """[a] or [..., a]"""

    def mode(self) -> jax.Array:
        """The mean, [..., a]."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """One action per row, [..., a]."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The log density of actions [..., a], [...]."""
        scaled = (action - self.mean) * jnp.exp(-self.log_std)
        return (-0.5 * jnp.square(scaled) - self.log_std - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)


class TanhNormal(struct.PyTreeNode):
    """A diagonal Gaussian squashed into (-1, 1) by tanh."""

    mean: jax.Array
    """[..., a], before the squashing"""
    log_std: jax.Array
    """[..., a], before the squashing"""

    def mode(self) -> jax.Array:
        """The squashed mean, [..., a]."""
        return jnp.tanh(self.mean)

    def sample(self, key: jax.Array) -> jax.Array:
        """One action per row, [..., a]."""
        return self.sample_and_log_prob(key)[0]

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One reparameterised action per row, [..., a], and its log density, [...]."""
        noise = jax.random.normal(key, self.mean.shape)
        before = self.mean + jnp.exp(self.log_std) * noise
        return jnp.tanh(before), self._density(noise, before)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The log density of actions [..., a] inside (-1, 1), [...]."""
        before = jnp.arctanh(action)
        return self._density((before - self.mean) * jnp.exp(-self.log_std), before)

    def _density(self, noise: jax.Array, before: jax.Array) -> jax.Array:
        normal = -0.5 * jnp.square(noise) - self.log_std - 0.5 * jnp.log(2 * jnp.pi)
        log_slope = 2 * (jnp.log(2.0) - before - jax.nn.softplus(-2 * before))  # log(1 - tanh^2), without cancellation
        return (normal - log_slope).sum(-1)


class TanhMixture(struct.PyTreeNode):
    """For each dimension of the action its own mixture of k Gaussians squashed into (-1, 1) by tanh."""

    logits: jax.Array
    """[..., a, k], of the components"""
    mean: jax.Array
    """[..., a, k], before the squashing"""
    log_std: jax.Array
    """[..., a, k], before the squashing"""

    def mode(self) -> jax.Array:
        """The squashed mean of each dimension's likeliest component, [..., a]."""
        return jnp.tanh(self._of(self.logits.argmax(-1), self.mean))

    def sample(self, key: jax.Array) -> jax.Array:
        """One action per row, [..., a]: reparameterised within the components that are drawn, not in the draw."""
        component_key, noise_key = jax.random.split(key)
        drawn = jax.random.categorical(component_key, self.logits)
        noise = jax.random.normal(noise_key, drawn.shape)
        return jnp.tanh(self._of(drawn, self.mean) + jnp.exp(self._of(drawn, self.log_std)) * noise)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The log density of actions [..., a] inside (-1, 1), [...]."""
        gaussians = TanhNormal(self.mean[..., None], self.log_std[..., None])  # each of one dimension
        components = gaussians.log_prob(action[..., None, None])
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + components, axis=-1).sum(-1)

    @staticmethod
    def _of(component: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, component[..., None], axis=-1).squeeze(-1)
