"""What processes that help are given to do by tests: without what takes long to import."""

import os
import time
from pathlib import Path

import numpy as np

from common.environments import Step
from common.errors import EnvironmentFailed


class Short:
    """Episodes of three steps."""

    observation_size, action_size, horizon = 1, 1, 3

    def reset(self, seed):
        self.steps = 0
        return np.zeros(1, np.float32)

    def step(self, action):
        self.steps += 1
        return Step(np.zeros(1, np.float32), 1.0, False, self.steps == 3, False)

    def replay(self, seed, actions):
        observation = self.reset(seed)
        for action in actions:
            observation = self.step(action).next_observation
        return observation

    def close(self):
        pass


class Summing(Short):
    """Adds its actions to a number of its seed; episodes of one to three steps, some of which terminate."""

    def reset(self, seed):
        self.steps, self.sum, self.last = 0, float(seed % 7), 1 + seed % 3
        return np.array([self.sum], np.float32)

    def step(self, action):
        self.steps, self.sum = self.steps + 1, self.sum + float(action[0])
        over, cut = self.steps == self.last, self.last == 3
        return Step(np.array([self.sum], np.float32), self.sum, over and not cut, over and cut, over)


class Failing(Short):
    """Fails at its third step."""

    def step(self, action):
        if self.steps == 2:
            raise EnvironmentFailed("Failing: it raised at step 3")
        return super().step(action)


class Stuck(Short):
    """Stays in its first step, and says which process it is in."""

    def step(self, action):
        Path(os.environ["STUCK_FILE"]).write_text(str(os.getpid()))
        time.sleep(600)


def slow_episode(number: int) -> int:
    """The number of the process that makes it; every one but the first takes long."""
    time.sleep(0.1 if number == 0 else 600)
    return os.getpid()
