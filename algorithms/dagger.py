"""DAgger: the learner collects, an expert says at every step what it would have done, and that is cloned.

Ross et al., 2011 (https://arxiv.org/abs/1011.0686), in rounds k = 0, 1, ..., which begin with an empty D:

    collect    a_t = a*(s_t) with probability beta_k, else a ~ pi(. | s_t); (s_t, a*(s_t)) joins D   defers, explore
    clone      `epochs` passes over all of D:
               minimise  -E log pi(a* | s) - w H(pi(. | s)) + d/2 |theta|^2                          loss, study

The expert a* is asked at every step, and its answer kept, whoever acts. beta_k (`chance`) falls linearly from 1 to 0
within `linear_rounds`, or is decay^k. A round ends with an episode, once it has `round_episodes` and `round_steps`, and
with the last step. Policy and optimiser go on from round to round. pi is a Gaussian with one deviation for all states,
drawn from while collecting (`stochastic`), its mean in evaluations; for discrete actions, logits. Returns of training
episodes are those of learner and expert together; evaluated is the learner alone.

Human-gated (`--gate`; HG-DAgger: Kelly et al., 2019, https://arxiv.org/abs/1810.02890): beta is not used, and only the
steps at which the expert acts are labelled. It takes over

    rule       where |a - a*| > tau, until |a - a*| <= rho tau: SafeDAgger's distance (Zhang & Cho, 2017), with the
               expert's true answer in the place of a learned guess of it
    person     when somebody at the terminal presses the space bar, until it is pressed again

The expert is the task's own (common/experts.py), or `--expert`: a folder of a trained run, or a policy file. What was
labelled is kept in RUN/labels/0.npz, which `--dataset` of every other file reads. With `--offline-steps` prior data are
cloned first, and are part of D.

The defaults are those of imitation's code (HumanCompatibleAI/imitation), from which it differs so: a run ends after
exactly `--steps`, in the middle of an episode if it must; networks begin otherwise; log_std is clipped; with
`--normalise`, mean and deviation are those of D as a round's cloning begins, where imitation has running ones. Of
HG-DAgger, there is neither its ensemble of novices nor its estimate of risk, which is for tests.

    python algorithms/dagger.py --env pointmaze-medium
    python algorithms/dagger.py --env InvertedPendulum-v5 --expert runs/mine
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from common import command, portable
from common.agent import MISSING, Agent, Hyperparameters, Metrics, static, traced
from common.distributions import Normal, one_hot_argmax
from common.networks import Dense, Network, Normaliser, Parameters
from common.portable import Portable
from common.replay import Batch, Episode, Replay


class Config(Hyperparameters):
    """Those of imitation's code, and of the gate."""

    learning_rate: float = 1e-3  # Adam's step size
    entropy_weight: float = traced(1e-3, "[0, inf)")  # weight of the policy's entropy in the loss (w)
    weight_decay: float = 0.0  # weight of the squared parameters in the loss (d)
    beta: Literal["linear", "exponential"] = "linear"  # how the probability that the expert acts falls
    linear_rounds: int = 15  # rounds in which it falls from 1 to 0
    decay: float = traced(0.7, "(0, 1]")  # what it is multiplied by in each round, if exponential
    gate: Literal["none", "rule", "person"] = "none"  # who decides that the expert acts: chance, or one of these
    threshold: float = traced(0.5, "[0, inf)")  # distance of actions at which the rule's expert takes over (tau)
    release: float = traced(0.5, "[0, 1]")  # share of it at which it gives back (rho)
    steps_per_second: float = static(10.0, "[1, inf)")  # of the environment, while a person decides
    expert: str = ""  # folder of a trained run, or policy file; default: the task's own expert
    stochastic: bool = True  # draw the learner's actions while collecting
    hidden: tuple[int, ...] = (32, 32)  # width of each hidden layer
    discrete_actions: bool = False  # choose among actions, by logits
    normalise: bool = False  # normalise observations with the labelled states' mean and standard deviation
    round_episodes: int = 3  # episodes in a round, at least
    round_steps: int = 500  # environment steps in a round, at least
    epochs: int = 4  # passes over all labels after each round
    batch_size: int = 32  # labels per gradient step; those of an epoch that fill none are left out
    offline_steps: int = 0  # gradient steps on prior data first
    steps: int = 100_000  # environment steps, each with a label unless there is a gate

    without_data = "--offline-steps 0"

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("offline", self.offline_steps), ("online", self.steps)

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        more = f"--batch-size {self.batch_size} is more labels than --steps {self.steps} can have"
        return more if self.batch_size > self.steps else None

    @property
    def attended(self) -> float:
        """Environment steps a second while somebody decides; 0: nobody does."""
        return self.steps_per_second if self.gate == "person" else 0.0


