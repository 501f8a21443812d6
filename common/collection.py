"""Collecting experience: the environments of all runs, and the episode each of them is in."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from common.environments import Environment
from common.errors import EnvironmentFailed
from common.evaluation import success_rate
from common.makers import name_of
from common.processes import Inside, Lost, Process
from common.replay import Advised, Batch, Episode
from common.stages import Stage
from common.tasks import Task


class Collector:
    """The environments of all runs and the episode each is in: what a checkpoint keeps besides the learner.

    An episode is a function of its seed and its actions, so these are its state; any deterministic environment can be
    restored from them.
    """

    def __init__(
        self,
        make: Callable[[], Environment],
        task: Task,
        seeds: list[int],
        repeats: bool = True,
        workers: int = 0,
        announce: Callable[[str], None] = print,
    ):
        """`repeats`: whether the actions of an episode are played again where it is restored; else the next begins.

        The environments are stepped by `workers` processes side by side, for which `make` must be picklable; 0: by this
        one. `announce` is told, in a line, if they cannot be made there, and are made here.
        """
        self.repeats = repeats
        self.task = task
        self.seeds = seeds
        self.environments: list[Environment] = []
        """Those of all runs; of the first alone, for who asks for its form, where other processes step them."""
        self._groups: list[tuple[Inside | Process, range]] = []
        """Who steps the environments of which runs."""
        self._form: Environment | None = None
        """The one that is only asked for its form."""
        self.episode = np.zeros(len(seeds), np.int64)
        self.actions: list[list[np.ndarray]] = [[] for _ in seeds]
        self.returns = np.zeros(len(seeds))
        self.solved: list[bool | None] = [False] * len(seeds)
        """Whether the present episode has succeeded; None where the environment does not tell."""
        self.finished: list[list[tuple[float, bool | None]]] = [[] for _ in seeds]
        """Return and success of the episodes that ended since the last row of metrics."""
        try:
            self.observation = self._start(make, workers)
        except Lost as loss:
            announce(f"{loss}; environments are stepped in this one")
            self.close()
            self.observation = self._start(make, 0)

    def _start(self, make: Callable[[], Environment], workers: int) -> np.ndarray:
        """Make the environments, and open every run's first episode: the observations. Raises Lost."""
        runs, count = len(self.seeds), max(1, workers)
        borders = [runs * number // count for number in range(count + 1)]
        self._groups = []
        for place in itertools.starmap(range, itertools.pairwise(borders)):
            stage = functools.partial(Stage, make, [self.seeds[run] for run in place])
            self._groups.append((Process(stage, name_of(make)) if workers else Inside(stage), place))
        self._form = make() if workers else None
        self.environments = [self._form] if workers else self._groups[0][0].made.environments
        return np.stack([self._of(run, "open", 0) for run in range(runs)])

    def _of(self, run: int, method: str, *arguments: Any) -> Any:
        """What a method of a run's stage returns. Raises Lost."""
        group, place = next(found for found in self._groups if run in found[1])
        group.ask(method, place.index(run), *arguments)
        return group.answer()

    def open(self, run: int, episode: int) -> np.ndarray:
        """The first observation of an episode of the run."""
        with ending():
            return self._of(run, "open", episode)

    def begin(self, run: int, episode: int, first: np.ndarray) -> None:
        """Go on with an episode that was opened, and with its first observation."""
        self.episode[run], self.observation[run] = episode, first
        self.actions[run], self.returns[run], self.solved[run] = [], 0.0, False

    def begin_anew(self) -> None:
        """Leave every run's episode, which others have played in its environment, for its next one."""
        for run, episode in enumerate((self.episode + 1).tolist()):
            self.begin(run, episode, self.open(run, episode))

    def step(
        self, actions: np.ndarray, advice: np.ndarray | None = None, labelled: np.ndarray | None = None
    ) -> tuple[Batch, Episode]:
        """Act in every environment: the transitions [runs, ...], rewards as the learner sees them, and their episodes.

        Where an expert is asked, with its `advice` [runs, a] and which of it is `labelled` [runs] (Advised).

        `observation` is afterwards what the next action is for: the start of a new episode where one has ended. Where
        EnvironmentFailed is raised, all is as before, as a checkpoint needs it.
        """
        before, episodes = self.observation, self.episode.tolist()
        with ending():
            for group, place in self._groups:
                group.ask("step", actions[place.start : place.stop], episodes[place.start : place.stop])
            taken, starts = zip(*(one for group, _ in self._groups for one in group.answer()), strict=True)
        after = np.stack([s.next_observation for s in taken])
        over = np.array([s.terminated or s.truncated for s in taken])
        self.observation = after.copy()
        for run, result in enumerate(taken):
            self.actions[run].append(actions[run])
            self.returns[run] += result.reward
            self.solved[run] = self.solved[run] or result.success
        episode = Episode(
            over=over,
            score=np.asarray(self.task.score(self.returns, np.array(self.solved, float)), np.float32),
            length=np.array([len(actions) for actions in self.actions], np.int32),
        )
        for run in np.flatnonzero(over).tolist():
            self.finished[run].append((float(self.returns[run]), self.solved[run]))
            self.begin(run, episodes[run] + 1, starts[run])
        reward = np.array([s.reward for s in taken], np.float32)
        transition = Batch(
            observation=before,
            action=np.asarray(actions, np.float32),
            reward=self.task.reward_scale * reward + np.float32(self.task.reward_shift),
            mask=np.array([not s.terminated for s in taken], np.float32),
            next_observation=after,
        )
        if advice is not None:
            transition = Advised(**vars(transition), advice=advice, labelled=labelled)
        return transition, episode

    def report(self) -> list[dict[str, float]]:
        """Per run, the mean return and success of the episodes that ended since the last report (nan: none did)."""
        rows = []
        for finished in self.finished:
            returns, solved = zip(*finished, strict=True) if finished else ((np.nan,), (None,))
            rows.append({"episode_return": float(np.mean(returns)), "episode_success": success_rate(solved)})
            finished.clear()
        return rows

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and progress from which `restore` continues."""
        arrays = {f"episode_actions.{run}": np.array(a, np.float32) for run, a in enumerate(self.actions) if a}
        return arrays | {"observation": self.observation}, {
            "episode": self.episode.tolist(),
            "returns": self.returns.tolist(),
            "solved": list(self.solved),
            "finished": self.finished,
        }

    def restore(self, arrays: Mapping[str, np.ndarray], progress: Mapping[str, Any], announce: Callable) -> list[int]:
        """Repeat the episodes that were under way; the runs whose episodes were not, and have begun anew."""
        anew = []
        self.episode = np.array(progress["episode"], np.int64)
        self.finished = [[(r, s) for r, s in run] for run in progress["finished"]]
        if not self.repeats:
            self.begin_anew()
            return list(range(len(self.seeds)))
        for run in range(len(self.seeds)):
            actions = list(arrays.get(f"episode_actions.{run}", ()))
            number = int(self.episode[run])
            try:
                with ending():
                    repeated = self._of(run, "replay", number, actions)
                why = f"{self.task.name} is not deterministic"
            except EnvironmentFailed as error:
                repeated, why = None, str(error)
            if np.array_equal(repeated, arrays["observation"][run]):
                self.actions[run], self.observation[run] = actions, repeated
                self.returns[run], self.solved[run] = progress["returns"][run], progress["solved"][run]
            else:
                announce(f"run {run}: {why}; its episode starts again")
                self.begin(run, number + 1, self.open(run, number + 1))
                anew.append(run)
        return anew

    def close(self) -> None:
        """Release the simulations, and end the processes."""
        for group, _ in self._groups:
            group.close()
        if self._form is not None:
            self._form.close()


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """A process that steps environments and is lost takes them with it: EnvironmentFailed is raised."""
    try:
        yield
    except Lost as loss:
        raise EnvironmentFailed(str(loss)) from loss
