"""awr.py against xbpeng/awr: an iteration of `AWRAgent._update`; MARWIL against RLlib's `MARWILTorchLearner`.

The authors' networks and gradient steps are of TensorFlow 1. Their returns, advantages, weights, buffer and order of
steps are NumPy and theirs; the two losses and the momentum are written anew here, in PyTorch, from their graph. Of
RLlib (`ray/rllib/...` of its repository, or of the installed package, copied) only the loss is called, on networks of
PyTorch with its Adam.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import awr
from benchmarks.studies.parity import harness as h

torch = h.pytorch()
PARTS = ("actor", "value")


def mlp(hidden: tuple[int, ...], outputs: int) -> torch.nn.Sequential:
    """Hidden layers with ReLU, and an affine one."""
    sizes = (h.OBSERVATION, *hidden)
    layers = [
        layer
        for before, after in itertools.pairwise(sizes)
        for layer in (torch.nn.Linear(before, after), torch.nn.ReLU())
    ]
    return torch.nn.Sequential(*layers, torch.nn.Linear(sizes[-1], outputs))


def tree(net: torch.nn.Sequential, heads: int = 1) -> h.Tree:
    """Ours of one of those, whose last layer we hold as so many."""
    *hidden, last = (h.linear(layer) for layer in net if isinstance(layer, torch.nn.Linear))
    parts = [jnp.split(last[name], heads, axis=-1) for name in ("kernel", "bias")]
    return h.network(hidden, *({"kernel": kernel, "bias": bias} for kernel, bias in zip(*parts, strict=True)))


def ours_like(config: awr.Config, prior: awr.Prior, trees: dict[str, h.Tree]) -> awr.AWR:
    """Our agent with these parameters."""
    agent = awr.AWR.create(config, jax.random.key(0), h.example(), prior)
    networks = {name: getattr(agent, name) for name in PARTS}
    return agent.replace(
        square=jnp.asarray(config.moving_start, h.REAL), phase="offline",
        **{
            name: net.replace(params=h.real(trees[name]), opt_state=net.optimiser.init(h.real(trees[name])))
            for name, net in networks.items()
        },
    )  # fmt: skip


def episodes(lengths: tuple[int, ...], terminated: tuple[bool, ...]) -> tuple[list[dict[str, np.ndarray]], awr.Prior]:
    """The same episodes as columns each, `state` with one row more, and as our data."""
    rng = np.random.default_rng(2)
    paths = [
        {
            "state": rng.standard_normal((n + 1, h.OBSERVATION)).astype(h.REAL),
            "action": rng.uniform(-0.95, 0.95, (n, h.ACTION)).astype(h.REAL),
            "reward": rng.standard_normal(n).astype(h.REAL),
        }
        for n in lengths
    ]
    ends = np.cumsum(lengths) - 1
    mask = np.ones(sum(lengths), h.REAL)
    mask[ends[list(terminated)]] = 0
    prior = awr.Prior(
        observation=np.concatenate([p["state"][:-1] for p in paths]),
        action=np.concatenate([p["action"] for p in paths]),
        reward=np.concatenate([p["reward"] for p in paths]),
        mask=mask,
        next_observation=np.concatenate([p["state"][1:] for p in paths]),
        ends=ends,
    )
    return paths, jax.tree.map(jnp.asarray, prior)


def iteration(td_lambda: float, steps: int = 5) -> None:
    """Steps of the value, then of the actor; every minibatch is the authors'."""
    table = h.Table(f"AWR, lambda {td_lambda:g}")
    h.stub("tensorflow", "gym")
    agents, buffers, paths_of = h.theirs("awr", "learning.awr_agent", "util.replay_buffer", "util.rl_path")
    torch.manual_seed(0)
    config = awr.Config(
        td_lambda=td_lambda, value_steps=steps, actor_steps=steps, batch_size=64, normalise=False,
        actor_learning_rate=1e-4,
    )  # fmt: skip
    nets = {"actor": mlp(config.hidden, h.ACTION), "value": mlp(config.hidden, 1)}
    rates = {"actor": config.actor_learning_rate, "value": config.learning_rate}
    optimisers = {k: torch.optim.SGD(net.parameters(), rates[k], momentum=0.9) for k, net in nets.items()}
    paths, prior = episodes((30, 1, 70, 50), (True, True, False, False))
    buffer = buffers.ReplayBuffer(1000)
    for path, end in zip(paths, (True, True, False, False), strict=True):
        stored = paths_of.RLPath()
        stored.states, stored.actions, stored.rewards = (list(path[k]) for k in ("state", "action", "reward"))
        stored.logps = [h.REAL(0)] * len(stored.actions)
        stored.terminate = paths_of.Terminate.Fail if end else paths_of.Terminate.Null
        buffer.store(stored)

    start = {name: tree(net) for name, net in nets.items()}
    params: dict[str, list[h.Tree]] = {name: [] for name in nets}
    seen: list[tuple[str, np.ndarray, np.ndarray, float]] = []  # part, states, target or weight, loss

    def descend(name: str, loss: torch.Tensor, states: np.ndarray, numbers: np.ndarray) -> dict[str, float]:
        optimisers[name].zero_grad()
        loss.backward()
        optimisers[name].step()
        params[name].append(tree(nets[name]))
        seen.append((name, states, numbers, loss.item()))
        return {"loss": loss.item()}

    def step_critic(states: np.ndarray, target: np.ndarray) -> dict[str, float]:
        gap = torch.as_tensor(target * (1 - 0.99)) - nets["value"](torch.as_tensor(states)).squeeze(-1)
        return descend("value", 0.5 * gap.square().mean(), states, target)

    def step_actor(states: np.ndarray, actions: np.ndarray, weight: np.ndarray) -> dict[str, float]:
        mean, std = nets["actor"](torch.as_tensor(states)), torch.tensor(config.std)
        density = torch.distributions.Normal(mean, std).log_prob(torch.as_tensor(actions)).sum(-1)
        outside = (mean + 1).clamp(max=0).square().sum(-1) + (mean - 1).clamp(min=0).square().sum(-1)
        loss = -(torch.as_tensor(weight) * density).mean() + 10 * 0.5 * outside.mean()
        return descend("actor", loss, states, weight)

    def value(states: np.ndarray) -> np.ndarray:
        return (nets["value"](torch.as_tensor(states)).squeeze(-1) / (1 - 0.99)).detach().numpy().copy()

    peer = agents.AWRAgent.__new__(agents.AWRAgent)
    vars(peer).update(
        _replay_buffer=buffer, _discount=0.99, _td_lambda=td_lambda, _temp=1.0, _weight_clip=20, _samples_per_iter=64,
        _critic_steps=steps, _actor_steps=steps, _critic_batch_size=64, _actor_batch_size=64, _critic_step_count=0,
        _actor_step_count=0, _logger=h.mock.MagicMock(), eval_critic=value, _step_critic=step_critic,
        _step_actor=step_actor,
    )  # fmt: skip
    np.random.seed(0)  # noqa: NPY002
    peer._update(0, 64)

    ours, rows_of = (
        ours_like(config, prior, start),
        {x.tobytes(): i for i, x in enumerate(np.asarray(prior.observation))},
    )
    mine: dict[str, list[h.Tree]] = {name: [] for name in nets}
    losses, numbers = [], []
    with jax.disable_jit():
        for step, (name, states, _, _) in enumerate(seen, 1):
            ours = ours.renew(jnp.asarray(step), prior)
            index = np.array([rows_of[x.tobytes()] for x in states])
            rows = awr.Rows(**vars(prior.transitions()), target=ours.target, advantage=ours.advantage)
            batch = jax.tree.map(lambda x: x[index], rows)  # noqa: B023
            numbers.append(batch.target if name == "value" else ours.weight(batch.advantage))
            ours, metrics = ours.update_once(batch, jax.random.key(0), jnp.asarray(step))
            mine[name].append(getattr(ours, name).params)
            losses.append(metrics[f"{name}_loss"])
    for what, at in (("value_loss", 0), ("actor_loss", steps)):
        table.scalar(f"{what} (1st step)", losses[at], seen[at][3])
        kind = "returns" if at == 0 else "weights"
        table.row(f"{kind} (1st step)", h.error(numbers[at], seen[at][2]))
    theirs_by_step, mine_by_step = (
        [dict(zip(PARTS, both, strict=True)) for both in zip(*(x[k] for k in PARTS), strict=True)]
        for x in (params, mine)
    )
    table.changes(mine_by_step, theirs_by_step, start, at=(1, steps))


