"""Zeroth-order gradients: their step in coarse dtypes, standstills, chosen leaves."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zosam_jax as zs
from zosam_jax import estimators

W = {"head": jnp.array([1.0, -2.0]), "lora": jnp.array([0.5, 3.0, -1.0])}


def loss(w):
    return sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(w))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    # 1e-3 times the cube root of 2^-10 / 2^-23 and of 2^-7 / 2^-23.
    [(jnp.float32, 1e-3), (jnp.float16, 1e-3 * 2 ** (13 / 3)), (jnp.bfloat16, None)],
)
def test_the_step_grows_with_the_cube_root_of_the_resolution(dtype, expected):
    expected = expected or 1e-3 * 2 ** (16 / 3)
    coarse = jax.tree.map(lambda x: x.astype(dtype), W)
    found = estimators.difference_step("auto", loss, coarse)
    assert found == pytest.approx(expected, rel=1e-6)
    # Of float32 parameters, the dtype of the loss counts.
    found = estimators.difference_step("auto", lambda w: loss(w).astype(dtype), W)
    assert found == pytest.approx(expected, rel=1e-6)
    assert estimators.difference_step(0.3, loss, coarse) == 0.3
    assert estimators.difference_step(None, loss, coarse) is None


@pytest.mark.parametrize("delta", ["auto", 1e-3])
def test_the_default_step_in_float32_is_as_published(delta):
    key = jax.random.key(0)
    found = zs.zosam_gradient(loss, W, key, delta=delta)
    expected = zs.zosam_gradient(loss, W, key, delta=1e-3)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_an_unknown_step_is_refused():
    with pytest.raises(ValueError, match=r"delta='automatic' .*Did you mean 'auto'"):
        zs.zosam(delta="automatic")
    with pytest.raises(ValueError, match="delta=0"):
        zs.zeroth_order(delta=0)


def trained(delta, steps=60):
    """Training with a loss in bfloat16, near a minimum."""
    tx = zs.zo_sgd(0.01, delta=delta)
    w = jnp.full(50, 2.0)
    state = tx.init(w)

    @jax.jit
    def step(w, state):
        updates, state = tx.update(
            None, state, w, value_fn=lambda w: 1 + jnp.mean(w**2).astype(jnp.bfloat16)
        )
        return optax.apply_updates(w, updates), state

    for _ in range(steps):
        w, state = step(w, state)
    return w, state


def test_a_standstill_in_bfloat16_is_counted_and_warned_about():
    """Losses of 5 are 2^-5 apart there; the probes differ by less."""
    w, state = trained(1e-5)
    np.testing.assert_array_equal(w, 2.0)
    with pytest.warns(UserWarning, match="last 60 estimates had no direction"):
        seen = zs.estimate(state)
    assert seen.info.unperturbed == 1


def test_the_default_step_moves_in_bfloat16():
    w, state = trained("auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zs.estimate(state)
    assert jnp.mean(w**2) < 3.9


def test_a_zero_difference_is_no_direction():
    flat = zs.zeroth_order_gradient(lambda w: 0 * loss(w), W, jax.random.key(0))
    assert flat.info.unperturbed == 1
    steep = zs.zeroth_order_gradient(loss, W, jax.random.key(0))
    assert steep.info.unperturbed == 0
    norm = zs.tree.norm(steep.grad)
    np.testing.assert_allclose(steep.info.direction_norm, norm, rtol=1e-6)


@pytest.mark.parametrize("options", [{"include": "lora"}, {"exclude": "head"}])
def test_leaves_that_are_not_probed_have_no_gradient_and_give_no_noise(options):
    """The slope is that along the chosen leaves: as if the others were constants."""
    key = jax.random.key(3)
    found = zs.zeroth_order_gradient(loss, W, key, **options)
    np.testing.assert_array_equal(found.grad["head"], 0)
    mask = {"head": jnp.zeros(2, bool), "lora": jnp.ones(3, bool)}
    expected = zs.zeroth_order_gradient(loss, W, key, masks=mask)
    np.testing.assert_array_equal(found.grad["lora"], expected.grad["lora"])
    # The variance of u <u, g> for Gaussian u has the trace (d + 1) |g|^2.
    keys = jax.random.split(key, 4000)
    estimate = jax.vmap(
        lambda k: zs.zeroth_order_gradient(loss, W, k, delta=1e-2, **options).grad
    )(keys)["lora"]
    g = 2 * (W["lora"] - 1)
    spread = jnp.mean(jnp.sum((estimate - g) ** 2, axis=1))
    np.testing.assert_allclose(spread, 4 * g @ g, rtol=0.1)


@pytest.mark.parametrize("make", [zs.zo_sgd, zs.zo_signsgd, zs.zo_adam])
def test_optimizers_leave_other_leaves_as_they_are(make):
    decay = {} if make is zs.zo_signsgd else {"weight_decay": 0.1}
    tx = make(0.1, include="lora", **decay)
    updates, _ = tx.update(None, tx.init(W), W, value_fn=loss)
    np.testing.assert_array_equal(updates["head"], 0)
    assert jnp.all(updates["lora"] != 0)


def test_a_pattern_without_a_leaf_is_refused():
    with pytest.raises(ValueError, match=r"include.*bias"):
        zs.zeroth_order_gradient(loss, W, jax.random.key(0), include="*bias")
