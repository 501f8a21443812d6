"""BRAC: an actor-critic whose policy is kept near a clone of the data's, by a penalty in its loss or in its value.

Wu, Tucker & Nachum, "Behavior Regularized Offline Reinforcement Learning", 2019 (arXiv:1911.11361). First a clone b of
the policy that made the data, with an entropy bonus, for `cloning_steps`; per gradient step

    L_b    = mean_b [ tau log b(a~|s) - log b(a|s) ],  a~ ~ b(.|s)                           BRAC.cloning_loss
             min_tau tau (H[b] - H_target), H_target = -|A|, tau >= 0                        BRAC.temperature_loss

Then b stands still, and per gradient step, in this order,

             theta'_i <- (1 - rho) theta'_i + rho theta_i                                    BRAC.update_once
    y      = r + gamma m [ Q'(s', a') - beta log pi(a'|s') - alpha D(s') ],  a' ~ pi(.|s')   BRAC.target
    L_Q    = sum_i mean_b (Q_i(s, a) - y)^2                                                  BRAC.critic_loss
    L_pi   = mean_b [ beta log pi(a~|s) + alpha D(s) - w Q(s, a~) ],  a~ ~ pi(.|s)           BRAC.actor_loss
             max_alpha mean_b alpha (D(s) - epsilon), 0 <= alpha <= 500                      BRAC.weight_loss
    Q      = lambda min_i Q_i + (1 - lambda) max_i Q_i                                       BRAC.mixed
    D(s)     between pi and b, of a few samples a_k ~ pi(.|s) and b_k ~ b(.|s):              BRAC.divergence
      kl     mean_k [ log pi(a_k|s) - log b(a_k|s) ]
      mmd    mean_kl [ k(a_k, a_l) + k(b_k, b_l) - 2 k(a_k, b_l) ],  k(x, y) = exp(-|x - y|_1 / sigma)

m is the mask, 0 where an episode terminated; w is 0 for the first `warm_start` steps, else 1; alpha is learned only
with `--learned-weight`. With alpha D in y this is BRAC-v, without it (`--no-value-penalty`) BRAC-p. b's density is that
of actions clipped 0.001 inside the bounds. Both policies are Gaussians squashed by tanh, with log standard deviations
in [-5, 0]; evaluated is the mode, while the clone is learned that of the clone. Both dual forms of D are left out.

The defaults are those of the authors' script for BRAC-v; `--preset d4rl-evaluations` has the settings with which their
code was run on D4RL.

Differences. The target critics begin as copies of the critics; the authors' begin with random parameters of their own,
which only the averaging forgets. Their warm start is one step longer. They also evaluate the best of ten samples by the
first critic. What their code for D4RL does to the data (algorithms/README.md) is not done here.

Published, on D4RL's -v2 data (a table reprinted in PMDB, Guo et al., 2022): hopper-medium 78, halfcheetah-medium 52,
walker2d-medium 60. Measured on recipes, in small (benchmarks/results/lecture.md): pointmaze-medium 100;
hopper-medium-replay 13.

    python algorithms/brac.py --env hopper-medium
    python algorithms/brac.py --env hopper-medium --preset d4rl-evaluations
    python algorithms/brac.py --env hopper-medium --no-value-penalty --divergence mmd --learned-weight
"""

from __future__ import annotations

from typing import Any, Literal, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from common import command, portable
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.distributions import TanhNormal, squared_mmd
from common.networks import MLP, Critic, Dense, Ensemble, Network, Parameters
from common.portable import Portable
from common.replay import Batch


class Config(Hyperparameters):
    """Those of the authors' script, by the paper's names."""

    critic_learning_rate: float = 1e-3  # Adam's step size, for the critics
    actor_learning_rate: float = 3e-4  # Adam's step size, for the actor
    weight_learning_rate: float = 1e-3  # Adam's step size, for the weight of the divergence
    cloning_learning_rate: float = 5e-4  # Adam's step size, for the clone and its temperature
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones (rho)
    weight: float = traced(0.1, "[0, inf)")  # weight of the divergence (alpha), or where it begins if it is learned
    largest_weight: float = traced(500.0, "(0, inf)")  # where the weight is cut off
    target_divergence: float = traced(0.0, "[0, inf)")  # the divergence that a learned weight aims at (epsilon)
    entropy_weight: float = traced(0.0, "[0, inf)")  # weight of the policy's entropy (beta)
    pessimism: float = traced(1.0, "[0, 1]")  # share of the critics' minimum, the rest is their maximum (lambda)
    bandwidth: float = traced(20.0, "(0, inf)")  # of mmd's Laplacian kernel (sigma)
    divergence: Literal["kl", "mmd"] = "kl"  # Kullback-Leibler divergence or maximum mean discrepancy (D)
    divergence_samples: int = 4  # actions per policy and state that it is estimated from
    value_penalty: bool = True  # the divergence in the target: BRAC-v, without it BRAC-p
    learned_weight: bool = False  # learn the weight of the divergence
    hidden: tuple[int, ...] = (300, 300)  # width of each hidden layer of the critics
    actor_hidden: tuple[int, ...] = (200, 200)  # width of each hidden layer of actor and clone
    ensemble: int = 2  # critics
    batch_size: int = 256  # transitions per gradient step
    cloning_steps: int = 300_000  # gradient steps of the clone
    warm_start: int = static(20_000, "[0, inf)")  # first gradient steps after those in which the actor ignores values
    offline_steps: int = 500_000  # gradient steps after cloning

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("cloning", self.cloning_steps), *super().phases


PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "antmaze": {"eval_episodes": 100, "eval_every": 50_000},
    "adroit": {"eval_episodes": 100},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {
        "discount": 0.995, "hidden": (128, 128), "actor_hidden": (128, 128), "cloning_steps": 10_000,
        "warm_start": 5000, "offline_steps": 50_000, "eval_every": 5000, "eval_episodes": 100,
    },
    # By algorithm, with --preset: laid over the family's.
    "d4rl-evaluations": {
        "actor_learning_rate": 3e-5, "weight_learning_rate": 1e-5, "weight": 1.0, "value_penalty": False,
        "cloning_steps": 1_000_000, "offline_steps": 1_000_000,
    },
}  # fmt: skip


class Policy(nn.Module):
    """pi(. | s) with a state-dependent standard deviation, its logarithm squashed into (-5, 0) by tanh."""

    hidden: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, observation: jax.Array) -> TanhNormal:
        """Observation [..., o] to a distribution over actions [..., action_dim]."""
        features = MLP(self.hidden)(observation)
        mean, log_std = (Dense(self.action_dim)(features) for _ in range(2))
        return TanhNormal(mean, 2.5 * (jnp.tanh(log_std) - 1))


class Multiplier(nn.Module):
    """One learned number, as it is: where it is used it is clipped, and `bounded` brings it back."""

    @nn.compact
    def __call__(self, initial: jax.Array | float = 1.0) -> jax.Array:
        """The number; `initial` is its value before training."""
        return self.param("value", lambda _: jnp.asarray(initial, jnp.float32))


def bounded(value: jax.Array, slope: jax.Array, low: float, high: jax.Array | float) -> jax.Array:
    """A loss [] with this slope at `value` [], or none where it would push the value further out of its bounds."""
    outwards = jnp.where(slope > 0, value <= low, value >= high)
    return value * jax.lax.stop_gradient(jnp.where(outwards, 0.0, slope))


def clipped(action: jax.Array) -> jax.Array:
    """Actions [..., a], 0.001 inside their bounds: where the clone's density is read."""
    return action.clip(-1 + 1e-3, 1 - 1e-3)


