"""AWAC against CORL's file, whole updates, and against rlkit's trainer, which its authors used: one update.

CORL's mean is not squashed; for the comparison it is, by a patch of `_get_policy`. rlkit takes all gradients before the
first step, so its actor is compared with ours at the critics before their step, and after one update; its log standard
deviation is another function of its parameter, whose own step is left out. Not compared: weight decay (theirs is
Adam's, ours AdamW's), rlkit's clamp of the critics, how minibatches are drawn.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from algorithms import awac
from benchmarks.studies.parity import harness as h
from common.replay import Batch

torch.set_default_dtype(torch.float64 if h.BITS == 64 else torch.float32)
torch.set_num_threads(1)
h.stub("gym", "gym.spaces", "d4rl", "wandb", "pyrallis", "tqdm")
corl = h.theirs("CORL/algorithms/offline", "awac")
h.stub("gtimer", "cv2", "skimage", "torchvision", "torchvision.models", "dateutil", "dateutil.tz")
trainer_file, policies, networks = h.theirs(
    "rlkit", "rlkit.torch.sac.awac_trainer", "rlkit.torch.sac.policies", "rlkit.torch.networks"
)

OBS, SIZE, UPDATES = 11, 64, 5
NAMES = ("observation", "action", "reward", "mask", "next_observation")


def moved(*modules: torch.nn.Module) -> None:
    """Every parameter moved, so that no bias is 0 and no target is its network."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in modules:
            for p in module.parameters():
                p.add_(0.05 * torch.randn(p.shape))


def ours_like(config: awac.Config, trees: dict[str, dict]) -> awac.AWAC:
    """Our agent with these parameters."""
    example = Batch(jnp.zeros(OBS), jnp.zeros(h.ACTION), jnp.zeros(()), jnp.zeros(()), jnp.zeros(OBS))
    prior = h.namespace(observation=jnp.zeros((4, OBS)))
    agent = awac.AWAC.create(config, jax.random.key(0), example, prior)
    return agent.replace(**{part: h.fresh(getattr(agent, part), tree) for part, tree in trees.items()})


def of_corl(policy: Any) -> dict[str, dict]:
    """CORL's networks by our names."""

    def tree(mlp: torch.nn.Module) -> dict:
        *hidden, last = (layer for layer in mlp if isinstance(layer, torch.nn.Linear))
        return h.network([h.linear(layer) for layer in hidden], h.linear(last))

    actor = tree(policy._actor._mlp)
    actor["params"]["log_std"] = jnp.asarray(policy._actor._log_std.detach().numpy().copy())
    pairs = {
        name: h.stack_trees(*(tree(getattr(policy, f"{theirs}{i}")._mlp) for i in (1, 2)))
        for name, theirs in (("critic", "_critic_"), ("target_critic", "_target_critic_"))
    }
    return {"actor": actor} | pairs


def squashed(actor: torch.nn.Module, state: torch.Tensor) -> torch.distributions.Normal:
    """CORL's policy, with its mean squashed by tanh."""
    return torch.distributions.Normal(torch.tanh(actor._mlp(state)), actor._log_std.clamp(-20, 2).exp())


def against_corl(temperature: float, largest_weight: float) -> None:
    """Losses and all parameters, update by update."""
    table = h.Table(f"awac/corl lambda {temperature}, W {largest_weight}")
    parts = [corl.Actor(OBS, h.ACTION, 32), corl.Critic(OBS, h.ACTION, 32), corl.Critic(OBS, h.ACTION, 32)]
    for part in parts:  # their standard deviations are in single precision
        part.to(torch.get_default_dtype())
    moved(*parts)
    optimizers = [torch.optim.Adam(part.parameters(), lr=3e-4) for part in parts]
    theirs = corl.AdvantageWeightedActorCritic(
        *(x for pair in zip(parts, optimizers, strict=True) for x in pair),
        gamma=0.99, tau=0.005, awac_lambda=temperature, exp_adv_max=largest_weight,
    )  # fmt: skip
    moved(theirs._target_critic_1, theirs._target_critic_2)
    config = awac.Config(temperature=temperature, largest_weight=largest_weight, hidden=(32,) * 3)
    start = of_corl(theirs)
    ours, data, draws = ours_like(config, start), h.batches(UPDATES, SIZE, observation=OBS), h.Draws()
    with h.fixed(draws), h.mock.patch.object(corl.Actor, "_get_policy", squashed):
        their_infos, expected = [], []
        for d in data:
            t = {k: torch.as_tensor(v) for k, v in d.items()}
            column = [x[:, None] for x in (t["reward"], 1 - t["mask"])]
            batch = [t["observation"], t["action"], column[0], t["next_observation"], column[1]]
            their_infos.append(theirs.update(batch))
            expected.append(of_corl(theirs))
    infos, mine = [], []
    with h.fixed(draws):
        for i, d in enumerate(data):
            ours, info = ours.update(Batch(**h.stacked([d], NAMES)), jax.random.key(i), jnp.asarray(i + 1))
            infos.append(info)
            mine.append({part: getattr(ours, part).params for part in start})
    for k in (0, UPDATES - 1):
        for loss in ("critic_loss", "actor_loss"):
            table.scalar(f"{loss} ({k + 1})", infos[k][loss], their_infos[k][loss])
        for part in start:
            table.change(f"{part} after {k + 1} updates", mine[k][part], expected[k][part], start[part])


