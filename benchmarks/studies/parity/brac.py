"""BRAC against rail-berkeley/d4rl_evaluations, which holds the authors' code: cloning, and both forms of the agent."""

import contextlib
import sys
import types
from unittest import mock

import jax.numpy as jnp
import numpy as np
import tensorflow_probability as tfp

from benchmarks.studies.parity import _tensorflow_peers as peers
from benchmarks.studies.parity import harness as h

tf = peers.tf
sys.modules["gin"] = types.SimpleNamespace(configurable=lambda x: x)
h.stub("tf_agents.specs")


def affine(shift: object, scale: object) -> object:
    """A bijector that TensorFlow Probability has no more."""
    return tfp.bijectors.Chain([tfp.bijectors.Shift(shift), tfp.bijectors.Scale(scale)])


def squashed(distribution: object, bijector: object, event_shape: list, batch_shape: list) -> object:
    """A transformed distribution with arguments that TensorFlow Probability has no more."""
    zeros = tf.zeros((*batch_shape, *event_shape), tf.float64)
    base = tfp.distributions.Independent(tfp.distributions.Normal(zeros, tf.ones_like(zeros)), 1)
    return TRANSFORMED(base, bijector)


TRANSFORMED = tfp.distributions.TransformedDistribution
tfp.bijectors.AffineScalar = affine

# TensorFlow asks for a gradient for each of the three inputs today.
peers.in_double(
    "d4rl_evaluations/brac/behavior_regularized_offline_rl",
    {"(1.0 - if_y_pos) * if_x_l_high) * dy": "(1.0 - if_y_pos) * if_x_l_high) * dy, None, None"},
)
from behavior_regularized_offline_rl.brac import bc_agent, brac_primal_agent, networks  # noqa: E402

from algorithms import brac  # noqa: E402
from common.replay import Batch  # noqa: E402

networks.tfd = types.SimpleNamespace(Normal=lambda **_: None, TransformedDistribution=squashed)
brac_primal_agent.Agent._load_behavior_policy = lambda self: None
OBS, SIZE, WIDE, ACTOR = 11, 64, (30, 30), (20, 20)


def theirs(data: dict) -> dict:
    """A minibatch as theirs."""
    names = {"s1": "observation", "s2": "next_observation", "r": "reward", "dsc": "mask", "a1": "action"}
    return {k: tf.constant(data[v]) for k, v in names.items()} | {"a2": tf.constant(data["action"])}


def ours_of(data: dict) -> Batch:
    """The same as ours."""
    return Batch(*(jnp.asarray(data[k]) for k in ("observation", "action", "reward", "mask", "next_observation")))


def build(module: types.ModuleType, widths: tuple, data: dict, **values: object) -> object:
    """Their agent, its Adam replaced."""
    actions = peers.spec(h.ACTION)
    with mock.patch.object(module.Agent, "_get_train_batch", return_value=theirs(data)):
        return module.Agent(
            observation_spec=peers.spec(OBS), action_spec=actions, modules=module.get_modules(widths, actions),
            optimizers=(("adam", 1e-3),), **values,
        )  # fmt: skip


