"""What an algorithm file fills in: a Config, its hyperparameters, and an Agent, which is one immutable pytree.

An agent's methods are pure and written for one run: programs.py jits them and adds the axis of runs, training.py calls
them in this order.

    prepare         once, on the host: the data as the algorithm learns from them
    create          a fresh agent
    enter           when a phase begins, the first one included
    offline         renew, sample, update                                            one call for many steps
    online          after_episode, sample, update, explore                           one call per environment step
                    defers, where there is an expert; owes, study in place of an update that follows every step
    act             in evaluations; of an agent that remembers its episode: recall, proceed
    portable        what `act` computes, for policy files (portable.py)

Four have no default: `create`, `act`, one `*_loss` per equation of the paper, and `update_once`, the algorithm box. An
algorithm whose gradient steps are not all alike overrides `update`. What differs between phases by choice of a function
depends on the static `self.phase`: a program is compiled for each.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from common import portable, replay
from common.errors import Refused
from common.portable import Portable
from common.replay import Batch, Episode, Replay

if TYPE_CHECKING:  # an agent acts where there are no data, and no libraries that read them
    from common.datasets import Dataset
    from common.tasks import Task

Metrics = dict[str, jax.Array]
"""Of a gradient step: a number [] each; MISSING where the step has no such number, and means leave it out."""

MISSING = float(jnp.finfo(jnp.float32).min)
"""Of a metric: there is no such number. Not NaN, which is what a loss that went wrong is."""

INTERVALS = {
    "learning_rate": "(0, inf)",
    "discount": "[0, 1]",
    "target_rate": "(0, 1]",
    "weight_decay": "[0, inf)",
    "dropout": "[0, 1)",
    "noise": "[0, inf)",
    "noise_clip": "[0, inf)",
    "target_entropy_per_action": "(-inf, 0.69)",  # no distribution on [-1, 1] has more than log 2
}
"""Where hyperparameters lie that mean the same in every algorithm, by how their names end."""
LARGEST_COUNT = 2**31 - 1
"""Steps are counted in 32 bits on the device."""


def traced(default: float, interval: str) -> Any:
    """A number of a Config that lies in an interval, written as "[0, 1)"."""
    return struct.field(default=default, metadata={"interval": interval})


def static(default: Any, interval: str | None = None) -> Any:
    """A field of a Config that is fixed when the program is compiled although it is a float, or has an interval."""
    return struct.field(default=default, pytree_node=False, metadata={"interval": interval} if interval else None)


class Hyperparameters(struct.PyTreeNode):
    """A Config: one hyperparameter a line, its name and default, and in a comment behind it, its `--help`.

    Fields annotated `float` are traced, so that a grid of them is one axis of runs. All others are static: counts,
    shapes, choices, and what is marked so. `problem` knows the intervals of INTERVALS and of `traced` and `static`;
    other floats are finite, counts whole, and at least 1, or at least 0 where 0 is the default.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        for name, kind in inspect.get_annotations(cls).items():
            default = cls.__dict__[name]
            if not isinstance(default, dataclasses.Field):
                setattr(cls, name, struct.field(default=default, pytree_node=kind in ("float", float)))
        super().__init_subclass__(**keywords)

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Names and steps, in order: environment steps "online", which is last, else updates; 0 steps: no phase."""
        return tuple((phase, getattr(self, f"{phase}_steps", 0)) for phase in ("offline", "online"))

    # Environment steps before the first update online; not a field, unless an algorithm makes it one. A docstring here
    # would be what `--help` says of those.
    start_training = 0

    discrete_actions = False
    """Whether the algorithm chooses among actions, each a one-hot vector; otherwise they are vectors in [-1, 1]."""

    # The expert that is asked at every environment step what it would do: "" is the task's own, else a folder of a
    # trained run or a policy file; None: nobody is asked. Not a field, unless an algorithm makes it one.
    expert = None

    @property
    def attended(self) -> float:
        """Environment steps a second where somebody at the terminal decides who acts, the expert or the learner; 0:
        nobody does, and steps follow each other as they can."""
        return 0.0

    default_task = ""
    """What it learns where the user names no task, if not what all others do."""

    without_data = ""
    """The flags with which the algorithm learns without prior data; none if it cannot."""

    @property
    def random_steps(self) -> int:
        """Of `start_training`, the first steps with uniformly random actions."""
        return self.start_training

    @property
    def uses_prior_data(self) -> bool:
        """Whether there must be prior data."""
        return any(steps for phase, steps in self.phases if phase != "online")

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if value == () and field.default != ():
                return f"{flag} must hold at least one number"
            for number in value if isinstance(value, tuple) else (value,):
                if why := misplaced(field, number):
                    return f"{flag} must {why}, not {number}"
        if not any(steps for _, steps in self.phases):
            counts = (f.name.replace("_", "-") for f in dataclasses.fields(self) if f.name.endswith("steps"))
            return f"there is no step to learn at: raise one of {', '.join(f'--{name}' for name in counts)}"
        return self.conflict()

    def conflict(self) -> str | None:
        """Which values do not go together, in one line."""
        return None

    def misfit(self, task: Task) -> str | None:
        """Why these values do not suit a task, in one line."""
        return None


def interval_of(field: dataclasses.Field) -> str | None:
    """Where the values of a Config's field lie; None for flags and choices."""
    named = (interval for ending, interval in INTERVALS.items() if field.name.endswith(ending))
    known = field.metadata.get("interval") or next(named, None)
    example = field.default[0] if isinstance(field.default, tuple) else field.default
    if known or isinstance(example, bool | str):
        return known
    if isinstance(example, float):
        return "(-inf, inf)"
    return "[0, inf)" if example == 0 else "[1, inf)"