IMITATION: dict[str, Any] = {"hidden": (32, 32), "batch_size": 32, "normalise": False, "steps": 100_000}
SEALS = IMITATION | {"batch_size": 16, "weight_decay": 1e-4, "normalise": True, "eval_episodes": 50}
PRESETS: dict[str, dict[str, Any]] = {
    # Ours, by family: wider networks and larger minibatches, which cost little, and no noise to clone around.
    "pointmaze": {"hidden": (128, 128), "batch_size": 128, "normalise": True, "steps": 10_000,
                  "eval_every": 2000, "eval_episodes": 50},
    "antmaze": {"hidden": (256, 256), "batch_size": 256, "normalise": True, "eval_every": 20_000},
    "locomotion": {"hidden": (256, 256), "batch_size": 256, "normalise": True, "steps": 50_000},
    "classic": {"discrete_actions": True, "steps": 10_000, "eval_every": 2000},
    # With --preset: imitation's defaults again, and what its authors have tuned for seals (scripts/config/tuned_hps).
    "imitation": IMITATION,
    "seals-ant": SEALS | {"epochs": 10, "round_episodes": 5},
    "seals-halfcheetah": SEALS | {"epochs": 5, "beta": "exponential", "round_episodes": 5, "steps": 60_000},
    "seals-hopper": SEALS | {"epochs": 1, "beta": "exponential", "round_episodes": 10},
    "seals-swimmer": SEALS | {"epochs": 1},
    "seals-walker2d": SEALS | {"epochs": 5, "beta": "exponential", "round_episodes": 5},
}  # fmt: skip


class Policy(nn.Module):
    """pi(. | s): a Gaussian, or logits of discrete actions."""

    hidden: Sequence[int]
    action_dim: int
    discrete: bool

    @nn.compact
    def __call__(self, observation: jax.Array) -> Normal | jax.Array:
        """Observation [..., o] to a distribution over actions [..., a], log_std clipped to [-5, 2]; or to logits."""
        x = observation
        for width in self.hidden:
            x = jnp.tanh(Dense(width)(x))
        out = Dense(self.action_dim, bound=1e-2)(x)
        if self.discrete:
            return out
        return Normal(out, self.param("log_std", nn.initializers.zeros, (self.action_dim,)).clip(-5.0, 2.0))


