"""MOPO: soft actor-critic in a learned model, whose rewards are lower where it is uncertain.

Yu, Thomas, Yu, Ermon, Zou, Levine, Finn & Ma, "MOPO: Model-based Offline Policy Optimization", NeurIPS 2020
(arXiv:2005.13239). First an ensemble of Gaussians N(mu_i, sigma_i) learns what follows (s, a): s' and r
(common/dynamics.py). Then, every `rollout_every` updates, the policy acts in it for `rollout_length` steps from states
of the data, with rewards

    r~ = r - lambda u(s, a),   u = max_i |sigma_i(s, a)|                                    MOPO.imagined_reward
         or, with `--uncertainty disagreement`, max_i |mu_i - mean_j mu_j| of s'            MOPO.uncertainty

and soft actor-critic takes a step per minibatch, of which `real_ratio` is data and the rest imagined:

    y    = r + gamma m (min_i Q'_i(s', a') - alpha log pi(a'|s')),  a' ~ pi(.|s')           MOPO.target
    L_Q  = sum_i mean_b (Q_i(s, a) - y)^2                                                   MOPO.critic_loss
    L_pi = mean_b [ alpha log pi(a~|s) - min_i Q_i(s, a~) ],  a~ ~ pi(.|s)                  MOPO.actor_loss
    min_alpha  log(alpha) (mean_b H - H_target),  H = -log pi(a~|s)                         MOPO.temperature_loss

in this order, and a step of the targets. m is the mask, 0 where an episode terminated: of imagined rows by the task's
own rule (tasks.py), after which a rollout goes on nowhere. `--model-steps` is the most that the model learns; it stops
by itself (common/dynamics.py), and later steps change nothing.

Settings are OfflineRL-Kit's, which were tuned anew for D4RL's -v2 data and have the order above; the actor's step size
falls along a cosine. `--preset authors-code` has those of the authors for -v0. Where neither has a task, as in mazes
and for random and expert data, rollouts of 5 steps and lambda 1 are no more than a beginning.

Differences. In the authors' code all gradients are taken before the first step. Both codes shuffle each member's
bootstrap and go through it; here minibatches are drawn of it, and as many as it has make the interval of validation.
The inputs' mean and deviation are those of all data. OfflineRL-Kit ends rollouts of halfcheetah where a number leaves
+-100. Its densities have 1e-6 in the logarithm; ours are exact. Hidden layers of actor and critics begin
Xavier-uniform. Both copies of the best layers leave the bounds on the variance as they are now; so does this.

Published, on D4RL's -v2 data (OfflineRL-Kit's README, 4 seeds): hopper-medium 63, halfcheetah-medium 72,
walker2d-medium 84, hopper-medium-replay 93.

    python algorithms/mopo.py --env hopper-medium
    python algorithms/mopo.py --env hopper-medium --grid.penalty 1 5 --num-seeds 3
"""

from __future__ import annotations

from typing import Any, Literal, Self

import chex
import jax
import jax.numpy as jnp

from common import command, presets
from common.agent import Metrics, static, traced
from common.dynamics import ModelBased, ModelData, ModelHyperparameters, Prediction
from common.networks import Critic, Ensemble, Network, Parameters, Scalar, TanhNormalActor
from common.replay import Batch


class Config(ModelHyperparameters):
    """Those of the paper and its code, by the paper's names."""

    learning_rate: float = 3e-4  # Adam's step size, for the critics
    actor_learning_rate: float = 1e-4  # Adam's step size, for actor and temperature
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones
    penalty: float = traced(1.0, "[0, inf)")  # weight of the uncertainty in imagined rewards (lambda)
    uncertainty: Literal["deviation", "disagreement"] = "deviation"  # by which imagined rewards are lowered (u)
    target_entropy_per_action: float = -1.0  # target entropy divided by the number of action dimensions
    greatest_temperature: float = traced(1.0, "(0, inf)")  # in losses, the temperature is at most this
    decay: bool = True  # the actor's step size falls to 0 along a cosine
    hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of actor and critics
    batch_size: int = 256  # transitions per gradient step
    real_ratio: float = static(0.05, "[0, 1)")  # share of each minibatch that is data, rounded down
    rollout_length: int = 5  # steps of an imagined rollout (h)
    rollout_every: int = 1000  # gradient steps from one time of imagining to the next
    rollout_batch: int = 50_000  # rollouts each time
    retained: int = 5  # times of imagining whose rows are kept
    ending: Literal["task", "never"] = "task"  # of imagined episodes: where the task's terminate, or never
    model_learning_rate: float = 1e-3  # Adam's step size, for the model
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)  # width of each hidden layer of the model
    model_weight_decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)  # of each layer's weights (w)
    model_batch_size: int = 256  # transitions per gradient step of each member
    members: int = 7  # networks of the model
    elites: int = 5  # of them, those that imagine
    patience: int = 5  # validations in a row that may better no member
    model_steps: int = 200_000  # gradient steps of the model first, at most
    offline_steps: int = 3_000_000  # gradient steps of actor and critics


QUALITIES = ("random", "medium", "medium-replay", "medium-expert")
FIELDS = ("rollout_length", "penalty")

PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "antmaze": {"eval_episodes": 100, "eval_every": 50_000},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {
        "discount": 0.995, "hidden": (128, 128), "model_hidden": (128, 128), "model_weight_decay": (2.5e-5, 5e-5, 1e-4),
        "rollout_batch": 5000, "model_steps": 20_000, "offline_steps": 50_000, "eval_every": 5000, "eval_episodes": 100,
    },
    # By task: OfflineRL-Kit's.
    **presets.table(
        "locomotion", FIELDS, QUALITIES[1:],
        {
            "halfcheetah": ((5, 0.5), (5, 0.5), (5, 2.5)), "hopper": ((5, 5.0), (5, 2.5), (5, 5.0)),
            "walker2d": ((5, 0.5), (1, 2.5), (1, 2.5)),
        },
    ),
    # By algorithm, with --preset: laid over the task's.
    "authors-code": {"actor_learning_rate": 3e-4, "decay": False, "greatest_temperature": 1e9},
    # By algorithm and task: laid over the algorithm's. The target entropy is -3 in all of them.
    **presets.table(
        "authors-code", (*FIELDS, "target_entropy_per_action"), QUALITIES,
        {
            "halfcheetah": ((5, 0.5, -0.5), (1, 1.0, -0.5), (5, 1.0, -0.5), (5, 5.0, -0.5)),
            "hopper": ((5, 1.0, -1.0), (5, 5.0, -1.0), (5, 1.0, -1.0), (5, 1.0, -1.0)),
            "walker2d": ((1, 1.0, -0.5), (5, 5.0, -0.5), (1, 1.0, -0.5), (1, 2.0, -0.5)),
        },
    ),
}  # fmt: skip


class MOPO(ModelBased):
    """Model, actor, two critics and their targets, and temperature."""

    config: Config
    actor: Network
    critic: Ensemble
    target_critic: Ensemble
    temperature: Network

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: ModelData) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        actor_key, critic_key, temperature_key, model_key = jax.random.split(key, 4)
        policy = TanhNormalActor(config.hidden, example.action.shape[-1], least_log_std=-5.0)
        module = Critic(config.hidden)
        critic = Ensemble.create(module, critic_key, example.observation, example.action, members=2)
        return cls(
            config, cls.fresh_dynamics(config, model_key, prior), None, jnp.zeros(2, jnp.uint32),
            Network.create(policy, actor_key, example.observation), critic, critic.target(),
            Network.create(Scalar(), temperature_key),
        )  # fmt: skip

    def act(self, observation: jax.Array) -> jax.Array:
        """The mode of pi(. | s)."""
        return self.actor(observation).mode()

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """A sample of pi(. | s), in rollouts, too."""
        return self.actor(observation).sample(key)

    def uncertainty(self, prediction: Prediction) -> jax.Array:
        """u, [n]."""
        if self.config.uncertainty == "deviation":
            return jnp.linalg.norm(prediction.deviation, axis=-1).max(axis=0)
        mean = prediction.mean[..., :-1]
        return jnp.linalg.norm(mean - mean.mean(axis=0), axis=-1).max(axis=0)

    def imagined_reward(self, prediction: Prediction) -> jax.Array:
        """r~, [n]."""
        return prediction.reward - self.config.penalty * self.uncertainty(prediction)

    def alpha(self) -> jax.Array:
        """The temperature as losses see it, []."""
        return jnp.minimum(self.temperature(), self.config.greatest_temperature)

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        next_action, log_prob = self.actor(batch.next_observation).sample_and_log_prob(key)
        next_q = self.target_critic(batch.next_observation, next_action).min(axis=0)
        chex.assert_equal_shape((batch.reward, batch.mask, next_q, log_prob))
        return batch.reward + self.config.discount * batch.mask * (next_q - self.alpha() * log_prob)

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, summed over both critics."""
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (2, *batch.reward.shape))
        loss = jnp.square(q - self.target(batch, key)).mean(axis=-1).sum()
        return loss, {"critic_loss": loss, "q": q.mean(), "reward": batch.reward.mean()}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The entropy-regularised value of the policy's own actions, negated."""
        action, log_prob = self.actor(batch.observation, params=params).sample_and_log_prob(key)
        q = self.critic(batch.observation, action).min(axis=0)
        chex.assert_equal_shape((batch.reward, q, log_prob))
        loss = (self.alpha() * log_prob - q).mean()
        return loss, {"actor_loss": loss, "entropy": -log_prob.mean()}

    def temperature_loss(self, params: Parameters, entropy: jax.Array, action_dim: int) -> tuple[jax.Array, Metrics]:
        """Falls with the temperature while the policy's entropy is above its target, and rises below it."""
        temperature = self.temperature(params=params)
        target = self.config.target_entropy_per_action * action_dim
        return jnp.log(temperature) * (entropy - target), {"temperature": temperature}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """The model in its phase; then the critics, the actor by the new critics, temperature and targets."""
        if self.phase == "model":
            return self.update_model(batch)
        c, (critic_key, actor_key) = self.config, jax.random.split(key)
        rate = c.actor_learning_rate
        slow = 0.5 * rate * (1 + jnp.cos(jnp.pi * (number - 1) / c.offline_steps)) if c.decay else rate
        critic, metrics = self.critic.minimise(self.critic_loss, batch, critic_key, learning_rate=c.learning_rate)
        agent = self.replace(critic=critic)
        actor, more = agent.actor.minimise(agent.actor_loss, batch, actor_key, learning_rate=slow)
        inputs = more["entropy"], batch.action.shape[-1]
        temperature, of_temperature = self.temperature.minimise(self.temperature_loss, *inputs, learning_rate=rate)
        target_critic = self.target_critic.track(critic, c.target_rate)
        agent = agent.replace(actor=actor, temperature=temperature, target_critic=target_critic)
        return agent, metrics | more | of_temperature


if __name__ == "__main__":
    command.main(MOPO, Config, PRESETS)
