"""rlpd.py against ikostrikov/rlpd: `SACLearner.update` with G minibatches, k times; its losses and its tanh-Gaussian.

Theirs needs tensorflow-probability's JAX substrate by its own import, and a plain dictionary for AdamW's mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import rlpd
from benchmarks.studies.parity import harness as h
from common.distributions import TanhNormal
from common.replay import Batch

NAMES = {
    "observation": "observations", "action": "actions", "reward": "rewards", "mask": "masks",
    "next_observation": "next_observations",
}  # fmt: skip
"""Our column -> theirs."""


def modules() -> tuple[Any, Any]:
    """Their learner and their distribution."""
    import tensorflow_probability
    import tensorflow_probability.substrates.jax as substrate

    tensorflow_probability.substrates = h.namespace(jax=substrate)
    return tuple(h.theirs("rlpd", "rlpd.agents.sac.sac_learner", "rlpd.distributions.tanh_transformed"))


learner, distributions = modules()


def actor_tree(p: h.Tree) -> h.Tree:
    """Ours of theirs."""
    hidden = [p["MLP_0"][f"Dense_{i}"] for i in range(len(p["MLP_0"]))]
    return h.network(hidden, p["OutputDenseMean"], p["OutputDenseLogStd"])


def critic_tree(p: h.Tree) -> h.Tree:
    """Ours of theirs."""
    (inner,) = p.values()
    mlp = inner["MLP_0"]
    layers, norms = ([mlp[k] for k in sorted(mlp) if k.startswith(kind)] for kind in ("Dense", "LayerNorm"))
    return h.network(layers, inner["Dense_0"], norms=norms)


def snapshot(agent: Any) -> dict[str, h.Tree]:
    """All of their parameters as ours."""
    return {
        "actor": actor_tree(agent.actor.params),
        "critic": critic_tree(agent.critic.params),
        "target_critic": critic_tree(agent.target_critic.params),
        "temperature": {"params": {"log": agent.temp.params["log_temp"]}},
    }


def their_agent(flags: Mapping[str, Any]) -> Any:
    """Theirs in this precision, LayerNorms away from 1 and 0, and targets away from the critics."""
    import gym.spaces

    boxes = (gym.spaces.Box(-1, 1, (size,), np.float32) for size in (h.OBSERVATION, h.ACTION))
    agent = learner.SACLearner.create(0, *boxes, **flags)
    agent = h.real(agent.replace(rng=None)).replace(rng=jax.random.PRNGKey(0))
    rng = np.random.default_rng(5)

    def jitter(state: Any) -> Any:
        moved = jax.tree.map(lambda x: jnp.asarray(x + 0.02 * rng.standard_normal(x.shape), h.REAL), state.params)
        return state.replace(params=moved)

    return agent.replace(critic=jitter(agent.critic), target_critic=jitter(agent.target_critic))


def our_agent(config: rlpd.Config, trees: Mapping[str, h.Tree]) -> rlpd.RLPD:
    """Ours with their parameters."""
    agent = rlpd.RLPD.create(config, jax.random.key(0), h.example(), None)
    return agent.replace(**{part: h.fresh(getattr(agent, part), tree) for part, tree in trees.items()})


def check(
    name: str,
    preset: Mapping[str, Any],
    flags: Mapping[str, Any],
    utd: int,
    updates: int = 5,
    width: int = 64,
    size: int = 16,
    differs: str = "",
) -> None:
    """Updates of a preset; `flags` are what it is called by them."""
    table = h.Table(name, differs)
    values = {k: v for k, v in preset.items() if k in rlpd.Config.__dataclass_fields__}
    hidden = (width,) * len(values.get("hidden", (256, 256)))
    config = rlpd.Config(**(values | {"utd": utd, "hidden": hidden}))
    if config.weight_decay:
        learner.flax.core.FrozenDict = dict  # the mask must have the parameters' type, which is dict today
    theirs = their_agent({**flags, "hidden_dims": hidden})
    start = snapshot(theirs)
    ours = our_agent(config, start)
    table.scalar("target entropy", config.target_entropy_per_action * h.ACTION, theirs.target_entropy)
    data = h.batches(utd * updates, size)
    steps = [data[u * utd : (u + 1) * utd] for u in range(updates)]

    def trained(agent: Any) -> Iterator[tuple[dict[str, h.Tree], Any]]:
        for step in steps:
            rows = {NAMES[n]: jnp.concatenate([jnp.asarray(d[n]) for d in step]) for n in NAMES}
            agent, info = agent.update(rows, utd)
            yield snapshot(agent), info

    draws = h.Draws()
    with h.fixed(draws):
        params, infos = zip(*trained(theirs), strict=True)
    with h.fixed(draws):
        mine, metrics = h.followed(ours, [Batch(**h.stacked(step)) for step in steps], start)
    for key in ("actor_loss", "entropy", "temperature"):
        table.scalar(f"{key} (1st update)", metrics[0][key], infos[0][key])
    table.changes(mine, params, start, at=sorted({1, updates}))


def losses() -> None:
    """The critics' loss on one minibatch, at full size."""
    table = h.Table("critic loss")
    theirs = their_agent({"num_qs": 10, "num_min_qs": 2, "critic_layer_norm": True})
    ours = our_agent(rlpd.Config(), snapshot(theirs))
    (data,) = h.batches(1, 256)
    draws = h.Draws()
    with h.fixed(draws):
        _, info = theirs.update_critic({NAMES[n]: jnp.asarray(data[n]) for n in NAMES})
    with h.fixed(draws):
        _, mine = ours.update_critic(Batch(**{n: jnp.asarray(data[n]) for n in NAMES}), jax.random.key(0))
    table.scalar("critic_loss", mine["critic_loss"], info["critic_loss"])
    table.scalar("q", mine["q"], info["q"])


