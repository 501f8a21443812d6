"""Learned models of an environment: ensembles of Gaussians, and agents that learn from what these imagine.

Every member f_i predicts the mean and the variance of y, the change of the observation and the reward:

    L = sum_i mean_b,d [ (mu_i - y)^2 / sigma_i^2 + log sigma_i^2 ] + sum_l w_l/2 |W_l|^2
        + 0.01 sum_d (max_d - min_d)                                                        Dynamics.loss

in minibatches of a bootstrap of its own. log sigma^2 stays between the learned bounds `min` and `max`, softly. A model
learns until `patience` validations in a row, on rows that are held out, have bettered no member by more than 1 %; then
it stands still. What it imagines with are each member's best layers, and of the members the `elites` of least held-out
error; the bounds are those of now. This is the model of MBPO (Janner et al., 2019, arXiv:1906.08253), as MOPO's authors
and OfflineRL-Kit have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from common import replay, tasks
from common.agent import MISSING, Agent, Hyperparameters, Metrics
from common.layers import affine
from common.networks import Network, Parameters
from common.replay import Batch, Replay
from common.tasks import Task, Termination

if TYPE_CHECKING:
    from common.datasets import Dataset

HELD_OUT, MOST_HELD_OUT = 0.2, 1000
"""Of the rows, how many a model does not learn from: a share, and at most so many."""
BETTER = 0.99
"""Of the best held-out error, what counts as a better one."""
BOUND_WEIGHT = 0.01
"""Of the bounds on the variance, in the loss."""
CHUNK = 5000
"""Rollouts at once: memory is needed for the activations of so many, not of all."""


class Members(nn.Module):
    """The networks of an ensemble, with swish between their layers, and the bounds that they share."""

    hidden: Sequence[int]
    outputs: int
    members: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[member, n, in] to means and log variances, [member, n, outputs]."""
        for number, width in enumerate((*self.hidden, 2 * self.outputs)):
            x = MemberDense(self.members, width, name=f"Dense_{number}")(nn.swish(x) if number else x)
        mean, log_var = jnp.split(x, 2, axis=-1)
        most = self.param("max_log_var", nn.initializers.constant(0.5), (self.outputs,))
        least = self.param("min_log_var", nn.initializers.constant(-10.0), (self.outputs,))
        log_var = most - nn.softplus(most - log_var)
        return mean, least + nn.softplus(log_var - least)