def rllib_learner() -> Any:
    """RLlib's class, without RLlib."""
    path = h.checkout("ray") / "rllib/algorithms/marwil/torch/marwil_torch_learner.py"
    modules = (
        "algorithms.marwil.marwil", "algorithms.marwil.marwil_learner", "core.columns", "core.learner.learner",
        "core.learner.torch.torch_learner", "evaluation.postprocessing", "utils.framework", "utils.torch_utils",
        "utils.typing",
    )  # fmt: skip
    h.stub(*(f"ray.rllib.{name}" for name in modules))

    def module(name: str) -> Any:
        return sys.modules[f"ray.rllib.{name}"]

    module("algorithms.marwil.marwil_learner").MARWILLearner = type("MARWILLearner", (), {})
    module("core.learner.torch.torch_learner").TorchLearner = type("TorchLearner", (), {})
    module("utils.framework").try_import_torch = lambda: (torch, torch.nn)
    names = ("LOSS_MASK", "ACTION_DIST_INPUTS", "ACTIONS", "VALUE_TARGETS", "EMBEDDINGS")
    module("core.columns").Columns = h.namespace(**{name: name for name in names})
    module("evaluation.postprocessing").Postprocessing = h.namespace(VALUE_TARGETS="VALUE_TARGETS")
    spec = importlib.util.spec_from_file_location("marwil_torch_learner", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded.MARWILTorchLearner


class DiagonalGaussian:
    """RLlib's distribution: mean and logarithm of the deviation side by side."""

    def __init__(self, logits: torch.Tensor):
        self.mean, self.log_std = logits.chunk(2, dim=-1)

    @classmethod
    def from_logits(cls, logits: torch.Tensor) -> DiagonalGaussian:
        """Of [n, 2 a]."""
        return cls(logits)

    def logp(self, action: torch.Tensor) -> torch.Tensor:
        """[n] of [n, a]."""
        return torch.distributions.Normal(self.mean, self.log_std.exp()).log_prob(action).sum(-1)


def marwil(name: str, updates: int = 5, **values: float) -> None:
    """Updates with RLlib's values, or with some of them changed."""
    table = h.Table(f"MARWIL, {name}")
    learner = rllib_learner()
    torch.manual_seed(1)
    defaults = {"return_unit": 1.0, "moving_rate": 1e-8, "largest_weight": 1e30}
    config = awr.Config(**(awr.PRESETS["marwil"] | defaults | values))
    nets = {"actor": mlp(config.hidden, 2 * h.ACTION), "value": mlp(config.hidden, 1)}
    h.jitter_torch(list(nets.values()), seed=None)
    optimiser = torch.optim.Adam([p for net in nets.values() for p in net.parameters()], lr=1e-4)
    module = h.namespace(
        get_train_action_dist_cls=lambda: DiagonalGaussian,
        compute_values=lambda batch, embeddings: nets["value"](batch["observation"]).squeeze(-1),
    )
    peer = h.namespace(
        config=h.namespace(
            beta=config.inverse_temperature, bc_logstd_coeff=config.log_std_bonus, vf_coeff=1.0,
            moving_average_sqd_adv_norm_update_rate=config.moving_rate,
        ),
        module={"one": h.namespace(unwrapped=lambda: module)}, metrics=h.mock.MagicMock(),
        moving_avg_sqd_adv_norms_per_module={"one": torch.tensor(config.moving_start)},
    )  # fmt: skip
    heads = {"actor": 2, "value": 1}
    start = {part: tree(net, heads[part]) for part, net in nets.items()}
    data, theirs, losses, squares = h.batches(updates, 256), [], [], []
    for d in data:
        t = {k: torch.as_tensor(x) for k, x in d.items()}
        loss = learner.compute_loss_for_module(
            peer, module_id="one", config=peer.config, fwd_out={"ACTION_DIST_INPUTS": nets["actor"](t["observation"])},
            batch=t | {"ACTIONS": t["action"], "VALUE_TARGETS": t["return_to_go"]},
        )  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        squares.append(float(peer.moving_avg_sqd_adv_norms_per_module["one"]))
        theirs.append({part: tree(net, heads[part]) for part, net in nets.items()})

    prior = awr.Prior(**{k: jnp.asarray(data[0][k]) for k in h.NAMES}, ends=jnp.array([255]))
    ours, mine, metrics = ours_like(config, prior, start), [], []
    with jax.disable_jit():
        for number, d in enumerate(data, 1):
            columns = {k: jnp.asarray(d[k]) for k in h.NAMES}
            target = jnp.asarray(d["return_to_go"])
            batch = awr.Rows(**columns, target=target, advantage=jnp.zeros_like(target))
            ours, info = ours.update_once(batch, jax.random.key(0), jnp.asarray(number))
            mine.append({part: getattr(ours, part).params for part in PARTS})
            metrics.append(info)
    parts = PARTS if config.inverse_temperature else ("actor",)  # without it RLlib has no value
    whole = sum(metrics[0][f"{part}_loss"] for part in parts)
    table.scalar("loss of both (1st update)" if len(parts) > 1 else "actor_loss (1st update)", whole, losses[0])
    if len(parts) > 1:
        table.scalar("moving estimate (last update)", metrics[-1]["squared_advantage"], squares[-1])
    table.changes(mine, theirs, {part: start[part] for part in parts}, at=(1, updates))


def main() -> None:
    """All cases."""
    h.each(
        lambda: iteration(0.95),
        lambda: iteration(1.0),
        lambda: marwil("RLlib's values"),
        lambda: marwil("estimate that moves", moving_rate=1e-2),
        lambda: marwil("bonus", log_std_bonus=0.1),
        lambda: marwil("beta 0", inverse_temperature=0.0),
    )


if __name__ == "__main__":
    main()