class DAgger(Agent):
    """The policy, and where its present round stands."""

    config: Config
    normal: Normaliser
    policy: Network
    known: int = struct.field(pytree_node=False)
    """Rows of prior data in D."""
    round: jax.Array
    """int32 []: k, of the round that is being collected or cloned after."""
    begun: jax.Array
    """int32 []: steps before it."""
    episodes: jax.Array
    """int32 []: those of it that are over."""
    labels: jax.Array
    """int32 []: labelled steps so far, where not all are."""
    in_control: jax.Array
    """bool []: the gate's expert has acted at the step before, in the same episode."""
    owed: jax.Array
    """int32 []: gradient steps left of this round."""

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Batch | None) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`."""
        module = Policy(config.hidden, example.action.shape[-1], config.discrete_actions)
        policy = Network.create(module, key, example.observation)
        rows = example.observation[None] if prior is None else prior.observation
        normal, known = Normaliser.of(rows, config.normalise and prior is not None), 0 if prior is None else len(rows)
        none = jnp.int32(0)
        return cls(config, normal, policy, known, none, none, none, none, jnp.bool_(False), none)

    def act(self, observation: jax.Array) -> jax.Array:
        """The mean of pi(. | s), or the likeliest action."""
        found = self.policy(self.normal(observation))
        return one_hot_argmax(found) if self.config.discrete_actions else found.mode().clip(-1.0, 1.0)

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """A sample of pi(. | s)."""
        if not self.config.stochastic:
            return self.act(observation)
        found = self.policy(self.normal(observation))
        if self.config.discrete_actions:
            return one_hot_argmax(found + jax.random.gumbel(key, found.shape))
        return found.sample(key).clip(-1.0, 1.0)

    def portable(self) -> Portable:
        """What `act` computes, in layers."""
        own, layers = self.policy.params["params"], []
        for number in range(len(self.config.hidden)):
            layers += [portable.dense(own[f"Dense_{number}"]), ("tanh",)]
        head = portable.dense(own[f"Dense_{len(self.config.hidden)}"])
        if self.config.discrete_actions:
            networks = {"values": [*layers, head], "behaviour": [*layers, head]}
            return Portable("greedy", networks, {"threshold": 0.0}, self.normal)
        networks = {"body": layers, "mean": [head], "log_std": [("constant", own["log_std"]), ("clip", -5.0, 2.0)]}
        return Portable("gaussian", networks | {"final": [("clip", -1.0, 1.0)]}, normal=self.normal)

    def chance(self) -> jax.Array:
        """beta_k, []."""
        c = self.config
        linear = jnp.clip(1 - self.round / c.linear_rounds, 0.0, 1.0)
        return linear if c.beta == "linear" else c.decay**self.round

    def defers(
        self, action: jax.Array, advice: jax.Array, called: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Whether the expert acts, and whether its action is kept: always, or with a gate where it acts."""
        c = self.config
        if c.gate == "none":
            return jax.random.uniform(key) < self.chance(), jnp.bool_(True)
        threshold = jnp.where(self.in_control, c.release * c.threshold, c.threshold)
        acts = called if c.gate == "person" else jnp.linalg.norm(action - advice) > threshold
        return acts, acts

    def after_episode(self, episode: Episode, experience: Replay) -> Self:
        """Counts episodes and labels; when a round is over, says how many gradient steps follow."""
        c, agent, labels = self.config, self, experience.inserted
        if c.gate != "none":
            newest = experience.rows.labelled[experience.inserted - 1]
            labels = self.labels + newest.astype(jnp.int32)
            agent = agent.replace(labels=labels, in_control=newest & ~episode.over)
        episodes = self.episodes + episode.over
        enough = experience.inserted - self.begun >= max(c.round_steps, c.batch_size)
        ends = episode.over & enough & (episodes >= c.round_episodes) | (experience.inserted == experience.capacity)
        owed = jnp.where(ends, c.epochs * ((self.known + labels) // c.batch_size), 0)
        return agent.replace(episodes=episodes, owed=owed)

    def owes(self) -> jax.Array:
        """The gradient steps that are left of this round."""
        return self.owed

    def aggregated(self, experience: Replay, prior: Batch | None) -> tuple[Batch, jax.Array]:
        """Rows of D, the action of each the expert's, [n, ...], and which of them are filled and labelled, bool [n]."""
        rows, labelled = experience.rows, experience.rows.labelled
        rows = rows.transitions().replace(action=rows.advice)
        if prior is None:
            return rows, labelled
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), prior.transitions(), rows)
        return both, jnp.concatenate([jnp.ones(self.known, bool), labelled])

    def study(
        self, experience: Replay, prior: Batch | None, key: jax.Array, most: jax.Array, room: int
    ) -> tuple[Self, Metrics]:
        """Gradient steps of the present epoch: minibatches of all labels in a new order for every epoch."""
        names = "loss", "log_prob", "entropy", "beta", "labels"
        metrics = {name: jnp.full(room, MISSING) for name in names}
        rest = experience, prior, key, most, metrics
        return jax.lax.cond(self.owed > 0, DAgger.go_on, lambda agent, *rest: (agent, rest[-1]), self, *rest)

    def go_on(
        self, experience: Replay, prior: Batch | None, key: jax.Array, most: jax.Array, metrics: Metrics
    ) -> tuple[Self, Metrics]:
        """The same where at least one is owed; `metrics` have room for those of each."""
        c = self.config
        rows, labelled = self.aggregated(experience, prior)
        count = labelled.sum(dtype=jnp.int32)
        in_epoch = count // c.batch_size
        done = c.epochs * in_epoch - self.owed
        place, key = done % in_epoch, jax.random.fold_in(jax.random.fold_in(key, self.round), done // in_epoch)
        # All that are labelled come first, in the order of what is drawn.
        order = jnp.argsort(jnp.where(labelled, jax.random.uniform(key, labelled.shape), 2.0))
        steps = jnp.minimum(jnp.minimum(self.owed, most), in_epoch - place)
        agent = self.replace(normal=self.seen(rows.observation, labelled, count)) if c.normalise else self

        def step(number: jax.Array, learnt: tuple[Self, Metrics]) -> tuple[Self, Metrics]:
            index = jax.lax.dynamic_slice(order, ((place + number) * c.batch_size,), (c.batch_size,))
            batch = jax.tree.map(lambda x: x[index], rows)
            agent, metrics = learnt[0].update_once(batch, key, done + number + 1)
            metrics |= {"beta": self.chance(), "labels": count.astype(jnp.float32)}
            return agent, jax.tree.map(lambda all, new: all.at[number].set(new), learnt[1], metrics)

        agent, metrics = jax.lax.fori_loop(0, steps, step, (agent, metrics))
        over = self.owed == steps
        begun, episodes = jnp.where(over, experience.inserted, self.begun), jnp.where(over, 0, self.episodes)
        agent = agent.replace(round=self.round + over, begun=begun, episodes=episodes, owed=self.owed - steps)
        return agent, metrics

    def seen(self, observation: jax.Array, labelled: jax.Array, count: jax.Array) -> Normaliser:
        """Mean and deviation of the labelled ones of observations [n, o]."""
        share = labelled / count
        mean = share @ observation
        return Normaliser(mean, jnp.sqrt(share @ jnp.square(observation - mean)) + 1e-3)

    def loss(self, params: Parameters, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Cloning, with the entropy and the squared parameters."""
        c, found = self.config, self.policy(self.normal(batch.observation), params=params)
        if c.discrete_actions:
            log_all = nn.log_softmax(found)
            chex.assert_equal_shape((batch.action, log_all))
            log_prob, entropy = (log_all * batch.action).sum(-1), -(jnp.exp(log_all) * log_all).sum(-1).mean()
        else:
            log_prob = found.log_prob(batch.action)
            entropy = (found.log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum()
        chex.assert_equal_shape((batch.reward, log_prob))
        squared = sum(jnp.square(x).sum() for x in jax.tree.leaves(params))
        loss = -log_prob.mean() - c.entropy_weight * entropy + 0.5 * c.weight_decay * squared
        return loss, {"loss": loss, "log_prob": log_prob.mean(), "entropy": entropy}

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """One gradient step."""
        policy, metrics = self.policy.minimise(self.loss, batch, learning_rate=self.config.learning_rate)
        return self.replace(policy=policy), metrics


if __name__ == "__main__":
    command.main(DAgger, Config, PRESETS)
