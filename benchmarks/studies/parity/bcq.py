"""bcq.py against sfujim/BCQ, continuous_BCQ: `BCQ.train`, k times; and the action of an evaluation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import bcq
from benchmarks.studies.parity import harness as h
from common.replay import Batch

torch = h.pytorch()
h.stub("gym", "d4rl")


def vae_tree(net: torch.nn.Module) -> h.Tree:
    """Ours of theirs; also of BEAR's."""
    layers = {name: h.linear(getattr(net, name)) for name in ("e1", "e2", "mean", "log_std", "d1", "d2", "d3")}
    encoder, decoder = ({"Dense_0": layers[f"{x}1"], "Dense_1": layers[f"{x}2"]} for x in "ed")
    heads = {"mean": layers["mean"], "log_std": layers["log_std"], "action": layers["d3"]}
    return {"params": {"encoder": encoder, "decoder": decoder} | heads}


def check(updates: int = 5, size: int = 100) -> None:
    """Updates with the defaults of both."""
    theirs, table = h.theirs("BCQ/continuous_BCQ", "BCQ"), h.Table("defaults")
    policy = theirs.BCQ(h.OBSERVATION, h.ACTION, 1.0, torch.device("cpu"))
    nets = {
        "vae": policy.vae, "actor": policy.actor, "target_actor": policy.actor_target, "critic": policy.critic,
        "target_critic": policy.critic_target,
    }  # fmt: skip
    h.jitter_torch(list(nets.values()))

    def snapshot() -> dict[str, h.Tree]:
        kinds = {"vae": vae_tree, "actor": h.three_layers, "critic": h.both_critics}
        return {part: kinds[part.removeprefix("target_")](net) for part, net in nets.items()}

    start = snapshot()
    ours = bcq.BCQ.create(bcq.Config(), jax.random.key(0), h.example(), None)
    ours = ours.replace(**{part: h.fresh(getattr(ours, part), tree) for part, tree in start.items()})
    data = h.batches(updates, size)
    losses, params, real_mse = [], [], theirs.F.mse_loss

    def spy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        losses.append(float(real_mse(a, b).detach()))
        return real_mse(a, b)

    draws = h.Draws()

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.as_tensor(draws.normal(shape), dtype=torch.get_default_dtype())

    randn = h.mock.patch.object(torch, "randn", normal)
    floats = h.mock.patch.object(torch, "FloatTensor", lambda x: torch.as_tensor(x, dtype=torch.get_default_dtype()))
    observation = data[0]["observation"][0]
    with h.fixed(draws), randn, floats:
        their_action = policy.select_action(observation)
    with h.fixed(draws):
        chosen = ours.act(jnp.asarray(observation))
    table.row("an evaluation's action", float(np.abs(np.asarray(chosen) - their_action).max()))
    with h.fixed(draws), randn, h.mock.patch.object(theirs.F, "mse_loss", spy):
        for d in data:
            t = {k: torch.as_tensor(v) for k, v in d.items()}
            rows = t["observation"], t["action"], t["next_observation"], t["reward"][:, None], t["mask"][:, None]
            policy.train(h.namespace(sample=lambda _, rows=rows: rows), 1, size)
            params.append(snapshot())
    with h.fixed(draws):
        mine, metrics = h.followed(ours, [Batch(**h.stacked([d])) for d in data], start)
    table.scalar("reconstruction (1st update)", metrics[0]["reconstruction"], losses[0])
    table.scalar("critic_loss (1st update)", metrics[0]["critic_loss"], losses[1] + losses[2])
    table.scalar("critic_loss (last update)", metrics[-1]["critic_loss"], losses[-2] + losses[-1])
    table.changes(mine, params, start, at=(1, updates))


def main() -> None:
    """All cases."""
    check()


if __name__ == "__main__":
    main()
