"""BC: behaviour cloning, with policies from one action per state to any distribution; of all data or of the best.

The policies, and what each minimises over rows (s, a) of the data:

    deterministic   |pi(s) - a|^2                                                            Deterministic
    gaussian        -log N(a; mu(s), sigma), one sigma for all states                        Gaussian
    gmm             -log sum_k w_k(s) N(a; mu_k(s), sigma_k(s))                              Mixture
    categorical     -sum_d log p_d(bin of a_d | s), `bins` equal bins per dimension          Categorical
    vae             |decode(s, z) - a|^2 + w KL(q(z|s, a) || N(0, 1)), z ~ q                 Variational
    flow            |v(s, x_t, t) - (a - x_0)|^2, x_t = (1 - t) x_0 + t a, x_0 ~ N(0, 1)     Flow

(Pomerleau, 1991; Bishop, 1994, for mixtures; Fujimoto et al., 2019, for the VAE; Lipman et al., 2023, and Chi et al.,
2023, for the flow.) Evaluated is the most probable action, where there is one: the mean, the mean of the likeliest
component, the centre of the likeliest bins. VAE and flow draw theirs: z from N(0, 1) clipped to +-0.5, x_0 from
N(0, 1), carried along v in `flow_steps` Euler steps. What they draw is a function of the observation, so that an
evaluation can be repeated.

`--top-fraction 0.1` clones the episodes of highest return only, a tenth of the transitions: filtered BC, also called
%BC (Chen et al., 2021).

Published, on D4RL's -v2 data (final scores, CORL's README): hopper-medium 54, halfcheetah-medium 42, antmaze-umaze 55;
hopper-medium-replay 30, and 70 with its best tenth, which there is one of trajectories.

Measured, on this project's recipe data, three seeds: hopper-medium-replay 12, and 86 with its best tenth
(benchmarks/results/local.csv); antmaze-umaze 83 and antmaze-umaze-diverse 55 (antmaze_offline.csv).

    python algorithms/bc.py --env antmaze-umaze
    python algorithms/bc.py --env hopper-medium-replay --policy flow --top-fraction 0.1
"""

from __future__ import annotations

from typing import Any, Literal, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from common import command, portable
from common.agent import Agent, Hyperparameters, Metrics, drawn, static
from common.datasets import Dataset, transforms
from common.distributions import Normal
from common.networks import MLP, VAE, Dense, Network, Normaliser, Parameters
from common.portable import Portable
from common.replay import Batch
from common.tasks import Task


class Config(Hyperparameters):
    """What is cloned, by which policy."""

    learning_rate: float = 3e-4  # Adam's step size
    policy: Literal["deterministic", "gaussian", "gmm", "categorical", "vae", "flow"] = "deterministic"
    """the kind of policy"""
    top_fraction: float = static(1.0, "(0, 1]")  # share of the transitions cloned: those of the best episodes
    hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer
    components: int = 5  # Gaussians of the mixture
    bins: int = static(21, "[2, inf)")  # bins per action dimension of the categorical policy
    kl_weight: float = static(0.5, "[0, inf)")  # weight of the VAE's divergence (w)
    flow_steps: int = 10  # Euler steps of the flow from noise to an action
    normalise: bool = True  # normalise observations with the data's mean and standard deviation
    batch_size: int = 256  # transitions per gradient step
    offline_steps: int = 500_000  # gradient steps


PRESETS: dict[str, dict[str, Any]] = {
    "antmaze": {"normalise": False, "offline_steps": 100_000, "eval_every": 50_000, "eval_episodes": 100},
    # Ours: small networks for a small maze.
    "pointmaze": {"hidden": (128, 128), "offline_steps": 20_000, "eval_every": 5000, "eval_episodes": 100},
}


class Policy(nn.Module):
    """What all policies here have: called, a loss per row; `act`, an action."""

    action_dim: int
    hidden: tuple[int, ...]
    components: int
    bins: int
    kl_weight: float
    flow_steps: int


