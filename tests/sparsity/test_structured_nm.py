"""N:M sparsity, fixed, straight-through and dynamic, against sorts in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structured import best, cosine, mask_of, normal, train, train_in_numpy

import zosam_jax as zs

SHAPES = {"a": (8, 6), "b": (3, 2, 4, 5), "bias": (6,)}
STEPS, INTERVAL = 1000, 20


def groups(shape, m, axis=-2):
    """Flat indices of every group, by loops over the array's indices."""
    axis %= len(shape)
    found = {}
    for flat, index in enumerate(np.ndindex(*shape)):
        key = (*index[:axis], index[axis] // m, *index[axis + 1 :])
        found.setdefault(key, []).append(flat)
    assert all(len(g) == m for g in found.values())
    return list(found.values())


def live_of_groups(mask, m, axis=-2):
    flat = np.asarray(mask).reshape(-1)
    return {int(flat[g].sum()) for g in groups(mask.shape, m, axis)}


def n_best(score, n, m, axis=-2):
    chosen = [i for g in groups(score.shape, m, axis) for i in best(score, g, n)]
    return mask_of(score.shape, chosen)


def masks_of(method, params):
    return jax.tree.map(np.asarray, jax.jit(method.init)(params).masks)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4)])
def test_fixed_masks_keep_the_largest_of_every_group_of_inputs(n, m):
    start = normal(SHAPES)
    method = zs.sparsity.static(pattern=(n, m), criterion="magnitude")
    masks = masks_of(method, start)
    for k in ("a", "b"):
        np.testing.assert_array_equal(masks[k], n_best(np.abs(start[k]), n, m))
    assert masks["bias"].ndim == 0
    assert float(zs.sparsity.sparsity_of(masks)) == 1 - n / m


def test_ties_go_to_the_lower_index_and_random_masks_have_the_pattern():
    masks = masks_of(zs.sparsity.static(pattern=(2, 4), criterion="magnitude"), ones())
    np.testing.assert_array_equal(masks["w"][:, 0], [1, 1, 0, 0, 1, 1, 0, 0])
    masks = masks_of(zs.sparsity.static(0.5, pattern=(2, 4), seed=1), ones())
    assert live_of_groups(masks["w"], 4) == {2}
    assert not np.all(masks["w"] == [[1], [1], [0], [0]] * 2)


def ones():
    return {"w": jnp.ones((8, 3))}


def test_snip_within_groups_ranks_by_the_gradient_too():
    start = {"w": jnp.asarray(normal({"w": (8, 3)})["w"])}
    c = normal({"c": (8, 3)}, 5)["c"]
    method = zs.sparsity.static(
        pattern=(1, 4), criterion="snip", value_fn=lambda p: jnp.sum(c * p["w"])
    )
    expected = n_best(np.abs(np.asarray(start["w"]) * c), 1, 4)
    np.testing.assert_array_equal(masks_of(method, start)["w"], expected)


def test_a_pruned_product_sums_over_half_of_every_four_inputs():
    """What hardware needs: each output reads 2 of every 4 inputs."""
    params = {"w": jax.random.normal(jax.random.key(0), (16, 5))}
    masks = masks_of(zs.sparsity.static(pattern=(2, 4), criterion="magnitude"), params)
    w = np.asarray(zs.sparsity.apply_masks(params, masks)["w"])
    for output in w.T:
        assert [np.count_nonzero(output[i : i + 4]) for i in range(0, 16, 4)] == [2] * 4


@pytest.mark.parametrize("axis", [1, lambda path, shape: 1 if "linear" in path else -3])
def test_the_axis_is_an_option_for_other_layouts(axis):
    """Equinox has `(out, in)` and `(out, in, height, width)`."""
    start = normal({"linear": (5, 8), "conv": (5, 4, 3, 3)})
    method = zs.sparsity.static(pattern=(2, 4), criterion="magnitude", axis=axis)
    masks = masks_of(method, start)
    for k in start:
        np.testing.assert_array_equal(masks[k], n_best(np.abs(start[k]), 2, 4, 1))


@pytest.mark.parametrize(
    "method",
    [
        zs.sparsity.static(pattern=(2, 4), criterion="magnitude"),
        zs.sparsity.ste(pattern=(2, 4)),
        zs.sparsity.nm(2, 4, 1000),
    ],
)
def test_leaves_that_groups_do_not_divide_are_named(method):
    params = {"stem": jnp.ones((3, 3, 3, 8)), "w": jnp.ones((8, 8))}
    with pytest.raises(ValueError, match=r"stem of shape \(3, 3, 3, 8\) along axis 2"):
        method.init(params)
    with pytest.raises(ValueError, match=r"dense=\('stem',\)"):
        method.init(params)


