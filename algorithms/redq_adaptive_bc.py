"""REDQ+AdaptiveBC: from offline to online with a cloning weight that a controller adapts to how episodes go.

Zhao, Boney, Ilin, Kannala & Pajarinen, "Adaptive Behavior Cloning Regularization for Stable Offline-to-Online
Reinforcement Learning", ESANN 2022 (arXiv:2210.13846). Algorithm 1, with N critics and a deterministic actor:

    eq. 3  y = r + gamma m min_{i in M} Q'_i(s', clip(pi'(s') + clip(eps, +-c)))            REDQAdaptiveBC.target
           L(phi_i) = mean_b (Q_i(s, a) - y)^2 for all i = 1 ... N                           REDQAdaptiveBC.critic_loss
    eq. 4  max_theta mean_i Q_i(s, pi(s)) / mean_b |mean_i Q_i(s, pi(s))|
                     - alpha mean_b (pi(s) - a)^2                                            REDQAdaptiveBC.actor_loss
    eq. 2  alpha += K_P (R - R_target) + K_D max(0, R_last - R), within [0, 0.4]             REDQAdaptiveBC.adapted
    G of these steps per environment step, actor and targets at every `policy_delay`th       REDQAdaptiveBC.update
    and, between the phases, all but 5 % of the data removed from the buffer                 REDQAdaptiveBC.enter

M is a random subset of two members, drawn anew for every gradient step; m is the mask; R is the episode's return
normalised as in D4RL, 1 at the expert's. Of the data, 50,000 rows stay at least: section 5.2 has a buffer "prefilled
with 0.05M", and the authors' code takes the greater of both.

Alpha is 0.4 offline, but 100 on walker2d-random, whose data are narrow (section 5.1). Algorithm 1 begins online with
the same value; section 4.1 bounds it by 0.4, and the authors' code begins with 0.4 there too, as this file does.

How often equation 2 counts. It stands once per episode in Algorithm 1, but K_P = 3e-5 then moves alpha by no more than
0.01 in 250 episodes, where the text speaks of similar alphas after 10 to 15 episodes; the authors' code multiplies the
step by the episode's length. That is what this file does; `--once-per-episode` is the equation as printed.

`--preset authors-code` holds what their code has and the paper has not: K_D 1e-4, target 1.05, ten gradient steps,
smoothing noise 0.2, and R_last an exponential average (`--last-return-rate 0.05`) whose own value, not R, stands in the
proportional term (`--smoothed`); on Adroit's expert data, alpha 8, gains twenty times as large and one gradient step.
`--preset redq-scratch` is the paper's baseline of the name: no data, no offline phase, no cloning. Its other baselines:
`--k-p 0 --k-d 0 --grid.alpha-online 0 0.1 0.2 0.3` is the manual grid of Figure 3; `--ensemble 2` has no ensemble,
`--target-subset 10` the minimum over all, `--kept 1` no down-sampling.

Differences. Xavier-uniform kernels. The first episode online is its own past; in the authors' code its past is an
evaluation of the policy trained offline. The rows kept are drawn without replacement (the authors draw with, and so
50,000 also from fewer), and stay for good: the buffer of their code has 250,000 rows, and overwrites the 50,000 during
the last fifth of the online steps, the 100,000 of a set of two million during the last two fifths.

Published as curves alone; REDQ from scratch, with SAC's actor, returns 3555 on Hopper-v4 after 250,000 steps (ten runs
in the repository of SimbaV2).

Measured, in small: pointmaze-umaze 100, ten seeds (benchmarks/results/smoke.csv); hopper-medium 50 after 8,000 steps
online, where alpha fixed at 0, 0.1 and 0.4 ends at 12, 18 and 50, three seeds (adaptive_bc_small.csv).

    python algorithms/redq_adaptive_bc.py --env hopper-medium-replay
"""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from common import command, replay
from common.datasets import Dataset
from common.networks import Critic, DeterministicActor, Ensemble, Network, Parameters
from common.replay import Batch, Episode, Replay
from common.tasks import Task

Metrics = dict[str, jax.Array]


