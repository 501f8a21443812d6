"""A session: the runs of one request from their first step to their last, through every phase."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from common import environments, films, stops
from common.checkpoints import Checkpoints, Saving, pack, unpack
from common.collection import Collector
from common.commandline import Request
from common.datasets import Dataset
from common.errors import EnvironmentFailed
from common.experts import Expert
from common.guidance import Guide
from common.judging import Judge
from common.keyboard import Keys
from common.machine import cores
from common.means import Means, first_not_finite, known
from common.pacing import Pace, StepTimes
from common.players import playable
from common.policyfiles import PolicyFiles
from common.programs import MOST_STEPS, Learner, Programs, block_size, most_blocks
from common.progress import Progress
from common.replay import Episode, Replay, blank
from common.reporting import SHOWN_EVERY, Reporter
from common.runs import RunDirectory
from common.spreading import Program
from common.stops import Stopped, Watch
from common.tasks import Task

SAVING_SHARE = 0.05
"""Of the time, for checkpoints, where the user names no interval."""
CALL_SECONDS = 1.0
"""What a call of many updates should take, for a stop waits for it."""


class Result(NamedTuple):
    """What became of a session."""

    folder: Path
    """The run directory."""
    summary: dict[str, Any] | None
    """What stands in summary.json, with nan where that has null; None where the session came to no end."""
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
        expert: Expert | None = None,
    ):
        """At the first step. `data` decide the environment's form; `prior` is what the algorithm has made of them. The
        `expert` is asked while experience is collected."""
        self.progress = Progress({name: steps for name, steps in request.config.phases if steps})
        self.request, self.programs, self.folder = request, programs, directory.path
        run, labels = request.run, request.labels()
        self.seeds = [run.seed + k for _ in labels for k in range(run.num_seeds)]
        labels = [label for label in labels for _ in range(run.num_seeds)]
        self.reporter = Reporter(directory, console, task, run, self.progress, self.seeds, labels)

        sizes = () if data is None else (data.observation.shape[1], data.action.shape[1])
        make = environments.maker_of(task, *sizes)
        self.collector: Collector | None = None
        self.keys: Keys | None = None
        """Those of somebody who decides who acts; None without anybody."""
        if "online" in self.progress.phases:
            collects = make
            if request.config.attended:
                self.keys = Keys(request.config.attended)
                shown = "human" if films.has_display() else None
                collects = environments.maker_of(task, *sizes, render=shown)
            workers = run.env_workers, self.reporter.announce
            self.collector = Collector(collects, task, self.seeds, not run.single_environment, *workers)
            environment = self.collector.environments[0]
        else:
            environment = make()
            environment.close()
        self.horizon = environment.horizon
        self.policies = PolicyFiles(directory, environment, self.progress, self.reporter.announce)
        only = make if self.collector is None or not run.single_environment else lambda: environment
        told = self.progress, self.reporter, self.policies, self.prepare
        self.judge = Judge(only, environment, run, self.seeds, programs, *told)
        self.is_cut = False
        """Whether an evaluation has played in the environment, and the episode that is collected must begin anew."""

        every = run.eval_every if run.checkpoint_every is None else run.checkpoint_every
        self.saving = Saving(every, SAVING_SHARE if run.checkpoint_every is None else None)
        self.checkpoints = Checkpoints(directory.path / "checkpoints") if every else None
        self.kept_at: int | None = None
        """The step, of all phases together, of the newest checkpoint; None without one."""
        self.means = Means(len(self.seeds))
        self.prepared: set[tuple] = set()
        """What calls were seen to be compiled."""
        self.pace = math.inf
        """Seconds that an update on prior data took the last time."""

        self.device_seeds = programs.place(np.array(self.seeds, np.int32))
        self.prior = None if prior is None else programs.share(prior)
        self.learner = self.fresh_learner(environment.observation_size, environment.action_size)
        self.enter(self.progress.phase)
        self.guide: Guide | None = None
        """None where no expert is asked."""
        if expert is not None:
            self.guide = Guide(expert, self.collector, programs, self.keys)
        self.studies = self.learner.agent.owes() is not None
        """Whether updates come in rounds, not after every step of the online phase."""
        self.pace_online = Pace()
        """Of the steps of this process that learn."""
        self.action: np.ndarray | None = None
        """The next environment step's actions, [runs, a]; None before the first."""

    def fresh_learner(self, observation_size: int, action_size: int) -> Learner:
        """The agents of all runs before they have learnt anything, with room for what they will experience."""
        runs, request = len(self.seeds), self.request
        configs = jax.tree.map(lambda x: np.full(runs, x, np.float32), request.config)
        for name in request.grid:
            values = [point[name] for point in request.points() for _ in range(request.run.num_seeds)]
            configs = configs.replace(**{name: np.array(values, np.float32)})
        one = blank(observation_size, action_size, request.config.expert is not None)
        example = jax.tree.map(lambda x: np.zeros((runs, *x.shape), x.dtype), one)
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
        agent = self.programs.host(self.learner.agent)
        arrays = pack(self.learner, agent, filled, self.programs.host)
        played, episodes = self.collector.state() if self.collector else ({}, {})
        actions = {} if self.action is None else {"action": self.action}
        state = self.progress.state() | episodes | {"means": self.means.state()}
        self.checkpoints.save(self.progress.total_step, arrays | played | actions | self.judge.arrays(), state)
        self.kept_at = self.progress.total_step
        self.policies.write(agent)
        self.saving.done(start)

    def restore(self) -> None:
        """Go on from the newest whole checkpoint, if there is one; drop the rows written after it."""
        found = self.checkpoints.restore(self.reporter.announce) if self.checkpoints else None
        if found is not None:
            self.kept_at, arrays, state = found
            anew = self.collector.restore(arrays, state, self.reporter.announce) if self.collector else []
            self.progress.restore(state)
            self.means.restore(state.get("means", {}))
            for phase in list(self.progress.phases)[1 : 1 + self.progress.order(self.progress.phase)]:
                self.enter(phase)
            learner = unpack(self.programs.host(self.learner), arrays)
            self.judge.restore(arrays, learner.agent)
            self.learner = self.programs.place(learner)
            if "action" in arrays:
                self.action = np.array(arrays["action"])
            if anew and self.action is not None:
                # What was chosen was for a state that is lost.
                self.action[anew] = self.next_action()[anew]
        self.reporter.resumed()

    # ------------------------------------------------------------------ the loops

    def train(self) -> Result:
        """Every phase that is left, and the summary. Raises EnvironmentFailed, once a checkpoint is written."""
        stopped, times = False, None
        listening = self.keys.listening() if self.keys else contextlib.nullcontext()
        with listening, self.reporter.live(), stops.noting(self.reporter.announce) as watch:
            try:
                self.learn(watch)
                times = self.step_times(watch)
            except (Stopped, EnvironmentFailed) as error:
                self.judge.leave()
                if self.checkpoints and self.progress.total_step not in (0, self.kept_at):
                    self.save()
                if isinstance(error, EnvironmentFailed):
                    raise
                stopped = True
        if stopped:
            self.reporter.interrupted(self.checkpoints is not None)
            return Result(self.folder, None, 128 + watch.received)
        if not self.checkpoints:
            self.policies.write(self.programs.host(self.learner.agent))
        told = "" if times is None else times.line(getattr(self.request.config, "utd", 1), self.useful_workers())
        labels = self.guide.write(self.folder, self.programs.host(self.learner.experience.rows)) if self.guide else []
        return Result(self.folder, self.reporter.finish(self.horizon, times, told, labels), 0)

    def useful_workers(self) -> int:
        """How many processes could step the environments side by side; 0 where some do, or none can."""
        run = self.request.run
        alone = run.env_workers or run.single_environment or self.guide
        return 0 if alone else min(len(self.seeds), cores())

    def step_times(self, watch: Watch) -> StepTimes | None:
        """What an online step takes, by those of this process; None without any."""
        if not self.pace_online.steps:
            return None
        call = self.about_to_act()
        self.prepare(watch, self.programs.choose, *call)
        return self.pace_online.times(lambda: np.asarray(self.programs.choose(*call)))

    def learn(self, watch: Watch) -> None:
        """Every phase that is left. Raises Stopped and EnvironmentFailed, where a checkpoint can be written."""
        progress = self.progress
        self.judge.go_on(watch)
        if progress.owes_evaluation:
            self.evaluate(watch)
        for phase in list(progress.phases)[progress.order(progress.phase) :]:
            if phase != progress.phase:
                self.prepare(watch, self.programs.enter, self.learner.agent, self.device_seeds, phase, self.prior)
                self.enter(phase)
                progress.enter(phase)
                self.prepared.clear()  # agents of another phase have programs of their own
            (self.online if phase == "online" else self.offline)(watch)

    def prepare(self, watch: Watch, program: Program, *arguments: Any) -> None:
        """Compile a program before its first call, while signals are looked for."""
        call = program, *program.fixed(arguments)
        if call in self.prepared:
            return
        start = time.perf_counter()
        self.reporter.compiling()
        watch.aside(program.lower(*arguments).compile)
        self.prepared.add(call)
        self.progress.compile_seconds += time.perf_counter() - start

    def offline(self, watch: Watch) -> None:
        """A phase of updates on prior data, by calls of about a second."""
        progress, run = self.progress, self.request.run
        total = progress.phases[progress.phase]
        nothing_played = {"episode_return": np.nan, "episode_success": np.nan} if self.collector else {}
        while progress.step < total:
            # From one row of metrics or evaluation to the next one of either, in blocks that are the same wherever a
            # checkpoint lies between them.
            rows = run.log_every, run.eval_every
            first = max(progress.step // every * every for every in rows)
            last = min(total, *((progress.step // every + 1) * every for every in rows))
            grouped = self.learner.agent.are_whole_groups(first, last - first)
            size = block_size(last - first, self.learner.agent.period if grouped else 1)
            while progress.step < last:
                self.heed(watch)
                self.update(watch, min(size, last - progress.step), last, grouped)
                self.reporter.advance(progress.phase)
            self.reporter.log(self.means.take(), [nothing_played] * len(self.seeds))
            self.round_off(first, watch)

    def update(self, watch: Watch, block: int, last: int, grouped: bool) -> None:
        """Updates on prior data, in whole blocks, up to step `last` or for about a second."""
        progress, first = self.progress, self.progress.step
        affordable = 1 if math.isinf(self.pace) else int(CALL_SECONDS / self.pace / block)
        blocks = max(1, min((last - first) // block, affordable, most_blocks(block)))
        call = (self.learner.agent, self.device_seeds, progress.phase, first, block, blocks, grouped, self.prior)
        self.prepare(watch, self.programs.offline, *call)
        start = time.perf_counter()
        agent, metrics = self.programs.offline(*call)
        self.learner = self.learner.replace(agent=agent)
        metrics = {name: x[:, : blocks * block] for name, x in self.programs.host(metrics).items()}  # waits
        seconds = time.perf_counter() - start
        self.pace = seconds / (blocks * block)
        progress.step += blocks * block
        progress.learnt(blocks * block, seconds)
        self.means.add(metrics)
        for run, (step, name) in first_not_finite(metrics).items():
            self.reporter.not_finite(run, name, first + 1 + step)

    def online(self, watch: Watch) -> None:
        """The online phase: one environment step of all runs and one jitted call at a time."""
        progress, run, programs = self.progress, self.request.run, self.programs
        first = progress.step + 1
        learning_from = max(self.request.config.start_training, progress.step) + 1
        if self.studies:
            learning_from = progress.phases["online"] + 1
            if progress.owes_updates:  # where this phase was left
                self.study(watch)
                self.log_studies()
                self.round_off(progress.step - 1, watch)
        shown = 0.0
        while progress.step < progress.phases["online"]:
            step = progress.step + 1
            if self.is_cut:
                self.collector.begin_anew()
                self.is_cut, self.action = False, None
            if self.action is None:
                self.prepare(watch, programs.choose, *self.about_to_act())
                self.action = self.next_action()
            # Before the environments are in another state than the learner.
            if step == learning_from:
                self.prepare(watch, programs.learn, *self.like_a_step(), self.prior)
            elif step == first:
                self.prepare(watch, programs.collect, *self.like_a_step())
            start, compiled = time.perf_counter(), progress.compile_seconds
            transition, episode = self.collector.step(*self.about_to_step(watch))
            played = time.perf_counter()
            progress.step = step
            arguments = (self.learner, self.device_seeds, step, transition, episode, self.collector.observation)
            if step < learning_from:
                self.learner, action = programs.collect(*arguments)
                metrics = {}
            else:
                self.learner, action, metrics = programs.learn(*arguments, self.prior)
            self.action = playable(action, self.reporter.diverged)
            if self.studies:
                self.study(watch)
            now = time.perf_counter()
            start += progress.compile_seconds - compiled  # of what was met for the first time on the way
            if step == learning_from:
                progress.compile_seconds += now - start
            elif step > learning_from or self.studies:
                progress.learnt(1, now - start)
                self.pace_online.note(played - start, now - played)
            if now - shown > SHOWN_EVERY:
                shown = now
                self.reporter.advance(self.doing(bool(metrics)))
            if metrics and step % run.log_every == 0:
                metrics = programs.host(metrics)
                for which, (_, name) in first_not_finite({n: x[:, None] for n, x in metrics.items()}).items():
                    self.reporter.not_finite(which, name, step)
                self.reporter.log(known(metrics), self.collector.report())
            elif self.studies:
                self.log_studies()
            self.round_off(step - 1, watch)

    def about_to_step(self, watch: Watch) -> tuple[np.ndarray, ...]:
        """What `Collector.step` takes: the next actions, and what experts say of them, if there are any."""
        if self.guide is None:
            return (self.action,)
        self.guide.attend()
        question = self.guide.question(self.learner.agent, self.device_seeds, self.progress.step, self.action)
        self.prepare(watch, self.programs.defer, *question)
        return self.guide(question)

    def doing(self, learns: bool) -> str:
        """What the bar says of the online phase, at steps that are learnt from or not."""
        if self.keys is not None:
            return self.guide.who()
        return "online" if learns or self.studies else "collecting"

    def owed(self) -> np.ndarray:
        """Updates that are due before the next environment step, [runs]."""
        return self.programs.host(self.learner.agent.owes())

    def study(self, watch: Watch) -> None:
        """All updates that are due before the next environment step, by calls of about a second, and then the actions
        of the runs that have learnt. Raises Stopped between two calls, from where it goes on."""
        while (owed := self.owed()).any():
            self.progress.owes_updates = True
            self.heed(watch)
            most = 1 if math.isinf(self.pace) else min(max(1, int(CALL_SECONDS / self.pace)), MOST_STEPS)
            call = self.learner, self.device_seeds, most, self.prior
            self.prepare(watch, self.programs.study, *call)
            start = time.perf_counter()
            self.learner, metrics = self.programs.study(*call)
            metrics = self.programs.host(metrics)  # waits
            self.pace = (time.perf_counter() - start) / (owed - self.owed()).sum()
            self.means.add(metrics)
            for run, (_, name) in first_not_finite(metrics).items():
                self.reporter.not_finite(run, name, self.progress.step)
            self.prepare(watch, self.programs.choose, *self.about_to_act())
            self.action = np.where((owed > 0)[:, None], self.next_action(), self.action)
        self.progress.owes_updates = False

    def log_studies(self) -> None:
        """A row of metrics, if it is due: the means over all updates since the last."""
        if self.progress.step % self.request.run.log_every == 0:
            self.reporter.log(self.means.take(), self.collector.report())

    def like_a_step(self) -> tuple:
        """What `collect` and `learn` take of an environment step, in its shapes."""
        runs, seen = len(self.seeds), self.collector.observation
        one = blank(seen.shape[1], self.action.shape[1], self.guide is not None)
        transition = jax.tree.map(lambda x: np.zeros((runs, *x.shape), x.dtype), one)
        episode = Episode(np.zeros(runs, bool), np.zeros(runs, np.float32), np.zeros(runs, np.int32))
        return self.learner, self.device_seeds, 1, transition, episode, seen

    def round_off(self, first: int, watch: Watch) -> None:
        """Evaluate and save, if that is due after the steps that follow `first`; then look for signals."""
        progress = self.progress
        last = progress.phase_is_over
        if last or progress.step % self.request.run.eval_every == 0:
            progress.owes_evaluation = True
            self.evaluate(watch)
        is_new = self.checkpoints and progress.total_step != self.kept_at
        if is_new and (last or self.saving.due(first, progress.step)):
            self.save()
        if progress.total_step < progress.total:
            self.heed(watch)

    def evaluate(self, watch: Watch) -> None:
        """Evaluate every run, or begin to, once no other evaluation goes on."""
        self.judge.wait(watch)
        if self.request.run.eval_async and not self.progress.phase_is_over:
            self.judge.begin(watch, self.learner.agent)
        else:
            self.judge.evaluate(watch, self.learner.agent)
            self.is_cut = self.request.run.single_environment

    def heed(self, watch: Watch) -> None:
        """Look for signals, and for what goes on beside learning."""
        watch.look()
        self.judge.poll()

    def next_action(self) -> np.ndarray:
        """What every run does next, [runs, a], where no transition has led to it in this process."""
        return playable(self.programs.choose(*self.about_to_act()), self.reporter.diverged)

    def about_to_act(self) -> tuple:
        """What `choose` takes."""
        return self.learner.agent, self.device_seeds, self.progress.step, self.collector.observation

    def close(self) -> None:
        """Release environments, files and threads."""
        self.judge.close()
        if self.collector:
            self.collector.close()
        if self.checkpoints:
            self.checkpoints.close()
