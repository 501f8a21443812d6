"""The loop around every algorithm: the axis of runs, one jitted call per environment step, evaluation, checkpoints.

What an algorithm's agent must offer (RLPD is the example): a `PyTreeNode` with a field `config` and

    create(config, key, example) -> agent       fresh, for transitions shaped like one unbatched `example`
    sample(key, experience, prior) -> batches    the minibatches of one update
    update(batches, key) -> agent, metrics       all gradient steps of one environment step
    explore(observation, key) -> action          while collecting
    act(observation) -> action                   while evaluating

all pure and written for one run. Its Config offers `start_training`, `pretrain_steps`, `uses_prior_data` and `problem()`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from common import commandline, datasets, environments, tasks
from common.commandline import Request
from common.environments import Environment
from common.errors import Refused
from common.evaluation import Evaluator, episode_seed
from common.replay import Batch, Replay
from common.runs import Checkpoints, Reporter, RunDirectory, Trackers, commit, cores, device, versions
from common.tasks import Task

INITIALISE, LEARN, PRETRAIN, EXPLORE = range(4)
"""What a key is for: folded into a run's key, so that every use of randomness is a function of (seed, use, step)."""


def run_key(seed: jax.Array, purpose: int, step: jax.Array | int = 0) -> jax.Array:
    """The key of one use of randomness at one step of one run."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


class Learner(struct.PyTreeNode):
    """What training changes, on the device; every array has the runs as its leading axis."""

    agent: Any
    experience: Replay


class Programs:
    """The jitted programs of one command; each compiles once.

    A run is a slice along the leading axis. `width` runs are computed at once on each device (vmap) and the chunks
    follow one another (`lax.map`); with several devices the axis is sharded over a mesh first. Width 1 computes a run
    exactly as it is computed alone. On a CPU that is also the fastest way, since the working set of one run stays in
    the cache (benchmarks/throughput.py); an accelerator takes all at once.
    """

    def __init__(self, agent_class: type, config: Any, runs: int, width: int | None, devices: int | None):
        available = jax.devices()
        count = devices or max(n for n in range(1, min(len(available), runs) + 1) if runs % n == 0)
        if count > len(available) or runs % count:
            raise Refused(f"--devices {count}: {len(available)} present, and {runs} runs must divide evenly over them")
        self.mesh = jax.make_mesh((count,), ("runs",), devices=available[:count])
        self.width = width or (1 if jax.default_backend() == "cpu" else runs // count)
        self.start_training = config.start_training

        def create(config: Any, seed: jax.Array, example: Batch) -> Any:
            return agent_class.create(config, run_key(seed, INITIALISE), example)

        def insert(learner: Learner, transition: Batch) -> Learner:
            return learner.replace(experience=jax.vmap(Replay.insert)(learner.experience, transition))

        def collect(learner: Learner, seeds: jax.Array, step: jax.Array, transition: Batch, observation: jax.Array):
            """Insert a transition; the next action is random until training starts."""

            def explore(agent: Any, seed: jax.Array, observation: jax.Array) -> jax.Array:
                key = run_key(seed, EXPLORE, step)
                shape = transition.action.shape[1:]
                uniform = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
                return jnp.where(step < self.start_training, uniform, agent.explore(observation, key))

            learner = insert(learner, transition)
            return learner, self.over_runs(explore)(learner.agent, seeds, observation)

        def learn(
            learner: Learner,
            seeds: jax.Array,
            step: jax.Array,
            transition: Batch,
            observation: jax.Array,
            prior: Batch | None,
        ):
            """Insert a transition, update on fresh minibatches, and choose the next action."""

            def improve(agent: Any, seed: jax.Array, batches: Batch, observation: jax.Array):
                _, key = jax.random.split(run_key(seed, LEARN, step))
                agent, metrics = agent.update(batches, key)
                return agent, agent.explore(observation, run_key(seed, EXPLORE, step)), metrics

            def sample(agent: Any, seed: jax.Array, experience: Replay) -> Batch:
                key, _ = jax.random.split(run_key(seed, LEARN, step))
                return agent.sample(key, experience, prior)

            learner = insert(learner, transition)
            # Outside the map over runs, which would copy every run's whole buffer.
            batches = jax.vmap(sample)(learner.agent, seeds, learner.experience)
            agent, action, metrics = self.over_runs(improve)(learner.agent, seeds, batches, observation)
            return learner.replace(agent=agent), action, metrics

        def pretrain(agents: Any, seeds: jax.Array, first: jax.Array, steps: int, prior: Batch):
            """`steps` updates on prior data alone."""

            def one_run(agent: Any, seed: jax.Array):
                def update(agent: Any, step: jax.Array):
                    sample_key, update_key = jax.random.split(run_key(seed, PRETRAIN, step))
                    return agent.update(agent.sample(sample_key, None, prior), update_key)

                agent, metrics = jax.lax.scan(update, agent, first + jnp.arange(steps))
                return agent, jax.tree.map(jnp.mean, metrics)

            return self.over_runs(one_run)(agents, seeds)

        def act(agents: Any, observations: jax.Array) -> jax.Array:
            return self.over_runs(lambda agent, x: agent.act(x))(agents, observations)

        run, same = PartitionSpec("runs"), PartitionSpec()

        def sharded(function: Callable, inputs: tuple, outputs: Any) -> Callable:
            return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

        self.create = jax.jit(sharded(self.over_runs(create), (run, run, run), run))
        self.collect = jax.jit(sharded(collect, (run, run, same, run, run), (run, run)), donate_argnums=0)
        self.learn = jax.jit(sharded(learn, (run, run, same, run, run, same), (run, run, run)), donate_argnums=0)
        self.act = jax.jit(sharded(act, (run, run), run))
        self.pretrain = jax.jit(
            lambda agents, seeds, first, steps, prior: sharded(
                lambda a, s, f, p: pretrain(a, s, f, steps, p), (run, run, same, same), (run, run)
            )(agents, seeds, first, prior),
            static_argnums=3,
            donate_argnums=0,
        )

    def over_runs(self, function: Callable) -> Callable:
        """`function` of one run, made a function of the runs on one device."""

        def mapped(*arguments: Any) -> Any:
            runs = jax.tree.leaves(arguments)[0].shape[0]
            if self.width >= runs > 1:
                return jax.vmap(function)(*arguments)
            return jax.lax.map(lambda x: function(*x), arguments, batch_size=None if self.width == 1 else self.width)

        return mapped

    def place(self, tree: Any, shared: bool = False) -> Any:
        """Host arrays put on the devices: along the axis of runs, or the same on each."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec() if shared else PartitionSpec("runs")))


