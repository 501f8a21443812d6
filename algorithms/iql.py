"""IQL: implicit Q-learning, which never asks its critic about an action that is not in the data.

Kostrikov, Nair & Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022 (arXiv:2110.06169). Per
gradient step, in this order,

    eq. 5   L_V  = mean_b |tau - 1(u < 0)| u^2,  u = min_i Q'_i(s, a) - V(s)                IQL.value_loss
    eq. 7   L_pi = mean_b -exp(beta (min_i Q'_i(s, a) - V(s))) log pi(a|s), weight <= 100   IQL.actor_loss
    eq. 6   L_Q  = mean_b (r + gamma m V(s') - Q_i(s, a))^2 for both i                      IQL.critic_loss
            theta'_i <- (1 - rho) theta'_i + rho theta_i                                    IQL.update_once

tau is the expectile, beta the inverse temperature, m the mask, 0 where an episode terminated. The policy is a Gaussian
around a tanh-squashed mean, with one standard deviation for all states; evaluated is its mean. Offline, the actor's
step size follows a cosine to zero. Rewards: in locomotion, the best and the worst episode are brought 1000 apart; in
mazes, -1 per step.

Online (section 5.3): the same updates, one per environment step, on minibatches drawn uniformly from the data and the
experience together; actions are samples of the policy; no cosine in either phase.

Differences from the authors' code. Xavier-uniform kernels instead of orthogonal ones. The critics' loss is a mean over
both, theirs a sum, which Adam all but undoes. Its fine-tuning brings the data's rewards to scale in locomotion but not
the experience's; here both are.

Published, on D4RL's -v2 data (CORL's README and its fine-tuning results): hopper-medium 68, halfcheetah-medium 48,
antmaze-umaze 77, and 97 after a million steps online.

Measured: 100,000 transitions of hopper-medium's recipe 93, where the authors' code comes to 83, three seeds
(benchmarks/results/official.csv); in small, pointmaze-medium 97, ten seeds (smoke.csv); after 100,000 updates
antmaze-umaze 28 and antmaze-umaze-diverse 1, where cloning has 83 and 55 (antmaze_offline.csv); after a million, 85 on
antmaze-umaze, five seeds (iql_antmaze_h100.csv); antmaze-umaze 55 after 100,000 updates and 45,000 steps online
(rlpd_iql.csv).

    python algorithms/iql.py --env antmaze-umaze
    python algorithms/iql.py --env antmaze-umaze --online-steps 1000000
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
from flax import struct

from common import command
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.datasets import Dataset, transforms
from common.networks import Critic, Ensemble, Network, NormalActor, Parameters, Value
from common.replay import Batch, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """The paper's, by its names; PRESETS has its values for each benchmark."""

    learning_rate: float = 3e-4  # Adam's step size, for all networks
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones (rho)
    expectile: float = traced(0.7, "(0, 1)")  # of the value (tau): 0.5 is the mean of the data's actions, 1 their best
    inverse_temperature: float = traced(3.0, "[0, inf)")  # weight of the advantage in cloning (beta)
    largest_weight: float = traced(100.0, "(0, inf)")  # where exp(beta A) is cut off
    hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of all networks
    actor_dropout: float = static(0.0)  # dropout rate in the actor
    rescale_rewards: bool = False  # scale rewards so that the data's best and worst episode return 1000 apart
    batch_size: int = 256  # transitions per gradient step
    utd: int = 1  # gradient steps per environment step
    offline_steps: int = 1_000_000  # gradient steps on the data
    online_steps: int = 0  # environment steps afterwards


PRESETS: dict[str, dict[str, Any]] = {
    # By task family: the configurations of the paper's code; it has no binary Adroit, which gets Adroit's values here.
    "locomotion": {"expectile": 0.7, "inverse_temperature": 3.0, "rescale_rewards": True},
    "antmaze": {"expectile": 0.9, "inverse_temperature": 10.0, "eval_episodes": 100, "eval_every": 50_000},
    "adroit": {"expectile": 0.7, "inverse_temperature": 0.5, "actor_dropout": 0.1},
    "adroit-binary": {"expectile": 0.7, "inverse_temperature": 0.5, "actor_dropout": 0.1, "eval_episodes": 100},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {
        "expectile": 0.9, "inverse_temperature": 10.0, "discount": 0.995, "hidden": (128, 128),
        "offline_steps": 50_000, "eval_every": 5000, "eval_episodes": 100,
    },
}  # fmt: skip


