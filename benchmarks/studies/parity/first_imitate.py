"""td3_bc.py against AdamJelley/EfficientOfflineRL: imitation, training, the mixed losses for Adroit, returns."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import td3_bc
from benchmarks.studies.parity import harness as h
from common.agent import scaled
from common.datasets import Dataset, transforms

torch = h.pytorch()
h.stub("gym", "d4rl", "pandas", "pyrallis", "wandb", "utils.video_recorder")
peer = h.theirs("EfficientOfflineRL/algorithms", "td3_bc")
NORM = "theirs is without parameters and with an epsilon of 1e-5"


def tree(net: torch.nn.Module, norm: bool) -> h.Tree:
    """Ours of theirs."""
    linears = [h.linear(m) for m in net.net if isinstance(m, torch.nn.Linear)]
    made = h.network(linears[:-1], linears[-1])
    return h.with_norms(made) if norm else made


def check(
    name: str,
    phase: str,
    config: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    norm: bool = False,
    alike: bool = True,
    updates: int = 5,
    differs: str = "",
) -> None:
    """Updates of a phase; `alike`: our LayerNorms with their epsilon and without parameters."""
    table = h.Table(name, differs)
    torch.manual_seed(0)
    actor = peer.Actor(h.OBSERVATION, h.ACTION, 1.0, norm)
    critics = [peer.Critic(h.OBSERVATION, h.ACTION, norm) for _ in range(2)]
    optimisers = [torch.optim.Adam(n.parameters(), lr=3e-4) for n in (actor, *critics)]
    pairs = (x for pair in zip((actor, *critics), optimisers, strict=True) for x in pair)
    off = {"td_component": -1.0, "pretrain_cql_regulariser": -1.0, "cql_regulariser": -1.0}
    trainer = peer.TD3_BC(1.0, *pairs, **(off | dict(flags or {})))
    nets = {
        "actor": [actor], "target_actor": [trainer.actor_target], "critic": critics,
        "target_critic": [trainer.critic_1_target, trainer.critic_2_target],
    }  # fmt: skip
    h.jitter_torch([*nets["target_actor"], *nets["target_critic"]], seed=None)

    def snapshot() -> dict[str, h.Tree]:
        trees = {part: [tree(member, norm) for member in members] for part, members in nets.items()}
        return {part: each[0] if "actor" in part else h.stack_trees(*each) for part, each in trees.items()}

    start = snapshot()
    ours_config = td3_bc.Config(actor_hidden=(256, 256, 256), layer_norm=norm, **(config or {}))
    prior = h.namespace(observation=jnp.zeros((4, h.OBSERVATION)))
    ours = td3_bc.TD3BC.create(ours_config, jax.random.key(0), h.example(), prior)
    ours = ours.replace(
        cloning=jnp.ones((), h.REAL), phase=phase,
        **{part: h.fresh(getattr(ours, part), t) for part, t in start.items()},
    )  # fmt: skip
    data = h.batches(updates, 64)
    draws, params, logs, batches = h.Draws(), [], [], []
    with h.fixed(draws):
        for d in data:
            t = {k: torch.as_tensor(v) for k, v in d.items()}
            rows = [
                t["observation"], t["action"], t["reward"][:, None], t["return_to_go"][:, None],
                t["next_observation"], 1 - t["mask"][:, None],
            ]  # fmt: skip
            logs.append((trainer.pretrain_actorcritic if phase == "imitation" else trainer.train)(rows))
            params.append(snapshot())
            columns = h.stacked([d], (*h.NAMES, "return_to_go"))
            prior = td3_bc.Prior(**columns)
            batches.append(prior if phase == "imitation" else prior.transitions())
    with h.fixed(draws), h.bare_norms(norm and alike):
        mine, metrics = h.followed(ours, batches, start)
    key = "MC_critic_loss" if phase == "imitation" else "critic_loss"
    table.scalar(f"{key} (1st update)", metrics[0]["critic_loss"], logs[0][key])
    number = 0 if phase == "imitation" else 1
    table.scalar(f"actor_loss ({number + 1})", metrics[number]["actor_loss"], logs[number]["actor_loss"])
    table.changes(mine, params, start, at=(1, updates))


def returns() -> None:
    """Their returns to go against ours: terminations, time limits, the end of the file."""
    rng = np.random.default_rng(0)
    for label, cut in (("file ends at a time limit", True), ("file ends at a termination", False)):
        table = h.Table(f"returns, {label}")
        lengths = rng.integers(1, 60, 40)
        n, ends = int(lengths.sum()), np.cumsum(lengths) - 1
        terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
        terminated[ends[::2]], truncated[ends[1::2]] = True, True
        terminated[-1], truncated[-1] = not cut, cut
        reward, nothing = rng.standard_normal(n).astype(np.float32), np.zeros((n, 2))
        theirs = peer.ReplayBuffer(2, 2, 4, 0.99).compute_returns_to_go({
            "observations": nothing, "rewards": reward.astype(np.float64), "terminals": terminated,
            "timeouts": truncated,
        })  # fmt: skip
        data = Dataset(nothing, nothing, reward, terminated, truncated, nothing, terminated, "test")
        ours = transforms.returns_to_go(data, reward, 0.99, continued=True)
        inside, errors = np.arange(n) <= ends[-2], np.abs(ours - theirs) / np.abs(theirs).max()
        table.row("all but the last episode, in single precision", float(errors[inside].max()))
        if not cut:
            table = h.Table(f"returns, {label}, last episode", "theirs has the file's last episode go on for ever")
        table.row("the last episode, in single precision", float(errors[~inside].max()))


def successors() -> None:
    """What their train() makes of next observations, its statements taken out and run: normalised once, or twice?"""
    table = h.Table("next observations", "where they are not stored, theirs normalises them twice")
    rng = np.random.default_rng(0)
    for file in ("td3_bc", "edac"):
        source = (h.checkout("EfficientOfflineRL/algorithms") / f"{file}.py").read_text()
        train = next(n for n in ast.parse(source).body if getattr(n, "name", "") == "train")
        name = "dataset" if file == "td3_bc" else "d4rl_dataset"
        statements = [
            n for n in train.body
            if (f"{name}['observations']" in ast.unparse(n) or "next_observations" in ast.unparse(n))
            and "compute_mean_std" not in ast.unparse(n)
        ]  # fmt: skip
        for label, stored in (("stored (locomotion)", True), ("not stored (human data)", False)):
            x = 3 + 5 * rng.standard_normal((50, 2))
            mean, std = peer.compute_mean_std(x, 1e-3)
            data = {"observations": x.copy()} | ({"next_observations": np.roll(x, -1, axis=0)} if stored else {})
            space = {
                name: data, "np": np, "state_mean": mean, "state_std": std, "print": lambda *_: None,
                "normalize_states": peer.normalize_states,
            }  # fmt: skip
            exec(compile(ast.Module(statements, []), file, "exec"), space)
            once = (np.roll(x, -1, axis=0) - mean) / std
            table.row(f"{file}.py, {label}, absolute", float(np.abs(data["next_observations"] - once).max()))


def signs() -> None:
    """Where C is negative, their gradient of it points up, ours down; else they agree."""
    table = h.Table("sign of C", "where C is negative, theirs pulls it up")
    for label, value in (("C > 0", 2.0), ("C < 0", -2.0)):
        x = torch.tensor(value, requires_grad=True)
        (x / x.detach()).backward()
        table.row(f"{label}: slope theirs, ours", f"{float(x.grad):+.2f}, {float(jax.grad(scaled)(value)):+.2f}")


def main() -> None:
    """All cases."""
    returns()
    signs()
    successors()
    mixed, alpha = {"mixed": True, "conservative": 1.0}, {"alpha": 10.0}
    share, their_share = {"td_share": 0.3, "pretrain_steps": 1}, {"td_component": 0.3}
    check("imitation", "imitation")
    check("imitation, LayerNorm", "imitation", norm=True)
    check("imitation, LayerNorm as it is", "imitation", norm=True, alike=False, differs=NORM)
    check("training, LayerNorm", "offline", alpha, alpha, norm=True)
    check("imitation, mixed", "imitation", mixed, {"pretrain_cql_regulariser": 1.0})
    check("imitation, mixed, td", "imitation", mixed | share, {"pretrain_cql_regulariser": 1.0} | their_share)
    check("training, mixed", "offline", mixed, {"cql_regulariser": 1.0})


if __name__ == "__main__":
    main()
