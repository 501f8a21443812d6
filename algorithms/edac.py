"""EDAC and SAC-N: soft actor-critic from data alone, kept pessimistic by the minimum over many critics.

An, Moon, Kim & Song, "Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble", NeurIPS 2021
(arXiv:2110.01548). Per step, in this order,

    min_alpha  log(alpha) (mean_b H - H_target),  H = -log pi(a~|s),  H_target = -|A|        EDAC.temperature_loss
    L_pi = mean_b [ alpha log pi(a~|s) - min_j Q_j(s, a~) ]                                  EDAC.actor_loss
    y    = r + gamma m (min_j Q'_j(s', a') - alpha log pi(a'|s'))                            EDAC.target
    L_Q  = sum_i mean_b (Q_i(s, a) - y)^2
           + eta / (N - 1) mean_b sum_{i != j} <g_i, g_j>,  g_i = dQ_i/da / |dQ_i/da|        EDAC.critic_loss

and one step of the targets. a~ and a' are sampled from pi, j runs over all N critics, m is the mask, 0 where an episode
terminated. The second line of L_Q keeps the critics from agreeing on where the value falls, so that fewer of them are
needed; without it (`--no-diversity --eta 0`, `--preset sac-n`) this is SAC-N, of the same paper. N and eta are those of
the configurations of "First Imitate", below, which equal CORL's except for pen-expert (eta 10 there), or CORL's
(door-expert, relocate-expert). SAC-N's N are CORL's, or OfflineRL-Lib's (random and expert locomotion). For Adroit, the
authors' README has a tenth of the actor's learning rate, rewards of mean 0 and deviation 1, and 200,000 steps.

`--pretrain-steps N` is the maximum-entropy form of Jelley et al., "Efficient Offline Reinforcement Learning: First
Imitate, then Improve" (2024): first, half of N steps of cloning with an entropy bonus, alpha adapted as above,

    L_pi = mean_b [ alpha log pi(a~|s) - log pi(a|s) ]                                       EDAC.cloning_loss

then, for the other half, the critics learn soft returns of the data under the cloned policy,

    R_t  = r_t + gamma (alpha H_{t+1} + R_{t+1})                                             soft_returns
    L_Q  = mean_i mean_b (Q_i(s, a) - R)^2 + the diversity term                              EDAC.returns_loss

where nothing follows a termination, and the last reward and entropy of an episode that did not terminate go on for
ever. `--cloning w` is their hybrid for Adroit: L_pi / |L_pi| + w C / |C| with C = mean_b (a~ - a)^2, the sizes without
gradient. `--layer-norm` puts LayerNorm into all networks, which they advise. Presets `imitate-first` and
`imitate-first-adroit` hold these settings, with one learning rate and rewards as they are.

`--online-steps N` goes on in the environment, minibatches drawn uniformly from data and experience together.

Differences. Xavier-uniform kernels and no initial biases. One sample a~ serves temperature and actor. The sum over
pairs is |sum_i g_i|^2 - sum_i |g_i|^2: N terms instead of N^2. On pen-cloned, An et al. take the greatest value of ten
sampled actions for a target, by the critics themselves and without entropy (`--max_q_backup`); here it is y. An episode
that a time limit cut does not terminate anything here; in the code of "First Imitate" it does. That code divides the
hybrid's loss by its signed value, which turns the actor against its critics where the loss is negative; it leaves the
entropies that would follow out of the last row's return, and its LayerNorm has no parameters.

Published, on D4RL's -v2 data (final scores, CORL's README), EDAC and SAC-N: hopper-medium 102 and 41,
halfcheetah-medium 68 and 68, walker2d-medium 93 and 87.

Measured, in small: pointmaze-medium 100, ten seeds (benchmarks/results/smoke.csv), hopper-medium-replay 11 after
30,000 updates with five critics 128 wide, three seeds (local.csv).

    python algorithms/edac.py --env hopper-medium
    python algorithms/edac.py --env hopper-medium --preset imitate-first
"""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from common import command, replay
from common.datasets import Dataset
from common.networks import Critic, Ensemble, Network, Normaliser, Parameters, Scalar, TanhNormalActor
from common.replay import Batch, Replay
from common.tasks import Task

