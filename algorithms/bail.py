"""BAIL: cloning of the actions whose returns come near to the best that can be had in their states.

Chen, Zhou, Wang, Wang, Wu & Ross, "BAIL: Best-Action Imitation Learning for Batch Deep Reinforcement Learning",
NeurIPS 2020 (arXiv:1910.12179). Three steps, the first two on all of the data:

    G    = discounted return of every row; after a time limit it goes on from the nearest state   BAIL.prepare
    L_V  = mean_b [(V - G)^2 where V >= G, else k (G - V)^2] + w/2 |phi|^2                        BAIL.envelope_loss
    D'   = the `selected` share of rows of highest G / V(s), or of G - V(s)                       BAIL.score
    L_pi = mean_b |pi(s) - a|^2 / |a|  over D'                                                    BAIL.actor_loss

V(s; phi) is the upper envelope of the returns. A fifth of the rows is held out, never the one of highest G. Every
`validate_every` steps L_V without its second term is computed of these. The parameters of least validation loss are
kept; once `patience` validations in a row have not bettered them, V learns no more, and the best become V
(BAIL.validate, BAIL.enter).

`--preset progressive` learns V and pi together, step by step: D' is the best share of each minibatch by the best V so
far, the mean in L_pi is over the whole minibatch, and when patience is at its end V goes on from its best parameters.

Ratios mean something only for positive numbers. Where a G is negative, all are shifted by the same amount, so that
the least is 0 (`--no-shift`: as they are), and values below 1 count as exp(V - 1), in the progressive form as in the
authors' code.

Differences from the authors' code. It keeps "best parameters" that are the living ones, so it never goes back to any,
and its static form neither stops; here both happen. It does not shift. It continues episodes of at least 1000 rows
only, here all that were cut, each as if its length were the horizon. V's minibatches are the rows of a uniform one
that are not held out, about 800 of 1000, in both forms; theirs walk through the data in the static one. The progressive
form validates before a step here, after V's there. Exactly the share of all rows is selected; there also what ties
with the last, and within a minibatch not always the last itself, by rounding. Its clipping of V, off by default, is
left out. Its progressive script does not run as it is.

Published: returns on 62 data sets of its own (the README of its code), none of D4RL's. Measured on recipes, in small
(benchmarks/results/lecture.md): pointmaze-medium 27; hopper-medium-replay 25.

    python algorithms/bail.py --env hopper-medium
    python algorithms/bail.py --env hopper-medium --preset progressive
"""

from __future__ import annotations

from typing import Any, Literal, Self

import chex
import jax
import jax.numpy as jnp

from common import command, presets, tasks
from common.agent import Agent, Hyperparameters, Metrics, static, traced
from common.datasets import Dataset, transforms
from common.networks import DeterministicActor, Network, Parameters, Value
from common.replay import Batch, Replay
from common.tasks import Task


class Config(Hyperparameters):
    """The authors' values, by the paper's names."""

    learning_rate: float = 1e-3  # Adam's step size for the policy
    envelope_learning_rate: float = 3e-3  # Adam's step size for the envelope
    discount: float = 0.99  # discount factor; G is computed once, with this value, also where a grid varies it
    penalty: float = traced(1000.0, "(0, inf)")  # weight of the envelope's error where it lies below the return (k)
    envelope_weight_decay: float = 0.02  # of all parameters of the envelope, in its loss (w)
    selected: float = traced(0.25, "(0, 1]")  # share of the rows that are cloned
    selection: Literal["ratio", "difference"] = "ratio"  # of return and envelope, by which rows are selected
    shift: bool = True  # shift returns so that none is negative
    validate_every: int = 1000  # steps from one validation of the envelope to the next
    patience: int = 4  # validations in a row that may not better the best
    hidden: tuple[int, ...] = (400, 300)  # width of each hidden layer of the policy
    envelope_hidden: tuple[int, ...] = (128, 128)  # width of each hidden layer of the envelope
    batch_size: int = 1000  # transitions per gradient step
    envelope_steps: int = static(50_000, "[0, inf)")  # gradient steps of the envelope first; 0: with the policy's
    offline_steps: int = 200_000  # gradient steps of the policy

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("envelope", self.envelope_steps), *super().phases

    @property
    def progressive(self) -> bool:
        """Whether envelope and policy learn together."""
        return self.envelope_steps == 0


