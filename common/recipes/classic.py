"""CartPole's and Acrobot's data: a trained DQN's, with noise, mixed as discrete BCQ's authors mix theirs.

An episode in five is of the DQN's own actions; in all others an action in five is drawn uniformly instead. Fujimoto et
al., 2019 ("Benchmarking Batch Deep Reinforcement Learning Algorithms"), and their code's `--generate_buffer`, where the
evaluated policy has no noise of its own outside Atari. The DQN is our own (behaviour.py), small and in half precision.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator

import numpy as np

from common import environments, tasks
from common.environments import Environment
from common.recipes import behaviour
from common.recipes.episodes import Episode, first, workers

_UNDISTURBED = 0.2
"""Probability of an episode without random actions (`low_noise_p`)."""
_RANDOM = 0.2
"""Probability of a random action in all others (`rand_action_p`)."""

PARAMETERS = {"policy": "our own DQN, with noise", "undisturbed": _UNDISTURBED, "random": _RANDOM}


def generate(environment: Environment, size: int, seed: int) -> Iterator[Episode]:
    """Episodes of a task, `size` transitions in all."""
    with workers(size) as stream:
        yield from first(stream(perform, environment.task.name, seed), size)


@functools.cache
def _environment_of(name: str) -> Environment:
    """One for each process."""
    return environments.make(tasks.find(name))


def perform(name: str, seed: int, number: int) -> Episode:
    """One episode of a task."""
    environment, policy = _environment_of(name), behaviour.load_greedy(name.split("-")[0])
    rng = np.random.default_rng([seed, number, zlib.crc32(name.encode())])
    share = 0.0 if rng.random() < _UNDISTURBED else _RANDOM
    choices = np.eye(environment.action_size, dtype=np.float32)
    observations, chosen, rewards = [environment.reset(int(rng.integers(2**31)))], [], []
    over = False
    while not over:
        is_random, other = rng.random() < share, int(rng.integers(environment.action_size))
        index = other if is_random else int(policy(observations[-1]))
        step = environment.step(choices[index])
        observations.append(step.next_observation)
        chosen.append(environment.numbers[index])
        rewards.append(step.reward)
        over = step.terminated or step.truncated
    return Episode(np.array(observations), np.array(chosen), np.array(rewards), step.terminated)
