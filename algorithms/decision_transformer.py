"""Decision Transformer: a causal transformer that clones what led to a return, and is asked for a high one.

Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas & Mordatch, "Decision Transformer: Reinforcement Learning
via Sequence Modeling", NeurIPS 2021 (arXiv:2106.01345). A step t of an episode is three tokens, return-to-go, state and
action; the last K steps are read from left to right:

    R_t = r_t + r_{t+1} + ... + r_T, raw rewards without discount                 DecisionTransformer.prepare
    x   = LayerNorm of (W_R R_t + e_t, W_s s_t + e_t, W_a a_t + e_t), ...         Transformer
    L   = mean |tanh(W y_t) - a_t|^2 over the steps there are, y_t at s_t         DecisionTransformer.actor_loss
    act : R_0 is the return asked for, R_{t+1} = R_t - r_t                        DecisionTransformer.proceed

e_t is learnt, one vector per environment step of an episode. Windows begin at a row drawn uniformly, so episodes are
drawn in proportion to their length; near an episode's end they are shorter, and padded on the left, which no token sees
(DecisionTransformer.sample). AdamW decays all parameters; gradients are clipped by their global norm and the step size
grows linearly at first (DecisionTransformer.update_once). Discrete actions are one-hot: their head gives logits, L is
the cross entropy, the likeliest one is taken (`--discrete-actions`, the preset of tasks that have them).

The score is that of one return asked for, `--target-return`; without one, of the return of the data's best episode.
What is learnt does not depend on it: benchmarks/studies/returns.py asks what was trained once for any number of them.

Once an episode is longer than K, every step moves the window, and what the deeper layers make of a step depends on the
steps that have left it. So no keys and values are kept, or acting would not be what was learnt: the window is computed
anew at each step, and of the last layer one token.

Differences from the authors' code. Theirs evaluates two returns asked for per task; the presets have the first. 0.001
is added to the deviations of observations, theirs 1e-6. Predictions of states and returns, which they do not train, are
left out. Steps beyond the last e_t have that one, also where it acts. With discrete actions nothing else is other: of
their Atari code there are no convolutions, no tanh on tokens, no cosine, and nothing is drawn from the logits.

Published, on D4RL's -v2 data (its table 2): hopper-medium 67.6, halfcheetah-medium 42.6, walker2d-medium 74.0;
hopper-medium-replay 82.7.

    python algorithms/decision_transformer.py --env hopper-medium --target-return 1800
"""

from __future__ import annotations

from typing import Any, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from common import command, portable, presets, tasks
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.attention import Block
from common.datasets import Dataset, transforms
from common.distributions import one_hot_argmax
from common.networks import Dense, Network, Normaliser, Parameters
from common.portable import Portable
from common.replay import Batch, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """The authors' values for locomotion."""

    learning_rate: float = 1e-4  # AdamW's step size, after the warm-up
    warm_up: int = 10_000  # updates over which the step size grows linearly
    weight_decay: float = 1e-4  # AdamW's, of all parameters
    gradient_clip: float = traced(0.25, "(0, inf)")  # largest global norm of a gradient
    target_return: float = 0.0  # return asked for when acting; 0: that of the data's best episode
    return_scale: float = traced(1000.0, "(0, inf)")  # unit of returns as the network sees them
    context: int = 20  # environment steps that are seen at once, of three tokens each (K)
    layers: int = 3  # of the transformer
    heads: int = 1  # of attention in each layer
    embedding: int = 128  # numbers per token
    dropout: float = static(0.1, "[0, 1)")  # of tokens, attention and what each part of a layer adds
    horizon: int = 1000  # environment steps that have a vector of their own (e_t); later ones have the last
    discrete_actions: bool = False  # choose among actions, by logits
    batch_size: int = 64  # windows per gradient step
    offline_steps: int = 100_000  # gradient steps

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if self.embedding % self.heads:
            return f"--embedding {self.embedding} cannot be divided among --heads {self.heads}: name a multiple"
        return None


PRESETS: dict[str, dict[str, Any]] = {
    # The authors', by body: the first of the two returns that their code asks for.
    **presets.each("locomotion", ("hopper",), tasks.QUALITIES, target_return=3600.0),
    **presets.each("locomotion", ("halfcheetah",), tasks.QUALITIES, target_return=12_000.0),
    **presets.each("locomotion", ("walker2d",), tasks.QUALITIES, target_return=5000.0),
    # Ours, by family: returns of 0 or 1, and of -1 per step.
    "antmaze": {"target_return": 1.0, "return_scale": 1.0, "eval_episodes": 100, "eval_every": 50_000},
    "adroit-binary": {"return_scale": 100.0, "eval_episodes": 100},
    "pointmaze": {
        "target_return": 1.0, "return_scale": 1.0, "embedding": 64, "warm_up": 1000, "learning_rate": 1e-3,
        "offline_steps": 20_000, "eval_every": 5000, "eval_episodes": 100,
    },
    # Ours: few updates for small tasks.
    "classic": {
        "discrete_actions": True, "return_scale": 100.0, "embedding": 64, "warm_up": 1000, "learning_rate": 1e-3,
        "offline_steps": 20_000,
    },
}  # fmt: skip


