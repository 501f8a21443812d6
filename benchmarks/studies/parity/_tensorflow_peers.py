"""What the checks against TensorFlow code share: double precision, Adam as here, draws, parameters.

The peers run eagerly on current TensorFlow and TensorFlow Probability, with tf_keras; their training loops are not run.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

os.environ["TF_USE_LEGACY_KERAS"] = "1"
import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import samplers

from benchmarks.studies.parity import harness

tf.config.run_functions_eagerly(True)
tf.keras.backend.set_floatx("float64")
tf.keras.utils.set_random_seed(0)


def in_double(folder: str, changes: dict[str, str] | None = None) -> None:
    """Makes importable a copy of a peer's folder that says float64 where it says float32, and has these changes."""
    copy = Path(tempfile.mkdtemp()) / Path(folder).name
    shutil.copytree(harness.THEIRS / folder, copy)
    for file in copy.rglob("*.py"):
        text = file.read_text().replace("float32", "float64")
        text = text.replace("tf.Variable(1.0)", "tf.Variable(1.0, dtype=tf.float64)")
        text = text.replace("tf.math.log(1.0)", "tf.math.log(tf.constant(1.0, tf.float64))")
        text = text.replace("tf.math.sqrt(2.0)", "tf.math.sqrt(tf.constant(2.0, tf.float64))")
        for old, new in (changes or {}).items():
            text = text.replace(old, new)
        file.write_text(text)
    sys.path.insert(0, str(copy.parent))


class Adam:
    """Adam with the epsilon of this project, 1e-8 beside the corrected moment; Keras has 1e-7 beside the plain one."""

    def __init__(self, rate: float) -> None:
        self.rate, self.step, self.moments = rate, 0, None

    def apply_gradients(self, pairs: Iterator[tuple[tf.Tensor, tf.Variable]]) -> None:
        """One step."""
        pairs = list(pairs)
        self.step += 1
        if self.moments is None:
            self.moments = [[tf.zeros_like(x), tf.zeros_like(x)] for _, x in pairs]
        for (gradient, variable), moments in zip(pairs, self.moments, strict=True):
            moments[0] = 0.9 * moments[0] + 0.1 * gradient
            moments[1] = 0.999 * moments[1] + 0.001 * gradient**2
            mean, square = moments[0] / (1 - 0.9**self.step), moments[1] / (1 - 0.999**self.step)
            variable.assign_sub(self.rate * mean / (tf.sqrt(square) + 1e-8))


@contextlib.contextmanager
def drawn(draws: harness.Draws) -> Iterator[None]:
    """TensorFlow Probability with these draws, from the start."""
    draws.rewind()

    def normal(shape: tf.Tensor, mean: float = 0.0, stddev: float = 1.0, **_: object) -> tf.Tensor:
        shape = tuple(int(x) for x in shape)
        plain = tuple(x for x in shape if x > 1)
        turned = len(plain) == 2 and plain[0] == harness.ACTION  # a diagonal Gaussian draws [action, batch]
        array = draws.normal(plain[::-1]).T if turned else draws.normal(plain)
        return mean + stddev * tf.constant(array.reshape(shape), tf.float64)

    def categorical(logits: tf.Tensor, samples: int, dtype: tf.DType = tf.int32, **_: object) -> tf.Tensor:
        return tf.constant(component(draws, (*logits.shape[:-1], int(samples)), logits.shape[-1]), dtype)

    with mock.patch.object(samplers, "normal", normal), mock.patch.object(samplers, "categorical", categorical):
        yield


def component(draws: harness.Draws, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Components of a mixture, drawn uniformly: both sides take the same, whatever their weights."""
    return draws.take("component", shape, lambda rng: rng.integers(0, count, int(np.prod(shape))))


def spec(size: int) -> types.SimpleNamespace:
    """Of actions in [-1, 1], or of observations; equal bounds are one number, as TF-Agents gives them."""
    return types.SimpleNamespace(shape=(size,), minimum=-1.0, maximum=1.0)


def jitter(variables: list[tf.Variable], seed: int, size: float = 0.1) -> None:
    """Moves every parameter a little, so that no bias is 0 and no target equals what it follows."""
    rng = np.random.default_rng(seed)
    for variable in variables:
        variable.assign_add(size * rng.standard_normal(variable.shape))


def tree(variables: list[tf.Variable], outputs: int = 1) -> dict:
    """Our parameters from kernels and biases in turn, the last layer split into `outputs`."""
    arrays = [np.array(x) for x in variables]
    layers = [{"kernel": k, "bias": b} for k, b in zip(arrays[::2], arrays[1::2], strict=True)]
    parts = zip(*(np.split(layers[-1][name], outputs, axis=-1) for name in ("kernel", "bias")), strict=True)
    return harness.network(layers[:-1], *({"kernel": k, "bias": b} for k, b in parts))
