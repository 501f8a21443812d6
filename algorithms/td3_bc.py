"""TD3+BC: TD3 whose actor is also pulled towards the actions in the data; with imitation first, and online afterwards.

Fujimoto & Gu, "A Minimalist Approach to Offline Reinforcement Learning", NeurIPS 2021 (arXiv:2106.06860). Per step

    y    = r + gamma m min_i Q'_i(s', clip(pi'(s') + clip(eps, +-c))),  eps ~ N(0, sigma)    TD3BC.target
    L_Q  = sum_i mean_b (Q_i(s, a) - y)^2                                                    TD3BC.critic_loss

and, after every `policy_delay` steps, one actor step and one step of every target network (TD3BC.update_delayed),

    L_pi = -lambda mean_b Q_1(s, pi(s)) + mean_b (pi(s) - a)^2                               TD3BC.actor_loss
    lambda = alpha / mean_b |Q_1(s, pi(s))|   (no gradient)

m is the mask, 0 where an episode terminated; observations are normalised with the data's mean and deviation.

`--pretrain-steps N` is Jelley et al., "Efficient Offline Reinforcement Learning: First Imitate, then Improve" (2024):
N steps before those, in which

    L_pi = mean_b (pi(s) - a)^2                                                              TD3BC.cloning_loss
    L_MC = sum_i mean_b (Q_i(s, a) - R(s, a))^2                                              TD3BC.imitation_loss
    R    = discounted return to the episode's end; the last reward of an episode that did not terminate goes on for
           ever, r / (1 - gamma)                                                             TD3BC.prepare

with soft updates of all targets at every one of them, and the same optimisers afterwards. `--layer-norm` puts LayerNorm
into all networks, which they advise. With `--mixed`, every critic loss is divided by its own value without gradient:

    L_MC / |L_MC| + w C / |C|,  afterwards  L_Q / |L_Q| + w C / |C|
    C    = sum_i mean_b [logsumexp_k Q_i(s, a_k) - Q_i(s, a)],  a_1 ... a_10 uniform         TD3BC.conservatism

w is `--conservative`, for Adroit. `--td-share l` puts (1 - l) L_MC / |L_MC| + l L_Q / |L_Q| in the place of the first
term of imitation. Presets `imitate-first`, which knows their alpha and steps of every data set, and
`imitate-first-adroit` hold these settings.

`--online-steps N` goes on in the environment, with minibatches drawn uniformly from data and experience together and
Gaussian noise on the actions, cloning with weight `--online-cloning`: 1 is TD3+BC, 0 is TD3-ft.

Differences. Xavier-uniform kernels without biases, where PyTorch's begin with some: a fresh critic's values deviate by
0.23 instead of 0.07. AntMaze's rewards are -1 per step here, 0 and 1 in both authors' code (but for umaze and
large-play in "First Imitate", which normalises observations there, too). An episode that a time limit cut does not
terminate anything here; in the code of "First Imitate" it does. Their LayerNorm has no parameters and an epsilon of
1e-5, here 1e-6; their actor has a third layer (`--actor-hidden 256 256 256`). They divide C by its signed value, which
pulls it up to 0 where it is negative; here it goes on falling. Each of their phases has its own w, and where that is 0
after imitation, L_Q is left undivided.

Published, on D4RL's -v2 data: hopper-medium 60, halfcheetah-medium 48, walker2d-medium 83 (final scores, CORL's
README); hopper-medium 98 with imitation first and LayerNorm (logs of "First Imitate").

Measured, three seeds: 100,000 transitions of hopper-medium's recipe 93, where CORL's file comes to 92
(benchmarks/results/official.csv); in small, 93 with imitation first and LayerNorm and 49 with neither
(imitate_first.csv).

    python algorithms/td3_bc.py --env hopper-medium
    python algorithms/td3_bc.py --env hopper-medium --preset imitate-first
    python algorithms/td3_bc.py --env hopper-medium --online-steps 250000 --online-cloning 0
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from common import command, presets, tasks
from common.agent import Agent, Hyperparameters, Metrics, scaled, traced
from common.datasets import Dataset, transforms
from common.networks import Critic, DeterministicActor, Ensemble, Network, Normaliser, Parameters
from common.replay import Batch, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """Those of both papers, by their names."""

    learning_rate: float = 3e-4  # Adam's step size, for all networks
    discount: float = 0.99  # discount factor (gamma); R is computed once, with this value, also where a grid varies it
    target_rate: float = 0.005  # step of the target networks towards the online ones (tau)
    alpha: float = traced(2.5, "[0, inf)")  # weight of the value against the cloning term
    target_noise: float = 0.2  # standard deviation of the smoothing noise on the target action (sigma)
    noise_clip: float = 0.5  # where the smoothing noise is cut off (c)
    exploration_noise: float = 0.1  # standard deviation of the noise on actions online
    online_cloning: float = traced(1.0, "[0, inf)")  # weight of the cloning term online; 0 is TD3-ft
    td_share: float = traced(0.0, "[0, 1]")  # of L_Q in the critics' imitation (l); the rest is L_MC
    conservative: float = traced(0.0, "[0, inf)")  # weight of the conservative term (w)
    hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of the critics
    actor_hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of the actor
    layer_norm: bool = False  # LayerNorm in all networks
    normalise: bool = True  # normalise observations with the data's mean and standard deviation
    policy_delay: int = 2  # critic steps per actor step
    batch_size: int = 256  # transitions per gradient step
    utd: int = 1  # critic steps per environment step
    mixed: bool = False  # self-normalised critic losses, for --td-share and --conservative
    pretrain_steps: int = 0  # steps of imitation first
    offline_steps: int = 1_000_000  # critic steps on the data after those
    online_steps: int = 0  # environment steps afterwards

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("imitation", self.pretrain_steps), *super().phases

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if not self.mixed and (self.td_share != 0 or self.conservative != 0):
            return "--td-share and --conservative need --mixed"
        if self.td_share > 0 and self.pretrain_steps == 0:
            return f"--td-share {self.td_share} mixes the losses of imitation: it needs --pretrain-steps"
        return None


MEDIUM = "medium", "medium-replay"
FIRST = {"pretrain_steps": 10_000, "layer_norm": True, "actor_hidden": (256, 256, 256), "offline_steps": 990_000}

PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "antmaze": {"normalise": False, "eval_episodes": 100, "eval_every": 50_000},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {
        "normalise": False, "discount": 0.995, "hidden": (128, 128), "actor_hidden": (128, 128),
        "offline_steps": 50_000, "eval_every": 5000, "eval_episodes": 100,
    },
    # By algorithm, with --preset: laid over the family's. The authors count imitation among their steps.
    "imitate-first": FIRST,
    "imitate-first-adroit": FIRST | {
        "pretrain_steps": 200_000, "offline_steps": 100_000, "alpha": 1.0, "mixed": True, "conservative": 1.0,
    },
    # By algorithm and task: laid over the algorithm's.
    **presets.each("imitate-first", ("halfcheetah",), MEDIUM, alpha=20.0, offline_steps=90_000),
    **presets.each("imitate-first", ("hopper",), MEDIUM, alpha=10.0, offline_steps=490_000),
    **presets.each("imitate-first", ("walker2d",), MEDIUM, alpha=5.0, offline_steps=490_000),
    **presets.each("imitate-first", tasks.HANDS, tasks.DEMONSTRATIONS, alpha=1.0, offline_steps=290_000),
    # Ours, as in the family.
    **presets.each(
        "imitate-first", ("pointmaze",), tasks.POINT_MAZES, actor_hidden=(128, 128, 128), offline_steps=50_000
    ),
}  # fmt: skip


class Prior(Batch):
    """The data, with what became of them."""

    return_to_go: jax.Array
    """[n]: the Monte-Carlo target R."""


class TD3BC(Agent):
    """Actor, two critics, and their targets."""

    config: Config
    normal: Normaliser
    cloning: jax.Array
    """[]: weight of the cloning term in this phase."""
    actor: Network
    target_actor: Network
    critic: Ensemble
    target_critic: Ensemble

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Prior:
        """The data with their Monte-Carlo returns, in the task's training rewards; NaN where nothing learns them."""
        rows = data.batch(task)
        returns = np.full_like(rows.reward, np.nan)
        if config.pretrain_steps:
            returns = transforms.returns_to_go(data, rows.reward, float(config.discount), continued=True)
        return Prior(**vars(rows), return_to_go=returns)

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Prior) -> Self:
        """A fresh agent for transitions shaped like `example`."""
        c = config
        actor_key, critic_key = jax.random.split(key)
        policy = DeterministicActor(c.actor_hidden, example.action.shape[-1], c.layer_norm)
        actor = Network.create(policy, actor_key, example.observation)
        module = Critic(c.hidden, c.layer_norm)
        critic = Ensemble.create(module, critic_key, example.observation, example.action, members=2)
        normal = Normaliser.of(prior.observation, c.normalise)
        return cls(c, normal, jnp.ones(()), actor, actor.target(), critic, critic.target())

    def enter(self, phase: str, key: jax.Array, prior: Prior) -> Self:
        """Online, the cloning term gets its online weight."""
        weight = self.config.online_cloning if phase == "online" else 1.0
        return self.replace(phase=phase, cloning=jnp.asarray(weight, jnp.float32))

    def act(self, observation: jax.Array) -> jax.Array:
        """pi(s)."""
        return self.actor(self.normal(observation))

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """pi(s) with noise."""
        action = self.act(observation)
        return (action + self.config.exploration_noise * jax.random.normal(key, action.shape)).clip(-1, 1)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Batch:
        """Uniform minibatches, normalised."""
        return super().sample(key, experience, prior).normalised(self.normal)

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        c = self.config
        noise = (c.target_noise * jax.random.normal(key, batch.action.shape)).clip(-c.noise_clip, c.noise_clip)
        next_action = (self.target_actor(batch.next_observation) + noise).clip(-1, 1)
        next_q = self.target_critic(batch.next_observation, next_action).min(axis=0)
        chex.assert_equal_shape((batch.reward, batch.mask, next_q))
        return batch.reward + c.discount * batch.mask * next_q

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, summed over both critics; with the conservative term where asked for."""
        target_key, random_key = jax.random.split(key)
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape(q, (2, *batch.reward.shape))
        loss = td = jnp.square(q - self.target(batch, target_key)).mean(axis=-1).sum()
        if self.config.mixed:
            loss = scaled(td) + self.config.conservative * scaled(self.conservatism(params, batch, q, random_key))
        return loss, {"critic_loss": td, "q": q.mean()}

    def imitation_loss(self, params: Parameters, batch: Prior, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to the returns, summed over both critics; mixed with other terms where asked for."""
        c = self.config
        q = self.critic(batch.observation, batch.action, params=params)
        chex.assert_shape((batch.return_to_go, q), (batch.reward.shape, (2, *batch.reward.shape)))
        loss = returns = jnp.square(q - batch.return_to_go).mean(axis=-1).sum()
        if c.mixed:
            target_key, random_key = jax.random.split(key)
            td = jnp.square(q - self.target(batch, target_key)).mean(axis=-1).sum()
            loss = (1 - c.td_share) * scaled(returns) + c.td_share * scaled(td)
            loss += c.conservative * scaled(self.conservatism(params, batch, q, random_key))
        return loss, {"critic_loss": returns, "q": q.mean()}

    def conservatism(self, params: Parameters, batch: Batch, q: jax.Array, key: jax.Array) -> jax.Array:
        """C, [], for the critics' values `q` [critic, batch] of the data's actions."""
        actions = jax.random.uniform(key, (10, *batch.action.shape), minval=-1.0, maxval=1.0)
        observations = jnp.broadcast_to(batch.observation, (10, *batch.observation.shape))
        random_q = self.critic(observations, actions, params=params)
        chex.assert_shape(random_q, (2, 10, *batch.reward.shape))
        return (logsumexp(random_q, axis=1) - q).mean(axis=-1).sum()

    def actor_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The value of the policy's own actions, normalised and negated, and the distance from the data's actions."""
        action = self.actor(batch.observation, params=params)
        chex.assert_equal_shape((batch.action, action))
        q = self.critic.members(jnp.array([0]))(batch.observation, action)[0]
        scale = self.config.alpha / jax.lax.stop_gradient(jnp.abs(q).mean())
        cloning = jnp.square(action - batch.action).mean()
        loss = -scale * q.mean() + self.cloning * cloning
        return loss, {"actor_loss": loss, "cloning": cloning}

    def track(self) -> Self:
        """One step of every target network."""
        rate = self.config.target_rate
        return self.replace(
            target_actor=self.target_actor.track(self.actor, rate),
            target_critic=self.target_critic.track(self.critic, rate),
        )

    def cloning_loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Imitation: the distance from the data's actions."""
        action = self.actor(batch.observation, params=params)
        chex.assert_equal_shape((batch.action, action))
        loss = jnp.square(action - batch.action).mean()
        return loss, {"actor_loss": loss, "cloning": loss}

    def imitate(self, batch: Prior, key: jax.Array) -> tuple[Self, Metrics]:
        """One step of "First Imitate": the actor clones, the critics regress returns."""
        rate = self.config.learning_rate
        actor, actor_metrics = self.actor.minimise(self.cloning_loss, batch, learning_rate=rate)
        critic, critic_metrics = self.critic.minimise(self.imitation_loss, batch, key, learning_rate=rate)
        return self.replace(actor=actor, critic=critic).track(), critic_metrics | actor_metrics

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """One step of the critics, or in the first phase one of imitation."""
        if self.phase == "imitation":
            return self.imitate(batch, key)
        critic, metrics = self.critic.minimise(self.critic_loss, batch, key, learning_rate=self.config.learning_rate)
        return self.replace(critic=critic), metrics

    @property
    def period(self) -> int:
        """Critic steps per actor step."""
        return 0 if self.phase == "imitation" else self.config.policy_delay

    def update_delayed(self, batch: Batch) -> tuple[Self, Metrics]:
        """One step of the actor, then one of every target network."""
        actor, metrics = self.actor.minimise(self.actor_loss, batch, learning_rate=self.config.learning_rate)
        return self.replace(actor=actor).track(), metrics


if __name__ == "__main__":
    command.main(TD3BC, Config, PRESETS)
