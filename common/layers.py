"""What the layers compute, on arrays alone: as Flax does it (tests/test_networks.py), with backward passes that also
suit XLA's CPU compiler.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

Precision = Literal["default", "float32", "bfloat16"]
"""Of an update. "default": matrix products as the device does them unless told otherwise, in TF32 on a recent NVIDIA
GPU, in bfloat16 on a TPU, in float32 on a CPU. "float32": in float32 everywhere. "bfloat16": products of numbers
rounded to bfloat16, summed in float32, and the outputs of hidden layers kept in bfloat16."""

activations = jax.make_user_context(None)
"""The type that inputs and outputs of hidden layers are rounded to where it is set; a part of what JAX compiles for."""


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array, hidden: bool = False) -> jax.Array:
    """`x @ kernel + bias`, [..., in] to [..., out]; of a `hidden` layer in the type of `activations`."""
    if activations.value is not None:
        x, kernel = x.astype(activations.value), kernel.astype(activations.value)
        bias = bias.astype(activations.value) if hidden else bias
    return _affine(x, kernel, bias)


@jax.custom_vjp
def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """In the bias's type."""
    return jnp.matmul(x, kernel, preferred_element_type=bias.dtype) + bias


def _transposed(rows: jax.Array) -> jax.Array:
    if jax.default_backend() != "cpu":
        return rows.T
    # Makes XLA transpose in memory: batched products that read a transposed left side are slow on a CPU.
    return jax.lax.optimization_barrier(rows.T)


def _affine_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, kernel = saved
    on_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
    gradient = gradient.astype(x.dtype)
    rows, out = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return gradient @ kernel.T, _transposed(rows) @ out, on_bias


_affine.defvjp(lambda x, kernel, bias: (_affine(x, kernel, bias), (x, kernel)), _affine_backward)


Layers = list[tuple[jax.Array, jax.Array]]
"""Kernel and bias of each affine layer, [in, out] and [out]."""


@jax.custom_vjp
def relu_slopes(layers: Layers, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A ReLU network with one output: its values [n] at x [n, in], and their gradients with respect to x, [n, in].

    Its own gradient takes 4 products per layer where differentiating twice takes 6. Between its kinks the network is
    linear, so that a weight on the values (c, a number per row) and one on the slopes (u, a vector per row) meet in
    one product per layer: with the activations h and the values' derivatives g there, a kernel's gradient is
    (c h + u)^T g, u being carried forward from the input like a tangent.
    """
    return _relu_slopes_forward(layers, x)[0]


def _relu_slopes_forward(layers: Layers, x: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    activations = [x]
    for kernel, bias in layers[:-1]:
        activations.append(nn.relu(activations[-1] @ kernel + bias))
    kernel, bias = layers[-1]
    values = (activations[-1] @ kernel + bias).squeeze(-1)
    slope = jnp.broadcast_to(kernel[:, 0], activations[-1].shape)
    slopes = [jnp.ones_like(values)[:, None]]
    for (kernel, _), h in zip(layers[-2::-1], activations[:0:-1], strict=True):
        slopes.append(jnp.where(h > 0, slope, 0.0))
        slope = slopes[-1] @ kernel.T
    return (values, slope), (layers, activations, slopes[::-1], slope)


def _relu_slopes_backward(saved: tuple, weights: tuple[jax.Array, jax.Array]) -> tuple[Layers, jax.Array]:
    layers, activations, slopes, slope = saved
    on_values, tangent = weights[0][:, None], weights[1]
    gradients = []
    for layer, (h, g) in enumerate(zip(activations, slopes, strict=True)):
        if layer:
            tangent = jnp.where(h > 0, tangent @ layers[layer - 1][0], 0.0)
        gradients.append((_transposed(on_values * h + tangent) @ g, (on_values * g).sum(0)))
    return gradients, on_values * slope


relu_slopes.defvjp(_relu_slopes_forward, _relu_slopes_backward)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and reciprocal standard deviation of the last axis, kept as an axis of one."""
    if jax.default_backend() == "cpu":
        mean, of_squares = x.mean(-1, keepdims=True), jnp.square(x).mean(-1, keepdims=True)
    else:  # in one pass over memory
        zero = jnp.zeros((), x.dtype)
        sums = jax.lax.reduce((x, jnp.square(x)), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (x.ndim - 1,))
        mean, of_squares = (total[..., None] / x.shape[-1] for total in sums)
    return mean, jax.lax.rsqrt(jnp.maximum(0.0, of_squares - jnp.square(mean)) + 1e-6)


@jax.custom_vjp
def normalised_relu(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """ReLU of the LayerNorm of the last axis, in the type of `x` but computed in that of `scale`. Its gradient, derived
    by hand, takes fewer passes over memory."""
    return _normalised_relu_forward(x, scale, bias)[0]


def _normalised_relu_forward(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple]:
    wide = x.astype(scale.dtype)
    mean, inverse = _moments(wide)
    y = nn.relu((wide - mean) * inverse * scale + bias).astype(x.dtype)
    return y, (x, mean, inverse, scale, y)


def _normalised_relu_backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    x, mean, inverse, scale, y = saved
    leading = tuple(range(x.ndim - 1))
    normal = (x.astype(scale.dtype) - mean) * inverse
    gradient = jnp.where(y > 0, gradient, 0.0).astype(scale.dtype)
    inner = gradient * scale
    centred = inner - inner.mean(-1, keepdims=True) - normal * (inner * normal).mean(-1, keepdims=True)
    return (inverse * centred).astype(x.dtype), (gradient * normal).sum(leading), gradient.sum(leading)


normalised_relu.defvjp(_normalised_relu_forward, _normalised_relu_backward)
