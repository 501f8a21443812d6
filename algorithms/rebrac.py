"""ReBRAC: TD3+BC with a penalty in the critic as well, LayerNorm, deeper networks, and weights for every data set.

Tarasov, Kurenkov, Nikulin & Kolesnikov, "Revisiting the Minimalist Approach to Offline Reinforcement Learning",
NeurIPS 2023 (arXiv:2305.09836). Per step

    y    = r + gamma m [ min_i Q'_i(s', a') - beta_2 |a' - a'_D|^2 ]                         ReBRAC.target
    a'   = clip(pi'(s') + clip(eps, +-c)),  eps ~ N(0, sigma)
    L_Q  = sum_i mean_b (Q_i(s, a) - y)^2                                                    ReBRAC.critic_loss

and, after every `policy_delay` steps, one actor step and one step of every target network (ReBRAC.update_delayed),

    L_pi = mean_b [ beta_1 |pi(s) - a|^2 - lambda min_i Q_i(s, pi(s)) ]                      ReBRAC.actor_loss
    lambda = 1 / mean_b |min_i Q_i(s, pi(s))|   (no gradient)

a'_D is the action that follows in the data, m the mask, 0 where an episode terminated. The squared distances are sums
over the action's numbers. Where an episode was cut, no action follows: that last row is left out (ReBRAC.prepare), as
in the authors' reader. Critics have LayerNorm after each ReLU, the actor has none; parameters begin as in their code.
Rewards are learnt as `reward_scale` r + `reward_shift`: on AntMaze 100 at the goal and 0 elsewhere, to which beta_2 and
gamma are tuned.

`--online-steps N` goes on in the environment, as in the authors' code: half of every minibatch is data, half is
experience; beta_2 is 0; beta_1 falls linearly to 0, or to `--least-share` of itself (ReBRAC.share_left).

Differences. The authors' code of October 2023 takes for a target the greater of y and the return of the data, which
the paper and CORL do not have; here it is y. Actor steps follow the second, fourth, ... critic step, theirs the first,
third, .... As in their code, the target actor moves towards the actor before its step. Their buffer online holds an
action of the policy as the next one, which nothing reads while beta_2 is 0; here there is none.

Published, on D4RL's data (final scores, CORL's README): hopper-medium 102, halfcheetah-medium 64, walker2d-medium 86,
antmaze-umaze 98, antmaze-large-diverse 64, pen-human 103. Measured on recipes, in small
(benchmarks/results/lecture.md): pointmaze-medium 50; hopper-medium-replay 16.

    python algorithms/rebrac.py --env hopper-medium
    python algorithms/rebrac.py --env antmaze-umaze --online-steps 1000000
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp

from common import command, presets, replay, tasks
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.datasets import Dataset, transforms
from common.networks import Critic, DeterministicActor, Ensemble, Network, Parameters
from common.replay import Batch, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """Those of the paper, by its names; the defaults are hopper-medium's."""

    learning_rate: float = 1e-3  # Adam's step size, for the critics
    actor_learning_rate: float = 1e-3  # Adam's step size, for the actor
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target networks towards the online ones (tau)
    actor_penalty: float = traced(0.01, "[0, inf)")  # weight of the distance from the data's action (beta_1)
    critic_penalty: float = traced(0.01, "[0, inf)")  # weight of the distance from the data's next action (beta_2)
    target_noise: float = 0.2  # standard deviation of the smoothing noise on the target action (sigma)
    noise_clip: float = 0.5  # where the smoothing noise is cut off (c)
    exploration_noise: float = 0.03  # standard deviation of the noise on actions online
    least_share: float = traced(0.0, "[0, 1]")  # of beta_1, what is left of it when its fall online ends
    reward_scale: float = traced(1.0, "(0, inf)")  # what the task's rewards are multiplied by
    reward_shift: float = 0.0  # what is then added to them
    hidden: tuple[int, ...] = (256, 256, 256)  # width of each hidden layer of all networks
    layer_norm: bool = True  # LayerNorm in the critics
    policy_delay: int = 2  # critic steps per actor step
    batch_size: int = 1024  # transitions per gradient step
    offline_ratio: float = static(0.5, "[0, 1]")  # share of each minibatch online that is data
    utd: int = 1  # critic steps per environment step
    offline_steps: int = 1_000_000  # critic steps on the data
    online_steps: int = 0  # environment steps afterwards


PENALTIES = ("actor_penalty", "critic_penalty")
SLOWER = {"learning_rate": 3e-4, "actor_learning_rate": 3e-4, "batch_size": 256, "eval_episodes": 100}
GOALS = {"reward_scale": 100.0, "reward_shift": 100.0}

PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "antmaze": SLOWER | GOALS | {"learning_rate": 5e-5, "discount": 0.999, "eval_every": 50_000},
    "adroit": SLOWER,
    "adroit-binary": SLOWER,
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": SLOWER | GOALS | {
        "discount": 0.995, "hidden": (128, 128), "actor_penalty": 0.003, "critic_penalty": 0.002,
        "offline_steps": 50_000, "eval_every": 5000,
    },
    # By task: beta_1 and beta_2 of the authors' configurations.
    **presets.table("locomotion", PENALTIES, tasks.QUALITIES, {
        "halfcheetah": ((0.001, 0.1), (0.001, 0.01), (0.01, 0.001), (0.01, 0.1), (0.01, 0.01)),
        "hopper": ((0.001, 0.01), (0.01, 0.01), (0.05, 0.5), (0.1, 0.01), (0.1, 0.1)),
        "walker2d": ((0.01, 0.0), (0.05, 0.1), (0.05, 0.01), (0.01, 0.01), (0.01, 0.5)),
    }),
    **presets.table("antmaze", PENALTIES, ("umaze", "umaze-diverse"), {"antmaze": ((0.003, 0.002), (0.003, 0.001))}),
    **presets.table("antmaze", PENALTIES, ("play", "diverse"), {
        "antmaze-medium": ((0.001, 0.0005), (0.001, 0.0)),
        "antmaze-large": ((0.002, 0.001), (0.002, 0.002)),
    }),
    **presets.table("adroit", PENALTIES, tasks.DEMONSTRATIONS, {
        "pen": ((0.1, 0.5), (0.05, 0.5), (0.01, 0.01)),
        "door": ((0.1, 0.1), (0.01, 0.1), (0.05, 0.01)),
        "hammer": ((0.01, 0.5), (0.1, 0.5), (0.01, 0.01)),
        "relocate": ((0.1, 0.01), (0.1, 0.01), (0.05, 0.01)),
    }),
}  # fmt: skip


class Prior(Batch):
    """The data, with what was done next."""

    next_action: jax.Array
    """[n, action]: the data's action in the next state, a'_D."""


class ReBRAC(Agent):
    """Actor, two critics, and their targets."""

    config: Config
    share: jax.Array
    """[]: of beta_1, what is left of it."""
    actor: Network
    target_actor: Network
    critic: Ensemble
    target_critic: Ensemble

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Prior:
        """The data with their next actions, but for the rows after which an episode was cut."""
        rows = Prior(**vars(data.batch(task)), next_action=transforms.next_action(data))
        return jax.tree.map(lambda x: x[~data.truncated], rows)

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Prior) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        actor_key, critic_key = jax.random.split(key)
        policy = DeterministicActor(config.hidden, example.action.shape[-1], last_bound=1e-3, relu_first=True)
        actor = Network.create(policy, actor_key, example.observation)
        module = Critic(config.hidden, config.layer_norm, last_bound=3e-3, relu_first=True)
        critic = Ensemble.create(module, critic_key, example.observation, example.action, members=2)
        return cls(config, jnp.ones(()), actor, actor.target(), critic, critic.target())

    def act(self, observation: jax.Array) -> jax.Array:
        """pi(s)."""
        return self.actor(observation)

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """pi(s) with noise."""
        action = self.act(observation)
        return (action + self.config.exploration_noise * jax.random.normal(key, action.shape)).clip(-1, 1)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Batch:
        """Minibatches of the data; online, of data and experience in a fixed ratio."""
        c = self.config
        if experience is None:
            return super().sample(key, None, prior)
        return replay.sample_mixed(key, experience, prior.transitions(), c.utd, c.batch_size, c.offline_ratio)

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]; online, where rows have no next action, without beta_2."""
        c = self.config
        noise = (c.target_noise * jax.random.normal(key, batch.action.shape)).clip(-c.noise_clip, c.noise_clip)
        next_action = (self.target_actor(batch.next_observation) + noise).clip(-1, 1)
        value = self.target_critic(batch.next_observation, next_action).min(axis=0)
        chex.assert_equal_shape((batch.reward, batch.mask, value))
        if self.phase != "online":
            chex.assert_equal_shape((batch.next_action, next_action))
            value -= c.critic_penalty * jnp.square(next_action - batch.next_action).sum(axis=-1)
        return c.reward_scale * batch.reward + c.reward_shift + c.discount * batch.mask * value

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, summed over both critics."""
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (2, *batch.reward.shape))
        loss = jnp.square(q - self.target(batch, key)).mean(axis=-1).sum()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def actor_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The distance from the data's actions, and the value of the policy's own, normalised and negated."""
        action = self.actor(batch.observation, params=params)
        chex.assert_equal_shape((batch.action, action))
        q = self.critic(batch.observation, action).min(axis=0)
        cloning = jnp.square(action - batch.action).sum(axis=-1)
        chex.assert_equal_shape((batch.reward, q, cloning))
        penalty = self.share * self.config.actor_penalty
        loss = (penalty * cloning - q / jax.lax.stop_gradient(jnp.abs(q).mean())).mean()
        return loss, {"actor_loss": loss, "cloning": cloning.mean(), "actor_penalty": penalty}

    def share_left(self, number: jax.Array) -> jax.Array:
        """Of beta_1, what is left of it at gradient step `number`: all offline; online, less with every step."""
        c = self.config
        if self.phase != "online":
            return jnp.ones(())
        return jnp.maximum(c.least_share, 1 - (number - 1) / (c.online_steps * c.utd))

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """One step of the critics."""
        critic, metrics = self.critic.minimise(self.critic_loss, batch, key, learning_rate=self.config.learning_rate)
        return self.replace(critic=critic, share=self.share_left(number)), metrics

    @property
    def period(self) -> int:
        """Critic steps per actor step."""
        return self.config.policy_delay

    def update_delayed(self, batch: Batch) -> tuple[Self, Metrics]:
        """One step of the actor, and one of every target network; the target actor follows the actor before it."""
        c = self.config
        actor, metrics = self.actor.minimise(self.actor_loss, batch, learning_rate=c.actor_learning_rate)
        return self.replace(
            actor=actor,
            target_actor=self.target_actor.track(self.actor, c.target_rate),
            target_critic=self.target_critic.track(self.critic, c.target_rate),
        ), metrics


if __name__ == "__main__":
    command.main(ReBRAC, Config, PRESETS)
