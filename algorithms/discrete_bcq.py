"""Discrete BCQ: double DQN that only chooses among actions which the data's own policy is likely enough to take.

Fujimoto, Conti, Ghavamzadeh & Pineau, "Benchmarking Batch Deep Reinforcement Learning Algorithms", 2019
(arXiv:1910.01708). For each action a, Q(s, a) is its value and G(a|s), a softmax of logits i(s), the behaviour policy's
probability of it. Per gradient step,

    A(s) = {a : G(a|s) / max_b G(b|s) > tau}                                                DiscreteBCQ.allowed
    y    = r + gamma m Q'(s', argmax_{a in A(s')} Q(s', a))                                 DiscreteBCQ.target
    L_Q  = mean_b huber(Q(s, a) - y)                                                        DiscreteBCQ.critic_loss
    L_G  = mean_b -log G(a|s) + c mean i(s)^2                                               DiscreteBCQ.behaviour_loss
           theta' <- (1 - rho) theta' + rho theta                                           DiscreteBCQ.update_once
    pi   = argmax_{a in A(s)} Q(s, a)                                                       DiscreteBCQ.act

m is the mask, 0 where an episode terminated; the Huber loss is quadratic up to 1. At tau = 0 every action is allowed,
and this is double DQN (van Hasselt et al., 2016); near 1 it is imitation. `--preset dqn` is DQN (Mnih et al., 2015)
with these networks: tau = 0, and the target network also chooses. `--preset dqn-online` is the same without data: it is
how the authors train the policy that collects theirs, and how this project's were (benchmarks/makers/
classic_policies.py). Online, an action is drawn uniformly with probability epsilon, from all there are. Actions are
one-hot vectors.

Differences from the authors' code. Networks of vectors only, without their convolutions, and so none of their settings
for Atari. Their one optimizer of Q and G is two here, which is the same: they share no parameter. Xavier-uniform
kernels. Their DQN has no G; here it is learnt, and not asked. They only learn from data; the online phase is ours.

The paper publishes curves for nine Atari games alone. Measured on recipes, in small (benchmarks/results/lecture.md):
cartpole-mixed 99.5, DQN -3; acrobot-mixed 97, DQN 101.

    python algorithms/discrete_bcq.py --env cartpole-mixed
    python algorithms/discrete_bcq.py --env CartPole-v1 --preset dqn-online
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from common import command, portable
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.distributions import one_hot_argmax
from common.networks import MLP, Dense, Network, Parameters
from common.portable import Portable
from common.replay import Batch


class Config(Hyperparameters):
    """Those of the authors' code for vectors as observations."""

    learning_rate: float = 3e-4  # Adam's step size, for both networks
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target network towards the online one (rho)
    threshold: float = traced(0.3, "[0, 1)")  # least probability of an action, as a share of the likeliest one's (tau)
    double_q: bool = True  # next actions are the online network's choice; otherwise the target network's
    logit_penalty: float = traced(0.01, "[0, inf)")  # weight of the squared logits of the behaviour policy (c)
    hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of both networks
    exploration: float = traced(0.1, "[0, 1]")  # probability of a uniformly random action online (epsilon)
    batch_size: int = 64  # transitions per gradient step
    utd: int = 1  # gradient steps per environment step
    offline_steps: int = static(1_000_000, "[0, inf)")  # gradient steps on the data
    online_steps: int = 0  # environment steps afterwards
    start_training: int = 0  # environment steps before the first update online; random ones without offline phase

    discrete_actions = True
    default_task = "cartpole-mixed"
    without_data = "--offline-steps 0"

    @property
    def random_steps(self) -> int:
        """Environment steps with random actions."""
        return 0 if self.offline_steps else self.start_training

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if self.online_steps and self.start_training >= self.online_steps:
            return (
                f"--start-training {self.start_training} leaves no step online to learn at: it must be below "
                f"--online-steps {self.online_steps}"
            )
        return None


DQN: dict[str, Any] = {"threshold": 0.0, "double_q": False}

