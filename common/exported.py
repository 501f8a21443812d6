"""A trained policy with NumPy alone: copy this file, and a run's policies/0.npz, to where it shall act.

    from exported import Exported

    policy = Exported("0.npz")
    action = policy(observation)

Observations and actions are the environment's own: an observation is a vector, or the dictionary that the environment
returns; an action is within its bounds, or the number of a discrete one. Several at once are arrays [n, ...]. Without a
seed the action is the one that evaluations take, a function of the observation. With a seed, 0 to 2^32 - 1, it is drawn
from the policy: the same for the same seed and observation. Policies that know one action only return that.

A policy that `remembers` acts by all that it has seen of an episode, which it must be told of:

    policy.reset()                                  # where an episode begins
    action = policy(observation, reward=reward)     # the reward of its last action; at first 0

Whatever is wrong with a file or an observation is an Unusable, in one line. `policy.about` says what the file is of:
its environment's observations and actions, and the run, its seed, step and score.

Set OPENBLAS_NUM_THREADS=1 where it acts: products are so small that NumPy's threads would wait for one another.

Nothing here is imported from the project. Random numbers are those of JAX: Threefry (Salmon et al., 2011), and Giles'
inverse of the error function (2010). NumPy may also be jax.numpy, which is how policies.py uses this file.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
DAMAGES = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError, NotImplementedError,
           RuntimeError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip
"""What a damaged file surfaces as from zipfile, NumPy and JSON."""


class Unusable(ValueError):
    """A file or an observation that nothing can be done with, in one line."""


class Exported:
    """The policy in a file: called with an observation, it returns an action."""

    def __init__(self, path: Any, content: tuple[dict[str, Any], dict[str, np.ndarray]] | None = None):
        """Of a file, or of what `read` would return, where `path` names it. Raises Unusable."""
        self.path, self.memory = str(path), None
        self.about, self.arrays = content or read(path)
        """What the file says, JSON's types, and its weights."""
        if not all(np.isfinite(array).all() for array in self.arrays.values()):
            raise Unusable(f"{path}: has weights that are not finite: the run has diverged")
        try:
            self.architecture = self.about["architecture"]
            seen, acted = self.about["observation"], self.about["action"]
            self.observation_size, self.action_size = int(seen["size"]), int(acted["size"])
            self._keys, self._sizes, self._origin = seen["keys"], seen["sizes"], seen["origin"]
            self.first = acted["first"]
            """The number of the first discrete action; None where actions are vectors, which have bounds, [a]."""
            if self.first is None:
                self.low, self.high = (np.array(acted[name], acted["dtype"]) for name in ("low", "high"))
                # As environments.py has it: bounds that coincide hold the dimension.
                half_range = np.where(self.low == self.high, 1, self.high / 2 - self.low / 2)
                self.centre, self.half_range = self.high / 2 + self.low / 2, half_range
                self.is_rescaled = bool(np.any(self.low != -1) or np.any(self.high != 1))
            tried = act(self.architecture, self.arrays, np.zeros((1, self.observation_size), np.float32))
            if tried.shape != (1, self.action_size):
                raise ValueError("its layers do not fit its actions")
        except DAMAGES as error:
            raise Unusable(f"{self.path}: not a whole policy file ({_one_line(error)})") from error

    def __call__(self, observation: Any, seed: int | None = None, reward: Any = 0.0) -> Any:
        """The action [a] for an observation [o], or actions [n, a] for [n, o], as float32 or as its bounds are.

        A dictionary holds such arrays. Discrete: its number, or numbers [n]. Of a policy that remembers, the rows are
        episodes side by side; `reward`, one or [n], is what their last actions have brought. Raises Unusable.
        """
        rows, is_one = self.rows(observation)
        action = self.own_units(self.act(rows, seed, reward))
        return action[0] if is_one else action

    @property
    def remembers(self) -> bool:
        """Whether an action depends on the episode so far."""
        return self.architecture["kind"] in REMEMBERING

    def reset(self) -> None:
        """Forget the episodes so far: new ones begin."""
        self.memory = None

    def rows(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Observations as float32 [n, o], and whether it was one, without n. Raises Unusable."""
        try:
            flat = np.asarray(observation, np.float32) if self._keys is None else self._flat(observation)
        except (TypeError, ValueError) as error:
            raise Unusable(f"{self.path}: an observation must be {self._form()} ({_one_line(error)})") from error
        if flat.ndim not in (1, 2) or flat.shape[-1] != self.observation_size:
            raise Unusable(f"{self.path}: an observation must be {self._form()}, not of shape {flat.shape}")
        if not np.isfinite(flat).all():
            where = np.argwhere(~np.isfinite(flat))[0].tolist()
            raise Unusable(f"{self.path}: the observation is {flat[tuple(where)]} at {where}, not a finite number")
        return np.atleast_2d(flat), flat.ndim == 1

    def act(self, rows: np.ndarray, seed: int | None = None, reward: Any = 0.0) -> np.ndarray:
        """Actions as environments.py has them: [n, a] in [-1, 1], or one-hot, for observations float32 [n, o].

        Raises Unusable.
        """
        if seed is not None and not 0 <= seed < 2**32:
            raise Unusable(f"seed must lie in 0 ... 2^32 - 1, not {seed}")
        if self.remembers:
            memory = recall(self.architecture, *rows.shape, self.action_size) if self.memory is None else self.memory
            if len(memory[0]) != len(rows):
                raise Unusable(f"{self.path}: {len(memory[0])} episodes have begun, not {len(rows)}; call reset first")
            rewards = np.zeros(len(rows), np.float32) + np.asarray(reward, np.float32)
            if not np.isfinite(rewards).all():
                raise Unusable(f"{self.path}: the reward is {reward}, not a finite number")
            action, self.memory = self._proceed(memory, rows, rewards)
        else:
            action = self._act(rows, seed)
        if not np.isfinite(action).all():
            raise Unusable(f"{self.path}: the action is not finite: the run has diverged")
        return action

    def own_units(self, action: np.ndarray) -> np.ndarray:
        """Actions [n, a] of `act` in the environment's own units; of discrete ones their numbers, int [n]."""
        if self.first is not None:
            return self.first + action.argmax(axis=-1)
        if not self.is_rescaled:
            return action
        return (self.centre + self.half_range * action).clip(self.low, self.high)

    def _act(self, rows: np.ndarray, seed: int | None) -> np.ndarray:
        return act(self.architecture, self.arrays, rows, seed)

    def _proceed(self, memory: tuple, rows: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, tuple]:
        return proceed(self.architecture, self.arrays, memory, rows, rewards)

    def _flat(self, observation: Any) -> np.ndarray:
        """A dictionary as one array; flat ones are also taken."""
        if not hasattr(observation, "keys"):
            return np.asarray(observation, np.float32)
        missing = [key for key in self._keys if key not in observation]
        if missing:
            raise ValueError(f"{missing[0]!r} is missing")
        parts = [np.asarray(observation[key]) for key in self._keys]
        for key, part, size in zip(self._keys, parts, self._sizes):  # noqa: B905 - older Pythons know no `strict`
            if part.shape[-1:] != (size,):
                raise ValueError(f"{key!r} has shape {part.shape}")
        if self._origin is not None:
            parts[self._keys.index("achieved_goal")] = parts[self._keys.index("achieved_goal")] - self._origin
        return np.concatenate(parts, axis=-1).astype(np.float32)

    def _form(self) -> str:
        """What an observation must be, in words."""
        vector = f"a vector [{self.observation_size}], or several [n, {self.observation_size}]"
        if self._keys is None:
            return vector
        parts = [f"{key} [{size}]" for key, size in zip(self._keys, self._sizes)]  # noqa: B905 - as above
        return f"a dictionary of {', '.join(parts)}, or flat in this order {vector}"


def read(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file says of its policy, and its arrays. Raises Unusable."""
    try:
        content = Path(path).read_bytes()
        broken = zipfile.ZipFile(io.BytesIO(content)).testzip()
        if broken:
            raise ValueError(f"{broken} is damaged")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop("about").tobytes())
        found = about["format"]
    except DAMAGES as error:
        raise Unusable(f"{path}: not a policy file, or damaged ({_one_line(error)})") from error
    if found != FORMAT:
        raise Unusable(f"{path}: a policy of format {found}, this exported.py reads {FORMAT}; take the one beside it")
    return about, arrays


def act(architecture: dict[str, Any], arrays: Any, observation: Any, seed: Any = None, xp: Any = np) -> Any:
    """Actions [n, a] in [-1, 1], or one-hot, for observations float32 [n, o]: NaN where a choice was of no numbers."""
    kind = architecture["kind"]
    networks = Networks(architecture, arrays, xp)
    draws = Draws(observation, seed, xp) if seed is not None or kind in DRAWN else None
    return KINDS[kind](networks, networks("normal", observation), draws)


def recall(architecture: dict[str, Any], count: int, observation: int, action: int, xp: Any = np) -> tuple:
    """What is remembered of `count` episodes that begin: their last steps' observations, actions and returns to go,
    and how many steps there were."""
    numbers = architecture["numbers"]
    steps = count, numbers["context"]
    to_go = xp.full(steps, numbers["asked"], np.float32)
    seen, done = xp.zeros((*steps, observation), np.float32), xp.zeros((*steps, action), np.float32)
    return seen, done, to_go, xp.zeros(count, np.int32)


def proceed(
    architecture: dict[str, Any], arrays: Any, memory: tuple, observation: Any, rewards: Any, xp: Any = np
) -> tuple[Any, tuple]:
    """Actions [n, a] of a policy that remembers, and what it remembers then, after observations float32 [n, o] and the
    rewards [n] that came with them."""
    networks = Networks(architecture, arrays, xp)
    return attend(networks, memory, networks("normal", observation), rewards)


class Networks:
    """The layers of an architecture with their arrays: called with a network's name and its input."""

    def __init__(self, architecture: dict[str, Any], arrays: Any, xp: Any):
        self.layers, self.numbers = architecture["networks"], architecture["numbers"]
        self.arrays, self.xp = arrays, xp

    def __call__(self, name: str, x: Any) -> Any:
        """The output [..., out] for an input [..., in]."""
        xp = self.xp
        for number, (layer, *values) in enumerate(self.layers[name]):
            own = [self.arrays[f"{name}.{number}.{k}"] if value is None else value for k, value in enumerate(values)]
            if layer == "dense":
                x = x @ own[0] + own[1]
            elif layer == "relu":
                x = xp.maximum(x, 0)
            elif layer == "layer norm":
                mean = x.mean(-1, keepdims=True)
                variance = xp.maximum(0, (x * x).mean(-1, keepdims=True) - mean * mean)
                small = np.float32(own[2] if len(own) > 2 else 1e-6)
                x = (x - mean) / xp.sqrt(variance + small) * own[0] + own[1]
            elif layer == "tanh":
                x = xp.tanh(x)
            elif layer == "clip":
                x = xp.clip(x, own[0], own[1])
            elif layer == "scale":
                x = x * own[0] + own[1]
            elif layer == "normalise":
                x = (x - own[0]) / own[1]
            elif layer == "constant":
                x = own[0]
            else:
                raise ValueError(f"unknown layer {layer!r}")
        return x


class Draws:
    """Random numbers of one stream for each observation, as JAX draws them; the key is a function of both."""

    def __init__(self, observation: Any, seed: Any, xp: Any):
        """Of observations float32 [n, o]."""
        self.xp = xp
        bits = observation.view(np.uint32).sum(axis=-1, dtype=np.uint32)
        nothing = xp.zeros_like(bits)
        self.key = threefry(nothing, nothing, nothing, bits)
        if seed is not None:
            self.key = threefry(*self.key, nothing, nothing + xp.asarray(seed, np.uint32))

    def normal(self, *shape: int) -> Any:
        """Standard normal numbers [n, *shape]."""
        low = np.nextafter(np.float32(-1), np.float32(0))
        uniform = self.xp.maximum(low, self._uniform(self.key, shape) * (np.float32(1) - low) + low)
        return np.float32(math.sqrt(2)) * inverse_erf(uniform, self.xp)

    def gumbel(self, *shape: int) -> Any:
        """Standard Gumbel numbers [n, *shape], independent of the normal ones."""
        nothing = self.xp.zeros_like(self.key[0])
        other = threefry(*self.key, nothing, nothing + np.uint32(1))
        uniform = self.xp.maximum(self._uniform(other, shape), np.finfo(np.float32).tiny)
        return -self.xp.log(-self.xp.log(uniform))

    def _uniform(self, key: Any, shape: tuple[int, ...]) -> Any:
        """Uniform in [0, 1), in steps of 2^-23."""
        count = self.xp.arange(math.prod(shape), dtype=np.uint32)
        first, second = threefry(key[0][:, None], key[1][:, None], self.xp.zeros_like(count), count)
        bits = (first ^ second) >> np.uint32(9) | np.uint32(0x3F800000)
        return (bits.view(np.float32) - np.float32(1)).reshape(-1, *shape)


def threefry(key0: Any, key1: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    """Threefry-2x32 in 20 rounds, of uint32 arrays."""
    keys = key0, key1, key0 ^ key1 ^ np.uint32(0x1BD11BDA)
    x0, x1 = x0 + key0, x1 + key1
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(turn) | x1 >> np.uint32(32 - turn)) ^ x0
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


CENTRAL = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
           -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
TAILS = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
         1.00167406, 2.83297682)  # fmt: skip


def inverse_erf(x: Any, xp: Any) -> Any:
    """The inverse error function of float32 numbers in (-1, 1), by Giles' two polynomials."""
    w = -xp.log1p(-x * x)
    is_central = w < 5
    w = xp.where(is_central, w - np.float32(2.5), xp.sqrt(w) - np.float32(3))
    value = xp.where(is_central, np.float32(CENTRAL[0]), np.float32(TAILS[0]))
    for k in range(1, len(TAILS)):
        value = xp.where(is_central, np.float32(CENTRAL[k]), np.float32(TAILS[k])) + value * w
    return value * x


# ---------------------------------------------------------------- kinds of policies: of observations [n, o] as they see
# them, and of what they draw, which is None where they take the most probable action.


def gaussian(networks: Networks, x: Any, draws: Draws | None) -> Any:
    """A Gaussian, or one action only where it has no deviation; then what squashes it. Also for x [n, candidate, o]."""
    features = networks("body", x)
    action = networks("mean", features)
    if draws is not None and "log_std" in networks.layers:
        action = action + networks.xp.exp(networks("log_std", features)) * draws.normal(*action.shape[1:])
    return networks("final", action)


def mixture(networks: Networks, x: Any, draws: Draws | None) -> Any:
    """Of Gaussians: one choice for all dimensions, or one for each."""
    xp, features = networks.xp, networks("body", x)
    shape = len(x), -1, networks.numbers["components"]
    logits, mean = (networks(name, features).reshape(shape) for name in ("logits", "mean"))
    if draws is not None:
        logits = logits + draws.gumbel(*logits.shape[1:])
    chosen = xp.broadcast_to(logits.argmax(-1)[..., None], (*mean.shape[:2], 1))
    action = xp.take_along_axis(mean, chosen, axis=-1)[..., 0]
    if draws is not None:
        log_std = xp.take_along_axis(networks("log_std", features).reshape(shape), chosen, axis=-1)[..., 0]
        action = action + xp.exp(log_std) * draws.normal(action.shape[-1])
    return networks("final", action)


def categorical(networks: Networks, x: Any, draws: Draws | None) -> Any:
    """The centre of one of equal bins over [-1, 1] in every dimension."""
    xp, bins = networks.xp, networks.numbers["bins"]
    scores = networks("logits", x).reshape(len(x), -1, bins)
    chosen = (scores if draws is None else scores + draws.gumbel(*scores.shape[1:])).argmax(-1)
    middle = (2 * chosen + 1).astype(np.float32) / bins - 1
    return xp.where(xp.isfinite(scores).all(-1), middle, np.float32(np.nan))


def variational(networks: Networks, x: Any, draws: Draws) -> Any:
    """The decoder of a VAE at latents from N(0, 1) clipped to +-0.5. Also for x [n, candidate, o]."""
    xp = networks.xp
    z = xp.clip(draws.normal(*x.shape[1:-1], networks.numbers["latent"]), -0.5, 0.5)
    return xp.tanh(networks("decoder", xp.concatenate([x, z], -1)))


def perturbed(networks: Networks, x: Any, draws: Draws) -> Any:
    """A VAE's action, and a small change of it."""
    xp, action = networks.xp, variational(networks, x, draws)
    change = networks("change", xp.concatenate([x, action], -1))
    return xp.clip(action + networks.numbers["perturbation"] * change, -1, 1)


def flow(networks: Networks, x: Any, draws: Draws) -> Any:
    """Noise that is carried along a velocity field by Euler's steps."""
    xp, steps = networks.xp, networks.numbers["steps"]
    action = draws.normal(networks.numbers["action"])
    for k in range(steps):
        time = xp.full((len(x), 1), k / steps, np.float32)
        action = action + networks("velocity", xp.concatenate([x, action, time], -1)) / steps
    return xp.clip(action, -1, 1)


def best(networks: Networks, x: Any, draws: Draws) -> Any:
    """Of actions that another kind draws, the one that a critic values most."""
    xp, count = networks.xp, networks.numbers["candidates"]
    x = xp.broadcast_to(x[:, None], (len(x), count, x.shape[-1]))
    actions = KINDS[networks.numbers["of"]](networks, x, draws)
    values = networks("critic", xp.concatenate([x, actions], -1))[..., 0]
    chosen = xp.take_along_axis(actions, values.argmax(-1)[:, None, None], axis=1)[:, 0]
    return xp.where(xp.isfinite(values).all(-1, keepdims=True), chosen, np.float32(np.nan))


def greedy(networks: Networks, x: Any, draws: Draws | None) -> Any:
    """The discrete action of the largest value among those that are likely enough, one-hot."""
    xp, threshold = networks.xp, networks.numbers["threshold"]
    logits, values = networks("behaviour", x), networks("values", x)
    likely = logits - logits.max(-1, keepdims=True) > (math.log(threshold) if threshold else -math.inf)
    values = xp.where(likely, values, -np.float32(np.inf))
    chosen = values.argmax(-1)[:, None] == xp.arange(values.shape[-1])
    return xp.where(xp.isnan(values).any(-1, keepdims=True), np.float32(np.nan), chosen.astype(np.float32))


def transformer(networks: Networks, x: Any, draws: Draws | None) -> Any:
    """The first action of an episode, of what `attend` computes."""
    architecture = {"numbers": networks.numbers}
    memory = recall(architecture, *x.shape, networks.numbers["action"], xp=networks.xp)
    return attend(networks, memory, x, networks.xp.zeros(len(x), np.float32))[0]


def attend(networks: Networks, memory: tuple, x: Any, rewards: Any) -> tuple[Any, tuple]:
    """Actions, and the memory after them, of a causal transformer over the last steps, each of which is three tokens:
    return to go, observation and action."""
    xp, numbers = networks.xp, networks.numbers
    context, heads = numbers["context"], numbers["heads"]
    seen, actions, to_go, steps = memory
    left = to_go[:, -1] - rewards / np.float32(numbers["return_scale"])
    new = x, xp.zeros_like(actions[:, 0]), left
    seen, actions, to_go = (xp.concatenate([a[:, 1:], b[:, None]], 1) for a, b in zip((seen, actions, to_go), new))  # noqa: B905
    time = steps[:, None] + 1 - context + xp.arange(context)
    moments = networks("moments", x)
    moment = moments[xp.clip(time, 0, len(moments) - 1)]
    parts = (("to_go", to_go[..., None]), ("observation", seen), ("action", actions))
    tokens = xp.stack([networks(name, part) + moment for name, part in parts], 2)
    # The last action is not known yet.
    y = networks("tokens", tokens.reshape(len(x), 3 * context, -1)[:, :-1])
    count = y.shape[1]
    real = xp.repeat(time >= 0, 3, axis=1)[:, None, :-1]
    mask = (real & np.tril(np.ones((count, count), bool)) | np.eye(count, dtype=bool))[:, None]
    for k in range(numbers["layers"]):
        parts = networks(f"attention {k}", y).reshape(len(x), count, 3, heads, -1)
        query, key, value = (xp.swapaxes(parts[:, :, part], 1, 2) for part in range(3))
        scores = query @ xp.swapaxes(key, 2, 3) / np.float32(math.sqrt(query.shape[-1]))
        scores = xp.where(mask, scores, -np.float32(np.inf))
        weights = xp.exp(scores - scores.max(-1, keepdims=True))
        mixed = xp.swapaxes(weights / weights.sum(-1, keepdims=True) @ value, 1, 2)
        y = y + networks(f"mixing {k}", mixed.reshape(y.shape))
        y = y + networks(f"hidden {k}", y)
    action = networks("head", y[:, -1])
    if numbers["discrete"]:
        chosen = action.argmax(-1)[:, None] == xp.arange(action.shape[-1])
        action = xp.where(xp.isnan(action).any(-1, keepdims=True), np.float32(np.nan), chosen.astype(np.float32))
    actions = xp.concatenate([actions[:, :-1], action[:, None]], 1)
    return action, (seen, actions, to_go, steps + 1)


KINDS = {"gaussian": gaussian, "mixture": mixture, "categorical": categorical, "variational": variational,
         "perturbed": perturbed, "flow": flow, "best": best, "greedy": greedy, "transformer": transformer}  # fmt: skip
DRAWN = "variational", "flow", "best"
"""Those that draw also without a seed."""
REMEMBERING = ("transformer",)
"""Those that remember their episode."""


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
