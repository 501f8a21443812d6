"""BEAR: Q-learning whose policy stays within the support of the data's actions, measured by an MMD of few samples.

Kumar, Fu, Soh, Tucker & Levine, "Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction", NeurIPS 2019
(arXiv:1906.00949). Per gradient step, in this order,

    L_G  = mean_b |G(s, z) - a|^2 + w KL(q(z|s, a) || N(0, 1)),  z ~ q                       BEAR.vae_loss
    y    = r + gamma m max_k [lambda min_i Q'_i(s', a_k) + (1 - lambda) max_i Q'_i(s', a_k)] BEAR.target
           a_1 ... a_10 ~ pi'(.|s')
    L_Q  = sum_i mean_b (Q_i(s, a) - y)^2                                                    BEAR.critic_loss
    L_pi = mean_b [alpha MMD(s) - min_i mean_k Q_i(s, tanh u_k)]                             BEAR.actor_loss
    MMD  = sqrt(mean_jk [k(x_j, x_k) + k(u_j, u_k) - 2 k(x_j, u_k)] + 1e-6)                  mmd
    L_al = -alpha (mean_b MMD(s) - epsilon), then log alpha clipped to [-5, 10]              BEAR.dual_loss
           theta' <- (1 - tau) theta' + tau theta                                            BEAR.update_once

m is the mask, 0 where an episode terminated. x_j are actions of the VAE G at s, with z from N(0, 1) clipped to +-0.5,
and u_k actions of the policy, a squashed Gaussian; both before their tanh. The kernel is Laplacian,
exp(-|x - u|_1 / (2 sigma)), or Gaussian, exp(-|x - u|_2^2 / (2 sigma)). In a first phase, of `--matching-steps`, L_pi
has no Q. Evaluated is the best by Q_1 of 100 draws of pi, which are a function of the observation, so that an
evaluation can be repeated. There is no online phase.

The defaults are those of D4RL's evaluation (rail-berkeley/d4rl_evaluations), to which the authors refer: pi' is the
policy itself (`--policy-target-rate 1`), one u_k meets Q, and the kernel is Laplacian, on halfcheetah Gaussian.
`--preset first-code` has those of the paper's code (aviralkumar2907/BEAR): pi' follows the policy as the target critics
follow theirs, the noise of u_k is cut at +-0.5, all u_k meet Q, an evaluation chooses among 10 actions, and sizes and
steps are others.

Differences. The policy learns from the critics just updated, as in the paper's code; in D4RL's, the forward pass is
taken before their step and the backward pass after it. Its log standard deviation lies in [-5, 2], as in D4RL's; in the
paper's code anywhere. alpha begins at 1, as in D4RL's; in the paper's code log alpha begins as a draw of N(0, 1). Last
layers start as in D4RL's, hidden layers Xavier-uniform with zero biases, where it has biases of 0.1.

Published, on D4RL's -v2 data (as EDAC's paper has them): hopper-medium 55, halfcheetah-medium 43, walker2d-medium 60.
Measured on recipes, in small (benchmarks/results/lecture.md): pointmaze-medium 30; hopper-medium-replay 15.

    python algorithms/bear.py --env hopper-medium
    python algorithms/bear.py --env hopper-medium --preset first-code
"""

from __future__ import annotations

from typing import Any, Literal, Self

import chex
import jax
import jax.numpy as jnp

from common import command, portable, presets, tasks
from common.agent import Agent, Hyperparameters, Metrics, drawn, static, traced
from common.distributions import squared_mmd
from common.networks import VAE, Critic, Ensemble, Network, Parameters, Scalar, TanhNormalActor
from common.portable import Portable
from common.replay import Batch


class Config(Hyperparameters):
    """Those of D4RL's evaluation, by the paper's names."""

    learning_rate: float = 3e-4  # Adam's step size, for critics and VAE
    actor_learning_rate: float = 1e-4  # Adam's step size, for the policy
    dual_learning_rate: float = 1e-3  # Adam's step size, for log alpha
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones (tau)
    policy_target_rate: float = 1.0  # step of the target's policy towards the online one; 1: it is the online one
    pessimism: float = traced(0.75, "[0, 1]")  # share of the smaller of both critics' values in the target (lambda)
    threshold: float = traced(0.05, "[0, inf)")  # the MMD that is allowed (epsilon)
    kernel: Literal["laplacian", "gaussian"] = "laplacian"  # of the MMD
    bandwidth: float = traced(20.0, "(0, inf)")  # of the kernel (sigma)
    largest_log_dual: float = traced(10.0, "(-5, 80]")  # where log alpha is cut off, from below at -5
    sample_noise_clip: float = 10.0  # where the noise of the policy's samples in its loss is cut off; 10: nowhere
    kl_weight: float = traced(0.5, "[0, inf)")  # weight of the VAE's divergence (w)
    matched: int = 4  # actions of policy and VAE in an MMD
    valued: int = 1  # of the policy's, how many its value is averaged over
    target_candidates: int = 10  # actions per next state, of which the target takes the best
    candidates: int = 100  # actions per state, of which an evaluation takes the best
    hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of policy and critics
    vae_hidden: tuple[int, ...] = (750, 750)  # width of each hidden layer of the VAE's encoder and decoder
    batch_size: int = 256  # transitions per gradient step
    matching_steps: int = static(40_000, "[0, inf)")  # gradient steps first, in which the policy only matches
    offline_steps: int = 2_960_000  # gradient steps after those

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("matching", self.matching_steps), *super().phases

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if self.valued > self.matched:
            return f"--valued {self.valued} are of the --matched {self.matched} actions: at most as many"
        return None


PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "antmaze": {"eval_episodes": 100, "eval_every": 50_000},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {
        "discount": 0.995, "hidden": (128, 128), "vae_hidden": (128, 128), "matching_steps": 5000,
        "offline_steps": 50_000, "eval_every": 5000, "eval_episodes": 100,
    },
    # By task: the kernel of D4RL's evaluation.
    **presets.each("locomotion", ("halfcheetah",), tasks.QUALITIES, kernel="gaussian"),
    # By algorithm, with --preset: laid over the task's. The authors count matching among their steps.
    "first-code": {
        "learning_rate": 1e-3, "actor_learning_rate": 1e-3, "policy_target_rate": 0.005, "kernel": "laplacian",
        "bandwidth": 10.0, "sample_noise_clip": 0.5, "matched": 5, "valued": 5, "candidates": 10, "hidden": (400, 300),
        "vae_hidden": (750, 750), "batch_size": 100, "matching_steps": 20_000, "offline_steps": 980_000,
    },
    **presets.each("first-code", ("walker2d",), tasks.QUALITIES, kernel="gaussian", bandwidth=20.0),
}  # fmt: skip


def mmd(x: jax.Array, u: jax.Array, kernel: str, bandwidth: jax.Array | float) -> jax.Array:
    """The maximum mean discrepancy of samples x and u, [..., sample, a] both, [...]."""
    return jnp.sqrt(squared_mmd(x, u, 2 * bandwidth, kernel == "gaussian") + 1e-6)


class BEAR(Agent):
    """Policy, the data's actions, two critics, the targets of both, and the dual variable alpha."""

    config: Config
    vae: Network
    actor: Network
    target_actor: Network
    critic: Ensemble
    target_critic: Ensemble
    dual: Network

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        c, pair, size = config, (example.observation, example.action), example.action.shape[-1]
        vae_key, actor_key, critic_key, dual_key = jax.random.split(key, 4)
        vae = Network.create(VAE(size, c.vae_hidden), vae_key, *pair, vae_key)
        policy = TanhNormalActor(c.hidden, size, least_log_std=-5.0, last_bound=1e-3)
        actor = Network.create(policy, actor_key, example.observation)
        critic = Ensemble.create(Critic(c.hidden, last_bound=3e-3), critic_key, *pair, members=2)
        return cls(c, vae, actor, actor.target(), critic, critic.target(), Network.create(Scalar(), dual_key))

    def act(self, observation: jax.Array) -> jax.Array:
        """The best by the first critic of samples of pi(. | s)."""

        def best(observation: jax.Array, key: jax.Array) -> jax.Array:
            observations = jnp.repeat(observation[None], self.config.candidates, axis=0)
            return self.critic.best(observations, self.actor(observations).sample(key))

        return drawn(best, observation)

    def portable(self) -> Portable:
        """The same in layers, with the critic that chooses."""
        networks = {**portable.actor(self.actor).networks, "critic": portable.first(self.critic)}
        return Portable("best", networks, {"of": "gaussian", "candidates": self.config.candidates})

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
        q = self.target_critic(observations, self.target_actor(observations).sample(key))
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
        """The distance from the VAE's actions, weighted by alpha, and minus the value; of that nothing at first."""
        c, (vae_key, own_key) = self.config, jax.random.split(key)
        observations = jnp.repeat(batch.observation[:, None], c.matched, axis=1)
        data = self.vae.module.apply(self.vae.params, observations, vae_key, method="sample")
        policy = self.actor(observations, params=params)
        noise = jax.random.normal(own_key, data.shape).clip(-c.sample_noise_clip, c.sample_noise_clip)
        own = policy.mean + jnp.exp(policy.log_std) * noise
        chex.assert_shape((data, own), (*batch.reward.shape, c.matched, batch.action.shape[-1]))
        discrepancy = mmd(data, own, c.kernel, c.bandwidth)
        chex.assert_equal_shape((batch.reward, discrepancy))
        loss = self.dual() * discrepancy.mean()
        if self.phase != "matching":
            q = self.critic(observations[:, : c.valued], jnp.tanh(own[:, : c.valued])).mean(axis=-1).min(axis=0)
            chex.assert_equal_shape((batch.reward, q))
            loss -= q.mean()
        return loss, {"actor_loss": loss, "mmd": discrepancy.mean()}

    def dual_loss(self, params: Parameters, discrepancy: jax.Array) -> tuple[jax.Array, Metrics]:
        """Its descent raises alpha while the mean MMD [] is above the threshold, and lowers it below."""
        alpha = self.dual(params=params)
        return -alpha * (discrepancy - self.config.threshold), {"alpha": alpha}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """VAE, critics, policy, alpha at the MMD before the policy's step, targets."""
        c, keys = self.config, jax.random.split(key, 3)
        vae, metrics = self.vae.minimise(self.vae_loss, batch, keys[0], learning_rate=c.learning_rate)
        agent = self.replace(vae=vae)
        critic, more = agent.critic.minimise(agent.critic_loss, batch, keys[1], learning_rate=c.learning_rate)
        agent, metrics = agent.replace(critic=critic), metrics | more
        actor, more = agent.actor.minimise(agent.actor_loss, batch, keys[2], learning_rate=c.actor_learning_rate)
        dual, last = agent.dual.minimise(agent.dual_loss, more["mmd"], learning_rate=c.dual_learning_rate)
        return agent.replace(
            actor=actor, target_actor=agent.target_actor.track(actor, c.policy_target_rate),
            target_critic=agent.target_critic.track(critic, c.target_rate),
            dual=dual.replace(params=jax.tree.map(lambda x: x.clip(-5.0, c.largest_log_dual), dual.params)),
        ), metrics | more | last  # fmt: skip


if __name__ == "__main__":
    command.main(BEAR, Config, PRESETS)
