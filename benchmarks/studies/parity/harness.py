"""What the checks of this folder share: a peer's modules, random draws fixed on both sides, and errors.

A check is a module that runs in a process of its own, as `python -m benchmarks.studies.parity` starts it, or

    PARITY_THEIRS=FOLDER [PARITY_BITS=64] [PARITY_OUT=FILE] python -m benchmarks.studies.parity.NAME

FOLDER holds one checkout per peer, under its repository's name. BITS is 32 (as shipped) or 64: both sides in double
precision, where rounding is too small to hide anything. Rows are printed, and appended to FILE as JSON lines.

Both sides get the same parameters and minibatches. Their draws are fixed: `jax.random` and PyTorch's functions are
replaced by sequences of arrays, which each side reads from the start. JAX runs eagerly meanwhile, so that loops are
unrolled and every call is one draw. After k updates, all parameters are compared.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from common import layers
from common.networks import Network
from common.replay import Batch

BITS = int(os.environ.get("PARITY_BITS", "64"))
THEIRS = Path(os.environ.get("PARITY_THEIRS", "."))
"""The folder of checkouts."""
if "PARITY_THEIRS" in os.environ:  # else this is no check, and JAX's settings are somebody else's
    jax.config.update("jax_enable_x64", BITS == 64)
    jax.config.update("jax_platforms", "cpu")
REAL = np.float64 if jax.config.jax_enable_x64 else np.float32
OBSERVATION, ACTION = 11, 3
"""Numbers of an observation and of an action in every check."""
NAMES = ("observation", "action", "reward", "mask", "next_observation")
"""The columns of a transition."""
namespace = types.SimpleNamespace
Tree = Any
"""Nested dictionaries of arrays."""


# ---------------------------------------------------------------------- the peers' modules


class Absent(SystemExit):
    """A peer's checkout is not there: its checks are left out, and the process ends with status 3 unless caught."""


def checkout(folder: str) -> Path:
    """The path of `folder`, whose first part is a repository's name. Raises Absent, and says it, if it is not there."""
    path, name = THEIRS / folder, folder.split("/")[0]
    if not path.is_dir():
        print(f"{name}: not in {THEIRS}, left out", flush=True)
        record({"absent": name})
        raise Absent(3)
    record({"peer": name})
    return path


def each(*checks: Callable[[], None]) -> None:
    """Run all checks but those whose peer's checkout is not there."""
    for check in checks:
        with contextlib.suppress(Absent):
            check()


def stub(*names: str) -> None:
    """Put empty modules in the place of those that only a peer's training loop needs."""
    for name in names:
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            key = ".".join(parts[:i])
            if key not in sys.modules:
                module = mock.MagicMock(name=key)
                module.__path__, module.__spec__ = [], importlib.machinery.ModuleSpec(key, None)
                sys.modules[key] = module
    if "pyrallis" in names:
        sys.modules["pyrallis"].wrap = lambda: lambda function: function


def theirs(folder: str, *names: str) -> Any:
    """Modules of a checkout, one or a list. They are forgotten afterwards, so that equal names do not collide."""
    there, before, path = checkout(folder), dict(sys.modules), list(sys.path)
    roots = {p.stem if p.is_file() else p.name for p in there.iterdir()}

    def forget() -> None:
        for key in list(sys.modules):
            if key.split(".")[0] in roots:
                del sys.modules[key]

    sys.path.insert(0, str(there))
    forget()
    modules = [importlib.import_module(name) for name in names]
    forget()
    sys.modules.update({k: v for k, v in before.items() if k.split(".")[0] in roots})
    sys.path[:] = path
    return modules[0] if len(modules) == 1 else modules


def pytorch() -> Any:
    """PyTorch in the precision of this check, on one thread."""
    import torch

    torch.set_default_dtype(torch.float64 if BITS == 64 else torch.float32)
    torch.set_num_threads(1)
    return torch


# ---------------------------------------------------------------------- random draws


