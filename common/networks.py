"""Networks and what trains them: MLPs, critics, actors, ensembles, each bound to its parameters and Adam state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from common.distributions import Normal, TanhMixture, TanhNormal
from common.layers import Layers, affine, normalised_relu, relu_slopes

Parameters = Any
"""A nested dictionary of arrays, as Flax returns it."""


class Dense(nn.Module):
    """A linear layer, by default with Xavier-uniform kernel and no bias; the parameters are those of `nn.Dense`."""

    features: int
    bound: float | None = None
    """Kernel and bias begin uniform in +-bound instead."""
    first_bias: float | None = None
    """The bias begins as this number, and the kernel as PyTorch's, uniform in +-1 / sqrt(in), instead."""
    hidden: bool = False
    """See `layers.affine`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] to [..., features]."""
        of_kernel, of_bias = nn.initializers.xavier_uniform(), nn.initializers.zeros
        if self.bound is not None:
            of_kernel = of_bias = within(self.bound)
        elif self.first_bias is not None:
            of_kernel, of_bias = within(x.shape[-1] ** -0.5), nn.initializers.constant(self.first_bias)
        kernel = self.param("kernel", of_kernel, (x.shape[-1], self.features))
        return affine(x, kernel, self.param("bias", of_bias, (self.features,)), self.hidden)


def within(bound: float) -> nn.initializers.Initializer:
    """An initialiser: uniform in +-bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class LayerNormReLU(nn.Module):
    """LayerNorm, then ReLU; the parameters are those of `nn.LayerNorm`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., features] to [..., features]."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return normalised_relu(x, scale, self.param("bias", nn.initializers.zeros, x.shape[-1:]))


class MLP(nn.Module):
    """Hidden layers in RLPD's order: Dense, Dropout, LayerNorm, ReLU. Dropout is active exactly when a key is given."""

    hidden: Sequence[int]
    layer_norm: bool = False
    dropout: float = 0.0
    relu_first: bool = False
    """In ReBRAC's order instead: Dense, with biases that begin at 0.1, Dropout, ReLU, LayerNorm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] to [..., hidden[-1]]."""
        for width in self.hidden:
            x = Dense(width, first_bias=0.1 if self.relu_first else None, hidden=True)(x)
            x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
            if not self.layer_norm:
                x = nn.relu(x)
            else:
                x = nn.LayerNorm(dtype=x.dtype)(nn.relu(x)) if self.relu_first else LayerNormReLU()(x)
        return x


class Critic(nn.Module):
    """Q(s, a)."""

    hidden: Sequence[int]
    layer_norm: bool = False
    dropout: float = 0.0
    last_bound: float | None = None
    """Of the last layer: see `Dense`."""
    relu_first: bool = False
    """See `MLP`."""

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        """Observation [..., o] and action [..., a] to a value [...]."""
        body = MLP(self.hidden, self.layer_norm, self.dropout, self.relu_first)
        return Dense(1, self.last_bound)(body(jnp.concatenate([observation, action], -1))).squeeze(-1)

    def layers(self, params: Parameters) -> Layers:
        """The affine layers, from the input to the value."""
        own = params["params"]
        hidden = [own["MLP_0"][f"Dense_{index}"] for index in range(len(self.hidden))]
        return [(layer["kernel"], layer["bias"]) for layer in (*hidden, own["Dense_0"])]


class Value(nn.Module):
    """V(s)."""

    hidden: Sequence[int]
    layer_norm: bool = False
    last_bound: float | None = None
    """Of the last layer: see `Dense`."""

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """Observation [..., o] to a value [...]."""
        return Dense(1, self.last_bound)(MLP(self.hidden, self.layer_norm)(observation)).squeeze(-1)


class DeterministicActor(nn.Module):
    """pi(s), squashed by tanh."""

    hidden: Sequence[int]
    action_dim: int
    layer_norm: bool = False
    last_bound: float | None = None
    """Of the last layer: see `Dense`."""
    relu_first: bool = False
    """See `MLP`."""

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """Observation [..., o] to an action [..., action_dim]."""
        features = MLP(self.hidden, self.layer_norm, relu_first=self.relu_first)(observation)
        return jnp.tanh(Dense(self.action_dim, self.last_bound)(features))


class NormalActor(nn.Module):
    """pi(. | s): a Gaussian around a mean squashed by tanh, with one learned standard deviation for all states."""

    hidden: Sequence[int]
    action_dim: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, observation: jax.Array) -> Normal:
        """Observation [..., o] to a distribution over actions [..., action_dim]; log_std is clipped to [-5, 2]."""
        features = MLP(self.hidden, dropout=self.dropout)(observation)
        log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))
        return Normal(jnp.tanh(Dense(self.action_dim)(features)), log_std.clip(-5.0, 2.0))


