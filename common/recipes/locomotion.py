"""Hopper's, HalfCheetah's and Walker2d's data, in D4RL's five qualities.

`random`: actions drawn uniformly; `expert`: samples of the policy at the end of training; `medium`: of the policy when
it first had two fifths of the expert's score; `medium-expert`: half of each; `medium-replay`: what was collected on the
way to medium, here by stages of the policy evenly spaced from the beginning to there, in that order (D4RL's is the very
replay buffer). The policies are our own (behaviour.py), and so are their scores:
benchmarks/results/locomotion_recipes.csv. Fu et al., 2020, and D4RL's scripts/generation/mujoco.
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

PARAMETERS = {"policy": "stages of our own SAC, sampled"}

_REPLAY_SIZES = {"hopper": 402_000, "walker2d": 302_000, "halfcheetah": 202_000}
"""Body -> D4RL's number of transitions in medium-replay."""
MEDIUM, EXPERT = -2, -1
"""Stages of `behaviour.load`."""


def usual_size(name: str) -> int:
    """Transitions of D4RL's set of the same name."""
    body, quality = name.split("-", 1)
    return {"medium-replay": _REPLAY_SIZES[body], "medium-expert": 2_000_000}.get(quality, 1_000_000)


def generate(environment: Environment, size: int, seed: int) -> Iterator[Episode]:
    """Episodes of a body, `size` transitions in all, each stage's share cut where it is complete."""
    body, quality = environment.task.name.split("-", 1)
    stages = collectors(body, quality)
    ends = np.linspace(0, size, len(stages) + 1).round().astype(int)
    with workers(size) as stream:
        for stage, share in zip(stages, np.diff(ends).tolist(), strict=True):
            if share:
                yield from first(stream(perform, environment.task.name, stage, seed), share)


def collectors(body: str, quality: str) -> list[int | None]:
    """The stages of the policy that collect a set, in order, equal shares each; None acts at random."""
    return {
        "random": [None],
        "medium": [MEDIUM],
        "expert": [EXPERT],
        "medium-expert": [MEDIUM, EXPERT],
        "medium-replay": list(range(len(behaviour.load(body)) - 1)),
    }[quality]


@functools.cache
def _environment_of(body: str) -> Environment:
    """One for each process."""
    return environments.make(tasks.find(f"{body}-medium"))


def perform(name: str, stage: int | None, seed: int, number: int) -> Episode:
    """One episode of a body under one stage of its policy: the same in every set of which it is part."""
    body = name.split("-")[0]
    environment, stages = _environment_of(body), behaviour.load(body)
    which = len(stages) if stage is None else range(len(stages))[stage]
    rng = np.random.default_rng([seed, number, which, zlib.crc32(body.encode())])
    observations, actions, rewards = [environment.reset(int(rng.integers(2**31)))], [], []
    over = False
    while not over:
        if stage is None:
            action = rng.uniform(-1, 1, environment.action_size).astype(np.float32)
        else:
            action = stages[stage](observations[-1], rng)
        step = environment.step(action)
        observations.append(step.next_observation)
        actions.append(action)
        rewards.append(step.reward)
        over = step.terminated or step.truncated
    return Episode(np.array(observations), np.array(actions), np.array(rewards), step.terminated)
