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

Differences from the authors' code. Xavier-uniform kernels instead of orthogonal ones. Its fine-tuning brings the data's
rewards to scale in locomotion but not the experience's; here both are.

Published, on D4RL's -v2 data (CORL's README and its fine-tuning results): hopper-medium 68, halfcheetah-medium 48,
antmaze-umaze 77, and 97 after a million steps online.

Measured: 100,000 transitions of hopper-medium's recipe 93, where the authors' code comes to 83, three seeds
(benchmarks/results/official.csv); in small, pointmaze-medium 97, ten seeds (smoke.csv); after 100,000 updates
antmaze-umaze 28 and antmaze-umaze-diverse 1, where cloning has 83 and 55 (antmaze_offline.csv); antmaze-umaze 55 after
45,000 steps online (rlpd_iql.csv).

    python algorithms/iql.py --env antmaze-umaze
    python algorithms/iql.py --env antmaze-umaze --online-steps 1000000
"""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from common import command, replay
from common.datasets import Dataset, transforms
from common.networks import Critic, Ensemble, Network, NormalActor, Parameters, Value
from common.replay import Batch, Replay
from common.tasks import Task

Metrics = dict[str, jax.Array]


class Config(struct.PyTreeNode):
    """Hyperparameters. Numbers are traced, so a grid of them is one axis of runs; shapes and counts are static."""

    learning_rate: float = 3e-4
    """Adam's step size, for all networks."""
    discount: float = 0.99
    """Discount factor (gamma)."""
    target_rate: float = 0.005
    """Step of the target critics towards the online ones."""
    expectile: float = 0.7
    """Expectile of the value (tau): 0.5 is the mean of the data's actions, 1 the best of them."""
    inverse_temperature: float = 3.0
    """Weight of the advantage in cloning (beta)."""
    largest_weight: float = 100.0
    """Where exp(beta A) is cut off."""
    hidden: tuple[int, ...] = struct.field(default=(256, 256), pytree_node=False)
    """Width of each hidden layer of all networks."""
    actor_dropout: float = struct.field(default=0.0, pytree_node=False)
    """Dropout rate in the actor."""
    rescale_rewards: bool = struct.field(default=False, pytree_node=False)
    """Scale rewards so that the returns of the best and the worst episode in the data are 1000 apart."""
    batch_size: int = struct.field(default=256, pytree_node=False)
    """Transitions per gradient step."""
    utd: int = struct.field(default=1, pytree_node=False)
    """Gradient steps per environment step."""
    offline_steps: int = struct.field(default=1_000_000, pytree_node=False)
    """Gradient steps on the data."""
    online_steps: int = struct.field(default=0, pytree_node=False)
    """Environment steps afterwards."""

    uses_prior_data = True
    start_training = random_steps = 0

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("offline", self.offline_steps), ("online", self.online_steps)

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        if not 0 < self.expectile < 1:
            return f"--expectile must lie between 0 and 1, not {self.expectile}"
        if not 0 <= self.actor_dropout < 1:
            return f"--actor-dropout must lie in [0, 1), not {self.actor_dropout}"
        if min(self.utd, self.batch_size, self.offline_steps, *self.hidden) < 1 or self.online_steps < 0:
            return "--utd, --batch-size, --offline-steps and --hidden must be at least 1, --online-steps at least 0"
        return None