def misplaced(field: dataclasses.Field, number: Any) -> str | None:
    """What a value of a Config's field must do to be one of its; None if it is, or if there is nothing to say."""
    interval = interval_of(field)
    if interval is None:
        return None
    example = field.default[0] if isinstance(field.default, tuple) else field.default
    if isinstance(example, int) and not isinstance(number, numbers.Integral):
        return "be a whole number"
    if not contains(interval, number):
        return in_words(interval, number)
    if isinstance(example, int):
        return None if number <= LARGEST_COUNT else "be below 2^31"
    with np.errstate(over="ignore"):
        stored = float(np.float32(number))
    return None if contains(interval, stored) else f"{in_words(interval, stored)} in single precision"


def contains(interval: str, number: float) -> bool:
    """Whether a number lies in an interval, written as "[0, 1)"; NaN lies in none."""
    low, high = map(float, interval[1:-1].split(","))
    above = low <= number if interval[0] == "[" else low < number
    return above and (number <= high if interval[-1] == "]" else number < high)


def in_words(interval: str, number: float) -> str:
    """What a number that does not lie in an interval must do."""
    low, high = interval[1:-1].split(", ")
    if not math.isfinite(number):
        return "be finite"
    if high == "inf":
        return f"be {'at least' if interval[0] == '[' else 'above'} {low}"
    if low == "-inf":
        return f"be {'at most' if interval[-1] == ']' else 'below'} {high}"
    return f"lie in {interval}"


