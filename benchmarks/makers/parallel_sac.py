"""Soft actor-critic beside many simulations at once: it trains the policies that collect the recipes' data.

The agent is that of algorithms/rlpd.py without prior data. Simulations advance on the host, acting by NumPy, while the
device updates the agent on n-step transitions; how many updates go with a step of all of them is chosen for the time a
policy takes on the wall, not for the number of transitions, which a simulation gives away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.rlpd import RLPD, Config
from common.networks import Network, TanhNormalActor
from common.recipes.behaviour import Policy
from common.replay import Batch

Learn = Callable[[RLPD, Batch, jax.Array], tuple[RLPD, dict[str, jax.Array]]]
"""Updates on minibatches [updates, utd, batch, ...]."""


@dataclass(frozen=True)
class Pace:
    """How much is simulated and learnt at a time."""

    simulations: int
    """Side by side."""
    discount: float
    """Per step of one simulation."""
    steps_ahead: int
    """Steps of the n-step returns."""
    random_steps: int
    """Steps of all simulations together with random actions first."""
    updates: int
    """Agent updates (of `utd` critic steps each) per step of all simulations."""
    capacity: int
    """Transitions kept."""


class Memory:
    """n-step transitions, on the host. A reward counts its own discounts, and a mask is the factor of what follows."""

    def __init__(self, pace: Pace, observation_size: int, action_size: int):
        rows = pace.capacity // pace.simulations * pace.simulations
        self.rows = Batch(
            observation=np.zeros((rows, observation_size), np.float32),
            action=np.zeros((rows, action_size), np.float32),
            reward=np.zeros(rows, np.float32),
            mask=np.zeros(rows, np.float32),
            next_observation=np.zeros((rows, observation_size), np.float32),
        )
        self.recent: deque[tuple[np.ndarray, ...]] = deque()
        self.pace, self.next, self.size = pace, 0, 0

    def add(self, *step: np.ndarray) -> None:
        """One step of all simulations: observation, action, reward, terminated, truncated, next observation."""
        self.recent.append(step)
        if len(self.recent) < self.pace.steps_ahead:
            return
        count = self.pace.simulations
        total, mask = np.zeros(count, np.float32), np.zeros(count, np.float32)
        final = np.empty((count, self.rows.observation.shape[1]), np.float32)
        alive, factor = np.ones(count, bool), 1.0
        for _, _, reward, terminated, truncated, following in self.recent:
            total += alive * factor * reward
            factor *= self.pace.discount
            final[alive] = following[alive]
            mask[alive] = factor * ~terminated[alive]
            alive = alive & ~(terminated | truncated)
        observation, action, *_ = self.recent.popleft()
        place = slice(self.next, self.next + count)
        for rows, new in zip(jax.tree.leaves(self.rows), (observation, action, total, mask, final), strict=True):
            rows[place] = new
        self.next = (self.next + count) % len(self.rows.reward)
        self.size = min(self.size + count, len(self.rows.reward))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Batch:
        """Transitions drawn with replacement, arrays [*shape, ...]."""
        index = rng.integers(0, self.size, shape)
        return jax.tree.map(lambda rows: rows[index], self.rows)


def update(agent: RLPD, batches: Batch, key: jax.Array) -> tuple[RLPD, dict[str, jax.Array]]:
    """Updates on minibatches [updates, utd, batch, ...], one after another."""
    keys = jax.random.split(key, batches.reward.shape[0])
    agent, metrics = jax.lax.scan(lambda agent, x: agent.update(*x, jnp.int32(1)), agent, (batches, keys))
    return agent, jax.tree.map(jnp.mean, metrics)


def policy(actor: Network) -> Policy:
    """An actor's weights on the host: a step of a few simulations is too small to send to a device."""
    params = jax.device_get(actor.params)["params"]
    hidden = [params["MLP_0"][f"Dense_{k}"] for k in range(len(params["MLP_0"]))]
    layers = [(layer["kernel"], layer["bias"]) for layer in (*hidden, params["Dense_0"], params["Dense_1"])]
    return Policy(layers[:-2], *layers[-2:])


class Learner:
    """An agent that learns from steps of all simulations: `act`, step them, `observe`, again and again."""

    def __init__(
        self,
        config: Config,
        pace: Pace,
        seed: int,
        observation_size: int,
        action_size: int,
        learn: Learn = update,
        actor_hidden: tuple[int, ...] | None = None,
    ):
        self.config, self.pace = config, pace
        self.rng = np.random.default_rng(seed)
        self.memory = Memory(pace, observation_size, action_size)
        example = jax.tree.map(lambda rows: rows[0], self.memory.rows)
        self.key, create, small = jax.random.split(jax.random.key(seed), 3)
        self.agent = RLPD.create(config, create, example, None)
        if actor_hidden is not None:
            actor = Network.create(TanhNormalActor(actor_hidden, action_size), small, example.observation)
            self.agent = self.agent.replace(actor=actor)
        self.policy = policy(self.agent.actor)
        self.steps = self.updates = 0
        self.metrics: dict[str, jax.Array] = {}
        self._learn = jax.jit(learn)
        self._pending: tuple[RLPD, dict[str, jax.Array]] | None = None

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Actions [simulations, a] for observations [simulations, o]; the agent learns while they are carried out."""
        if self.steps < self.pace.random_steps:
            size = self.memory.rows.action.shape[1]
            return self.rng.uniform(-1, 1, (self.pace.simulations, size)).astype(np.float32)
        action = self.policy(observation, self.rng)
        self.key, now = jax.random.split(self.key)
        batches = self.memory.draw(self.rng, (self.pace.updates, self.config.utd, self.config.batch_size))
        self._pending = self._learn(self.agent, batches, now)
        self.updates += self.pace.updates * self.config.utd
        return action

    def observe(self, *step: np.ndarray) -> None:
        """What became of the actions: see `Memory.add`."""
        self.memory.add(*step)
        self.steps += self.pace.simulations
        if self._pending is not None:
            self.agent, self.metrics = self._pending
            self._pending = None
            self.policy = policy(self.agent.actor)