PRESETS: dict[str, dict[str, Any]] = {
    # Ours: few updates for small tasks.
    "classic": {"offline_steps": 50_000},
    # By algorithm, with --preset: the authors' DQN, on data and as they train it in an environment.
    "dqn": DQN,
    "dqn-online": DQN | {"offline_steps": 0, "online_steps": 50_000, "start_training": 1000},
}


class Scores(nn.Module):
    """A number for each action: its value, or its logit."""

    hidden: Sequence[int]
    actions: int

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """Observation [..., o] to [..., actions]."""
        return Dense(self.actions)(MLP(self.hidden)(observation))


class DiscreteBCQ(Agent):
    """Q, its target, and the behaviour policy."""

    config: Config
    critic: Network
    target_critic: Network
    behaviour: Network

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch | None) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        module = Scores(config.hidden, example.action.shape[-1])
        critic, behaviour = (Network.create(module, k, example.observation) for k in jax.random.split(key))
        return cls(config, critic, critic.target(), behaviour)

    def allowed(self, logits: jax.Array) -> jax.Array:
        """Whether the behaviour policy of these logits [..., action] is likely enough to take each action, bool."""
        return logits - logits.max(-1, keepdims=True) > jnp.log(self.config.threshold)

    def greedy(self, observation: jax.Array, critic: Network) -> jax.Array:
        """The allowed action that `critic` values most, one-hot [..., action]."""
        return one_hot_argmax(jnp.where(self.allowed(self.behaviour(observation)), critic(observation), -jnp.inf))

    def act(self, observation: jax.Array) -> jax.Array:
        """The allowed action of the largest value."""
        return self.greedy(observation, self.critic)

    def portable(self) -> Portable:
        """The same in layers."""
        values, behaviour = (
            [*portable.mlp(own["MLP_0"]), portable.dense(own["Dense_0"])]
            for own in (self.critic.params["params"], self.behaviour.params["params"])
        )
        networks = {"values": values, "behaviour": behaviour}
        return Portable("greedy", networks, {"threshold": float(self.config.threshold)})

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """The same, or with probability epsilon any action."""
        whether_key, action_key = jax.random.split(key)
        action = self.act(observation)
        uniform = one_hot_argmax(jax.random.uniform(action_key, action.shape))
        is_random = jax.random.uniform(whether_key, action.shape[:-1]) < self.config.exploration
        return jnp.where(is_random[..., None], uniform, action)

    def target(self, batch: Batch) -> jax.Array:
        """The regression target y, [batch]."""
        chooser = self.critic if self.config.double_q else self.target_critic
        next_action = self.greedy(batch.next_observation, chooser)
        next_q = (self.target_critic(batch.next_observation) * next_action).sum(-1)
        chex.assert_equal_shape((batch.reward, batch.mask, next_q))
        return batch.reward + self.config.discount * batch.mask * next_q

    def critic_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Huber's loss of the data's actions."""
        q = self.critic(batch.observation, params=params)
        chex.assert_equal_shape((batch.action, q))
        q = (q * batch.action).sum(-1)
        target = self.target(batch)
        chex.assert_equal_shape((batch.reward, q, target))
        loss = optax.huber_loss(q, target).mean()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def behaviour_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Cross entropy of the data's actions, and the squared logits."""
        logits = self.behaviour(batch.observation, params=params)
        chex.assert_equal_shape((batch.action, logits))
        cross_entropy = -(nn.log_softmax(logits) * batch.action).sum(-1).mean()
        loss = cross_entropy + self.config.logit_penalty * jnp.square(logits).mean()
        return loss, {"behaviour_loss": loss, "allowed": self.allowed(logits).mean()}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """Both networks at once, then the target."""
        rate = self.config.learning_rate
        critic, metrics = self.critic.minimise(self.critic_loss, batch, learning_rate=rate)
        behaviour, more = self.behaviour.minimise(self.behaviour_loss, batch, learning_rate=rate)
        target_critic = self.target_critic.track(critic, self.config.target_rate)
        return self.replace(critic=critic, behaviour=behaviour, target_critic=target_critic), metrics | more


if __name__ == "__main__":
    command.main(DiscreteBCQ, Config, PRESETS)
