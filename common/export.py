"""Take a trained policy elsewhere: as a file for NumPy alone, or as an ONNX graph (extra: onnx).

    python -m common.export runs/rlpd/pointmaze-medium/20260101-120000-000000 --npz robot/policy.npz
    python -m common.export RUN --run 3 --onnx policy.onnx

RUN is a run directory, one of its checkpoints/STEP, or a policy file. Beside the NumPy file lies exported.py, which
reads it. The graph takes `observation`, float32 [n, o], flat in the order that its metadata name, and gives `action` in
the environment's own units, [n, a], or the number of a discrete action, [n].
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from common import counts, exported, policies, policyfiles
from common.errors import Refused, exiting
from common.exported import Exported
from common.runs import replacing, writing

if TYPE_CHECKING:
    import onnx

OPSET, IR = 18, 9
"""Versions of ONNX' operators and of its files, which runtimes since 2023 read."""
REMEDY = "choose another place"


@dataclasses.dataclass(frozen=True)
class Export:
    """What is exported, and where to."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run directory, one of its checkpoints/STEP, or a policy file."""
    run: int = 0
    """Which of a directory's runs."""
    npz: Path | None = None
    """A file for NumPy alone; exported.py, which reads it, is put beside it."""
    onnx: Path | None = None
    """An ONNX graph."""


def to_numpy(policy: Exported, path: Path) -> None:
    """Write a policy's file, and exported.py beside it. Raises Refused."""
    with writing(path, REMEDY):
        policyfiles.save(path, policy.about, policy.arrays)
        path.with_name("exported.py").write_bytes(Path(exported.__file__).read_bytes())


def to_onnx(policy: Exported, path: Path) -> None:
    """Write a policy as an ONNX graph. Raises Refused where it draws, and without the extra `onnx`."""
    content = graph(policy).SerializeToString()
    with writing(path, REMEDY), replacing(path) as temporary:
        temporary.write_bytes(content)


def graph(policy: Exported) -> onnx.ModelProto:
    """A policy that draws nothing as an ONNX graph. Raises Refused."""
    try:
        import onnx
    except ImportError as error:
        raise Refused("--onnx needs onnx: pip install -e '.[onnx]'") from error
    kind = policy.architecture["kind"]
    if policy.remembers:
        raise Refused(f"{policy.path}: a policy that remembers its episode, which a graph here does not; use --npz")
    if kind not in KINDS:
        raise Refused(
            f"{policy.path}: a policy that draws its actions, for which ONNX has no random numbers like JAX'; "
            "--npz writes it for NumPy"
        )
    nodes = Nodes(policy, onnx)
    action = KINDS[kind](nodes, nodes.network("normal", "observation"))
    action = nodes.own_units(action)
    nodes.add("Identity", action, output="action")
    types, discrete = onnx.TensorProto, policy.about["action"]["first"] is not None
    seen = onnx.helper.make_tensor_value_info("observation", types.FLOAT, ["n", policy.observation_size])
    shape = ["n"] if discrete else ["n", policy.action_size]
    acted = onnx.helper.make_tensor_value_info("action", types.INT64 if discrete else types.FLOAT, shape)
    whole = onnx.helper.make_graph(nodes.nodes, "policy", [seen], [acted], nodes.constants)
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(whole, producer_name="headstart", ir_version=IR, opset_imports=opsets)
    told = {name: json.dumps(policy.about[name]) for name in ("observation", "action", "provenance")}
    onnx.helper.set_model_props(model, told)
    onnx.checker.check_model(model)
    return model


class Nodes:
    """The nodes and constants of a graph as it grows; what is computed goes by its name."""

    def __init__(self, policy: Exported, library: ModuleType):
        self.policy, self.onnx = policy, library
        self.numbers = policy.architecture["numbers"]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: Any, output: str | None = None, **attributes: Any) -> str:
        """A node; numbers and arrays among its inputs become constants."""
        named = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        output = output or f"x{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, named, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """A constant: whole numbers as int64, all others as float32."""
        array = np.asarray(value)
        array = array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32)
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def network(self, name: str, x: str) -> str:
        """The output [n, out] of a network's layers for an input [n, in]."""
        for number, (layer, *values) in enumerate(self.policy.architecture["networks"][name]):
            keys = (f"{name}.{number}.{k}" for k in range(len(values)))
            own = [self.policy.arrays[key] if value is None else value for key, value in zip(keys, values, strict=True)]
            x = LAYERS[layer](self, x, *own)
        return x

    def shaped(self, name: str, x: str, last: int) -> str:
        """A network's output [n, ..., last], of as many in the middle as it has."""
        return self.add("Reshape", self.network(name, x), np.array([0, -1, last]))

    def own_units(self, action: str) -> str:
        """Actions in [-1, 1], or numbers counted from 0, in the environment's own units."""
        policy = self.policy
        if policy.first is not None:
            return self.add("Add", action, policy.first)
        if not policy.is_rescaled:
            return action
        own = self.add("Add", self.add("Mul", action, policy.half_range), policy.centre)
        return self.add("Min", self.add("Max", own, policy.low), policy.high)