PRESETS: dict[str, dict[str, Any]] = {
    # By task family.
    "antmaze": {"eval_episodes": 100, "eval_every": 50_000},
    # Ours: small networks for a small maze, with RLPD's discount there.
    "pointmaze": {
        "discount": 0.995, "hidden": (128, 128), "envelope_steps": 20_000, "offline_steps": 20_000, "batch_size": 256,
        "eval_every": 5000, "eval_episodes": 100,
    },
    # By algorithm, with --preset: laid over the family's.
    "progressive": {"envelope_steps": 0, "offline_steps": 250_000, "validate_every": 1250},
    # By algorithm and task: laid over the algorithm's.
    **presets.each("progressive", ("pointmaze",), tasks.POINT_MAZES, offline_steps=20_000),
}  # fmt: skip


class Prior(Batch):
    """The data, with their returns."""

    gain: jax.Array
    """[n]: G."""


class Rows(Prior):
    """Minibatches, with what the envelope may not learn from."""

    held_out: jax.Array
    """bool [...]"""


class BAIL(Agent):
    """Policy and envelope, the envelope's best parameters, and what is selected by them."""

    config: Config
    validation: jax.Array
    """int32 [n // 5]: the rows that are held out."""
    held_out: jax.Array
    """bool [n]: the same, by row."""
    ranking: jax.Array | None
    """int32 [n]: all rows, the best first, once the envelope has been learnt; None in the progressive form."""
    best: Parameters
    """The envelope's at the least validation loss."""
    best_loss: jax.Array
    """[]"""
    strikes: jax.Array
    """int32 []: validations since then."""
    actor: Network
    envelope: Network

    @staticmethod
    def prepare(config: Config, data: Dataset, task: Task) -> Prior:
        """The data with their returns, in the task's training rewards."""
        rows = data.batch(task)
        gain = transforms.continued_returns(data, rows.reward, float(config.discount))
        return Prior(**vars(rows), gain=gain - min(gain.min(), 0) if config.shift else gain)

    @classmethod
    def create(cls, config: Config, key: jax.Array, example: Batch, prior: Prior) -> Self:
        """A fresh agent for transitions shaped like `example`, and the rows that it holds out."""
        actor_key, envelope_key, split_key = jax.random.split(key, 3)
        policy = DeterministicActor(config.hidden, example.action.shape[-1])
        # As the authors' last layer begins, near zero.
        value = Value(config.envelope_hidden, last_bound=0.1 * config.envelope_hidden[-1] ** -0.5)
        actor = Network.create(policy, actor_key, example.observation)
        envelope = Network.create(value, envelope_key, example.observation)
        rows = prior.gain.shape[0]
        order = jax.random.uniform(split_key, (rows,)).at[prior.gain.argmax()].set(2.0).argsort().astype(jnp.int32)
        validation = order[: rows // 5]
        held_out = jnp.zeros(rows, bool).at[validation].set(True)
        ranking = None if config.progressive else jnp.arange(rows, dtype=jnp.int32)
        unknown, none = jnp.full((), jnp.inf), jnp.zeros((), jnp.int32)
        return cls(config, validation, held_out, ranking, envelope.params, unknown, none, actor, envelope)

    def enter(self, phase: str, key: jax.Array, prior: Prior) -> Self:
        """After the envelope's phase its best parameters are restored, and all rows ranked by them."""
        agent = super().enter(phase, key, prior)
        if phase != "offline" or self.config.progressive:
            return agent
        agent = agent.validate(prior)
        agent = agent.replace(envelope=agent.envelope.replace(params=agent.best))
        score = jax.lax.map(lambda x: agent.score(*x), (prior.observation, prior.gain), batch_size=4096)
        return agent.replace(ranking=jnp.argsort(-score).astype(jnp.int32))

    def act(self, observation: jax.Array) -> jax.Array:
        """pi(s)."""
        return self.actor(observation)

    def renew(self, step: jax.Array, prior: Prior) -> Self:
        """While the envelope learns, it is validated every so many steps."""
        if self.phase == "offline" and not self.config.progressive:
            return self
        due = (step - 1) % self.config.validate_every == 0
        return jax.lax.cond(due, BAIL.validate, lambda agent, prior: agent, self, prior)

    def validate(self, prior: Prior) -> Self:
        """The agent with the better of its best parameters and those of now."""
        rows = prior.observation[self.validation], prior.gain[self.validation]
        losses = jax.lax.map(lambda x: self.shortfall(self.envelope(x[0]), x[1]), rows, batch_size=4096)
        loss = losses.mean()
        better = loss < self.best_loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), self.envelope.params, self.best)
        strikes = jnp.where(better, 0, self.strikes + 1)
        agent = self.replace(best=best, best_loss=jnp.where(better, loss, self.best_loss), strikes=strikes)
        if not self.config.progressive:
            return agent
        back = strikes == self.config.patience
        params = jax.tree.map(lambda new, old: jnp.where(back, new, old), best, self.envelope.params)
        return agent.replace(envelope=self.envelope.replace(params=params))

    def sample(self, key: jax.Array, experience: Replay | None, prior: Prior) -> Rows:
        """Uniform minibatches: of all rows, or where the envelope has been learnt of those selected."""
        c, rows = self.config, prior.reward.shape[0]
        ranked = self.phase == "offline" and not c.progressive
        count = self.count(rows) if ranked else rows
        index = jax.random.randint(key, (1, c.batch_size), 0, count)
        index = self.ranking[index] if ranked else index
        return jax.tree.map(lambda x: x[index], Rows(**vars(prior), held_out=self.held_out))

    def count(self, rows: int) -> jax.Array:
        """How many of so many rows are selected, at least one."""
        return jnp.maximum(1, jnp.floor(self.config.selected * rows)).astype(jnp.int32)

    def shortfall(self, value: jax.Array, gain: jax.Array) -> jax.Array:
        """The penalty loss of each row [...]."""
        return jnp.where(value >= gain, 1.0, self.config.penalty) * jnp.square(value - gain)

    def envelope_loss(self, params: Parameters, batch: Rows) -> tuple[jax.Array, Metrics]:
        """The penalty loss over the rows that are not held out, with weight decay."""
        value = self.envelope(batch.observation, params=params)
        chex.assert_equal_shape((batch.reward, value, batch.gain, batch.held_out))
        loss = jnp.mean(self.shortfall(value, batch.gain), where=~batch.held_out)
        decay = sum(jnp.square(x).sum() for x in jax.tree.leaves(params))
        return loss + 0.5 * self.config.envelope_weight_decay * decay, {"envelope_loss": loss, "envelope": value.mean()}

    def score(self, observation: jax.Array, gain: jax.Array) -> jax.Array:
        """How near returns [...] are to the best envelope's values of observations [..., o]."""
        value = self.envelope(observation, params=self.best)
        value = jnp.where(value < 1, jnp.exp(value - 1), value)
        return gain / value if self.config.selection == "ratio" else gain - value

    def actor_loss(self, params: Parameters, batch: Rows, chosen: jax.Array) -> tuple[jax.Array, Metrics]:
        """Cloning of the rows that are chosen, bool [batch]."""
        distance = jnp.square(self.actor(batch.observation, params=params) - batch.action).mean(axis=-1)
        chex.assert_equal_shape((batch.reward, distance, chosen))
        loss = (chosen * distance).mean()
        return loss, {"actor_loss": loss, "selected_return": jnp.mean(batch.gain, where=chosen)}

    def update_envelope(self, batch: Rows) -> tuple[Self, Metrics]:
        """One step of the envelope, unless patience has come to its end."""
        rate = self.config.envelope_learning_rate
        envelope, metrics = self.envelope.minimise(self.envelope_loss, batch, learning_rate=rate)
        stopped = (self.strikes >= self.config.patience) & (not self.config.progressive)
        envelope = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), envelope, self.envelope)
        return self.replace(envelope=envelope), metrics | {"validation_loss": self.best_loss}

    def update_actor(self, batch: Rows) -> tuple[Self, Metrics]:
        """One step of the policy: on a minibatch of selected rows, or on the best of one of any rows."""
        chosen = jnp.ones_like(batch.held_out)
        if self.config.progressive:
            score = self.score(batch.observation, batch.gain)
            chosen = score >= jnp.sort(score)[-self.count(score.shape[0])]
        actor, metrics = self.actor.minimise(self.actor_loss, batch, chosen, learning_rate=self.config.learning_rate)
        return self.replace(actor=actor), metrics

    def update_once(self, batch: Rows, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """A step of the envelope first, of the policy afterwards; in the progressive form of both."""
        agent, metrics = self, {}
        if self.config.progressive or self.phase == "envelope":
            agent, metrics = agent.update_envelope(batch)
        if self.phase != "envelope":
            agent, more = agent.update_actor(batch)
            metrics |= more
        return agent, metrics


if __name__ == "__main__":
    command.main(BAIL, Config, PRESETS)
