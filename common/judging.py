"""Evaluations of the runs of a command while they learn: learning waits for them, or goes on beside them.

An evaluation beside learning (--eval-async) is played by a thread of its own, with a copy of the agents as they were at
its step, on the host's CPU. There is no more than one at a time. The thread plays, and does nothing else: tables, lines
and checkpoints are the main thread's, which asks between two calls whether it is over. A checkpoint meanwhile holds the
copy, so that a run that goes on from there plays the same evaluation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from common.checkpoints import flatten, unflatten
from common.commandline import Run
from common.environments import Environment
from common.evaluation import Evaluator, Outcome, useful_workers
from common.players import Told, playable
from common.policyfiles import PolicyFiles
from common.programs import Programs
from common.progress import Progress
from common.reporting import SHOWN_EVERY, Reporter
from common.stops import Aside, Stopped, Watch

PATIENCE = 10.0
"""Seconds that a thread has to come out of one step of its environments."""
PREFIX = "evaluated."
"""Of the arrays of a checkpoint that are the agents of an evaluation that is not over."""


class Game:
    """One evaluation: its policy, and what is seen of it as it is played, whichever thread plays it."""

    def __init__(self, programs: Programs, agents: Any, slots: int):
        """Of agents on the devices of these programs, with so many episodes of each run at once."""
        self.programs, self.agents, self.slots = programs, agents, slots
        self.over = 0
        """Episodes that are known to be over."""
        self.diverged: set[int] = set()
        """Runs whose actions were not finite."""
        self.first: tuple[np.ndarray, np.ndarray] | None = None
        """The first observations [runs, slots, o], and the actions [runs, slots, a] for them."""
        self._memory = programs.room(agents, slots)
        self._told = Told.nothing(0)

    def program(self, observation_size: int) -> tuple:
        """The program that acts, and arguments of the shapes of its own."""
        shape = self.programs.runs, self.slots
        seen = np.zeros((*shape, observation_size), np.float32)
        if self._memory is None:
            return self.programs.act, self.agents, seen
        told = Told(*(x.reshape(shape) for x in Told.nothing(shape[0] * shape[1])))
        return self.programs.proceed, self._memory, self.agents, seen, *told

    def act(self, observations: np.ndarray) -> np.ndarray:
        """The actions [runs, slots, a] for observations [runs, slots, o]."""
        if self._memory is None:
            actions = self.programs.act(self.agents, observations)
        else:
            actions, self._memory = self.programs.proceed(self._memory, self.agents, observations, *self._told)
        if self.first is None:
            self.first = observations.copy(), actions
        return playable(actions, self.diverged.add)

    def telling(self, told: Told) -> None:
        """Take note of what environments tell beside the next observations, [runs, slots]."""
        self._told = told

    def heard(self, over: int) -> None:
        """Take note of how many episodes are over."""
        self.over = over


class Beside(NamedTuple):
    """An evaluation that is played while learning goes on."""

    game: Game
    thread: Aside[list[Outcome]]
    left: threading.Event
    """Set where it is not wanted any more."""


class Judge:
    """Evaluates the agents of all runs, and reports what came of it."""

    def __init__(
        self,
        make: Callable[[], Environment],
        form: Environment,
        run: Run,
        seeds: list[int],
        programs: Programs,
        progress: Progress,
        reporter: Reporter,
        policies: PolicyFiles,
        prepare: Callable[..., None],
    ):
        """In environments that `make` makes, like `form`; `prepare` compiles a program before its first call."""
        self.seeds, self.programs, self.progress = seeds, programs, progress
        self.reporter, self.policies, self.prepare = reporter, policies, prepare
        self.observation_size, self.episodes = form.observation_size, len(seeds) * run.eval_episodes
        shape, most, workers = (len(seeds), run.eval_episodes), None, run.eval_workers
        if run.single_environment:
            most, workers = 1, 0
        elif workers is None:
            workers = useful_workers(self.episodes * form.horizon)
        self.evaluator = Evaluator(make, *shape, workers, reporter.announce, most)
        self.agents: Any = None
        """Those of the evaluation that is not over, a copy on the devices of `programs.on_host`; None without one."""
        self.beside: Beside | None = None
        self.waited = 0.0
        """Seconds that learning has waited for it."""

    def evaluate(self, watch: Watch, agents: Any) -> None:
        """Evaluate agents while learning waits. Left in the middle, it is still owed, and begins anew another time."""
        start = time.perf_counter()
        game = self._game(watch, self.programs, agents)
        shown = [0.0]

        def look() -> None:
            watch.look()
            self._show(game, shown)

        outcomes = self._play(game, self.progress.step, look)
        self.progress.owes_evaluation = False
        self._report(game, self.progress.step, outcomes)
        self.progress.evaluated(time.perf_counter() - start)

    def begin(self, watch: Watch, agents: Any) -> None:
        """Evaluate agents while learning goes on."""
        start = time.perf_counter()
        self.agents = self.programs.on_host.place(jax.tree.map(np.array, self.programs.host(agents)))
        self.progress.owes_evaluation, self.progress.evaluates_step = False, self.progress.step
        self.waited = time.perf_counter() - start
        self.go_on(watch)

    def go_on(self, watch: Watch) -> None:
        """Play the evaluation that is not over from its beginning, if there is one, while learning goes on."""
        if self.agents is None:
            return
        start = time.perf_counter()
        self.reporter.postpone()
        game, left = self._game(watch, self.programs.on_host, self.agents), threading.Event()

        def look() -> None:
            if left.is_set():
                raise Stopped

        step = self.progress.evaluates_step
        self.beside = Beside(game, Aside(lambda: self._play(game, step, look)), left)
        self.waited += time.perf_counter() - start

    def poll(self) -> None:
        """Report the evaluation beside learning, if it is over. Raises what ended it, such as EnvironmentFailed."""
        if self.beside is not None and self.beside.thread.is_over():
            self._end(lambda: None)

    def wait(self, watch: Watch) -> None:
        """Report the evaluation beside learning, if there is one, when it is over. Raises Stopped, and as `poll`."""
        if self.beside is None:
            return
        game, shown = self.beside.game, [0.0]

        def look() -> None:
            watch.look()
            self._show(game, shown)

        self._end(look)

    def leave(self) -> None:
        """The evaluation beside learning is not wanted any more: its thread ends after the step that it is in."""
        if self.beside is not None:
            self.beside.left.set()

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps of an evaluation that is not over, if that is not what its agents are."""
        if self.agents is None or self.progress.evaluates_step == self.progress.step:
            return {}
        return {PREFIX + name: leaf for name, leaf in flatten(self.programs.on_host.host(self.agents)).items()}

    def restore(self, arrays: Mapping[str, np.ndarray], agents: Any) -> None:
        """Owe the evaluation of a checkpoint with these arrays and `agents` on the host. Raises Refused."""
        if self.progress.evaluates_step is None:
            return
        kept = {name.removeprefix(PREFIX): leaf for name, leaf in arrays.items() if name.startswith(PREFIX)}
        copied = unflatten(agents, kept) if kept else jax.tree.map(np.array, agents)
        self.agents = self.programs.on_host.place(copied)

    def close(self) -> None:
        """Release the environments."""
        self.leave()
        # Those that a thread does not come out of are left to the end of the process.
        if self.beside is None or self.beside.thread.is_over(PATIENCE):
            self.evaluator.close()

    def _game(self, watch: Watch, programs: Programs, agents: Any) -> Game:
        """A new one, whose program is compiled."""
        game = Game(programs, agents, self.evaluator.slots)
        self.prepare(watch, *game.program(self.observation_size))
        return game

    def _play(self, game: Game, step: int, look: Callable[[], None]) -> list[Outcome]:
        """The evaluation of a step of the present phase."""
        return self.evaluator(game.act, self.seeds, self.progress.total_at(step), game.heard, look, game.telling)

    def _end(self, look: Callable[[], None]) -> None:
        """Report the evaluation beside learning, when it is over."""
        start, step = time.perf_counter(), self.progress.evaluates_step
        outcomes = self.beside.thread.result(look)
        game, self.beside, self.agents, self.progress.evaluates_step = self.beside.game, None, None, None
        self._report(game, step, outcomes)
        self.progress.evaluated(self.waited + time.perf_counter() - start)

    def _report(self, game: Game, step: int, outcomes: list[Outcome]) -> None:
        if not self.policies.is_checked:
            self.policies.check(game.programs.host(game.agents), *game.first)
        for run in sorted(game.diverged):
            self.reporter.diverged(run, step)
        self.reporter.evaluated(outcomes, step)

    def _show(self, game: Game, shown: list[float]) -> None:
        """Say how far it is; `shown` holds when that was said last."""
        if time.perf_counter() - shown[0] > SHOWN_EVERY:
            shown[0] = time.perf_counter()
            self.reporter.evaluating(game.over, self.episodes)
