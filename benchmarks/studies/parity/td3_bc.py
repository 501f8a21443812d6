"""td3_bc.py against sfujim/TD3_BC: `TD3_BC.train`, k times; the normalisation of observations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import td3_bc
from benchmarks.studies.parity import harness as h
from common.networks import Normaliser
from common.replay import Batch

torch = h.pytorch()
h.stub("gym", "d4rl")
theirs, utils = h.theirs("TD3_BC", "TD3_BC", "utils")


def check(updates: int = 5, size: int = 256) -> None:
    """Updates with the defaults of both."""
    table = h.Table("defaults")
    policy = theirs.TD3_BC(h.OBSERVATION, h.ACTION, 1.0)
    nets = {
        "actor": policy.actor, "target_actor": policy.actor_target, "critic": policy.critic,
        "target_critic": policy.critic_target,
    }  # fmt: skip
    h.jitter_torch([policy.actor_target, policy.critic_target])

    def snapshot() -> dict[str, h.Tree]:
        return {part: (h.three_layers if "actor" in part else h.both_critics)(net) for part, net in nets.items()}

    start = snapshot()
    ours = td3_bc.TD3BC.create(
        td3_bc.Config(), jax.random.key(0), h.example(), h.namespace(observation=jnp.zeros((4, h.OBSERVATION)))
    )
    ours = ours.replace(
        cloning=jnp.ones((), h.REAL), **{part: h.fresh(getattr(ours, part), tree) for part, tree in start.items()}
    )
    data = h.batches(updates, size)
    losses, params, real_mse = [], [], theirs.F.mse_loss

    def spy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        losses.append(float(real_mse(a, b).detach()))
        return real_mse(a, b)

    draws = h.Draws()
    with h.fixed(draws), h.mock.patch.object(theirs.F, "mse_loss", spy):
        for d in data:
            t = {k: torch.as_tensor(v) for k, v in d.items()}
            rows = t["observation"], t["action"], t["next_observation"], t["reward"][:, None], t["mask"][:, None]
            policy.train(h.namespace(sample=lambda _, rows=rows: rows), size)
            params.append(snapshot())
    with h.fixed(draws):
        mine, metrics = h.followed(ours, [Batch(**h.stacked([d])) for d in data], start)
    table.scalar("critic_loss (1st update)", metrics[0]["critic_loss"], losses[0] + losses[1])
    table.scalar("cloning term (2nd update)", metrics[1]["cloning"], losses[4])
    table.changes(mine, params, start, at=(1, 2, updates))


def normalisation(n: int = 1_000_000) -> None:
    """On as many rows as D4RL has, in single precision, with columns whose mean is far from their spread."""
    table = h.Table("normalisation", "both in single precision")
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((n, 3)) * [1.0, 0.1, 5.0] + [1.25, -3.0, 20.0]).astype(np.float32)
    buffer = utils.ReplayBuffer(3, 1, 1)
    buffer.state, buffer.next_state = x.copy(), x.copy()
    mean, std = buffer.normalize_states()
    ours = Normaliser.of(jnp.asarray(x, jnp.float32))
    exact_mean, exact_std = x.astype(np.float64).mean(0), x.astype(np.float64).std(0) + 1e-3
    for who, m, s in (("ours", np.asarray(ours.mean), np.asarray(ours.std)), ("theirs", mean[0], std[0])):
        table.row(f"{who}: mean, in deviations", float((np.abs(m - exact_mean) / exact_std).max()))
        table.row(f"{who}: deviation, relative", float((np.abs(s - exact_std) / exact_std).max()))


def main() -> None:
    """All cases."""
    check()
    normalisation()


if __name__ == "__main__":
    main()