PRESETS: dict[str, dict[str, Any]] = {
    # By task family: section 5 and the appendix of the paper, and its code.
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


class IQL(struct.PyTreeNode):
    """The agent: configuration and networks. Every method is pure; programs.py adds the axis of runs."""

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
        """A fresh agent for transitions shaped like one unbatched `example`."""
        actor_key, value_key, critic_key = jax.random.split(key, 3)
        policy = NormalActor(config.hidden, example.action.shape[-1], config.actor_dropout)
        actor = Network.create(policy, actor_key, example.observation)
        value = Network.create(Value(config.hidden), value_key, example.observation)
        critic = Ensemble.create(Critic(config.hidden), critic_key, example.observation, example.action, members=2)
        return cls(config, prior.reward_scale, actor, value, critic, critic.target())

    def act(self, observation: jax.Array) -> jax.Array:
        """The evaluated policy: the mean of pi(. | s), [..., action]."""
        return self.actor(observation).mode()

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """The collecting policy: a sample of pi(. | s), [..., action], clipped to the actions there are."""
        return self.actor(observation).sample(key).clip(-1, 1)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Batch:
        """The minibatches of one update, arrays [steps, batch_size, ...]: of the data, and of the experience online."""
        c = self.config
        if experience is None:
            batches = replay.sample(key, prior.rows, prior.rows.reward.shape[0], (1, c.batch_size))
        else:
            batches = replay.sample_union(key, experience, prior.rows, c.utd, c.batch_size)
        return batches.replace(reward=self.reward_scale * batches.reward)

    def enter(self, phase: str, key: jax.Array, prior: Prior) -> Self:
        """The same agent goes online, with its optimisers as they are."""
        return self

    def value_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Equation 5: the expectile of the target critics' values."""
        value = self.value(batch.observation, params=params)
        gap = self.target_critic(batch.observation, batch.action).min(axis=0) - value
        weight = jnp.where(gap < 0, 1 - self.config.expectile, self.config.expectile)
        loss = (weight * jnp.square(gap)).mean()
        return loss, {"value_loss": loss, "value": value.mean()}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Equation 7: cloning, weighted by the exponential of the advantage."""
        c = self.config
        advantage = self.target_critic(batch.observation, batch.action).min(axis=0) - self.value(batch.observation)
        weight = jnp.minimum(jnp.exp(c.inverse_temperature * advantage), c.largest_weight)
        log_prob = self.actor(batch.observation, params=params, dropout_key=key).log_prob(batch.action)
        loss = -(weight * log_prob).mean()
        return loss, {"actor_loss": loss, "advantage": advantage.mean(), "weight": weight.mean()}

    def critic_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Equation 6: both critics regress one target, which the policy has no part in."""
        target = batch.reward + self.config.discount * batch.mask * self.value(batch.next_observation)
        q = self.critic(batch.observation, batch.action, params=params)
        loss = jnp.square(q - target).mean()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def actor_learning_rate(self, step: jax.Array) -> jax.Array:
        """A cosine to zero over the offline phase; constant if an online phase follows."""
        c = self.config
        if c.online_steps:
            return c.learning_rate
        return c.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, (step - 1) / c.offline_steps)))

    def update_once(self, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Self, Metrics]:
        """Value, actor, critics, target critics: each sees what those before it have just become."""
        c = self.config
        gradients, metrics = jax.grad(self.value_loss, has_aux=True)(self.value.params, batch)
        agent = self.replace(value=self.value.descend(gradients, c.learning_rate))
        gradients, more = jax.grad(agent.actor_loss, has_aux=True)(agent.actor.params, batch, key)
        agent = agent.replace(actor=agent.actor.descend(gradients, agent.actor_learning_rate(step)))
        gradients, most = jax.grad(agent.critic_loss, has_aux=True)(agent.critic.params, batch)
        critic = agent.critic.descend(gradients, c.learning_rate)
        agent = agent.replace(critic=critic, target_critic=agent.target_critic.track(critic, c.target_rate))
        return agent, metrics | more | most

    def update(self, batches: Batch, key: jax.Array, step: jax.Array) -> tuple[Self, Metrics]:
        """One gradient step per minibatch of `batches` [steps, batch_size, ...]."""
        keys = jax.random.split(key, batches.reward.shape[0])
        agent, metrics = jax.lax.scan(lambda agent, x: agent.update_once(*x, step), self, (batches, keys))
        return agent, jax.tree.map(jnp.mean, metrics)


if __name__ == "__main__":
    command.main(IQL, Config, PRESETS)
