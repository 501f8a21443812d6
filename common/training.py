"""A session: the runs of one request from their first step to their last, through every phase."""

from __future__ import annotations

import functools
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from common import environments
from common.checkpoints import Checkpoints, Saving, pack, unpack
from common.collection import Collector
from common.commandline import Request
from common.datasets import Dataset
from common.evaluation import Evaluator, useful_workers
from common.programs import Learner, Programs
from common.progress import Progress
from common.replay import Batch, Replay
from common.reporting import Reporter
from common.runs import RunDirectory
from common.tasks import Task

SAVING_SHARE = 0.05
"""Of the time, for checkpoints, where the user names no interval."""
SHOWN_EVERY = 0.1
"""Seconds from one movement of the bar to the next, at least."""


class Interruption:
    """Notes SIGTERM and Ctrl-C, so that the loop can write a checkpoint before it leaves."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal's number, once there was one."""

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


class Result(NamedTuple):
    """What became of a session."""

    folder: Path
    """The run directory."""
    summary: dict[str, Any] | None
    """What stands in summary.json, with nan where that has null; None where the session was interrupted."""
    status: int
    """The exit status: 0, or 128 and the number of the signal that has interrupted it."""


class Session:
    """The runs of one request, side by side, from their configuration to their summary."""

    def __init__(
        self,
        request: Request,
        programs: Programs,
        task: Task,
        data: Dataset | None,
        prior: Any,
        directory: RunDirectory,
        console: Console,
    ):
        """At the first step. `data` decide the environment's form; `prior` is what the algorithm has made of them."""
        self.progress = Progress({name: steps for name, steps in request.config.phases if steps})
        self.request, self.programs, self.folder = request, programs, directory.path
        run, labels = request.run, request.labels()
        self.seeds = [run.seed + k for _ in labels for k in range(run.num_seeds)]
        labels = [label for label in labels for _ in range(run.num_seeds)]
        self.reporter = Reporter(directory, console, task, run, self.progress, self.seeds, labels)

        sizes = () if data is None else (data.observation.shape[1], data.action.shape[1])
        make = functools.partial(environments.make_named, task.name, *sizes)
        environment = make()
        environment.close()
        self.horizon = environment.horizon
        self.collector = Collector(make, task, self.seeds) if "online" in self.progress.phases else None
        workers = run.eval_workers
        if workers is None:
            workers = useful_workers(len(self.seeds) * run.eval_episodes * self.horizon)
        self.evaluator = Evaluator(make, len(self.seeds), run.eval_episodes, workers, self.reporter.announce)

        every = run.eval_every if run.checkpoint_every is None else run.checkpoint_every
        self.saving = Saving(every, SAVING_SHARE if run.checkpoint_every is None else None)
        self.checkpoints = Checkpoints(directory.path / "checkpoints") if every else None

        self.device_seeds = programs.place(np.array(self.seeds, np.int32))
        self.prior = None if prior is None else programs.share(prior)
        self.learner = self.fresh_learner(environment.observation_size, environment.action_size)
        self.enter(self.progress.phase)
        self.action: np.ndarray | None = None
        """The next environment step's actions, [runs, a]; None before the first."""

    def fresh_learner(self, observation_size: int, action_size: int) -> Learner:
        """The agents of all runs before they have learnt anything, with room for what they will experience."""
        runs, request = len(self.seeds), self.request
        configs = jax.tree.map(lambda x: np.full(runs, x, np.float32), request.config)
        for name in request.grid:
            values = [point[name] for point in request.points() for _ in range(request.run.num_seeds)]
            configs = configs.replace(**{name: np.array(values, np.float32)})
        example = Batch(
            observation=np.zeros((runs, observation_size), np.float32),
            action=np.zeros((runs, action_size), np.float32),
            reward=np.zeros(runs, np.float32),
            mask=np.zeros(runs, np.float32),
            next_observation=np.zeros((runs, observation_size), np.float32),
        )
        agent = self.programs.create(configs, np.array(self.seeds, np.int32), example, self.prior)
        capacity = self.progress.phases.get("online", 0)
        if not capacity:
            return Learner(agent, None)
        # Empty on the host, so that no device ever holds the buffers of all runs.
        empty = jax.eval_shape(jax.vmap(lambda e: Replay.create(e, capacity)), example)
        return Learner(agent, self.programs.place(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty)))

    def enter(self, phase: str) -> None:
        """The algorithm's own step into a phase."""
        agent = self.programs.enter(self.learner.agent, self.device_seeds, phase, self.prior)
        self.learner = self.learner.replace(agent=agent)

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write a checkpoint of everything the rest of the runs depends on."""
        start = time.perf_counter()
        filled = self.progress.step if self.progress.phase == "online" else 0
        arrays = pack(self.learner, filled, self.programs.host)
        played, episodes = self.collector.state() if self.collector else ({}, {})
        actions = {} if self.action is None else {"action": self.action}
        self.checkpoints.save(self.progress.total_step, arrays | played | actions, self.progress.state() | episodes)
        self.saving.done(start)

    def restore(self) -> None:
        """Go on from the newest whole checkpoint, if there is one; drop the rows written after it."""
        found = self.checkpoints.restore(self.reporter.announce) if self.checkpoints else None
        if found is not None:
            _, arrays, state = found
            anew = self.collector.restore(arrays, state, self.reporter.announce) if self.collector else []
            self.progress.restore(state)
            for phase in list(self.progress.phases)[1 : 1 + self.progress.order(self.progress.phase)]:
                self.enter(phase)
            self.learner = self.programs.place(unpack(self.programs.host(self.learner), arrays))
            if "action" in arrays:
                self.action = np.array(arrays["action"])
            if anew and self.action is not None:
                # What was chosen was for a state that is lost.
                self.action[anew] = self.next_action()[anew]
        self.reporter.resumed()

    # ------------------------------------------------------------------ the loops

    def train(self) -> Result:
        """Every phase that is left, and the summary."""
        progress = self.progress
        with self.reporter.live(), Interruption() as interruption:
            going = True
            for phase in list(progress.phases)[progress.order(progress.phase) :]:
                if phase != progress.phase:
                    self.enter(phase)
                    progress.enter(phase)
                going = (self.online if phase == "online" else self.offline)(interruption)
                if not going:
                    break
        if not going:
            self.reporter.interrupted(self.checkpoints is not None)
            return Result(self.folder, None, 128 + interruption.received)
        return Result(self.folder, self.reporter.finish(self.horizon), 0)

    def offline(self, interruption: Interruption) -> bool:
        """A phase of updates on prior data, an interval in one jitted call. False if interrupted."""
        progress, run, programs = self.progress, self.request.run, self.programs
        phase, total = progress.phase, progress.phases[progress.phase]
        nothing_played = {"episode_return": np.nan, "episode_success": np.nan} if self.collector else {}
        while progress.step < total:
            first = progress.step
            # To the next row of metrics or the next evaluation, whichever comes first.
            steps = min(total, *((first // every + 1) * every for every in (run.log_every, run.eval_every))) - first
            grouped = self.learner.agent.are_whole_groups(first, steps)
            arguments = (self.learner.agent, self.device_seeds, phase, first, steps, grouped, self.prior)
            start = time.perf_counter()
            if not progress.learning_steps:
                self.reporter.compiling()
            programs.offline.compile(*arguments)
            progress.compile_seconds += time.perf_counter() - start
            start = time.perf_counter()
            agent, metrics = programs.offline(*arguments)
            self.learner = self.learner.replace(agent=agent)
            progress.step = first + steps
            metrics = jax.device_get(metrics)  # waits
            progress.learnt(steps, time.perf_counter() - start)
            self.reporter.log(metrics, [nothing_played] * len(self.seeds))
            self.reporter.advance(phase)
            if not self.goes_on(first, interruption):
                return False
        return True

    def online(self, interruption: Interruption) -> bool:
        """The online phase: one environment step of all runs and one jitted call at a time. False if interrupted."""
        progress, run, programs = self.progress, self.request.run, self.programs
        learning_from = max(self.request.config.start_training, progress.step) + 1
        shown = 0.0
        if self.action is None:
            self.action = self.next_action()
        while progress.step < progress.phases["online"]:
            start = time.perf_counter()
            progress.step = step = progress.step + 1
            transition, episode = self.collector.step(self.action)
            arguments = (self.learner, self.device_seeds, step, transition, episode, self.collector.observation)
            if step == learning_from:
                self.reporter.compiling()
            if step < learning_from:
                self.learner, action = programs.collect(*arguments)
                metrics = {}
            else:
                self.learner, action, metrics = programs.learn(*arguments, self.prior)
            self.action = self.playable(action)
            now = time.perf_counter()
            if step == learning_from:
                progress.compile_seconds += now - start
            elif step > learning_from:
                progress.learnt(1, now - start)
            if now - shown > SHOWN_EVERY:
                shown = now
                self.reporter.advance("online" if metrics else "collecting")
            if metrics and step % run.log_every == 0:
                self.reporter.log(metrics, self.collector.report())
            if not self.goes_on(step - 1, interruption):
                return False
        return True

    def goes_on(self, first: int, interruption: Interruption) -> bool:
        """Evaluate and save, if that is due after the steps that follow `first`. False if it must not go on."""
        progress, run = self.progress, self.request.run
        last, stop = progress.phase_is_over, interruption.received is not None
        if last or progress.step % run.eval_every == 0:
            self.evaluate()
        if self.checkpoints and (last or stop or self.saving.due(first, progress.step)):
            self.save()
        return not stop or progress.total_step == progress.total

    def evaluate(self) -> None:
        """Evaluate every run."""
        start = time.perf_counter()
        agent, step = self.learner.agent, self.progress.total_step
        episodes, shown = len(self.seeds) * self.request.run.eval_episodes, [0.0]

        def heard(over: int) -> None:
            if time.perf_counter() - shown[0] > SHOWN_EVERY:
                shown[0] = time.perf_counter()
                self.reporter.evaluating(over, episodes)

        outcomes = self.evaluator(lambda x: self.playable(self.programs.act(agent, x)), self.seeds, step, heard)
        self.reporter.evaluated(outcomes)
        self.progress.evaluated(time.perf_counter() - start)

    def next_action(self) -> np.ndarray:
        """What every run does next, [runs, a], where no transition has led to it in this process."""
        arguments = (self.learner.agent, self.device_seeds, self.progress.step, self.collector.observation)
        return self.playable(self.programs.choose(*arguments))

    def playable(self, action: np.ndarray) -> np.ndarray:
        """Actions [runs, ..., a], zero where they are not finite: a run that has diverged scores and stops no other."""
        broken = ~np.isfinite(action).all(axis=-1, keepdims=True)
        if not broken.any():
            return action
        for run in np.flatnonzero(broken.reshape(len(broken), -1).any(axis=1)).tolist():
            self.reporter.diverged(run)
        return np.where(broken, np.float32(0), action)

    def close(self) -> None:
        """Release environments, files and threads."""
        self.evaluator.close()
        for environment in self.collector.environments if self.collector else ():
            environment.close()
        if self.checkpoints:
            self.checkpoints.close()
