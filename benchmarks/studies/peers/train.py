"""Trains a peer's own agent on data from a file: `train.py PEER CHECKOUT SETTINGS`, run by studies/official.py.

PEER is corl (TD3+BC) or iql (its authors' code). Their classes are called as their training scripts call them. Asked
on standard input, in bytes: `T` and an int32 n, for n updates, answered by their seconds as one float64; `A` and an
int32 n and n observations in float32, for the actions of the policy that would be evaluated, answered in float32.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from theirs import Anything, load

Trained = tuple[Callable[[int], None], Callable[[np.ndarray], np.ndarray]]
"""n updates, and the actions [n, a] for observations [n, o]."""


def corl(checkout: Path, data: dict[str, np.ndarray], settings: dict) -> Trained:
    """CORL's TD3+BC, as train() in its file."""
    import torch

    module = load(checkout / "algorithms" / "offline" / "td3_bc.py")
    config, sizes = module.TrainConfig(), (data["observations"].shape[1], data["actions"].shape[1])
    mean, std = module.compute_mean_std(data["observations"], eps=1e-3)
    rows = data | {
        name: module.normalize_states(data[name], mean, std) for name in ("observations", "next_observations")
    }
    buffer = module.ReplayBuffer(*sizes, config.buffer_size, "cpu")
    buffer.load_d4rl_dataset(rows)
    module.set_seed(settings["seed"])
    actor, critics = module.Actor(*sizes, 1.0), [module.Critic(*sizes) for _ in range(2)]
    optimisers = [torch.optim.Adam(network.parameters(), lr=3e-4) for network in (actor, *critics)]
    trainer = module.TD3_BC(
        1.0, actor, optimisers[0], critics[0], optimisers[1], critics[1], optimisers[2],
        config.discount, config.tau, config.policy_noise, config.noise_clip, config.policy_freq, config.alpha,
    )  # fmt: skip

    def run(updates: int) -> None:
        for _ in range(updates):
            trainer.train(buffer.sample(config.batch_size))

    def act(observations: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return actor(torch.tensor((observations - mean) / std, dtype=torch.float32)).numpy()

    return run, act


def iql(checkout: Path, data: dict[str, np.ndarray], settings: dict) -> Trained:
    """The authors' IQL with its settings for AntMaze or, elsewhere, for locomotion.

    Today's JAX and Flax are told three of the old habits.
    """
    import flax
    import jax

    jit = jax.jit

    def forgiving(function: Callable, static_argnames: tuple[str, ...] = (), **options: object) -> Callable:
        """As long ago, names of arguments that there are not do no harm."""
        known = inspect.signature(function).parameters
        return jit(function, static_argnames=[name for name in static_argnames if name in known], **options)

    jax.tree_multimap = jax.tree.map
    flax.config.update("flax_return_frozendict", True)
    sys.path.insert(0, str(checkout))
    for name in ("tensorboardX", "wrappers"):
        sys.modules[name] = Anything(name)
    jax.jit = forgiving
    module = load(checkout / "train_offline.py")
    jax.jit = jit
    from configs import antmaze_config, mujoco_config
    from dataset_utils import Dataset

    actions = np.clip(data["actions"], -1 + 1e-5, 1 - 1e-5)
    ends = np.maximum(data["terminals"], data["timeouts"])
    rows = Dataset(
        data["observations"], actions, data["rewards"], 1 - data["terminals"], ends, data["next_observations"],
        len(actions),
    )  # fmt: skip
    if settings["family"] == "antmaze":
        rows.rewards -= 1.0
        config = antmaze_config.get_config()
    else:
        module.normalize(rows)
        config = mujoco_config.get_config()
    np.random.seed(settings["seed"])  # noqa: NPY002, where their minibatches are drawn from
    agent = module.Learner(
        settings["seed"], rows.observations[:1], actions[:1], max_steps=settings["updates"],
        **dict(config),
    )  # fmt: skip

    def run(updates: int) -> None:
        for _ in range(updates):
            agent.update(rows.sample(256))
        jax.block_until_ready(agent.actor.params)

    return run, lambda observations: agent.sample_actions(observations, temperature=0.0)


def main(peer: str, checkout: str, settings: dict) -> None:
    """Answer until there is no more to read."""
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    with np.load(settings["data"], allow_pickle=False) as file:
        data = dict(file)
    with contextlib.redirect_stdout(sys.stderr):  # what they print is not an answer
        run, act = {"corl": corl, "iql": iql}[peer](Path(checkout), data, settings)
        while question := questions.read(1):
            count = int(np.frombuffer(questions.read(4), np.int32)[0])
            if question == b"T":
                start = time.perf_counter()
                run(count)
                answer = np.float64(time.perf_counter() - start)
            else:
                size = data["observations"].shape[1]
                rows = np.frombuffer(questions.read(4 * count * size), np.float32).reshape(count, size)
                answer = np.ascontiguousarray(act(rows), np.float32)
            answers.write(answer.tobytes())
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