class Agent(struct.PyTreeNode):
    """Configuration, networks, and whatever else changes while one run learns."""

    config: Any
    phase: str = struct.field(default="", pytree_node=False, kw_only=True)

    @staticmethod
    def prepare(config: Any, data: Dataset, task: Task) -> Any:
        """The prior data, host arrays [n, ...]: as they are; an algorithm may return more, or other rows."""
        return data.batch(task)

    @classmethod
    def create(cls, config: Any, key: jax.Array, example: Batch, prior: Any) -> Self:
        """A fresh agent for transitions shaped like one unbatched `example`; `prior` is None without prior data."""
        raise NotImplementedError

    def enter(self, phase: str, key: jax.Array, prior: Any) -> Self:
        """The agent as a phase begins: networks and optimisers as they are."""
        return self.replace(phase=phase)

    def act(self, observation: jax.Array) -> jax.Array:
        """The evaluated policy: observations [..., observation] to actions [..., action]."""
        raise NotImplementedError

    def recall(self) -> Any:
        """What an agent with a memory remembers as an episode begins, of this one episode; None: it has no memory."""
        return None

    def proceed(self, memory: Any, observation: jax.Array, reward: jax.Array) -> tuple[jax.Array, Any]:
        """What `act` is to an agent with a memory: the action [a] at an observation [o] of one episode, and the memory
        after it. `reward` [], the environment's own, came with the observation: of the last action; at first 0."""
        raise NotImplementedError

    def explore(self, observation: jax.Array, key: jax.Array) -> jax.Array:
        """The collecting policy: the evaluated one, where an algorithm has no other."""
        return self.act(observation)

    def portable(self) -> Portable:
        """What `act` computes, for policy files; of one run's agent, with arrays of NumPy. By default `actor` behind
        `normal`, if there is one. Raises Refused where it cannot be told in the parts of portable.py."""
        if not hasattr(self, "actor"):
            raise Refused(f"{type(self).__name__} has no actor: it says its own `portable`, or has none")
        return portable.actor(self.actor, getattr(self, "normal", None))

    def defers(
        self, action: jax.Array, advice: jax.Array, called: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """With an expert (`Hyperparameters.expert`): whether it acts at this step, bool [], and whether its advice [a]
        becomes a label, bool []. `action` [a] is the learner's own; `called`, bool []: somebody at the terminal wants
        the expert to act."""
        raise NotImplementedError

    def owes(self) -> jax.Array | None:
        """Gradient steps to be made before the next environment step, int32 [], by `study`, 0 for most; None: an
        `update` follows every environment step instead."""
        return None

    def study(self, experience: Replay, prior: Any, key: jax.Array, most: jax.Array, room: int) -> tuple[Self, Metrics]:
        """Some of the gradient steps that are owed, at least one if any is, at most `most`, int32 [], and the metrics
        of each, [room], MISSING behind the last. Where one call ends and the next begins changes no number; `key` is
        the same in all."""
        raise NotImplementedError

    def renew(self, step: jax.Array, prior: Any) -> Self:
        """Before step `step` of an offline phase without delayed steps: what depends on all of the data."""
        return self

    def sample(self, key: jax.Array, experience: Replay | None, prior: Any) -> Batch:
        """The minibatches of one update, arrays [steps, batch_size, ...], drawn uniformly: offline one, of the data;
        online `utd`, of the data and the experience together."""
        c = self.config
        if experience is None:
            return replay.sample(key, prior, prior.reward.shape[0], (1, c.batch_size))
        if prior is None:
            return replay.sample(key, experience.rows, experience.size, (c.utd, c.batch_size))
        return replay.sample_union(key, experience, prior.transitions(), c.utd, c.batch_size)

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """The algorithm box: gradient step `number`, counted from 1 in each phase, on a minibatch [batch_size, ...]."""
        raise NotImplementedError

    period = 0
    """Gradient steps from one delayed step to the next; 0: there is none."""

    def update_delayed(self, batch: Batch) -> tuple[Self, Metrics]:
        """What follows every `period`-th gradient step, on its minibatch [batch_size, ...]."""
        raise NotImplementedError

    def update(self, batches: Batch, key: jax.Array, step: jax.Array) -> tuple[Self, Metrics]:
        """All gradient steps of step `step`, counted from 1 in each phase: one per minibatch."""
        count = batches.reward.shape[0]
        numbers = (step - 1) * count + 1 + jnp.arange(count)
        agent, metrics = self.gradient_steps(batches, jax.random.split(key, count), numbers)
        return agent, jax.tree.map(mean_of_present if self.period > 1 else jnp.mean, metrics)

    def update_offline(self, keys: jax.Array, steps: jax.Array, prior: Any, grouped: bool) -> tuple[Self, Metrics]:
        """Steps [n] on prior data alone, with a key each [n], and the metrics of each [n].

        With `grouped`, where they `are_whole_groups`, each group is compiled as one and known to end in a delayed step.
        """

        def one(agent: Self, x: tuple) -> tuple[Self, Metrics]:
            sample_key, update_key = jax.random.split(x[0])
            agent = agent.renew(x[1], prior)
            return agent.update(agent.sample(sample_key, None, prior), update_key, x[1])

        def group(agent: Self, x: tuple) -> tuple[Self, Metrics]:
            sample_keys, update_keys = jnp.moveaxis(jax.vmap(jax.random.split)(x[0]), 1, 0)
            batches = jax.vmap(lambda key: jax.tree.map(lambda x: x[0], agent.sample(key, None, prior)))(sample_keys)
            return agent.gradient_steps(batches, jax.vmap(lambda key: jax.random.split(key, 1)[0])(update_keys), x[1])

        if grouped:
            agent, metrics = scan(group, self, (grouping(keys, self.period), grouping(steps, self.period)))
        else:
            agent, metrics = scan(one, self, (keys, steps))
        return agent, jax.tree.map(jnp.ravel, metrics)

    def are_whole_groups(self, first: int, steps: int) -> bool:
        """Whether so many steps after a phase's `first` ones are groups of `period`, which end in a delayed step."""
        return self.period > 0 and first % self.period == steps % self.period == 0

    def gradient_steps(self, batches: Batch, keys: jax.Array, numbers: jax.Array) -> tuple[Self, Metrics]:
        """Gradient steps of these consecutive numbers [steps] on minibatches [steps, batch_size, ...]: the agent, and
        the metrics of each [steps].

        As many as a multiple of `period` begin just after a delayed step. They are compiled in groups of `period`, of
        which each is known to end in one: to decide it at run time would make an accelerator wait for the host.
        """
        period, count, delayed = self.period, numbers.shape[0], type(self).update_delayed

        def wait(agent: Self, batch: Batch) -> tuple[Self, Metrics]:
            metrics = jax.eval_shape(delayed, agent, batch)[1]
            return agent, jax.tree.map(lambda x: jnp.full(x.shape, MISSING, x.dtype), metrics)

        def one(agent: Self, x: tuple) -> tuple[Self, Metrics]:
            batch, key, number = x
            agent, metrics = agent.update_once(batch, key, number)
            if not period:
                return agent, metrics
            agent, more = jax.lax.cond(number % period == 0, delayed, wait, agent, batch)
            return agent, metrics | more

        def group(agent: Self, xs: tuple) -> tuple[Self, Metrics]:
            together = jax.default_backend() != "cpu"  # where a pass of a loop costs as much as several kernels
            agent, metrics = scan(lambda agent, x: agent.update_once(*x), agent, xs, unroll=together)
            # Nothing fuses with the delayed step, so that it rounds as it does behind a conditional.
            agent, more = jax.lax.optimization_barrier(delayed(agent, jax.tree.map(lambda x: x[-1], xs[0])))
            return agent, metrics | jax.tree.map(lambda x: jnp.full(period, MISSING, x.dtype).at[-1].set(x), more)

        steps = batches, keys, numbers
        if not period or count % period:
            return scan(one, self, steps)
        agent, metrics = scan(group, self, jax.tree.map(lambda x: grouping(x, period), steps))
        return agent, jax.tree.map(jnp.ravel, metrics)

    def after_episode(self, episode: Episode, experience: Replay) -> Self:
        """After every environment step, whose transition is the newest of the experience: what an algorithm learns from
        how its episodes go."""
        return self


def scan(step: Callable[[Any, Any], tuple[Any, Metrics]], agent: Any, xs: Any, unroll: bool = False) -> tuple:
    """`jax.lax.scan` of steps that tell metrics of one shape, which are kept in one array: one write in each pass."""
    names: list[str] = []

    def one(agent: Any, x: Any) -> tuple[Any, jax.Array]:
        agent, metrics = step(agent, x)
        names[:] = metrics
        return agent, jnp.stack(list(metrics.values())) if metrics else jnp.zeros(0)

    agent, rows = jax.lax.scan(one, agent, xs, unroll=unroll)
    return agent, {name: rows[:, place] for place, name in enumerate(names)}


def grouping(steps: jax.Array, size: int) -> jax.Array:
    """Arrays [steps, ...] as [groups, size, ...]."""
    return steps.reshape(-1, size, *steps.shape[1:])


def mean_of_present(values: jax.Array) -> jax.Array:
    """The mean [] of those of a metric's values [steps] that there are; MISSING if there is none."""
    is_there = values != MISSING
    count = is_there.sum(dtype=values.dtype)
    return jnp.where(count > 0, jnp.where(is_there, values, 0).sum() / jnp.maximum(count, 1), MISSING)


def scaled(loss: jax.Array) -> jax.Array:
    """A loss divided by its own size: 1 or -1, with the gradient of log |loss|, signed."""
    return loss / jax.lax.stop_gradient(jnp.abs(loss))


def drawn(policy: Callable[[jax.Array, jax.Array], jax.Array], observation: jax.Array) -> jax.Array:
    """Actions [..., a] at observations [..., o] of a policy that draws them: `policy(observation [o], key)`.

    Each key is a function of its observation, so that an evaluation can be repeated.
    """

    def one(observation: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(observation, jnp.uint32).sum()
        return policy(observation, jax.random.fold_in(jax.random.key(0), bits))

    flat = observation.reshape(-1, observation.shape[-1])
    return jax.vmap(one)(flat).reshape(*observation.shape[:-1], -1)
