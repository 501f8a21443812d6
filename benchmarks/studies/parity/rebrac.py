"""ReBRAC against DT6A/ReBRAC: `update_td3` and `update_td3_no_targets`, offline and as in its online phase.

The repository's offline file has max(y, return of the data) for a target; the fine-tuning file has it behind a switch,
which is off. So the updates are those of the fine-tuning file, and the offline file's are checked with returns of -inf.
Not compared: readers of data, which step is the first delayed one (the caller says which are), how minibatches are
drawn.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algorithms import rebrac
from benchmarks.studies.parity import harness as h
from common.replay import Batch

h.stub("gym", "d4rl", "h5py", "wandb", "pyrallis", "tqdm", "tqdm.auto", "distrax")
h.stub("dm_env", "dm_control", "dm_control.suite", "dm_control.suite.wrappers")
offline_file, online_file, networks, common = h.theirs(
    "ReBRAC", "src.algorithms.rebrac", "src.algorithms.rebrac_finetune", "src.networks", "src.utils.common"
)

OBS, SIZE, WIDTH, UPDATES = 11, 64, 32, 5
METRICS = ("critic_loss", "q_min", "actor_loss", "batch_entropy", "bc_mse_policy", "bc_mse_random", "action_mse")


def ours_of(theirs: dict) -> dict:
    """Our parameter tree of one of their networks: Dense_0 ... Dense_2 are the hidden layers, Dense_3 is the last."""
    inner = theirs["params"]
    inner = inner.get("VmapCritic_0", inner)
    hidden = {name: layer for name, layer in inner.items() if name != "Dense_3"}
    return {"params": {"MLP_0": hidden, "Dense_0": inner["Dense_3"]}}


def states(config: rebrac.Config, rng: np.random.Generator) -> dict[str, Any]:
    """Their train states, with every parameter moved, and the targets from elsewhere than the networks."""
    observation, action = jnp.zeros((1, OBS), h.REAL), jnp.zeros((1, h.ACTION), h.REAL)
    modules = {
        "actor": networks.DetActor(h.ACTION, WIDTH, layernorm=False, n_hiddens=3),
        "critic": networks.EnsembleCritic(WIDTH, 2, layernorm=True, n_hiddens=3),
    }
    classes = {"actor": online_file.ActorTrainState, "critic": online_file.CriticTrainState}
    rates = {"actor": float(config.actor_learning_rate), "critic": float(config.learning_rate)}
    made = {}
    for name, module in modules.items():
        inputs = (observation,) if name == "actor" else (observation, action)
        params = h.real(module.init(jax.random.key(0), *inputs))
        one, other = (
            jax.tree.map(lambda x: x + 0.05 * jnp.asarray(rng.standard_normal(x.shape), h.REAL), params)
            for _ in range(2)
        )
        made[name] = classes[name].create(
            apply_fn=module.apply, params=one, target_params=other, tx=optax.adam(rates[name])
        )
    return made


def trees(actor: Any, critic: Any) -> dict[str, dict]:
    """Their parameters by our names."""
    return {
        "actor": ours_of(actor.params), "target_actor": ours_of(actor.target_params),
        "critic": ours_of(critic.params), "target_critic": ours_of(critic.target_params),
    }  # fmt: skip


def check(
    name: str, config: rebrac.Config, their_file: Any = online_file, phase: str = "offline", first: int = 1
) -> None:
    """Five updates, the second and fourth of them delayed ones; `first` is the number of the first in its phase."""
    table, rng = h.Table(f"rebrac/{name}"), np.random.default_rng(0)
    made = states(config, rng)
    actor, critic = made["actor"], made["critic"]
    example = Batch(jnp.zeros(OBS), jnp.zeros(h.ACTION), jnp.zeros(()), jnp.zeros(()), jnp.zeros(OBS))
    ours = rebrac.ReBRAC.create(config, jax.random.key(0), example, None).replace(phase=phase)
    start = trees(actor, critic)
    ours = ours.replace(**{part: h.fresh(getattr(ours, part), tree) for part, tree in start.items()})
    data = h.batches(UPDATES, SIZE, observation=OBS)
    for d in data:
        d["next_action"] = rng.uniform(-0.95, 0.95, (SIZE, h.ACTION)).astype(h.REAL)
    draws = h.Draws()

    theirs, losses = [], []
    with h.fixed(draws):
        for i, d in enumerate(data):
            number = first + i
            beta, beta_critic = float(config.actor_penalty), float(config.critic_penalty)
            if phase == "online":  # as their loop has it: its step i is our number less 1
                n = config.online_steps
                beta, beta_critic = beta * max(float(config.least_share), (n - (number - 1)) / n), 0.0
            batch = {
                "states": d["observation"], "actions": d["action"], "next_states": d["next_observation"],
                "next_actions": d["next_action"], "dones": 1 - d["mask"], "mc_returns": np.full(SIZE, -np.inf),
                "rewards": float(config.reward_scale) * d["reward"] + float(config.reward_shift),
            }  # fmt: skip
            arguments = {
                "key": jax.random.key(0), "actor": actor, "critic": critic, "batch": batch,
                "metrics": common.Metrics.create(METRICS), "gamma": float(config.discount), "actor_bc_coef": beta,
                "critic_bc_coef": beta_critic,
                "tau": float(config.target_rate), "policy_noise": float(config.target_noise),
                "noise_clip": float(config.noise_clip),
            }  # fmt: skip
            if their_file is online_file:
                arguments["use_calibration"] = False
            delayed = number % config.policy_delay == 0
            update = their_file.update_td3 if delayed else their_file.update_td3_no_targets
            _, actor, critic, metrics = update(**arguments, **({"normalize_q": True} if delayed else {}))
            theirs.append(trees(actor, critic))
            losses.append({k: float(v[0][0]) for k, v in metrics.accumulators.items()})
    mine, infos = [], []
    kind = rebrac.Prior if phase != "online" else Batch
    names = ("observation", "action", "reward", "mask", "next_observation")
    with h.fixed(draws.rewind()):
        for i, d in enumerate(data):
            rows = h.stacked([d], (*names, "next_action") if kind is rebrac.Prior else names)
            ours, info = ours.update(kind(**rows), jax.random.key(i), jnp.asarray(first + i))
            mine.append({part: getattr(ours, part).params for part in start})
            infos.append(info)
    table.scalar("critic_loss (1st)", infos[0]["critic_loss"], losses[0]["critic_loss"])
    table.scalar("actor_loss (2nd)", infos[1]["actor_loss"], losses[1]["actor_loss"])
    table.scalar("cloning (2nd)", infos[1]["cloning"], losses[1]["bc_mse_policy"])
    for k in (1, 2, UPDATES):
        for part in start:
            if k == 1 and part != "critic":
                moved = max(h.error(x[0][part], h.real(start[part])) for x in (mine, theirs))
                table.row(f"{part} after 1 update: moved (should be 0 on both)", moved)
                continue
            table.change(f"{part} after {k} updates", mine[k - 1][part], theirs[k - 1][part], h.real(start[part]))


def parameters_begin_alike() -> None:
    """Bounds of fresh parameters: kernels and biases of every layer, ours over theirs."""
    table, config = h.Table("rebrac/initial"), rebrac.Config(hidden=(256, 256, 256))
    example = Batch(jnp.zeros(OBS), jnp.zeros(h.ACTION), jnp.zeros(()), jnp.zeros(()), jnp.zeros(OBS))
    ours = rebrac.ReBRAC.create(config, jax.random.key(0), example, None)
    actor = networks.DetActor(h.ACTION, 256, layernorm=False).init(jax.random.key(1), jnp.zeros((1, OBS)))
    inputs = jnp.zeros((1, OBS)), jnp.zeros((1, h.ACTION))
    critic = networks.EnsembleCritic(256, 2).init(jax.random.key(1), *inputs)
    for name, theirs in (("actor", actor), ("critic", critic)):
        theirs, own = ours_of(theirs), getattr(ours, name).params
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(own), jax.tree.leaves(theirs), strict=True):
            assert a.shape == b.shape
            of_one = a if name == "actor" else a[0]
            if of_one.size > 3:  # else chance decides
                what = f"{name}{jax.tree_util.keystr(path[1:])}: greatest number, ours and theirs"
                table.scalar(what, np.abs(a).max(), np.abs(b).max())


if __name__ == "__main__":
    small = {"hidden": (WIDTH,) * 3}
    check("hopper-medium", rebrac.Config(**small))
    check("pen-human", rebrac.Config(**small, actor_penalty=0.1, critic_penalty=0.5, learning_rate=3e-4))
    check("antmaze", rebrac.Config(
        **small, actor_penalty=0.003, critic_penalty=0.002, learning_rate=5e-5, actor_learning_rate=3e-4,
        discount=0.999, reward_scale=100.0, reward_shift=100.0,
    ))  # fmt: skip
    check("offline-file", rebrac.Config(**small, critic_penalty=0.5), their_file=offline_file)
    for least in (0.0, 0.5):
        online = {"online_steps": 9, "least_share": least, "critic_penalty": 0.5, "actor_penalty": 0.4}
        check(f"online, least {least}", rebrac.Config(**small, **online), phase="online", first=3)
    parameters_begin_alike()