class Draws:
    """Fixed sequences of random arrays, one per kind; each side reads its own from the start."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.count: dict[str, int] = {}

    def rewind(self) -> Self:
        """From the start again."""
        self.count = {}
        return self

    def take(self, kind: str, shape: Sequence[int], make: Callable[[np.random.Generator], np.ndarray]) -> np.ndarray:
        """The next array of a kind; equal numbers, also where one side has an axis of one."""
        number = self.count.get(kind, 0)
        self.count[kind] = number + 1
        return make(np.random.default_rng([self.seed, sum(map(ord, kind)), number])).reshape(shape)

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """From the standard Gaussian."""
        return self.take("normal", tuple(shape), lambda rng: rng.standard_normal(int(np.prod(shape))))

    def uniform(self, shape: Sequence[int]) -> np.ndarray:
        """From [-1, 1)."""
        return self.take("uniform", tuple(shape), lambda rng: rng.uniform(-1, 1, int(np.prod(shape))))

    def keep(self, shape: Sequence[int], p: float) -> np.ndarray:
        """True with probability p."""
        return self.take("keep", tuple(shape), lambda rng: rng.uniform(0, 1, int(np.prod(shape))) < p)

    def order(self, n: int) -> np.ndarray:
        """The numbers below n in some order."""
        return self.take("order", (n,), lambda rng: rng.permutation(n))


@contextlib.contextmanager
def fixed(draws: Draws) -> Iterator[None]:
    """jax.random and PyTorch with these draws from their start, and JAX eagerly, so that every call is one draw."""
    draws.rewind()

    def normal(key: Any, shape: Sequence[int] = (), dtype: Any = REAL, **_: Any) -> jax.Array:
        if len(shape) == 2 and shape[0] == ACTION != shape[1]:  # tensorflow-probability draws [action, batch]
            return jnp.asarray(draws.normal(shape[::-1]).T, REAL)
        return jnp.asarray(draws.normal(shape), REAL)

    def uniform(
        key: Any, shape: Sequence[int] = (), dtype: Any = REAL, minval: float = 0.0, maxval: float = 1.0, **_: Any
    ) -> jax.Array:
        return jnp.asarray((draws.uniform(shape) + 1) / 2 * (maxval - minval) + minval, REAL)

    def choice(key: Any, a: Any, shape: Sequence[int] = (), replace: bool = True, **_: Any) -> jax.Array:
        return jnp.asarray(draws.order(a if isinstance(a, int) else len(a))[: int(np.prod(shape))])

    def bernoulli(key: Any, p: float = 0.5, shape: Sequence[int] | None = None, **_: Any) -> jax.Array:
        return jnp.asarray(draws.keep(shape, p))

    patches = [
        mock.patch.object(jax.random, "normal", normal),
        mock.patch.object(jax.random, "uniform", uniform),
        mock.patch.object(jax.random, "choice", choice),
        mock.patch.object(jax.random, "bernoulli", bernoulli),
        mock.patch.object(np.random, "permutation", lambda n: draws.order(n)),
        *(_torch_patches(draws) if importlib.util.find_spec("torch") else ()),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(jax.disable_jit())
        yield


def _torch_patches(draws: Draws) -> list[Any]:
    import torch
    import torch.distributions.normal as distribution

    def like(numbers: np.ndarray, tensor: Any) -> Any:
        return torch.as_tensor(numbers, dtype=tensor.dtype)

    def standard_normal(shape: Sequence[int], dtype: Any, device: Any) -> Any:
        return torch.as_tensor(draws.normal(shape), dtype=dtype)

    def uniform(self: Any, low: float, high: float) -> Any:
        return self.copy_(like(draws.uniform(self.shape), self))

    return [
        mock.patch.object(torch, "randn_like", lambda x: like(draws.normal(x.shape), x)),
        mock.patch.object(torch, "normal", lambda mean, std: mean + std * like(draws.normal(mean.shape), mean)),
        mock.patch.object(distribution, "_standard_normal", standard_normal),
        mock.patch.object(torch.Tensor, "uniform_", uniform),
    ]


# ---------------------------------------------------------------------- errors


def error(ours: Tree, target: Tree, start: Tree | None = None) -> float:
    """Largest relative error of any leaf: of the values, or, with `start`, of how far training has moved them."""
    ours, target = (jax.tree.map(_double, tree) for tree in (ours, target))
    assert jax.tree.structure(ours) == jax.tree.structure(target), (
        jax.tree.structure(ours), jax.tree.structure(target),
    )  # fmt: skip
    if start is not None:
        ours, target = (jax.tree.map(lambda x, y: x - _double(y), tree, start) for tree in (ours, target))
    worst = 0.0
    flat, _ = jax.tree_util.tree_flatten_with_path(target)
    for a, (path, b) in zip(jax.tree.leaves(ours), flat, strict=True):
        assert a.shape == b.shape, (a.shape, b.shape)
        scale = np.abs(b).max()
        if scale == 0 and (np.abs(a).max() == 0 or _is_norm(path)):  # a LayerNorm that theirs has not
            continue
        worst = float(np.maximum(worst, np.abs(a - b).max() / max(scale, 1e-300)))  # NaN remains NaN
    return worst


def distance(ours: Tree, target: Tree, start: Tree) -> float:
    """||ours - theirs|| / ||theirs - start|| over all leaves that theirs has: one tiny gradient cannot fill it.

    Where theirs has not moved, 0 if ours has not either, else infinite.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(target)
    difference = moved = 0.0
    for a, (path, b), c in zip(jax.tree.leaves(ours), flat, jax.tree.leaves(start), strict=True):
        a, b, c = map(_double, (a, b, c))
        if _is_norm(path) and np.array_equal(b, c):
            continue
        difference, moved = difference + np.square(a - b).sum(), moved + np.square(b - c).sum()
    if not moved:
        return float("inf") if difference else 0.0
    return float(np.sqrt(difference / moved))


