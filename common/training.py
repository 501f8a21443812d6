"""The session around every algorithm: data, runs, both phases, evaluation, checkpoints, and the command line's main."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import resource
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from common import commandline, datasets, environments, tasks
from common.collection import Collector
from common.commandline import Request
from common.datasets import cards
from common.errors import Refused, exiting
from common.evaluation import Evaluator, useful_workers
from common.machine import cores
from common.programs import Learner, Programs
from common.replay import Batch, Replay
from common.runs import Checkpoints, Reporter, RunDirectory, Trackers, commit, device, finite, making, versions
from common.tasks import Task

MEASURED = ("eval_every", "eval_episodes", "log_every")
"""Arguments of a run that decide what its tables hold; presets may set them."""
SAVING_SHARE = 0.05
"""Of the time, for checkpoints, where the user names no interval."""


class Saving:
    """Whether there is time for another checkpoint: they are to take no more than a share of it."""

    def __init__(self, share: float | None):
        """Of a share of the time, or without a limit."""
        self.share, self.seconds, self.last = share, 0.0, -math.inf

    def affordable(self) -> bool:
        """Whether one that takes as long as the last did would stay within the share."""
        return self.share is None or time.perf_counter() - self.last >= self.seconds / self.share

    def done(self, start: float) -> None:
        """One that began at `start` is written."""
        self.last = time.perf_counter()
        self.seconds = self.last - start


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
    """The leaves of a pytree of host arrays by path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
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
        request: Request,
        programs: Programs,
        task: Task,
        data: datasets.Dataset | None,
        prior: Any,
        directory: RunDirectory,
        console: Console,
    ):
        self.began = time.perf_counter()
        self.run, self.task, self.directory, self.console = request.run, task, directory, console
        self.config, self.programs = request.config, programs
        points = request.points()
        self.seeds = [request.run.seed + k for _ in points for k in range(request.run.num_seeds)]
        labels = [", ".join(f"{name}={value:g}" for name, value in point.items()) for point in points]
        self.points = [label for label in labels for _ in range(request.run.num_seeds)]
        runs = len(self.seeds)

        sizes = () if data is None else (data.observation.shape[1], data.action.shape[1])
        make = functools.partial(environments.make_named, task.name, *sizes)
        environment = make()
        environment.close()
        self.horizon = environment.horizon
        self.phases = {name: steps for name, steps in request.config.phases if steps}
        self.online_steps = self.phases.get("online", 0)
        self.collector = Collector(make, task, self.seeds) if self.online_steps else None
        workers = request.run.eval_workers
        if workers is None:
            workers = useful_workers(runs * request.run.eval_episodes * self.horizon)
        self.evaluator = Evaluator(make, runs, request.run.eval_episodes, workers, self.announce)
        self.trackers: Trackers | None = None
        every = request.run.checkpoint_every
        self.checkpoint_every = request.run.eval_every if every is None else every
        self.saving = Saving(SAVING_SHARE if every is None else None)
        self.checkpoints = Checkpoints(directory.path / "checkpoints") if self.checkpoint_every else None

        self.prior = None if prior is None else programs.share(prior)
        configs = jax.tree.map(lambda x: np.full(runs, x, np.float32), request.config)
        for name in request.grid:
            values = [p[name] for p in points for _ in range(request.run.num_seeds)]
            configs = configs.replace(**{name: np.array(values, np.float32)})
        example = Batch(
            observation=np.zeros((runs, environment.observation_size), np.float32),
            action=np.zeros((runs, environment.action_size), np.float32),
            reward=np.zeros(runs, np.float32),
            mask=np.zeros(runs, np.float32),
            next_observation=np.zeros((runs, environment.observation_size), np.float32),
        )
        seeds = np.array(self.seeds, np.int32)
        self.device_seeds = self.programs.place(seeds)
        agent = programs.create(configs, seeds, example, self.prior)
        experience = None
        if self.online_steps:
            # Empty on the host, so that no device ever holds the buffers of all runs.
            empty = jax.eval_shape(jax.vmap(lambda e: Replay.create(e, self.online_steps)), example)
            experience = programs.place(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty))
        self.learner = Learner(agent, experience)
        self.enter(next(iter(self.phases)))
        self.action: np.ndarray | None = None
        """The next step's actions, [runs, a]; None before the first."""
        self.progress: dict[str, Any] = {
            "phase": next(iter(self.phases)),
            "step": 0,
            "learning_seconds": 0.0,
            "learning_steps": 0,
            "phase_evaluation_seconds": 0.0,
            "whole_seconds": 0.0,
            "evaluation_seconds": 0.0,
            "compile_seconds": 0.0,
            "diverged_at_step": {},
            "episode_scores": [],
        }

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write a checkpoint of everything the rest of the run depends on."""
        start = time.perf_counter()
        host = self.programs.host
        agent = flatten(host(self.learner.agent))
        filled = self.progress["step"] if self.progress["phase"] == "online" else 0
        rows = {}
        if filled:
            # Cut to a power of two on the device, each of which is compiled once, and to what is filled on the host.
            enough = 1 << (filled - 1).bit_length()
            rows = flatten(host(jax.tree.map(lambda x: x[:, :enough], self.learner.experience.rows)))
            rows = {name: leaf[:, :filled] for name, leaf in rows.items()}
        actions = {} if self.action is None else {"action": self.action}
        arrays, episodes = self.collector.state() if self.collector else ({}, {})
        self.checkpoints.save(
            self.total_step,
            {f"agent.{k}": v for k, v in agent.items()} | {f"rows.{k}": v for k, v in rows.items()} | arrays | actions,
            self.progress | {"whole_seconds": self.whole_seconds()} | episodes,
        )
        self.saving.done(start)

    def restore(self) -> None:
        """Continue from the newest whole checkpoint, if there is one; drop the rows written after it."""
        found = self.checkpoints.restore(self.announce) if self.checkpoints else None
        if found is not None:
            _, arrays, progress = found
            anew = self.collector.restore(arrays, progress, self.announce) if self.collector else []
            self.progress |= {k: v for k, v in progress.items() if k in self.progress}
            for phase in list(self.phases)[1 : 1 + self.order(self.progress["phase"])]:
                self.enter(phase)
            fresh = self.programs.host(self.learner)
            agent = unflatten(fresh.agent, {k.removeprefix("agent."): v for k, v in arrays.items()})
            rows = {k.removeprefix("rows."): v for k, v in arrays.items() if k.startswith("rows.")}
            experience = fresh.experience
            if rows:
                filled = jax.tree.leaves(rows)[0].shape[1]
                empty = jax.tree.map(np.array, experience.rows)
                for name, leaf in flatten(empty).items():
                    leaf[:, :filled] = rows[name]
                inserted = np.full(len(self.seeds), self.progress["step"], np.int32)
                experience = Replay(empty, inserted)
            self.learner = self.programs.place(Learner(agent, experience))
            if "action" in arrays:
                self.action = np.array(arrays["action"])
            if anew and self.action is not None:
                # What was chosen was for a state that is lost.
                arguments = (self.learner.agent, self.device_seeds, self.progress["step"], self.collector.observation)
                self.action[anew] = self.playable(self.programs.choose(*arguments))[anew]
        phase, step = self.progress["phase"], self.progress["step"]
        for table in (self.directory.metrics, self.directory.evaluations):
            table.keep(r for r in table.rows() if (self.order(r["phase"]), int(r["step"])) <= (self.order(phase), step))
        self.announce(f"resuming in the {phase} phase after step {step}")

    # ------------------------------------------------------------------ reporting

    @property
    def total_step(self) -> int:
        """Steps of all phases so far."""
        before = list(self.phases.values())[: self.order(self.progress["phase"])]
        return sum(before) + self.progress["step"]

    def order(self, phase: str) -> int:
        """The place of a phase among those there are."""
        return list(self.phases).index(phase)

    def enter(self, phase: str) -> None:
        """The algorithm's own step into a phase."""
        agent = self.programs.enter(self.learner.agent, self.device_seeds, phase, self.prior)
        self.learner = self.learner.replace(agent=agent)

    def announce(self, text: str) -> None:
        """One line for the person at the terminal."""
        self.console.print(text, highlight=False, soft_wrap=True)

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
        self.trackers.log("train", self.total_step, rows)

    def evaluate(self, reporter: Reporter) -> None:
        """Evaluate every run, write the rows and say the means."""
        start = time.perf_counter()
        agent = self.learner.agent
        outcomes = self.evaluator(lambda x: self.playable(self.programs.act(agent, x)), self.seeds, self.total_step)
        rows = [self.where(run) | outcome.row(self.task) for run, outcome in enumerate(outcomes)]
        if self.headline == "score":
            self.progress["episode_scores"] = [self.task.score(o.returns, o.success).tolist() for o in outcomes]
        self.directory.evaluations.append(rows)
        self.trackers.log("evaluation", self.total_step, rows)
        seconds = time.perf_counter() - start
        self.progress["evaluation_seconds"] += seconds
        self.progress["phase_evaluation_seconds"] += seconds
        name = self.headline
        values = np.array([row[name] for row in rows])
        few = len(values) <= 12
        each = " ".join(f"{v:.4g}" for v in values) if few else f"{values.min():.4g} ... {values.max():.4g}"
        step = f"{self.progress['phase']} step {self.progress['step']}"
        reporter.evaluated(f"{step:>20}   {name} {values.mean():7.2f}   runs: {each}", f"{name} {values.mean():.4g}")

    def whole_seconds(self) -> float:
        """Of the command so far, once its data are there, without what an interruption lost."""
        return self.progress["whole_seconds"] + time.perf_counter() - self.began

    @property
    def headline(self) -> str:
        """The column of eval.csv that tells how good a policy is: the score where the task has one."""
        return "score" if np.isfinite(self.task.score(0.0, True)) else "return_mean"

    def finish(self) -> dict[str, Any]:
        """Curve and summary."""
        rows = self.directory.evaluations.rows()
        end = list(self.phases.items())[-1]
        last = [row for row in rows if (row["phase"], int(row["step"])) == end]
        finals = [{k: float(r[k]) for k in ("score", "success", "return_mean")} for r in last]
        if self.progress["episode_scores"]:
            for final, scores in zip(finals, self.progress["episode_scores"], strict=True):
                final["episode_scores"] = scores
        if self.online_steps and len(self.phases) > 1:
            for run, final in enumerate(finals):
                final |= online_progress([row for row in rows if int(row["run"]) == run], self.headline)
        learning, evaluation = self.progress["learning_seconds"], self.progress["phase_evaluation_seconds"]
        steps = self.progress["learning_steps"]
        summary = {
            "final": [{"run": k, "seed": self.seeds[k], "point": self.points[k]} | f for k, f in enumerate(finals)],
            "final_mean": {k: float(np.mean([f[k] for f in finals])) for k in finals[0] if k != "episode_scores"},
            "diverged_at_step": self.progress["diverged_at_step"],
            "steps_per_second": self.speed(),
            "steps_per_second_with_evaluation": steps / max(1e-9, learning + evaluation),
            "learning_seconds": learning,
            "evaluation_seconds": self.progress["evaluation_seconds"],
            "compile_seconds": self.progress["compile_seconds"],
            "whole_seconds": self.whole_seconds(),
            "peak_memory_bytes": peak_memory(),
            "environment_horizon": self.horizon,
        }
        count = len(self.seeds)
        title = f"{self.task.name}, {count} run{'s' * (count > 1)}"
        self.directory.draw_curve(title, self.headline, self.phases)
        self.directory.finish(summary)
        return summary

    # ------------------------------------------------------------------ the loops

    def offline(self, reporter: Reporter, interruption: Interruption) -> bool:
        """A phase of updates on prior data, an interval in one jitted call. False if interrupted."""
        progress, run = self.progress, self.run
        phase, total = progress["phase"], self.phases[progress["phase"]]
        while progress["step"] < total:
            first = progress["step"]
            # To the next row of metrics or the next evaluation, whichever comes first.
            steps = min(total, *((first // every + 1) * every for every in (run.log_every, run.eval_every))) - first
            arguments = (self.learner.agent, self.device_seeds, phase, first, steps, self.prior)
            start = time.perf_counter()
            self.programs.compile_offline(*arguments)
            progress["compile_seconds"] += time.perf_counter() - start
            start = time.perf_counter()
            agent, metrics = self.programs.offline(*arguments)
            self.learner = self.learner.replace(agent=agent)
            progress["step"] = step = first + steps
            metrics = jax.device_get(metrics)  # waits
            progress["learning_seconds"] += time.perf_counter() - start
            progress["learning_steps"] += steps
            nothing_played = {"episode_return": np.nan, "episode_success": np.nan} if self.collector else {}
            self.log(metrics, [nothing_played] * len(self.seeds))
            reporter.advance(self.total_step, phase, self.speed())
            last, stop = step == total, interruption.received is not None
            if last or step % run.eval_every == 0:
                self.evaluate(reporter)
            due = self.checkpoint_every and step // self.checkpoint_every > first // self.checkpoint_every
            if self.checkpoints and (last or stop or (due and self.saving.affordable())):
                self.save()
            if stop and self.total_step < sum(self.phases.values()):
                return False
        return True

    def online(self, reporter: Reporter, interruption: Interruption) -> bool:
        """The online phase: one environment step of all runs and one jitted call at a time. False if interrupted."""
        run, programs, progress, total = self.run, self.programs, self.progress, self.online_steps
        learning_from = max(self.config.start_training, progress["step"]) + 1
        shown = 0.0
        if self.action is None:
            observation = self.collector.observation
            self.action = self.playable(programs.choose(self.learner.agent, self.device_seeds, 0, observation))
        while progress["step"] < total:
            start = time.perf_counter()
            progress["step"] = step = progress["step"] + 1
            transition, episode = self.collector.step(self.action)
            arguments = (self.learner, self.device_seeds, step, transition, episode, self.collector.observation)
            if step < learning_from:
                self.learner, action = programs.collect(*arguments)
                metrics = {}
            else:
                self.learner, action, metrics = programs.learn(*arguments, self.prior)
            self.action = self.playable(action)
            now = time.perf_counter()
            if step == learning_from:
                progress["compile_seconds"] += now - start
            elif step > learning_from:
                progress["learning_seconds"] += now - start
                progress["learning_steps"] += 1
            if now - shown > 0.1:
                shown = now
                reporter.advance(self.total_step, "online" if metrics else "collecting", self.speed())
            if metrics and step % run.log_every == 0:
                self.log(metrics, self.collector.report())
            last, stop = step == total, interruption.received is not None
            if last or step % run.eval_every == 0:
                self.evaluate(reporter)
            due = self.checkpoint_every and step % self.checkpoint_every == 0
            if self.checkpoints and (last or stop or (due and self.saving.affordable())):
                self.save()
            if stop and not last:
                return False
        return True

    def playable(self, action: np.ndarray) -> np.ndarray:
        """Actions [runs, ..., a], zero where they are not finite: a run that has diverged scores and stops no other."""
        broken = ~np.isfinite(action).all(axis=-1, keepdims=True)
        if not broken.any():
            return action
        for run in np.flatnonzero(broken.reshape(len(broken), -1).any(axis=1)):
            if str(run) not in self.progress["diverged_at_step"]:
                at = {"phase": self.progress["phase"], "step": self.progress["step"]}
                self.progress["diverged_at_step"][str(run)] = at
                where = f"at {at['phase']} step {at['step']}"
                self.announce(f"run {run} (seed {self.seeds[run]}) has diverged {where}")
        return np.where(broken, np.float32(0), action)

    def speed(self) -> float:
        """Steps of each run per second while learning in this phase, evaluation not counted."""
        return self.progress["learning_steps"] / max(1e-9, self.progress["learning_seconds"])

    def train(self) -> int:
        """All phases and the summary; the exit status."""
        total = sum(self.phases.values())
        self.trackers = Trackers(self.directory.path, self.run, self.directory.identifier, self.total_step)
        with Interruption() as interruption, Reporter(self.console, total, self.total_step) as reporter:
            finished = True
            for phase in list(self.phases)[self.order(self.progress["phase"]) :]:
                if phase != self.progress["phase"]:
                    self.enter(phase)
                    self.progress |= {"phase": phase, "step": 0}
                    self.progress |= {"learning_seconds": 0.0, "learning_steps": 0, "phase_evaluation_seconds": 0.0}
                finished = (self.online if phase == "online" else self.offline)(reporter, interruption)
                if not finished:
                    break
        if not finished:
            kept = f"continue with --resume {self.directory.path}" if self.checkpoints else "checkpoints were off"
            self.announce(f"interrupted after step {self.progress['step']}; {kept}")
            return 128 + interruption.received
        summary = self.finish()
        several = len(self.seeds) > 1
        self.announce(
            f"final {self.headline}: {summary['final_mean'][self.headline]:.2f}, "
            f"{f'mean of {len(self.seeds)} runs, ' * several}{self.run.eval_episodes} episodes{' each' * several}; "
            f"{summary['steps_per_second']:.1f} steps/s{' of every run' * several}; results in {self.directory.path}"
        )
        return 0

    def close(self) -> None:
        """Release environments, files and threads."""
        self.evaluator.close()
        for environment in self.collector.environments if self.collector else ():
            environment.close()
        if self.trackers:
            self.trackers.close()
        if self.checkpoints:
            self.checkpoints.close()


def online_progress(rows: list[dict[str, str]], name: str) -> dict[str, float]:
    """What became of a policy that was trained offline, from the rows of eval.csv of one run.

    `offline`: its last offline evaluation. `drop`: what it had lost at its worst evaluation in the first tenth of the
    online phase (at the first one, if that comes later); negative if it had only gained. `online_mean`: the mean of
    all online evaluations; 100 minus it is the regret, where scores are in percent.
    """
    offline = [float(row[name]) for row in rows if row["phase"] != "online"][-1]
    online = [(int(row["step"]), float(row[name])) for row in rows if row["phase"] == "online"]
    early = [value for step, value in online if step <= online[-1][0] / 10] or [online[0][1]]
    return {
        "offline": offline,
        "drop": offline - min(early),
        "online_mean": float(np.mean([value for _, value in online])),
    }


def peak_memory() -> int:
    """The most memory this process has held, in bytes: the accelerator's where there is one, else the host's."""
    statistics = jax.devices()[0].memory_stats() or {}
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return statistics.get("peak_bytes_in_use", host)


def prepare_devices(request: Request) -> None:
    """Before the first use of JAX: one host device per core for several runs, and a cache of compiled programs."""
    count = request.run.devices or min(cores(), request.number_of_runs)
    with contextlib.suppress(RuntimeError):  # raised where JAX is in use already, as in a notebook: its devices stay
        jax.config.update("jax_num_cpu_devices", count)
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "headstart" / "jax"))


def digests(source: Path) -> dict[str, str]:
    """sha256 of an algorithm's file and of common/, by which changed ones are told from those that began a run."""
    folder = Path(__file__).parent
    files = {source.name: [source], "common/": sorted(folder.rglob("*.py"))}
    return {
        name: hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in parts)).hexdigest()
        for name, parts in files.items()
    }


