"""Networks and what trains them: MLPs, critics, actors, ensembles, each bound to its parameters and Adam state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

Parameters = Any
"""A nested dictionary of arrays, as Flax returns it."""


class MLP(nn.Module):
    """Hidden layers in RLPD's order: Dense, Dropout, LayerNorm, ReLU. Dropout is active exactly when a key is given."""

    hidden: Sequence[int]
    layer_norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden:
            x = nn.Dense(width, kernel_init=nn.initializers.xavier_uniform())(x)
            x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
            if self.layer_norm:
                x = nn.LayerNorm()(x)
            x = nn.relu(x)
        return x


class Critic(nn.Module):
    """Q(s, a): observation [..., o] and action [..., a] to a value [...]."""

    hidden: Sequence[int]
    layer_norm: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        features = MLP(self.hidden, self.layer_norm, self.dropout)(jnp.concatenate([observation, action], -1))
        return nn.Dense(1, kernel_init=nn.initializers.xavier_uniform())(features).squeeze(-1)


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
        normal = -0.5 * jnp.square(noise) - self.log_std - 0.5 * jnp.log(2 * jnp.pi)
        log_slope = 2 * (jnp.log(2.0) - before - jax.nn.softplus(-2 * before))  # log(1 - tanh^2), without cancellation
        return jnp.tanh(before), (normal - log_slope).sum(-1)


class TanhNormalActor(nn.Module):
    """pi(. | s) with a state-dependent standard deviation, log_std clipped to [-20, 2]."""

    hidden: Sequence[int]
    action_dim: int

    @nn.compact
    def __call__(self, observation: jax.Array) -> TanhNormal:
        features = MLP(self.hidden)(observation)
        mean = nn.Dense(self.action_dim, kernel_init=nn.initializers.xavier_uniform())(features)
        log_std = nn.Dense(self.action_dim, kernel_init=nn.initializers.xavier_uniform())(features)
        return TanhNormal(mean, log_std.clip(-20.0, 2.0))


class Scalar(nn.Module):
    """One positive learned number, kept as its logarithm."""

    @nn.compact
    def __call__(self, initial: jax.Array | float = 1.0) -> jax.Array:
        """The number; `initial` is its value before training."""
        return jnp.exp(self.param("log", lambda _: jnp.log(jnp.asarray(initial, jnp.float32))))


class Network(struct.PyTreeNode):
    """A module bound to its parameters and its Adam state: call it like a function, replace it like a value."""

    params: Parameters
    opt_state: optax.OptState | None
    """None for a network that only tracks another one."""
    module: nn.Module = struct.field(pytree_node=False)

    @classmethod
    def create(cls, module: nn.Module, key: jax.Array, *inputs: jax.Array) -> Self:
        """The module with fresh parameters for inputs of these shapes."""
        params = module.init(key, *inputs)
        return cls(params, optax.scale_by_adam().init(params), module)

    def __call__(
        self, *inputs: jax.Array, params: Parameters | None = None, dropout_key: jax.Array | None = None
    ) -> Any:
        """The module's output: with `params` in place of its own, and with dropout if a key is given."""
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return self.module.apply(self.params if params is None else params, *inputs, rngs=rngs)

    def descend(
        self, gradients: Parameters, learning_rate: jax.Array | float, weight_decay: jax.Array | float = 0.0
    ) -> Self:
        """One step of Adam, or of AdamW on the kernels (not on biases and LayerNorm) if `weight_decay` is given."""
        updates, opt_state = optax.scale_by_adam().update(gradients, self.opt_state)

        def step(path: tuple, param: jax.Array, update: jax.Array) -> jax.Array:
            decay = weight_decay * param if path[-1].key == "kernel" else 0.0
            return param - learning_rate * (update + decay)

        params = jax.tree_util.tree_map_with_path(step, self.params, updates)
        return self.replace(params=params, opt_state=opt_state)

    def target(self) -> Self:
        """The same network without an optimizer: what `track` starts from."""
        return self.replace(opt_state=None)

    def track(self, online: Network, rate: jax.Array | float) -> Self:
        """Parameters moved by `rate` towards those of `online` (Polyak averaging)."""
        return self.replace(params=optax.incremental_update(online.params, self.params, rate))


class Ensemble(Network):
    """Members with separate parameters, stacked on the leading axis and evaluated at once: outputs are [member, ...]."""

    @classmethod
    def create(cls, module: nn.Module, key: jax.Array, *inputs: jax.Array, members: int) -> Self:
        """`members` independently initialised networks."""
        params = jax.vmap(lambda k: module.init(k, *inputs))(jax.random.split(key, members))
        return cls(params, optax.scale_by_adam().init(params), module)

    def __call__(
        self, *inputs: jax.Array, params: Parameters | None = None, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Every member's output for the same inputs, [member, ...]; dropout differs between members."""
        params = self.params if params is None else params
        if dropout_key is None:
            return jax.vmap(lambda p: self.module.apply(p, *inputs))(params)
        keys = jax.random.split(dropout_key, jax.tree.leaves(params)[0].shape[0])
        return jax.vmap(lambda p, k: self.module.apply(p, *inputs, rngs={"dropout": k}))(params, keys)

    def members(self, index: jax.Array) -> Self:
        """The ensemble of the members at `index` [k]: only they are evaluated."""
        return self.replace(params=jax.tree.map(lambda x: x[index], self.params), opt_state=None)
