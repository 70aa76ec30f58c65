"""What holds for every base optimizer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import zosam_jax as zs

every_base = pytest.mark.parametrize("base", zoo.BASES)
# Wrappers around the whole see no state but that of `sparsify`, whatever is in it: one
# base with moments, and one whose updates depend on its parameters.
two_bases = pytest.mark.parametrize("base", ["adamw", "schedule_free"])


@every_base
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_trace_stable_state_exact_zeros_and_dtype(base, dtype):
    tx = zoo.sparse(zoo.BASES[base]())
    params, state = zoo.begin(tx, zoo.start(dtype))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, keep):
        updates, new = tx.update(None, state, params, value_fn=zoo.loss)
        # A cond between old and new demands the same structure, shapes and dtypes.
        new = jax.lax.cond(keep, lambda: state, lambda: new)
        return optax.apply_updates(params, updates), new

    first = np.asarray(zs.sparsity.masks(state)["kernel"])
    for i in range(zoo.STEPS):
        params, state = step(params, state, i == 0)
        mask = np.asarray(zs.sparsity.masks(state)["kernel"])
        kernel = np.asarray(params["kernel"])
        assert mask.sum() == 24
        assert np.all(kernel[~mask] == 0)
        assert np.all(np.isfinite(kernel.astype(np.float32)))
        assert params["kernel"].dtype == dtype
    assert np.any(mask != first)


@every_base
def test_moments_of_pruned_weights_stay_fresh(base):
    """Masked gradients and resets: off the mask, a state is as `init` makes it."""
    inner = zoo.BASES[base]()
    params, state = zoo.reference(base)
    fresh = inner.init(params)
    pruned = ~np.asarray(zs.sparsity.masks(state)["kernel"])
    seen = 0
    for held, begun in zip(*map(jax.tree.leaves, (state.inner, fresh)), strict=True):
        if held.shape == pruned.shape:
            seen += 1
            np.testing.assert_array_equal(
                np.asarray(held)[pruned], np.asarray(begun)[pruned]
            )
    assert seen or base == "adafactor"


@two_bases
def test_inside_inject_hyperparams(base):
    tx = optax.inject_hyperparams(lambda lr: zoo.sparse(zoo.BASES[base](lr)))(lr=0.05)
    params, state = zoo.train(tx, zoo.start())
    assert float(state.hyperparams["lr"]) == pytest.approx(0.05)
    zoo.assert_same(params, state, base)


@every_base
def test_around_inject_hyperparams(base):
    tx = zoo.sparse(optax.inject_hyperparams(zoo.BASES[base])(lr=0.05))
    zoo.assert_same(*zoo.train(tx, zoo.start()), base)


@two_bases
def test_inside_apply_if_finite(base):
    """It judges the incoming updates, so it is given zeros, and lets them through."""
    tx = optax.apply_if_finite(zoo.sparse(zoo.BASES[base]()), 3)
    zeros = jax.tree.map(jnp.zeros_like, zoo.start())
    zoo.assert_same(*zoo.train(tx, zoo.start(), incoming=zeros), base)


@every_base
def test_around_apply_if_finite(base):
    """Around the optimizer it judges ZO-SAM's gradient: a NaN changes nothing."""
    tx = zoo.sparse(optax.apply_if_finite(zoo.BASES[base](), 3))
    params, state = zoo.begin(tx, zoo.start())

    @jax.jit
    def step(params, state, scale):
        updates, state = tx.update(
            None, state, params, value_fn=lambda p: zoo.loss(p) * scale
        )
        return optax.apply_updates(params, updates), state

    for _ in range(zoo.STEPS):
        params, state = step(params, state, 1.0)
    zoo.assert_same(params, state, base)
    kept, after = step(params, state, jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    assert int(after.inner.notfinite_count) == 1


@two_bases
def test_inside_multi_steps_with_incoming_gradients(base):
    """Two equal micro-batches a step: as without accumulation, masks included."""
    plain = zs.sparsify(zoo.BASES[base](), zoo.rule())
    expected, expected_state = zoo.train(plain, zoo.start(), incoming="grads")
    tx = optax.MultiSteps(plain, 2)
    params, state = zoo.train(tx, zoo.start(), 2 * zoo.STEPS, incoming="grads")
    np.testing.assert_array_equal(
        zs.sparsity.masks(state)["kernel"], zs.sparsity.masks(expected_state)["kernel"]
    )
    for k in params:
        np.testing.assert_allclose(params[k], expected[k], rtol=2e-5, atol=1e-6)


@two_bases
def test_inside_multi_steps_with_its_own_gradient_is_refused(base):
    tx = optax.MultiSteps(zoo.sparse(zoo.BASES[base]()), 2)
    with pytest.raises(ValueError, match="accumulate_steps=k"):
        zoo.train(tx, zoo.start(), incoming="grads")


@every_base
def test_multi_transform_inside(base):
    """Every leaf by the same rule, in two groups: as without groups."""
    inner = optax.multi_transform(
        {"a": zoo.BASES[base](), "b": zoo.BASES[base]()}, {"kernel": "a", "bias": "b"}
    )
    zoo.assert_same(*zoo.train(zoo.sparse(inner), zoo.start()), base)


@every_base
def test_multi_transform_around(base):
    """One group sparse, one dense; gradients come in."""
    tx = optax.multi_transform(
        {
            "sparse": zs.sparsify(zoo.BASES[base](), zoo.rule()),
            "dense": zoo.BASES[base](),
        },
        {"kernel": "sparse", "bias": "dense"},
    )
    params, state = zoo.train(tx, zoo.start(), incoming="grads")

    parts = {
        "kernel": zs.sparsify(zoo.BASES[base](), zoo.rule()),
        "bias": zoo.BASES[base](),
    }
    expected = zoo.start()
    states = {k: parts[k].init({k: expected[k]}) for k in parts}
    masks = zs.sparsity.masks(states["kernel"])
    expected |= zs.sparsity.apply_masks({"kernel": expected["kernel"]}, masks)

    @jax.jit
    def step(params, states):
        grads, changed = jax.grad(zoo.loss)(params), {}
        for k, part in parts.items():
            own = {k: params[k]}
            updates, changed[k] = part.update({k: grads[k]}, states[k], own)
            params = params | optax.apply_updates(own, updates)
        return params, changed

    for _ in range(zoo.STEPS):
        expected, states = step(expected, states)
    np.testing.assert_array_equal(
        zs.sparsity.masks(state)["kernel"],
        zs.sparsity.masks(states["kernel"])["kernel"],
    )
    for k in params:
        np.testing.assert_allclose(params[k], expected[k], rtol=2e-5, atol=1e-6)
