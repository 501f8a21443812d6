"""Layers against Flax's own, gradients included, in every way they are mapped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.networks import MLP, Critic, Dense, Ensemble, LayerNormReLU, Network, Scalar


@pytest.fixture(params=["cpu", "gpu"], autouse=True)
def backend(request, monkeypatch):
    """What is written for the one, and for the other, both on the CPU that there is."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


class FlaxMLP(nn.Module):
    """The same function in Flax's layers."""

    hidden: tuple[int, ...]
    layer_norm: bool

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.Dense(width)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return x


def shaken(params):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32), params)


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("shape", [(4,), (9, 4), (2, 9, 4)])
def test_values_and_gradients_equal_flax(layer_norm, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    module, reference = MLP((16, 8), layer_norm), FlaxMLP((16, 8), layer_norm)
    params = shaken(module.init(jax.random.key(2), x))
    renamed = {"params": {k.replace("LayerNormReLU", "LayerNorm"): v for k, v in params["params"].items()}}
    weights = jax.random.normal(jax.random.key(3), (*shape[:-1], 8))

    def loss(module):
        return lambda params, x: (weights * jnp.sin(module.apply(params, x))).sum()

    np.testing.assert_allclose(module.apply(params, x), reference.apply(renamed, x), rtol=1e-5, atol=1e-6)
    ours = jax.grad(loss(module), (0, 1))(params, x)
    theirs = jax.grad(loss(reference), (0, 1))(renamed, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients_exist():
    """Diversity penalties and gradient penalties differentiate dQ/da again."""
    module = Critic((8, 8), layer_norm=True)
    observation, action = jnp.ones(3), jnp.array([0.1, -0.2])
    params = shaken(module.init(jax.random.key(0), observation, action))

    def slope(action):
        return jnp.square(jax.grad(lambda a: jnp.tanh(module.apply(params, observation, a)))(action)).sum()

    step = 1e-3
    for axis in np.eye(2, dtype=np.float32):
        numeric = (slope(action + step * axis) - slope(action - step * axis)) / (2 * step)
        np.testing.assert_allclose(jax.grad(slope)(action) @ axis, numeric, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_slopes_and_their_gradients_are_those_of_differentiating_twice(layer_norm):
    observation, action = (jax.random.normal(jax.random.key(k), (7, size)) for k, size in ((0, 3), (1, 2)))
    critics = Ensemble.create(
        Critic((6, 5), layer_norm), jax.random.key(2), observation[0], action[0], members=4
    )  # fmt: skip
    params = shaken(critics.params)

    def twice(observation, action, *, params):
        def one(params):
            q = jax.vmap(lambda s, a: critics.module.apply(params, s, a))
            slopes = jax.vmap(jax.grad(lambda a, s: critics.module.apply(params, s, a)))
            return q(observation, action), slopes(action, observation)

        return jax.vmap(one)(params)

    def loss(function):
        def of(params, observation, action):
            q, slopes = function(observation, action, params=params)
            assert (q.shape, slopes.shape) == ((4, 7), (4, 7, 2))
            unit = slopes / jnp.linalg.norm(slopes, axis=-1, keepdims=True)
            return (
                jnp.square(q - 1).sum() + 3 * jnp.square(unit.sum(axis=0)).sum() + jnp.sin(q[..., None] * slopes).sum()
            )

        return of

    np.testing.assert_allclose(
        loss(critics.slopes)(params, observation, action), loss(twice)(params, observation, action), rtol=1e-5
    )
    ours, theirs = (jax.grad(loss(f), (0, 1, 2))(params, observation, action) for f in (critics.slopes, twice))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_an_ensemble_is_its_members():
    observation, action = jax.random.normal(jax.random.key(0), (5, 3)), jnp.ones((5, 2))
    ensemble = Ensemble.create(Critic((8, 8), layer_norm=True), jax.random.key(1), observation, action, members=3)
    together = ensemble(observation, action)
    for member in range(3):
        alone = ensemble.module.apply(jax.tree.map(lambda x, m=member: x[m], ensemble.params), observation, action)
        np.testing.assert_allclose(together[member], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        ensemble.members(jnp.array([2, 0]))(observation, action), together[jnp.array([2, 0])], rtol=1e-5
    )


def test_kernels_are_xavier_uniform():
    bound = np.sqrt(6 / (100 + 50))
    kernel = Dense(50).init(jax.random.key(0), jnp.ones(100))["params"]["kernel"]
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.05)


def test_layer_norm_of_a_constant_row_is_finite():
    params = LayerNormReLU().init(jax.random.key(0), jnp.ones(8))
    value, gradient = jax.value_and_grad(lambda x: LayerNormReLU().apply(params, x).sum())(jnp.full(8, 3.0))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_scalar_starts_where_told_and_stays_positive():
    scalar = Network.create(Scalar(), jax.random.key(0), 0.25)
    np.testing.assert_allclose(scalar(), 0.25, rtol=1e-6)
    for _ in range(5):
        gradients = jax.grad(lambda params, scalar=scalar: scalar(params=params))(scalar.params)
        scalar = scalar.descend(gradients, 10.0)
    assert scalar() > 0