def of_rlkit(trainer: Any) -> dict[str, dict]:
    """rlkit's networks by our names; the standard deviation is our parameter's exponential."""

    def tree(net: torch.nn.Module) -> dict:
        return h.network([h.linear(layer) for layer in net.fcs], h.linear(net.last_fc))

    actor, logits = tree(trainer.policy), trainer.policy.log_std_logits.detach().numpy()
    low, high = trainer.policy.min_log_std, trainer.policy.max_log_std
    actor["params"]["log_std"] = jnp.asarray(low + (high - low) / (1 + np.exp(-logits)))
    pairs = {
        name: h.stack_trees(*(tree(getattr(trainer, f"{theirs}{i}")) for i in (1, 2)))
        for name, theirs in (("critic", "qf"), ("target_critic", "target_qf"))
    }
    return {"actor": actor} | pairs


def against_rlkit(name: str, config: awac.Config, **trainer_keywords: Any) -> None:
    """Weights, losses, and one update of critics and actor."""
    table = h.Table(f"awac/rlkit {name}")
    # Its standard deviation begins at 0.05: no sample is clipped on our side.
    policy = policies.GaussianPolicy(
        hidden_sizes=[32, 32], obs_dim=OBS, action_dim=h.ACTION, max_log_std=0, min_log_std=-6,
        std_architecture="values",
    )  # fmt: skip
    critics = [networks.ConcatMlp(input_size=OBS + h.ACTION, output_size=1, hidden_sizes=[32, 32]) for _ in range(4)]
    moved(policy, *critics)
    with torch.no_grad():
        for critic in critics:
            critic.last_fc.weight.mul_(10)
    trainer = trainer_file.AWACTrainer(
        None, policy, *critics, discount=0.99, soft_target_tau=0.005, policy_lr=3e-4, qf_lr=3e-4, alpha=0,
        use_automatic_entropy_tuning=False, compute_bc=False, awr_min_q=True, reparam_weight=0.0, **trainer_keywords,
    )  # fmt: skip
    start = of_rlkit(trainer)
    ours, (d,) = ours_like(config, start), h.batches(1, SIZE, observation=OBS)
    batch = {
        "observations": d["observation"], "actions": d["action"], "rewards": d["reward"][:, None],
        "terminals": 1 - d["mask"][:, None], "next_observations": d["next_observation"],
    }  # fmt: skip
    seen, softmax = [], trainer_file.F.softmax

    def spy(x: torch.Tensor, dim: int) -> torch.Tensor:
        seen.append(softmax(x, dim))
        return seen[-1]

    draws = h.Draws()
    with h.fixed(draws), h.mock.patch.object(trainer_file.F, "softmax", spy):
        trainer.train_from_torch({k: torch.as_tensor(v) for k, v in batch.items()})
    expected, statistics = of_rlkit(trainer), trainer.eval_statistics
    rows, key = Batch(**{k: jnp.asarray(d[k]) for k in NAMES}), jax.random.key(0)
    # They draw at the states first, then at the next states. Their target is [n, n], of equal columns: harmless.
    with h.fixed(draws):
        weight = ours.weight(ours.advantage(rows, key))
        draws.rewind()
        actor, _ = ours.actor.minimise(ours.actor_loss, rows, key, learning_rate=config.learning_rate)
        draws.rewind().normal((SIZE, h.ACTION))
        critic, more = ours.critic.minimise(ours.critic_loss, rows, key, learning_rate=config.learning_rate)
    table.row("weights", h.error({"w": weight / SIZE}, {"w": seen[0][:, 0].detach().numpy()}))
    assert weight.max() > 1.5 > weight.min()
    table.scalar("critic_loss", more["critic_loss"], statistics["QF1 Loss"] + statistics["QF2 Loss"])
    after = {
        "critic": critic.params,
        "target_critic": ours.target_critic.track(critic, config.target_rate).params,
        "actor": actor.params,
    }
    for part, tree in after.items():
        # The standard deviation's parameter is another one.
        trees = ({k: v for k, v in x["params"].items() if k != "log_std"} for x in (tree, expected[part], start[part]))
        table.change(f"{part} after 1 update", *trees)


if __name__ == "__main__":
    against_corl(1.0, 100.0)
    against_corl(0.1, 2.0)
    softmax = {"weighting": "softmax", "hidden": (32, 32)}
    against_rlkit("mujoco", awac.Config(**softmax, temperature=0.2, largest_weight=1e30), beta=0.2)
    against_rlkit(
        "hand", awac.Config(**softmax, temperature=0.5, largest_weight=math.e, baseline="mode"), beta=0.5,
        clip_score=0.5, awr_use_mle_for_vf=True,
    )  # fmt: skip
