"""cql.py against young-geng/JaxCQL and nakamotoo/Cal-QL: ConservativeSAC.train, and Cal-QL's Monte-Carlo returns.

Their loss function is evaluated once per network, with new draws each time; here each sees the same, as `Cycle` deals
them, and so does every update: both sides are compiled, with the draws as constants. Their actions are drawn [batch, n,
action], ours [n, batch, action].
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.studies.parity import harness as h

h.stub("gym", "d4rl", "mlxu")
# JaxCQL takes from mlxu what Cal-QL has copied from there.
sys.modules["mlxu.jax_utils"] = h.theirs("Cal-QL", "JaxCQL.jax_utils")
sys.modules["mlxu.jax_utils"].collect_metrics = sys.modules["mlxu.jax_utils"].collect_jax_metrics
from algorithms import cql  # noqa: E402 - after the stubs
from common.datasets import Dataset, transforms  # noqa: E402
from common.networks import Normaliser  # noqa: E402
from common.replay import Batch, Episode, Replay  # noqa: E402

OBSERVATION, SIZE, WIDTH, ACTIONS = 11, 64, 32, 10
LEAST = 5.0
"""Within the range of the terms of the first minibatch, so that some are cut off."""


def clip(x: jax.Array, low: float | None = None, high: float | None = None, **named: float) -> jax.Array:
    """jax.numpy's, by its present and by its old arguments."""
    return jnp.minimum(jnp.maximum(x, named.get("a_min", low)), named.get("a_max", high))


class Cycle(h.Draws):
    """The same four normal draws and the same uniform one for each evaluation of an update's losses."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        self.turned = turned
        """Whether arrays of three axes are wanted [n, batch, action]."""

    def take(self, kind: str, shape: tuple[int, ...], make: Callable) -> np.ndarray:
        """The array of this call."""
        call, calls = self.count.get(kind, 0), {"normal": 4, "uniform": 1}[kind]
        self.count[kind] = call + 1
        drawn = make(np.random.default_rng([calls, call % calls]))
        if not self.turned or len(shape) != 3:
            return drawn.reshape(shape)
        return np.swapaxes(drawn.reshape(shape[1], shape[0], shape[2]), 0, 1)


def layers(tree: dict) -> list[dict]:
    """Their FullyConnectedNetwork's layers, in order."""
    return [tree[f"Dense_{index}"] for index in range(len(tree))]


def actor_tree(params: dict) -> dict:
    """Their policy's parameters as ours: one last layer becomes two."""
    own = params["params"]
    *hidden, last = layers(own["base_network"])
    halves = [{name: jnp.split(x, 2, axis=-1)[half] for name, x in last.items()} for half in (0, 1)]
    tree = h.network(hidden, *halves)
    numbers = {
        "log_std_scale": own["log_std_multiplier_module"]["value"],
        "log_std_offset": own["log_std_offset_module"]["value"],
    }
    return {"params": tree["params"] | {name: jnp.asarray(x, h.REAL) for name, x in numbers.items()}}


def critics_tree(pair: list[dict]) -> dict:
    """Both of their critics as our ensemble."""
    trees = []
    for params in pair:
        *hidden, last = layers(params["params"]["FullyConnectedNetwork_0"])
        trees.append(h.network(hidden, last))
    return h.stack_trees(*trees)


def scalar_tree(params: dict) -> dict:
    """Their Scalar, a logarithm, as ours."""
    return {"params": {"log": jnp.asarray(params["params"]["value"], h.REAL)}}


