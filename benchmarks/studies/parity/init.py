"""What networks begin as, ours and the peers': deviations of their kernels, layer by layer, and of their outputs.

Nothing here is expected to be equal: algorithms/README.md says where ours begin otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.studies.parity import harness as h
from common.networks import Critic, DeterministicActor, Ensemble, Network, TanhNormalActor, Value

torch = h.pytorch()
torch.manual_seed(0)
h.stub("gym", "d4rl", "pandas", "pyrallis", "wandb", "tqdm", "utils.video_recorder", "tensorboardX")
OBSERVATION, ACTION = 17, 6
RNG = np.random.default_rng(0)
X, A = RNG.standard_normal((512, OBSERVATION)), np.tanh(RNG.standard_normal((512, ACTION)))
TABLE = h.Table("kernels' deviations, and the output's", "a description")


def line(what: str, kernels: Sequence[Any], output: Any) -> None:
    """One network."""
    widths = " ".join(f"{float(np.std(np.asarray(k))):.4f}" for k in kernels)
    TABLE.row(what, f"{float(np.std(np.asarray(output))):.3f}", widths)


def of_ours() -> None:
    """Ours."""
    key, x, a = jax.random.key(0), jnp.asarray(X), jnp.asarray(A)

    def say(what: str, net: Network, *inputs: jax.Array, pick: Callable[[Any], Any] = lambda y: y) -> None:
        leaves = [v for p, v in jax.tree_util.tree_flatten_with_path(net.params)[0] if "kernel" in str(p[-1])]
        hidden, last = ([k for k in leaves if (k.shape[-1] > ACTION) == wide] for wide in (True, False))
        line(f"ours: {what}", hidden + last, pick(net(*inputs)))

    for label, module in (
        ("critic, 2 layers", Critic((256, 256))),
        ("critic, 2 layers, LayerNorm", Critic((256, 256), True)),
        ("critic, 3 layers", Critic((256, 256, 256))),
        ("EDAC's critic", Critic((256, 256, 256), last_bound=3e-3)),
    ):
        say(label, Ensemble.create(module, key, x[0], a[0], members=10), x, a)
    say("value", Network.create(Value((256, 256)), key, x[0]), x)
    say("deterministic actor", Network.create(DeterministicActor((256, 256), ACTION), key, x[0]), x)
    actor = Network.create(TanhNormalActor((256, 256, 256), ACTION), key, x[0])
    say("tanh-normal actor, mean", actor, x, pick=lambda d: d.mean)
    say("tanh-normal actor, log deviation", actor, x, pick=lambda d: d.log_std)


def of_td3_bc() -> None:
    """TD3+BC's authors."""
    module, x, a = h.theirs("TD3_BC", "TD3_BC"), torch.as_tensor(X), torch.as_tensor(A)
    critic, actor = module.Critic(OBSERVATION, ACTION).double(), module.Actor(OBSERVATION, ACTION, 1.0).double()
    with torch.no_grad():
        line("TD3_BC: critic", [critic.l1.weight, critic.l2.weight, critic.l3.weight], critic(x, a)[0])
        line("TD3_BC: actor", [actor.l1.weight, actor.l2.weight, actor.l3.weight], actor(x))


def of_adaptive_bc() -> None:
    """REDQ+AdaptiveBC's authors."""
    critic = h.theirs("adaptive_bc", "redq_bc").Critic(OBSERVATION, ACTION).double()
    with torch.no_grad():
        kernels = [critic.nets[i].weight for i in (0, 2, 4)]
        line("adaptive_bc: critic", kernels, critic(torch.as_tensor(X), torch.as_tensor(A)))


def of_first() -> None:
    """First Imitate, with LayerNorm."""
    critic = h.theirs("EfficientOfflineRL/algorithms", "td3_bc").Critic(OBSERVATION, ACTION).double()
    with torch.no_grad():
        kernels = [critic.net[i].weight for i in (0, 3, 6)]
        line("First Imitate, TD3+BC: critic", kernels, critic(torch.as_tensor(X), torch.as_tensor(A)))


def of_corl() -> None:
    """CORL's EDAC."""
    module, x, a = h.theirs("CORL/algorithms/offline", "edac"), torch.as_tensor(X), torch.as_tensor(A)
    critic = module.VectorizedCritic(OBSERVATION, ACTION, 256, 10).double()
    actor = module.Actor(OBSERVATION, ACTION, 256).double()
    with torch.no_grad():
        line("CORL, EDAC: critic", [critic.critic[i].weight for i in (0, 2, 4, 6)], critic(x, a))
        hidden, kernels = actor.trunk(x), [actor.trunk[i].weight for i in (0, 2, 4)]
        line("CORL, EDAC: actor, mean", [*kernels, actor.mu.weight], actor.mu(hidden))
        line("CORL, EDAC: actor, log deviation", [actor.log_sigma.weight], actor.log_sigma(hidden))


class Orthogonal(nn.Module):
    """The IQL authors' initialisation: orthogonal, scaled by sqrt 2, in every layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, in] to [n, 1]."""
        for width in (256, 256):
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(x))
        return nn.Dense(1, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(x)


def of_iql() -> None:
    """Over ten seeds."""
    x, values = jnp.concatenate([jnp.asarray(X), jnp.asarray(A)], 1), []
    for seed in range(10):
        params = Orthogonal().init(jax.random.key(seed), x)
        values.append(Orthogonal().apply(params, x))
    line("IQL, its authors: critic", [params["params"][f"Dense_{i}"]["kernel"] for i in range(3)], np.asarray(values))


def main() -> None:
    """All networks."""
    h.each(of_ours, of_td3_bc, of_adaptive_bc, of_first, of_corl, of_iql)


if __name__ == "__main__":
    main()