def check(name: str, ours: dict, warm_start: int = -1, **values: object) -> None:
    """Losses, and five updates; ours warms up one step less for the same number."""
    table, draws, data = h.Table(f"brac/{name}"), h.Draws(), h.batches(5, SIZE, OBS, h.ACTION)
    with peers.drawn(draws):
        agent = build(brac_primal_agent, ((WIDE, ACTOR), 2), data[0], warm_start=warm_start, **values)
    module = agent._agent_module
    policies = {"actor": module.p_net, "clone": module.b_net}
    every = [*module.q_source_variables, *module.q_target_variables]
    every += [x for net in policies.values() for x in net.trainable_variables]
    peers.jitter(every, 5)
    agent._q_optimizer, agent._p_optimizer, agent._a_optimizer = map(peers.Adam, (1e-3, 3e-4, 1e-2))

    def trees() -> dict:
        nets = {k: peers.tree(net.trainable_variables, 2) for k, net in policies.items()}
        for k, index in (("critic", 0), ("target_critic", 1)):
            nets[k] = h.stack_trees(*(peers.tree(pair[index].trainable_variables) for pair in module.q_nets))
        return nets | {"weight": {"params": {"value": np.array(module._alpha_var)}}}

    start = trees()
    c = brac.Config(
        hidden=WIDE, actor_hidden=ACTOR, weight_learning_rate=1e-2, warm_start=warm_start + 1,
        weight=float(module._alpha_var), **ours,
    )  # fmt: skip
    rows = [ours_of(x) for x in data]
    mine = brac.BRAC.create(c, h.jax.random.key(0), h.jax.tree.map(lambda x: x[0], rows[0]), rows[0])
    mine = mine.replace(phase="offline", **{k: h.fresh(getattr(mine, k), x) for k, x in start.items()})

    key = h.jax.random.key(0)
    with h.fixed(draws):
        got = [mine.critic_loss(mine.critic.params, rows[0], key)[0]]
        got += [mine.actor_loss(mine.actor.params, rows[0], key, jnp.float64(warm_start < 0))[0]]
    # For KL they draw from the clone, too, and do nothing with it.
    nothing = mock.patch.object(
        agent._b_fn, "sample_n", lambda s, n: (None, tf.zeros((n, SIZE, h.ACTION), tf.float64), None)
    )
    quiet = contextlib.nullcontext() if c.divergence == "mmd" else nothing
    with peers.drawn(draws), quiet:
        expected = agent._build_q_loss(theirs(data[0]))[0], agent._build_p_loss(theirs(data[0]))[0]
    for what, a, b in zip(("critic loss", "actor loss"), got, expected, strict=True):
        table.scalar(what, a, b)

    snapshots = []
    with peers.drawn(draws), quiet:
        for x in data:
            agent._optimize_step(theirs(x))
            agent._global_step.assign_add(1)
            snapshots.append(trees())
    with h.fixed(draws):
        for number, x in enumerate(rows, 1):
            mine, _ = mine.update_once(x, key, jnp.int32(number))
            if number in (1, 5):
                for k in ("actor", "critic", "target_critic", *(["weight"] if c.learned_weight else [])):
                    table.change(f"{k} after {number}", getattr(mine, k).params, snapshots[number - 1][k], start[k])


def cloning() -> None:
    """Losses, and five updates of the clone."""
    table, draws, data = h.Table("brac/cloning"), h.Draws(), h.batches(5, SIZE, OBS, h.ACTION)
    for x in data:
        x["action"][:9] = np.sign(x["action"][:9])
    with peers.drawn(draws):
        agent = build(bc_agent, (ACTOR,), data[0])
    net, number = agent._agent_module.p_net, agent._agent_module._alpha_entropy_var
    peers.jitter(net.trainable_variables, 5)
    agent._p_optimizer, agent._ae_optimizer = peers.Adam(5e-4), peers.Adam(5e-4)

    def trees() -> dict:
        return {"clone": peers.tree(net.trainable_variables, 2), "temperature": {"params": {"value": np.array(number)}}}

    start = trees()
    rows = [ours_of(x) for x in data]
    c = brac.Config(hidden=WIDE, actor_hidden=ACTOR)
    key = h.jax.random.key(0)
    mine = brac.BRAC.create(c, key, h.jax.tree.map(lambda x: x[0], rows[0]), rows[0])
    mine = mine.replace(phase="cloning", **{k: h.fresh(getattr(mine, k), x) for k, x in start.items()})
    with h.fixed(draws):
        loss = mine.cloning_loss(mine.clone.params, rows[0], key)[0]
    with peers.drawn(draws):
        table.scalar("loss", loss, agent._build_p_loss(theirs(data[0]))[0])
    snapshots = []
    with peers.drawn(draws):
        for x in data:
            agent._optimize_step(theirs(x))
            snapshots.append(trees())
    with h.fixed(draws):
        for count, x in enumerate(rows, 1):
            mine, _ = mine.update_once(x, key, jnp.int32(count))
            if count in (1, 5):
                for k in start:
                    table.change(f"{k} after {count}", getattr(mine, k).params, snapshots[count - 1][k], start[k])


if __name__ == "__main__":
    cloning()
    check("v, kl", {}, alpha=0.1, value_penalty=True)
    check("p, kl, entropy and mixed critics", {"value_penalty": False, "entropy_weight": 0.2, "pessimism": 0.75},
          alpha=1.0, value_penalty=False, alpha_entropy=0.2, ensemble_q_lambda=0.75)  # fmt: skip
    check("v, mmd, learned weight, warm start of three steps", {"divergence": "mmd", "learned_weight": True},
          alpha=0.1, value_penalty=True, divergence_name="mmd", train_alpha=True, warm_start=2)  # fmt: skip
    check("v, kl, learned weight at its bound", {"learned_weight": True, "largest_weight": 1.0},
          alpha=1.0, alpha_max=1.0, value_penalty=True, train_alpha=True)  # fmt: skip