def check_siblings(source: Path) -> None:
    """Refuse an algorithm of one checkout with the common/ of another, which is what an installation may lead to."""
    own, imported = source.parent.parent / "common" / Path(__file__).name, Path(__file__).resolve()
    if own.exists() and own.resolve() != imported:
        raise Refused(
            f"{source} would run with {imported.parent} instead of the common/ beside it: pip install -e "
            f"{source.parent.parent}, or set PYTHONPATH to that folder"
        )


def check_unchanged(resume: Path, saved: Mapping[str, Any], request: Request) -> None:
    """Refuse to go on with other values than the run began with: its arguments may mean something else by now."""
    values = dataclasses.asdict(request.config) | {name: getattr(request.run, name) for name in MEASURED}
    now = json.loads(json.dumps(finite(values), default=str))
    then = saved["config"] | {name: saved["run"][name] for name in MEASURED}
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name):
            raise Refused(
                f"--resume {resume}: {name} was {then.get(name)} when it began and is {now.get(name)} now, since "
                f"defaults or presets have changed; go on with the code of commit {saved['commit']}, or begin anew"
            )


def on_this_machine(request: Request, saved: Mapping[str, Any], source: Path, console: Console) -> Request:
    """The request with no more devices than there are; says what keeps a resumed run from repeating itself exactly."""
    notes = []
    notes += [f"{name} has changed" for name, sha256 in digests(source).items() if saved["sources"].get(name) != sha256]
    mine = versions()
    notes += [f"{package} was {old}, is {mine.get(package)}" for package, old in saved["versions"].items()
              if old != mine.get(package)]  # fmt: skip
    if saved["device"]["backend"] != jax.default_backend():
        notes.append(f"it ran on {saved['device']['kind']}")
    if (request.run.devices or 1) > jax.device_count():
        notes.append(f"it ran on {request.run.devices} devices, {jax.device_count()} are here")
        request = dataclasses.replace(request, run=dataclasses.replace(request.run, devices=None))
    if notes:
        console.print(f"since this run began, {'; '.join(notes)}: numbers may differ", highlight=False, soft_wrap=True)
    return request


