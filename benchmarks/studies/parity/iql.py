"""iql.py against ikostrikov/implicit_q_learning: `Learner.update`, k times; its actions, cosine and reward scale.

Theirs needs frozen parameter dictionaries, `jax.tree_multimap`, and a jit without an argument name that does not exist.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from algorithms import iql
from benchmarks.studies.parity import harness as h
from common.datasets import Dataset, transforms
from common.replay import Batch

SIZE, WIDTH = 64, 64


@contextlib.contextmanager
def as_then() -> Iterator[None]:
    """JAX and Flax as they were when theirs was written."""
    flax.config.update("flax_return_frozendict", True)
    jax.tree_multimap = jax.tree.map
    with h.mock.patch.object(jax, "jit", lambda function, **_: function):
        yield
    flax.config.update("flax_return_frozendict", False)


def modules() -> tuple[Any, Any, Any]:
    """Their learner, batch and training script."""
    h.stub("d4rl", "tensorboardX", "absl", "ml_collections", "tqdm")
    sys.modules["tqdm"].tqdm = lambda x, **_: x
    with as_then():
        return tuple(h.theirs("implicit_q_learning", "learner", "common", "train_offline"))


learner, common, train_offline = modules()


def layers(mlp: h.Tree) -> list[h.Tree]:
    """In order."""
    return [mlp[f"Dense_{i}"] for i in range(len(mlp))]


def critic_tree(p: h.Tree) -> h.Tree:
    """Ours of theirs."""
    trees = []
    for i in range(2):
        *hidden, last = layers(p[f"Critic_{i}"]["MLP_0"])
        trees.append(h.network(hidden, last))
    return h.stack_trees(*trees)


def value_tree(p: h.Tree) -> h.Tree:
    """Ours of theirs."""
    *hidden, last = layers(p["MLP_0"])
    return h.network(hidden, last)


def actor_tree(p: h.Tree) -> h.Tree:
    """Ours of theirs."""
    tree = h.network(layers(p["MLP_0"]), p["Dense_0"])
    return {"params": tree["params"] | {"log_std": p["log_stds"]}}


TREES = {"actor": actor_tree, "critic": critic_tree, "value": value_tree, "target_critic": critic_tree}


def snapshot(agent: Any) -> dict[str, h.Tree]:
    """All of their parameters as ours."""
    return {part: tree(flax.core.unfreeze(getattr(agent, part).params)) for part, tree in TREES.items()}


def their_agent(flags: Mapping[str, Any], steps: int) -> Any:
    """Theirs, all parameters moved a little."""
    shapes = (np.zeros((1, size), h.REAL) for size in (h.OBSERVATION, h.ACTION))
    with as_then():
        agent = learner.Learner(0, *shapes, max_steps=steps, hidden_dims=(WIDTH, WIDTH), **flags)
    rng = np.random.default_rng(5)
    for part in ("actor", "critic", "value", "target_critic"):
        model = getattr(agent, part)
        params = jax.tree.map(
            lambda x: jnp.asarray(x + 0.02 * rng.standard_normal(x.shape), h.REAL), flax.core.unfreeze(model.params)
        )
        params = flax.core.freeze(params)
        state = None if model.tx is None else model.tx.init(params)
        setattr(agent, part, model.replace(params=params, opt_state=state))
    return agent


def check(
    name: str,
    preset: Mapping[str, Any],
    flags: Mapping[str, Any],
    updates: int = 5,
    steps: int = 10,
    doubled: bool = True,
    differs: str = "",
) -> None:
    """`steps`: the length of the offline phase, short so that the cosine shows.

    `doubled`: our critics' loss, a mean of both, as a sum, which is theirs, so that Adam's epsilon does not tell.
    """
    table = h.Table(name, differs)
    values = {k: v for k, v in preset.items() if k in iql.Config.__dataclass_fields__}
    values |= {"offline_steps": steps} if flags.get("opt_decay_schedule", "cosine") else {"online_steps": 1}
    config = iql.Config(**(values | {"hidden": (WIDTH, WIDTH)}))
    theirs = their_agent(flags, steps)
    start = snapshot(theirs)
    ours = iql.IQL.create(config, jax.random.key(0), h.example(), h.namespace(reward_scale=jnp.ones((), h.REAL)))
    ours = ours.replace(**{part: h.fresh(getattr(ours, part), tree) for part, tree in start.items()})
    data = h.batches(updates, SIZE)
    draws, params, infos = h.Draws(), [], []
    with h.fixed(draws):
        for d in data:
            infos.append(theirs.update(common.Batch(*(jnp.asarray(d[n]) for n in h.NAMES))))
            params.append(snapshot(theirs))
    own = iql.IQL.critic_loss

    def twice(*arguments: Any) -> tuple[jax.Array, Any]:
        loss, metrics = own(*arguments)
        return (2 if doubled else 1) * loss, metrics

    with h.fixed(draws), h.mock.patch.object(iql.IQL, "critic_loss", twice):
        mine, metrics = h.followed(ours, [Batch(**h.stacked([d])) for d in data], start)
    a, b = infos[0], metrics[0]
    table.scalar("value_loss", b["value_loss"], a["value_loss"])
    table.scalar("value", b["value"], a["v"])
    table.scalar("actor_loss", b["actor_loss"], a["actor_loss"])
    table.scalar("advantage", b["advantage"], a["adv"].mean())
    table.scalar("critic_loss, ours doubled", 2 * b["critic_loss"], a["critic_loss"])
    table.changes(mine, params, start, at=(1, updates))
    actions(table, ours, their_agent(flags, steps), jnp.asarray(data[0]["observation"]))


def actions(table: h.Table, ours: iql.IQL, theirs: Any, observation: jax.Array) -> None:
    """Explored and evaluated ones, of fresh agents."""
    draws = h.Draws(3)
    with h.fixed(draws):
        sample = theirs.sample_actions(observation)
    with h.fixed(draws):
        mine = ours.explore(observation, jax.random.key(0))
    table.row("explored action, absolute", float(np.abs(sample - np.asarray(mine)).max()))
    with h.fixed(draws):
        mode = theirs.sample_actions(observation, temperature=0.0)
    table.row("evaluated action, absolute", float(np.abs(mode - np.asarray(ours.act(observation))).max()))


def schedule() -> None:
    """The actor's step size over a thousand steps."""
    config = iql.Config(offline_steps=1000)
    agent = iql.IQL(config, None, None, None, None, None)
    theirs = optax.cosine_decay_schedule(config.learning_rate, 1000)
    steps = (1, 2, 10, 500, 999, 1000)
    errors = [abs(float(agent.actor_learning_rate(jnp.asarray(s)) - theirs(s - 1))) for s in steps]
    h.Table("schedule").row("cosine, of the first step size", max(errors) / config.learning_rate)


