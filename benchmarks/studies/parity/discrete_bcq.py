"""Discrete BCQ and DQN beside sfujim/BCQ, `discrete_BCQ`, in its form for vectors.

    PARITY_THEIRS=FOLDER PARITY_BITS=64 python -m benchmarks.studies.parity.discrete_bcq

The same parameters, with a target network of its own, and the same minibatches: losses, and all parameters after 1 and
5 updates. Their one optimizer of both networks is two here.
"""

from __future__ import annotations

from typing import Any

from benchmarks.studies.parity import harness as h  # isort: skip  # it sets the precision before JAX is used

import jax
import jax.numpy as jnp
import numpy as np
import torch

from algorithms.discrete_bcq import PRESETS, Config, DiscreteBCQ
from common.replay import Batch

OBSERVATIONS, ACTIONS, ROWS = 4, 3, 64
torch.set_default_dtype(torch.float64 if h.BITS == 64 else torch.float32)
torch.set_num_threads(1)
# Their tensors are made as floats by name.
torch.FloatTensor = torch.tensor
h.stub("gym", "cv2")
bcq, dqn = h.theirs("BCQ/discrete_BCQ", "discrete_BCQ", "DQN")


class Rows:
    """Their replay buffer, which gives out these minibatches in turn."""

    def __init__(self, batches: list[dict[str, np.ndarray]]):
        self.batches = iter(batches)

    def sample(self) -> tuple[torch.Tensor, ...]:
        """State, action, next state, reward, mask."""
        b = next(self.batches)
        number = torch.as_tensor(b["action"].argmax(-1)[:, None])
        state, following = (torch.as_tensor(b[name]) for name in ("observation", "next_observation"))
        return state, number, following, h.column(b["reward"]), h.column(b["mask"])


def minibatches(count: int) -> list[dict[str, np.ndarray]]:
    """Minibatches with discrete actions, and rewards large enough for both parts of the Huber loss."""
    found = h.batches(count, ROWS, OBSERVATIONS, ACTIONS)
    one_hot = np.eye(ACTIONS, dtype=h.REAL)
    return [b | {"action": one_hot[b["action"].argmax(-1)], "reward": 2 * b["reward"]} for b in found]


def tree(network: Any, letter: str) -> Any:
    """The layers that begin with this letter, in our form."""
    return h.network(
        [h.linear(getattr(network, f"{letter}{k}")) for k in (1, 2)], h.linear(getattr(network, f"{letter}3"))
    )


def theirs_of(preset: str, threshold: float) -> Any:
    """Their agent, its target network moved away from the online one and its logits spread."""
    torch.manual_seed(0)
    common = (0.99, "Adam", {"lr": 3e-4}, True, 1, 0.005)
    if preset:
        agent = dqn.DQN(False, ACTIONS, OBSERVATIONS, "cpu", *common)
    else:
        agent = bcq.discrete_BCQ(False, ACTIONS, OBSERVATIONS, "cpu", threshold, *common)
    with torch.no_grad():
        for parameter in agent.Q_target.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        for name, parameter in agent.Q.named_parameters():
            if name.startswith("i"):
                parameter.mul_(3.0)
    return agent


def check(table: h.Table, preset: str, threshold: float, most: int = 5) -> None:
    """One of their agents beside ours."""
    config = Config(**PRESETS[preset]) if preset else Config(threshold=threshold)
    config = jax.tree.map(lambda x: jnp.asarray(x, h.REAL), config)
    what = preset or f"threshold {threshold:g}"
    theirs = theirs_of(preset, threshold)
    # Their DQN's layers have other names, and it has no behaviour policy.
    letters = {"critic": "l"} if preset else {"critic": "q", "behaviour": "i"}
    example = Batch(*(jnp.zeros(shape, h.REAL) for shape in (OBSERVATIONS, ACTIONS, (), (), OBSERVATIONS)))
    ours = DiscreteBCQ.create(config, jax.random.key(0), example, None)
    values = letters["critic"]
    ours = ours.replace(target_critic=h.fresh(ours.target_critic, tree(theirs.Q_target, values)))
    ours = ours.replace(**{n: h.fresh(getattr(ours, n), tree(theirs.Q, letter)) for n, letter in letters.items()})
    start, data = ours, minibatches(most)
    rows, losses = Rows(data), []
    backward = torch.Tensor.backward
    torch.Tensor.backward = lambda loss: (losses.append(loss.item()), backward(loss))[1]
    update = jax.jit(DiscreteBCQ.update_once)
    for number, one in enumerate(data, 1):
        batch = Batch(**{n: x[0] for n, x in h.stacked([one]).items()})
        ours, metrics = update(ours, batch, jax.random.key(0), jnp.int32(number))
        theirs.train(rows)
        total = metrics["critic_loss"] + (0 if preset else metrics["behaviour_loss"])
        if number in (1, most):
            table.scalar(f"{what}: loss of update {number}", total, losses[-1])
            for name, letter in letters.items():
                moved = getattr(ours, name).params, tree(theirs.Q, letter), getattr(start, name).params
                table.change(f"{what}: {name} after {number}", *moved)
            moved = ours.target_critic.params, tree(theirs.Q_target, values), start.target_critic.params
            table.change(f"{what}: target after {number}", *moved)
    torch.Tensor.backward = backward
    observations = np.random.default_rng(5).standard_normal((200, OBSERVATIONS)).astype(h.REAL)
    theirs.eval_eps = -1.0  # they draw a number and compare
    chosen = [theirs.select_action(row, eval=True) for row in observations]
    table.row(
        f"{what}: greedy actions that differ, of 200",
        int((ours.act(observations).argmax(-1) != np.array(chosen)).sum()),
    )


def main() -> None:
    """All of them."""
    table = h.Table("discrete_bcq")
    for threshold in (0.3, 0.0, 0.9):
        check(table, "", threshold)
    check(table, "dqn", 0.0)


if __name__ == "__main__":
    main()
