"""Collecting experience: the environments of all runs, and the episode each of them is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.environments import Environment
from common.errors import EnvironmentFailed
from common.evaluation import episode_seed, success_rate
from common.replay import Advised, Batch, Episode
from common.tasks import Task


class Collector:
    """The environments of all runs and the episode each is in: what a checkpoint keeps besides the learner.

    An episode is a function of its seed and its actions, so these are its state; any deterministic environment can be
    restored from them.
    """

    def __init__(self, make: Callable[[], Environment], task: Task, seeds: list[int], repeats: bool = True):
        """`repeats`: whether the actions of an episode are played again where it is restored; else the next begins."""
        self.repeats = repeats
        self.task = task
        self.seeds = seeds
        self.environments = [make() for _ in seeds]
        self.episode = np.zeros(len(seeds), np.int64)
        self.actions: list[list[np.ndarray]] = [[] for _ in seeds]
        self.returns = np.zeros(len(seeds))
        self.solved: list[bool | None] = [False] * len(seeds)
        """Whether the present episode has succeeded; None where the environment does not tell."""
        self.finished: list[list[tuple[float, bool | None]]] = [[] for _ in seeds]
        """Return and success of the episodes that ended since the last row of metrics."""
        self.observation = np.stack([self.open(run, 0) for run in range(len(seeds))])

    def open(self, run: int, episode: int) -> np.ndarray:
        """The first observation of an episode of the run."""
        return self.environments[run].reset(self.episode_seed(run, episode))

    def begin(self, run: int, episode: int, first: np.ndarray) -> None:
        """Go on with an episode that was opened, and with its first observation."""
        self.episode[run], self.observation[run] = episode, first
        self.actions[run], self.returns[run], self.solved[run] = [], 0.0, False

    def begin_anew(self) -> None:
        """Leave every run's episode, which others have played in its environment, for its next one."""
        for run, episode in enumerate((self.episode + 1).tolist()):
            self.begin(run, episode, self.open(run, episode))

    def episode_seed(self, run: int, episode: int) -> int:
        """What an episode of the run starts from."""
        return episode_seed(self.seeds[run], 0, episode)

    def step(
        self, actions: np.ndarray, advice: np.ndarray | None = None, labelled: np.ndarray | None = None
    ) -> tuple[Batch, Episode]:
        """Act in every environment: the transitions [runs, ...], rewards as the learner sees them, and their episodes.

        Where an expert is asked, with its `advice` [runs, a] and which of it is `labelled` [runs] (Advised).

        `observation` is afterwards what the next action is for: the start of a new episode where one has ended. Where
        EnvironmentFailed is raised, all is as before, as a checkpoint needs it.
        """
        before = self.observation
        taken = [environment.step(action) for environment, action in zip(self.environments, actions, strict=True)]
        after = np.stack([s.next_observation for s in taken])
        over = np.array([s.terminated or s.truncated for s in taken])
        starts = {run: self.open(run, int(self.episode[run]) + 1) for run in np.flatnonzero(over).tolist()}
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
        for run, first in starts.items():
            self.finished[run].append((float(self.returns[run]), self.solved[run]))
            self.begin(run, int(self.episode[run]) + 1, first)
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
                repeated = self.environments[run].replay(self.episode_seed(run, number), actions)
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
