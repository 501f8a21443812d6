"""AWR and MARWIL: cloning weighted by the exponential of the advantage, which one regression of returns tells.

Peng, Kumar, Zhang & Levine, "Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning",
2019 (arXiv:1910.00177), on data alone. An iteration is `value_steps` gradient steps of V, then `actor_steps` of the
policy. Before each of the two parts, of all data at once, backwards through every episode,

    R_t  = r_t + gamma ((1 - lambda) V(s_t+1) + lambda R_t+1), at its end r_t + gamma m V(s_t+1)   AWR.returns
    A    = (R - V(s)), without its mean, in units of its standard deviation                        AWR.evaluate

and per gradient step, on a minibatch

    L_V  = 1/2 mean_b (R - V(s))^2                                                                 AWR.value_loss
    L_pi = -mean_b w log pi(a|s) + kappa/2 mean_b |mu(s) - clip(mu(s), +-1)|^2                     AWR.actor_loss
    w    = min(exp(k A), 20)                                                                       AWR.weight

m is the mask, 0 where an episode terminated; lambda 1 gives Monte-Carlo returns; w has no gradient. Returns are learnt
in units of 1 / (1 - gamma). The policy is a Gaussian with a fixed standard deviation and a mean that is not squashed;
evaluated is its mean. Both networks learn by gradient descent with momentum. Observations are normalised.

`--preset marwil` is Wang et al., "Exponentially Weighted Imitation Learning for Batched Historical Data", NeurIPS 2018,
as in RLlib: V and policy take every step together, by Adam, from Monte-Carlo returns; the advantage is that of the V of
this step, in units of a moving estimate c of its size, and the deviation is learnt (its bonus: `--log-std-bonus`),

    c^2 <- c^2 + rho (mean_b (R - V(s))^2 - c^2),  then  w = exp(k (R - V(s)) / c)                 AWR.update_both

With k = 0 the policy is cloned, whatever V.

Differences from the authors' code. Theirs collects experience between iterations; here the data are all there is, all
of them, and R is computed with their true ends. (D4RL's AWR kept the last 50,000 transitions, and its episodes
straddled two.) The temperature is that of standardised advantages, 1, as in their code; the paper's 0.05 is of raw
ones. Minibatches are drawn uniformly; theirs walk a shuffled list. The biases of the policy's last layer begin within
0.01 of zero, theirs at zero. From RLlib: ReLU in the place of tanh; R is renewed once per iteration; c^2 begins at
100 and moves by rho = 1e-2 per step, on returns in units of 1 / (1 - gamma). RLlib's rho 1e-8 on plain returns leaves
c at 10: that is `--moving-rate 1e-8 --return-unit 1`. Weights are cut off at 1e6, theirs nowhere. A coefficient of the
value's loss, which Adam undoes, is left out. The bonus is a mean over dimensions, as in its torch policy.

Published: nothing on D4RL's -v2 data. Measured on recipes, in small (benchmarks/results/lecture.md): pointmaze-medium
65, MARWIL 82; hopper-medium-replay 24, MARWIL 27.

    python algorithms/awr.py --env hopper-medium
    python algorithms/awr.py --env hopper-medium --preset marwil
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import command, portable, presets, replay, tasks
from common.agent import MISSING, Agent, Hyperparameters, Metrics, traced
from common.datasets import Dataset
from common.distributions import Normal
from common.networks import MLP, Dense, MomentumNetwork, Network, Normaliser, Parameters, Value
from common.portable import Portable
from common.replay import Batch, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """The authors' values, by the paper's names."""

    learning_rate: float = 1e-2  # step size of the value
    actor_learning_rate: float = 5e-5  # step size of the actor
    discount: float = 0.99  # discount factor (gamma)
    td_lambda: float = traced(0.95, "[0, 1]")  # of the returns (lambda): 1 is Monte Carlo, 0 one step
    inverse_temperature: float = traced(1.0, "[0, inf)")  # of the advantage in cloning (k, MARWIL's beta); 0 clones
    largest_weight: float = traced(20.0, "(0, inf)")  # where the weight is cut off
    weighting: Literal["standardised", "moving"] = "standardised"  # what brings advantages to scale; "moving": MARWIL
    moving_rate: float = traced(1e-2, "[0, 1]")  # step of the moving estimate of the squared advantage (rho)
    moving_start: float = traced(100.0, "(0, inf)")  # where that estimate begins
    return_unit: float = traced(100.0, "(0, inf)")  # unit in which returns are learnt: 1 / (1 - discount)
    std: float = traced(0.4, "(0, inf)")  # standard deviation of the policy
    learned_std: bool = False  # learn the deviation instead, per state
    log_std_bonus: float = traced(0.0, "[0, inf)")  # weight of the logarithm of the learnt deviation in cloning
    bound_penalty: float = traced(10.0, "[0, inf)")  # on means outside the actions there are (kappa)
    adam: bool = False  # Adam in the place of gradient descent with a momentum of 0.9
    hidden: tuple[int, ...] = (128, 64)  # width of each hidden layer of both networks
    normalise: bool = True  # normalise observations with the data's mean and standard deviation
    batch_size: int = 256  # transitions per gradient step
    value_steps: int = 200  # gradient steps of the value per iteration
    actor_steps: int = 1000  # gradient steps of the actor per iteration
    offline_steps: int = 1_200_000  # gradient steps, of both

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if self.log_std_bonus != 0 and not self.learned_std:
            return "--log-std-bonus needs a deviation that is learnt: --learned-std"
        return None


PRESETS: dict[str, dict[str, Any]] = {
    # By task family: what the authors' code has for the ant, and for a name that it does not know.
    "antmaze": {"std": 0.2, "eval_episodes": 100, "eval_every": 60_000},
    "adroit": {"std": 0.2},
    "adroit-binary": {"std": 0.2, "eval_episodes": 100},
    # Ours: a small maze.
    "pointmaze": {
        "discount": 0.995, "return_unit": 200.0, "std": 0.2, "actor_learning_rate": 1e-4, "offline_steps": 60_000,
        "eval_every": 6000, "eval_episodes": 100,
    },
    # By task: laid over the family's.
    **presets.each("locomotion", ("hopper",), tasks.QUALITIES, actor_learning_rate=1e-4),
    **presets.each("locomotion", ("halfcheetah",), tasks.QUALITIES, actor_learning_rate=5e-5),
    **presets.each("locomotion", ("walker2d",), tasks.QUALITIES, actor_learning_rate=2.5e-5),
    # By algorithm, with --preset: laid over the task's. RLlib's, but for what the docstring names.
    "marwil": {
        "weighting": "moving", "learning_rate": 1e-4, "actor_learning_rate": 1e-4, "td_lambda": 1.0, "adam": True,
        "largest_weight": 1e6, "learned_std": True, "bound_penalty": 0.0, "hidden": (256, 256), "batch_size": 2000,
        "normalise": False,
    },
}  # fmt: skip


class Prior(Batch):
    """The data, with where their episodes end."""

    ends: jax.Array
    """int [episodes]: the last row of each."""


class Rows(Batch):
    """Minibatches, with what all data have told of them."""

    target: jax.Array
    """[...]: R."""
    advantage: jax.Array
    """[...]: A, brought to scale."""


class Gaussian(nn.Module):
    """A Gaussian around an affine mean."""

    hidden: tuple[int, ...]
    action_dim: int
    learned_std: bool

    @nn.compact
    def __call__(self, observation: jax.Array, std: jax.Array | float) -> Normal:
        """Observation [..., o], and the deviation [] unless it is learnt, to a distribution over actions [..., a]."""
        features = MLP(self.hidden)(observation)
        mean = Dense(self.action_dim, 0.01)(features)
        if self.learned_std:
            return Normal(mean, Dense(self.action_dim, 0.01)(features).clip(-20.0, 20.0))
        return Normal(mean, jnp.log(std) * jnp.ones(self.action_dim))


class AWR(Agent):
    """Actor and value, and what the value says of all data."""

    config: Config
    normal: Normaliser
    target: jax.Array
    """[n]: R of the data, renewed as often as V is evaluated on all of them."""
    advantage: jax.Array
    """[n]: A of the data, standardised."""
    square: jax.Array
    """[]: c^2, the moving estimate of the squared advantage."""
    actor: Network
    value: Network

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Prior:
        """The data, and where their episodes end."""
        return Prior(**vars(data.batch(task)), ends=np.flatnonzero(data.terminated | data.truncated))

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Prior) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        actor_key, value_key = jax.random.split(key)
        kind = Network if config.adam else MomentumNetwork
        policy = Gaussian(config.hidden, example.action.shape[-1], config.learned_std)
        actor = kind.create(policy, actor_key, example.observation, config.std)
        value = kind.create(Value(config.hidden), value_key, example.observation)
        nothing = jnp.zeros_like(prior.reward)
        square = jnp.asarray(config.moving_start, jnp.float32)
        return cls(config, Normaliser.of(prior.observation, config.normalise), nothing, nothing, square, actor, value)

    def act(self, observation: jax.Array) -> jax.Array:
        """The mean of pi(. | s), clipped to the actions there are."""
        return self.actor(self.normal(observation), self.config.std).mode().clip(-1, 1)

    def portable(self) -> Portable:
        """The same in layers."""
        own = self.actor.params["params"]
        log_std: list = [("constant", np.log(self.config.std) * np.ones(own["Dense_0"]["bias"].shape))]
        if self.config.learned_std:
            log_std = [portable.dense(own["Dense_1"]), ("clip", -20.0, 20.0)]
        networks = {
            "body": portable.mlp(own["MLP_0"]), "mean": [portable.dense(own["Dense_0"])], "log_std": log_std,
            "final": [("clip", -1.0, 1.0)],
        }  # fmt: skip
        return Portable("gaussian", networks, normal=self.normal)

    def returns(self, prior: Prior) -> tuple[jax.Array, jax.Array]:
        """R and V(s) of all data, [n] each."""
        c = self.config

        def v(observation: jax.Array) -> jax.Array:
            return c.return_unit * jax.lax.map(lambda x: self.value(self.normal(x)), observation, batch_size=4096)

        value = v(prior.observation)
        ahead = jnp.roll(value, -1).at[prior.ends].set(v(prior.next_observation[prior.ends]))
        share = jnp.full_like(value, c.discount * c.td_lambda).at[prior.ends].set(0.0)
        own = prior.reward + (c.discount - share) * prior.mask * ahead

        return replay.accumulated(own, share), value

    def evaluate(self, prior: Prior) -> Self:
        """The agent with the returns and the standardised advantages of all data under the present V."""
        target, value = self.returns(prior)
        advantage = target - value
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
        return self.replace(target=target, advantage=advantage)

    def renew(self, step: jax.Array, prior: Prior) -> Self:
        """Evaluated before each part of an iteration."""
        place = (step - 1) % (self.config.value_steps + self.config.actor_steps)
        due = (place == 0) | (place == self.config.value_steps)
        return jax.lax.cond(due, AWR.evaluate, lambda agent, prior: agent, self, prior)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Rows:
        """Uniform minibatches, normalised, with returns and advantages."""
        rows = Rows(**vars(prior.transitions()), target=self.target, advantage=self.advantage)
        return replay.sample(key, rows, rows.reward.shape[0], (1, self.config.batch_size)).normalised(self.normal)

    def value_loss(self, params: Parameters, batch: Rows) -> tuple[jax.Array, Metrics]:
        """Half the squared error to R, in its unit."""
        value, target = self.value(batch.observation, params=params), batch.target / self.config.return_unit
        chex.assert_equal_shape((batch.reward, value, target))
        loss = 0.5 * jnp.square(target - value).mean()
        return loss, {"value_loss": loss, "value": self.config.return_unit * value.mean()}

    def weight(self, advantage: jax.Array) -> jax.Array:
        """w, [batch], of advantages [batch] that were brought to scale."""
        return jnp.minimum(jnp.exp(self.config.inverse_temperature * advantage), self.config.largest_weight)

    def actor_loss(self, params: Parameters, batch: Rows) -> tuple[jax.Array, Metrics]:
        """Weighted cloning, with a penalty on means that are no actions."""
        c = self.config
        policy = self.actor(batch.observation, c.std, params=params)
        weight = self.weight(batch.advantage)
        log_prob = policy.log_prob(batch.action)
        log_std = policy.log_std.mean(axis=-1)
        outside = jnp.square(policy.mean - policy.mean.clip(-1, 1)).sum(axis=-1)
        chex.assert_equal_shape((batch.reward, weight, log_prob, outside))
        loss = -(weight * (log_prob + c.log_std_bonus * log_std)).mean() + c.bound_penalty * 0.5 * outside.mean()
        return loss, {"actor_loss": loss, "weight": weight.mean(), "std": jnp.exp(log_std).mean()}

    def update_value(self, batch: Rows) -> tuple[Self, Metrics]:
        """One step of the value."""
        value, metrics = self.value.minimise(self.value_loss, batch, learning_rate=self.config.learning_rate)
        return self.replace(value=value), metrics

    def update_actor(self, batch: Rows) -> tuple[Self, Metrics]:
        """One step of the actor."""
        actor, metrics = self.actor.minimise(self.actor_loss, batch, learning_rate=self.config.actor_learning_rate)
        return self.replace(actor=actor), metrics

    def update_both(self, batch: Rows) -> tuple[Self, Metrics]:
        """MARWIL's step: the estimate c^2, then the actor and the value, both with the V before it."""
        advantage = (batch.target / self.config.return_unit) - self.value(batch.observation)
        chex.assert_equal_shape((batch.reward, advantage))
        square = self.square + self.config.moving_rate * (jnp.square(advantage).mean() - self.square)
        scaled = advantage / (1e-8 + jnp.sqrt(square))
        agent, metrics = self.replace(square=square).update_actor(batch.replace(advantage=scaled))
        agent, more = agent.update_value(batch)
        return agent, metrics | more | {"squared_advantage": square}

    def update_once(self, batch: Rows, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """In each iteration steps of the value, then steps of the actor; with the moving estimate, both at once."""
        c = self.config
        if c.weighting == "moving":
            return self.update_both(batch)
        unknown = dict.fromkeys(
            ("value_loss", "value", "actor_loss", "weight", "std"), jnp.full((), MISSING, batch.reward.dtype)
        )

        def only(part: Callable[[Self, Rows], tuple[Self, Metrics]]) -> tuple[Self, Metrics]:
            agent, metrics = part(self, batch)
            return agent, unknown | metrics

        place = (number - 1) % (c.value_steps + c.actor_steps)
        return jax.lax.cond(place < c.value_steps, lambda: only(AWR.update_value), lambda: only(AWR.update_actor))


if __name__ == "__main__":
    command.main(AWR, Config, PRESETS)
