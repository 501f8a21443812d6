"""Collecting experience: the environments of all runs, and the episode each of them is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from common.environments import Environment
from common.evaluation import episode_seed
from common.replay import Batch, Episode
from common.tasks import Task


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
        self.observation = np.stack([self.start(run, 0) for run in range(len(seeds))])

    def forget(self, run: int) -> None:
        """What was counted of the run's episode that is over."""
        self.actions[run] = []
        self.returns[run] = 0.0
        self.solved[run] = False

    def start(self, run: int, episode: int) -> np.ndarray:
        """The first observation of the run's episode of this number, which its environment is in then."""
        return self.environments[run].reset(episode_seed(self.seeds[run], 0, episode))

    def step(self, actions: np.ndarray) -> tuple[Batch, Episode]:
        """Act in every environment: the transitions [runs, ...], rewards as the learner sees them, and their episodes.

        `observation` is afterwards what the next action is for: the start of a new episode where one has ended. Where
        an environment fails, nothing has changed of what `state` keeps.
        """
        before = self.observation
        taken = [environment.step(action) for environment, action in zip(self.environments, actions, strict=True)]
        after = np.stack([s.next_observation for s in taken])
        over = np.array([s.terminated or s.truncated for s in taken])
        starts = {run: self.start(run, int(self.episode[run]) + 1) for run in np.flatnonzero(over).tolist()}
        self.observation = after.copy()
        for run, result in enumerate(taken):
            self.actions[run].append(actions[run])
            self.returns[run] += result.reward
            self.solved[run] |= result.success
        episode = Episode(
            over=over,
            score=np.asarray(self.task.score(self.returns, self.solved), np.float32),
            length=np.array([len(actions) for actions in self.actions], np.int32),
        )
        for run, start in starts.items():
            self.finished[run].append((float(self.returns[run]), bool(self.solved[run])))
            self.episode[run] += 1
            self.observation[run] = start
            self.forget(run)
        reward = np.array([s.reward for s in taken], np.float32)
        transition = Batch(
            observation=before,
            action=np.asarray(actions, np.float32),
            reward=self.task.reward_scale * reward + np.float32(self.task.reward_shift),
            mask=np.array([not s.terminated for s in taken], np.float32),
            next_observation=after,
        )
        return transition, episode

    def report(self) -> list[dict[str, float]]:
        """Per run, the mean return and success of the episodes that ended since the last report (nan: none did)."""
        rows = []
        for finished in self.finished:
            returns, solved = zip(*finished, strict=True) if finished else ((np.nan,), (np.nan,))
            success = 100 * float(np.mean(solved)) if self.task.knows_success else np.nan
            rows.append({"episode_return": float(np.mean(returns)), "episode_success": success})
            finished.clear()
        return rows

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and progress from which `restore` continues."""
        arrays = {f"episode_actions.{run}": np.array(a, np.float32) for run, a in enumerate(self.actions) if a}
        return arrays | {"observation": self.observation}, {
            "episode": self.episode.tolist(),
            "returns": self.returns.tolist(),
            "solved": self.solved.tolist(),
            "finished": self.finished,
        }

    def restore(self, arrays: Mapping[str, np.ndarray], progress: Mapping[str, Any], announce: Callable) -> list[int]:
        """Repeat the episodes that were under way; the runs whose episodes could not be, and have begun anew."""
        anew = []
        self.episode = np.array(progress["episode"], np.int64)
        self.finished = [[(r, s) for r, s in run] for run in progress["finished"]]
        for run in range(len(self.seeds)):
            actions = list(arrays.get(f"episode_actions.{run}", ()))
            seed = episode_seed(self.seeds[run], 0, int(self.episode[run]))
            self.observation[run] = self.environments[run].replay(seed, actions)
            if np.array_equal(self.observation[run], arrays["observation"][run]):
                self.actions[run] = actions
                self.returns[run], self.solved[run] = progress["returns"][run], progress["solved"][run]
            else:
                announce(f"run {run}: {self.task.name} is not deterministic; its episode starts again")
                self.episode[run] += 1
                self.observation[run] = self.start(run, int(self.episode[run]))
                self.forget(run)
                anew.append(run)
        return anew