def reward_scale() -> None:
    """`normalize` of their train_offline.py against ours, on episodes of all kinds of ends."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 30)
    n, ends = int(lengths.sum()), np.cumsum(lengths) - 1
    terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
    terminated[ends[::2]], truncated[ends[1::2]] = True, True
    observation = rng.standard_normal((n, h.OBSERVATION)).astype(np.float32)
    following = np.roll(observation, -1, axis=0)
    following[ends] = rng.standard_normal((len(ends), h.OBSERVATION))
    reward = rng.standard_normal(n).astype(np.float32)
    theirs = h.namespace(
        observations=observation, actions=observation, rewards=reward.copy(), masks=1 - terminated,
        dones_float=(terminated | truncated).astype(np.float32), next_observations=following,
    )  # fmt: skip
    train_offline.normalize(theirs)
    ours = Dataset(observation, observation, reward, terminated, truncated, following, terminated, "test")
    scaled = reward * transforms.return_range_scale(ours, reward)
    h.Table("reward scale").row("rewards", float(np.abs(scaled - theirs.rewards).max() / np.abs(theirs.rewards).max()))


def main() -> None:
    """All cases."""
    schedule()
    reward_scale()
    locomotion, maze = {"expectile": 0.7, "temperature": 3.0}, {"expectile": 0.9, "temperature": 10.0}
    adroit = {"expectile": 0.7, "temperature": 0.5, "dropout_rate": 0.1}
    check("locomotion", iql.PRESETS["locomotion"], locomotion)
    check("antmaze", iql.PRESETS["antmaze"], maze)
    check("antmaze, fine-tuning", iql.PRESETS["antmaze"], maze | {"opt_decay_schedule": None})
    check("adroit, actor dropout", iql.PRESETS["adroit"], adroit)
    differs = "the critics' loss is a mean, theirs a sum"
    check("locomotion, as it is", iql.PRESETS["locomotion"], locomotion, doubled=False, differs=differs)


if __name__ == "__main__":
    main()