class Collector:
    """The environments of all runs and the episode each is in: what a checkpoint keeps besides the learner.

    An episode is a function of its seed and its actions, so these are its state; any deterministic environment can be
    restored from them.
    """

    def __init__(self, make: Callable[[], Environment], task: Task, seeds: list[int]):
        self.task = task
        self.seeds = seeds
        self.environments = [make() for _ in seeds]
        self.episode = np.zeros(len(seeds), np.int64)
        self.actions: list[list[np.ndarray]] = [[] for _ in seeds]
        self.returns = np.zeros(len(seeds))
        self.solved = np.zeros(len(seeds), bool)
        self.finished: list[list[tuple[float, bool]]] = [[] for _ in seeds]
        """Return and success of the episodes that ended since the last row of metrics."""
        self.observation = np.stack([self.reset(run) for run in range(len(seeds))])

    def reset(self, run: int) -> np.ndarray:
        """Start the run's next episode."""
        self.actions[run] = []
        self.returns[run] = 0.0
        self.solved[run] = False
        return self.environments[run].reset(episode_seed(self.seeds[run], 0, int(self.episode[run])))

    def step(self, actions: np.ndarray) -> Batch:
        """Act in every environment: the transitions [runs, ...], rewards as the learner sees them.

        `observation` is afterwards what the next action is for: the start of a new episode where one has ended.
        """
        before = self.observation
        taken = [environment.step(action) for environment, action in zip(self.environments, actions, strict=True)]
        after = np.stack([s.next_observation for s in taken])
        self.observation = after.copy()
        for run, result in enumerate(taken):
            self.actions[run].append(actions[run])
            self.returns[run] += result.reward
            self.solved[run] |= result.success
            if result.terminated or result.truncated:
                self.finished[run].append((float(self.returns[run]), bool(self.solved[run])))
                self.episode[run] += 1
                self.observation[run] = self.reset(run)
        reward = np.array([s.reward for s in taken], np.float32)
        return Batch(
            observation=before,
            action=np.asarray(actions, np.float32),
            reward=self.task.reward_scale * reward + np.float32(self.task.reward_shift),
            mask=np.array([not s.terminated for s in taken], np.float32),
            next_observation=after,
        )

    def report(self) -> list[dict[str, float]]:
        """Per run, the mean return and success of the episodes that ended since the last report (nan: none did)."""
        rows = []
        for finished in self.finished:
            returns, solved = zip(*finished, strict=True) if finished else ((np.nan,), (np.nan,))
            rows.append({"episode_return": float(np.mean(returns)), "episode_success": 100 * float(np.mean(solved))})
            finished.clear()
        return rows

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and progress from which `restore` continues."""
        arrays = {f"episode_actions.{run}": np.array(a, np.float32) for run, a in enumerate(self.actions) if a}
        return arrays | {"observation": self.observation}, {
            "episode": self.episode.tolist(),
            "finished": self.finished,
        }

    def restore(self, arrays: Mapping[str, np.ndarray], progress: Mapping[str, Any], announce: Callable) -> None:
        """Repeat the episodes that were under way."""
        self.episode = np.array(progress["episode"], np.int64)
        self.finished = [[(r, s) for r, s in run] for run in progress["finished"]]
        for run in range(len(self.seeds)):
            self.observation[run] = self.reset(run)
            for action in arrays.get(f"episode_actions.{run}", ()):
                result = self.environments[run].step(action)
                self.observation[run] = result.next_observation
                self.actions[run].append(action)
                self.returns[run] += result.reward
                self.solved[run] |= result.success
            if not np.array_equal(self.observation[run], arrays["observation"][run]):
                announce(f"run {run}: {self.task.name} is not deterministic; its episode starts again")
                self.episode[run] += 1
                self.observation[run] = self.reset(run)


class Interruption:
    """Notes SIGTERM and Ctrl-C, so that the loop can write a checkpoint before it leaves."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Interruption:
        self.before = {s: signal.signal(s, self.note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number: int, _: Any) -> None:
        """The handler; a second signal of the kind acts at once."""
        self.received = number
        signal.signal(number, self.before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree by path, on the host."""
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(template: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """`arrays` in the structure of `template`. Raises Refused if names or shapes differ."""

    def find(path: tuple, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise Refused(f"--resume: the checkpoint does not fit this version of the algorithm ({name} differs)")
        return arrays[name]

    return jax.tree_util.tree_map_with_path(find, template)


class Session:
    """One command's runs, from their configuration to their summary."""

    def __init__(
        self,
        agent_class: type,
        request: Request,
        task: Task,
        data: datasets.Dataset | None,
        directory: RunDirectory,
        console: Console,
    ):
        self.run, self.task, self.directory, self.console = request.run, task, directory, console
        self.config = request.config
        points = request.points()
        self.seeds = [request.run.seed + k for _ in points for k in range(request.run.num_seeds)]
        self.points = [", ".join(f"{k}={v:g}" for k, v in p.items()) for p in points for _ in range(request.run.num_seeds)]
        runs = len(self.seeds)
        self.programs = Programs(agent_class, request.config, runs, request.run.width, request.run.devices)

        def make() -> Environment:
            return environments.make(task, data)

        self.collector = Collector(make, task, self.seeds)
        self.evaluator = Evaluator(make, runs, request.run.eval_episodes)
        self.trackers = Trackers(directory.path, request.run.tensorboard, request.run.wandb, dataclasses.asdict(request.run))
        every = request.run.checkpoint_every
        self.checkpoint_every = request.run.eval_every if every is None else every
        self.checkpoints = Checkpoints(directory.path / "checkpoints") if self.checkpoint_every else None

        self.prior = None if data is None else self.programs.place(data.batch(task), shared=True)
        configs = jax.tree.map(lambda x: np.full(runs, x, np.float32), request.config)
        for name in request.grid:
            values = [p[name] for p in points for _ in range(request.run.num_seeds)]
            configs = configs.replace(**{name: np.array(values, np.float32)})
        environment = self.collector.environments[0]
        example = Batch(
            observation=np.zeros((runs, environment.observation_size), np.float32),
            action=np.zeros((runs, environment.action_size), np.float32),
            reward=np.zeros(runs, np.float32),
            mask=np.zeros(runs, np.float32),
            next_observation=np.zeros((runs, environment.observation_size), np.float32),
        )
        self.device_seeds = self.programs.place(np.array(self.seeds, np.int32))
        agent = self.programs.create(*self.programs.place((configs, self.device_seeds, example)))
        experience = jax.vmap(lambda e: Replay.create(e, request.run.steps))(example)
        self.learner = Learner(agent, self.programs.place(experience))
        self.action = np.zeros((runs, environment.action_size), np.float32)
        self.progress: dict[str, Any] = {
            "phase": "offline" if request.config.pretrain_steps else "online",
            "step": 0,
            "learning_seconds": 0.0,
            "learning_steps": 0,
            "evaluation_seconds": 0.0,
            "compile_seconds": 0.0,
        }

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write a checkpoint of everything the rest of the run depends on."""
        agent = flatten(self.learner.agent)
        filled = min(self.progress["step"], self.run.steps) if self.progress["phase"] == "online" else 0
        rows = flatten(jax.tree.map(lambda x: x[:, :filled], self.learner.experience.rows)) if filled else {}
        arrays, episodes = self.collector.state()
        self.checkpoints.save(
            self.total_step,
            {f"agent.{k}": v for k, v in agent.items()}
            | {f"rows.{k}": v for k, v in rows.items()}
            | arrays
            | {"action": np.asarray(self.action)},
            self.progress | episodes,
        )

    def restore(self) -> None:
        """Continue from the newest whole checkpoint, if there is one; drop the rows written after it."""
        found = self.checkpoints.restore(self.announce) if self.checkpoints else None
        if found is not None:
            _, arrays, progress = found
            self.collector.restore(arrays, progress, self.announce)
            self.progress = {k: progress[k] for k in self.progress}
            agent = unflatten(self.learner.agent, {k.removeprefix("agent."): v for k, v in arrays.items()})
            rows = {k.removeprefix("rows."): v for k, v in arrays.items() if k.startswith("rows.")}
            experience = self.learner.experience
            if rows:
                filled = jax.tree.leaves(rows)[0].shape[1]
                empty = jax.tree.map(np.array, jax.device_get(experience.rows))
                for name, leaf in flatten(empty).items():
                    leaf[:, :filled] = rows[name]
                inserted = np.full(len(self.seeds), self.progress["step"], np.int32)
                experience = Replay(empty, inserted)
            self.learner = self.programs.place(Learner(agent, experience))
            self.action = arrays["action"]
        phase, step = self.progress["phase"], self.progress["step"]
        for table in (self.directory.metrics, self.directory.evaluations):
            done = [r for r in table.rows() if (r["phase"], int(r["step"])) <= (phase, step)]
            table.keep(done)
        self.announce(f"resuming in the {phase} phase after step {step}")

    # ------------------------------------------------------------------ reporting

    @property
    def total_step(self) -> int:
        """Steps of both phases so far."""
        return self.progress["step"] + (self.config.pretrain_steps if self.progress["phase"] == "online" else 0)

    def announce(self, text: str) -> None:
        """One line for the person at the terminal."""
        self.console.print(text, highlight=False)

    def where(self, run: int) -> dict[str, Any]:
        """The leading columns of a row about one run."""
        columns = {"run": run, "seed": self.seeds[run], "step": self.progress["step"], "phase": self.progress["phase"]}
        return columns | ({"point": self.points[run]} if self.points[run] else {})

    def log(self, metrics: Mapping[str, jax.Array], more: list[dict[str, float]]) -> None:
        """Write one row of metrics per run."""
        values = {name: np.asarray(value) for name, value in metrics.items()}
        rows = [
            self.where(run) | {name: float(value[run]) for name, value in values.items()} | more[run]
            for run in range(len(self.seeds))
        ]
        self.directory.metrics.append(rows)
        self.trackers.log("train", rows)

    def evaluate(self, reporter: Reporter) -> None:
        """Evaluate every run, write the rows and say the means."""
        start = time.perf_counter()
        agent = self.learner.agent
        outcomes = self.evaluator(lambda x: self.programs.act(agent, x), self.seeds, self.total_step)
        rows = [self.where(run) | outcome.row(self.task) for run, outcome in enumerate(outcomes)]
        self.directory.evaluations.append(rows)
        self.trackers.log("evaluation", rows)
        self.progress["evaluation_seconds"] += time.perf_counter() - start
        name = self.headline
        values = np.array([row[name] for row in rows])
        each = " ".join(f"{v:.4g}" for v in values) if len(values) <= 12 else f"{values.min():.4g} ... {values.max():.4g}"
        step = f"{self.progress['phase']} step {self.progress['step']}"
        reporter.evaluated(f"{step:>20}   {name} {values.mean():7.2f}   runs: {each}", f"{name} {values.mean():.4g}")

    @property
    def headline(self) -> str:
        """The column of eval.csv that tells how good a policy is: the score where the task has one."""
        return "score" if np.isfinite(self.task.score(0.0, True)) else "return_mean"

    def finish(self) -> dict[str, Any]:
        """Curve and summary."""
        last = [r for r in self.directory.evaluations.rows() if int(r["step"]) == self.run.steps and r["phase"] == "online"]
        finals = [{k: float(r[k]) for k in ("score", "success", "return_mean")} for r in last]
        learning, evaluation = self.progress["learning_seconds"], self.progress["evaluation_seconds"]
        steps = self.progress["learning_steps"]
        summary = {
            "final": [{"run": run, "seed": self.seeds[run], "point": self.points[run]} | f for run, f in enumerate(finals)],
            "final_mean": {k: float(np.mean([f[k] for f in finals])) for k in finals[0]},
            "steps_per_second": self.speed(),
            "steps_per_second_with_evaluation": steps / max(1e-9, learning + evaluation),
            "learning_seconds": learning,
            "evaluation_seconds": evaluation,
            "compile_seconds": self.progress["compile_seconds"],
            "peak_memory_bytes": peak_memory(),
            "environment_horizon": self.collector.environments[0].horizon,
        }
        self.directory.draw_curve(f"{self.task.name}, {len(self.seeds)} runs", self.headline)
        self.directory.finish(summary)
        return summary

    # ------------------------------------------------------------------ the loops

    def pretrain(self, reporter: Reporter, interruption: Interruption) -> bool:
        """The offline phase: updates on prior data, an interval in one jitted call. False if interrupted."""
        progress, total = self.progress, self.config.pretrain_steps
        while progress["step"] < total:
            first = progress["step"]
            steps = min(self.run.log_every, total - first)
            agent, metrics = self.programs.pretrain(
                self.learner.agent, self.device_seeds, np.int32(first), steps, self.prior
            )
            self.learner = self.learner.replace(agent=agent)
            progress["step"] += steps
            self.log(metrics, [{"episode_return": np.nan, "episode_success": np.nan}] * len(self.seeds))
            reporter.advance(progress["step"], "pretraining", self.speed())
            if progress["step"] == total:
                self.evaluate(reporter)
            if interruption.received:
                self.save()
                return False
        return True

    def online(self, reporter: Reporter, interruption: Interruption) -> bool:
        """The online phase: one environment step of all runs and one jitted call at a time. False if interrupted."""
        run, programs, progress = self.run, self.programs, self.progress
        learning_from = max(self.config.start_training, progress["step"]) + 1
        shown = 0.0
        while progress["step"] < run.steps:
            start = time.perf_counter()
            progress["step"] = step = progress["step"] + 1
            transition = self.collector.step(self.action)
            arguments = (self.learner, self.device_seeds, np.int32(step), transition, self.collector.observation)
            if step < learning_from:
                self.learner, action = programs.collect(*arguments)
                metrics = {}
            else:
                self.learner, action, metrics = programs.learn(*arguments, self.prior)
            self.action = np.asarray(action)  # waits for the device
            now = time.perf_counter()
            if step == learning_from:
                progress["compile_seconds"] += now - start
            elif step > learning_from:
                progress["learning_seconds"] += now - start
                progress["learning_steps"] += 1
            if now - shown > 0.1:
                shown = now
                reporter.advance(self.total_step, "training" if metrics else "collecting", self.speed())
            if metrics and step % run.log_every == 0:
                self.log(metrics, self.collector.report())
            last, stop = step == run.steps, interruption.received is not None
            if last or step % run.eval_every == 0:
                self.evaluate(reporter)
            if self.checkpoints and (last or stop or step % self.checkpoint_every == 0):
                self.save()
            if stop and not last:
                return False
        return True

    def speed(self) -> float:
        """Environment steps of each run per second while learning, evaluation not counted."""
        return self.progress["learning_steps"] / max(1e-9, self.progress["learning_seconds"])

    def train(self) -> int:
        """Both phases and the summary; the exit status."""
        total = self.config.pretrain_steps + self.run.steps
        with Interruption() as interruption, Reporter(self.console, total, self.total_step) as reporter:
            finished = True
            if self.progress["phase"] == "offline":
                finished = self.pretrain(reporter, interruption)
                if finished:
                    self.progress |= {"phase": "online", "step": 0}
            finished = finished and self.online(reporter, interruption)
        if not finished:
            kept = f"continue with --resume {self.directory.path}" if self.checkpoints else "no checkpoint was asked for"
            self.announce(f"interrupted after step {self.progress['step']}; {kept}")
            return 128 + interruption.received
        summary = self.finish()
        self.announce(
            f"final {self.headline}: {summary['final_mean'][self.headline]:.2f}, mean of {len(self.seeds)} runs, "
            f"{self.run.eval_episodes} episodes each; {summary['steps_per_second']:.1f} steps/s of every run; "
            f"results in {self.directory.path}"
        )
        return 0

    def close(self) -> None:
        """Release environments, files and threads."""
        self.evaluator.close()
        for environment in self.collector.environments:
            environment.close()
        self.trackers.close()
        if self.checkpoints:
            self.checkpoints.close()


def peak_memory() -> int:
    """The most memory this process has held, in bytes: the accelerator's where there is one, else the host's."""
    statistics = jax.devices()[0].memory_stats() or {}
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return statistics.get("peak_bytes_in_use", host)


def prepare_devices(request: Request) -> None:
    """Before the first use of JAX: one host device per core for several runs, and a cache of compiled programs."""
    runs = len(request.points()) * request.run.num_seeds
    count = request.run.devices or max(n for n in range(1, min(cores(), runs) + 1) if runs % n == 0)
    jax.config.update("jax_num_cpu_devices", count)
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "headstart" / "jax"))


def serve(agent_class: type, config_class: type, presets: Mapping, arguments: list[str], console: Console) -> int:
    """Parse, check, train; the exit status. Raises Refused before anything is written for a request it cannot serve."""
    source = Path(inspect.getfile(agent_class))
    name = source.stem
    description = inspect.getdoc(sys.modules[agent_class.__module__]) or ""
    resume = commandline.resumed(arguments)
    directory = None
    if resume is not None:
        directory, saved = RunDirectory.open(resume)
        if saved["algorithm"] != name:
            raise Refused(f"--resume {resume}: a run of {saved['algorithm']}.py, not of {name}.py")
        if (resume / "summary.json").exists():
            console.print(f"{resume} has finished already; its results are in summary.json")
            return 0
        arguments = saved["arguments"]
    request = commandline.parse(arguments, name, description, config_class, presets)
    prepare_devices(request)
    task = tasks.find(request.run.env)
    data = datasets.load(task, request.run.dataset) if request.config.uses_prior_data else None
    if request.config.uses_prior_data and data is None:
        raise Refused(f"--env {task.name}: there is no prior data for it; name some with --dataset, or use --offline-ratio 0")
    card = None if data is None else datasets.card(data, task)
    environments.make(task, data).close()  # whatever does not fit is refused here, before anything is written
    if directory is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        directory = RunDirectory.create(
            request.run.out or Path("runs") / name / task.name.replace("/", "-") / stamp,
            {
                "algorithm": name,
                "arguments": arguments,
                "run": dataclasses.asdict(request.run),
                "config": dataclasses.asdict(request.config),
                "grid": dict(request.grid),
                "dataset": card,
                "versions": versions(),
                "commit": commit(),
                "device": device(),
                "matmul_precision": jax.config.jax_default_matmul_precision,
            },
        )
    elif card is not None and card["fingerprint"] != saved["dataset"]["fingerprint"]:
        raise Refused(f"--resume {resume}: the prior data have changed since ({card['source']})")
    if card is not None:
        console.print(datasets.format_card(card), highlight=False)
    session = Session(agent_class, request, task, data, directory, console)
    try:
        if resume is not None:
            session.restore()
        return session.train()
    finally:
        session.close()


def main(agent_class: type, config_class: type, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """The command line of an algorithm file. Leaves with status 0 only when the run has finished."""
    console = Console()
    try:
        status = serve(agent_class, config_class, presets, sys.argv[1:], console)
    except Refused as refusal:
        print(f"{Path(sys.argv[0]).name}: {refusal}", file=sys.stderr)
        status = 2
    sys.exit(status)