class Prior(struct.PyTreeNode):
    """The data, and what rewards are multiplied with."""

    rows: Batch
    """[n, ...]"""
    reward_scale: jax.Array
    """[]"""


class IQL(Agent):
    """Actor, value and two critics, and the critics' targets."""

    config: Config
    reward_scale: jax.Array
    actor: Network
    value: Network
    critic: Ensemble
    target_critic: Ensemble

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Prior:
        """The data, and the scale of their rewards."""
        rows = data.batch(task)
        scale = transforms.return_range_scale(data, rows.reward) if config.rescale_rewards else 1.0
        return Prior(rows, jnp.float32(scale))

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Prior) -> Self:
        """A fresh agent for transitions shaped like `example`."""
        actor_key, value_key, critic_key = jax.random.split(key, 3)
        policy = NormalActor(config.hidden, example.action.shape[-1], config.actor_dropout)
        actor = Network.create(policy, actor_key, example.observation)
        value = Network.create(Value(config.hidden), value_key, example.observation)
        critic = Ensemble.create(Critic(config.hidden), critic_key, example.observation, example.action, members=2)
        return cls(config, prior.reward_scale, actor, value, critic, critic.target())

    def act(self, observation: jax.Array) -> jax.Array:
        """The mean of pi(. | s)."""
        return self.actor(observation).mode()

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """A sample of pi(. | s), clipped to the actions there are."""
        return self.actor(observation).sample(key).clip(-1, 1)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Batch:
        """Uniform minibatches, with rewards to scale."""
        batches = super().sample(key, experience, prior.rows)
        return batches.replace(reward=self.reward_scale * batches.reward)

    def value_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Equation 5: the expectile of the target critics' values."""
        value = self.value(batch.observation, params=params)
        gap = self.target_critic(batch.observation, batch.action).min(axis=0) - value
        chex.assert_equal_shape((batch.reward, value, gap))
        weight = jnp.where(gap < 0, 1 - self.config.expectile, self.config.expectile)
        loss = (weight * jnp.square(gap)).mean()
        return loss, {"value_loss": loss, "value": value.mean()}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Equation 7: cloning, weighted by the exponential of the advantage."""
        c = self.config
        advantage = self.target_critic(batch.observation, batch.action).min(axis=0) - self.value(batch.observation)
        weight = jnp.minimum(jnp.exp(c.inverse_temperature * advantage), c.largest_weight)
        log_prob = self.actor(batch.observation, params=params, dropout_key=key).log_prob(batch.action)
        chex.assert_equal_shape((batch.reward, weight, log_prob))
        loss = -(weight * log_prob).mean()
        return loss, {"actor_loss": loss, "advantage": advantage.mean(), "weight": weight.mean()}

    def critic_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Equation 6: both critics regress one target, which the policy has no part in."""
        target = batch.reward + self.config.discount * batch.mask * self.value(batch.next_observation)
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape((target, q), (batch.reward.shape, (2, *batch.reward.shape)))
        loss = jnp.square(q - target).mean()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def actor_learning_rate(self, step: jax.Array) -> jax.Array:
        """A cosine to zero over the offline phase; constant if an online phase follows."""
        c = self.config
        if c.online_steps:
            return c.learning_rate
        return c.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, (step - 1) / c.offline_steps)))

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """Value, actor, critics, target critics: each sees what those before it have just become."""
        c = self.config
        value, value_metrics = self.value.minimise(self.value_loss, batch, learning_rate=c.learning_rate)
        agent = self.replace(value=value)
        actor, actor_metrics = agent.actor.minimise(
            agent.actor_loss, batch, key, learning_rate=agent.actor_learning_rate(number)
        )
        critic, critic_metrics = agent.critic.minimise(agent.critic_loss, batch, learning_rate=c.learning_rate)
        target_critic = agent.target_critic.track(critic, c.target_rate)
        agent = agent.replace(actor=actor, critic=critic, target_critic=target_critic)
        return agent, value_metrics | actor_metrics | critic_metrics


if __name__ == "__main__":
    command.main(IQL, Config, PRESETS)