class Deterministic(Policy):
    """pi(s), squashed by tanh."""

    def setup(self) -> None:
        """The layers."""
        self.features, self.mean = MLP(self.hidden), Dense(self.action_dim)

    def __call__(self, observation: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] and action [..., a] to a loss [...]."""
        return jnp.square(self.act(observation, key) - action).mean(-1)

    def act(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] to an action [..., a]."""
        return jnp.tanh(self.mean(self.features(observation)))


class Gaussian(Deterministic):
    """A Gaussian around a tanh-squashed mean."""

    def setup(self) -> None:
        """The layers."""
        super().setup()
        self.log_std = self.param("log_std", nn.initializers.zeros, (self.action_dim,))

    def __call__(self, observation: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] and action [..., a] to a loss [...]."""
        return -Normal(self.act(observation, key), self.log_std.clip(-5.0, 2.0)).log_prob(action)


class Mixture(Policy):
    """A mixture of Gaussians around tanh-squashed means."""

    def setup(self) -> None:
        """The layers."""
        size = self.components * self.action_dim
        self.features, self.logits = MLP(self.hidden), Dense(self.components)
        self.means, self.log_stds = Dense(size), Dense(size)

    def mixture(self, observation: jax.Array) -> tuple[jax.Array, Normal]:
        """Logits [..., k] and the Gaussians [..., k, a]."""
        x = self.features(observation)
        shape = (*observation.shape[:-1], self.components, self.action_dim)
        means, log_stds = self.means(x).reshape(shape), self.log_stds(x).reshape(shape)
        return self.logits(x), Normal(jnp.tanh(means), log_stds.clip(-5.0, 2.0))

    def __call__(self, observation: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] and action [..., a] to a loss [...]."""
        logits, gaussians = self.mixture(observation)
        return -jax.nn.logsumexp(nn.log_softmax(logits) + gaussians.log_prob(action[..., None, :]), axis=-1)

    def act(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] to an action [..., a]."""
        logits, gaussians = self.mixture(observation)
        likeliest = logits.argmax(-1)[..., None, None]
        return jnp.take_along_axis(gaussians.mean, likeliest, axis=-2).squeeze(-2)


class Categorical(Policy):
    """Each dimension of the action in one of equal bins over [-1, 1], independently."""

    def setup(self) -> None:
        """The layers."""
        self.features, self.logits = MLP(self.hidden), Dense(self.action_dim * self.bins)

    def scores(self, observation: jax.Array) -> jax.Array:
        """Logits [..., a, bin]."""
        shape = (*observation.shape[:-1], self.action_dim, self.bins)
        return self.logits(self.features(observation)).reshape(shape)

    def __call__(self, observation: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] and action [..., a] to a loss [...]."""
        index = jnp.floor((action + 1) / 2 * self.bins).astype(int).clip(0, self.bins - 1)
        log_probs = nn.log_softmax(self.scores(observation))
        return -jnp.take_along_axis(log_probs, index[..., None], axis=-1).squeeze(-1).sum(-1)

    def act(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] to an action [..., a]."""
        scores = self.scores(observation)
        middle = (2 * scores.argmax(-1) + 1) / self.bins - 1
        return jnp.where(jnp.isfinite(scores).all(-1), middle, jnp.nan)  # or a diverged policy would look like one


class Variational(VAE, Policy):
    """A conditional VAE with two latent dimensions per action dimension."""

    def __call__(self, observation: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] and action [..., a] to a loss [...]."""
        error, divergence = super().__call__(observation, action, key)
        return error + self.kl_weight * divergence

    def act(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] to an action [..., a]."""
        return jnp.tanh(self.sample(observation, key))


class Flow(Policy):
    """A velocity field that carries noise to actions, trained by flow matching along straight lines."""

    def setup(self) -> None:
        """The layers."""
        self.features, self.out = MLP(self.hidden), Dense(self.action_dim)

    def velocity(self, observation: jax.Array, x: jax.Array, time: jax.Array) -> jax.Array:
        """v [..., a] at x [..., a] and time [...]."""
        return self.out(self.features(jnp.concatenate([observation, x, time[..., None]], -1)))

    def __call__(self, observation: jax.Array, action: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] and action [..., a] to a loss [...]."""
        noise_key, time_key = jax.random.split(key)
        noise, time = jax.random.normal(noise_key, action.shape), jax.random.uniform(time_key, action.shape[:-1])
        x = (1 - time[..., None]) * noise + time[..., None] * action
        return jnp.square(self.velocity(observation, x, time) - (action - noise)).mean(-1)

    def act(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Observation [..., o] to an action [..., a]."""
        x = jax.random.normal(key, (*observation.shape[:-1], self.action_dim))
        for k in range(self.flow_steps):
            time = jnp.full(observation.shape[:-1], k / self.flow_steps)
            x = x + self.velocity(observation, x, time) / self.flow_steps
        return x.clip(-1, 1)


POLICIES = {
    "deterministic": Deterministic, "gaussian": Gaussian, "gmm": Mixture, "categorical": Categorical,
    "vae": Variational, "flow": Flow,
}  # fmt: skip


class BC(Agent):
    """One policy."""

    config: Config
    normal: Normaliser
    policy: Network

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Batch:
        """The data, or the best episodes of them."""
        if config.top_fraction < 1:
            data = transforms.top_fraction(data, config.top_fraction)
        return data.batch(task)

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        normal = Normaliser.of(prior.observation, config.normalise)
        c = config
        size = example.action.shape[-1]
        module = POLICIES[c.policy](size, c.hidden, c.components, c.bins, c.kl_weight, c.flow_steps)
        return cls(config, normal, Network.create(module, key, example.observation, example.action, key))

    def act(self, observation: jax.Array) -> jax.Array:
        """The policy: observations [..., o] to actions [..., a]."""

        def one(observation: jax.Array, key: jax.Array) -> jax.Array:
            return self.policy.module.apply(self.policy.params, self.normal(observation), key, method="act")

        return drawn(one, observation)

    def portable(self) -> Portable:
        """The same in layers."""
        c, own, size = self.config, self.policy.params["params"], self.policy.module.action_dim

        def head(name: str) -> tuple:
            return portable.dense(own[name])

        def by_dimension(name: str) -> tuple:
            """A layer of [component, a] as one of [a, component]."""
            swapped = (x.reshape(*x.shape[:-1], c.components, size).swapaxes(-1, -2) for x in head(name)[1:])
            return "dense", *(x.reshape(*x.shape[:-2], -1) for x in swapped)

        body = portable.mlp(own["features"]) if "features" in own else []
        within, n = [("clip", -1.0, 1.0)], self.normal
        if c.policy in ("deterministic", "gaussian"):
            networks = {"body": body, "mean": [head("mean"), ("tanh",)], "final": within}
            if c.policy == "gaussian":
                networks["log_std"] = [("constant", own["log_std"]), ("clip", -5.0, 2.0)]
            return Portable("gaussian", networks, normal=n)
        if c.policy == "gmm":
            networks = {
                "body": body, "logits": [head("logits")], "mean": [by_dimension("means"), ("tanh",)],
                "log_std": [by_dimension("log_stds"), ("clip", -5.0, 2.0)], "final": within,
            }  # fmt: skip
            return Portable("mixture", networks, {"components": c.components}, n)
        if c.policy == "categorical":
            return Portable("categorical", {"logits": [*body, head("logits")]}, {"bins": c.bins}, n)
        if c.policy == "vae":
            return Portable("variational", {"decoder": portable.decoder(self.policy)}, {"latent": 2 * size}, n)
        return Portable("flow", {"velocity": [*body, head("out")]}, {"steps": c.flow_steps, "action": size}, n)

    def loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The policy's loss, averaged over the batch."""
        losses = self.policy(self.normal(batch.observation), batch.action, key, params=params)
        chex.assert_equal_shape((batch.reward, losses))
        loss = losses.mean()
        return loss, {"loss": loss}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """One gradient step."""
        policy, metrics = self.policy.minimise(self.loss, batch, key, learning_rate=self.config.learning_rate)
        return self.replace(policy=policy), metrics

    def update(self, batches: Batch, key: jax.Array, step: jax.Array) -> tuple[Self, Metrics]:
        """The one gradient step of step `step`."""
        return self.update_once(jax.tree.map(lambda x: x[0], batches), key, step)


if __name__ == "__main__":
    command.main(BC, Config, PRESETS)
