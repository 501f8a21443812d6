"""What --precision changes: the products and hidden layers of updates, and nothing else."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import OBSERVATION
from served import SMALL, serve, table
from test_agent import MODULES, fresh, some

from algorithms.td3_bc import TD3BC, Config
from common.layers import activations
from common.networks import MLP, Critic, Ensemble
from common.programs import Programs

OFFLINE = [name for name, module in MODULES.items() if "offline" in dict(module.Config().phases)]


class FlaxMLP(nn.Module):
    layer_norm: bool
    relu_first: bool = False

    @nn.compact
    def __call__(self, x):
        for width in (16, 8):
            x = nn.Dense(width, dtype=jnp.bfloat16)(x)
            if self.relu_first:
                x = nn.relu(x)
            x = nn.LayerNorm(dtype=jnp.bfloat16)(x) if self.layer_norm else x
            x = x if self.relu_first else nn.relu(x)
        return x


@pytest.mark.parametrize(("layer_norm", "relu_first"), [(False, False), (True, False), (True, True)])
def test_hidden_layers_are_those_of_flax_in_bfloat16(layer_norm, relu_first):
    x = jax.random.normal(jax.random.key(0), (9, 4))
    module, reference = MLP((16, 8), layer_norm, relu_first=relu_first), FlaxMLP(layer_norm, relu_first)
    params = module.init(jax.random.key(1), x)
    renamed = {"params": {name.replace("LayerNormReLU", "LayerNorm"): v for name, v in params["params"].items()}}
    weights = jax.random.normal(jax.random.key(2), (9, 8))

    def value(module, params):
        return (weights * module.apply(params, x).astype(jnp.float32)).sum()

    with activations("bfloat16"):
        found, gradients = module.apply(params, x), jax.grad(lambda p: value(module, p))(params)
    plain, expected = reference.apply(renamed, x), jax.grad(lambda p: value(reference, p))(renamed)
    assert found.dtype == plain.dtype == jnp.bfloat16
    assert module.apply(params, x).dtype == jnp.float32
    np.testing.assert_allclose(found.astype(np.float32), plain.astype(np.float32), rtol=0.02, atol=0.01)
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.06)


def test_an_output_is_the_product_of_rounded_numbers_in_float32():
    critic, rng = Critic(()), np.random.default_rng(0)
    observation, action = (rng.normal(size=(5, size)).astype(np.float32) for size in (40, 3))
    params = critic.init(jax.random.key(0), observation, action)
    params["params"]["Dense_0"]["bias"] = jnp.array([0.123456])
    with activations("bfloat16"):
        found = critic.apply(params, observation, action)
    x, kernel = np.concatenate([observation, action], -1), np.asarray(params["params"]["Dense_0"]["kernel"])
    exact = (x.astype(jnp.bfloat16).astype(np.float64) @ kernel.astype(jnp.bfloat16).astype(np.float64))[:, 0]
    np.testing.assert_allclose(found, exact + 0.123456, rtol=1e-6, atol=1e-6)
    assert np.abs(x @ kernel - exact[:, None]).max() > 1e-4  # or nothing was rounded
    ensemble = Ensemble.create(critic, jax.random.key(1), observation, action, members=2)
    with activations("bfloat16"):
        assert ensemble(observation, action).dtype == jnp.float32


@pytest.mark.parametrize("name", some("edac", "mopo", "decision_transformer", of=OFFLINE))
def test_an_update_changes_no_type(name):
    agent, prior = fresh(MODULES[name])
    agent = jax.tree.map(jnp.asarray, agent)
    keys, numbers = jax.random.split(jax.random.key(0), 4), jnp.arange(1, 5)

    def update(agent, prior):
        return agent.update_offline(keys, numbers, prior, grouped=False)

    with activations("bfloat16"):
        traced = jax.make_jaxpr(update, return_shape=True)(agent, prior)
    after, metrics = traced[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), agent)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(metrics))
    assert "bf16" in str(traced[0])


@pytest.fixture(scope="module")
def programs():
    return {name: Programs(TD3BC, Config(hidden=(8,)), 1, None, 1, name) for name in ("default", "float32", "bfloat16")}


def test_only_updates_round(programs):
    agent, prior = fresh(MODULES["td3_bc"], hidden=(8,))
    agents, seeds = jax.tree.map(lambda x: jnp.asarray(x)[None], agent), np.zeros(1, np.int32)

    def updates(name):
        return programs[name].offline.lower(agents, seeds, "offline", 0, 4, 1, False, prior).as_text()

    def actions(name):
        return programs[name].act.lower(agents, np.zeros((1, 2, OBSERVATION), np.float32)).as_text()

    assert "bf16" in updates("bfloat16")
    assert "bf16" not in updates("default") + updates("float32")
    assert "HIGHEST" in updates("float32")
    assert "HIGHEST" in actions("float32")
    assert "HIGHEST" not in updates("default") + updates("bfloat16")
    assert actions("bfloat16") == actions("default")


def test_runs_in_bfloat16_say_so_and_learn_nearly_the_same(tmp_path):
    tables = {}
    for precision in ("default", "bfloat16"):
        status, said = serve(*SMALL, "--precision", precision, "--out", tmp_path / precision)
        assert status == 0, said
        config = json.loads((tmp_path / precision / "config.json").read_text())
        assert config["run"]["precision"] == precision
        tables[precision] = np.array([float(row["critic_loss"]) for row in table(tmp_path / precision / "metrics.csv")])
    assert (tables["bfloat16"] != tables["default"]).all()
    np.testing.assert_allclose(tables["bfloat16"][:1], tables["default"][:1], rtol=0.05)
