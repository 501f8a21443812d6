"""EDAC and SAC-N: soft actor-critic from data alone, kept pessimistic by the minimum over many critics.

An, Moon, Kim & Song, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", NeurIPS 2021
(arXiv:2110.01548). Per step, in the order of CORL's code and of "First Imitate",

    min_alpha  log(alpha) (mean_b H - H_target),  H = -log pi(a~|s),  H_target = -|A|        EDAC.temperature_loss
    L_pi = mean_b [ alpha log pi(a~|s) - min_j Q_j(s, a~) ]                                  EDAC.actor_loss
    y    = r + gamma m (min_j Q'_j(s', a') - alpha log pi(a'|s'))                            EDAC.target
    L_Q  = sum_i mean_b (Q_i(s, a) - y)^2
           + eta / (N - 1) mean_b sum_{i != j} <g_i, g_j>,  g_i = dQ_i/da / |dQ_i/da|        EDAC.critic_loss

and one step of the targets. a~ and a' are sampled from pi, j runs over all N critics, m is the mask, 0 where an episode
terminated. The second line of L_Q keeps the critics from agreeing on where the value falls, so that fewer of them are
needed; without it (`--no-diversity --eta 0`, `--preset sac-n`) this is SAC-N, of the same paper. Where N and eta of
every data set are from: algorithms/README.md.

`--pretrain-steps N` is the maximum-entropy form of Jelley et al., "Efficient Offline Reinforcement Learning: First
Imitate, then Improve" (2024): first, half of N steps of cloning with an entropy bonus, alpha adapted as above,

    L_pi = mean_b [ alpha log pi(a~|s) - log pi(a|s) ]                                       EDAC.cloning_loss

then, for the other half, the critics learn soft returns of the data under the cloned policy,

    R_t  = r_t + gamma (alpha H_{t+1} + R_{t+1})                                             soft_returns
    L_Q  = mean_i mean_b (Q_i(s, a) - R)^2 + the diversity term                              EDAC.returns_loss

where nothing follows a termination, and the last reward and entropy of an episode that did not terminate go on for
ever. `--cloning w` is their hybrid for Adroit: L_pi / |L_pi| + w C / |C| with C = mean_b (a~ - a)^2, the sizes without
gradient. `--layer-norm` puts LayerNorm into all networks, which they advise. Presets `imitate-first`, which knows their
steps of every data set and their N and eta of antmaze-umaze, and `imitate-first-adroit` hold these settings, with one
learning rate and rewards as they are.

`--online-steps N` goes on in the environment, minibatches drawn uniformly from data and experience together.

Differences that meet the eye (all of them: algorithms/README.md). An et al. take all gradients before the first step.
Their densities, and CORL's, have 1e-6 inside log(1 - a^2 + 1e-6); here they are exact. One sample a~ serves temperature
and actor, as in An et al.; CORL draws two. The sum over pairs is |sum_i g_i|^2 - sum_i |g_i|^2: N terms instead of N^2.
The code of "First Imitate" divides the hybrid's loss by its signed value, which turns the actor against its critics
where the loss is negative.

Published, on D4RL's -v2 data (final scores, CORL's README), EDAC and SAC-N: hopper-medium 102 and 41,
halfcheetah-medium 68 and 68, walker2d-medium 93 and 87. Measured here, in small: algorithms/README.md.

    python algorithms/edac.py --env hopper-medium
    python algorithms/edac.py --env hopper-medium --preset imitate-first
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp

from common import command, presets, replay, tasks
from common.agent import Agent, Hyperparameters, Metrics, scaled, static, traced
from common.datasets import Dataset
from common.networks import Critic, Ensemble, Network, Normaliser, Parameters, Scalar, TanhNormalActor
from common.replay import Batch, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """Those of both papers, by their names."""

    learning_rate: float = 3e-4  # Adam's step size, for the critics
    actor_learning_rate: float = 3e-4  # Adam's step size, for actor and temperature
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones (tau)
    eta: float = traced(1.0, "[0, inf)")  # weight of the diversity term
    target_entropy_per_action: float = -1.0  # target entropy divided by the number of action dimensions
    cloning: float = traced(0.0, "[0, inf)")  # weight of the cloning term (w); 0 leaves the actor's loss as it is
    hidden: tuple[int, ...] = (256, 256, 256)  # width of each hidden layer of actor and critics
    ensemble: int = static(10, "[2, inf)")  # critics (N)
    diversity: bool = True  # the diversity term; without it this is SAC-N
    layer_norm: bool = False  # LayerNorm in all networks
    normalise: bool = False  # normalise observations with the data's mean and standard deviation
    normalise_reward: bool = False  # normalise rewards with the data's mean and standard deviation
    batch_size: int = 256  # transitions per gradient step
    utd: int = 1  # gradient steps per environment step
    pretrain_steps: int = 0  # steps of imitation first: half for the actor, half for the critics
    offline_steps: int = 3_000_000  # gradient steps on the data after those
    online_steps: int = 0  # environment steps afterwards

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        cloning = self.pretrain_steps // 2
        return (
            ("imitation", cloning), ("returns", self.pretrain_steps - cloning),
            ("offline", self.offline_steps), ("online", self.online_steps),
        )  # fmt: skip

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if not self.diversity and self.eta != 0:
            return "--no-diversity has no term for --eta to weigh: it needs --eta 0"
        if self.normalise_reward and self.online_steps:
            return "--normalise-reward holds for data alone: it needs --online-steps 0, else use --no-normalise-reward"
        if self.pretrain_steps == 1:
            return "--pretrain-steps serve the actor and the critics: at least 2, or 0"
        if self.pretrain_steps and not self.discount < 1:
            return "--pretrain-steps needs returns of episodes that go on for ever, and those a --discount below 1"
        return None


FIRST = {
    "pretrain_steps": 20_000, "layer_norm": True, "normalise": True,
    "actor_learning_rate": 3e-4, "normalise_reward": False,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "antmaze": {"eval_episodes": 100, "eval_every": 50_000},
    "adroit": {
        "ensemble": 50, "eta": 200.0, "actor_learning_rate": 3e-5, "normalise_reward": True, "offline_steps": 200_000,
        "eval_episodes": 100,
    },
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {
        "discount": 0.995, "hidden": (128, 128), "offline_steps": 50_000, "eval_every": 5000, "eval_episodes": 100,
    },
    # By task: laid over the family's.
    **presets.each("locomotion", ("hopper",), tasks.QUALITIES, ensemble=50),
    "locomotion/halfcheetah-random": {"eta": 0.0},
    **presets.each("locomotion", ("halfcheetah", "walker2d"), ("medium-expert",), eta=5.0),
    **presets.each("locomotion", ("halfcheetah", "walker2d"), ("expert",), ensemble=50, eta=5.0),
    "adroit/pen-human": {"ensemble": 20, "eta": 1000.0},
    "adroit/pen-cloned": {"ensemble": 20, "eta": 10.0},
    "adroit/pen-expert": {"ensemble": 20, "eta": 1000.0},
    # By algorithm, with --preset: laid over the task's.
    "sac-n": {"diversity": False, "eta": 0.0},
    "imitate-first": FIRST,
    "imitate-first-adroit": FIRST | {"pretrain_steps": 200_000, "offline_steps": 100_000, "cloning": 1.0},
    # By algorithm and task: laid over the algorithm's. The authors count imitation among their steps.
    **presets.each("imitate-first", ("antmaze",), tasks.ANT_VARIANTS, offline_steps=2_980_000),
    "imitate-first/antmaze-umaze": {"ensemble": 50, "eta": 10.0, "offline_steps": 2_980_000},
    **presets.each("imitate-first", tasks.BODIES, tasks.QUALITIES, offline_steps=2_980_000),
    **presets.each("imitate-first", ("halfcheetah",), ("medium", "medium-replay"), offline_steps=980_000),
    **presets.each("imitate-first", ("walker2d",), ("medium", "medium-replay"), offline_steps=11_980_000),
    **presets.each("imitate-first", tasks.HANDS, tasks.DEMONSTRATIONS, offline_steps=280_000),
    **presets.each("sac-n", ("hopper",), tasks.QUALITIES, ensemble=500),
    **presets.each("sac-n", ("hopper",), ("medium-replay", "medium-expert"), ensemble=200),
    **presets.each("sac-n", ("halfcheetah",), tasks.QUALITIES, ensemble=10),
    **presets.each("sac-n", ("walker2d",), tasks.QUALITIES, ensemble=20),
    "sac-n/walker2d-expert": {"ensemble": 100},
    **presets.each("sac-n", tasks.HANDS, tasks.DEMONSTRATIONS, ensemble=100),
}  # fmt: skip


class Prior(Batch):
    """The data, with where their episodes end."""

    last: jax.Array
    """bool [n]: the last row of an episode."""
    truncated: jax.Array
    """bool [n]: the last row of one that did not terminate."""


class Rows(Batch):
    """Minibatches of the critics' imitation."""

    return_to_go: jax.Array
    """[...]: the soft return R."""