class Config(struct.PyTreeNode):
    """Hyperparameters. Numbers are traced, so a grid of them is one axis of runs; shapes and counts are static."""

    learning_rate: float = 3e-4
    """Adam's step size, for actor and critics."""
    discount: float = 0.99
    """Discount factor (gamma)."""
    target_rate: float = 0.005
    """Step of the target networks towards the online ones (tau)."""
    alpha_offline: float = 0.4
    """Weight of the cloning term offline."""
    alpha_online: float = 0.4
    """Weight of the cloning term when the online phase begins."""
    most_online: float = 0.4
    """The most that the cloning term may weigh online."""
    k_p: float = 3e-5
    """Proportional gain of the controller (K_P)."""
    k_d: float = 8e-5
    """Gain of the controller on falling returns (K_D)."""
    target_return: float = 1.0
    """Normalised return that the controller aims at (R_target)."""
    last_return_rate: float = 1.0
    """Step of the last return towards the present one: 1 is the episode before."""
    target_noise: float = 0.1
    """Standard deviation of the smoothing noise on the target action."""
    noise_clip: float = 0.5
    """Where the smoothing noise is cut off (c)."""
    exploration_noise: float = 0.1
    """Standard deviation of the noise on actions online."""
    hidden: tuple[int, ...] = struct.field(default=(256, 256), pytree_node=False)
    """Width of each hidden layer of actor and critics."""
    ensemble: int = struct.field(default=10, pytree_node=False)
    """Critics (N)."""
    target_subset: int = struct.field(default=2, pytree_node=False)
    """Target critics whose minimum is the target (M)."""
    policy_delay: int = struct.field(default=2, pytree_node=False)
    """Critic steps per actor step."""
    batch_size: int = struct.field(default=256, pytree_node=False)
    """Transitions per gradient step (B)."""
    utd: int = struct.field(default=20, pytree_node=False)
    """Critic steps per environment step (G)."""
    kept: float = struct.field(default=0.05, pytree_node=False)
    """Share of the data that stays in the buffer online."""
    kept_at_least: int = struct.field(default=50_000, pytree_node=False)
    """Rows of the data that stay at least, or all where there are fewer."""
    once_per_episode: bool = struct.field(default=False, pytree_node=False)
    """Count equation 2 once per episode, rather than once per environment step of it."""
    smoothed: bool = struct.field(default=False, pytree_node=False)
    """Put the average of past returns into the proportional term, as the authors' code does."""
    offline_steps: int = struct.field(default=1_000_000, pytree_node=False)
    """Gradient steps on the data."""
    online_steps: int = struct.field(default=250_000, pytree_node=False)
    """Environment steps afterwards."""
    start_training: int = struct.field(default=0, pytree_node=False)
    """Environment steps before the first online update; random ones, if there was no offline phase."""

    @property
    def uses_prior_data(self) -> bool:
        """Whether there is an offline phase."""
        return self.offline_steps > 0

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("offline", self.offline_steps), ("online", self.online_steps)

    @property
    def random_steps(self) -> int:
        """Environment steps with random actions."""
        return 0 if self.offline_steps else self.start_training

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        if not 1 <= self.target_subset <= self.ensemble:
            return f"--target-subset must lie in 1 ... --ensemble {self.ensemble}, not {self.target_subset}"
        if not 0 < self.kept <= 1:
            return f"--kept must lie in (0, 1], not {self.kept}"
        if self.online_steps and not 0 <= self.alpha_online <= self.most_online:
            return (
                f"--alpha-online {self.alpha_online:g} must lie in 0 ... --most-online {self.most_online:g}, within "
                "which the first episode's end puts it: choose another, or raise --most-online"
            )
        if min(self.utd, self.batch_size, self.policy_delay, self.kept_at_least, *self.hidden) < 1:
            return "--utd, --batch-size, --policy-delay, --kept-at-least and --hidden must be at least 1"
        steps = (self.offline_steps, self.online_steps, self.start_training)
        if min(steps) < 0 or not any(steps[:2]):
            return "--offline-steps, --online-steps and --start-training must be at least 0, and one phase longer"
        if self.online_steps and self.start_training >= self.online_steps:
            return (
                f"--start-training {self.start_training} leaves no step online to learn at: it must be below "
                f"--online-steps {self.online_steps}"
            )
        return None

    def misfit(self, task: Task) -> str | None:
        """Why these values do not suit a task, in one line."""
        if self.online_steps and (self.k_p or self.k_d) and not np.isfinite(task.score(0.0, 0.0)):
            return f"{task.name} has no normalised return to adapt to: --k-p 0 --k-d 0 keeps alpha as it is"
        return None


