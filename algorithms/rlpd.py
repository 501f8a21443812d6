"""RLPD: off-policy reinforcement learning that starts from prior data, without pretraining and without a constraint.

Ball, Smith, Kostrikov & Levine, "Efficient Online Reinforcement Learning with Offline Data", ICML 2023
(arXiv:2302.02948). Algorithm 1 of the paper, line by line:

    lines 12-14  minibatches of N/2 rows each from the replay R and the prior data D        RLPD.sample
    lines 15-17  y = r + gamma m (min_{i in Z} Q'_i(s', a') - alpha log pi(a'|s'))          RLPD.target
    lines 18-19  L(theta_i) = mean_b (y - Q_i(s, a))^2 for all i = 1 ... E                  RLPD.critic_loss
    line 21      theta'_i <- (1 - rho) theta'_i + rho theta_i                               RLPD.update_critic
    line 23      max_phi mean_b [ mean_i Q_i(s, a) - alpha log pi(a|s) ]                    RLPD.actor_loss
    (SAC)        min_alpha alpha (H[pi] - H_target), H_target = -|A| / 2                    RLPD.temperature_loss
    lines 11-23  G critic steps, then one actor and one temperature step on the last batch  RLPD.update

a' and a are sampled from pi; Z is a random subset of the E members, drawn anew for every gradient step, and the entropy
term of line 17 is there only with `--backup-entropy`. m is the mask, 0 where an episode terminated.

Differences. Line 17 of the paper prints the entropy term as + gamma alpha log pi, and line 21 has rho and 1 - rho
exchanged (Table 1 gives rho = 0.005); this file follows the authors' code, as it does where the paper is silent:
Xavier-uniform kernels, Dense-Dropout-LayerNorm-ReLU, 5000 uniformly random actions first, AdamW (here on kernels only;
theirs decays LayerNorm's scales, too). The prior rows of a minibatch come first rather than interleaved, which no loss
can notice; a ratio that does not divide the batch is rounded to whole rows.

The ablations of the paper and its relatives are flags or presets of this file: `--no-layer-norm`, `--dropout`,
`--weight-decay`, `--seeded-buffer`, `--offline-ratio`, `--pretrain-steps`, `--utd`, and

    --preset sac     two critics, no LayerNorm, one gradient step, no prior data (Haarnoja et al., 2018)
    --preset redq    ten critics, two in the target, twenty gradient steps, no prior data (Chen et al., 2021)
    --preset droq    two critics with dropout and LayerNorm, twenty gradient steps, no prior data (Hiraoka et al., 2022)
    --preset sacfd   sac, with the replay buffer initialised with the prior data (Vecerik et al., 2017)

Published as curves; read off by eye, as means over tasks: AntMaze 97 % at 300,000 steps, sparse Adroit 70 % at a
million, locomotion (D4RL's -v0 sets; the tasks here are of -v2) 94 at 250,000.

Measured at the paper's size: antmaze-umaze 89 after 35,000 steps, four seeds, on data of this project's recipe
(benchmarks/results/rlpd_antmaze-umaze_h100.csv). In small, three seeds: pointmaze-medium 100 after 6,000
(rlpd_pointmaze-medium.csv), pointmaze-large 98 after 10,000 (rlpd_pointmaze-large.csv); antmaze-umaze 80 after 45,000,
with five critics of two layers 128 wide (rlpd_iql.csv).

    python algorithms/rlpd.py --env antmaze-large-diverse
"""

from __future__ import annotations

from typing import Any, Self

import chex
import jax
import jax.numpy as jnp

from common import command, replay
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.networks import Critic, Ensemble, Network, Parameters, Scalar, TanhNormalActor
from common.replay import Batch, Replay


