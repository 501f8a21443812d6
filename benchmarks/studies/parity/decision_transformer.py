"""decision_transformer.py against kzl/decision-transformer: windows, losses, updates, and an episode that is played.

Their `experiment` runs as it stands up to the first iteration, on episodes that are given to it; model, optimizer,
schedule and minibatches are what it made. Of transformers, at the version that they ask for, their copy of GPT-2 needs
only what stands here in its place: a linear layer, a base class, a record. Deviations of observations get their 1e-6.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import decision_transformer as dt
from benchmarks.studies.parity import harness as h
from common import tasks
from common.datasets import Dataset
from common.networks import Normaliser

torch = h.pytorch()
h.stub(
    "gym", "wandb", "transformers.activations", "transformers.file_utils", "transformers.modeling_outputs",
    "transformers.modeling_utils", "transformers.utils.logging", "transformers.utils.model_parallel_utils",
    "transformers.models.gpt2.configuration_gpt2",
)  # fmt: skip
LENGTHS = (50, 7, 30, 1, 25)
BATCH, UPDATES = 12, 5


class Conv1D(torch.nn.Module):
    """y = x w + b."""

    def __init__(self, out: int, size: int):
        super().__init__()
        self.weight = torch.nn.Parameter(0.02 * torch.randn(size, out))
        self.bias = torch.nn.Parameter(torch.zeros(out))

    def forward(self, x: Any) -> Any:
        """[..., size] to [..., out]."""
        return x @ self.weight + self.bias


class Base(torch.nn.Module):
    """What their GPT2Model asks of PreTrainedModel."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    dtype = property(lambda self: torch.get_default_dtype())

    def init_weights(self) -> None:
        """Theirs, of every part."""
        self.apply(self._init_weights)

    def get_head_mask(self, mask: None, layers: int) -> list[None]:
        """None for every layer."""
        return [None] * layers


def settings(**values: Any) -> h.namespace:
    """GPT2Config: the library's defaults under what is given."""
    defaults = {
        "n_inner": None, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "embd_pdrop": 0.1, "n_ctx": 1024,
        "add_cross_attention": False, "output_attentions": False, "output_hidden_states": False, "use_cache": True,
        "use_return_dict": True,
    }  # fmt: skip
    return h.namespace(**defaults | values)


def as_it_is(*_: Any, **__: Any) -> Any:
    """A decorator that does nothing."""
    return lambda function: function


def put(module: str, **values: Any) -> None:
    """Values in the place of those of a module that is stubbed."""
    for name, value in values.items():
        setattr(sys.modules[module], name, value)


STARTS = "add_start_docstrings", "add_start_docstrings_to_model_forward", "add_code_sample_docstrings"
put("transformers", GPT2Config=settings)
put("transformers.activations", ACT2FN={"relu": torch.relu})
put("transformers.file_utils", ModelOutput=object, **dict.fromkeys(STARTS, as_it_is))
put("transformers.modeling_outputs", BaseModelOutputWithPastAndCrossAttentions=dict)
put("transformers.modeling_utils", Conv1D=Conv1D, PreTrainedModel=Base)
put("transformers.utils.model_parallel_utils", assert_device_map=None)
peer, played = h.theirs("decision-transformer/gym", "experiment", "decision_transformer.evaluation.evaluate_episodes")


def precise() -> Any:
    """Their single precision as this check's."""
    return h.mock.patch.object(torch, "float32", torch.get_default_dtype())


def same_dropout(draws: h.Draws) -> Any:
    """PyTorch's dropout with these draws."""

    def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return x * torch.as_tensor(draws.keep(x.shape, 1 - p)) / (1 - p) if training and p else x

    return h.mock.patch.object(torch.nn.functional, "dropout", dropout)


def episodes() -> tuple[list[dict[str, np.ndarray]], Dataset]:
    """The same episodes as theirs and as ours."""
    (d,) = h.batches(1, sum(LENGTHS), terminal=0.0)
    end = np.zeros(sum(LENGTHS), bool)
    end[np.cumsum(LENGTHS) - 1] = True
    parts = [np.split(d[name], np.cumsum(LENGTHS)[:-1]) for name in ("observation", "action", "reward")]
    theirs = [
        {"observations": o, "actions": a, "rewards": r, "terminals": np.zeros(len(r))}
        for o, a, r in zip(*parts, strict=True)
    ]
    columns = d["observation"], d["action"], d["reward"], end & False, end, d["next_observation"], end & False
    return theirs, Dataset(*columns, "npz:given")


