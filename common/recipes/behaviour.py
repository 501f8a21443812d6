"""The policies that collect the data of locomotion and of classic control: small networks in NumPy.

For each body, stages of one training run of our own SAC: as it began to learn and onwards to `medium`, evenly spaced,
then `expert`. benchmarks/makers/locomotion_policies.py trains them and says which stages those are. For each task of
classic control one, of our own DQN: benchmarks/makers/classic_policies.py. Their weights lie beside this file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Layer = tuple[np.ndarray, np.ndarray]
"""Kernel [in, out] and bias [out]."""


def path(body: str) -> Path:
    """Where the policies of a body, or of a task of classic control, lie."""
    return Path(__file__).parent / f"behaviour_{body}.npz"


class Policy:
    """A tanh-squashed diagonal Gaussian whose mean and standard deviation share ReLU layers."""

    def __init__(self, hidden: Sequence[Layer], mean: Layer, log_std: Layer):
        self.hidden, self.mean, self.log_std = list(hidden), mean, log_std

    def __call__(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sampled actions float32 [..., a], in (-1, 1), for observations float32 [..., o]."""
        observation = self._features(observation)
        mean = observation @ self.mean[0] + self.mean[1]
        std = np.exp((observation @ self.log_std[0] + self.log_std[1]).clip(-20, 2))
        return np.tanh(mean + std * rng.standard_normal(mean.shape, np.float32))

    def mode(self, observation: np.ndarray) -> np.ndarray:
        """The squashed means float32 [..., a], for observations float32 [..., o]."""
        return np.tanh(self._features(observation) @ self.mean[0] + self.mean[1])

    def _features(self, observation: np.ndarray) -> np.ndarray:
        for kernel, bias in self.hidden:
            observation = np.maximum(observation @ kernel + bias, 0)
        return observation

    @property
    def layers(self) -> list[Layer]:
        """The hidden layers, the mean's and the standard deviation's."""
        return [*self.hidden, self.mean, self.log_std]


class Greedy:
    """The discrete action of the largest value, by a ReLU network of the values of all."""

    def __init__(self, layers: Sequence[Layer]):
        self.layers = list(layers)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Indices of actions [...] for observations float32 [..., o]."""
        for kernel, bias in self.layers[:-1]:
            observation = np.maximum(observation @ kernel + bias, 0)
        return (observation @ self.layers[-1][0] + self.layers[-1][1]).argmax(axis=-1)


def save(body: str, stages: Sequence[Policy | Greedy]) -> None:
    """Write a body's policies, in the order of training, in half precision."""
    arrays = {
        f"{name}{k}": np.stack([policy.layers[k][part] for policy in stages]).astype(np.float16)
        for k in range(len(stages[0].layers))
        for part, name in enumerate(("kernel", "bias"))
    }
    temporary = path(body).with_name(f".{path(body).name}")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path(body))


def stages_of(body: str) -> list[list[Layer]]:
    """The layers of a body's policies, in the order of training."""
    with np.load(path(body), allow_pickle=False) as file:
        layers = [
            (file[f"kernel{k}"].astype(np.float32), file[f"bias{k}"].astype(np.float32))
            for k in range(len(file.files) // 2)
        ]
    return [[(kernel[stage], bias[stage]) for kernel, bias in layers] for stage in range(len(layers[0][0]))]


@functools.cache
def load(body: str) -> list[Policy]:
    """A body's policies, in the order of training: the last is `expert`, the one before it `medium`."""
    return [Policy(hidden, mean, log_std) for *hidden, mean, log_std in stages_of(body)]


@functools.cache
def load_greedy(name: str) -> Greedy:
    """The policy of a task of classic control."""
    (layers,) = stages_of(name)
    return Greedy(layers)