class MemberDense(nn.Module):
    """A linear layer of every member."""

    members: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[member, n, in] to [member, n, features]."""
        begin = nn.initializers.truncated_normal(0.5 * x.shape[-1] ** -0.5)
        kernel = self.param("kernel", begin, (self.members, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.members, self.features))
        return jax.vmap(affine)(x, kernel, bias)


class Prediction(NamedTuple):
    """What a model imagines of transitions."""

    next_observation: jax.Array
    """[n, o]: drawn from the elites."""
    reward: jax.Array
    """[n]: drawn from the elites."""
    mean: jax.Array
    """[member, n, o + 1], of next observation and reward, by every member."""
    deviation: jax.Array
    """[member, n, o + 1]: sigma."""


class Dynamics(struct.PyTreeNode):
    """A model that learns, and its best layers so far."""

    network: Network
    best: Parameters
    """Every layer, of each member as it was at its least held-out error."""
    best_error: jax.Array
    """[member]: the mean squared error of these."""
    strikes: jax.Array
    """int32 []: validations since one of them was bettered, at most the patience."""
    elites: jax.Array
    """int32 [elites]: the members that imagine."""
    mean: jax.Array
    """[o + a]: of the data's observations and actions."""
    std: jax.Array
    """[o + a]: of the data's observations and actions; 1 where they are all alike."""
    held_out: jax.Array
    """int32 [h]: rows, in their order."""
    bootstrap: jax.Array
    """uint32 [2]: what the members' bootstraps are a function of; they are not kept."""

    @classmethod
    def create(cls, key: jax.Array, prior: Batch, hidden: Sequence[int], members: int, elites: int) -> Self:
        """A fresh model of the data [n, ...]."""
        network_key, split_key, bootstrap_key = jax.random.split(key, 3)
        inputs = jnp.concatenate([prior.observation, prior.action], -1)
        rows, size = inputs.shape
        std = inputs.std(axis=0)
        module = Members(hidden, prior.observation.shape[-1] + 1, members)
        network = Network.create(module, network_key, jnp.zeros((members, 1, size)))
        count = max(1, min(int(HELD_OUT * rows), MOST_HELD_OUT))
        held_out = jnp.sort(jax.random.choice(split_key, rows, (count,), replace=False)).astype(jnp.int32)
        return cls(
            network, layers(network.params), jnp.full(members, jnp.inf), jnp.int32(0),
            jnp.arange(members, dtype=jnp.int32)[:elites], inputs.mean(axis=0), jnp.where(std < 1e-12, 1.0, std),
            held_out, jax.random.key_data(bootstrap_key),
        )  # fmt: skip

    @property
    def members(self) -> int:
        """How many there are."""
        return self.best_error.shape[0]

    def predict(
        self, observation: jax.Array, action: jax.Array, params: Parameters | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Every member's mean and log variance of the change of the observation and the reward, [member, n, o + 1].

        Observations are [n, o], or [member, n, o] for each member its own; actions likewise.
        """
        x = (jnp.concatenate([observation, action], -1) - self.mean) / self.std
        return self.network(jnp.broadcast_to(x, (self.members, *x.shape[-2:])), params=params)

    def loss(self, params: Parameters, batch: Batch, weight_decay: Sequence[float]) -> tuple[jax.Array, Metrics]:
        """The Gaussians' negative log likelihood on a minibatch for each member, [member, n, ...]; see above."""
        mean, log_var = self.predict(batch.observation, batch.action, params)
        target = outcome(batch)
        chex.assert_equal_shape((mean, log_var, target))
        fit = (jnp.square(mean - target) * jnp.exp(-log_var) + log_var).mean(axis=(1, 2)).sum()
        own = params["params"]
        kernels = (own[f"Dense_{number}"]["kernel"] for number in range(len(weight_decay)))
        decay = sum(0.5 * w * jnp.square(kernel).sum() for w, kernel in zip(weight_decay, kernels, strict=True))
        bounds = BOUND_WEIGHT * (own["max_log_var"].sum() - own["min_log_var"].sum())
        return fit + decay + bounds, {"model_loss": fit / self.members}

    def draw(self, key: jax.Array, rows: int, batch_size: int) -> jax.Array:
        """Of so many `rows` a minibatch for each member, int32 [member, batch_size], uniformly of its bootstrap."""
        count = rows - self.held_out.shape[0]
        own = jax.random.wrap_key_data(self.bootstrap)

        def of_one(member: jax.Array, key: jax.Array) -> jax.Array:
            # The bootstrap's row at a place is drawn again and again, with one key, and so need not be kept.
            mine = jax.random.fold_in(own, member)
            places = jax.random.randint(key, (batch_size,), 0, count)
            return jax.vmap(lambda place: jax.random.randint(jax.random.fold_in(mine, place), (), 0, count))(places)

        drawn = jax.vmap(of_one)(jnp.arange(self.members), jax.random.split(key, self.members))
        # The number among the rows that are not held out becomes the number among all.
        before = jnp.searchsorted(self.held_out - jnp.arange(self.held_out.shape[0]), drawn, side="right")
        return (drawn + before).astype(jnp.int32)

    def update(
        self, batch: Batch, learning_rate: jax.Array, weight_decay: Sequence[float], patience: int
    ) -> tuple[Self, Metrics]:
        """One step of all members, on a minibatch each [member, n, ...]; none once patience has come to its end."""

        def learn(model: Dynamics) -> tuple[Dynamics, Metrics]:
            network, metrics = model.network.minimise(model.loss, batch, weight_decay, learning_rate=learning_rate)
            return model.replace(network=network), metrics

        def rest(model: Dynamics) -> tuple[Dynamics, Metrics]:
            return model, {"model_loss": jnp.asarray(MISSING, model.best_error.dtype)}

        stopped = self.strikes >= patience
        model, metrics = jax.lax.cond(stopped, rest, learn, self)
        error = jnp.sort(self.best_error)[: self.elites.shape[0]].mean()
        return model, metrics | {"held_out_error": error, "stopped": stopped.astype(jnp.float32)}

    def error(self, prior: Batch) -> jax.Array:
        """Every member's mean squared error on the rows that are held out, [member]."""
        rows = jax.tree.map(lambda x: x[self.held_out], prior.transitions())
        mean, _ = self.predict(rows.observation, rows.action)
        return jnp.square(mean - outcome(rows)).mean(axis=(1, 2))

    def validate(self, prior: Batch, patience: int) -> Self:
        """The model with, of each member, the better of its best layers and those of now."""
        error = self.error(prior)
        better = error < BETTER * self.best_error
        strikes = jnp.where(better.any(), 0, jnp.minimum(self.strikes + 1, patience))
        best = choose(better, layers(self.network.params), self.best)
        return self.replace(best=best, best_error=jnp.where(better, error, self.best_error), strikes=strikes)

    def restored(self) -> Self:
        """The model with its best layers, and the members that they make the elites."""
        own = {"params": self.network.params["params"] | self.best}
        elites = jnp.argsort(self.best_error)[: self.elites.shape[0]].astype(jnp.int32)
        return self.replace(network=self.network.replace(params=own), elites=elites)

    def step(self, observation: jax.Array, action: jax.Array, key: jax.Array) -> Prediction:
        """What follows observations [n, o] and actions [n, a]: each from one elite's Gaussian, drawn anew."""
        member_key, noise_key = jax.random.split(key)
        change, log_var = self.predict(observation, action)
        mean, deviation = change.at[..., :-1].add(observation), jnp.exp(0.5 * log_var)
        rows = jnp.arange(observation.shape[0])
        chosen = self.elites[jax.random.randint(member_key, rows.shape, 0, self.elites.shape[0])]
        noise = jax.random.normal(noise_key, mean.shape[1:])
        drawn = mean[chosen, rows] + noise * deviation[chosen, rows]
        return Prediction(drawn[:, :-1], drawn[:, -1], mean, deviation)


def outcome(batch: Batch) -> jax.Array:
    """What a model predicts of transitions: [..., o + 1]."""
    change = batch.next_observation - batch.observation
    chex.assert_equal_shape((batch.reward, change[..., 0]))
    return jnp.concatenate([change, batch.reward[..., None]], -1)


def layers(params: Parameters) -> Parameters:
    """The parameters that each member has of its own: all but the bounds."""
    return {name: layer for name, layer in params["params"].items() if name.startswith("Dense_")}


def choose(which: jax.Array, ones: Parameters, others: Parameters) -> Parameters:
    """Of the members at `which`, bool [member], `ones`, else `others`."""
    return jax.tree.map(lambda x, y: jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x, y), ones, others)


