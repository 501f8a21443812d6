"""Times ikostrikov/rlpd's own update from a checkout of it: `rlpd_authors.py CHECKOUT SETTINGS`, run by throughput.py.

Their agent is called as their training script calls it. It needs a Python with jax, flax, optax, ml_collections and a
tensorflow-probability that supports that jax; `gym`, of which only the spaces are used, is stood in for by gymnasium.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

import gymnasium
import jax
import numpy as np


def main(checkout: str, settings: dict) -> None:
    """Print the seconds of the first calls together, then of one update, timed anew, per line of input."""
    sys.path.insert(0, checkout)
    sys.modules["gym"] = gymnasium
    sys.modules["gym.spaces"] = gymnasium.spaces
    importlib.import_module("tensorflow_probability.substrates.jax")  # some releases do not load it by themselves
    from rlpd.agents import SACLearner

    observation = gymnasium.spaces.Box(-1, 1, (settings["observation"],), np.float32)
    action = gymnasium.spaces.Box(-1, 1, (settings["action"],), np.float32)
    agent = SACLearner.create(
        0,
        observation,
        action,
        hidden_dims=tuple(settings["hidden"]),
        num_qs=settings["ensemble"],
        num_min_qs=settings["subset"],
        critic_layer_norm=True,
        backup_entropy=settings["backup_entropy"],
    )
    rng = np.random.default_rng(0)
    rows = settings["batch_size"] * settings["utd"]
    batch = {
        "observations": rng.normal(size=(rows, settings["observation"])).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(rows, settings["action"])).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "masks": np.ones(rows, np.float32),
        "next_observations": rng.normal(size=(rows, settings["observation"])).astype(np.float32),
    }

    def seconds(calls: int) -> float:
        nonlocal agent
        start = time.perf_counter()
        for _ in range(calls):
            agent, info = agent.update(batch, settings["utd"])
        jax.block_until_ready((agent, info))
        return time.perf_counter() - start

    print(seconds(settings["first"]), flush=True)
    for _ in sys.stdin:
        print(seconds(settings["calls"]) / settings["calls"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