def _double(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def _is_norm(path: tuple) -> bool:
    return any("LayerNorm" in str(key) for key in path)


def record(row: Mapping[str, Any]) -> None:
    """Append a row to the file that PARITY_OUT names, if it does."""
    if os.environ.get("PARITY_OUT"):
        with open(os.environ["PARITY_OUT"], "a") as file:
            file.write(json.dumps(row) + "\n")


class Table:
    """Rows of one case, printed and recorded.

    `differs`: why this case is known not to be equal, in a few words; such cases are not counted among the errors.
    """

    def __init__(self, name: str, differs: str = ""):
        self.name, self.differs = name, differs

    def row(self, what: str, value: Any, note: str = "", kind: str = "other", **more: float) -> None:
        """Any number, or text."""
        text = f"{value:.1e}" if isinstance(value, float) else str(value)
        print(f"{self.name:28s} {BITS} bit  {what:58s} {text:>12s}  {note}", flush=True)
        record({
            "case": self.name, "bits": BITS, "what": what, "kind": kind, "value": value, **more, "note": note,
            "differs": self.differs,
        })  # fmt: skip

    def scalar(self, what: str, ours: Any, target: Any, note: str = "") -> None:
        """A loss, or another number of both sides: its relative error."""
        ours, target = float(ours), float(target)
        relative = abs(ours - target) / max(abs(target), 1e-300)
        self.row(what, relative, note or f"ours {ours:.6g}, theirs {target:.6g}", "loss")

    def change(self, what: str, ours: Tree, target: Tree, start: Tree) -> None:
        """Parameters: `what` names them and says "after N updates".

        Three errors: of the values; of how far training has moved them, the largest of a leaf; and of all together.
        """
        whole = distance(ours, target, start)
        self.row(
            what, error(ours, target), f"of the change: worst {error(ours, target, start):.1e}, all {whole:.1e}",
            "parameters", change=error(ours, target, start), distance=whole,
        )  # fmt: skip

    def changes(self, ours: Sequence[Tree], target: Sequence[Tree], start: Tree, *, at: Sequence[int]) -> None:
        """`change` of every part of dictionaries of parameters, one dictionary per update, after the updates `at`."""
        for count in at:
            for part, begin in start.items():
                what = f"{part} after {count} update{'s' * (count > 1)}"
                self.change(what, ours[count - 1][part], target[count - 1][part], begin)


# ---------------------------------------------------------------------- minibatches


def batches(
    count: int, size: int, observation: int = OBSERVATION, action: int = ACTION, seed: int = 1, terminal: float = 0.2
) -> list[dict[str, np.ndarray]]:
    """`count` minibatches of `size` rows, as dictionaries of columns."""
    rng = np.random.default_rng(seed)
    return [
        {
            "observation": rng.standard_normal((size, observation)).astype(REAL),
            "action": rng.uniform(-0.95, 0.95, (size, action)).astype(REAL),
            "reward": rng.standard_normal(size).astype(REAL),
            "mask": (rng.uniform(size=size) > terminal).astype(REAL),
            "next_observation": rng.standard_normal((size, observation)).astype(REAL),
            "return_to_go": (10 * rng.standard_normal(size)).astype(REAL),
        }
        for _ in range(count)
    ]


def stacked(dictionaries: Sequence[Mapping[str, np.ndarray]], names: Sequence[str] = NAMES) -> dict[str, jax.Array]:
    """Columns [minibatch, row, ...], as `Agent.update` takes them."""
    return {n: jnp.stack([jnp.asarray(d[n]) for d in dictionaries]) for n in names}


def column(x: Any) -> Any:
    """As PyTorch's [n, 1]."""
    import torch

    return torch.as_tensor(np.asarray(x))[:, None]


def example(observation: int = OBSERVATION, action: int = ACTION) -> Batch:
    """One transition of zeros, for `Agent.create`."""
    number = jnp.zeros(())
    return Batch(jnp.zeros(observation), jnp.zeros(action), number, number, jnp.zeros(observation))


# ---------------------------------------------------------------------- parameters


def real(tree: Tree) -> Tree:
    """All leaves as arrays of REAL."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), REAL), tree)


def linear(layer: Any) -> dict[str, jax.Array]:
    """A PyTorch Linear as kernel and bias, or one of an ensemble: [N, in, out] and [N, 1, out]."""
    weight, bias = (getattr(layer, a, None) for a in ("weight", "bias"))
    if weight is None:
        weight, bias = layer.W, layer.b
    weight, bias = weight.detach().numpy().copy(), bias.detach().numpy().copy()
    if weight.ndim == 3:
        return {"kernel": jnp.asarray(weight), "bias": jnp.asarray(bias[:, 0])}
    return {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}


def network(hidden: Sequence[Tree], *outputs: Tree, norms: Sequence[Tree] | None = None) -> Tree:
    """Our parameter tree, from hidden layers and output layers (each kernel and bias) and LayerNorms."""
    mlp = {f"Dense_{i}": layer for i, layer in enumerate(hidden)}
    mlp |= {f"LayerNormReLU_{i}": norm for i, norm in enumerate(norms or ())}
    return {"params": {"MLP_0": mlp} | {f"Dense_{i}": layer for i, layer in enumerate(outputs)}}


def three_layers(net: Any, first: int = 1) -> Tree:
    """Ours of three layers of theirs that are numbered from `first` on: l1, l2, l3 are the actor in many codes."""
    hidden = [linear(getattr(net, f"l{first + i}")) for i in range(2)]
    return network(hidden, linear(getattr(net, f"l{first + 2}")))


def both_critics(net: Any) -> Tree:
    """Ours of theirs, which holds both critics, of three layers each."""
    return stack_trees(three_layers(net), three_layers(net, 4))


def stack_trees(*trees: Tree) -> Tree:
    """The trees of single networks as that of an ensemble."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def identity_norms(params: Tree) -> Tree:
    """The LayerNorm parameters set to scale 1 and bias 0."""
    mlp = params["params"]["MLP_0"]
    mlp = {
        k: {"scale": jnp.ones_like(v["scale"]), "bias": jnp.zeros_like(v["bias"])} if k.startswith("LayerNorm") else v
        for k, v in mlp.items()
    }
    return {"params": params["params"] | {"MLP_0": mlp}}


def with_norms(params: Tree) -> Tree:
    """The tree with LayerNorms of scale 1 and bias 0 beside every hidden layer."""
    mlp = dict(params["params"]["MLP_0"])
    for name, layer in list(mlp.items()):
        shape = layer["bias"].shape
        mlp["LayerNormReLU_" + name.split("_")[1]] = {"scale": jnp.ones(shape, REAL), "bias": jnp.zeros(shape, REAL)}
    return {"params": params["params"] | {"MLP_0": mlp}}


@contextlib.contextmanager
def bare_norms(on: bool = True) -> Iterator[None]:
    """Our LayerNorm as PyTorch's without parameters: epsilon 1e-5 instead of Flax's 1e-6, scale 1 and bias 0."""
    own = Network.descend

    def descend(self: Network, *arguments: Any) -> Network:
        new = own(self, *arguments)
        return new.replace(params=identity_norms(new.params)) if "MLP_0" in new.params["params"] else new

    def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean)
        return mean, jax.lax.rsqrt(jnp.maximum(0.0, variance) + 1e-5)

    with contextlib.ExitStack() as stack:
        if on:
            stack.enter_context(mock.patch.object(layers, "_moments", moments))
            stack.enter_context(mock.patch.object(Network, "descend", descend))
        yield


