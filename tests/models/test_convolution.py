"""The convolution equals lax's in value and derivatives, and is fast in a branch."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from zosam_jax.models import convolution

DIMENSIONS: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def arrays(size=3, channels=4, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, channels)), dtype)
    w = jnp.asarray(rng.normal(size=(size, size, channels, 5)), dtype)
    return x, w


def both(x, w, strides, padding):
    """Returns a scalar function of `(x, w)` for each of the two convolutions."""

    def scalar(conv):
        return lambda x, w: jnp.sum(
            jnp.tanh(conv(x, w, strides, padding, **DIMENSIONS)) ** 2
        )

    return scalar(convolution.conv_general_dilated), scalar(lax.conv_general_dilated)


CASES = [
    (1, (1, 1), "SAME"),
    (1, (2, 2), ((0, 0), (0, 0))),
    (3, (1, 1), ((1, 1), (1, 1))),
    (3, (2, 2), ((1, 1), (1, 1))),
    (3, (2, 1), "SAME"),
    (3, (2, 2), "VALID"),
]


@pytest.mark.parametrize(("size", "strides", "padding"), CASES)
def test_value_and_derivatives_are_those_of_lax(size, strides, padding):
    x, w = arrays(size)
    own, lax_own = both(x, w, strides, padding)
    tangents = jnp.cos(x), jnp.sin(w)
    derivatives = {
        "value": lambda f: f(x, w),
        "gradient": lambda f: jax.grad(f, (0, 1))(x, w),
        "forward": lambda f: jax.jvp(f, (x, w), tangents)[1],
        "hessian": lambda f: jax.jvp(jax.grad(f, (0, 1)), (x, w), tangents)[1],
        "batched": lambda f: jax.vmap(jax.grad(f, 1), (0, None))(x[:, None], w),
    }
    for name, derivative in derivatives.items():
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(
                a, b, rtol=1e-5, atol=1e-5, err_msg=name
            ),
            derivative(own),
            derivative(lax_own),
        )


def test_grouped_and_dilated_ones_are_left_to_lax():
    x, w = arrays()
    cases: list[dict[str, Any]] = [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 2)},
        {"feature_group_count": 2},
    ]
    for options in cases:
        kernel = w[:, :, :2, :4] if "feature_group_count" in options else w
        pads = ((1, 1), (1, 1))
        found = convolution.conv_general_dilated(
            x, kernel, (1, 1), pads, **DIMENSIONS, **options
        )
        np.testing.assert_array_equal(
            found,
            lax.conv_general_dilated(x, kernel, (1, 1), pads, **DIMENSIONS, **options),
        )


def test_another_layout_is_left_to_lax():
    x = jnp.arange(81.0).reshape(3, 3, 3, 3)
    w = jnp.cos(x)
    found = convolution.conv_general_dilated(x, w, (1, 1), "SAME")
    expected = lax.conv_general_dilated(x, w, (1, 1), "SAME")
    np.testing.assert_array_equal(found, expected)


def test_bfloat16_stays():
    x, w = arrays(dtype=jnp.bfloat16)
    own, _ = both(x, w, (1, 1), "SAME")
    grads = jax.grad(own, (0, 1))(x, w)
    assert {g.dtype for g in grads} == {jnp.dtype("bfloat16")}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="concerns XLA:CPU only")
def test_its_gradient_is_as_fast_in_a_branch_as_outside():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 24, 24, 16)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, 16, 16)), jnp.float32)
    own, _ = both(x, w, (1, 1), "SAME")
    gradient = jax.grad(own, 1)
    outside = jax.jit(lambda p, w: gradient(x, w))
    inside = jax.jit(
        lambda p, w: lax.cond(p, lambda w: gradient(x, w), jnp.zeros_like, w)
    )

    def seconds(f):
        jax.block_until_ready(f(True, w))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(f(True, w))
            times.append(time.perf_counter() - start)
        return min(times)

    # With lax's gradient it is tens of times slower in the branch.
    assert seconds(inside) < 8 * seconds(outside)
