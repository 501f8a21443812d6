"""The networks of common/networks.py in NumPy and double precision, and batches to compute with."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from common.replay import Batch

OBSERVATION, ACTION, ROWS = 5, 3, 7


def random_batch(seed: int, *leading: int) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        observation=rng.normal(size=(*leading, OBSERVATION)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(*leading, ACTION)).astype(np.float32),
        reward=rng.normal(size=leading).astype(np.float32),
        mask=rng.integers(0, 2, size=leading).astype(np.float32),
        next_observation=rng.normal(size=(*leading, OBSERVATION)).astype(np.float32),
    )


MOST = 4096
"""Parameters in one array of a network here, at most."""


@functools.cache
def noise(number):
    """Normal draws of the key of that number. The first of them are those of a draw of few: all have one program."""
    return np.asarray(jax.random.normal(jax.random.split(jax.random.key(99), 1000)[number], (MOST,)))


def shaken(*networks):
    """The networks with every parameter moved a little: no bias is zero, no scale one, no target the online network."""
    numbers = itertools.count()

    def shake(x):
        x = np.asarray(x)
        return jnp.asarray(x + 0.1 * noise(next(numbers))[: x.size].reshape(x.shape))

    return [network.replace(params=jax.tree.map(shake, network.params)) for network in networks]


def parameters(network):
    return jax.tree.map(np.asarray, network.params)["params"]


def member(network, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], network.params)["params"]


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.asarray(params["scale"], np.float64) + np.asarray(params["bias"], np.float64)


def mlp(x, params):
    for index in range(sum(name.startswith("Dense") for name in params)):
        x = dense(x, params[f"Dense_{index}"])
        if "LayerNormReLU_0" in params:
            x = layer_norm(x, params[f"LayerNormReLU_{index}"])
        x = np.maximum(x, 0)
        if "LayerNorm_0" in params:  # behind the ReLU, in ReBRAC
            x = layer_norm(x, params[f"LayerNorm_{index}"])
    return x


def head(params, x):
    """An MLP and the linear layer on it."""
    hidden = params["MLP_0"]
    return dense(mlp(np.asarray(x, np.float64), hidden), params["Dense_0"])


def q_values(critic, members, observation, action):
    x = np.concatenate([observation, action], -1)
    return np.stack([head(member(critic, i), x)[..., 0] for i in members])


def tanh_normal(actor, observation, noise=None, action=None, least_log_std=-20.0):
    """An action, by its noise or given, and its log density by the change of variables, without the stable form."""
    p = parameters(actor)
    features = mlp(np.asarray(observation, np.float64), p["MLP_0"])
    mean, log_std = dense(features, p["Dense_0"]), dense(features, p["Dense_1"])
    log_std = np.clip(p.get("log_std_scale", 1) * log_std + p.get("log_std_offset", 0), least_log_std, 2)
    if action is None:
        before = mean + np.exp(log_std) * np.asarray(noise, np.float64)
    else:
        before = np.arctanh(np.asarray(action, np.float64))
    density = np.exp(-0.5 * ((before - mean) / np.exp(log_std)) ** 2) / (np.exp(log_std) * np.sqrt(2 * np.pi))
    action = np.tanh(before)
    return action, (np.log(density) - np.log(1 - action**2)).sum(-1)


def latents(shape, key):
    """What a VAE of actions draws with a key, clipped: one latent of `shape` [..., 2 a]."""
    return np.asarray(jax.random.normal(key, (*shape, 2 * ACTION)), np.float64).clip(-0.5, 0.5)


def vae_decode(vae, observation, z):
    """Actions before their tanh."""
    p = parameters(vae)
    return dense(mlp(np.concatenate([observation, z], -1), p["decoder"]), p["action"])


def vae_loss(vae, batch, key, weight):
    """The loss, and the error of reconstruction in it; the divergence by the textbook, in the variances."""
    p, action = parameters(vae), np.asarray(batch.action, np.float64)
    h = mlp(np.concatenate([batch.observation, action], -1), p["encoder"])
    mean, std = dense(h, p["mean"]), np.exp(dense(h, p["log_std"]).clip(-4, 15))
    z = mean + std * np.asarray(jax.random.normal(key, mean.shape), np.float64)
    error = np.mean((np.tanh(vae_decode(vae, batch.observation, z)) - action) ** 2)
    divergence = -0.5 * (1 + np.log(std**2) - mean**2 - std**2)
    return error + weight * divergence.mean(), error


def adam_first_step(before, gradient, rate):
    """Parameters after the first step of Adam, its bias corrected."""
    return jax.tree.map(
        lambda x, g: np.asarray(x, np.float64) - rate * np.asarray(g) / (np.abs(np.asarray(g)) + 1e-8), before, gradient
    )


def assert_only_terminations_stop(agent, batch=None):
    """The target of a row sees its next state if the mask is 1, as at a time limit, and not if it is 0."""
    batch, key = random_batch(5, 2) if batch is None else batch, jax.random.key(0)
    for mask, moves in ((1.0, True), (0.0, False)):
        rows = batch.replace(mask=np.full(2, mask, np.float32))
        elsewhere = rows.replace(next_observation=rows.next_observation + 1)
        assert (agent.target(rows, key) != agent.target(elsewhere, key)).any() == moves