class BRAC(Agent):
    """The clone and its temperature; actor, critics and their targets; and the weight of the divergence."""

    config: Config
    clone: Network
    temperature: Network
    actor: Network
    critic: Ensemble
    target_critic: Ensemble
    weight: Network

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        clone_key, actor_key, critic_key = jax.random.split(key, 3)
        policy = Policy(config.actor_hidden, example.action.shape[-1])
        clone, actor = (Network.create(policy, k, example.observation) for k in (clone_key, actor_key))
        module = Critic(config.hidden)
        critic = Ensemble.create(module, critic_key, example.observation, example.action, members=config.ensemble)
        temperature, weight = (Network.create(Multiplier(), key, x) for x in (1.0, config.weight))
        return cls(config, clone, temperature, actor, critic, critic.target(), weight)

    def act(self, observation: jax.Array) -> jax.Array:
        """The mode of pi(. | s), of the clone while it is learned."""
        return self.deciding(observation).mode()

    @property
    def deciding(self) -> Network:
        """The network of pi, or of the clone while it is learned."""
        return self.clone if self.phase == "cloning" else self.actor

    def portable(self) -> Portable:
        """The same in layers."""
        own = self.deciding.params["params"]
        networks = {
            "body": portable.mlp(own["MLP_0"]), "mean": [portable.dense(own["Dense_0"])],
            "log_std": [portable.dense(own["Dense_1"]), ("tanh",), ("scale", 2.5, -2.5)], "final": [("tanh",)],
        }  # fmt: skip
        return Portable("gaussian", networks)

    def cloning_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The likelihood of the data's actions, negated, with an entropy bonus."""
        policy = self.clone(batch.observation, params=params)
        _, log_prob = policy.sample_and_log_prob(key)
        likelihood = policy.log_prob(clipped(batch.action))
        chex.assert_equal_shape((batch.reward, log_prob, likelihood))
        loss = (jnp.maximum(self.temperature(), 0.0) * log_prob - likelihood).mean()
        return loss, {"cloning_loss": loss, "likelihood": likelihood.mean()}

    def temperature_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Falls with the temperature while the clone's entropy is above its target, and rises below it."""
        value = self.temperature(params=params)
        _, log_prob = self.clone(batch.observation).sample_and_log_prob(key)
        chex.assert_equal_shape((batch.reward, log_prob))
        entropy = -log_prob.mean()
        loss = bounded(value, entropy + batch.action.shape[-1], 0.0, jnp.inf)
        return loss, {"temperature": jnp.maximum(value, 0.0), "entropy": entropy}

    def divergence(self, params: Parameters, observation: jax.Array, key: jax.Array) -> jax.Array:
        """D, [n], of the policy with these parameters from the clone, at observations [n, o]."""
        c = self.config
        own_key, clone_key = jax.random.split(key)
        policies = self.actor(observation, params=params), self.clone(observation)
        policy, clone = jax.tree.map(lambda x: jnp.broadcast_to(x, (c.divergence_samples, *x.shape)), policies)
        action, log_prob = policy.sample_and_log_prob(own_key)
        if c.divergence == "mmd":
            samples = (jnp.moveaxis(x, 0, -2) for x in (action, clone.sample(clone_key)))
            return squared_mmd(*samples, c.bandwidth)
        likelihood = clone.log_prob(clipped(action))
        chex.assert_equal_shape((log_prob, likelihood))
        return (log_prob - likelihood).mean(axis=0)

    def alpha(self) -> jax.Array:
        """The weight of the divergence, []."""
        return self.weight().clip(0.0, self.config.largest_weight)

    def mixed(self, q: jax.Array) -> jax.Array:
        """Q, [batch], of the critics' values [critic, batch]."""
        share = self.config.pessimism
        return share * q.min(axis=0) + (1 - share) * q.max(axis=0)

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        c = self.config
        action_key, divergence_key = jax.random.split(key)
        next_action, log_prob = self.actor(batch.next_observation).sample_and_log_prob(action_key)
        value = self.mixed(self.target_critic(batch.next_observation, next_action)) - c.entropy_weight * log_prob
        if c.value_penalty:
            value -= self.alpha() * self.divergence(self.actor.params, batch.next_observation, divergence_key)
        chex.assert_equal_shape((batch.reward, batch.mask, value))
        return batch.reward + c.discount * batch.mask * value

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, summed over the critics."""
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (self.config.ensemble, *batch.reward.shape))
        loss = jnp.square(q - self.target(batch, key)).mean(axis=-1).sum()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array, w: jax.Array) -> tuple[jax.Array, Metrics]:
        """The weighted divergence from the clone, and w times the value of the policy's own actions, negated."""
        c = self.config
        action_key, divergence_key = jax.random.split(key)
        action, log_prob = self.actor(batch.observation, params=params).sample_and_log_prob(action_key)
        q = self.mixed(self.critic(batch.observation, action))
        divergence = self.divergence(params, batch.observation, divergence_key)
        chex.assert_equal_shape((batch.reward, log_prob, q, divergence))
        loss = (c.entropy_weight * log_prob + self.alpha() * divergence - w * q).mean()
        return loss, {"actor_loss": loss, "divergence": divergence.mean(), "entropy": -log_prob.mean()}

    def weight_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Falls with the weight while the divergence is above its target, and rises below it."""
        value = self.weight(params=params)
        divergence = self.divergence(self.actor.params, batch.observation, key).mean()
        high = self.config.largest_weight
        loss = bounded(value, self.config.target_divergence - divergence, 0.0, high)
        return loss, {"weight": value.clip(0.0, high)}

    def imitate(self, batch: Batch, key: jax.Array) -> tuple[Self, Metrics]:
        """One step of the clone, then one of its temperature at the entropy that it has now."""
        rate = self.config.cloning_learning_rate
        clone_key, temperature_key = jax.random.split(key)
        clone, metrics = self.clone.minimise(self.cloning_loss, batch, clone_key, learning_rate=rate)
        agent = self.replace(clone=clone)
        loss = agent.temperature_loss
        temperature, more = self.temperature.minimise(loss, batch, temperature_key, learning_rate=rate)
        return agent.replace(temperature=temperature), metrics | more

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """Target critics, critics, actor at the critics just updated, weight at the actor just updated."""
        if self.phase == "cloning":
            return self.imitate(batch, key)
        c = self.config
        critic_key, actor_key, weight_key = jax.random.split(key, 3)
        agent = self.replace(target_critic=self.target_critic.track(self.critic, c.target_rate))
        rate = c.critic_learning_rate
        critic, metrics = agent.critic.minimise(agent.critic_loss, batch, critic_key, learning_rate=rate)
        agent = agent.replace(critic=critic)
        w, rate = (number > c.warm_start).astype(jnp.float32), c.actor_learning_rate
        actor, more = agent.actor.minimise(agent.actor_loss, batch, actor_key, w, learning_rate=rate)
        agent, metrics = agent.replace(actor=actor), metrics | more
        if c.learned_weight:
            rate = c.weight_learning_rate
            weight, more = agent.weight.minimise(agent.weight_loss, batch, weight_key, learning_rate=rate)
            agent, metrics = agent.replace(weight=weight), metrics | more
        return agent, metrics


if __name__ == "__main__":
    command.main(BRAC, Config, PRESETS)