class Config(Hyperparameters):
    """Those of Tables 1 and 2 of the paper, and of its ablations."""

    learning_rate: float = 3e-4  # Adam's step size, for actor, critics and temperature
    discount: float = 0.99  # discount factor (gamma)
    target_rate: float = 0.005  # step of the target critics towards the online ones (the paper's rho)
    initial_temperature: float = traced(1.0, "(0, inf)")  # entropy temperature (alpha) before training
    target_entropy_per_action: float = -0.5  # target entropy divided by the number of action dimensions
    weight_decay: float = 0.0  # AdamW's decay of the critics' kernels (0.01 in the paper's ablation)
    hidden: tuple[int, ...] = (256, 256)  # width of each hidden layer of actor and critics
    ensemble: int = 10  # critics (E)
    target_subset: int = 2  # target critics whose minimum is the target (Z): 2 is clipped double Q-learning, 1 without
    layer_norm: bool = True  # LayerNorm in the critics
    dropout: float = static(0.0)  # dropout rate in the critics
    backup_entropy: bool = True  # entropy term in the target (line 17)
    utd: int = 20  # gradient steps per environment step (update-to-data ratio, G)
    batch_size: int = 256  # transitions per gradient step (N)
    offline_ratio: float = static(0.5, "[0, 1]")  # share of each minibatch that is prior data; 0 leaves them out
    seeded_buffer: bool = False  # draw uniformly from prior data and experience together, not in a fixed ratio
    steps: int = 250_000  # environment steps of each run
    start_training: int = static(5000, "[0, inf)")  # of these, with uniformly random actions before the first update
    pretrain_steps: int = 0  # updates (of `utd` gradient steps) on prior data alone before the first environment step

    without_data = "--offline-ratio 0"
    default_task = "pointmaze-medium"

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("offline", self.pretrain_steps), ("online", self.steps)

    @property
    def uses_prior_data(self) -> bool:
        """Whether anything is drawn from prior data."""
        return self.offline_ratio > 0 or self.seeded_buffer or self.pretrain_steps > 0

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if not 1 <= self.target_subset <= self.ensemble:
            return f"--target-subset must lie in 1 ... --ensemble {self.ensemble}, not {self.target_subset}"
        if self.seeded_buffer and self.offline_ratio > 0:
            return "--seeded-buffer draws from one buffer: it needs --offline-ratio 0"
        if self.start_training >= self.steps and self.pretrain_steps == 0:
            return (
                f"--start-training {self.start_training} leaves no step to learn at: it must be below "
                f"--steps {self.steps}"
            )
        return None


SAC = {
    "ensemble": 2, "target_subset": 2, "layer_norm": False, "backup_entropy": True, "utd": 1, "offline_ratio": 0.0,
}  # fmt: skip
DEEP = {"hidden": (256, 256, 256), "backup_entropy": False}

PRESETS: dict[str, dict[str, Any]] = {
    # By task family: Table 2 of the paper. `steps` and the like are arguments of the run.
    "locomotion": {"steps": 250_000},
    "antmaze": DEEP | {"target_subset": 1, "steps": 300_000, "eval_episodes": 100},
    "adroit-binary": DEEP | {"steps": 1_000_000, "eval_episodes": 100},
    "adroit": DEEP | {"steps": 1_000_000},
    # Ours: small networks for a small maze that two CPU cores solve within minutes. Paths take some 300 steps: with
    # -1 per step the value of being one step closer must still stand out at that distance, and from the entropy.
    "pointmaze": {
        "hidden": (128, 128), "ensemble": 5, "target_subset": 1, "backup_entropy": False, "utd": 10,
        "batch_size": 128, "learning_rate": 8e-4, "discount": 0.995, "initial_temperature": 0.1, "start_training": 500,
        "steps": 10_000, "eval_every": 2000, "eval_episodes": 100,
    },
    # The first command: shorter paths, still smaller networks.
    "pointmaze/pointmaze-medium": {
        "hidden": (64, 64), "learning_rate": 1e-3, "discount": 0.99, "target_entropy_per_action": -1.0, "steps": 6000,
        "eval_every": 1000,
    },
    "gym": {"offline_ratio": 0.0, "steps": 250_000},
    "gym/--dataset": {"offline_ratio": 0.5},  # where data are named, for an environment that has none of its own
    # By algorithm, with --preset: laid over the family's.
    "sac": SAC,
    "redq": SAC | {"ensemble": 10, "utd": 20},
    "droq": SAC | {"layer_norm": True, "dropout": 0.01, "utd": 20},
    "sacfd": SAC | {"seeded_buffer": True},
}  # fmt: skip