PRESETS: dict[str, dict[str, Any]] = {
    # By task family. Ours: of data that are easy to make, a twentieth without a minimum.
    "pointmaze": {"kept_at_least": 1},
    # By task.
    "locomotion/walker2d-random": {"alpha_offline": 100.0},
    # By algorithm, with --preset.
    "authors-code": {
        "k_d": 1e-4, "target_return": 1.05, "utd": 10, "last_return_rate": 0.05, "smoothed": True, "target_noise": 0.2,
    },
    "redq-scratch": {
        "offline_steps": 0, "alpha_offline": 0.0, "alpha_online": 0.0, "most_online": 0.0, "k_p": 0.0, "k_d": 0.0,
        "start_training": 5000,
    },
    # By algorithm and task: laid over the algorithm's.
    **{
        f"authors-code/{hand}-expert": {
            "alpha_offline": 8.0, "alpha_online": 8.0, "most_online": 8.0, "k_p": 6e-4, "k_d": 2e-3, "utd": 1,
        }
        for hand in ("pen", "door", "hammer", "relocate")
    },
}  # fmt: skip


class REDQAdaptiveBC(struct.PyTreeNode):
    """The agent: configuration and networks. Every method is pure; programs.py adds the axis of runs."""

    config: Config
    alpha: jax.Array
    """[]: weight of the cloning term now."""
    last_return: jax.Array
    """[]: normalised, of the episodes before; NaN before the first has ended."""
    kept: jax.Array | None
    """int32 [k]: rows of the data in the buffer online; None without data."""
    actor: Network
    target_actor: Network
    critic: Ensemble
    target_critic: Ensemble

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Batch:
        """The data as they are."""
        return data.batch(task)

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch | None) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        actor_key, critic_key = jax.random.split(key)
        policy = DeterministicActor(config.hidden, example.action.shape[-1])
        actor = Network.create(policy, actor_key, example.observation)
        critic = Ensemble.create(
            Critic(config.hidden), critic_key, example.observation, example.action, members=config.ensemble
        )
        kept = None
        if prior is not None:
            rows = prior.reward.shape[0]
            kept = jnp.zeros(min(rows, max(round(config.kept * rows), config.kept_at_least)), jnp.int32)
        weight = config.alpha_offline if config.offline_steps else config.alpha_online
        return cls(
            config, jnp.asarray(weight, jnp.float32), jnp.full((), jnp.nan), kept,
            actor, actor.target(), critic, critic.target(),
        )  # fmt: skip

    def act(self, observation: jax.Array) -> jax.Array:
        """The evaluated policy: pi(s), [..., action]."""
        return self.actor(observation)

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """The collecting policy: pi(s) with noise, [..., action]."""
        action = self.act(observation)
        return (action + self.config.exploration_noise * jax.random.normal(key, action.shape)).clip(-1, 1)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Batch | None) -> Batch:
        """The minibatches of one update, arrays [steps, batch_size, ...]."""
        c = self.config
        if experience is None:
            return replay.sample(key, prior, prior.reward.shape[0], (1, c.batch_size))
        if prior is None:
            return replay.sample(key, experience.rows, experience.size, (c.utd, c.batch_size))
        return replay.sample_union(key, experience, prior, c.utd, c.batch_size, self.kept)

    def enter(self, phase: str, key: jax.Array, prior: Batch | None) -> Self:
        """Online, most of the data leave the buffer and the controller begins; networks and optimisers stay."""
        if phase != "online" or prior is None:
            return self
        rows = jax.random.permutation(key, prior.reward.shape[0])[: self.kept.shape[0]]
        return self.replace(
            alpha=jnp.asarray(self.config.alpha_online, jnp.float32), kept=jnp.sort(rows).astype(jnp.int32)
        )

    def adapted(self, episode_return: jax.Array, length: jax.Array) -> Self:
        """Equation 2, at the end of an episode of this normalised return and length."""
        c = self.config
        last = jnp.where(jnp.isnan(self.last_return), episode_return, self.last_return)
        rising = last if c.smoothed else episode_return
        step = c.k_p * (rising - c.target_return) + c.k_d * jnp.maximum(0.0, last - episode_return)
        if not c.once_per_episode:
            step *= length
        # A task without a scale of returns can be learned from scratch; its returns are NaN.
        step = jnp.where(jnp.isnan(episode_return), 0.0, step)
        return self.replace(
            alpha=(self.alpha + step).clip(0.0, c.most_online),
            last_return=last + c.last_return_rate * (episode_return - last),
        )

    def after_episode(self, episode: Episode) -> Self:
        """The controller's step, if an episode has just ended."""
        adapted = self.adapted(episode.score / 100, episode.length)
        return self.replace(
            alpha=jnp.where(episode.over, adapted.alpha, self.alpha),
            last_return=jnp.where(episode.over, adapted.last_return, self.last_return),
        )

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        c = self.config
        noise_key, subset_key = jax.random.split(key)
        noise = (c.target_noise * jax.random.normal(noise_key, batch.action.shape)).clip(-c.noise_clip, c.noise_clip)
        next_action = (self.target_actor(batch.next_observation) + noise).clip(-1, 1)
        subset = jax.random.choice(subset_key, c.ensemble, (c.target_subset,), replace=False)
        next_q = self.target_critic.members(subset)(batch.next_observation, next_action).min(axis=0)
        return batch.reward + c.discount * batch.mask * next_q

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Equation 3: squared error to one common target, averaged over members and batch."""
        target = self.target(batch, key)
        q = self.critic(batch.observation, batch.action, params=params)
        loss = jnp.square(q - target).mean()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def actor_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Equation 4: the normalised value of the policy's own actions, negated, and the weighted cloning term."""
        action = self.actor(batch.observation, params=params)
        q = self.critic(batch.observation, action).mean(axis=0)
        cloning = jnp.square(action - batch.action).mean()
        loss = -q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean()) + self.alpha * cloning
        return loss, {"actor_loss": loss, "cloning": cloning, "alpha": self.alpha}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """Critic step `number`, and after every `policy_delay` of them a step of the actor and the targets."""
        c = self.config
        gradients, metrics = jax.grad(self.critic_loss, has_aux=True)(self.critic.params, batch, key)
        agent = self.replace(critic=self.critic.descend(gradients, c.learning_rate))

        def update_actor() -> tuple[Self, Metrics]:
            gradients, metrics = jax.grad(agent.actor_loss, has_aux=True)(agent.actor.params, batch)
            actor = agent.actor.descend(gradients, c.learning_rate)
            return agent.replace(
                actor=actor,
                target_actor=agent.target_actor.track(actor, c.target_rate),
                target_critic=agent.target_critic.track(agent.critic, c.target_rate),
            ), metrics

        def wait() -> tuple[Self, Metrics]:
            return agent, dict.fromkeys(("actor_loss", "cloning", "alpha"), jnp.full((), jnp.nan))

        agent, more = jax.lax.cond(number % c.policy_delay == 0, update_actor, wait)
        return agent, metrics | more

    def update(self, batches: Batch, key: jax.Array, step: jax.Array) -> tuple[Self, Metrics]:
        """One critic step per minibatch of `batches` [steps, batch_size, ...]."""
        count = batches.reward.shape[0]
        numbers = (step - 1) * count + 1 + jnp.arange(count)
        agent, metrics = jax.lax.scan(
            lambda agent, x: agent.update_once(*x), self, (batches, jax.random.split(key, count), numbers)
        )
        return agent, jax.tree.map(jnp.nanmean, metrics)


if __name__ == "__main__":
    command.main(REDQAdaptiveBC, Config, PRESETS)
