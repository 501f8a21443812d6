"""What the programs of a command compute, made of an Agent's methods (agent.py); spreading.py has how."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from common.agent import Metrics
from common.distributions import one_hot_argmax
from common.layers import Precision
from common.replay import Batch, Episode, Replay
from common.spreading import Program, Spread, count_devices, isolated

MOST_STEPS = 2000
"""Updates on prior data in one call, unless a single block has more."""
LARGEST_BLOCKS = {"cpu": 8}
"""Backend -> updates in one block, at most. Between blocks the host is asked whether there is another one, for which an
accelerator waits."""
LARGEST_BLOCK = 50
"""On all other backends."""

KEPT = 8
"""How many commands' programs a process keeps, for others that need the same."""

INITIALISE, LEARN, OFFLINE, EXPLORE, ENTER, DEFER = range(6)
"""What a key is for: folded into a run's key, so that every use of randomness is a function of (seed, use, step)."""


def run_key(seed: jax.Array, purpose: int, step: jax.Array | int = 0) -> jax.Array:
    """The key of one use of randomness at one step of one run."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def block_size(steps: int, period: int) -> int:
    """Updates in each block of an interval of so many `steps`, of which the last block may have fewer.

    A multiple of `period`, if the interval is, and where that can be a divisor of it: one program does for all.
    """
    largest = max(period, LARGEST_BLOCKS.get(jax.default_backend(), LARGEST_BLOCK) // period * period)
    found = next((size for size in range(largest, 1, -period) if steps % size == 0), largest)
    return min(found, steps)


def most_blocks(size: int) -> int:
    """How many blocks of this size one call may have."""
    return max(1, MOST_STEPS // size)


class Learner(struct.PyTreeNode):
    """What training changes, on the device; every array has the runs as its leading axis."""

    agent: Any
    experience: Replay | None
    """None before the online phase, and without one."""


class Programs(Spread):
    """The programs of one command; each compiles once.

    The methods with an underscore are what is computed, for the runs on one device; the programs of the same names,
    which `__init__` makes of them, are what is called.
    """

    def __init__(
        self,
        agent_class: type,
        config: Any,
        runs: int,
        width: int | None,
        devices: int | None,
        precision: Precision = "default",
        among: Sequence[jax.Device] | None = None,
    ):
        """See `Spread`."""
        super().__init__(runs, width, devices, precision, among)
        self.agent_class, self.config = agent_class, config
        self.order = [phase for phase, _ in config.phases]

        self.create = Program(self, self._create)
        self.enter = Program(self, self._enter, donates=True)
        self.choose = Program(self, self._choose)
        self.collect = Program(self, self._collect, donates=True)
        self.learn = Program(self, self._learn, donates=True)
        self.defer = Program(self, self._defer)
        self.study = Program(self, self._study, donates=True)
        self.offline = Program(self, self._offline, donates=True)
        self.act = Program(self, self._act)
        self.proceed = Program(self, self._proceed, donates=True)

    @functools.cached_property
    def on_host(self) -> Programs:
        """Those of the host's CPU, which an accelerator does not wait for; these themselves without an accelerator."""
        if self.backend == "cpu":
            return self
        among = jax.devices("cpu")
        return Programs(self.agent_class, self.config, self.runs, None, 1, self.precision, among)

    def _create(self, config: Any, seeds: jax.Array, example: Batch, prior: Any) -> Any:
        """Fresh agents, for transitions shaped like `example` [runs, ...]."""

        def one_run(config: Any, seed: jax.Array, example: Batch) -> Any:
            return self.agent_class.create(config, run_key(seed, INITIALISE), example, prior)

        return self.over_runs(one_run)(config, seeds, example)

    def _enter(self, agents: Any, seeds: jax.Array, phase: str, prior: Any) -> Any:
        """The agents as they enter a phase."""

        def one_run(agent: Any, seed: jax.Array) -> Any:
            return agent.enter(phase, run_key(seed, ENTER, self.order.index(phase)), prior)

        return self.over_runs(one_run)(agents, seeds)

    def _choose(self, agents: Any, seeds: jax.Array, step: jax.Array, observation: jax.Array) -> jax.Array:
        """The actions [runs, a] after environment step `step`, 0 before the first: random until training starts."""

        def one_run(agent: Any, seed: jax.Array, observation: jax.Array) -> jax.Array:
            key = run_key(seed, EXPLORE, step)
            action = agent.explore(observation, key)
            uniform = jax.random.uniform(key, action.shape, minval=-1.0, maxval=1.0)
            if self.config.discrete_actions:
                uniform = one_hot_argmax(uniform)
            return jnp.where(step < self.config.random_steps, uniform, action)

        return self.over_runs(one_run)(agents, seeds, observation)

    def _collect(
        self,
        learner: Learner,
        seeds: jax.Array,
        step: jax.Array,
        transition: Batch,
        episode: Episode,
        observation: jax.Array,
    ) -> tuple[Learner, jax.Array]:
        """Insert the transitions of `step` [runs, ...]; the next actions [runs, a] are for `observation` [runs, o]."""
        learner = self._insert(learner, transition, episode)
        return learner, self._choose(learner.agent, seeds, step, observation)

    def _learn(
        self,
        learner: Learner,
        seeds: jax.Array,
        step: jax.Array,
        transition: Batch,
        episode: Episode,
        observation: jax.Array,
        prior: Any,
    ) -> tuple[Learner, jax.Array, Metrics]:
        """As `collect`, with an update on fresh minibatches before the next actions."""

        def improve(agent: Any, seed: jax.Array, batches: Batch, observation: jax.Array) -> tuple:
            _, key = jax.random.split(run_key(seed, LEARN, step))
            with self.rounding():
                agent, metrics = agent.update(batches, key, step)
            return agent, agent.explore(observation, run_key(seed, EXPLORE, step)), metrics

        def sample(agent: Any, seed: jax.Array, experience: Replay) -> Batch:
            key, _ = jax.random.split(run_key(seed, LEARN, step))
            return agent.sample(key, experience, prior)

        learner = self._insert(learner, transition, episode)
        # Outside the map over runs, which would copy every run's whole buffer.
        batches = jax.vmap(sample)(learner.agent, seeds, learner.experience)
        agent, action, metrics = self.over_runs(improve)(learner.agent, seeds, batches, observation)
        return learner.replace(agent=agent), action, metrics

    def _defer(
        self, agents: Any, seeds: jax.Array, step: jax.Array, action: jax.Array, advice: jax.Array, called: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """After environment step `step`, whether the expert acts, bool [runs], and whether its advice [runs, a] is to
        be learnt, bool [runs]: see `Agent.defers`."""

        def one_run(agent: Any, seed: jax.Array, *choice: jax.Array) -> tuple[jax.Array, jax.Array]:
            return agent.defers(*choice, run_key(seed, DEFER, step))

        return self.over_runs(one_run)(agents, seeds, action, advice, called)

    def _study(self, learner: Learner, seeds: jax.Array, most: jax.Array, prior: Any) -> tuple[Learner, Metrics]:
        """Up to `most` of the updates that each run owes, and the metrics of each, [runs, MOST_STEPS]."""

        def one_run(agent: Any, seed: jax.Array, experience: Replay) -> tuple[Any, Metrics]:
            with self.rounding():
                return agent.study(experience, prior, run_key(seed, LEARN), most, MOST_STEPS)

        agent, metrics = self.over_runs(one_run)(learner.agent, seeds, learner.experience)
        return learner.replace(agent=agent), metrics

    def _offline(
        self,
        agents: Any,
        seeds: jax.Array,
        phase: str,
        first: jax.Array,
        block: int,
        blocks: jax.Array,
        grouped: bool,
        prior: Any,
    ) -> tuple[Any, Metrics]:
        """`blocks` times `block` updates on prior data alone, after the phase's `first` ones: the agents, and the
        metrics of every update, [runs, n], of which the first `blocks * block` have taken place.

        How many blocks there are is no part of what is compiled, so that calls may be as long as is useful: numbers are
        the same. For `grouped`, see `Agent.update_offline`.
        """

        def one_run(agent: Any, seed: jax.Array) -> tuple[Any, Metrics]:
            key = run_key(seed, OFFLINE, self.order.index(phase))

            def one_block(number: jax.Array, agent: Any) -> tuple[Any, Metrics]:
                numbers = first + 1 + number * block + jnp.arange(block)
                keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
                with self.rounding():
                    return agent.update_offline(keys, numbers, prior, grouped)

            def step(number: jax.Array, learnt: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
                agent, metrics = one_block(number, learnt[0])
                return agent, jax.tree.map(lambda rows, new: rows.at[number].set(new), learnt[1], metrics)

            told = jax.eval_shape(lambda: one_block(jnp.int32(0), agent)[1])
            empty = jax.tree.map(lambda x: jnp.zeros((most_blocks(block), *x.shape), x.dtype), told)
            agent, metrics = jax.lax.fori_loop(0, blocks, step, (agent, empty))
            return agent, jax.tree.map(jnp.ravel, metrics)

        return self.over_runs(one_run)(agents, seeds)

    def _act(self, agents: Any, observations: jax.Array) -> jax.Array:
        """The evaluated policies' actions [runs, n, a] for observations [runs, n, o]."""

        def one_run(agent: Any, rows: jax.Array) -> jax.Array:
            if self.width > 1 or self.backend != "cpu":
                return agent.act(rows)
            # A product may round a row by its place among the others and by their number, and a simulation makes much
            # of that: each row is computed as if it were alone.
            return jax.lax.map(isolated(agent.act, self.backend), rows)

        return self.over_runs(one_run)(agents, observations)

    def _proceed(
        self, memory: Any, agents: Any, observations: jax.Array, rewards: jax.Array, begins: jax.Array
    ) -> tuple[jax.Array, Any]:
        """As `act`, of agents with a memory, [runs, n, ...], which is fresh where an episode `begins`, bool [runs, n]:
        the actions, and the memory after them. `rewards` [runs, n] are the last actions'."""

        def one_run(memory: Any, agent: Any, *seen: jax.Array) -> tuple[jax.Array, Any]:
            def one(memory: Any, observation: jax.Array, reward: jax.Array, begins: jax.Array) -> tuple[jax.Array, Any]:
                memory = jax.tree.map(lambda new, old: jnp.where(begins, new, old), agent.recall(), memory)
                return agent.proceed(memory, observation, reward)

            if self.width > 1 or self.backend != "cpu":
                return jax.vmap(one)(memory, *seen)
            program = isolated(one, self.backend)  # each episode as if it were alone, as in `act`
            return jax.lax.map(lambda arguments: program(*arguments), (memory, *seen))

        return self.over_runs(one_run)(memory, agents, observations, rewards, begins)

    def room(self, agents: Any, count: int) -> Any:
        """For the memory of `count` episodes of every run, [runs, count, ...], which is filled as they begin; None for
        agents without a memory."""
        shapes = jax.eval_shape(jax.vmap(lambda agent: agent.recall()), agents)
        return self.place(jax.tree.map(lambda x: np.zeros((self.runs, count, *x.shape[1:]), x.dtype), shapes))

    def _insert(self, learner: Learner, transition: Batch, episode: Episode) -> Learner:
        experience = jax.vmap(Replay.insert)(learner.experience, transition)
        return Learner(jax.vmap(self.agent_class.after_episode)(learner.agent, episode, experience), experience)


_kept: dict[Any, Programs] = {}
"""What decides all that is compiled -> programs; the last used comes last."""


def programs_of(
    agent_class: type,
    config: Any,
    runs: int,
    width: int | None,
    devices: int | None,
    prior: Any,
    precision: Precision = "default",
) -> Programs:
    """Programs for prior data shaped like `prior`: those of an earlier command in this process, if they are the same.

    So a notebook that trains again waits once for tracing and compiling. Raises Refused.
    """
    leaves, structure = jax.tree.flatten(prior)
    shapes = structure, tuple(map(jax.typeof, leaves))
    asked = agent_class, jax.tree.structure(config), runs, width, count_devices(runs, devices), precision
    key = *asked, shapes, jax.config.jax_default_matmul_precision
    _kept[key] = found = _kept.pop(key, None) or Programs(agent_class, config, runs, width, devices, precision)
    if len(_kept) > KEPT:
        del _kept[next(iter(_kept))]
    return found


def forget() -> None:
    """Keep no programs of earlier commands: after a change of what they were made of, as of an agent's methods."""
    _kept.clear()
