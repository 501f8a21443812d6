"""COMBO: CQL's critics, with low values also where a learned model leads, and no estimate of its uncertainty.

Yu, Kumar, Rafailov, Rajeswaran, Levine & Finn, "COMBO: Conservative Offline Model-Based Policy Optimization", NeurIPS
2021 (arXiv:2102.08363). First an ensemble of Gaussians learns what follows (s, a) (common/dynamics.py). Then, every
`rollout_every` updates, the policy, or with `--uniform-rollouts` chance, acts in it for `rollout_length` steps from
states of the data. Per gradient step, on minibatches of which `real_ratio` is data D and the rest imagined,

    L_pi = mean_b [ alpha log pi(a~|s) - min_i Q_i(s, a~) ],  a~ ~ pi(.|s)                   COMBO.actor_loss
    min_alpha  log(alpha) (mean_b H - H_target),  H = -log pi(a~|s), H_target = -|A|         COMBO.temperature_loss
    y    = r + gamma m min_i Q'_i(s', a'),  a' ~ pi(.|s')                                    COMBO.target
    C_i  = mean_{s in rho} log sum_k exp(Q_i(s, a_k) - log p(a_k)) - mean_{s, a in D} Q_i(s, a)  COMBO.difference
    L_Q  = sum_i [ mean_b (Q_i(s, a) - y)^2 + w C_i ]                                        COMBO.critic_loss

in this order, and a step of the targets. m is the mask, 0 where an episode terminated, of imagined rows by the task's
own rule. The a_k are `--actions` actions of each of three sources: uniform, pi(.|s) and pi(.|s'); all are evaluated at
s, and p is the density that they were drawn with. rho are the states of the whole minibatch (`--rho mix`) or of its
imagined rows (`--rho model`): there values are pushed down, and up on the data alone. `--backup-entropy` subtracts
alpha log pi(a'|s') in y.

Its authors have published no code. Settings, order and rho are OfflineRL-Kit's, tuned on D4RL's -v2 data; the actor's
step size falls along a cosine. Where it has no task, as in mazes, w = 5 and rollouts of 5 steps are no more than a
beginning.

Differences from OfflineRL-Kit. There, the result of a `reshape` is thrown away, so that its sums over k have 3 terms,
one of each source, and are over ten times as many states; here they have all 30, as in CQL. Its multiplier of w, its
greatest of several actions in y, and a temperature of the sum over k, all off or 1 by default, are left out. What
mopo.py says of model, rollouts, densities and initial layers holds here, too.

Published, on D4RL's -v2 data (OfflineRL-Kit's README, 4 seeds): hopper-medium 85, halfcheetah-medium 72,
walker2d-medium 84, hopper-medium-replay 90.

    python algorithms/combo.py --env hopper-medium
    python algorithms/combo.py --env halfcheetah-medium --rho model --num-seeds 3
"""

from __future__ import annotations

from typing import Any, Literal, Self

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from common import command, presets
from common.agent import Metrics, static, traced
from common.dynamics import ModelBased, ModelData, ModelHyperparameters
from common.networks import Critic, Ensemble, Network, Parameters, Scalar, TanhNormalActor
from common.replay import Batch


class Config(ModelHyperparameters):
    """Those of the paper and of OfflineRL-Kit."""

    learning_rate: float = 3e-4  # Adam's step size, for the critics
    actor_learning_rate: float = 1e-4  # Adam's step size, for actor and temperature
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones
    weight: float = traced(5.0, "[0, inf)")  # of the conservative term (w; the paper's beta)
    rho: Literal["mix", "model"] = "mix"  # states whose values are pushed down: of all rows, or of the imagined ones
    actions: int = 10  # per source in the conservative term
    uniform_rollouts: bool = False  # rollouts with uniform actions in the place of the policy's
    backup_entropy: bool = False  # the entropy in the target, as in soft actor-critic
    target_entropy_per_action: float = -1.0  # target entropy divided by the number of action dimensions
    decay: bool = True  # the actor's step size falls to 0 along a cosine
    hidden: tuple[int, ...] = (256, 256, 256)  # width of each hidden layer of actor and critics
    batch_size: int = 256  # transitions per gradient step
    real_ratio: float = static(0.5, "(0, 1)")  # share of each minibatch that is data, rounded down
    rollout_length: int = 5  # steps of an imagined rollout
    rollout_every: int = 1000  # gradient steps from one time of imagining to the next
    rollout_batch: int = 50_000  # rollouts each time
    retained: int = 5  # times of imagining whose rows are kept
    ending: Literal["task", "never"] = "task"  # of imagined episodes: where the task's terminate, or never
    model_learning_rate: float = 1e-3  # Adam's step size, for the model
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)  # width of each hidden layer of the model
    model_weight_decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)  # of each layer's weights
    model_batch_size: int = 256  # transitions per gradient step of each member
    members: int = 7  # networks of the model
    elites: int = 5  # of them, those that imagine
    patience: int = 5  # validations in a row that may better no member
    model_steps: int = 200_000  # gradient steps of the model first, at most
    offline_steps: int = 1_000_000  # gradient steps of actor and critics

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if not self.real_rows:
            return f"--real-ratio {self.real_ratio} leaves no data in minibatches of {self.batch_size}: raise it"
        return super().conflict()


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
        "locomotion", ("rollout_length", "weight"), ("medium", "medium-replay", "medium-expert"),
        {
            "halfcheetah": ((5, 0.5), (5, 0.5), (5, 5.0)), "hopper": ((5, 5.0), (5, 0.5), (5, 5.0)),
            "walker2d": ((1, 5.0), (1, 0.5), (1, 5.0)),
        },
    ),
}  # fmt: skip


