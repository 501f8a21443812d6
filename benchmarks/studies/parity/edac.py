"""edac.py against CORL's edac.py, AdamJelley/EfficientOfflineRL's, and the authors' own, snu-mllab/EDAC."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import edac
from benchmarks.studies.parity import harness as h
from common.distributions import TanhNormal
from common.replay import Batch

torch = h.pytorch()
h.stub(
    "gym", "gym.spaces", "d4rl", "pandas", "pyrallis", "wandb", "tqdm", "utils.video_recorder", "gtimer", "mujoco_py",
    "tensorboardX",
)  # fmt: skip
SIZE, MEMBERS, WIDTH, RATE = 64, 5, 64, 3e-4
SHIFT = "theirs has 1e-6 inside the logarithm of the density"


def corl() -> ModuleType:
    """CORL's file."""
    return h.theirs("CORL/algorithms/offline", "edac")


def first() -> ModuleType:
    """That of "First Imitate, then Improve"."""
    return h.theirs("EfficientOfflineRL/algorithms", "edac")


def actor_tree(net: torch.nn.Module, norm: bool = False) -> h.Tree:
    """Ours of theirs."""
    hidden = [h.linear(m) for m in net.trunk if isinstance(m, torch.nn.Linear)]
    made = h.network(hidden, h.linear(net.mu), h.linear(net.log_sigma))
    return h.with_norms(made) if norm else made


def critic_tree(net: torch.nn.Module, norm: bool = False) -> h.Tree:
    """Ours of theirs."""
    *hidden, last = [h.linear(m) for m in net.critic if hasattr(m, "weight") and m.weight is not None]
    made = h.network(hidden, last)
    return h.with_norms(made) if norm else made


def temperature_tree(trainer: Any) -> h.Tree:
    """Ours of theirs."""
    return {"params": {"log": jnp.asarray(trainer.log_alpha.detach().numpy()[0])}}


def our_agent(config: edac.Config, trees: Mapping[str, h.Tree], phase: str) -> edac.EDAC:
    """Ours with their parameters."""
    prior = h.namespace(observation=jnp.zeros((4, h.OBSERVATION)), reward=jnp.zeros(4))
    agent = edac.EDAC.create(config, jax.random.key(0), h.example(), prior).replace(phase=phase)
    return agent.replace(**{part: h.fresh(getattr(agent, part), tree) for part, tree in trees.items()})


class Shared(h.Draws):
    """Their temperature and actor draw an action each, ours share one: the same numbers for both, then the target's.

    `which`: a call's number -> the number of its array.
    """

    def __init__(self, which: Callable[[int], int]):
        super().__init__()
        self.which, self.calls = which, itertools.count()

    def rewind(self) -> Shared:
        """From the start again."""
        self.calls = itertools.count()
        return super().rewind()

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """From the standard Gaussian."""
        rng = np.random.default_rng([7, self.which(next(self.calls))])
        return rng.standard_normal(int(np.prod(shape))).reshape(shape)


def exact(on: bool, shift: float = 1e-6) -> contextlib.AbstractContextManager:
    """Their densities without the 1e-6 inside the logarithm; in double precision: in single, 0 may be left of it."""
    if not on:
        return contextlib.nullcontext()
    real = torch.log

    def log(x: torch.Tensor) -> torch.Tensor:
        return real(x - shift) if x.ndim == 2 and x.shape[-1] == h.ACTION else real(x)

    return h.mock.patch.object(torch, "log", log)