def distribution() -> None:
    """The tanh-Gaussian near zero and far into saturation: samples, their density, the mode."""
    table = h.Table("distribution")
    rng = np.random.default_rng(0)
    for label, scale in (("|mean| ~ 1", 1.0), ("|mean| ~ 10", 10.0)):
        mean, log_std = (jnp.asarray(rng.standard_normal((1000, 3)) * s, h.REAL) for s in (scale, 0.5))
        with h.fixed(h.Draws()):
            normal = distributions.tfd.MultivariateNormalDiag(mean, jnp.exp(log_std))
            their = distributions.TanhTransformedDistribution(normal)
            sample = their.sample(seed=jax.random.key(0))
            density = their.log_prob(sample)
        with h.fixed(h.Draws()):
            ours = TanhNormal(mean, log_std)
            x, d = ours.sample_and_log_prob(jax.random.key(0))
        table.row(f"sample, {label}, absolute", float(jnp.abs(x - sample).max()))
        table.row(f"mode, {label}, absolute", float(jnp.abs(ours.mode() - their.mode()).max()))
        # Of a saturated action theirs inverts tanh where 1 - |a| has few digits left.
        table.row(f"log density, {label}, median, absolute", float(jnp.median(jnp.abs(d - density))))


def main() -> None:
    """All cases."""
    losses()
    distribution()
    presets = rlpd.PRESETS
    flags = {"num_qs": 10, "num_min_qs": 2, "critic_layer_norm": True}
    droq = {"num_qs": 2, "critic_layer_norm": True, "critic_dropout_rate": 0.1}
    decay, entropy = {"weight_decay": 0.01}, {"backup_entropy": False}
    check("locomotion", presets["locomotion"], flags, 4)
    check("antmaze", presets["antmaze"], flags | entropy | {"num_min_qs": 1}, 2)
    check("adroit", presets["adroit-binary"], flags | entropy, 2)
    check("sac", presets["sac"], {}, 1)
    check("droq", presets["droq"] | {"dropout": 0.1}, droq, 2)
    check("locomotion, full size", presets["locomotion"], flags, 4, updates=1, width=256, size=256)
    check("weight decay", presets["sac"] | decay, {"critic_weight_decay": 0.01}, 2)
    differs = "theirs decays LayerNorm's scales, too"
    check("weight decay, LayerNorm", decay, flags | {"critic_weight_decay": 0.01}, 2, differs=differs)


if __name__ == "__main__":
    main()