# ---------------------------------------------------------------------- agents


class ModelHyperparameters(Hyperparameters):
    """A Config of an agent that learns a model first.

    It has the fields `model_steps`, `offline_steps`, `members`, `elites`, `model_hidden`, `model_weight_decay`,
    `model_learning_rate`, `model_batch_size`, `patience`, `rollout_length`, `rollout_every`, `rollout_batch`,
    `retained`, `real_ratio`, `batch_size` and `ending`.
    """

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Their names and steps."""
        return ("model", self.model_steps), ("offline", self.offline_steps)

    @property
    def real_rows(self) -> int:
        """Of a minibatch, the rows that are data."""
        return int(self.real_ratio * self.batch_size)

    @property
    def imagined_rows(self) -> int:
        """How many are kept: those of the last `retained` times of imagining."""
        return self.rollout_batch * self.rollout_length * self.retained

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        if self.elites > self.members:
            return f"--elites {self.elites} of --members {self.members}: there are no more than those"
        if len(self.model_weight_decay) != len(self.model_hidden) + 1:
            return (
                f"--model-weight-decay has {len(self.model_weight_decay)} numbers for the "
                f"{len(self.model_hidden) + 1} layers of --model-hidden: one for each, the last one included"
            )
        if -(-self.offline_steps // self.rollout_every) * self.rollout_batch * self.rollout_length >= 2**31:
            return "--offline-steps imagine 2^31 rows or more, too many to count: raise --rollout-every"
        return None

    def misfit(self, task: Task) -> str | None:
        """Why these values do not suit a task, in one line."""
        if self.ending == "task" and task.termination is None:
            return (
                f"{task.name}: a model has to know how its episodes terminate, which is not known here; if they end by "
                "their time limit only, --ending never"
            )
        return None


class ModelData(Batch):
    """The data, with what ends an episode."""

    termination: Termination = struct.field(pytree_node=False)


class ModelBased(Agent):
    """An agent whose first phase, "model", learns a model, and that learns "offline" from data and what it imagines."""

    dynamics: Dynamics
    imagined: Replay | None
    """The newest imagined rows; None before the offline phase."""
    imagination: jax.Array
    """uint32 [2]: the key of all rollouts."""

    @staticmethod
    def prepare(config: Any, data: Dataset, task: Task) -> ModelData:
        """The data as they are, and how episodes of the task end."""
        termination = tasks.never if config.ending == "never" else task.termination
        return ModelData(**vars(data.batch(task)), termination=termination)

    @staticmethod
    def fresh_dynamics(config: Any, key: jax.Array, prior: ModelData) -> Dynamics:
        """The model as a Config has it."""
        return Dynamics.create(key, prior, config.model_hidden, config.members, config.elites)

    def enter(self, phase: str, key: jax.Array, prior: ModelData) -> Self:
        """After the model's phase it is validated once more, and the best of it restored."""
        agent = super().enter(phase, key, prior)
        if phase != "offline":
            return agent
        dynamics = self.dynamics.validate(prior, self.config.patience).restored()
        example = jax.tree.map(lambda x: x[0], prior.transitions())
        imagined = Replay.create(example, self.config.imagined_rows)
        return agent.replace(dynamics=dynamics, imagined=imagined, imagination=jax.random.key_data(key))

    def renew(self, step: jax.Array, prior: ModelData) -> Self:
        """The model is validated once in as many steps as its data have minibatches; later, rollouts are imagined."""
        c = self.config
        if self.phase == "model":
            rows = prior.reward.shape[0] - self.dynamics.held_out.shape[0]
            due = (step - 1) % -(-rows // c.model_batch_size) == 0
            dynamics = jax.lax.cond(due, lambda x: x.validate(prior, c.patience), lambda x: x, self.dynamics)
            return self.replace(dynamics=dynamics)
        due = (step - 1) % c.rollout_every == 0
        imagined = jax.lax.cond(due, lambda x: self.imagine(x, step, prior), lambda x: x, self.imagined)
        return self.replace(imagined=imagined)

    def sample(self, key: jax.Array, experience: Replay | None, prior: ModelData) -> Batch:
        """Minibatches [1, ...]: of the model for each member its own, [1, member, n]; later data and then imagined
        rows."""
        c, rows = self.config, prior.transitions()
        if self.phase == "model":
            index = self.dynamics.draw(key, rows.reward.shape[0], c.model_batch_size)[None]
            return jax.tree.map(lambda x: x[index], rows)
        return replay.sample_mixed(key, self.imagined, rows, 1, c.batch_size, c.real_rows / c.batch_size)

    def update_model(self, batch: Batch) -> tuple[Self, Metrics]:
        """One step of the model, on a minibatch for each member [member, n, ...]."""
        c = self.config
        dynamics, metrics = self.dynamics.update(batch, c.model_learning_rate, c.model_weight_decay, c.patience)
        return self.replace(dynamics=dynamics), metrics

    def imagined_action(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """Actions [n, a] of rollouts at observations [n, o]."""
        return self.explore(observation, key)

    def imagined_reward(self, prediction: Prediction) -> jax.Array:
        """Rewards [n] that are learnt from, of imagined transitions."""
        return prediction.reward

    def imagine(self, imagined: Replay, step: jax.Array, prior: ModelData) -> Replay:
        """The buffer with the rows of rollouts from `rollout_batch` states of the data."""
        c = self.config
        start_key, key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(self.imagination), step))
        chunks = -(-c.rollout_batch // CHUNK)
        shape = chunks, -(-c.rollout_batch // chunks)
        index = jax.random.randint(start_key, shape, 0, prior.reward.shape[0])
        wanted = jnp.arange(index.size).reshape(shape) < c.rollout_batch

        def one(x: tuple) -> tuple[Batch, jax.Array]:
            index, wanted, key = x
            return self.rollout(prior.observation[index], wanted, key, prior.termination)

        rows, kept = jax.lax.map(one, (index, wanted, jax.random.split(key, chunks)))
        return imagined.extend(jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), rows), kept.ravel())

    def rollout(
        self, observation: jax.Array, alive: jax.Array, key: jax.Array, termination: Termination
    ) -> tuple[Batch, jax.Array]:
        """Rollouts from observations [n, o]: rows [length, n, ...], and which of them took place, bool [length, n].

        None do where `alive`, bool [n], is false, and none after a termination.
        """

        def step(now: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[tuple, tuple[Batch, jax.Array]]:
            observation, alive = now
            action_key, key = jax.random.split(key)
            action = self.imagined_action(observation, action_key)
            prediction = self.dynamics.step(observation, action, key)
            reward, following = self.imagined_reward(prediction), prediction.next_observation
            over = termination(following, prediction.reward)
            chex.assert_equal_shape((prediction.reward, reward, over, alive))
            row = Batch(observation, action, reward, 1.0 - over, following)
            return (following, alive & ~over), (row, alive)

        keys = jax.random.split(key, self.config.rollout_length)
        return jax.lax.scan(step, (observation, alive), keys)[1]