class Prior(Batch):
    """The data, with where each row stands in its episode."""

    to_go: jax.Array
    """[n]: the sum of the raw rewards from the row on."""
    time: jax.Array
    """int32 [n]: rows of its episode before it."""
    end: jax.Array
    """int32 [n]: its episode's last row."""


class Windows(Batch):
    """Steps that follow one another in one episode, [..., context, ...]; those that are not `real` come first."""

    to_go: jax.Array
    """[..., context], in units of the scale."""
    time: jax.Array
    """int32 [..., context]"""
    real: jax.Array
    """bool [..., context]: steps of the episode; the others pad."""


class Memory(struct.PyTreeNode):
    """The last steps of an episode that is played, the newest last; of those before its beginning, anything."""

    observation: jax.Array
    """[context, observation], normalised."""
    action: jax.Array
    """[context, action]"""
    to_go: jax.Array
    """[context], in units of the scale."""
    steps: jax.Array
    """int32 []: environment steps that were played."""


class Transformer(nn.Module):
    """The action at each state, from the steps up to it."""

    action_dim: int
    layers: int
    heads: int
    embedding: int
    dropout: float
    horizon: int
    discrete: bool

    @nn.compact
    def __call__(
        self,
        to_go: jax.Array,
        observation: jax.Array,
        action: jax.Array,
        time: jax.Array,
        real: jax.Array,
        only_last: bool = False,
    ) -> jax.Array:
        """Returns-to-go [..., k], observations [..., k, o], actions [..., k, a], times and whether they are real steps,
        [..., k], to actions, or logits of discrete ones, [..., k, a]; with `only_last` of the last step, [..., 1, a].
        """
        moment = nn.Embed(self.horizon, self.embedding, embedding_init=nn.initializers.normal(1.0), name="moments")(
            jnp.minimum(time, self.horizon - 1)
        )
        # Each begins as a layer of PyTorch's does.
        parts = {"to_go": to_go[..., None], "observation": observation, "action": action}
        tokens = [Dense(self.embedding, x.shape[-1] ** -0.5, name=name)(x) + moment for name, x in parts.items()]
        x = jnp.stack(tokens, axis=-2).reshape(*real.shape[:-1], -1, self.embedding)
        real = jnp.repeat(real, len(tokens), axis=-1)
        if only_last:  # what follows the last state is not seen from there
            x, real = x[..., :-1, :], real[..., :-1]
        x = nn.LayerNorm(epsilon=1e-5)(x)
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        count = x.shape[-2]
        seen = jnp.tril(jnp.ones((count, count), bool)) & (real[..., None, :] | jnp.eye(count, dtype=bool))
        for number in range(self.layers):
            is_last = only_last and number == self.layers - 1
            x = Block(self.heads, self.dropout)(x, seen, 1 if is_last else None)
        x = nn.LayerNorm(epsilon=1e-5)(x if only_last else x[..., 1::3, :])
        out = Dense(self.action_dim, self.embedding**-0.5, name="head")(x)
        return out if self.discrete else jnp.tanh(out)


