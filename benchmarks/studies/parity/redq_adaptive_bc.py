"""redq_adaptive_bc.py against zhaoyi11/adaptive_bc: `REDQ_BC.train`, k times; and the rule of main.py for alpha."""

from __future__ import annotations

import ast

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import redq_adaptive_bc
from benchmarks.studies.parity import harness as h
from common.replay import Batch

torch = h.pytorch()
h.stub("gym", "d4rl")
theirs = h.theirs("adaptive_bc", "redq_bc")


def critic_tree(net: torch.nn.Module) -> h.Tree:
    """Ours of theirs."""
    return h.network([h.linear(net.nets[0]), h.linear(net.nets[2])], h.linear(net.nets[4]))


def check(updates: int = 6, size: int = 128) -> None:
    """Updates with the settings of their code: one per environment step, and three, so that the delay runs across."""
    config = redq_adaptive_bc.Config(**redq_adaptive_bc.PRESETS["authors-code"])
    policy = theirs.REDQ_BC(h.OBSERVATION, h.ACTION, 1.0, alpha=0.5)
    policy.pretrain = False
    nets = {
        "actor": policy.actor, "target_actor": policy.actor_target, "critic": policy.critic,
        "target_critic": policy.critic_target,
    }  # fmt: skip
    h.jitter_torch([policy.actor_target, policy.critic_target])

    def snapshot() -> dict[str, h.Tree]:
        return {part: (h.three_layers if "actor" in part else critic_tree)(net) for part, net in nets.items()}

    start = snapshot()
    ours = redq_adaptive_bc.REDQAdaptiveBC.create(config, jax.random.key(0), h.example(), None)
    ours = ours.replace(
        alpha=jnp.asarray(0.5, h.REAL), **{part: h.fresh(getattr(ours, part), tree) for part, tree in start.items()}
    )
    data = h.batches(updates, size)
    draws, infos, params = h.Draws(), [], []
    with h.fixed(draws):
        for d in data:
            t = {k: torch.as_tensor(v) for k, v in d.items()}
            rows = t["observation"], t["action"], t["next_observation"], t["reward"][:, None], t["mask"][:, None]
            infos.append(policy.train(rows))
            params.append(snapshot())
    with h.fixed(draws):
        mine, metrics = h.followed(ours, [Batch(**h.stacked([d])) for d in data], start)
    table = h.Table("one update per step")
    for k in (1, 2, 5):
        table.scalar(f"critic_loss ({k})", metrics[k - 1]["critic_loss"], infos[k - 1]["critic_loss"])
    table.changes(mine, params, start, at=(1, 2, 5))
    with h.fixed(draws):
        steps = [Batch(**h.stacked(data[i : i + 3])) for i in range(0, updates, 3)]
        mine, _ = h.followed(ours, steps, start)
    table = h.Table("three updates per step")
    for part, begin in start.items():
        table.change(f"{part} after {updates} updates", mine[-1][part], params[-1][part], begin)


def rule() -> None:
    """Their assignments to alpha and last_R, taken out of main.py as they stand and run on a random history."""
    table = h.Table("alpha")
    source = (h.checkout("adaptive_bc") / "main.py").read_text()
    block = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "done" and "policy.alpha" in ast.unparse(node)
    )
    steps = [n for n in block.body if "policy.alpha" in ast.unparse(n) or ast.unparse(n).startswith("last_R")]
    code = compile(ast.Module(steps, []), "main.py", "exec")
    rng = np.random.default_rng(0)
    presets = redq_adaptive_bc.PRESETS
    for preset, gains in (("authors-code", (3e-5, 1e-4, 0.4)), ("authors-code/pen-expert", (6e-4, 2e-3, 8.0))):
        config = redq_adaptive_bc.Config(**(presets["authors-code"] | presets[preset]))
        first = 0.35
        state = {
            "last_R": first, "target_R": 1.05, "max": max, "min": min, "policy": h.namespace(alpha=gains[2]),
            "args": h.namespace(Kp=gains[0], Kd=gains[1], alpha_finetune=gains[2]),
        }  # fmt: skip
        alpha, last = (jnp.asarray(x, h.REAL) for x in (config.alpha_online, first))
        ours = redq_adaptive_bc.REDQAdaptiveBC(config, alpha, last, None, None, None, None, None)
        alphas, lasts = [], []
        for episode in range(200):  # poor ones, so that alpha falls to 0, then good ones that fall back
            low, high = (-0.1, 0.4) if episode < 100 else (0.2, 1.5)
            score, length = rng.uniform(low, high), int(rng.integers(50, 1000))
            assigned: dict[str, float] = {}
            exec(code, state | {"current_R": score, "episode_timesteps": length}, assigned)
            state |= assigned
            ours = ours.adapted(jnp.asarray(score, h.REAL), jnp.asarray(length))
            alphas.append((float(ours.alpha), state["policy"].alpha))
            lasts.append((float(ours.last_return), state["last_R"]))
        a, b = np.array(alphas), np.array(lasts)
        span = f"alpha went from {a[:, 1].min():.3g} to {a[:, 1].max():.3g}"
        table.row(f"{preset}: alpha, 200 episodes, absolute", float(np.abs(a[:, 0] - a[:, 1]).max()), span)
        table.row(f"{preset}: last_R, absolute", float(np.abs(b[:, 0] - b[:, 1]).max()))


def main() -> None:
    """All cases."""
    rule()
    check()


if __name__ == "__main__":
    main()