def check(name: str, folder: str, values: dict, flags: dict, arguments: dict, phase: str = "offline") -> None:
    """Losses, and parameters after one and five updates. `values` are ours, `flags` and `arguments` theirs."""
    table = h.Table(f"cql/{name}")
    modules = "JaxCQL.conservative_sac", "JaxCQL.model", "JaxCQL.jax_utils"
    sac_module, model, utils = h.theirs(folder, *modules)
    utils.init_rng(0)
    wide = f"{WIDTH}-{WIDTH}"
    policy = model.TanhGaussianPolicy(OBSERVATION, h.ACTION, wide, True, 1.0, -1.0)
    critic = model.FullyConnectedQFunction(OBSERVATION, h.ACTION, f"{wide}-{WIDTH}", True)
    theirs = sac_module.ConservativeSAC(flags | {"target_entropy": -float(h.ACTION)}, policy, critic)
    rng = np.random.default_rng(5)

    def jittered(tree: dict) -> dict:
        return jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.standard_normal(np.shape(x)), h.REAL), tree)

    for key, state in theirs._train_states.items():
        params = jittered(state.params)
        theirs._train_states[key] = state.replace(params=params, opt_state=state.tx.init(params))
    theirs._target_qf_params = jittered(theirs._target_qf_params)

    def snapshot() -> dict:
        states, targets = theirs.train_params, theirs._target_qf_params
        found = {
            "actor": actor_tree(states["policy"]),
            "critic": critics_tree([states["qf1"], states["qf2"]]),
            "target_critic": critics_tree([targets["qf1"], targets["qf2"]]),
            "temperature": scalar_tree(states["log_alpha"]),
        }
        return found | ({"multiplier": scalar_tree(states["log_alpha_prime"])} if "lagrange" in values else {})

    config = cql.Config(hidden=(WIDTH,) * 3, actor_hidden=(WIDTH,) * 2, actions=ACTIONS, **values)
    example = Batch(jnp.zeros(OBSERVATION), jnp.zeros(h.ACTION), jnp.zeros(()), jnp.zeros(()), jnp.zeros(OBSERVATION))
    prior = h.namespace(observation=jnp.zeros((4, OBSERVATION)))
    ours = cql.CQL.create(config, jax.random.key(0), example, prior)
    ours = ours.replace(phase=phase, normal=Normaliser(jnp.zeros(OBSERVATION), jnp.ones(OBSERVATION)))
    start = snapshot()
    ours = ours.replace(**{part: h.fresh(getattr(ours, part), tree) for part, tree in start.items()})
    data = h.batches(5, SIZE)
    for minibatch in data:  # near the fresh critics' values, so that the bound wins for some and loses for others
        minibatch["return_to_go"] = minibatch["return_to_go"] / 10

    reached, logs, mine, infos = [], [], [], []
    with h.fixed(Cycle()), jax.disable_jit(False), h.mock.patch.object(jnp, "clip", clip):
        for d in data:
            batch = {
                "observations": d["observation"], "actions": d["action"], "rewards": d["reward"],
                "next_observations": d["next_observation"], "dones": 1 - d["mask"], "mc_returns": d["return_to_go"],
            }  # fmt: skip
            batch = {name: jnp.asarray(x) for name, x in batch.items()}
            logs.append(theirs.train(batch, **arguments))
            reached.append(snapshot())
    update = jax.jit(cql.CQL.update)
    with h.fixed(Cycle(turned=True)), jax.disable_jit(False):
        for index, d in enumerate(data):
            rows = cql.Rows(
                **h.stacked([d], ("observation", "action", "reward", "mask", "next_observation")),
                return_to_go=jnp.asarray(d["return_to_go"])[None],
            )
            ours, info = update(ours, rows, jax.random.key(index), jnp.asarray(index + 1))
            mine.append({part: getattr(ours, part).params for part in start})
            infos.append(info)

    log, info = logs[0], infos[0]
    table.scalar("actor loss (1st)", info["actor_loss"], log["policy_loss"])
    conservative = 2 * config.weight * info["difference"]
    if "lagrange" in values:
        table.scalar("multiplier (1st)", info["multiplier"], log["cql/alpha_prime"])
        conservative = 2 * config.weight * info["multiplier"] * (info["difference"] - config.gap)
    table.scalar("critic loss (1st)", info["critic_loss"] + conservative, log["qf1_loss"] + log["qf2_loss"])
    if "calibrated" in values:
        rate = np.mean([log[key] for key in log if "bound_rate" in key])
        table.scalar("share of values below the bound (1st)", info["bounded"], rate)
    for count in (1, 5):
        for part in start:
            table.change(f"{part} after {count} updates", mine[count - 1][part], reached[count - 1][part], start[part])