class EDAC(Agent):
    """Actor, critics and temperature."""

    config: Config
    normal: Normaliser
    returns: jax.Array | None
    """[n]: soft returns of the data under the cloned policy; None without imitation."""
    actor: Network
    critic: Ensemble
    target_critic: Ensemble
    temperature: Network

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Prior:
        """The data, but for their rewards as they are, and their episodes' ends."""
        rows = data.batch(task)
        if config.normalise_reward:
            rows = rows.replace(reward=(rows.reward - rows.reward.mean()) / (rows.reward.std() + 1e-8))
        return Prior(**vars(rows), last=data.terminated | data.truncated, truncated=data.truncated)

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Prior) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        actor_key, critic_key, temperature_key = jax.random.split(key, 3)
        normal = Normaliser.of(prior.observation, config.normalise)
        policy = TanhNormalActor(config.hidden, example.action.shape[-1], config.layer_norm, -5.0, last_bound=1e-3)
        module = Critic(config.hidden, config.layer_norm, last_bound=3e-3)
        critic = Ensemble.create(module, critic_key, example.observation, example.action, members=config.ensemble)
        return cls(
            config, normal, jnp.zeros_like(prior.reward) if config.pretrain_steps else None,
            Network.create(policy, actor_key, example.observation), critic, critic.target(),
            Network.create(Scalar(), temperature_key),
        )  # fmt: skip

    def enter(self, phase: str, key: jax.Array, prior: Prior) -> Self:
        """Networks and optimisers go on; before the critics imitate, returns are computed under the cloned policy."""
        agent = super().enter(phase, key, prior)
        if phase != "returns":
            return agent

        def entropy(row: tuple[jax.Array, jax.Array]) -> jax.Array:
            observation, key = row
            return -self.actor(self.normal(observation)).sample_and_log_prob(key)[1]

        keys = jax.random.split(key, prior.reward.shape[0])
        bonus = self.temperature() * jax.lax.map(entropy, (prior.observation, keys), batch_size=4096)
        return agent.replace(
            returns=soft_returns(prior.reward, bonus, prior.last, prior.truncated, self.config.discount)
        )

    def act(self, observation: jax.Array) -> jax.Array:
        """The mode of pi(. | s)."""
        return self.actor(self.normal(observation)).mode()

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """A sample of pi(. | s)."""
        return self.actor(self.normal(observation)).sample(key)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Batch:
        """Uniform minibatches, normalised; with soft returns where they are learnt."""
        rows = prior.transitions()
        if self.phase == "returns":
            rows = Rows(**vars(rows), return_to_go=self.returns)
        return super().sample(key, experience, rows).normalised(self.normal)

    def temperature_loss(self, params: Parameters, entropy: jax.Array, action_dim: int) -> tuple[jax.Array, Metrics]:
        """Falls with the temperature while the policy's entropy is above its target, and rises below it."""
        temperature = self.temperature(params=params)
        target = self.config.target_entropy_per_action * action_dim
        return jnp.log(temperature) * (entropy - target), {"temperature": temperature}

    def cloning_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Imitation: the likelihood of the data's actions, negated, with an entropy bonus."""
        policy = self.actor(batch.observation, params=params)
        _, log_prob = policy.sample_and_log_prob(key)
        likelihood = policy.log_prob(batch.action)
        chex.assert_equal_shape((batch.reward, log_prob, likelihood))
        loss = (self.temperature() * log_prob - likelihood).mean()
        return loss, {"actor_loss": loss}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The entropy-regularised value of the policy's own actions, by the least of all critics, negated."""
        action, log_prob = self.actor(batch.observation, params=params).sample_and_log_prob(key)
        q = self.critic(batch.observation, action).min(axis=0)
        chex.assert_equal_shape((batch.reward, q, log_prob))
        loss = (self.temperature() * log_prob - q).mean()
        cloning = jnp.square(action - batch.action).mean()
        weight = self.config.cloning
        hybrid = scaled(loss) + weight * scaled(cloning)
        return jnp.where(weight > 0, hybrid, loss), {"actor_loss": loss, "cloning": cloning}

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        next_action, log_prob = self.actor(batch.next_observation).sample_and_log_prob(key)
        next_q = self.target_critic(batch.next_observation, next_action).min(axis=0)
        chex.assert_equal_shape((batch.reward, batch.mask, next_q, log_prob))
        return batch.reward + self.config.discount * batch.mask * (next_q - self.temperature() * log_prob)

    def values(self, params: Parameters, batch: Batch) -> tuple[jax.Array, jax.Array, Metrics]:
        """Every critic's values of the batch [N, batch], the weighted diversity term, and their metrics."""
        shape = (self.config.ensemble, *batch.reward.shape)
        if not self.config.diversity:
            q = self.critic(batch.observation, batch.action, params=params)
            chex.assert_shape(q, shape)
            return q, jnp.zeros(()), {"q": q.mean()}
        q, slopes = self.critic.slopes(batch.observation, batch.action, params=params)
        chex.assert_shape((q, slopes), (shape, (*shape, batch.action.shape[-1])))
        unit = slopes / jnp.sqrt(jnp.square(slopes).sum(axis=-1, keepdims=True) + 1e-20)
        pairs = jnp.square(unit.sum(axis=0)).sum(axis=-1) - jnp.square(unit).sum(axis=(0, -1))
        agreement = pairs.mean() / (self.config.ensemble - 1)
        return q, self.config.eta * agreement, {"q": q.mean(), "agreement": agreement}

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, summed over the critics, and the diversity term."""
        q, diversity, metrics = self.values(params, batch)
        loss = jnp.square(q - self.target(batch, key)).mean(axis=-1).sum()
        return loss + diversity, {"critic_loss": loss} | metrics

    def returns_loss(self, params: Parameters, batch: Rows) -> tuple[jax.Array, Metrics]:
        """Imitation: squared error to the soft returns, averaged over the critics, and the diversity term."""
        q, diversity, metrics = self.values(params, batch)
        chex.assert_equal_shape((batch.reward, batch.return_to_go))
        loss = jnp.square(q - batch.return_to_go).mean()
        return loss + diversity, {"critic_loss": loss} | metrics

    def update_actor(self, batch: Batch, key: jax.Array) -> tuple[Self, Metrics]:
        """One step of the temperature at the policy's present entropy, then one of the actor."""
        rate = self.config.actor_learning_rate
        _, log_prob = self.actor(batch.observation).sample_and_log_prob(key)
        entropy = -log_prob.mean()
        temperature, metrics = self.temperature.minimise(
            self.temperature_loss, entropy, batch.action.shape[-1], learning_rate=rate
        )
        agent = self.replace(temperature=temperature)
        loss = agent.cloning_loss if self.phase == "imitation" else agent.actor_loss
        actor, more = agent.actor.minimise(loss, batch, key, learning_rate=rate)
        return agent.replace(actor=actor), metrics | more | {"entropy": entropy}

    def update_critic(self, batch: Batch, key: jax.Array) -> tuple[Self, Metrics]:
        """One step of all critics, and one of their targets towards them."""
        loss, inputs = (self.returns_loss, (batch,)) if self.phase == "returns" else (self.critic_loss, (batch, key))
        critic, metrics = self.critic.minimise(loss, *inputs, learning_rate=self.config.learning_rate)
        return self.replace(
            critic=critic, target_critic=self.target_critic.track(critic, self.config.target_rate)
        ), metrics

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """Temperature, actor, critics and their targets; imitation has a phase for actor and for critics."""
        actor_key, critic_key = jax.random.split(key)
        agent, metrics = self, {}
        if self.phase != "returns":
            agent, metrics = agent.update_actor(batch, actor_key)
        if self.phase != "imitation":
            agent, more = agent.update_critic(batch, critic_key)
            metrics |= more
        return agent, metrics


def soft_returns(
    reward: jax.Array, bonus: jax.Array, last: jax.Array, truncated: jax.Array, discount: jax.Array | float
) -> jax.Array:
    """R of every row [n], from rewards and entropy bonuses alpha H [n], and where episodes end [n]."""
    endless = (reward + discount * bonus) / (1 - discount)
    ending = jnp.where(truncated, endless, reward)
    own = jnp.where(last, ending, reward + discount * jnp.roll(bonus, -1))
    return replay.accumulated(own, jnp.where(last, 0.0, discount))


if __name__ == "__main__":
    command.main(EDAC, Config, PRESETS)