class TanhNormalActor(nn.Module):
    """pi(. | s) with a state-dependent standard deviation, log_std clipped to [least_log_std, 2]."""

    hidden: Sequence[int]
    action_dim: int
    layer_norm: bool = False
    least_log_std: float = -20.0
    last_bound: float | None = None
    """Of the last layers: see `Dense`."""
    first_log_std: float | None = None
    """With it, log_std is the layer's output times a learned number that begins at 1, plus one that begins here."""

    @nn.compact
    def __call__(self, observation: jax.Array) -> TanhNormal:
        """Observation [..., o] to a distribution over actions [..., action_dim]."""
        features = MLP(self.hidden, self.layer_norm)(observation)
        mean, log_std = (Dense(self.action_dim, self.last_bound)(features) for _ in range(2))
        if self.first_log_std is not None:
            scale = self.param("log_std_scale", nn.initializers.ones, ())
            log_std = scale * log_std + self.param("log_std_offset", nn.initializers.constant(self.first_log_std), ())
        return TanhNormal(mean, log_std.clip(self.least_log_std, 2.0))


class VAE(nn.Module):
    """A conditional VAE of actions with two latent dimensions per action dimension."""

    action_dim: int
    hidden: Sequence[int]

    def setup(self) -> None:
        """The layers."""
        latent = 2 * self.action_dim
        self.encoder, self.mean, self.log_std = MLP(self.hidden), Dense(latent), Dense(latent)
        self.decoder, self.action = MLP(self.hidden), Dense(self.action_dim)

    def __call__(self, observation: jax.Array, action: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Squared error of the action [..., a] decoded, and KL(q(z|s, a) || N(0, 1)): means over dimensions, [...]."""
        x = self.encoder(jnp.concatenate([observation, action], -1))
        mean, log_std = self.mean(x), self.log_std(x).clip(-4.0, 15.0)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(2 * log_std) - 1) - log_std
        return jnp.square(jnp.tanh(self.decode(observation, z)) - action).mean(-1), divergence.mean(-1)

    def decode(self, observation: jax.Array, z: jax.Array) -> jax.Array:
        """Latents [..., 2 a] to actions before the tanh that squashes them, [..., a]."""
        return self.action(self.decoder(jnp.concatenate([observation, z], -1)))

    def sample(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] to an action before the tanh, [..., a]: of z from N(0, 1), clipped to +-0.5."""
        z = jax.random.normal(key, (*observation.shape[:-1], 2 * self.action_dim)).clip(-0.5, 0.5)
        return self.decode(observation, z)


class TanhMixtureActor(nn.Module):
    """pi(. | s) with mixtures of `components` Gaussians, one per dimension; log_std is clipped to [-20, 2]."""

    hidden: Sequence[int]
    action_dim: int
    components: int
    last_bound: float | None = None
    """Of the last layers: see `Dense`."""

    @nn.compact
    def __call__(self, observation: jax.Array) -> TanhMixture:
        """Observation [..., o] to a distribution over actions [..., action_dim]."""
        features = MLP(self.hidden)(observation)
        shape = (*observation.shape[:-1], self.action_dim, self.components)
        logits, mean, log_std = (
            Dense(self.action_dim * self.components, self.last_bound)(features).reshape(shape) for _ in range(3)
        )
        return TanhMixture(logits, mean, log_std.clip(-20.0, 2.0))


class Scalar(nn.Module):
    """One positive learned number, kept as its logarithm."""

    @nn.compact
    def __call__(self, initial: jax.Array | float = 1.0) -> jax.Array:
        """The number; `initial` is its value before training."""
        return jnp.exp(self.param("log", lambda _: jnp.log(jnp.asarray(initial, jnp.float32))))


class Normaliser(struct.PyTreeNode):
    """Observations as the networks see them: without the data's mean, in units of its standard deviation."""

    mean: jax.Array
    """[observation], of the data; 0 without normalisation."""
    std: jax.Array
    """[observation], of the data; 1 without normalisation."""

    @classmethod
    def of(cls, observation: jax.Array, normalise: bool = True) -> Self:
        """From observations [n, observation], as TD3+BC does it: 0.001 is added to every deviation."""
        if not normalise:
            return cls(jnp.zeros_like(observation[0]), jnp.ones_like(observation[0]))
        return cls(observation.mean(axis=0), observation.std(axis=0) + 1e-3)

    def __call__(self, observation: jax.Array) -> jax.Array:
        """[..., observation], normalised."""
        return (observation - self.mean) / self.std


def joining(number: jax.Array | float) -> jax.Array | float:
    """The same number [], on an accelerator as an entry of an array: of what is done with one array to parameters of
    one shape, XLA makes one kernel instead of one for each."""
    if jax.default_backend() == "cpu":
        return number
    return jax.lax.optimization_barrier(jnp.full(2, number))[0]


class Network(struct.PyTreeNode):
    """A module bound to its parameters and its Adam state: call it like a function, replace it like a value."""

    params: Parameters
    opt_state: optax.OptState | None
    """None for a network that only tracks another one."""
    module: nn.Module = struct.field(pytree_node=False)

    optimiser: ClassVar[optax.GradientTransformation] = optax.scale_by_adam()

    @classmethod
    def create(cls, module: nn.Module, key: jax.Array, *inputs: jax.Array) -> Self:
        """The module with fresh parameters for inputs of these shapes."""
        params = module.init(key, *inputs)
        return cls(params, cls.optimiser.init(params), module)

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
        updates, opt_state = self.optimiser.update(gradients, self.opt_state)
        learning_rate = joining(learning_rate)

        def step(path: tuple, param: jax.Array, update: jax.Array) -> jax.Array:
            decay = weight_decay * param if path[-1].key == "kernel" else 0.0
            return param - learning_rate * (update + decay)

        params = jax.tree_util.tree_map_with_path(step, self.params, updates)
        return self.replace(params=params, opt_state=opt_state)

    def minimise(
        self,
        loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
        *inputs: Any,
        learning_rate: jax.Array | float,
        weight_decay: jax.Array | float = 0.0,
    ) -> tuple[Self, dict[str, jax.Array]]:
        """One step down the gradient of `loss(params, *inputs) -> (scalar, metrics)`, and the metrics."""
        gradients, metrics = jax.grad(loss, has_aux=True)(self.params, *inputs)
        return self.descend(gradients, learning_rate, weight_decay), metrics

    def target(self) -> Self:
        """The same network without an optimizer: what `track` starts from."""
        return self.replace(opt_state=None)

    def track(self, online: Network, rate: jax.Array | float) -> Self:
        """Parameters moved by `rate` towards those of `online` (Polyak averaging)."""
        return self.replace(params=optax.incremental_update(online.params, self.params, joining(rate)))


class MomentumNetwork(Network):
    """Trained by gradient descent with a momentum of 0.9 in the place of Adam."""

    optimiser: ClassVar[optax.GradientTransformation] = optax.trace(0.9)


class Ensemble(Network):
    """Members with separate parameters, stacked on the leading axis, evaluated at once: outputs are [member, ...]."""

    @classmethod
    def create(cls, module: nn.Module, key: jax.Array, *inputs: jax.Array, members: int) -> Self:
        """`members` independently initialised networks."""
        params = jax.vmap(lambda k: module.init(k, *inputs))(jax.random.split(key, members))
        return cls(params, cls.optimiser.init(params), module)

    def __call__(
        self, *inputs: jax.Array, params: Parameters | None = None, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Every member's output for the same inputs, [member, ...]; dropout differs between members."""
        params = self.params if params is None else params
        members = jax.tree.leaves(params)[0].shape[0]
        # With the members' axis in the inputs too, every product is one plain batched matmul, which a CPU prefers.
        inputs = tuple(jnp.broadcast_to(x, (members, *x.shape)) for x in inputs)
        if dropout_key is None:
            return jax.vmap(self.module.apply)(params, *inputs)
        keys = jax.random.split(dropout_key, members)
        return jax.vmap(lambda p, k, *x: self.module.apply(p, *x, rngs={"dropout": k}))(params, keys, *inputs)

    def slopes(self, observation: jax.Array, action: jax.Array, *, params: Parameters) -> tuple[jax.Array, jax.Array]:
        """Every critic's values of a batch, [member, n], and their gradients with respect to the action, [..., a]."""
        members = jax.tree.leaves(params)[0].shape[0]
        # As in __call__, the members' axis in the inputs too.
        observations, actions = (jnp.broadcast_to(x, (members, *x.shape)) for x in (observation, action))
        if not self.module.layer_norm:
            layers = self.module.layers(params)
            q, slopes = jax.vmap(relu_slopes)(layers, jnp.concatenate([observations, actions], -1))
            return q, slopes[..., observation.shape[-1] :]
        q, backward = jax.vjp(lambda a: jax.vmap(self.module.apply)(params, observations, a), actions)
        return q, backward(jnp.ones_like(q))[0]

    def best(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        """Of actions [n, a] at observations [n, o], the one that the first critic values most, [a]."""
        q = self.members(jnp.array([0]))(observations, actions)[0]
        # Or a critic that has diverged would look like one that chooses.
        return jnp.where(jnp.isfinite(q).all(), actions[q.argmax()], jnp.nan)

    def members(self, index: jax.Array) -> Self:
        """The ensemble of the members at `index` [k]: only they are evaluated."""
        return self.replace(params=jax.tree.map(lambda x: x[index], self.params), opt_state=None)