def check(
    name: str,
    module: ModuleType,
    phase: str = "offline",
    method: str = "update",
    config: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    norm: bool = False,
    alike: bool = True,
    updates: int = 5,
) -> None:
    """Updates of a phase; `alike`: their densities without the 1e-6. `norm`: the file of "First Imitate"."""
    if alike and h.BITS == 32:
        return
    table = h.Table(name, "" if alike else SHIFT)
    torch.manual_seed(0)
    of_actor, of_critic = ({"actor_LN": True}, {"critic_LN": True}) if norm else ({}, {})
    actor = module.Actor(h.OBSERVATION, h.ACTION, WIDTH, 1.0, **of_actor)
    critic = module.VectorizedCritic(h.OBSERVATION, h.ACTION, WIDTH, MEMBERS, **of_critic)
    h.jitter_torch([actor, critic], 0.1, seed=None)  # their last layers begin near 0
    trainer = module.EDAC(
        actor, torch.optim.Adam(actor.parameters(), lr=RATE), critic, torch.optim.Adam(critic.parameters(), lr=RATE),
        alpha_learning_rate=RATE, eta=1.0, **(flags or {}),
    )  # fmt: skip
    h.jitter_torch([trainer.target_critic], seed=None)

    def snapshot() -> dict[str, h.Tree]:
        return {
            "actor": actor_tree(actor, norm),
            "critic": critic_tree(critic, norm),
            "target_critic": critic_tree(trainer.target_critic, norm),
            "temperature": temperature_tree(trainer),
        }

    start = snapshot()
    ours = our_agent(
        edac.Config(hidden=(WIDTH,) * 3, ensemble=MEMBERS, layer_norm=norm, **(config or {})), start, phase
    )
    data = h.batches(updates, SIZE)
    per = {"offline": 3, "imitation": 2, "returns": 1}[phase]  # draws per update

    def which(call: int) -> int:
        return 2 * (call // per) + (0, 0, 1)[call % per]

    params, logs, batches = [], [], []
    half = h.mock.patch.object(torch, "rand_like", lambda x: torch.full_like(x, 0.5))
    with h.fixed(Shared(which)), half, exact(alike):
        for d in data:
            t = {k: torch.as_tensor(v) for k, v in d.items()}
            rows = [t["observation"], t["action"], t["reward"][:, None], t["next_observation"], 1 - t["mask"][:, None]]
            if norm:
                rows.insert(3, t["return_to_go"][:, None])
            extra = (0, 0) if method == "pretrain_soft_critic" else ()
            logs.append(getattr(trainer, method)(rows, *extra))
            params.append(snapshot())
            columns = edac.Rows(**h.stacked([d], (*h.NAMES, "return_to_go")))
            batches.append(columns if phase == "returns" else columns.transitions())
    with h.fixed(Shared(which)), h.bare_norms(norm):
        mine, metrics = h.followed(ours, batches, start)
    a, b = logs[0], metrics[0]
    if "actor_loss" in a and not ours.config.cloning:
        table.scalar("actor_loss (1st update)", b["actor_loss"], a["actor_loss"])
    if "batch_entropy" in a:
        table.scalar("entropy (1st update)", b["entropy"], a["batch_entropy"])
    if "alpha" in a:
        table.scalar("alpha after 1 update", np.exp(float(mine[0]["temperature"]["params"]["log"])), a["alpha"])
    if phase == "offline":
        table.scalar("critic_loss (1st update)", b["critic_loss"] + ours.config.eta * b["agreement"], a["critic_loss"])
    if phase == "returns":
        table.scalar("MC_critic_loss (1st update)", b["critic_loss"], a["MC_critic_loss"])
        table.scalar("diversity_loss (1st update)", b["agreement"], a["diversity_loss"])
    table.changes(mine, params, start, at=(1, updates))


def soft_returns(module: ModuleType) -> None:
    """Their soft returns to go against ours: all rows but the last of an episode, and these."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, 40)
    n, ends = int(lengths.sum()), np.cumsum(lengths) - 1
    terminated, truncated, last = (np.zeros(n, bool) for _ in range(3))
    terminated[ends[::2]], truncated[ends[1::2]], last[ends] = True, True, True
    reward, entropy, alpha = rng.standard_normal(n), rng.standard_normal(n), 0.7
    buffer, nothing = module.ReplayBuffer(2, 2, n, 7, 0.99), np.zeros((n, 2))
    buffer.load_d4rl_dataset({
        "observations": nothing, "actions": nothing, "rewards": reward, "next_observations": nothing,
        "terminals": terminated, "timeouts": truncated,
    })  # fmt: skip
    taken = iter(range(n))

    def policy(states: torch.Tensor, need_log_prob: bool) -> tuple[None, torch.Tensor]:
        rows = [next(taken) for _ in range(len(states))]
        return None, torch.as_tensor(-entropy[rows])

    buffer.compute_soft_returns_to_go(torch.tensor([alpha]), policy)
    theirs = buffer._soft_returns_to_go.numpy().flatten()
    bonus = jnp.asarray(alpha * entropy)
    ours = edac.soft_returns(jnp.asarray(reward), bonus, jnp.asarray(last), jnp.asarray(truncated), 0.99)
    errors = np.abs(np.asarray(ours) - theirs) / np.abs(theirs).max()
    table = h.Table("First Imitate: soft returns")
    table.row("rows before the last", float(errors[~last].max()))
    table.row("last rows of episodes that terminated", float(errors[last & terminated].max()))
    table = h.Table("First Imitate: soft returns, cut episodes", "theirs leaves out the entropies that would follow")
    table.row("last rows of episodes that did not terminate", float(errors[last & truncated].max()))


def densities(module: ModuleType) -> None:
    """Log densities of samples, and of the data's clipped actions."""
    table = h.Table("First Imitate: densities", SHIFT)
    torch.manual_seed(0)
    actor = module.Actor(h.OBSERVATION, h.ACTION, WIDTH, 1.0, True)
    states = torch.randn(4096, h.OBSERVATION)

    def normal(offset: float) -> TanhNormal:
        actor.mu.bias.fill_(offset)
        hidden = actor.trunk(states)
        return TanhNormal(*(jnp.asarray(head(hidden).numpy()) for head in (actor.mu, actor.log_sigma)))

    with torch.no_grad():
        for offset in (0.0, 3.0, 6.0):
            with h.fixed(h.Draws()):
                mine = normal(offset)
                _, theirs = actor(states, need_log_prob=True)
            with h.fixed(h.Draws()):
                _, ours = mine.sample_and_log_prob(jax.random.key(0))
            table.row(f"samples, mean ~ {offset:g}, absolute", float(np.abs(np.asarray(ours) - theirs.numpy()).max()))
        mine = normal(0.0)
        for value in (0.5, 0.99, 1.0):  # 1 is clipped to 1 - 1e-5 by ours, to 1 - 1e-6 by theirs
            theirs = actor.log_prob(states, torch.full((4096, h.ACTION), value)).numpy().mean()
            ours = mine.log_prob(jnp.full((4096, h.ACTION), min(value, 1 - 1e-5))).mean()
            table.row(f"the data's action {value:g}: mean ours, theirs", f"{float(ours):.4f}, {theirs:.4f}")


class Simultaneous(edac.EDAC):
    """Ours with the timing of An et al.: all three steps are taken from what was there before the update."""

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[edac.EDAC, Any]:
        """Temperature, actor, critics and their targets."""
        rate = self.config.actor_learning_rate
        _, log_prob = self.actor(batch.observation).sample_and_log_prob(key)
        temperature, _ = self.temperature.minimise(
            self.temperature_loss, -log_prob.mean(), h.ACTION, learning_rate=rate
        )
        actor, _ = self.actor.minimise(self.actor_loss, batch, key, learning_rate=rate)
        after, metrics = self.update_critic(batch, key)
        return after.replace(temperature=temperature, actor=actor), metrics


def authors(alike: bool, updates: int = 5, eta: float = 1.0) -> None:
    """Their own trainer, which takes all three steps from the same parameters."""
    sac, policies, models, ptu = h.theirs(
        "EDAC", "lifelong_rl.trainers.q_learning.sac", "lifelong_rl.policies.models.tanh_gaussian_policy",
        "lifelong_rl.models.networks", "lifelong_rl.torch.pytorch_util",
    )  # fmt: skip
    if alike and h.BITS == 32:
        return
    ptu.set_gpu_mode(False)
    torch.manual_seed(0)
    hidden = [WIDTH] * 3
    qfs, targets = (
        models.ParallelizedEnsembleFlattenMLP(MEMBERS, hidden, h.OBSERVATION + h.ACTION, 1, layer_norm=None)
        for _ in range(2)
    )
    policy = policies.TanhGaussianPolicy(
        hidden_sizes=hidden, obs_dim=h.OBSERVATION, action_dim=h.ACTION, layer_norm=None
    )
    for net in (qfs, targets, policy):
        net.to(torch.get_default_dtype())
    moved = [p for n, p in policy.named_parameters() if not n.startswith("input_")]  # those normalise observations
    h.jitter_torch([qfs, targets, h.namespace(parameters=lambda: moved)], 0.1, seed=None)
    environment = h.namespace(action_space=h.namespace(shape=(h.ACTION,)))
    trainer = sac.SACTrainer(environment, policy, qfs, targets, num_qs=MEMBERS, eta=eta)
    trainer._need_to_update_eval_statistics = False

    def snapshot() -> dict[str, h.Tree]:
        def layers_of(net: torch.nn.Module) -> list[h.Tree]:
            return [h.linear(layer) for layer in net.fcs]

        return {
            "actor": h.network(layers_of(policy), h.linear(policy.last_fc), h.linear(policy.last_fc_log_std)),
            "critic": h.network(layers_of(qfs), h.linear(qfs.last_fc)),
            "target_critic": h.network(layers_of(targets), h.linear(targets.last_fc)),
            "temperature": temperature_tree(trainer),
        }

    start = snapshot()
    ours = our_agent(edac.Config(hidden=(WIDTH,) * 3, ensemble=MEMBERS, eta=eta), start, "offline")
    data = h.batches(updates, SIZE)
    params, losses, backward = [], [], torch.Tensor.backward

    def spy(self: torch.Tensor, *arguments: Any, **keywords: Any) -> None:
        losses.append(float(self.detach()))
        backward(self, *arguments, **keywords)

    def one_each(call: int) -> int:  # ours computes its one sample twice
        return 2 * (call // 3) + (0, 0, 1)[call % 3]

    with h.fixed(Shared(lambda call: call)), h.mock.patch.object(torch.Tensor, "backward", spy), exact(alike):
        for d in data:
            t = {k: torch.as_tensor(v) for k, v in d.items()}
            trainer.train_from_torch({
                "observations": t["observation"], "next_observations": t["next_observation"], "actions": t["action"],
                "rewards": t["reward"][:, None], "terminals": 1 - t["mask"][:, None],
            }, None)  # fmt: skip
            params.append(snapshot())
    order = "theirs takes all gradients before the first step"
    cases = [("the authors, all gradients first", Simultaneous(**vars(ours)), "" if alike else SHIFT)]
    if alike:
        cases.append(("the authors", ours, order))
    for name, agent, differs in cases:
        table = h.Table(name if alike else f"{name}, as it is", differs)
        with h.fixed(Shared(one_each)):
            mine, metrics = h.followed(agent, [Batch(**h.stacked([d])) for d in data], start)
        if agent is not ours:
            loss = metrics[0]["critic_loss"] + eta * metrics[0]["agreement"]
            table.scalar("critic_loss (1st update)", loss, losses[2])
        table.changes(mine, params, start, at=(1, updates))


def of_corl() -> None:
    """All cases with CORL's file."""
    module = corl()
    check("CORL", module)
    check("CORL, as it is", module, alike=False)


def of_first() -> None:
    """All cases with that of "First Imitate"."""
    module = first()
    soft_returns(module)
    densities(module)
    cloning, hybrid = "First Imitate: cloning", {"cloning": 1.0}
    check(cloning, module, "imitation", "pretrain_BC", norm=True)
    check(f"{cloning}, as it is", module, "imitation", "pretrain_BC", norm=True, alike=False)
    check("First Imitate: critics on returns", module, "returns", "pretrain_soft_critic", norm=True)
    check("First Imitate: training", module, norm=True)
    check("First Imitate: training, as it is", module, norm=True, alike=False)
    check("First Imitate: hybrid", module, config=hybrid, flags={"bc_regulariser": 1.0}, norm=True)


def of_authors() -> None:
    """All cases with the authors' code."""
    authors(alike=True)
    authors(alike=False)


def main() -> None:
    """All cases."""
    h.each(of_corl, of_authors, of_first)


if __name__ == "__main__":
    main()