def test_a_leaf_that_is_dense_need_not_divide():
    params = {"stem": jnp.ones((3, 3, 3, 8)), "w": jnp.ones((8, 8))}
    masks = masks_of(zs.sparsity.nm(2, 4, 1000, dense="stem"), params)
    assert masks["stem"].ndim == 0
    assert live_of_groups(masks["w"], 4) == {2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zs.sparsity.static(pattern=(5, 4)), "n=5 of m=4"),
        (lambda: zs.sparsity.static(pattern=4), "pattern=4 must be"),
        (lambda: zs.sparsity.static(0.9, pattern=(2, 4)), "has sparsity 0.5, not 0.9"),
        (
            lambda: zs.sparsity.static(pattern=(2, 4), budget="erk"),
            "exclude each other",
        ),
        (lambda: zs.sparsity.ste(pattern=(0, 4)), "n=0 must be an integer"),
        (lambda: zs.sparsity.ste(), "ste needs sparsity="),
        (lambda: zs.sparsity.nm(2, 4, 1000, drop_fraction=2), "drop_fraction=2"),
        (lambda: zs.sparsity.nm(2, 4, 1000, axis=7).init(ones()), "axis=7 is out of"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("decay", [0.0, 2e-4])
def test_a_thousand_steps_of_sr_ste_equal_the_numpy_replica(decay):
    start = normal(SHAPES)
    method = zs.sparsity.ste(pattern=(2, 4), decay=decay)
    run = train(method, start, STEPS)
    _, w, masks, _ = next(run)
    sparse = {k: masks[k] for k in ("a", "b")}
    replica = train_in_numpy(
        start,
        w,
        sparse,
        STEPS,
        lambda step: True,
        lambda step, w, g, masks: {k: n_best(np.abs(w[k]), 2, 4) for k in masks},
        decay,
    )
    changed = 0
    for (index, params, held, _), (_, expected, wanted) in zip(
        run, replica, strict=True
    ):
        for k in sparse:
            np.testing.assert_array_equal(held[k], wanted[k], err_msg=f"{k} {index}")
            changed += not np.array_equal(held[k], sparse[k])
        for k in SHAPES:
            # Rounding, which momentum carries over steps.
            np.testing.assert_allclose(params[k], expected[k], rtol=1e-3, atol=1e-5)
    assert changed


def test_a_thousand_steps_of_dynamic_masks_equal_the_numpy_replica():
    start, stop = normal(SHAPES), 0.75 * STEPS

    def change(step, w, g, masks):
        new = {}
        for k, old in masks.items():
            live = int(old.sum())
            dropped = int(np.floor(cosine(0.3, step, stop) * np.float32(live)))
            kept = best(np.abs(w[k]), np.flatnonzero(old), live - dropped)
            chosen = list(kept)
            for group in groups(old.shape, 4):
                there = len(set(group) & set(kept))
                rest = [i for i in group if i not in set(kept)]
                chosen += best(np.abs(g[k]), rest, 2 - there)
            new[k] = mask_of(old.shape, chosen)
        return new

    method = zs.sparsity.nm(2, 4, STEPS, interval=INTERVAL, seed=3)
    run = train(method, start, STEPS)
    _, w, masks, _ = next(run)
    replica = train_in_numpy(
        start,
        w,
        {k: masks[k] for k in ("a", "b")},
        STEPS,
        lambda step: step > 0 and step % INTERVAL == 0 and step < stop,
        change,
    )
    before, changes = masks["b"], 0
    for (index, params, held, counted), (_, expected, wanted) in zip(
        run, replica, strict=True
    ):
        for k in ("a", "b"):
            np.testing.assert_array_equal(held[k], wanted[k], err_msg=f"{k} {index}")
            if index % INTERVAL == 0:
                assert counted.live.tolist() == counted.target.tolist() == [24, 60]
                assert live_of_groups(held[k], 4) == {2}
            assert np.all(params[k][~held[k]] == 0)
        for k in SHAPES:
            np.testing.assert_allclose(params[k], expected[k], rtol=1e-3, atol=1e-5)
        changes += not np.array_equal(before, held["b"])
        before = held["b"]
    assert changes >= 20


def test_a_change_drops_by_the_layer_and_grows_by_the_group():
    """Losses may pile up in one group; each is made good there, even by the same."""
    w = jnp.asarray([[0.1], [0.2], [9.0], [9.0], [5.0], [6.0], [0.0], [0.0]])
    masks = {"w": jnp.asarray([[1], [1], [0], [0], [1], [1], [0], [0]], bool)}
    method = zs.sparsity.nm(2, 4, 10**6, drop_fraction=0.5)
    topology = zs.sparsity.Topology(masks, jax.jit(method.init)({"w": w}).memory)
    g = jnp.asarray([[3.0], [1.0], [2.0], [0.0], [0.0], [0.0], [9.0], [9.0]])
    new = jax.jit(method.change)(topology, {"w": w}, {"w": g}, 0).masks["w"]
    assert new[:, 0].astype(int).tolist() == [1, 0, 1, 0, 1, 1, 0, 0]
