"""Gradient estimators in Optax chains: state, keys, errors."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from problems import half_masks, mlp

import zosam_jax as zs
from zosam_jax import tree


def test_the_chain_is_the_pure_function_with_keys_from_seed_and_step():
    params, loss = mlp()
    tx = zs.zosam(rho=0.1, delta=0.01, num_directions=2, seed=5)
    state = tx.init(params)
    for step in range(3):
        grad, state = tx.update(None, state, params, value_fn=loss)
        key = jax.random.fold_in(jax.random.key(5), step)
        pure = zs.zosam_gradient(loss, params, key, 0.1, delta=0.01, num_directions=2)
        jax.tree.map(np.testing.assert_array_equal, grad, pure.grad)
        assert float(zs.estimate(state).value) == float(pure.value)
        assert float(zs.estimate(state).info.descent_value) == float(
            pure.info.descent_value
        )
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grad))


def test_rho_follows_its_schedule():
    params, loss = mlp()
    tx = zs.zosam(rho=optax.linear_schedule(0.4, 0.0, 4))
    state = tx.init(params)
    update = jax.jit(lambda state: tx.update(None, state, params, value_fn=loss))
    radii = []
    for _ in range(5):
        _, state = update(state)
        radii.append(float(zs.estimate(state).info.perturbation_norm))
    np.testing.assert_allclose(radii, [0.4, 0.3, 0.2, 0.1, 0.0], atol=1e-6)


@pytest.mark.parametrize("aux_like", [None, "given"])
def test_aux_is_read_from_the_state(aux_like):
    params, loss = mlp()

    def value_fn(p):
        return loss(p), {"seen": jnp.sum(p["out"]["bias"])}

    if aux_like == "given":
        aux_like = jax.eval_shape(value_fn, params)[1]
    tx = optax.chain(
        zs.zosam(0.05, has_aux=True, aux_like=aux_like),
        optax.clip_by_global_norm(1.0),
        optax.sgd(0.1, momentum=0.9),
    )
    state = tx.init(params)
    before = jax.tree.structure(state)
    _, state = tx.update(None, state, params, value_fn=value_fn)
    assert (jax.tree.structure(state) == before) == (aux_like is not None)
    pure = zs.zosam_gradient(
        value_fn, params, jax.random.fold_in(jax.random.key(0), 0), has_aux=True
    )
    assert float(zs.estimate(state).aux["seen"]) == float(pure.aux["seen"]) != 0


def test_a_weakly_typed_aux_does_not_trace_again():
    params, loss = mlp()
    tx = zs.zosam(has_aux=True, aux_like={"n": 0.0})
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state):
        value_fn = lambda p: (loss(p), {"n": jnp.asarray(2.0) * 1.0})  # noqa: E731
        return tx.update(None, state, params, value_fn=value_fn)[1]

    assert float(zs.estimate(step(step(tx.init(params)))).aux["n"]) == 2


def test_a_state_can_be_donated():
    params, loss = mlp()
    tx = optax.apply_if_finite(optax.chain(zs.zosam(), optax.sgd(0.1)), 3)
    zeros = jax.tree.map(jnp.zeros_like, params)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        update: Any = tx.update  # Optax says nothing of extra arguments here.
        return update(zeros, state, params, value_fn=loss)[1]

    step(step(tx.init(params)))


def test_aux_of_another_shape_is_refused():
    params, loss = mlp()
    tx = zs.zosam(has_aux=True, aux_like=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"float32\[2\].*aux_like says float32\[3\]"):
        tx.update(
            None,
            tx.init(params),
            params,
            value_fn=lambda p: (loss(p), p["out"]["bias"]),
        )


@pytest.mark.parametrize("num_directions", [1, 3])
def test_one_trace_and_a_stable_state(num_directions):
    params, loss = mlp()
    tx = optax.chain(zs.zosam(num_directions=num_directions), optax.adam(1e-3))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for _ in range(3):
        params, state = step(params, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


@pytest.mark.quick
def test_masks_reach_the_estimator_as_an_extra_argument():
    params, loss = mlp()
    masks = half_masks(params)
    params = tree.mask(params, masks)
    tx = zs.zosam(0.1)
    grad, _ = tx.update(None, tx.init(params), params, value_fn=loss, masks=masks)
    key = jax.random.fold_in(jax.random.key(0), 0)
    pure = zs.zosam_gradient(loss, params, key, 0.1, masks=masks)
    jax.tree.map(np.testing.assert_array_equal, grad, pure.grad)


def test_backprop_feeds_the_chain_with_the_plain_gradient():
    params, loss = mlp()
    tx = optax.chain(zs.backprop(), optax.adam(1e-2))
    reference = optax.adam(1e-2)
    updates, state = tx.update(None, tx.init(params), params, value_fn=loss)
    expected, _ = reference.update(jax.grad(loss)(params), reference.init(params))
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    assert float(zs.estimate(state).value) == float(loss(params))


def test_what_is_missing_is_said_with_the_line_that_works():
    params, loss = mlp()
    tx = optax.chain(zs.zosam(), optax.sgd(0.1))
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"zs.zosam needs value_fn: call tx.update"):
        tx.update(None, state, params)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(None, state, value_fn=loss)
    with pytest.raises(ValueError, match="holds 0 gradient estimators"):
        zs.estimate(optax.sgd(0.1).init(params))
    with pytest.raises(ValueError, match="needs has_aux=True"):
        zs.zosam(aux_like={"n": 0.0})
    with pytest.raises(ValueError, match=r"seed=1.5 must be an integer"):
        zs.zosam(seed=1.5)
    with pytest.raises(ValueError, match="static_args="):
        optax.inject_hyperparams(zs.zosam)(num_directions=4, chunk_size=2).init(params)


def test_the_pure_form_asks_for_the_step_that_a_schedule_counts():
    params, loss = mlp()
    for made in (
        zs.sam(rho=optax.linear_schedule(0.1, 0.0, 4)),
        zs.aesam(total_steps=4),
        zs.ssam(mask="dynamic", total_steps=4),
    ):
        pure = getattr(zs, f"{made.name}_gradient")
        options = {"rho": made.rho}
        if made.name != "sam":
            options["total_steps"] = 4
        if made.name == "ssam":
            options["mask"] = "dynamic"
        message = rf"zs.{made.name}.* schedule.* needs step="
        with pytest.raises(ValueError, match=message):
            made.gradient(loss, params, jax.random.key(0))
        with pytest.raises(ValueError, match=message):
            pure(loss, params, jax.random.key(0), **options)
        found, expected = (
            jax.jit(functools.partial(form, loss, step=3, **given))(
                params, jax.random.key(0)
            )
            for form, given in ((made.gradient, {}), (pure, options))
        )
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert "value_fn" in zs.sam().gradient.__doc__


def test_wrappers_keep_what_the_estimator_is():
    params, loss = mlp()
    for made in (zs.zosam(), zs.zeroth_order(), zs.esam(), zs.wsam(decouple=True)):
        expected = [
            made.dense,
            made.by_example,
            made.direction_only,
            made.decoupled,
        ]
        inject = optax.inject_hyperparams(lambda scale, made=made: made)
        for tx in (made, optax.chain(optax.identity(), made), inject(scale=1.0)):
            state = tx.init(params)
            (found,) = tree.nodes(state, zs.EstimatorState)
            assert [fact is not None for fact in found.facts] == expected
    # Facts are structure: known under jit, unchanged by an update, stored with it.
    tx = optax.chain(zs.zeroth_order(), optax.sgd(0.1))

    @jax.jit
    def step(state):
        assert tree.nodes(state, zs.EstimatorState)[0].facts.dense is None
        return tx.update(None, state, params, value_fn=loss)[1]

    state = step(tx.init(params))
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    stored = serialization.from_bytes(state, serialization.to_bytes(state))
    assert tree.nodes(stored, zs.EstimatorState)[0].facts == state[0].facts


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jnp.zeros(2, int), r"layers/0/n is an array of int32; .* nnx.split\("),
        (jnp.zeros(2, complex), r"layers/0/n is an array of complex64; .* two leaves"),
        (jax.random.key(0), r"layers/0/n is an array of key"),
        (3, r"layers/0/n is int; .* eqx.partition\("),
    ],
)
def test_a_leaf_that_cannot_be_trained_is_named(leaf, message):
    params = {"layers": [{"n": leaf, "w": jnp.ones(2)}]}
    loss = lambda p: jnp.sum(p["layers"][0]["w"] ** 2)  # noqa: E731
    key = jax.random.key(0)
    calls = [
        lambda: zs.sam().init(params),
        lambda: zs.sam().update(None, zs.sam().init({}), params, value_fn=loss),
        lambda: zs.zosam_gradient(loss, params, key),
        lambda: zs.zeroth_order_gradient(loss, params, key),
        lambda: zs.backprop_gradient(loss, params),
        lambda: zs.estimators.backprop(loss, params),
        lambda: zs.estimators.rge(loss, params, key),
        lambda: zs.estimators.cge(loss, params),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()


def test_partial_parameters_are_refused():
    params, loss = mlp()
    tx = optax.masked(zs.zosam(), {"hidden": True, "out": False})
    with pytest.raises(ValueError, match=r"in front: optax.chain\(zs.zosam"):
        tx.update(params, tx.init(params), params, value_fn=loss)


@pytest.mark.parametrize("jitted", [True, False])
def test_multi_steps_around_it_is_refused(jitted):
    params, loss = mlp()
    tx = optax.MultiSteps(optax.chain(zs.zosam(), optax.sgd(0.1)), 2)
    state = tx.init(params)

    def step(state):
        return tx.update(params, state, params, value_fn=loss)

    with pytest.raises(ValueError, match=r"Accumulate behind it: optax.chain\("):
        (jax.jit(step) if jitted else step)(state)


def test_multi_steps_behind_it_averages_the_gradients():
    params, loss = mlp()
    inner = optax.MultiSteps(optax.sgd(1.0), 3).gradient_transformation()
    tx = optax.chain(zs.zosam(0.1), inner)
    state = tx.init(params)
    update = jax.jit(lambda state: tx.update(None, state, params, value_fn=loss))
    for _ in range(3):
        updates, state = update(state)
    pure = jax.jit(lambda key: zs.zosam_gradient(loss, params, key, 0.1).grad)
    grads = [pure(jax.random.fold_in(jax.random.key(0), i)) for i in range(3)]
    expected = jax.tree.map(lambda *g: -sum(g) / 3, *grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        updates,
        expected,
    )


def test_lookahead_is_given_the_gradient_of_the_pure_form():
    params, loss = mlp()
    pairs = optax.LookaheadParams.init_synced(params)
    around = optax.lookahead(optax.chain(zs.sam(), optax.sgd(0.1)), 5, 0.5)
    behind = optax.chain(zs.sam(), optax.lookahead(optax.sgd(0.1), 5, 0.5))
    for tx in (around, behind):
        with pytest.raises(ValueError, match=r"gradient\(value_fn, params.fast"):
            tx.init(pairs)
    tx = optax.lookahead(optax.sgd(0.1), 1, 0.5)
    grad = zs.sam().gradient(loss, pairs.fast, jax.random.key(0)).grad
    updates, _ = tx.update(grad, tx.init(pairs), pairs)
    moved = optax.apply_updates(pairs, updates)
    expected = jax.tree.map(lambda w, g: w - 0.05 * g, params, grad)
    for side in (moved.fast, moved.slow):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            side,
            expected,
        )


def test_apply_if_finite_stands_behind_a_gradient_without_incoming_updates():
    params, loss = mlp()
    around = optax.apply_if_finite(optax.chain(zs.sam(), optax.sgd(0.1)), 3)
    with pytest.raises(ValueError, match=r"behind: .*optax.apply_if_finite\(optimizer"):
        around.update(
            None,
            around.init(params),
            params,
            value_fn=loss,  # pyright: ignore[reportCallIssue]
        )
    sometimes = optax.conditionally_transform(zs.sam(), lambda step: step > 3)
    with pytest.raises(ValueError, match=r"zs\.sam\(when="):
        sometimes.update(None, sometimes.init(params), params, value_fn=loss)
    behind = optax.chain(zs.sam(), optax.apply_if_finite(optax.sgd(0.1), 3))
    bad = lambda p: loss(p) * jnp.nan  # noqa: E731
    updates, state = behind.update(None, behind.init(params), params, value_fn=bad)
    assert int(state[1].notfinite_count) == 1
    assert not any(np.any(x) for x in jax.tree.leaves(updates))