def check(request: Request, task: Task) -> None:
    """Raise Refused for what can be seen to be impossible before there are data."""
    Trackers.check(request.run)
    if request.run.dataset is not None and not request.config.uses_prior_data:
        counts = [f"--{f.replace('_', '-')}" for f in ("offline_ratio", "offline_steps") if hasattr(request.config, f)]
        raise Refused(
            f"--dataset {request.run.dataset}: nothing is learnt from data where {' or '.join(counts)} is 0; "
            "raise it, or leave the data out"
        )
    for point in request.points() if hasattr(request.config, "misfit") else ():
        if why := dataclasses.replace(request.config, **point).misfit(task):
            raise Refused(why)


def serve(agent_class: type, config_class: type, presets: Mapping, arguments: list[str], console: Console) -> int:
    """Parse, check, train; the exit status. Raises Refused before anything is written for a request it cannot serve."""
    source = Path(inspect.getfile(agent_class)).resolve()
    name = source.stem
    check_siblings(source)
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
    if resume is not None:
        check_unchanged(resume, saved, request)
        request = dataclasses.replace(request, run=dataclasses.replace(request.run, devices=saved["devices"]))
    prepare_devices(request)
    if resume is not None:
        request = on_this_machine(request, saved, source, console)
    task = tasks.find(request.run.env)
    check(request, task)
    data = None
    if request.config.uses_prior_data:
        # A resumed run goes on with the data it began with, whatever has come within reach meanwhile.
        asked = request.run.dataset or (saved["dataset"]["source"] if resume is not None else None)
        with making(console) as progress:
            data = datasets.load(task, asked, progress)
    if request.config.uses_prior_data and data is None:
        without = ", or learn without any: --offline-ratio 0" * hasattr(request.config, "offline_ratio")
        raise Refused(f"--env {task.name} has no prior data of its own; name some with --dataset{without}")
    card = None if data is None else cards.card(data, task)
    environment = environments.make(task) if data is None else datasets.environment_of(task, data)
    environment.close()
    programs = Programs(agent_class, request.config, request.number_of_runs, request.run.width, request.run.devices)
    prior = None if data is None else agent_class.prepare(request.config, data, task)
    if directory is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        directory = RunDirectory.create(
            request.run.out or Path("runs") / name / task.name.replace("/", "-") / stamp,
            {
                "algorithm": name,
                "id": uuid.uuid4().hex,
                "sources": digests(source),
                "arguments": arguments,
                "run": dataclasses.asdict(request.run),
                "config": dataclasses.asdict(request.config),
                "grid": dict(request.grid),
                "dataset": card,
                "versions": versions(),
                "commit": commit(),
                "device": device(),
                "devices": programs.mesh.size,
                "matmul_precision": jax.config.jax_default_matmul_precision,
            },
        )
    elif card is not None and card["fingerprint"] != saved["dataset"]["fingerprint"]:
        raise Refused(f"--resume {resume}: the prior data have changed since ({card['source']})")
    if card is not None:
        console.print(cards.format_card(card), highlight=False, soft_wrap=True)
    with (
        directory.claimed(),
        contextlib.closing(Session(request, programs, task, data, prior, directory, console)) as session,
    ):
        if resume is not None:
            session.restore()
        return session.train()


def main(agent_class: type, config_class: type, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """The command line of an algorithm file. Leaves with status 0 only when the run has finished."""
    exiting(Path(sys.argv[0]).name, lambda: serve(agent_class, config_class, presets, sys.argv[1:], Console()))