LAYERS: dict[str, Callable[..., str]] = {
    "dense": lambda nodes, x, kernel, bias: nodes.add("Gemm", x, kernel, bias),
    "relu": lambda nodes, x: nodes.add("Relu", x),
    "layer norm": lambda nodes, x, *own: nodes.add("LayerNormalization", x, *own, axis=-1, epsilon=1e-6),
    "tanh": lambda nodes, x: nodes.add("Tanh", x),
    "clip": lambda nodes, x, low, high: nodes.add("Clip", x, low, high),
    "scale": lambda nodes, x, factor, offset: nodes.add("Add", nodes.add("Mul", x, factor), offset),
    "normalise": lambda nodes, x, mean, std: nodes.add("Div", nodes.add("Sub", x, mean), std),
}
"""Those of exported.Networks that a most probable action passes through."""


def gaussian(nodes: Nodes, x: str) -> str:
    """As exported.gaussian without draws; the same of the other three."""
    return nodes.network("final", nodes.network("mean", nodes.network("body", x)))


def mixture(nodes: Nodes, x: str) -> str:
    """See above."""
    features, size = nodes.network("body", x), nodes.policy.action_size
    logits, mean = (nodes.shaped(name, features, nodes.numbers["components"]) for name in ("logits", "mean"))
    chosen = nodes.add("Expand", nodes.add("ArgMax", logits, axis=-1, keepdims=1), np.array([1, size, 1]))
    action = nodes.add("Squeeze", nodes.add("GatherElements", mean, chosen, axis=-1), np.array([-1]))
    return nodes.network("final", action)


def categorical(nodes: Nodes, x: str) -> str:
    """See above."""
    bins = nodes.numbers["bins"]
    chosen = nodes.add("ArgMax", nodes.shaped("logits", x, bins), axis=-1, keepdims=0)
    odd = nodes.add("Add", nodes.add("Mul", nodes.add("Cast", chosen, to=nodes.onnx.TensorProto.FLOAT), 2.0), 1.0)
    return nodes.add("Sub", nodes.add("Div", odd, float(bins)), 1.0)


def greedy(nodes: Nodes, x: str) -> str:
    """See above; the number of the action, counted from 0."""
    values, threshold = nodes.network("values", x), nodes.numbers["threshold"]
    if threshold:
        logits = nodes.network("behaviour", x)
        below = nodes.add("Sub", logits, nodes.add("ReduceMax", logits, np.array([-1]), keepdims=1))
        values = nodes.add("Where", nodes.add("Greater", below, math.log(threshold)), values, -math.inf)
    return nodes.add("ArgMax", values, axis=-1, keepdims=0)


KINDS: dict[str, Callable[[Nodes, str], str]] = {
    "gaussian": gaussian, "mixture": mixture, "categorical": categorical, "greedy": greedy,
}  # fmt: skip


def command(asked: Export) -> None:
    """Export what is asked for. Raises Refused."""
    if asked.npz is None and asked.onnx is None:
        raise Refused("nothing to write: name --npz FILE, --onnx FILE, or both")
    for flag, path in (("npz", asked.npz), ("onnx", asked.onnx)):
        if path is not None and path.suffix != f".{flag}":
            raise Refused(f"--{flag} {path}: such files end in .{flag}")
    policy = policies.load(asked.path, asked.run)
    print(policies.described(policy))
    if asked.onnx is not None:
        to_onnx(policy, asked.onnx)
        print(f"graph in {asked.onnx}")
    if asked.npz is not None:
        to_numpy(policy, asked.npz)
        print(f"policy in {asked.npz}, read by {asked.npz.with_name('exported.py')}")


def main() -> None:
    """Serve the command line."""
    exiting("common.export", lambda: command(counts.cli(Export, prog="python -m common.export", description=__doc__)))


if __name__ == "__main__":
    main()