class Begun(Exception):
    """Their first iteration."""


def their_trainer(paths: list[dict[str, np.ndarray]], **values: Any) -> Any:
    """What their `experiment` has made of these episodes."""
    made = []

    def begin(self: Any, **_: Any) -> None:
        made.append(self)
        raise Begun

    shape = h.namespace(shape=(h.OBSERVATION,)), h.namespace(shape=(h.ACTION,))
    environment = h.namespace(observation_space=shape[0], action_space=shape[1])
    variant = {
        "env": "hopper", "dataset": "medium", "model_type": "dt", "device": "cpu", "K": 20, "batch_size": BATCH,
        "num_eval_episodes": 1, "embed_dim": 128, "n_layer": 3, "n_head": 1, "activation_function": "relu",
        "dropout": 0.1, "learning_rate": 1e-4, "weight_decay": 1e-4, "warmup_steps": 3, "max_iters": 1,
        "num_steps_per_iter": 1,
    }  # fmt: skip
    with (
        h.mock.patch.object(peer.gym, "make", lambda _: environment),
        h.mock.patch.object(peer, "open", h.mock.mock_open(), create=True),
        h.mock.patch.object(peer.pickle, "load", lambda _: paths),
        h.mock.patch.object(peer.SequenceTrainer, "train_iteration", begin),
        h.contextlib.redirect_stdout(None),
        h.contextlib.suppress(Begun),
    ):
        peer.experiment("parity", variant | values)
    (trainer,) = made
    trainer.model.train()
    return trainer


def norm(layer: Any) -> dict[str, np.ndarray]:
    """Ours of a LayerNorm."""
    return {"scale": layer.weight.detach().numpy().copy(), "bias": layer.bias.detach().numpy().copy()}


def straight(layer: Conv1D) -> dict[str, np.ndarray]:
    """Ours of a Conv1D, whose weight is not transposed."""
    return {"kernel": layer.weight.detach().numpy().copy(), "bias": layer.bias.detach().numpy().copy()}


def tree_of(model: Any) -> h.Tree:
    """Ours of their model."""
    own = {
        "to_go": h.linear(model.embed_return), "observation": h.linear(model.embed_state),
        "action": h.linear(model.embed_action), "head": h.linear(model.predict_action[0]),
        "moments": {"embedding": model.embed_timestep.weight.detach().numpy().copy()},
        "LayerNorm_0": norm(model.embed_ln), "LayerNorm_1": norm(model.transformer.ln_f),
    }  # fmt: skip
    for number, block in enumerate(model.transformer.h):
        layers = block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj
        own[f"Block_{number}"] = {f"Linear_{k}": straight(layer) for k, layer in enumerate(layers)}
        own[f"Block_{number}"] |= {"LayerNorm_0": norm(block.ln_1), "LayerNorm_1": norm(block.ln_2)}
    return h.real({"params": own})


def ours_like(config: dt.Config, data: Dataset, params: h.Tree) -> tuple[dt.DecisionTransformer, dt.Prior]:
    """Our agent with these parameters, and its data."""
    prior = jax.tree.map(jnp.asarray, dt.DecisionTransformer.prepare(config, data, tasks.find("hopper-medium")))
    agent = dt.DecisionTransformer.create(config, jax.random.key(0), h.example(), prior)
    normal = Normaliser(prior.observation.mean(0), prior.observation.std(0) + 1e-6)
    return agent.replace(policy=h.fresh(agent.policy, params), normal=normal, phase="offline"), prior


