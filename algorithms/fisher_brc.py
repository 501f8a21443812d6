"""Fisher-BRC: the critic is the log density of the data's actions plus an offset whose slope is kept small.

Kostrikov, Tompson, Fergus & Nachum, "Offline Reinforcement Learning with Fisher Divergence Critic Regularization", ICML
2021 (arXiv:2103.08050). First a model mu of the policy that made the data, with an entropy bonus, for `cloning_steps`;
per gradient step

    L_mu   = -mean_b [ log mu(a|s) + tau H(s) ],  H = -log mu(a~|s),  a~ ~ mu(.|s)           FisherBRC.cloning_loss
             min_tau tau (H - H_target), H_target = -|A|                                     FisherBRC.temperature_loss

Then mu stands still, and per gradient step, in this order,

    y      = r + b + gamma m min_i [O'_i(s', a') + log mu(a'|s')],  a' ~ pi(.|s')            FisherBRC.target
    L_O    = sum_i mean_b (O_i(s, a) + log mu(a|s) - y)^2
             + f sum_i mean_b |dO_i/da (s, a~)|^2,  a~ ~ pi(.|s)                             FisherBRC.critic_loss
             theta'_i <- (1 - rho) theta'_i + rho theta_i                                    FisherBRC.update_once
    L_pi   = mean_b [ alpha log pi(a~|s) - min_i O_i(s, a~) - log mu(a~|s) ]                 FisherBRC.actor_loss
             min_alpha alpha (H[pi] - H_target), H_target = -|A|                             FisherBRC.temperature_loss

m is the mask, 0 where an episode terminated; b is a bonus on every reward: it makes staying alive worth more, and must
be 0 where reaching the goal ends an episode, as in mazes. mu is a mixture of five Gaussians squashed by tanh for each
dimension of the action on its own; its density is that of actions clipped 1e-6 inside the bounds, and its samples have
no gradient with respect to the mixture's weights. Its step size falls to a tenth after 80 % of `cloning_steps`, and to
a hundredth after 90 %. Evaluated is pi's mode, while mu is learned that of mu's likeliest components.

Differences. The authors' hidden kernels begin orthogonal with gain sqrt 2, here Xavier-uniform; last layers begin
near 0 as theirs, here uniform in +-0.001. Their policy mu has a sample for a mode.

The paper's scores are of D4RL's -v0 data, which the tasks here do not have. Measured on recipes, in small
(benchmarks/results/lecture.md): pointmaze-medium 38; hopper-medium-replay 11.

    python algorithms/fisher_brc.py --env hopper-medium
    python algorithms/fisher_brc.py --env walker2d-medium-expert --grid.penalty 0.01 0.1 1
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp

from common import command, portable
from common.agent import Agent, Hyperparameters, Metrics, traced
from common.distributions import TanhMixture
from common.networks import Critic, Ensemble, Network, Parameters, Scalar, TanhMixtureActor, TanhNormalActor
from common.portable import Portable
from common.replay import Batch


class Config(Hyperparameters):
    """Those of the authors' training script."""

    learning_rate: float = 3e-4  # Adam's step size, for actor, critics and temperature
    cloning_learning_rate: float = 1e-3  # Adam's step size, for the behaviour model and its temperature, at first
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones (rho)
    penalty: float = traced(0.1, "[0, inf)")  # weight of the offset's squared slope (f)
    reward_bonus: float = 5.0  # added to every reward (b)
    target_entropy_per_action: float = -1.0  # target entropy divided by the number of action dimensions
    components: int = 5  # Gaussians per action dimension of the behaviour model
    hidden: tuple[int, ...] = (256, 256, 256)  # width of each hidden layer of actor and critics
    cloning_hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of the behaviour model
    batch_size: int = 256  # transitions per gradient step
    cloning_steps: int = 1_000_000  # gradient steps of the behaviour model
    offline_steps: int = 1_000_000  # gradient steps after cloning

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("cloning", self.cloning_steps), *super().phases


PRESETS: dict[str, dict[str, Any]] = {
    # By task family. Ours but for locomotion, which is all defaults: the bonus would pay for not reaching the goal.
    "antmaze": {"reward_bonus": 0.0, "eval_episodes": 100, "eval_every": 50_000},
    "adroit": {"eval_episodes": 100},
    # Small networks for a small maze, with RLPD's discount there.
    "pointmaze": {
        "reward_bonus": 0.0, "discount": 0.995, "hidden": (128, 128), "cloning_hidden": (128, 128),
        "cloning_steps": 20_000, "offline_steps": 50_000, "eval_every": 5000, "eval_episodes": 100,
    },
}  # fmt: skip


def density(model: TanhMixture, action: jax.Array) -> jax.Array:
    """log mu, [n], of actions [n, a] clipped 1e-6 inside their bounds."""
    return model.log_prob(action.clip(-1 + 1e-6, 1 - 1e-6))


