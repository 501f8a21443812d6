"""REDQ+AdaptiveBC: from offline to online with a cloning weight that a controller adapts to how episodes go.

Zhao, Boney, Ilin, Kannala & Pajarinen, "Adaptive Behavior Cloning Regularization for Stable Offline-to-Online
Reinforcement Learning", ESANN 2022 (arXiv:2210.13846). Algorithm 1, with N critics and a deterministic actor:

    eq. 3  y = r + gamma m min_{i in M} Q'_i(s', clip(pi'(s') + clip(eps, +-c)))            REDQAdaptiveBC.target
           L(phi_i) = mean_b (Q_i(s, a) - y)^2 for all i = 1 ... N                           REDQAdaptiveBC.critic_loss
    eq. 4  max_theta mean_i Q_i(s, pi(s)) / mean_b |mean_i Q_i(s, pi(s))|
                     - alpha mean_b (pi(s) - a)^2                                            REDQAdaptiveBC.actor_loss
    eq. 2  alpha += K_P (R - R_target) + K_D max(0, R_last - R), within [0, 0.4]             REDQAdaptiveBC.adapted
    G critic steps per environment step                                                    REDQAdaptiveBC.update_once
    actor and targets after every `policy_delay`th of them                                 REDQAdaptiveBC.update_delayed
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

Differences. Xavier-uniform kernels without biases: a fresh critic's values deviate by 0.23 instead of 0.06. Alpha moves
before the gradient steps of an episode's last environment step, in their code after them. The first episode online is
its own past; in the authors' code its past is an evaluation of the policy trained offline. The rows kept are drawn
without replacement (the authors draw with, and so 50,000 also from fewer), and stay for good: the buffer of their code
has 250,000 rows, and overwrites the 50,000 during the last fifth of the online steps, the 100,000 of a set of two
million during the last two fifths.

Published as curves alone; REDQ from scratch, with SAC's actor, returns 3555 on Hopper-v4 after 250,000 steps (ten runs
in the repository of SimbaV2).

Measured, in small: pointmaze-umaze 100, ten seeds (benchmarks/results/smoke.csv); hopper-medium 50 after 8,000 steps
online, where alpha fixed at 0, 0.1 and 0.4 ends at 12, 18 and 50, three seeds (adaptive_bc_small.csv).

    python algorithms/redq_adaptive_bc.py --env hopper-medium-replay
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np

from common import command, presets, replay, tasks
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.networks import Critic, DeterministicActor, Ensemble, Network, Parameters
from common.replay import Batch, Episode, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """Those of the paper, by its names."""

    learning_rate: float = 3e-4  # Adam's step size, for actor and critics
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target networks towards the online ones (tau)
    alpha_offline: float = traced(0.4, "[0, inf)")  # weight of the cloning term offline
    alpha_online: float = traced(0.4, "[0, inf)")  # weight of the cloning term when the online phase begins
    most_online: float = traced(0.4, "[0, inf)")  # the most that the cloning term may weigh online
    k_p: float = traced(3e-5, "[0, inf)")  # proportional gain of the controller (K_P)
    k_d: float = traced(8e-5, "[0, inf)")  # gain of the controller on falling returns (K_D)
    target_return: float = 1.0  # normalised return that the controller aims at (R_target)
    last_return_rate: float = traced(1.0, "(0, 1]")  # step of R_last towards R: 1 is the episode before
    target_noise: float = 0.1  # standard deviation of the smoothing noise on the target action
    noise_clip: float = 0.5  # where the smoothing noise is cut off (c)
    exploration_noise: float = 0.1  # standard deviation of the noise on actions online
    hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of actor and critics
    ensemble: int = 10  # critics (N)
    target_subset: int = 2  # target critics whose minimum is the target (M)
    policy_delay: int = 2  # critic steps per actor step
    batch_size: int = 256  # transitions per gradient step (B)
    utd: int = 20  # critic steps per environment step (G)
    kept: float = static(0.05, "(0, 1]")  # share of the data that stays in the buffer online
    kept_at_least: int = 50_000  # rows of the data that stay at least, or all where there are fewer
    once_per_episode: bool = False  # count equation 2 once per episode, rather than once per environment step of it
    smoothed: bool = False  # put the average of past returns into the proportional term, as the authors' code does
    offline_steps: int = static(1_000_000, "[0, inf)")  # gradient steps on the data
    online_steps: int = static(250_000, "[0, inf)")  # environment steps afterwards
    start_training: int = 0  # environment steps before the first update online; random ones without offline phase

    without_data = "--offline-steps 0"

    @property
    def random_steps(self) -> int:
        """Environment steps with random actions."""
        return 0 if self.offline_steps else self.start_training

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if not 1 <= self.target_subset <= self.ensemble:
            return f"--target-subset must lie in 1 ... --ensemble {self.ensemble}, not {self.target_subset}"
        if self.online_steps and self.alpha_online > self.most_online:
            return (
                f"--alpha-online {self.alpha_online:g} must lie in 0 ... --most-online {self.most_online:g}, within "
                "which the first episode's end puts it: choose another, or raise --most-online"
            )
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
    **presets.each(
        "authors-code", tasks.HANDS, ("expert",), alpha_offline=8.0, alpha_online=8.0, most_online=8.0, k_p=6e-4,
        k_d=2e-3, utd=1,
    ),
}  # fmt: skip


class REDQAdaptiveBC(Agent):
    """Actor, critics, their targets, and the cloning weight."""

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

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch | None) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        actor_key, critic_key = jax.random.split(key)
        policy = DeterministicActor(config.hidden, example.action.shape[-1])
        actor = Network.create(policy, actor_key, example.observation)
        module = Critic(config.hidden)
        critic = Ensemble.create(module, critic_key, example.observation, example.action, members=config.ensemble)
        kept = None
        if prior is not None:
            rows = prior.reward.shape[0]
            kept = jnp.zeros(min(rows, max(round(config.kept * rows), config.kept_at_least)), jnp.int32)
        weight = config.alpha_offline if config.offline_steps else config.alpha_online
        return cls(
            config, jnp.asarray(weight, jnp.float32), jnp.full((), jnp.nan), kept,
            actor, actor.target(), critic, critic.target(),
        )  # fmt: skip

    def enter(self, phase: str, key: jax.Array, prior: Batch | None) -> Self:
        """Online, most of the data leave the buffer and the controller begins; networks and optimisers stay."""
        agent = super().enter(phase, key, prior)
        if phase != "online" or prior is None:
            return agent
        rows = jax.random.permutation(key, prior.reward.shape[0])[: self.kept.shape[0]]
        return agent.replace(
            alpha=jnp.asarray(self.config.alpha_online, jnp.float32), kept=jnp.sort(rows).astype(jnp.int32)
        )

    def act(self, observation: jax.Array) -> jax.Array:
        """pi(s)."""
        return self.actor(observation)

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """pi(s) with noise."""
        action = self.act(observation)
        return (action + self.config.exploration_noise * jax.random.normal(key, action.shape)).clip(-1, 1)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Batch | None) -> Batch:
        """Uniform minibatches; online, of the rows kept and the experience together."""
        c = self.config
        if experience is None or prior is None:
            return super().sample(key, experience, prior)
        return replay.sample_union(key, experience, prior, c.utd, c.batch_size, self.kept)

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

    def after_episode(self, episode: Episode, experience: Replay) -> Self:
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
        chex.assert_equal_shape((batch.reward, batch.mask, next_q))
        return batch.reward + c.discount * batch.mask * next_q

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Equation 3: squared error to one common target, averaged over members and batch."""
        target = self.target(batch, key)
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (self.config.ensemble, *target.shape))
        loss = jnp.square(q - target).mean()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def actor_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Equation 4: the normalised value of the policy's own actions, negated, and the weighted cloning term."""
        action = self.actor(batch.observation, params=params)
        chex.assert_equal_shape((batch.action, action))
        q = self.critic(batch.observation, action).mean(axis=0)
        cloning = jnp.square(action - batch.action).mean()
        loss = -q.mean() / jax.lax.stop_gradient(jnp.abs(q).mean()) + self.alpha * cloning
        return loss, {"actor_loss": loss, "cloning": cloning, "alpha": self.alpha}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """One step of all critics."""
        critic, metrics = self.critic.minimise(self.critic_loss, batch, key, learning_rate=self.config.learning_rate)
        return self.replace(critic=critic), metrics

    @property
    def period(self) -> int:
        """Critic steps per actor step."""
        return self.config.policy_delay

    def update_delayed(self, batch: Batch) -> tuple[Self, Metrics]:
        """One step of the actor, then one of every target network."""
        c = self.config
        actor, metrics = self.actor.minimise(self.actor_loss, batch, learning_rate=c.learning_rate)
        return self.replace(
            actor=actor,
            target_actor=self.target_actor.track(actor, c.target_rate),
            target_critic=self.target_critic.track(self.critic, c.target_rate),
        ), metrics


if __name__ == "__main__":
    command.main(REDQAdaptiveBC, Config, PRESETS)
