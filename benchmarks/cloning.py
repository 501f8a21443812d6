"""Are the data that we make about as learnable as D4RL's? Plain behaviour cloning on each AntMaze recipe.

    python -m benchmarks.cloning [--tasks antmaze-umaze ...] [--num-seeds 3] [--updates 100000]

A deterministic actor (two layers of 256) regresses the actions; success of its final parameters stands beside what
CORL published for cloning on D4RL's own data (its README: umaze 55, umaze-diverse 47, the others about 0). Results go
to benchmarks/results/cloning_TASK.{csv,json}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

from benchmarks.results import publish
from common import datasets, environments, recipes, tasks
from common.datasets import cards
from common.errors import Refused, exiting
from common.evaluation import Evaluator
from common.networks import MLP, Dense, Network
from common.runs import making

PUBLISHED = {"antmaze-umaze": 55.25, "antmaze-umaze-diverse": 47.25, "antmaze-medium-diverse": 0.75}
"""Task -> success in percent of cloning on D4RL's -v2 data, final score (CORL's README); elsewhere 0."""
RECIPES = tuple(name for name in recipes.names() if name.startswith("antmaze"))
AT_ONCE = 1000
"""Gradient steps per call."""


@dataclass(frozen=True)
class Cloning:
    """What is cloned and for how long."""

    tasks: tuple[str, ...] = RECIPES
    """AntMaze tasks."""
    num_seeds: int = 3
    """Actors per task, trained one after another."""
    updates: int = 100_000
    """Gradient steps with 256 rows each."""
    eval_episodes: int = 100
    """Episodes of each actor's evaluation."""
    size: int | None = None
    """Transitions to make, instead of the recipe's own number."""

    def problem(self) -> str | None:
        """What is wrong with these values, in one line."""
        unknown = [name for name in self.tasks if name not in RECIPES]
        if unknown:
            return f"--tasks {unknown[0]}: there are {', '.join(RECIPES)}"
        if min(self.num_seeds, self.eval_episodes) < 1:
            return "--num-seeds and --eval-episodes must be at least 1"
        if self.updates < 1 or self.updates % AT_ONCE:
            return f"--updates must be a multiple of {AT_ONCE}, not {self.updates}"
        return None


class Actor(nn.Module):
    """A deterministic policy."""

    action_size: int

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        """Observation [..., o] to an action [..., a]."""
        return jnp.tanh(Dense(self.action_size)(MLP((256, 256))(observation)))


def train(observation: np.ndarray, action: np.ndarray, seed: int, updates: int) -> Network:
    """An actor after `updates` steps of Adam on the squared error, rows drawn anew for each."""
    rows, targets = jnp.asarray(observation), jnp.asarray(action)
    create, draw = jax.random.split(jax.random.key(seed))
    actor = Network.create(Actor(action.shape[1]), create, rows[0])

    def update(actor: Network, key: jax.Array) -> tuple[Network, jax.Array]:
        index = jax.random.randint(key, (256,), 0, len(rows))
        loss, gradients = jax.value_and_grad(
            lambda params: optax.squared_error(actor(rows[index], params=params), targets[index]).mean()
        )(actor.params)
        return actor.descend(gradients, 3e-4), loss

    @jax.jit
    def many(actor: Network, key: jax.Array) -> tuple[Network, jax.Array]:
        actor, losses = jax.lax.scan(update, actor, jax.random.split(key, AT_ONCE))
        return actor, losses.mean()

    for key in jax.random.split(draw, updates // AT_ONCE):
        actor, _ = many(actor, key)
    return actor


def main(options: Cloning) -> None:
    """Clone, evaluate, publish."""
    if problem := options.problem():
        raise Refused(problem)
    console = Console()
    for name in options.tasks:
        rows: list[dict[str, Any]] = []
        task = tasks.find(name)
        with making(console) as progress:
            identifier = recipes.make(name, options.size, progress=progress)
            data = datasets.load(task, f"minari:{identifier}")
        card = cards.card(data, task)
        for seed in range(options.num_seeds):
            actor = train(data.observation, data.action, seed, options.updates)
            evaluator = Evaluator(lambda task=task, data=data: environments.make(task, data), 1, options.eval_episodes)
            act = jax.jit(lambda observation, actor=actor: actor(observation))
            (outcome,) = evaluator(act, [seed], options.updates)
            evaluator.close()
            row = {
                "task": name,
                "source": data.source,
                "transitions": len(data),
                "fingerprint": card["fingerprint"],
                "seed": seed,
                "updates": options.updates,
                "episodes": options.eval_episodes,
                "success": 100 * float(outcome.success.mean()),
                "success_on_d4rl": PUBLISHED.get(name, 0.0),
                "data_success_episodes": card["success_episodes"],
            }
            rows.append(row)
            console.print(f"{name} seed {seed}: {row['success']:.0f} % (D4RL's data: {row['success_on_d4rl']:.0f} %)")
        publish(f"cloning_{name}", rows, "benchmarks.cloning")


if __name__ == "__main__":
    exiting("cloning", lambda: main(tyro.cli(Cloning, description=__doc__)))