class COMBO(ModelBased):
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
        """A sample of pi(. | s)."""
        return self.actor(observation).sample(key)

    def imagined_action(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Actions of rollouts: the policy's, or uniform ones."""
        action = self.explore(observation, key)
        if not self.config.uniform_rollouts:
            return action
        return jax.random.uniform(key, action.shape, minval=-1.0, maxval=1.0)

    def draw(self, observation: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`--actions` actions of pi for observations [n, o]: [actions, n, a], and log densities [actions, n]."""
        count = self.config.actions
        policy = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), self.actor(observation))
        return policy.sample_and_log_prob(key)

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        next_action, log_prob = self.actor(batch.next_observation).sample_and_log_prob(key)
        next_q = self.target_critic(batch.next_observation, next_action).min(axis=0)
        chex.assert_equal_shape((batch.reward, batch.mask, next_q, log_prob))
        if self.config.backup_entropy:
            next_q -= self.temperature() * log_prob
        return batch.reward + self.config.discount * batch.mask * next_q

    def candidates(self, rows: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The actions a_k [3 actions, n, a], uniform ones first, and the logarithms of p [3 actions, n]."""
        uniform_key, present_key, next_key = jax.random.split(key, 3)
        shape = self.config.actions, *rows.action.shape
        uniform = jax.random.uniform(uniform_key, shape, minval=-1.0, maxval=1.0)
        present, of_present = self.draw(rows.observation, present_key)
        later, of_later = self.draw(rows.next_observation, next_key)
        of_uniform = jnp.full_like(of_present, -shape[-1] * jnp.log(2.0))
        return jnp.concatenate([uniform, present, later]), jnp.concatenate([of_uniform, of_present, of_later])

    def difference(self, params: Parameters, batch: Batch, q: jax.Array, key: jax.Array) -> jax.Array:
        """C of each critic, [2], for their values `q` [2, batch] of the minibatch's actions."""
        real = self.config.real_rows
        rows = jax.tree.map(lambda x: x[real:], batch) if self.config.rho == "model" else batch
        actions, log_density = self.candidates(rows, key)
        repeated = jnp.broadcast_to(rows.observation, (*actions.shape[:-1], rows.observation.shape[-1]))
        values = self.critic(repeated, actions, params=params)
        shape = 3 * self.config.actions, *rows.reward.shape
        chex.assert_shape((values, log_density), ((2, *shape), shape))
        return logsumexp(values - log_density, axis=1).mean(axis=-1) - q[:, :real].mean(axis=-1)

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target and the conservative term, summed over both critics."""
        target_key, action_key = jax.random.split(key)
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (2, *batch.reward.shape))
        loss = jnp.square(q - self.target(batch, target_key)).mean(axis=-1).sum()
        difference = self.difference(params, batch, q, action_key)
        metrics = {"critic_loss": loss, "difference": difference.mean(), "q": q.mean(), "reward": batch.reward.mean()}
        return loss + self.config.weight * difference.sum(), metrics

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The entropy-regularised value of the policy's own actions, negated."""
        action, log_prob = self.actor(batch.observation, params=params).sample_and_log_prob(key)
        q = self.critic(batch.observation, action).min(axis=0)
        chex.assert_equal_shape((batch.reward, q, log_prob))
        loss = (self.temperature() * log_prob - q).mean()
        return loss, {"actor_loss": loss, "entropy": -log_prob.mean()}

    def temperature_loss(self, params: Parameters, entropy: jax.Array, action_dim: int) -> tuple[jax.Array, Metrics]:
        """Falls with the temperature while the policy's entropy is above its target, and rises below it."""
        temperature = self.temperature(params=params)
        target = self.config.target_entropy_per_action * action_dim
        return jnp.log(temperature) * (entropy - target), {"temperature": temperature}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """The model in its phase; then actor and temperature, the critics by the new policy, and their targets."""
        if self.phase == "model":
            return self.update_model(batch)
        c, (actor_key, critic_key) = self.config, jax.random.split(key)
        rate = c.actor_learning_rate
        slow = 0.5 * rate * (1 + jnp.cos(jnp.pi * (number - 1) / c.offline_steps)) if c.decay else rate
        actor, metrics = self.actor.minimise(self.actor_loss, batch, actor_key, learning_rate=slow)
        inputs = metrics["entropy"], batch.action.shape[-1]
        temperature, more = self.temperature.minimise(self.temperature_loss, *inputs, learning_rate=rate)
        agent = self.replace(actor=actor, temperature=temperature)
        critic, of_critic = self.critic.minimise(agent.critic_loss, batch, critic_key, learning_rate=c.learning_rate)
        target_critic = self.target_critic.track(critic, c.target_rate)
        return agent.replace(critic=critic, target_critic=target_critic), metrics | more | of_critic


if __name__ == "__main__":
    command.main(COMBO, Config, PRESETS)