def fresh(net: Network, params: Tree) -> Network:
    """Our network with these parameters and a new Adam state."""
    params = real(params)
    assert jax.tree.structure(params) == jax.tree.structure(net.params), (
        jax.tree.structure(params), jax.tree.structure(net.params),
    )  # fmt: skip
    state = None if net.opt_state is None else optax.scale_by_adam().init(params)
    return net.replace(params=params, opt_state=state)


def jitter_torch(modules: Sequence[Any], size: float = 0.02, seed: int | None = 0) -> None:
    """Move all parameters of these PyTorch modules a little, so that nothing hides behind equal or zero ones."""
    import torch

    if seed is not None:
        torch.manual_seed(seed)
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.add_(size * torch.randn(parameter.shape))


def followed(agent: Any, minibatches: Sequence[Any], parts: Sequence[str]) -> tuple[list[dict[str, Tree]], list[Any]]:
    """Our agent through one update per element of `minibatches` (arrays [step, row, ...]).

    Returns, per update, the parameters of its parts, and its metrics.
    """
    params, metrics = [], []
    for number, batch in enumerate(minibatches):
        agent, info = agent.update(batch, jax.random.key(number), jnp.asarray(number + 1))
        params.append({part: getattr(agent, part).params for part in parts})
        metrics.append(info)
    return params, metrics
