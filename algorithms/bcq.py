"""BCQ: Q-learning whose maximum is taken over actions like those in the data, drawn from a VAE and slightly perturbed.

Fujimoto, Meger & Precup, "Off-Policy Deep Reinforcement Learning without Exploration", ICML 2019 (arXiv:1812.02900),
for continuous actions. Per gradient step, in this order,

    L_G  = mean_b |G(s, z) - a|^2 + w KL(q(z|s, a) || N(0, 1)),  z ~ q                       BCQ.vae_loss
    y    = r + gamma m max_k [lambda min_i Q'_i(s', a_k) + (1 - lambda) max_i Q'_i(s', a_k)] BCQ.target
           a_1 ... a_10 ~ pi'(s')
    L_Q  = sum_i mean_b (Q_i(s, a) - y)^2                                                    BCQ.critic_loss
    L_xi = -mean_b Q_1(s, pi(s))                                                             BCQ.actor_loss
    pi   = G(s, z) + phi xi(s, G(s, z)), clipped to +-1,  z ~ N(0, 1) clipped to +-0.5       BCQ.propose
           theta' <- (1 - tau) theta' + tau theta, for Q and xi                              BCQ.update_once

m is the mask, 0 where an episode terminated; pi' perturbs with the target network of xi, which lies in (-1, 1). The
error and the divergence are means over their dimensions. Evaluated is the best by Q_1 of 100 draws of pi(s), which are
a function of the observation, so that an evaluation can be repeated. There is no online phase.

Differences from the authors' code. Xavier-uniform kernels without biases, where PyTorch's begin with some.

Published, on D4RL's -v0 data (d3rlpy's benchmarks, ten seeds): hopper-medium 53, halfcheetah-medium 40, walker2d-medium
48. Measured on recipes, in small (benchmarks/results/lecture.md): pointmaze-medium 73; hopper-medium-replay 14.

    python algorithms/bcq.py --env hopper-medium
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp

from common import command, portable
from common.agent import Agent, Hyperparameters, Metrics, drawn, traced
from common.networks import VAE, Critic, DeterministicActor, Ensemble, Network, Parameters
from common.portable import Portable
from common.replay import Batch


class Config(Hyperparameters):
    """The paper's, which are also those of D4RL's evaluation."""

    learning_rate: float = 1e-3  # Adam's step size, for all networks
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target networks towards the online ones (tau)
    pessimism: float = traced(0.75, "[0, 1]")  # share of the smaller of both critics' values in the target (lambda)
    perturbation: float = traced(0.05, "[0, inf)")  # largest change of an action that the VAE proposes (phi)
    kl_weight: float = traced(0.5, "[0, inf)")  # weight of the VAE's divergence (w)
    target_candidates: int = 10  # actions per next state, of which the target takes the best
    candidates: int = 100  # actions per state, of which an evaluation takes the best
    hidden: tuple[int, ...] = (400, 300)  # width of each hidden layer of critics and perturbation
    vae_hidden: tuple[int, ...] = (750, 750)  # width of each hidden layer of the VAE's encoder and decoder
    batch_size: int = 100  # transitions per gradient step
    offline_steps: int = 1_000_000  # gradient steps


PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "antmaze": {"eval_episodes": 100, "eval_every": 50_000},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {"discount": 0.995, "hidden": (128, 128), "vae_hidden": (128, 128), "offline_steps": 50_000}
    | {"eval_every": 5000, "eval_episodes": 100},
}


class BCQ(Agent):
    """The data's actions, their perturbation, two critics, and the targets of the last two."""

    config: Config
    vae: Network
    actor: Network
    """xi, of observation and action side by side."""
    target_actor: Network
    critic: Ensemble
    target_critic: Ensemble

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        c, pair, size = config, (example.observation, example.action), example.action.shape[-1]
        vae_key, actor_key, critic_key = jax.random.split(key, 3)
        vae = Network.create(VAE(size, c.vae_hidden), vae_key, *pair, vae_key)
        actor = Network.create(DeterministicActor(c.hidden, size), actor_key, jnp.concatenate(pair, -1))
        critic = Ensemble.create(Critic(c.hidden), critic_key, *pair, members=2)
        return cls(c, vae, actor, actor.target(), critic, critic.target())

    def propose(
        self, actor: Network, observation: jax.Array, key: jax.Array, params: Parameters | None = None
    ) -> jax.Array:
        """pi: an action per row of observations [..., o], of the VAE and perturbed by `actor`, [..., a]."""
        action = jnp.tanh(self.vae.module.apply(self.vae.params, observation, key, method="sample"))
        change = actor(jnp.concatenate([observation, action], -1), params=params)
        return (action + self.config.perturbation * change).clip(-1, 1)

    def act(self, observation: jax.Array) -> jax.Array:
        """The best by the first critic of draws of pi(s)."""

        def best(observation: jax.Array, key: jax.Array) -> jax.Array:
            observations = jnp.repeat(observation[None], self.config.candidates, axis=0)
            return self.critic.best(observations, self.propose(self.actor, observations, key))

        return drawn(best, observation)

    def portable(self) -> Portable:
        """The same in layers, with the critic that chooses."""
        change = portable.actor(self.actor).networks
        networks = {
            "decoder": portable.decoder(self.vae), "change": [*change["body"], *change["mean"]],
            "critic": portable.first(self.critic),
        }  # fmt: skip
        numbers = {"perturbation": float(self.config.perturbation), "latent": 2 * self.vae.module.action_dim}
        return Portable("best", networks, {"of": "perturbed", "candidates": self.config.candidates} | numbers)

    def vae_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The error of reconstructed actions, and the divergence of their latents from N(0, 1)."""
        error, divergence = self.vae(batch.observation, batch.action, key, params=params)
        chex.assert_equal_shape((batch.reward, error, divergence))
        loss = (error + self.config.kl_weight * divergence).mean()
        return loss, {"vae_loss": loss, "reconstruction": error.mean()}

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        c = self.config
        observations = jnp.repeat(batch.next_observation[:, None], c.target_candidates, axis=1)
        q = self.target_critic(observations, self.propose(self.target_actor, observations, key))
        chex.assert_shape(q, (2, *batch.reward.shape, c.target_candidates))
        next_q = (c.pessimism * q.min(axis=0) + (1 - c.pessimism) * q.max(axis=0)).max(axis=-1)
        chex.assert_equal_shape((batch.reward, batch.mask, next_q))
        return batch.reward + c.discount * batch.mask * next_q

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, summed over both critics."""
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (2, *batch.reward.shape))
        loss = jnp.square(q - self.target(batch, key)).mean(axis=-1).sum()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The first critic's value of one perturbed action per state, negated."""
        action = self.propose(self.actor, batch.observation, key, params)
        q = self.critic.members(jnp.array([0]))(batch.observation, action)[0]
        chex.assert_equal_shape((batch.reward, q))
        loss = -q.mean()
        return loss, {"actor_loss": loss}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """VAE, critics, perturbation, targets: each with what the ones before have just become."""
        c, keys = self.config, jax.random.split(key, 3)
        vae, metrics = self.vae.minimise(self.vae_loss, batch, keys[0], learning_rate=c.learning_rate)
        agent = self.replace(vae=vae)
        critic, more = agent.critic.minimise(agent.critic_loss, batch, keys[1], learning_rate=c.learning_rate)
        agent, metrics = agent.replace(critic=critic), metrics | more
        actor, more = agent.actor.minimise(agent.actor_loss, batch, keys[2], learning_rate=c.learning_rate)
        return agent.replace(
            actor=actor, target_actor=agent.target_actor.track(actor, c.target_rate),
            target_critic=agent.target_critic.track(critic, c.target_rate),
        ), metrics | more  # fmt: skip


if __name__ == "__main__":
    command.main(BCQ, Config, PRESETS)