def learning(label: str, config: dt.Config, **values: Any) -> None:
    """Minibatches of their `get_batch`, and as many updates."""
    table, (paths, data) = h.Table(label), episodes()
    torch.manual_seed(0)
    trainer = their_trainer(paths, **values)
    h.jitter_torch([trainer.model], seed=1)
    start = tree_of(trainer.model)
    agent, prior = ours_like(config, data, start)
    starts, get_batch, made = [], trainer.get_batch, []
    order = np.argsort([p["rewards"].sum() for p in paths])
    first = np.cumsum((0, *LENGTHS))[order]
    rng = np.random.default_rng(4)

    def recorded(size: int) -> tuple:
        draws = rng.integers(0, sum(LENGTHS), size)  # rows of all episodes, uniformly
        episode = np.searchsorted(np.cumsum(LENGTHS), draws, side="right")
        chosen, places = np.argsort(order)[episode], iter((draws - np.cumsum((0, *LENGTHS))[episode]).tolist())
        with (
            h.mock.patch.object(np.random, "choice", lambda *_, **__: chosen),
            h.mock.patch.object(peer.random, "randint", lambda low, high: next(places)),
        ):
            made.append(get_batch(size))
        starts.append(first[chosen] + draws - np.cumsum((0, *LENGTHS))[episode])
        return made[-1]

    draws, theirs, losses = h.Draws(5), [], []
    trainer.get_batch = recorded
    with precise(), same_dropout(draws):
        for _ in range(UPDATES):
            losses.append(trainer.train_step())
            trainer.scheduler.step()
            theirs.append({"policy": tree_of(trainer.model)})
    ours, worst = [], 0.0
    with h.fixed(draws):
        for number in range(UPDATES):
            with h.mock.patch.object(jax.random, "randint", lambda *_, n=number: jnp.asarray(starts[n])[None]):
                windows = jax.tree.map(lambda x: x[0], agent.sample(jax.random.key(0), None, prior))
            s, a, _, _, to_go, times, mask = (np.asarray(x) for x in made[number])
            real = np.asarray(windows.real)
            assert np.array_equal(real, mask == 1)
            for mine, target in (
                (windows.observation, s), (windows.action, a), (windows.to_go, to_go[:, :-1, 0]), (windows.time, times)
            ):  # fmt: skip
                worst = max(worst, h.error(np.asarray(mine)[real], target[real]))
            agent, metrics = agent.update_once(windows, jax.random.key(0), jnp.asarray(number + 1))
            ours.append({"policy": agent.policy.params})
            if not number:
                table.scalar("actor_loss (1st update)", metrics["actor_loss"], losses[0])
    table.row("windows of all updates", worst, "where steps are real; returns-to-go are kept in single precision here")
    table.changes(ours, theirs, {"policy": start}, at=(1, UPDATES))


def acting(steps: int = 45) -> None:
    """Their `evaluate_episode_rtg`, beyond the context."""
    table, (paths, data) = h.Table("an episode"), episodes()
    torch.manual_seed(0)
    model = their_trainer(paths).model
    h.jitter_torch([model], seed=1)
    config = dt.Config(target_return=3600.0)
    agent, _ = ours_like(config, data, tree_of(model))
    rng = np.random.default_rng(3)
    observations, rewards = rng.standard_normal((steps + 1, h.OBSERVATION)), 100 * rng.standard_normal(steps)
    taken, seen = [], iter(observations)

    def step(action: np.ndarray) -> tuple:
        taken.append(action.copy())
        return next(seen), rewards[len(taken) - 1], len(taken) == steps, {}

    environment = h.namespace(reset=lambda: next(seen), step=step)
    normal = (np.array(x) for x in (agent.normal.mean, agent.normal.std))
    with precise(), torch.no_grad():
        played.evaluate_episode_rtg(
            environment, h.OBSERVATION, h.ACTION, model, target_return=3.6, device="cpu",
            **dict(zip(("state_mean", "state_std"), normal, strict=True)),
        )  # fmt: skip
    memory, ours, reward = jax.tree.map(lambda x: h.real(x) if x.ndim else x, agent.recall()), [], 0.0
    for t in range(steps):
        action, memory = agent.proceed(memory, jnp.asarray(observations[t], h.REAL), jnp.asarray(reward, h.REAL))
        ours.append(np.asarray(action))
        reward = rewards[t]
    table.row(f"actions of {steps} steps", h.error(np.stack(ours), np.stack(taken)), "of a context of 20")
    table.row("return asked for first", float(agent.recall().to_go[-1]) * 1000 - 3600)


def main() -> None:
    """All cases."""
    values = {"warm_up": 3, "batch_size": BATCH}
    learning("defaults, dropout 0.1", dt.Config(**values))
    flags = {"dropout": 0.0, "n_head": 4, "n_layer": 2, "embed_dim": 64, "weight_decay": 0.1}
    own = {"dropout": 0.0, "heads": 4, "layers": 2, "embedding": 64, "weight_decay": 0.1}
    with h.mock.patch.object(
        sys.modules["transformers"], "GPT2Config", lambda **given: settings(**given, embd_pdrop=0.0)
    ):
        learning("4 heads, weight decay 0.1", dt.Config(**values | own), **flags)
    acting()


if __name__ == "__main__":
    main()
