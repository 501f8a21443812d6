"""The jitted programs of a command, made of an Agent's methods (agent.py), and the axis of runs over which they map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from common.agent import Metrics
from common.errors import Refused
from common.replay import Batch, Episode, Replay

INITIALISE, LEARN, OFFLINE, EXPLORE, ENTER = range(5)
"""What a key is for: folded into a run's key, so that every use of randomness is a function of (seed, use, step)."""


def run_key(seed: jax.Array, purpose: int, step: jax.Array | int = 0) -> jax.Array:
    """The key of one use of randomness at one step of one run."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


class Learner(struct.PyTreeNode):
    """What training changes, on the device; every array has the runs as its leading axis."""

    agent: Any
    experience: Replay | None
    """None before the online phase, and without one."""


class Programs:
    """The jitted programs of one command; each compiles once.

    A run is a slice along the leading axis. `width` runs are computed at once on each device (vmap) and the chunks
    follow one another (`lax.map`); with several devices the axis is sharded over a mesh first. Width 1 computes a run
    exactly as it is computed alone on as many devices; it is the default on a CPU, where the working set of one run
    should stay in the cache. An accelerator takes all at once.

    Where the runs do not divide evenly over the devices, the axis is filled up: arrays on the devices have `rows` >=
    `runs` entries, and the methods take and return host arrays of `runs`. At width 1 the entries beyond the runs are
    zeros that nothing is computed for, so that the last runs have the whole CPU; else they repeat the last run.
    """

    def __init__(self, agent_class: type, config: Any, runs: int, width: int | None, devices: int | None):
        available = jax.devices()
        count = devices or min(len(available), runs)
        if count > min(len(available), runs):
            raise Refused(f"--devices {count}: {len(available)} present, for {runs} run{'s' * (runs > 1)}")
        self.runs, self.rows = runs, -(-runs // count) * count
        self.mesh = jax.make_mesh((count,), ("runs",), (AxisType.Auto,), devices=available[:count])
        self.width = width or (1 if jax.default_backend() == "cpu" else self.rows // count)

        self.order = order = [phase for phase, _ in config.phases]

        def create(configs: Any, seeds: jax.Array, examples: Batch, prior: Any) -> Any:
            def one_run(config: Any, seed: jax.Array, example: Batch) -> Any:
                return agent_class.create(config, run_key(seed, INITIALISE), example, prior)

            return self.over_runs(one_run)(configs, seeds, examples)

        def enter(agents: Any, seeds: jax.Array, phase: str, prior: Any) -> Any:
            def one_run(agent: Any, seed: jax.Array) -> Any:
                return agent.enter(phase, run_key(seed, ENTER, order.index(phase)), prior)

            return self.over_runs(one_run)(agents, seeds)

        def insert(learner: Learner, transition: Batch, episode: Episode) -> Learner:
            agent = jax.vmap(agent_class.after_episode)(learner.agent, episode)
            return Learner(agent, jax.vmap(Replay.insert)(learner.experience, transition))

        def choose(agents: Any, seeds: jax.Array, step: jax.Array, observation: jax.Array) -> jax.Array:
            """The action that follows environment step `step`: random until training starts."""

            def one_run(agent: Any, seed: jax.Array, observation: jax.Array) -> jax.Array:
                key = run_key(seed, EXPLORE, step)
                action = agent.explore(observation, key)
                uniform = jax.random.uniform(key, action.shape, minval=-1.0, maxval=1.0)
                return jnp.where(step < config.random_steps, uniform, action)

            return self.over_runs(one_run)(agents, seeds, observation)

        def collect(
            learner: Learner,
            seeds: jax.Array,
            step: jax.Array,
            transition: Batch,
            episode: Episode,
            observation: jax.Array,
        ) -> tuple[Learner, jax.Array]:
            """Insert a transition and choose the next action."""
            learner = insert(learner, transition, episode)
            return learner, choose(learner.agent, seeds, step, observation)

        def learn(
            learner: Learner,
            seeds: jax.Array,
            step: jax.Array,
            transition: Batch,
            episode: Episode,
            observation: jax.Array,
            prior: Any,
        ) -> tuple[Learner, jax.Array, Metrics]:
            """Insert a transition, update on fresh minibatches, and choose the next action."""

            def improve(agent: Any, seed: jax.Array, batches: Batch, observation: jax.Array) -> tuple:
                _, key = jax.random.split(run_key(seed, LEARN, step))
                agent, metrics = agent.update(batches, key, step)
                return agent, agent.explore(observation, run_key(seed, EXPLORE, step)), metrics

            def sample(agent: Any, seed: jax.Array, experience: Replay) -> Batch:
                key, _ = jax.random.split(run_key(seed, LEARN, step))
                return agent.sample(key, experience, prior)

            learner = insert(learner, transition, episode)
            # Outside the map over runs, which would copy every run's whole buffer.
            batches = jax.vmap(sample)(learner.agent, seeds, learner.experience)
            agent, action, metrics = self.over_runs(improve)(learner.agent, seeds, batches, observation)
            return learner.replace(agent=agent), action, metrics

        def offline(
            agents: Any, seeds: jax.Array, phase: jax.Array, first: jax.Array, steps: int, grouped: bool, prior: Any
        ) -> tuple[Any, Metrics]:
            """`steps` updates on prior data alone, after the phase's `first` ones."""

            def one_run(agent: Any, seed: jax.Array) -> tuple[Any, Metrics]:
                numbers = first + 1 + jnp.arange(steps)
                key = run_key(seed, OFFLINE, phase)
                return agent.update_offline(
                    jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers), numbers, prior, grouped
                )

            return self.over_runs(one_run)(agents, seeds)

        def act(agents: Any, observations: jax.Array) -> jax.Array:
            return self.over_runs(lambda agent, x: agent.act(x))(agents, observations)

        run, same = PartitionSpec("runs"), PartitionSpec()

        def sharded(function: Callable, inputs: tuple, outputs: Any) -> Callable:
            return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

        self.jitted = {
            "create": jax.jit(sharded(create, (run, run, run, same), run)),
            "choose": jax.jit(sharded(choose, (run, run, same, run), run)),
            "collect": jax.jit(sharded(collect, (run, run, same, run, run, run), (run, run)), donate_argnums=0),
            "learn": jax.jit(sharded(learn, (run, run, same, run, run, run, same), (run, run, run)), donate_argnums=0),
            "act": jax.jit(sharded(act, (run, run), run)),
            "enter": jax.jit(
                lambda agents, seeds, phase, prior: sharded(
                    lambda a, s, p: enter(a, s, phase, p), (run, run, same), run
                )(agents, seeds, prior),
                static_argnums=2,
                donate_argnums=0,
            ),
            "offline": jax.jit(
                lambda agents, seeds, phase, first, steps, grouped, prior: sharded(
                    lambda a, s, n, f, p: offline(a, s, n, f, steps, grouped, p),
                    (run, run, same, same, same),
                    (run, run),
                )(agents, seeds, phase, first, prior),
                static_argnums=(4, 5),
                donate_argnums=0,
            ),
        }
        """Name -> jitted function, with the axis filled up."""
        self.compiled: dict[tuple[str, int, bool], Callable] = {}
        """Phase, steps and whether in groups -> the compiled program of so many offline updates."""

    def create(self, config: Any, seeds: np.ndarray, example: Batch, prior: Any) -> Any:
        """Fresh agents, from host arrays with the axis of runs and the prior data on the devices."""
        return self.jitted["create"](*self.place((config, seeds, example)), prior)

    def enter(self, agents: Any, seeds: jax.Array, phase: str, prior: Any) -> Any:
        """The agents as they enter a phase."""
        return self.jitted["enter"](agents, seeds, phase, prior)

    def choose(self, agents: Any, seeds: jax.Array, step: int, observation: np.ndarray) -> np.ndarray:
        """The actions [runs, a] after environment step `step`, which has the number 0 before the first."""
        return self.host(self.jitted["choose"](agents, seeds, np.int32(step), self.fill(observation)))

    def collect(
        self,
        learner: Learner,
        seeds: jax.Array,
        step: int,
        transition: Batch,
        episode: Episode,
        observation: np.ndarray,
    ) -> tuple[Learner, np.ndarray]:
        """Insert the transitions of `step` [runs, ...]: the learner, and the next actions [runs, a]."""
        learner, action = self.jitted["collect"](
            learner, seeds, np.int32(step), *self.fill((transition, episode, observation))
        )
        return learner, self.host(action)

    def learn(
        self,
        learner: Learner,
        seeds: jax.Array,
        step: int,
        transition: Batch,
        episode: Episode,
        observation: np.ndarray,
        prior: Any,
    ) -> tuple[Learner, np.ndarray, Metrics]:
        """As `collect`, with the update of this step before the next actions; metrics stay on the device."""
        learner, action, metrics = self.jitted["learn"](
            learner, seeds, np.int32(step), *self.fill((transition, episode, observation)), prior
        )
        return learner, self.host(action), metrics

    def offline(
        self, agents: Any, seeds: jax.Array, phase: str, first: int, steps: int, prior: Any
    ) -> tuple[Any, Metrics]:
        """`steps` updates on prior data alone, after the phase's `first` ones: the agents, and the metrics' means."""
        program = self.compile_offline(agents, seeds, phase, first, steps, prior)
        return program(agents, seeds, np.int32(self.order.index(phase)), np.int32(first), prior)

    def compile_offline(
        self, agents: Any, seeds: jax.Array, phase: str, first: int, steps: int, prior: Any
    ) -> Callable:
        """What `offline` runs with these arguments, compiled once; before its first run, so that both can be timed."""
        # Intervals of whole groups are the rule: `log_every` and `eval_every` would have to be odd to have others.
        grouped = agents.period > 0 and first % agents.period == steps % agents.period == 0
        if (phase, steps, grouped) not in self.compiled:
            number = np.int32(self.order.index(phase))
            lowered = self.jitted["offline"].lower(agents, seeds, number, np.int32(first), steps, grouped, prior)
            self.compiled[phase, steps, grouped] = lowered.compile()
        return self.compiled[phase, steps, grouped]

    def act(self, agents: Any, observations: np.ndarray) -> np.ndarray:
        """The evaluated policies' actions for observations [runs, n, o]: [runs, n, a]."""
        return self.host(self.jitted["act"](agents, self.fill(observations)))

    def over_runs(self, function: Callable) -> Callable:
        """`function` of one run, made a function of the runs on one device."""

        def isolated(arguments: tuple) -> Any:
            # Nothing fuses across the borders of a run, so that it rounds the same whatever surrounds it.
            return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(arguments)))

        def unless_filling(argument: tuple) -> Any:
            needed, arguments = argument
            nothing = jax.eval_shape(isolated, arguments)
            return jax.lax.cond(
                needed,
                isolated,
                lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), nothing),
                arguments,
            )

        def mapped(*arguments: Any) -> Any:
            runs = jax.tree.leaves(arguments)[0].shape[0]
            if self.width == 1 and self.rows > self.runs:
                number = jax.lax.axis_index("runs") * runs + jnp.arange(runs)
                return jax.lax.map(unless_filling, (number < self.runs, arguments))
            if self.width == 1:
                return jax.lax.map(isolated, arguments)
            if self.width >= runs:
                return jax.vmap(function)(*arguments)
            return jax.lax.map(lambda x: function(*x), arguments, batch_size=self.width)

        return mapped

    def fill(self, tree: Any) -> Any:
        """Host arrays [runs, ...] as [rows, ...]."""
        if self.rows == self.runs:
            return tree
        return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], self.rows - self.runs, axis=0)]), tree)

    def host(self, tree: Any) -> Any:
        """Device arrays [rows, ...] as host arrays [runs, ...]; waits for them."""
        return jax.tree.map(lambda x: np.asarray(x)[: self.runs], tree)

    def place(self, tree: Any) -> Any:
        """Host arrays [runs, ...] put on the devices, filled up and spread along the axis of runs."""
        return jax.device_put(self.fill(tree), NamedSharding(self.mesh, PartitionSpec("runs")))

    def share(self, tree: Any) -> Any:
        """Host arrays put on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))