class FisherBRC(Agent):
    """The behaviour model and its temperature; actor and its temperature, the critics' offsets and their targets."""

    config: Config
    behaviour: Network
    cloning_temperature: Network
    actor: Network
    critic: Ensemble
    target_critic: Ensemble
    temperature: Network

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        c = config
        behaviour_key, actor_key, critic_key = jax.random.split(key, 3)
        size = example.action.shape[-1]
        model = TanhMixtureActor(c.cloning_hidden, size, c.components, last_bound=1e-3)
        policy = TanhNormalActor(c.hidden, size, last_bound=1e-3)
        offset = Critic(c.hidden, last_bound=1e-3)
        critic = Ensemble.create(offset, critic_key, example.observation, example.action, members=2)
        return cls(
            c, Network.create(model, behaviour_key, example.observation), Network.create(Scalar(), key),
            Network.create(policy, actor_key, example.observation), critic, critic.target(),
            Network.create(Scalar(), key),
        )  # fmt: skip

    def act(self, observation: jax.Array) -> jax.Array:
        """The mode of pi(. | s), of the behaviour model while it is learned."""
        policy = self.behaviour if self.phase == "cloning" else self.actor
        return policy(observation).mode()

    def portable(self) -> Portable:
        """The same in layers."""
        return portable.actor(self.behaviour if self.phase == "cloning" else self.actor)

    def cloning_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The likelihood of the data's actions and the entropy, weighted by its temperature, negated."""
        model = self.behaviour(batch.observation, params=params)
        likelihood, entropy = density(model, batch.action), -density(model, model.sample(key))
        chex.assert_equal_shape((batch.reward, likelihood, entropy))
        loss = -(likelihood + self.cloning_temperature() * entropy).mean()
        return loss, {"cloning_loss": loss, "likelihood": likelihood.mean(), "entropy": entropy.mean()}

    def temperature_loss(self, params: Parameters, entropy: jax.Array, action_dim: int) -> tuple[jax.Array, Metrics]:
        """Of either temperature: falls with it while the entropy is above its target, and rises below it."""
        temperature = self.temperature(params=params)
        target = self.config.target_entropy_per_action * action_dim
        return temperature * (entropy - target), {"temperature": temperature}

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        c = self.config
        next_action = self.actor(batch.next_observation).sample(key)
        offset = self.target_critic(batch.next_observation, next_action).min(axis=0)
        value = offset + density(self.behaviour(batch.next_observation), next_action)
        chex.assert_equal_shape((batch.reward, batch.mask, value))
        return batch.reward + c.reward_bonus + c.discount * batch.mask * value

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, and the offset's squared slope at actions of the policy; sums of both."""
        target_key, action_key = jax.random.split(key)
        offset = self.critic(batch.observation, batch.action, params=params)
        q = offset + density(self.behaviour(batch.observation), batch.action)
        chex.assert_shape(q, (2, *batch.reward.shape))
        loss = jnp.square(q - self.target(batch, target_key)).mean(axis=-1).sum()
        action = self.actor(batch.observation).sample(action_key)
        _, slopes = self.critic.slopes(batch.observation, action, params=params)
        chex.assert_shape(slopes, (2, *batch.action.shape))
        slope = jnp.square(slopes).sum(axis=-1).mean(axis=-1).sum()
        return loss + self.config.penalty * slope, {"critic_loss": loss, "q": q.mean(), "slope": slope}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The entropy-regularised value of the policy's own actions, by the lesser critic, negated."""
        action, log_prob = self.actor(batch.observation, params=params).sample_and_log_prob(key)
        offset = self.critic(batch.observation, action).min(axis=0)
        likelihood = density(self.behaviour(batch.observation), action)
        chex.assert_equal_shape((batch.reward, log_prob, offset, likelihood))
        loss = (self.temperature() * log_prob - offset - likelihood).mean()
        return loss, {"actor_loss": loss, "likelihood": likelihood.mean(), "entropy": -log_prob.mean()}

    def cloning_rate(self, number: jax.Array) -> jax.Array:
        """The step size of the behaviour model's step `number`."""
        done, steps = number - 1, self.config.cloning_steps
        falls = jnp.where(done > 9 * steps // 10, 0.01, jnp.where(done > 8 * steps // 10, 0.1, 1.0))
        return self.config.cloning_learning_rate * falls

    def imitate(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """One step of the behaviour model, then one of its temperature at the entropy just measured."""
        rate, size = self.cloning_rate(number), batch.action.shape[-1]
        behaviour, metrics = self.behaviour.minimise(self.cloning_loss, batch, key, learning_rate=rate)
        temperature, more = self.cloning_temperature.minimise(
            self.temperature_loss, metrics["entropy"], size, learning_rate=rate
        )
        return self.replace(behaviour=behaviour, cloning_temperature=temperature), metrics | more

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """Critics, their targets, actor at the critics just updated, temperature at the entropy just measured."""
        if self.phase == "cloning":
            return self.imitate(batch, key, number)
        rate, size = self.config.learning_rate, batch.action.shape[-1]
        critic_key, actor_key = jax.random.split(key)
        critic, metrics = self.critic.minimise(self.critic_loss, batch, critic_key, learning_rate=rate)
        agent = self.replace(critic=critic, target_critic=self.target_critic.track(critic, self.config.target_rate))
        actor, more = agent.actor.minimise(agent.actor_loss, batch, actor_key, learning_rate=rate)
        temperature, last = agent.temperature.minimise(
            agent.temperature_loss, more["entropy"], size, learning_rate=rate
        )
        return agent.replace(actor=actor, temperature=temperature), metrics | more | last


if __name__ == "__main__":
    command.main(FisherBRC, Config, PRESETS)
