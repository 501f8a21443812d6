"""What an agent says of its policy, in layers and numbers: what exported.py computes with NumPy and export.py in ONNX.

An algorithm whose evaluated policy is its `actor`, one of those in networks.py, behind its `normal`, if it has one,
inherits `Agent.portable`. One with another policy says so with the parts below, of one run's agent on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.errors import Refused
from common.networks import DeterministicActor, NormalActor, TanhMixtureActor, TanhNormalActor

if TYPE_CHECKING:
    from common.networks import Ensemble, Network, Normaliser, Parameters

Layer = tuple
"""Its name in exported.py, and the arrays and numbers behind it: ("dense", kernel, bias), ("clip", -1, 1)."""


class Portable(NamedTuple):
    """A policy without its framework."""

    kind: str
    """One of exported.KINDS."""
    networks: Mapping[str, Sequence[Layer]]
    """Name -> layers, in order; which names there must be, the kind's function says."""
    numbers: Mapping[str, Any] = {}
    """What else it asks for."""
    normal: Normaliser | None = None
    """What observations pass through first; nothing if None."""

    def split(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The architecture, JSON-able, and the arrays by "network.layer.number", whose places in it are None."""
        networks = {"normal": [] if self.normal is None else [("normalise", self.normal.mean, self.normal.std)]}
        networks |= self.networks
        architecture: dict[str, Any] = {"kind": self.kind, "networks": {}, "numbers": dict(self.numbers)}
        arrays = {}
        for name, layers in networks.items():
            architecture["networks"][name] = told = []
            for number, (layer, *values) in enumerate(layers):
                is_array = [np.ndim(value) > 0 for value in values]
                told.append([layer, *(None if array else float(x) for x, array in zip(values, is_array, strict=True))])
                for k, value in enumerate(values):
                    if is_array[k]:
                        arrays[f"{name}.{number}.{k}"] = np.asarray(value, np.float32)
        return architecture, arrays


def dense(params: Parameters) -> Layer:
    """A `Dense`."""
    return "dense", params["kernel"], params["bias"]


def layer_norm(params: Parameters, epsilon: float = 1e-6) -> Layer:
    """A `LayerNorm`."""
    return "layer norm", params["scale"], params["bias"], epsilon


def block(params: Parameters) -> dict[str, list[Layer]]:
    """A `Block` of attention.py, as exported.attend has its parts."""
    first, second = (layer_norm(params[f"LayerNorm_{k}"], 1e-5) for k in range(2))
    attention, mixing, wide, narrow = (dense(params[f"Linear_{k}"]) for k in range(4))
    return {"attention": [first, attention], "mixing": [mixing], "hidden": [second, wide, ("relu",), narrow]}


def mlp(params: Parameters) -> list[Layer]:
    """An `MLP`, in whichever order."""
    layers: list[Layer] = []
    for number in range(sum(name.startswith("Dense_") for name in params)):
        layers.append(dense(params[f"Dense_{number}"]))
        first, then = (params.get(f"{name}_{number}") for name in ("LayerNormReLU", "LayerNorm"))
        layers += [("layer norm", first["scale"], first["bias"])] if first else []
        layers.append(("relu",))
        layers += [("layer norm", then["scale"], then["bias"])] if then else []
    return layers


def first(critic: Ensemble) -> list[Layer]:
    """The first of an ensemble of `Critic`."""
    own = {name: _first(part) for name, part in critic.params["params"].items()}
    return [*mlp(own["MLP_0"]), dense(own["Dense_0"])]


def _first(params: Parameters) -> Parameters:
    return {k: _first(v) if isinstance(v, Mapping) else v[0] for k, v in params.items()}


def actor(network: Network, normal: Normaliser | None = None) -> Portable:
    """An actor of networks.py. Raises Refused for another module."""
    module, own = network.module, network.params["params"]
    networks: dict[str, list[Layer]] = {"body": mlp(own["MLP_0"])} if "MLP_0" in own else {}
    if isinstance(module, DeterministicActor):
        networks |= {"mean": [dense(own["Dense_0"]), ("tanh",)], "final": []}
    elif isinstance(module, NormalActor):
        log_std = [("constant", own["log_std"]), ("clip", -5.0, 2.0)]
        networks |= {"mean": [dense(own["Dense_0"]), ("tanh",)], "log_std": log_std, "final": [("clip", -1.0, 1.0)]}
    elif isinstance(module, TanhNormalActor):
        log_std = [dense(own["Dense_1"])]
        if module.first_log_std is not None:
            log_std.append(("scale", own["log_std_scale"], own["log_std_offset"]))
        log_std.append(("clip", module.least_log_std, 2.0))
        networks |= {"mean": [dense(own["Dense_0"])], "log_std": log_std, "final": [("tanh",)]}
    elif isinstance(module, TanhMixtureActor):
        logits, mean, log_std = (dense(own[f"Dense_{k}"]) for k in range(3))
        networks |= {"logits": [logits], "mean": [mean], "log_std": [log_std, ("clip", -20.0, 2.0)]}
        return Portable("mixture", networks | {"final": [("tanh",)]}, {"components": module.components}, normal)
    else:
        raise Refused(f"{type(module).__name__} is no actor of common/networks.py: its agent says its own `portable`")
    return Portable("gaussian", networks, normal=normal)


def decoder(vae: Network) -> list[Layer]:
    """What a `VAE` decodes latents with, before the tanh."""
    own = vae.params["params"]
    return [*mlp(own["decoder"]), dense(own["action"])]
