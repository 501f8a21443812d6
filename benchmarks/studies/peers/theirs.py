"""Times a peer's own update from a checkout of it: `theirs.py PEER CHECKOUT SETTINGS`, run by benchmarks/throughput.py.

PEER is rlpd, jax-corl, unifloral, corl, adaptive-bc or bcq. Their functions are called as their training scripts call
them, on random data. It needs a Python with what their files import, but for gym, which Gymnasium stands in for, and
for d4rl, wandb and pyrallis: of those nothing is used, and empty stand-ins are put in their place.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Anything(types.ModuleType):
    """A module in which every name is a class that can also decorate."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *_, **__: None, "__call__": lambda self, function: function})


def load(path: Path) -> types.ModuleType:
    """Their file as a module, without its command line and without what it does not need here."""
    for name in ("d4rl", "wandb", "pyrallis"):
        sys.modules[name] = Anything(name)
    sys.modules["gym"] = importlib.import_module("gymnasium")
    sys.modules["pyrallis"].wrap = lambda *_: lambda function: function
    sys.argv = [str(path)]
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def random_data(settings: dict) -> dict[str, np.ndarray]:
    """Transitions in D4RL's layout."""
    rng, rows = np.random.default_rng(0), settings["rows"]
    return {
        "observations": rng.normal(size=(rows, settings["observation"])).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(rows, settings["action"])).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.zeros(rows, np.float32),
        "next_observations": rng.normal(size=(rows, settings["observation"])).astype(np.float32),
    }