class RLPD(Agent):
    """Actor, critics and temperature."""

    config: Config
    actor: Network
    critic: Ensemble
    target_critic: Ensemble
    temperature: Network

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch | None) -> Self:
        """A fresh agent for transitions shaped like `example`."""
        actor_key, critic_key, temperature_key = jax.random.split(key, 3)
        actor = Network.create(TanhNormalActor(config.hidden, example.action.shape[-1]), actor_key, example.observation)
        module = Critic(config.hidden, config.layer_norm, config.dropout)
        critic = Ensemble.create(module, critic_key, example.observation, example.action, members=config.ensemble)
        temperature = Network.create(Scalar(), temperature_key, config.initial_temperature)
        return cls(config, actor, critic, critic.target(), temperature)

    def act(self, observation: jax.Array) -> jax.Array:
        """The mode of pi(. | s)."""
        return self.actor(observation).mode()

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """A sample of pi(. | s)."""
        return self.actor(observation).sample(key)

    def sample(self, key: jax.Array, experience: Replay | None, prior: Batch | None) -> Batch:
        """The minibatches of one update, arrays [utd, batch_size, ...]; of prior data alone without experience."""
        c = self.config
        if experience is None:
            return replay.sample(key, prior, prior.reward.shape[0], (c.utd, c.batch_size))
        if c.seeded_buffer:
            return replay.sample_union(key, experience, prior, c.utd, c.batch_size)
        if c.offline_ratio == 0:
            return replay.sample(key, experience.rows, experience.size, (c.utd, c.batch_size))
        return replay.sample_mixed(key, experience, prior, c.utd, c.batch_size, c.offline_ratio)

    def target(self, batch: Batch, key: jax.Array) -> jax.Array:
        """The regression target y, [batch]."""
        c = self.config
        action_key, subset_key, dropout_key = jax.random.split(key, 3)
        next_action, log_prob = self.actor(batch.next_observation).sample_and_log_prob(action_key)
        subset = jax.random.choice(subset_key, c.ensemble, (c.target_subset,), replace=False)
        next_q = self.target_critic.members(subset)(batch.next_observation, next_action, dropout_key=dropout_key)
        value = next_q.min(axis=0)
        chex.assert_equal_shape((batch.reward, batch.mask, value, log_prob))
        if c.backup_entropy:
            value -= self.temperature() * log_prob
        return batch.reward + c.discount * batch.mask * value

    def critic_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Squared error to one common target, averaged over members and batch."""
        target_key, dropout_key = jax.random.split(key)
        target = self.target(batch, target_key)
        q = self.critic(batch.observation, batch.action, params=params, dropout_key=dropout_key)
        chex.assert_shape(q, (self.config.ensemble, *target.shape))
        loss = jnp.square(q - target).mean()
        return loss, {"critic_loss": loss, "q": q.mean()}

    def actor_loss(self, params: Parameters, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """The entropy-regularised value of the policy's own actions, by the mean of all critics, negated."""
        action_key, dropout_key = jax.random.split(key)
        action, log_prob = self.actor(batch.observation, params=params).sample_and_log_prob(action_key)
        q = self.critic(batch.observation, action, dropout_key=dropout_key).mean(axis=0)
        chex.assert_equal_shape((batch.reward, q, log_prob))
        loss = (self.temperature() * log_prob - q).mean()
        return loss, {"actor_loss": loss, "entropy": -log_prob.mean()}

    def temperature_loss(self, params: Parameters, entropy: jax.Array, action_dim: int) -> tuple[jax.Array, Metrics]:
        """Falls with the temperature while the policy's entropy is above its target, and rises below it."""
        temperature = self.temperature(params=params)
        target = self.config.target_entropy_per_action * action_dim
        return temperature * (entropy - target), {"temperature": temperature}

    def update_critic(self, batch: Batch, key: jax.Array) -> tuple[Self, Metrics]:
        """One gradient step of all critics, and one step of their targets towards them."""
        c = self.config
        critic, metrics = self.critic.minimise(
            self.critic_loss, batch, key, learning_rate=c.learning_rate, weight_decay=c.weight_decay
        )
        return self.replace(critic=critic, target_critic=self.target_critic.track(critic, c.target_rate)), metrics

    def update_actor(self, batch: Batch, key: jax.Array) -> tuple[Self, Metrics]:
        """One gradient step of the actor, then one of the temperature at the entropy just measured."""
        rate = self.config.learning_rate
        actor, metrics = self.actor.minimise(self.actor_loss, batch, key, learning_rate=rate)
        temperature, more = self.temperature.minimise(
            self.temperature_loss, metrics["entropy"], batch.action.shape[-1], learning_rate=rate
        )
        return self.replace(actor=actor, temperature=temperature), metrics | more

    def update(self, batches: Batch, key: jax.Array, step: jax.Array) -> tuple[Self, Metrics]:
        """Algorithm 1, lines 11-23, for minibatches [utd, batch_size, ...]."""
        critic_key, actor_key = jax.random.split(key)
        keys = jax.random.split(critic_key, self.config.utd)
        agent, critic_metrics = jax.lax.scan(lambda agent, x: agent.update_critic(*x), self, (batches, keys))
        agent, actor_metrics = agent.update_actor(jax.tree.map(lambda x: x[-1], batches), actor_key)
        return agent, jax.tree.map(jnp.mean, critic_metrics) | actor_metrics


if __name__ == "__main__":
    command.main(RLPD, Config, PRESETS)
