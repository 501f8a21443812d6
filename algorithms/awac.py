"""AWAC: an actor that clones the data's actions, weighted by the exponential of their advantage over its own.

Nair, Gupta, Dalal & Levine, "AWAC: Accelerating Online Reinforcement Learning with Offline Datasets", 2020
(arXiv:2006.09359). Per gradient step, in this order,

    y    = r + gamma m min_i Q'_i(s', a'),  a' ~ pi(.|s')                                    AWAC.target
    L_Q  = sum_i mean_b (Q_i(s, a) - y)^2                                                    AWAC.critic_loss
    A    = min_i Q_i(s, a) - min_i Q_i(s, a~),  a~ ~ pi(.|s)                                 AWAC.advantage
    L_pi = -mean_b w log pi(a|s)                                                             AWAC.actor_loss
    w    = min(exp(A / lambda), W), or the batch's size times its share of the batch's       AWAC.weight
           theta'_i <- (1 - rho) theta'_i + rho theta_i                                      AWAC.update_once

m is the mask, 0 where an episode terminated; w has no gradient. The first weight is the paper's without its normaliser
Z(s), cut off at W = 100 as in CORL, whose settings are the defaults; the second, `--weighting softmax`, is that of
rlkit, the authors' code. The policy is a Gaussian with one standard deviation for all states; its samples are clipped
to the actions there are, and evaluated is its mean. Observations are normalised with the data's mean and deviation.
Online, the same updates on minibatches drawn uniformly from the data and the experience together.

`--preset hand` holds rlkit's settings for hands with sparse rewards (pen-, door-, relocate-binary): the softmax, with
a~ the policy's mean (`--baseline mode`); advantages are cut off at 0.5 there, which with lambda = 0.5 is W = e.

Differences. Xavier-uniform kernels. CORL's mean is not squashed by tanh, only clipped where it acts; rlkit's is. The
log standard deviation lies in [-5, 2] and begins at 0; CORL's lies in [-20, 2], rlkit's in [-6, 0], by a sigmoid, and
begins at -3. rlkit takes all gradients before the first step, does not clip its samples, decays all the actor's
parameters by a term of their gradient, and on hands has critics that are at most 0.

Published, on D4RL's -v2 data (final scores, CORL's README): hopper-medium 74, halfcheetah-medium 49, walker2d-medium
67, antmaze-umaze 58. Measured on recipes, in small (benchmarks/results/lecture.md): pointmaze-medium 68;
hopper-medium-replay 12.

    python algorithms/awac.py --env antmaze-umaze --offline-steps 25000 --online-steps 500000
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import chex
import jax
import jax.numpy as jnp

from common import command
from common.agent import Agent, Hyperparameters, Metrics, traced
from common.networks import Critic, Ensemble, Network, NormalActor, Normaliser, Parameters
from common.replay import Batch, Replay


class Config(Hyperparameters):
    """CORL's values, by the paper's names."""

    learning_rate: float = 3e-4  # Adam's step size, for all networks
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones (rho)
    temperature: float = traced(1.0, "(0, inf)")  # of the advantage in cloning (lambda)
    largest_weight: float = traced(100.0, "(0, inf)")  # where exp(A / lambda) is cut off (W)
    weighting: Literal["clipped", "softmax"] = "clipped"  # the exponential, or its share of the batch's
    baseline: Literal["sample", "mode"] = "sample"  # what the data's actions are compared with: a sample of pi, or mean
    weight_decay: float = 0.0  # AdamW's decay of the actor's kernels
    hidden: tuple[int, ...] = (256, 256, 256)  # width of each hidden layer of all networks
    normalise: bool = True  # normalise observations with the data's mean and standard deviation
    batch_size: int = 256  # transitions per gradient step
    utd: int = 1  # gradient steps per environment step
    offline_steps: int = 1_000_000  # gradient steps on the data
    online_steps: int = 0  # environment steps afterwards


PRESETS: dict[str, dict[str, Any]] = {
    # By task family: lambda of CORL's configurations.
    "locomotion": {"temperature": 0.3333},
    "adroit": {"temperature": 0.1},
    "adroit-binary": {"temperature": 0.1, "eval_episodes": 100},
    "antmaze": {"temperature": 0.1, "eval_episodes": 100, "eval_every": 50_000},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {"temperature": 0.1, "discount": 0.995, "hidden": (128, 128), "offline_steps": 50_000}
    | {"eval_every": 5000, "eval_episodes": 100},
    # By algorithm, with --preset: laid over the family's. examples/awac/hand/awac1.py of rlkit.
    "hand": {
        "weighting": "softmax", "baseline": "mode", "temperature": 0.5, "largest_weight": math.e, "weight_decay": 1e-4,
        "hidden": (256, 256), "normalise": False, "batch_size": 1024, "offline_steps": 25_000, "online_steps": 500_000,
    },
}  # fmt: skip


class AWAC(Agent):
    """Actor and two critics, and the critics' targets."""

    config: Config
    normal: Normaliser
    actor: Network
    critic: Ensemble
    target_critic: Ensemble

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        actor_key, critic_key = jax.random.split(key)
        actor = Network.create(NormalActor(config.hidden, example.action.shape[-1]), actor_key, example.observation)
        critic = Ensemble.create(Critic(config.hidden), critic_key, example.observation, example.action, members=2)
        return cls(config, Normaliser.of(prior.observation, config.normalise), actor, critic, critic.target())

    def act(self, observation: jax.Array) -> jax.Array:
        """The mean of pi(. | s)."""
        return self.actor(self.normal(observation)).mode()

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """A sample of pi(. | s), clipped to the actions there are."""
        return self.actor(self.normal(observation)).sample(key).clip(-1, 1)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Batch) -> Batch:
        """Uniform minibatches, normalised."""
        return super().sample(key, experience, prior).normalised(self.normal)

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        next_action = self.actor(batch.next_observation).sample(key).clip(-1, 1)
        next_q = self.target_critic(batch.next_observation, next_action).min(axis=0)
        chex.assert_equal_shape((batch.reward, batch.mask, next_q))
        return batch.reward + self.config.discount * batch.mask * next_q

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, summed over both critics."""
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (2, *batch.reward.shape))
        loss = jnp.square(q - self.target(batch, key)).mean(axis=-1).sum()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def advantage(self, batch: Batch, key: jax.Array) -> jax.Array:
        """A, [batch]: of the data's actions over the policy's."""
        policy = self.actor(batch.observation)
        own = policy.mode() if self.config.baseline == "mode" else policy.sample(key).clip(-1, 1)
        q, value = (self.critic(batch.observation, action).min(axis=0) for action in (batch.action, own))
        return q - value

    def weight(self, advantage: jax.Array) -> jax.Array:
        """w, [batch], of advantages [batch]."""
        ratio = advantage / self.config.temperature
        if self.config.weighting == "softmax":
            return advantage.shape[0] * jax.nn.softmax(jnp.minimum(ratio, jnp.log(self.config.largest_weight)))
        return jnp.minimum(jnp.exp(ratio), self.config.largest_weight)

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Cloning, weighted by the exponential of the advantage."""
        advantage = self.advantage(batch, key)
        weight = self.weight(advantage)
        log_prob = self.actor(batch.observation, params=params).log_prob(batch.action)
        chex.assert_equal_shape((batch.reward, weight, log_prob))
        loss = -(weight * log_prob).mean()
        return loss, {"actor_loss": loss, "advantage": advantage.mean(), "weight": weight.mean()}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """Critics, actor at the critics just updated, target critics."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        critic_key, actor_key = jax.random.split(key)
        critic, metrics = self.critic.minimise(self.critic_loss, batch, critic_key, learning_rate=rate)
        agent = self.replace(critic=critic, target_critic=self.target_critic.track(critic, self.config.target_rate))
        actor, more = agent.actor.minimise(agent.actor_loss, batch, actor_key, learning_rate=rate, weight_decay=decay)
        return agent.replace(actor=actor), metrics | more


if __name__ == "__main__":
    command.main(AWAC, Config, PRESETS)