def rlpd(checkout: Path, settings: dict) -> Callable[[int], None]:
    """AntMaze's agent, on a minibatch of all gradient steps of one environment step."""
    import gymnasium
    import jax

    sys.path.insert(0, str(checkout))
    sys.modules["gym"], sys.modules["gym.spaces"] = gymnasium, gymnasium.spaces
    importlib.import_module("tensorflow_probability.substrates.jax")  # some releases do not load it by themselves
    from rlpd.agents import SACLearner

    observation = gymnasium.spaces.Box(-1, 1, (settings["observation"],), np.float32)
    action = gymnasium.spaces.Box(-1, 1, (settings["action"],), np.float32)
    networks = {"hidden_dims": tuple(settings["hidden"]), "num_qs": 10, "num_min_qs": 1, "critic_layer_norm": True}
    agent = SACLearner.create(0, observation, action, **networks, backup_entropy=False)
    data = random_data(settings | {"rows": 256 * settings["utd"]})
    names = ("observations", "actions", "rewards", "next_observations")
    batch = {name: data[name] for name in names} | {"masks": 1 - data["terminals"]}

    def run(updates: int) -> None:
        nonlocal agent
        for _ in range(updates // settings["utd"]):
            agent, information = agent.update(batch, settings["utd"])
        jax.block_until_ready((agent, information))

    return run


def jax_corl(checkout: Path, settings: dict) -> Callable[[int], None]:
    """Eight updates per jitted call, as by their default."""
    import jax
    import jax.numpy as jnp

    name, hidden = settings["algorithm"], tuple(settings["hidden"])
    if name == "decision_transformer":
        return jax_corl_transformer(checkout, settings)
    module = load(checkout / "algos" / {"td3_bc": "td3bc.py"}.get(name, f"{name}.py"))
    rows = {key: jnp.asarray(value) for key, value in random_data(settings).items()}
    rows |= {"dones": rows["terminals"], "masks": 1 - rows["terminals"], "dones_float": rows["terminals"]}
    data = module.Transition(**{field: rows[field] for field in module.Transition._fields})
    widths = {"actor_hidden_dims": hidden, "critic_hidden_dims": hidden} if name == "awac" else {"hidden_dims": hidden}
    module.config = config = module.config.model_copy(update=widths | {"action_dim": settings["action"]})
    short = name.replace("_", "")
    state = getattr(module, f"create_{short}_train_state")(
        jax.random.PRNGKey(0), data.observations[0], data.actions[0], config
    )
    algorithm = getattr(module, short.upper())()
    update = jax.jit(algorithm.update_n_times, static_argnums=(3,))
    key = jax.random.PRNGKey(1)

    def run(updates: int) -> None:
        nonlocal state, key
        for _ in range(updates // config.n_jitted_updates):
            key, used = jax.random.split(key)
            state, information = update(state, data, used, config)
        jax.block_until_ready((state, information))

    return run


def jax_corl_transformer(checkout: Path, settings: dict) -> Callable[[int], None]:
    """Windows drawn from padded episodes of 1000 steps, then a jitted update, as in their training loop."""
    import jax
    import jax.numpy as jnp

    module = load(checkout / "algos" / "dt.py")
    data, length = random_data(settings), 1000
    parts = {key: jnp.asarray(rows.reshape(-1, length, *rows.shape[1:])) for key, rows in data.items()}
    episodes = len(parts["rewards"])
    fields = {"states": "observations", "actions": "actions"}
    trajectories = module.Trajectory(
        timesteps=jnp.tile(jnp.arange(length), (episodes, 1)), returns_to_go=parts["rewards"][..., None],
        masks=jnp.ones((episodes, length)), **{field: parts[name] for field, name in fields.items()},
    )  # fmt: skip
    config, lengths = module.config, jnp.full(episodes, length)
    sizes = settings["observation"], settings["action"]
    state = module.create_dt_train_state(jax.random.PRNGKey(0), *sizes, config)
    if settings["part"] == "decoding":
        decide = jax.jit(module.DT().get_action)
        fields = trajectories.timesteps, trajectories.states, trajectories.actions, trajectories.returns_to_go

        def decode(steps: int) -> None:
            for step in range(steps):
                window = slice(step % 500, step % 500 + config.context_len)
                np.asarray(decide(state, *(field[:1, window] for field in fields))[0, -1])

        return decode
    update = jax.jit(module.DT().update)
    key = jax.random.PRNGKey(1)

    def run(updates: int) -> None:
        nonlocal state, key
        for _ in range(updates):
            key, of_data, of_update = jax.random.split(key, 3)
            drawn = config.batch_size, config.context_len, episodes
            batch = module.sample_traj_batch(of_data, trajectories, *drawn, lengths)
            state, information = update(state, batch, of_update)
        jax.block_until_ready((state, information))

    return run


def unifloral_mopo(checkout: Path, settings: dict) -> Callable[[int], None]:
    """As `unifloral`, of two critics, with rollouts in a model of their sizes that has learnt nothing."""
    import jax
    import jax.numpy as jnp

    jax.tree_map = jax.tree.map  # the name that JAX had for it
    sys.path.insert(0, str(checkout / "algorithms"))
    module = load(checkout / "algorithms" / "mopo.py")
    dynamics = sys.modules["dynamics"]
    rows = {key: jnp.asarray(value) for key, value in random_data(settings).items()}
    fields = {"obs": "observations", "action": "actions", "reward": "rewards", "next_obs": "next_observations"}
    fields |= {"done": "terminals", "next_action": "actions"}
    data = module.Transition(**{field: rows[fields[field]] for field in module.Transition._fields})
    args, sizes = module.Args(batch_size=256, num_critics=2), dynamics.Args()
    observation, action, key = data.obs[0], data.action[0], jax.random.PRNGKey(0)
    network = dynamics.EnsembleDynamicsModel(
        len(observation), len(action), sizes.num_ensemble, sizes.n_layers, sizes.layer_size
    )
    parameters = network.init(key, jnp.concatenate([observation, action]))
    termination = dynamics.get_termination_fn("walker2d-medium-v2")
    model = dynamics.EnsembleDynamics(network, parameters, jnp.arange(sizes.num_elites), termination)
    model.dataset = data
    room = args.rollout_batch_size * args.rollout_length * args.model_retain_epochs
    buffer = jax.tree.map(lambda x: jnp.zeros((room, *x.shape[1:])), data)
    imagine = model.make_rollout_fn(args.rollout_batch_size, args.rollout_length, args.step_penalty_coef)
    networks = module.TanhGaussianActor(len(action)), module.VectorQ(args.num_critics), module.EntropyCoef()
    inputs = [observation], [observation, action], []
    actor, critic, alpha = (module.create_train_state(args, key, *pair) for pair in zip(networks, inputs, strict=True))
    if settings["part"] == "rollouts":

        def policy(observation: Any, key: Any) -> Any:
            return actor.apply_fn(actor.params, observation).sample(seed=key)

        of_policy = jax.jit(lambda key, rows: imagine(key, policy, rows))

        def imagined(steps: int) -> None:
            for _ in range(steps // (args.rollout_batch_size * args.rollout_length)):
                jax.block_until_ready(of_policy(key, buffer))

        return imagined
    step = module.make_train_step(args, *(network.apply for network in networks), data, imagine)
    carry = jax.random.PRNGKey(1), module.AgentTrainState(actor, critic, critic, alpha), buffer

    def run(updates: int) -> None:
        nonlocal carry
        carry, information = jax.lax.scan(step, carry, None, updates)
        jax.block_until_ready((carry, information))

    return run


def unifloral(checkout: Path, settings: dict) -> Callable[[int], None]:
    """A scan of their training step over a whole interval; TD3+BC's step holds two critic updates."""
    import jax
    import jax.numpy as jnp

    name = settings["algorithm"]
    if name == "mopo":
        return unifloral_mopo(checkout, settings)
    module = load(checkout / "algorithms" / f"{name}.py")
    rows = {key: jnp.asarray(value) for key, value in random_data(settings).items()}
    fields = {"obs": "observations", "action": "actions", "reward": "rewards", "next_obs": "next_observations"}
    fields |= {"done": "terminals", "next_action": "actions"}
    data = module.Transition(**{field: rows[fields[field]] for field in module.Transition._fields})
    args = module.Args(batch_size=256)
    observation, action = data.obs[0], data.action[0]
    statistics = () if name == "edac" else (data.obs.mean(axis=0), data.obs.std(axis=0))
    of_actor, of_critic = (
        ((args.actor_ln, args.norm_obs), (args.critic_ln, args.norm_obs)) if name == "rebrac" else ((), ())
    )
    deterministic = name in ("td3_bc", "bc", "rebrac")
    actor = (module.DeterministicTanhActor if deterministic else module.TanhGaussianActor)(
        len(action), *statistics, *of_actor
    )

    def state_of(network: Any, *inputs: Any) -> Any:
        return module.create_train_state(args, jax.random.PRNGKey(0), network, list(inputs))

    if name == "bc":
        networks, states = [actor], {"actor": state_of(actor, observation)}
    elif name == "edac":
        critic, alpha = module.VectorQ(args.num_critics), module.EntropyCoef()
        networks = [actor, critic, alpha]
        states = {"actor": state_of(actor, observation), "alpha": state_of(alpha)}
        states |= {key: state_of(critic, observation, action) for key in ("vec_q", "vec_q_target")}
    else:
        critic = module.DualQNetwork(*statistics, *of_critic)
        networks, states = [actor, critic], {"actor": state_of(actor, observation)}
        states |= {key: state_of(critic, observation, action) for key in ("dual_q", "dual_q_target")}
        if name == "iql":
            value = module.StateValueFunction(*statistics)
            networks.append(value)
            states["value"] = state_of(value, observation)
        else:
            states["actor_target"] = state_of(actor, observation)
    step = module.make_train_step(args, *(network.apply for network in networks), data)
    carry = jax.random.PRNGKey(1), module.AgentTrainState(**states)
    each = getattr(args, "num_critic_updates_per_step", 1)

    def run(updates: int) -> None:
        nonlocal carry
        carry, information = jax.lax.scan(step, carry, None, updates // each)
        jax.block_until_ready((carry, information))

    return run


def torch_device() -> Any:
    """The GPU if PyTorch sees one; what is made from now on is made there."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_device(device)
    return device


def corl(checkout: Path, settings: dict) -> Callable[[int], None]:
    """A minibatch from their buffer, then a step of their trainer."""
    import torch

    device = torch_device()
    name, sizes = settings["algorithm"], (settings["observation"], settings["action"])
    module = load(checkout / "algorithms" / "offline" / f"{'any_percent_bc' if name == 'bc' else name}.py")
    buffer = module.ReplayBuffer(*sizes, settings["rows"], device)
    buffer.load_d4rl_dataset(random_data(settings))

    def adam(network: Any) -> Any:
        return torch.optim.Adam(network.parameters(), lr=3e-4)

    if name == "edac":
        actor = module.Actor(*sizes, 256, 1.0)
        critic = module.VectorizedCritic(*sizes, 256, 10)
        rest = {"eta": 1.0, "alpha_learning_rate": 3e-4, "device": device}
        trainer = module.EDAC(actor, adam(actor), critic, adam(critic), **rest)
    elif name == "awac":
        actor, *critics = (kind(*sizes, 256) for kind in (module.Actor, module.Critic, module.Critic))
        trainer = module.AdvantageWeightedActorCritic(
            *(part for network in (actor, *critics) for part in (network, adam(network)))
        )
    elif name == "cql":
        actor, *critics = (
            module.TanhGaussianPolicy(*sizes, 1.0),
            *(module.FullyConnectedQFunction(*sizes) for _ in "12"),
        )
        pairs = [part for network in (*critics, actor) for part in (network, adam(network))]
        trainer = module.ContinuousCQL(*pairs, target_entropy=-sizes[1], bc_steps=0, device=device)
    elif name == "iql":
        actor, q, v = module.GaussianPolicy(*sizes, 1.0), module.TwinQ(*sizes), module.ValueFunction(sizes[0])
        trainer = module.ImplicitQLearning(1.0, actor, adam(actor), q, adam(q), v, adam(v), device=device)
    else:
        actor = module.Actor(*sizes, 1.0)
        if name == "bc":
            trainer = module.BC(1.0, actor, adam(actor), device=device)
        else:
            critics = [module.Critic(*sizes) for _ in range(2)]
            pairs = [part for critic in critics for part in (critic, adam(critic))]
            trainer = module.TD3_BC(1.0, actor, adam(actor), *pairs, device=device)
    step = trainer.update if name in ("awac", "edac") else trainer.train

    def run(updates: int) -> None:
        for _ in range(updates):
            step(buffer.sample(256))

    return run


def adaptive_bc(checkout: Path, settings: dict) -> Callable[[int], None]:
    """Online: an action of the policy, then twenty minibatches from the buffer and steps of the trainer."""
    utils, module = load(checkout / "utils.py"), load(checkout / "redq_bc.py")
    sizes = settings["observation"], settings["action"]
    buffer = utils.ReplayBuffer(*sizes, max_size=2 * settings["rows"])
    data = random_data(settings)
    buffer.convert_D4RL(data)
    policy = module.REDQ_BC(*sizes, 1.0, pretrain=False)
    state = data["observations"][0]

    def run(updates: int) -> None:
        for update in range(updates):
            if update % settings["utd"] == 0:
                action = policy.select_action(state)
                buffer.add(state, action, state, 0.0, 0.0)
            policy.train(buffer.sample(256))

    return run


def bcq(checkout: Path, settings: dict) -> Callable[[int], None]:
    """Their training loop."""
    device, sizes = torch_device(), (settings["observation"], settings["action"])
    utils, module = (load(checkout / "continuous_BCQ" / f"{name}.py") for name in ("utils", "BCQ"))
    buffer, data = utils.ReplayBuffer(*sizes, device, settings["rows"]), random_data(settings)
    buffer.state, buffer.action, buffer.next_state = (data[x] for x in ("observations", "actions", "next_observations"))
    buffer.reward, buffer.not_done = data["rewards"][:, None], 1 - data["terminals"][:, None]
    buffer.size = settings["rows"]
    policy = module.BCQ(*sizes, 1.0, device)

    def run(updates: int) -> None:
        policy.train(buffer, updates)

    return run


def main(peer: str, checkout: str, settings: dict) -> None:
    """Print the seconds of the first calls together, then of one update, timed anew, per line of input."""
    functions = rlpd, jax_corl, unifloral, corl, adaptive_bc, bcq
    peers = {function.__name__.replace("_", "-"): function for function in functions}
    with contextlib.redirect_stdout(sys.stderr):  # what they print is not an answer
        run = peers[peer](Path(checkout), settings)

    def seconds() -> float:
        start = time.perf_counter()
        run(settings["updates"])
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.synchronize()
        return time.perf_counter() - start

    print(seconds() + seconds(), flush=True)
    for _ in sys.stdin:
        print(seconds() / settings["updates"], flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