class DecisionTransformer(Agent):
    """The transformer, and what it is asked for."""

    config: Config
    normal: Normaliser
    best: jax.Array
    """[]: return of the data's best episode."""
    policy: Network

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Prior:
        """The data, with returns-to-go in the environment's own rewards."""
        first, count = data.starts[transforms.episode_of(data)], transforms.lengths(data)[transforms.episode_of(data)]
        time = np.arange(len(data)) - first
        to_go = transforms.returns_to_go(data, data.reward, 1.0)
        end = (first + count - 1).astype(np.int32)
        return Prior(**vars(data.batch(task)), to_go=to_go, time=time.astype(np.int32), end=end)

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Prior) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        c = config
        shape = c.layers, c.heads, c.embedding, c.dropout, c.horizon, c.discrete_actions
        module = Transformer(example.action.shape[-1], *shape)
        steps = jax.tree.map(lambda x: jnp.zeros((c.context, *x.shape), x.dtype), example)
        inputs = steps.reward, steps.observation, steps.action, jnp.zeros(c.context, int), jnp.ones(c.context, bool)
        best = jnp.max(prior.to_go, where=prior.time == 0, initial=-jnp.inf)
        return cls(c, Normaliser.of(prior.observation), best, Network.create(module, key, *inputs))

    def act(self, observation: jax.Array) -> jax.Array:
        """The first action of an episode that begins here."""

        def first(observation: jax.Array) -> jax.Array:
            return self.proceed(self.recall(), observation, jnp.zeros((), observation.dtype))[0]

        flat = observation.reshape(-1, observation.shape[-1])
        return jax.vmap(first)(flat).reshape(*observation.shape[:-1], -1)

    def portable(self) -> Portable:
        """What `proceed` computes, in layers."""
        c, own = self.config, self.policy.params["params"]
        networks: dict[str, list] = {name: [portable.dense(own[name])] for name in ("to_go", "observation", "action")}
        networks |= {"moments": [("constant", own["moments"]["embedding"])]}
        networks |= {"tokens": [portable.layer_norm(own["LayerNorm_0"], 1e-5)]}
        for k in range(c.layers):
            networks |= {f"{name} {k}": part for name, part in portable.block(own[f"Block_{k}"]).items()}
        head = [portable.layer_norm(own["LayerNorm_1"], 1e-5), portable.dense(own["head"])]
        networks |= {"head": head if c.discrete_actions else [*head, ("tanh",)]}
        numbers = {
            "context": c.context, "layers": c.layers, "heads": c.heads, "discrete": c.discrete_actions,
            "action": self.policy.module.action_dim, "return_scale": float(c.return_scale),
            "asked": float(self.recall().to_go[-1]),
        }  # fmt: skip
        return Portable("transformer", networks, numbers, self.normal)

    def recall(self) -> Memory:
        """No step yet, and all of the return asked for to go."""
        c, size = self.config, self.policy.module.action_dim
        asked = jnp.where(c.target_return == 0, self.best, c.target_return) / c.return_scale
        observation, action = jnp.zeros((c.context, *self.normal.mean.shape)), jnp.zeros((c.context, size))
        return Memory(observation, action, jnp.full(c.context, asked), jnp.zeros((), jnp.int32))

    def proceed(self, memory: Memory, observation: jax.Array, reward: jax.Array) -> tuple[jax.Array, Memory]:
        """The action at the end of the window that ends here, whose own token is not seen yet."""
        c = self.config

        def moved(steps: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.concatenate([steps[1:], new[None].astype(steps.dtype)])

        seen = moved(memory.observation, self.normal(observation))
        to_go = moved(memory.to_go, memory.to_go[-1] - reward / c.return_scale)
        actions = moved(memory.action, jnp.zeros(memory.action.shape[-1]))
        time = memory.steps + 1 - c.context + jnp.arange(c.context)
        action = self.policy(to_go, seen, actions, jnp.maximum(time, 0), time >= 0, True)[0]
        if c.discrete_actions:
            action = one_hot_argmax(action)
        return action, Memory(seen, actions.at[-1].set(action), to_go, memory.steps + 1)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Windows:
        """Windows [1, batch_size, context, ...] that begin at rows drawn uniformly, normalised."""
        c = self.config
        start = jax.random.randint(key, (1, c.batch_size), 0, prior.reward.shape[0])
        steps = jnp.minimum(c.context, prior.end[start] - start + 1)
        place = jnp.arange(c.context) - (c.context - steps[..., None])
        real = place >= 0
        index = start[..., None] + jnp.maximum(place, 0)
        rows = jax.tree.map(lambda x: x[index], prior).normalised(self.normal)
        return Windows(**vars(rows.transitions()), to_go=rows.to_go / c.return_scale, time=rows.time, real=real)

    def actor_loss(self, params: Parameters, batch: Windows, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The error of the actions, over real steps."""
        inputs = batch.to_go, batch.observation, batch.action, batch.time, batch.real
        out = self.policy(*inputs, params=params, dropout_key=key)
        chex.assert_equal_shape((batch.action, out))
        if self.config.discrete_actions:
            error = -(nn.log_softmax(out) * batch.action).sum(-1)
        else:
            error = jnp.square(out - batch.action).mean(-1)
        chex.assert_equal_shape((batch.reward, error, batch.to_go, batch.time, batch.real))
        loss = jnp.mean(error, where=batch.real)
        return loss, {"actor_loss": loss}

    def update_once(self, batch: Windows, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """A step of AdamW along the clipped gradient, with the step size of the warm-up."""
        c = self.config
        gradients, metrics = jax.grad(self.actor_loss, has_aux=True)(self.policy.params, batch, key)
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients)))
        gradients = jax.tree.map(lambda g: g * jnp.minimum(1.0, c.gradient_clip / (norm + 1e-6)), gradients)
        rate = c.learning_rate * jnp.minimum(1.0, number / c.warm_up)
        policy, shrink = self.policy.descend(gradients, rate), rate * c.weight_decay
        params = jax.tree.map(lambda new, old: new - shrink * old, policy.params, self.policy.params)
        return self.replace(policy=policy.replace(params=params)), metrics | {"gradient_norm": norm}


if __name__ == "__main__":
    command.main(DecisionTransformer, Config, PRESETS)
