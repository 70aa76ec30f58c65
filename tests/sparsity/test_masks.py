from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zosam_jax as zs
from zosam_jax.sparsity import mask_trees

PARAMS = {"kernel": jnp.arange(1.0, 7).reshape(2, 3), "bias": jnp.ones(3)}
KERNEL = jnp.array([[True, False, True], [False, True, False]])
MASKS = {"kernel": KERNEL, "bias": jnp.asarray(True)}


@pytest.mark.quick
def test_apply_masks_zeros_what_is_pruned_and_nothing_else():
    applied = zs.sparsity.apply_masks(PARAMS, MASKS)
    np.testing.assert_array_equal(applied["kernel"], [[1, 0, 3], [0, 5, 0]])
    np.testing.assert_array_equal(applied["bias"], np.ones(3))
    assert applied["bias"].dtype == PARAMS["bias"].dtype


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"kernel": KERNEL}, "differ at bias"),
        (MASKS | {"kernel": KERNEL.T}, r"kernel has shape \(3, 2\).*\(2, 3\)"),
        (MASKS | {"kernel": KERNEL.astype(float)}, "kernel has dtype float32"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_leaf(masks, message):
    with pytest.raises(ValueError, match=message):
        zs.sparsity.apply_masks(PARAMS, masks)
    with pytest.raises(ValueError, match=message):
        zs.zosam_gradient(lambda p: 0.0, PARAMS, jax.random.key(0), masks=masks)
    with pytest.raises(ValueError, match=message):
        zs.sparsify(optax.sgd(0.1), zs.sparsity.static(masks=masks)).init(PARAMS)


@pytest.mark.quick
def test_sparsity_counts_sparse_leaves_or_all():
    assert float(zs.sparsity.sparsity_of(MASKS)) == 0.5
    assert float(zs.sparsity.sparsity_of(MASKS, PARAMS)) == pytest.approx(3 / 9)
    assert float(zs.sparsity.sparsity_of({"a": True})) == 0


@pytest.mark.quick
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_landing_is_exact_whatever_the_updates(dtype):
    key = jax.random.key(0)
    params = jax.tree.map(
        lambda x: jax.random.normal(key, x.shape).astype(dtype) * 1e3, PARAMS
    )
    updates = jax.tree.map(lambda x: jnp.full_like(x, 0.123), params)
    landed = optax.apply_updates(params, mask_trees.landing(updates, params, MASKS))
    assert np.all(np.asarray(landed["kernel"])[~np.asarray(KERNEL)] == 0)
    assert landed["kernel"].dtype == dtype
    np.testing.assert_array_equal(landed["bias"], params["bias"] + updates["bias"])


OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(1e-3),
    "adagrad": optax.adagrad(0.1, initial_accumulator_value=0.3),
    "chain": optax.chain(optax.clip(1.0), optax.scale_by_lion(), optax.scale(-0.1)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
    "partitioned": optax.multi_transform(
        {"a": optax.adam(1e-3), "b": optax.sgd(0.1, momentum=0.9)},
        {"kernel": "a", "bias": "b"},
    ),
    "accumulated": optax.MultiSteps(optax.adam(1e-3), 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_takes_fresh_values_at_changed_entries_only(name):
    tx = OPTIMIZERS[name]
    state, fresh = tx.init(PARAMS), tx.init(PARAMS)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = tx.update(grads, state, PARAMS)
    changed = {"kernel": KERNEL, "bias": jnp.asarray(False)}
    reset = zs.sparsity.reset_moments(state, fresh, changed)
    assert jax.tree.structure(reset) == jax.tree.structure(state)
    moments = 0
    for new, old, begun in zip(
        *map(jax.tree.leaves, (reset, state, fresh)), strict=True
    ):
        if old.shape == KERNEL.shape and bool(jnp.any(old != begun)):
            moments += 1
            np.testing.assert_array_equal(new, np.where(KERNEL, begun, old))
        else:
            np.testing.assert_array_equal(new, old)
    assert moments >= 1


def test_statistics_of_another_shape_stay():
    tx = optax.adafactor(0.1, min_dim_size_to_factor=2)
    params = {"kernel": jnp.ones((4, 6))}
    _, state = tx.update({"kernel": jnp.ones((4, 6))}, tx.init(params), params)
    changed = {"kernel": jnp.ones((4, 6), bool)}
    reset = zs.sparsity.reset_moments(state, tx.init(params), changed)
    rows = [x for x in jax.tree.leaves(reset) if x.shape == (4,)]
    assert rows
    assert all(np.all(np.asarray(x) > 0) for x in rows)


def test_a_history_of_moments_is_reset_along_its_leading_axis():
    state = {"history": {"kernel": jnp.ones((5, 2, 3))}}
    fresh = jax.tree.map(jnp.zeros_like, state)
    reset = zs.sparsity.reset_moments(state, fresh, {"kernel": KERNEL})
    np.testing.assert_array_equal(
        reset["history"]["kernel"], np.broadcast_to(~np.asarray(KERNEL), (5, 2, 3))
    )


def test_the_longest_path_decides_between_like_named_leaves():
    params = {"a": jnp.zeros((2, 2)), "b": {"a": jnp.zeros((2, 2))}}
    state = jax.tree.map(lambda x: x + 1, params)
    changed = {"a": jnp.zeros((2, 2), bool), "b": {"a": jnp.ones((2, 2), bool)}}
    reset = zs.sparsity.reset_moments(state, params, changed)
    np.testing.assert_array_equal(reset["a"], np.ones((2, 2)))
    np.testing.assert_array_equal(reset["b"]["a"], np.zeros((2, 2)))


def test_moments_of_a_dense_leaf_stay_where_a_like_named_leaf_changes():
    """`kernel` is a suffix of `head/kernel`, but only one of them is sparse."""
    params = {"head": {"kernel": jnp.ones((2, 3))}, "kernel": jnp.ones((2, 3))}
    tx = optax.adam(0.1)
    _, state = tx.update(params, tx.init(params), params)
    changed = {"head": {"kernel": jnp.asarray(False)}, "kernel": KERNEL}
    reset = zs.sparsity.reset_moments(state, tx.init(params), changed)
    for moment in ("mu", "nu"):
        old, new = getattr(state[0], moment), getattr(reset[0], moment)
        np.testing.assert_array_equal(new["head"]["kernel"], old["head"]["kernel"])
        np.testing.assert_array_equal(new["kernel"], np.where(KERNEL, 0, old["kernel"]))


@pytest.mark.parametrize(
    ("tx", "names"),
    [
        (optax.adamw(1e-3), ["nu"]),
        (optax.amsgrad(1e-3), ["nu", "nu_max"]),
        (optax.rmsprop(1e-3), ["nu"]),
        (optax.adagrad(1e-3), ["sum_of_squares"]),
        (optax.inject_hyperparams(optax.adam)(1e-3), ["nu"]),
        (optax.sgd(0.1, momentum=0.9), []),
    ],
    ids=["adamw", "amsgrad", "rmsprop", "adagrad", "injected", "sgd"],
)
def test_grown_weights_can_take_the_mean_second_moment_of_their_leaf(tx, names):
    params = {"bias": jnp.ones(3), "kernel": jnp.arange(1.0, 7.0).reshape(2, 3)}
    _, state = tx.update(params, tx.init(params), params)
    before = np.array([[True, True, True], [False, False, True]])
    after = np.array([[True, True, False], [True, False, True]])
    found = zs.sparsity.mean_second_moments(
        state, *({"bias": jnp.asarray(True), "kernel": m} for m in (before, after))
    )
    seen = []
    for (path, old), new in zip(
        jax.tree_util.tree_flatten_with_path(state)[0],
        jax.tree.leaves(found),
        strict=True,
    ):
        expected = np.array(old)
        name = getattr(path[-2], "name", "") if len(path) > 1 else ""
        if name in names and path[-1:] == (jax.tree_util.DictKey("kernel"),):
            seen.append(name)
            expected[1, 0] = (old[0, 0] + old[0, 1] + old[1, 2]) / 3
        np.testing.assert_allclose(new, expected, rtol=1e-6)
    assert seen == names


def test_a_grown_weight_moves_as_the_others_with_the_mean_second_moment():
    """Under a constant gradient Adam moves every old weight by one learning rate."""
    rate, g = 1e-3, jnp.ones((1, 4))
    before = jnp.array([[True, True, True, False]])
    tx = optax.adam(rate)
    state = cast(Any, tx.init(g))
    live = before.astype(jnp.float32)
    old = state[0]._replace(count=jnp.int32(20_000), mu=live, nu=live)
    steps = {}
    for rule in ("fresh", "mean"):
        held = (old, *state[1:])
        if rule == "mean":
            held = zs.sparsity.mean_second_moments(held, before, before | True)
        sizes = []
        for _ in range(40):
            updates, held = tx.update(g, held, g)
            sizes.append(float(-updates[0, 3]) / rate)
        steps[rule] = sizes
    assert min(steps["fresh"]) > 3
    assert 6.2 < max(steps["fresh"]) < 6.6
    assert max(steps["mean"]) < 1.001
    assert steps["mean"][-1] > 0.98
