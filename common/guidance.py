"""Guidance: an expert beside every learner, of whom one acts at each step; and the data set of what was labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.collection import Collector
from common.experts import Expert
from common.keyboard import Keys
from common.programs import Programs
from common.replay import Advised
from common.runs import replacing, writing

FOLDER = "labels"
"""Of a run directory: what was labelled, RUN.npz each."""
SWITCH = " "
"""The key by which somebody takes over, and gives back."""


class Guided(NamedTuple):
    """One step of all runs."""

    action: np.ndarray
    """What is done, [runs, a]."""
    advice: np.ndarray
    """What the experts would do, [runs, a]."""
    labelled: np.ndarray
    """bool [runs]: the advice is something to learn."""


class Guide:
    """Asks the experts of all runs, and lets the agents say who acts."""

    def __init__(self, expert: Expert, collector: Collector, programs: Programs, keys: Keys | None):
        """`keys` are those of somebody who decides for the one run that there is."""
        self.collector, self.programs, self.keys = collector, programs, keys
        self.experts = [expert.make() for _ in collector.environments]
        self.is_called = False
        """Whether somebody wants the expert to act."""

    def question(self, agents: Any, seeds: Any, step: int, action: np.ndarray) -> tuple:
        """What `Programs.defer` takes, of the learners' actions [runs, a] after environment step `step`."""
        places = zip(self.experts, self.collector.environments, self.collector.observation, strict=True)
        advice = np.stack([expert(environment, seen) for expert, environment, seen in places])
        return agents, seeds, step, action, advice, np.full(len(action), self.is_called)

    def __call__(self, question: tuple) -> Guided:
        """Who does what."""
        *_, action, advice, _ = question
        acts, labelled = self.programs.defer(*question)
        return Guided(np.where(acts[:, None], advice, action), advice, labelled)

    def attend(self) -> None:
        """Wait for the time of the next step, and hear of the keys until then. Without anybody, nothing happens."""
        if self.keys is not None:
            self.is_called ^= self.keys.pressed().count(SWITCH) % 2 == 1

    def who(self) -> str:
        """Who has the control, for somebody who decides."""
        return "expert acts" if self.is_called else "learner acts"

    def write(self, folder: Path, rows: Advised) -> list[Path]:
        """Replace the data sets of all runs, by rows on the host, [runs, n, ...]: where they are. Raises Refused.

        Each has the keys of D4RL's files in an archive of NumPy: `actions` are the expert's labels, and `executed` what
        was done instead, which is what rewards and following states came of. Steps without a label are left out, and
        what is before and behind them are different episodes.
        """
        paths, environment, task = [], self.collector.environments[0], self.collector.task
        for run in range(len(rows.reward)):
            kept = rows.labelled[run]
            own = {name: getattr(rows, name)[run][kept] for name in vars(rows)}
            terminals = own["mask"] == 0
            follows = np.zeros(len(terminals), bool)
            follows[:-1] = (own["next_observation"][:-1] == own["observation"][1:]).all(axis=1) & ~terminals[:-1]
            path = folder / FOLDER / f"{run}.npz"
            with writing(path):
                path.parent.mkdir(exist_ok=True)
                with replacing(path) as temporary, temporary.open("wb") as file:
                    np.savez(
                        file,
                        observations=own["observation"],
                        actions=environment.scaled(own["advice"]),
                        executed=environment.scaled(own["action"]),
                        rewards=(own["reward"] - np.float32(task.reward_shift)) / np.float32(task.reward_scale),
                        next_observations=own["next_observation"],
                        terminals=terminals,
                        timeouts=~follows & ~terminals,
                    )
            paths.append(path)
        return paths