Metrics = dict[str, jax.Array]


class Config(struct.PyTreeNode):
    """Hyperparameters. Numbers are traced, so a grid of them is one axis of runs; shapes and counts are static."""

    learning_rate: float = 3e-4
    """Adam's step size, for the critics."""
    actor_learning_rate: float = 3e-4
    """Adam's step size, for actor and temperature."""
    discount: float = 0.99
    """Discount factor (gamma)."""
    target_rate: float = 0.005
    """Step of the target critics towards the online ones (tau)."""
    eta: float = 1.0
    """Weight of the diversity term."""
    target_entropy_per_action: float = -1.0
    """Target entropy divided by the number of action dimensions."""
    cloning: float = 0.0
    """Weight of the cloning term (w); 0 leaves the actor's loss as it is."""
    hidden: tuple[int, ...] = struct.field(default=(256, 256, 256), pytree_node=False)
    """Width of each hidden layer of actor and critics."""
    ensemble: int = struct.field(default=10, pytree_node=False)
    """Critics (N)."""
    diversity: bool = struct.field(default=True, pytree_node=False)
    """The diversity term; without it this is SAC-N."""
    layer_norm: bool = struct.field(default=False, pytree_node=False)
    """LayerNorm in all networks."""
    normalise: bool = struct.field(default=False, pytree_node=False)
    """Normalise observations with the data's mean and standard deviation."""
    normalise_reward: bool = struct.field(default=False, pytree_node=False)
    """Normalise rewards with the data's mean and standard deviation."""
    batch_size: int = struct.field(default=256, pytree_node=False)
    """Transitions per gradient step."""
    utd: int = struct.field(default=1, pytree_node=False)
    """Gradient steps per environment step."""
    pretrain_steps: int = struct.field(default=0, pytree_node=False)
    """Steps of imitation first: half for the actor, half for the critics."""
    offline_steps: int = struct.field(default=3_000_000, pytree_node=False)
    """Gradient steps on the data after those."""
    online_steps: int = struct.field(default=0, pytree_node=False)
    """Environment steps afterwards."""

    uses_prior_data = True
    start_training = random_steps = 0

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        cloning = self.pretrain_steps // 2
        return (
            ("imitation", cloning), ("returns", self.pretrain_steps - cloning),
            ("offline", self.offline_steps), ("online", self.online_steps),
        )  # fmt: skip

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        if self.ensemble < 2:
            return f"--ensemble must be at least 2, not {self.ensemble}"
        if not self.diversity and self.eta != 0:
            return "--no-diversity has no term for --eta to weigh: it needs --eta 0"
        if self.normalise_reward and self.online_steps:
            return "--normalise-reward holds for data alone: it needs --online-steps 0, else use --no-normalise-reward"
        if self.pretrain_steps == 1:
            return "--pretrain-steps serve the actor and the critics: at least 2, or 0"
        if self.pretrain_steps and not self.discount < 1:
            return "--pretrain-steps needs returns of episodes that go on for ever, and those a --discount below 1"
        if min(self.utd, self.batch_size, self.offline_steps, *self.hidden) < 1:
            return "--utd, --batch-size, --offline-steps and --hidden must be at least 1"
        if min(self.pretrain_steps, self.online_steps, self.cloning) < 0:
            return "--pretrain-steps, --online-steps and --cloning must be at least 0"
        return None


QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "expert")
SAC_N = {"hopper": (500, 500, 200, 200, 500), "halfcheetah": (10,) * 5, "walker2d": (20, 20, 20, 20, 100)}
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
    **{f"locomotion/hopper-{quality}": {"ensemble": 50} for quality in QUALITIES},
    "locomotion/halfcheetah-random": {"eta": 0.0},
    **{f"locomotion/{body}-medium-expert": {"eta": 5.0} for body in ("halfcheetah", "walker2d")},
    **{f"locomotion/{body}-expert": {"ensemble": 50, "eta": 5.0} for body in ("halfcheetah", "walker2d")},
    "adroit/pen-human": {"ensemble": 20, "eta": 1000.0},
    "adroit/pen-cloned": {"ensemble": 20, "eta": 10.0},
    "adroit/pen-expert": {"ensemble": 20, "eta": 1000.0},
    # By algorithm, with --preset: laid over the task's.
    "sac-n": {"diversity": False, "eta": 0.0},
    "imitate-first": FIRST,
    "imitate-first-adroit": FIRST | {"pretrain_steps": 200_000, "offline_steps": 100_000, "cloning": 1.0},
} | {
    # By algorithm and task: laid over the algorithm's.
    f"sac-n/{body}-{quality}": {"ensemble": members}
    for body, sizes in SAC_N.items() for quality, members in zip(QUALITIES, sizes, strict=True)
} | {
    f"sac-n/{hand}-{kind}": {"ensemble": 100}
    for hand in ("pen", "door", "hammer", "relocate") for kind in ("human", "cloned", "expert")
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


class EDAC(struct.PyTreeNode):
    """The agent: configuration and networks. Every method is pure; programs.py adds the axis of runs."""

    config: Config
    normal: Normaliser
    returns: jax.Array | None
    """[n]: soft returns of the data under the cloned policy; None without imitation."""
    actor: Network
    critic: Ensemble
    target_critic: Ensemble
    temperature: Network
    phase: str = struct.field(default="offline", pytree_node=False)

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
        policy = TanhNormalActor(config.hidden, example.action.shape[-1], config.layer_norm, least_log_std=-5.0)
        critic = Ensemble.create(
            Critic(config.hidden, config.layer_norm), critic_key, example.observation, example.action,
            members=config.ensemble,
        )  # fmt: skip
        return cls(
            config, normal, jnp.zeros_like(prior.reward) if config.pretrain_steps else None,
            Network.create(policy, actor_key, example.observation), critic, critic.target(),
            Network.create(Scalar(), temperature_key),
        )  # fmt: skip

    def act(self, observation: jax.Array) -> jax.Array:
        """The evaluated policy: the mode of pi(. | s), [..., action]."""
        return self.actor(self.normal(observation)).mode()

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """The collecting policy: a sample of pi(. | s), [..., action]."""
        return self.actor(self.normal(observation)).sample(key)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Batch:
        """The minibatches of one update, normalised, arrays [steps, batch_size, ...]."""
        c = self.config
        rows = Batch(prior.observation, prior.action, prior.reward, prior.mask, prior.next_observation)
        if self.phase == "returns":
            rows = Rows(**vars(rows), return_to_go=self.returns)
        if experience is None:
            batches = replay.sample(key, rows, prior.reward.shape[0], (1, c.batch_size))
        else:
            batches = replay.sample_union(key, experience, rows, c.utd, c.batch_size)
        return batches.replace(
            observation=self.normal(batches.observation), next_observation=self.normal(batches.next_observation)
        )

    def enter(self, phase: str, key: jax.Array, prior: Prior) -> Self:
        """Networks and optimisers go on; before the critics imitate, returns are computed under the cloned policy."""
        agent = self.replace(phase=phase)
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

    def temperature_loss(self, params: Parameters, entropy: jax.Array, action_dim: int) -> tuple[jax.Array, Metrics]:
        """Falls with the temperature while the policy's entropy is above its target, and rises below it."""
        temperature = self.temperature(params=params)
        target = self.config.target_entropy_per_action * action_dim
        return jnp.log(temperature) * (entropy - target), {"temperature": temperature}

    def cloning_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Imitation: the likelihood of the data's actions, negated, with an entropy bonus."""
        policy = self.actor(batch.observation, params=params)
        _, log_prob = policy.sample_and_log_prob(key)
        loss = (self.temperature() * log_prob - policy.log_prob(batch.action)).mean()
        return loss, {"actor_loss": loss}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The entropy-regularised value of the policy's own actions, by the least of all critics, negated."""
        action, log_prob = self.actor(batch.observation, params=params).sample_and_log_prob(key)
        q = self.critic(batch.observation, action).min(axis=0)
        loss = (self.temperature() * log_prob - q).mean()
        cloning = jnp.square(action - batch.action).mean()
        weight = self.config.cloning
        hybrid = scaled(loss) + weight * scaled(cloning)
        return jnp.where(weight > 0, hybrid, loss), {"actor_loss": loss, "cloning": cloning}

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        next_action, log_prob = self.actor(batch.next_observation).sample_and_log_prob(key)
        next_q = self.target_critic(batch.next_observation, next_action).min(axis=0)
        return batch.reward + self.config.discount * batch.mask * (next_q - self.temperature() * log_prob)

    def values(self, params: Parameters, batch: Batch) -> tuple[jax.Array, jax.Array, Metrics]:
        """Every critic's values of the batch [N, batch], the weighted diversity term, and their metrics."""
        if not self.config.diversity:
            q = self.critic(batch.observation, batch.action, params=params)
            return q, jnp.zeros(()), {"q": q.mean()}
        q, slopes = self.critic.slopes(batch.observation, batch.action, params=params)
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
        loss = jnp.square(q - batch.return_to_go).mean()
        return loss + diversity, {"critic_loss": loss} | metrics

    def update_actor(self, batch: Batch, key: jax.Array) -> tuple[Self, Metrics]:
        """One step of the temperature at the policy's present entropy, then one of the actor."""
        rate = self.config.actor_learning_rate
        _, log_prob = self.actor(batch.observation).sample_and_log_prob(key)
        entropy = -log_prob.mean()
        gradients, metrics = jax.grad(self.temperature_loss, has_aux=True)(
            self.temperature.params, entropy, batch.action.shape[-1]
        )
        agent = self.replace(temperature=self.temperature.descend(gradients, rate))
        loss = agent.cloning_loss if self.phase == "imitation" else agent.actor_loss
        gradients, more = jax.grad(loss, has_aux=True)(agent.actor.params, batch, key)
        actor = agent.actor.descend(gradients, rate)
        return agent.replace(actor=actor), metrics | more | {"entropy": entropy}

    def update_critic(self, batch: Batch, key: jax.Array) -> tuple[Self, Metrics]:
        """One step of all critics, and one of their targets towards them."""

        def loss(params: Parameters) -> tuple[jax.Array, Metrics]:
            if self.phase == "returns":
                return self.returns_loss(params, batch)
            return self.critic_loss(params, batch, key)

        gradients, metrics = jax.grad(loss, has_aux=True)(self.critic.params)
        critic = self.critic.descend(gradients, self.config.learning_rate)
        return self.replace(
            critic=critic, target_critic=self.target_critic.track(critic, self.config.target_rate)
        ), metrics

    def update(self, batches: Batch, key: jax.Array, step: jax.Array) -> tuple[Self, Metrics]:
        """One step of temperature, actor and critics per minibatch of `batches` [steps, batch_size, ...]."""

        def once(agent: Self, x: tuple[Batch, jax.Array]) -> tuple[Self, Metrics]:
            batch, key = x
            actor_key, critic_key = jax.random.split(key)
            metrics: Metrics = {}
            if agent.phase != "returns":
                agent, metrics = agent.update_actor(batch, actor_key)
            if agent.phase != "imitation":
                agent, more = agent.update_critic(batch, critic_key)
                metrics |= more
            return agent, metrics

        agent, metrics = jax.lax.scan(once, self, (batches, jax.random.split(key, batches.reward.shape[0])))
        return agent, jax.tree.map(jnp.mean, metrics)


def soft_returns(
    reward: jax.Array, bonus: jax.Array, last: jax.Array, truncated: jax.Array, discount: jax.Array | float
) -> jax.Array:
    """R of every row [n], from rewards and entropy bonuses alpha H [n], and where episodes end [n].

    A linear recurrence backwards through all episodes at once, in a logarithmic number of steps.
    """
    endless = (reward + discount * bonus) / (1 - discount)
    ending = jnp.where(truncated, endless, reward)
    own = jnp.where(last, ending, reward + discount * jnp.roll(bonus, -1))
    share = jnp.where(last, 0.0, discount)

    def join(later: tuple[jax.Array, jax.Array], row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return row[0] + row[1] * later[0], row[1] * later[1]

    return jax.lax.associative_scan(join, (own, share), reverse=True)[0]


def scaled(loss: jax.Array) -> jax.Array:
    """A loss divided by its own size: 1 or -1, with the gradient of log |loss|, signed."""
    return loss / jax.lax.stop_gradient(jnp.abs(loss))


if __name__ == "__main__":
    command.main(EDAC, Config, PRESETS)
