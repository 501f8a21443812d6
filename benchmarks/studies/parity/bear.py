"""bear.py against rail-berkeley/d4rl_evaluations, the defaults, and aviralkumar2907/BEAR, `--preset first-code`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import bear
from benchmarks.studies.parity import harness as h
from benchmarks.studies.parity.bcq import vae_tree
from common.agent import Metrics
from common.replay import Batch

torch = h.pytorch()
h.stub("gym", "gym.spaces", "gtimer", "tensorboardX", "dateutil.tz", "rlkit.core.tabulate", "rlkit.pythonplusplus")


@contextlib.contextmanager
def as_it_was(draws: h.Draws) -> Iterator[None]:
    """NumPy's draws fixed, in the precision of this check; and PyTorch as it was when theirs was written: an optimiser
    does not forbid to differentiate what was computed with the parameters that it has changed since."""
    kind, step = torch.get_default_dtype(), torch.optim.Adam.step

    def unnoticed(self: torch.optim.Adam) -> None:
        with contextlib.ExitStack() as stack:
            for group in self.param_groups:
                for parameter in group["params"]:
                    stack.enter_context(torch.autograd._unsafe_preserve_version_counter(parameter))
            step(self)

    with (
        h.fixed(draws),
        h.mock.patch.object(np.random, "normal", lambda mean, std, size: draws.normal(size)),
        h.mock.patch.object(torch, "FloatTensor", lambda x: torch.as_tensor(x, dtype=kind)),
        h.mock.patch.object(torch.optim.Adam, "step", unnoticed),
    ):
        yield


class Simultaneous(bear.BEAR):
    """Ours with D4RL's timing: the policy's slope is that of the critics before their step."""

    def update_once(self, batch: Batch, key: jax.Array, number: jax.Array) -> tuple[Self, Metrics]:
        """The same steps, but that the critics are replaced at the end."""
        c, keys = self.config, jax.random.split(key, 3)
        vae, metrics = self.vae.minimise(self.vae_loss, batch, keys[0], learning_rate=c.learning_rate)
        agent = self.replace(vae=vae)
        critic, more = agent.critic.minimise(agent.critic_loss, batch, keys[1], learning_rate=c.learning_rate)
        actor, last = agent.actor.minimise(agent.actor_loss, batch, keys[2], learning_rate=c.actor_learning_rate)
        dual, _ = agent.dual.minimise(agent.dual_loss, last["mmd"], learning_rate=c.dual_learning_rate)
        target = self.target_critic.track(critic, c.target_rate)
        agent = agent.replace(critic=critic, actor=actor, target_actor=actor.target(), target_critic=target, dual=dual)
        return agent, metrics | more | last


def compare(
    table: h.Table, start: dict[str, h.Tree], theirs: list[dict[str, h.Tree]], losses: dict[str, float],
    ours: bear.BEAR, data: list[dict[str, np.ndarray]],
) -> None:  # fmt: skip
    """Ours from the same parameters, on the same data and draws, beside theirs."""
    ours = ours.replace(**{part: h.fresh(getattr(ours, part), tree) for part, tree in start.items()})
    with h.fixed(h.Draws()):
        mine, metrics = h.followed(ours, [Batch(**h.stacked([d])) for d in data], start)
    for name, value in losses.items():
        table.scalar(f"{name} (1st update)", metrics[0][name], value)
    table.changes(mine, theirs, start, at=(1, len(data)))


def make(config: bear.Config, phase: str, kind: type[bear.BEAR] = bear.BEAR) -> bear.BEAR:
    """Ours, with parameters that are replaced."""
    return kind.create(config, jax.random.key(0), h.example(), None).replace(phase=phase)


def first_code(phase: str, kernel: str, bandwidth: float, updates: int = 5, size: int = 100) -> None:
    """`BEAR.train` with the flags of its README, in its first epoch or its twenty-first."""
    module = h.theirs("BEAR", "algos")
    table = h.Table(f"first-code, {phase}, {kernel}")
    policy = module.BEAR(
        2, h.OBSERVATION, h.ACTION, 1.0, use_bootstrap=False, version="0", lambda_=0.0, mode="auto",
        num_samples_match=5, mmd_sigma=bandwidth, use_ensemble=False, kernel_type=kernel,
    )  # fmt: skip
    nets = {"actor": policy.actor, "target_actor": policy.actor_target}
    critics = {"critic": policy.critic, "target_critic": policy.critic_target}
    h.jitter_torch([policy.vae, *nets.values(), *critics.values()])

    def actor_tree(net: torch.nn.Module) -> h.Tree:
        return h.network([h.linear(net.l1), h.linear(net.l2)], h.linear(net.mean), h.linear(net.log_std))

    def snapshot() -> dict[str, h.Tree]:
        trees = {part: actor_tree(net) for part, net in nets.items()}
        trees |= {part: h.both_critics(net) for part, net in critics.items()}
        log = jnp.asarray(policy.log_lagrange2.detach().numpy().copy())
        return trees | {"vae": vae_tree(policy.vae), "dual": {"params": {"log": log}}}

    start, theirs, logged = snapshot(), [], {}
    data = h.batches(updates, size)
    silent = h.mock.patch.object(module, "create_stats_ordered_dict", lambda name, x: {name: x})
    logger = h.namespace(
        record_dict=lambda x: logged.setdefault("MMD Loss", x["MMD Loss"].mean()) if "MMD Loss" in x else None,
        record_tabular=lambda name, x: logged.setdefault(name, x),
    )
    with as_it_was(h.Draws()), silent, h.mock.patch.object(module, "logger", logger):
        for d in data:
            done, mask = 1 - d["mask"][:, None], np.ones((size, 4))
            rows = d["observation"], d["next_observation"], d["action"], d["reward"][:, None], done, mask
            policy.epoch = 0 if phase == "matching" else 20
            policy.train(h.namespace(sample=lambda _, rows=rows: rows), 1, size)
            theirs.append(snapshot())
    losses = {"critic_loss": logged["Critic Loss"], "actor_loss": logged["Actor Loss"], "mmd": logged["MMD Loss"]}
    config = bear.Config(**bear.PRESETS["first-code"] | {"kernel": kernel, "bandwidth": bandwidth})
    compare(table, start, theirs, losses, make(config, phase), data)


def d4rl(phase: str, kernel: str, timing: bool = True, updates: int = 5, size: int = 256) -> None:
    """`BEARTrainer.train_from_torch` with the settings of its launcher and README, at its first step or its 40,001st.

    Without `timing`, as it ran with the PyTorch of its time: Q's forward pass before the critics' step, its backward
    pass after it. With it, their critics are moved at the end, and ours as well.
    """
    names = ("torch.sac.bear", "torch.sac.policies", "torch.networks", "torch.pytorch_util")
    trainers, policies, networks, ptu = h.theirs("d4rl_evaluations/bear", *(f"rlkit.{name}" for name in names))
    ptu.set_gpu_mode(False)
    label = f"defaults, {phase}, {kernel}"
    if phase == "matching":
        table = h.Table(label)
    elif timing:
        table = h.Table(f"{label}, its timing in both")
    else:
        table = h.Table(label, "Q's forward pass is before the critics' step in theirs, its backward pass after it")
    sizes = {"obs_dim": h.OBSERVATION, "action_dim": h.ACTION}
    policy = policies.TanhGaussianPolicy(hidden_sizes=[256, 256], **sizes)
    vae = policies.VAEPolicy(hidden_sizes=[750, 750], latent_dim=2 * h.ACTION, **sizes)
    q = [
        networks.FlattenMlp(input_size=h.OBSERVATION + h.ACTION, output_size=1, hidden_sizes=[256, 256])
        for _ in range(4)
    ]
    h.jitter_torch([policy, vae, *q])
    trainer = trainers.BEARTrainer(
        None, policy, *q, vae, policy_lr=1e-4, qf_lr=3e-4, soft_target_tau=5e-3, policy_update_style="0",
        kernel_choice=kernel, mmd_sigma=20.0,
    )  # fmt: skip

    def mlp(net: torch.nn.Module, *outputs: torch.nn.Module) -> h.Tree:
        return h.network([h.linear(layer) for layer in net.fcs], *map(h.linear, outputs))

    def snapshot() -> dict[str, h.Tree]:
        one, two, target_one, target_two = (mlp(net, net.last_fc) for net in q)
        actor = mlp(policy, policy.last_fc, policy.last_fc_log_std)
        return {
            "vae": vae_tree(vae), "actor": actor, "critic": h.stack_trees(one, two),
            "target_critic": h.stack_trees(target_one, target_two), "target_actor": actor,
            "dual": {"params": {"log": jnp.asarray(trainer.log_alpha.detach().numpy()[0])}},
        }  # fmt: skip

    if timing:
        postpone(trainer)
    start, theirs = snapshot(), []
    data = h.batches(updates, size)
    with as_it_was(h.Draws()), h.mock.patch.object(ptu, "from_numpy", torch.as_tensor):
        for number, d in enumerate(data):
            t = {k: torch.as_tensor(v) for k, v in d.items()}
            trainer._n_train_steps_total = number if phase == "matching" else 40_000 + number
            trainer._need_to_update_eval_statistics = number == 0
            trainer.train_from_torch({
                "observations": t["observation"], "next_observations": t["next_observation"], "actions": t["action"],
                "rewards": t["reward"][:, None], "terminals": 1 - t["mask"][:, None],
            })  # fmt: skip
            theirs.append(snapshot())
    logged = trainer.eval_statistics
    losses = {"critic_loss": logged["QF1 Loss"] + logged["QF2 Loss"], "mmd": logged["MMD Loss Mean"]}
    kind = Simultaneous if timing and phase == "offline" else bear.BEAR
    compare(table, start, theirs, losses, make(bear.Config(kernel=kernel), phase, kind), data)


def postpone(trainer: Any) -> None:
    """Move their critics after the policy, by the gradients of their own loss."""
    kept: list[tuple[torch.optim.Optimizer, list[torch.Tensor]]] = []
    policy_optimizer = trainer.policy_optimizer

    def keep(optimizer: torch.optim.Optimizer) -> None:
        kept.append((optimizer, [p.grad.clone() for p in optimizer.param_groups[0]["params"]]))

    def all_steps() -> None:
        type(policy_optimizer).step(policy_optimizer)
        for optimizer, gradients in kept:
            for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
                parameter.grad = gradient
            type(optimizer).step(optimizer)
        kept.clear()

    trainer.qf1_optimizer.step = lambda: keep(trainer.qf1_optimizer)
    trainer.qf2_optimizer.step = lambda: keep(trainer.qf2_optimizer)
    trainer.policy_optimizer.step = all_steps


def main() -> None:
    """All cases."""
    h.each(
        lambda: d4rl("matching", "laplacian"),
        lambda: d4rl("offline", "laplacian"),
        lambda: d4rl("offline", "gaussian"),
        lambda: d4rl("offline", "laplacian", timing=False),
        lambda: first_code("matching", "laplacian", 10.0),
        lambda: first_code("offline", "laplacian", 10.0),
        lambda: first_code("offline", "gaussian", 20.0),
    )


if __name__ == "__main__":
    main()