def returns() -> None:
    """R of AntMaze's episodes, of which one in two fails, against calc_return_to_go: of the data, and online."""
    table = h.Table("cql/returns")
    module = h.theirs("Cal-QL", "JaxCQL.replay_buffer")
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, 10)
    ends = np.cumsum(lengths) - 1
    reward, terminated, truncated = (np.zeros(lengths.sum(), kind) for kind in (np.float32, bool, bool))
    terminated[ends[::2]], truncated[ends[1::2]] = True, True
    reward[terminated] = 1
    theirs = np.concatenate(
        [
            module.calc_return_to_go("antmaze-umaze-v2", 10 * part - 5, end, 0.99, 10, -5, True)
            for part, end in zip(np.split(reward, ends[:-1] + 1), np.split(terminated, ends[:-1] + 1), strict=True)
        ]
    )
    empty = np.zeros((len(reward), 2), np.float32)
    data = Dataset(empty, empty, reward, terminated, truncated, empty, terminated, "npz:test")
    learnt = 10 * (reward - 1) + 5
    ours = transforms.returns_to_go(data, learnt, 0.99, continued=True)
    table.row("of the data", float(np.abs(ours - theirs).max() / np.abs(theirs).max()))

    example = Batch(jnp.zeros(2), jnp.zeros(2), jnp.zeros(()), jnp.zeros(()), jnp.zeros(2))
    config = cql.Config(hidden=(4,), calibrated=True, reward_scale=10.0, reward_shift=5.0, online_steps=len(reward))
    agent = cql.CQL.create(config, jax.random.key(0), example, h.namespace(observation=jnp.zeros((4, 2))))
    experience, step, note = Replay.create(example, len(reward)), 0, jax.jit(cql.CQL.after_episode)
    for length in lengths:
        for age in range(length):
            row = example.replace(reward=jnp.asarray(reward[step] - 1.0), mask=jnp.asarray(1.0 - terminated[step]))
            experience, step = experience.insert(row), step + 1
            over = Episode(jnp.asarray(age + 1 == length), jnp.asarray(0.0), jnp.asarray(age + 1))
            agent = note(agent, over, experience)
    table.row("online", float(np.abs(np.asarray(agent.returns) - theirs).max() / np.abs(theirs).max()))


if __name__ == "__main__":
    returns()
    plain = {"cql_n_actions": ACTIONS, "policy_lr": 1e-4}
    lagrange = plain | {"cql_lagrange": True, "cql_target_action_gap": 0.8, "cql_max_target_backup": True}
    check("JaxCQL", "JaxCQL", {}, plain, {})
    check("JaxCQL, cloning", "JaxCQL", {}, plain, {"bc": True}, "cloning")
    clipped = {"lagrange": True, "max_target": True, "least_difference": LEAST}
    check("JaxCQL, Lagrange, clipped", "JaxCQL", clipped, lagrange | {"cql_clip_diff_min": LEAST}, {})
    antmaze = {"lagrange": True, "max_target": True, "calibrated": True}
    check("Cal-QL, AntMaze", "Cal-QL", antmaze, lagrange, {"enable_calql": True})
    adroit = {"max_target": True, "weight": 1.0}
    flags = {"cql_n_actions": ACTIONS, "cql_max_target_backup": True}
    check("Cal-QL, Adroit without calibration", "Cal-QL", adroit, flags, {"cql_min_q_weight": 1.0})
    arguments = {"cql_min_q_weight": 1.0, "enable_calql": True}
    check("Cal-QL, Adroit", "Cal-QL", adroit | {"calibrated": True}, flags, arguments)
