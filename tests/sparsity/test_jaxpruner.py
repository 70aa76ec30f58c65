"""What jaxpruner documents of its algorithms holds here too, as rules.

(arXiv:2304.14082 and its API.) One-shot pruning at a step is `gmp` with one step in its
window; `instant_sparsify` is the init of `static`; None for a dense leaf is True here.
Their N:M rule belongs here once a method has it: n live weights in every group of m.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zosam_jax as zs

SHAPES = {"kernel": (8, 12), "conv": (3, 3, 2, 5), "bias": (12,), "scale": (5,)}
SIZES = {"kernel": 96, "conv": 90}


def tree(seed):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}


def train(method, steps, optimizer=None, **options):
    """`(params, masks, grads)` of every step, before it, eager but for the update.

    The gradient is dense, and new in every step.
    """
    tx = zs.sparsify(optimizer or optax.sgd(0.1, momentum=0.9), method, **options)
    state = tx.init(tree(0))
    params = zs.sparsity.apply_masks(tree(0), zs.sparsity.masks(state))
    update = jax.jit(tx.update)
    for i in range(steps):
        grads = tree(100 + i)
        yield params, zs.sparsity.masks(state), grads
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    yield params, zs.sparsity.masks(state), None


def largest(scores, count):
    """The mask of the highest scores, by a sort; no two are equal here."""
    order = np.argsort(-np.asarray(scores), axis=None)
    mask = np.zeros(scores.size, bool)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


DYNAMIC = {
    "rigl": zs.sparsity.rigl(0.8, 40, interval=4, drop_fraction=0.4, budget="uniform"),
    "set": zs.sparsity.set_(0.8, 40, interval=4, drop_fraction=0.4, budget="uniform"),
}


@pytest.fixture(scope="module", params=DYNAMIC)
def history(request):
    return request.param, list(train(DYNAMIC[request.param], 13, packed=True))


def test_biases_and_norms_in_the_tree_are_dense_and_train(history):
    _, steps = history
    for (params, masks, _), (after, _, _) in itertools.pairwise(steps):
        for k in ("bias", "scale"):
            assert masks[k].shape == ()
            assert bool(masks[k])
            assert np.all(np.asarray(after[k]) != np.asarray(params[k]))


def test_the_topology_changes_at_update_steps_alone(history):
    _, steps = history
    changed = [
        i
        for i in range(len(steps) - 1)
        if any(np.any(steps[i][1][k] != steps[i + 1][1][k]) for k in SIZES)
    ]
    assert changed == [4, 8, 12]


def test_the_number_of_connections_of_a_layer_never_changes(history):
    _, steps = history
    for params, masks, _ in steps:
        assert {k: int(masks[k].sum()) for k in SIZES} == {"kernel": 19, "conv": 18}
        assert {k: int((params[k] != 0).sum()) for k in SIZES} == {
            "kernel": 19,
            "conv": 18,
        }


def test_the_smallest_magnitudes_drop(history):
    """All of the largest stay, as many as the cosine leaves."""
    _, steps = history
    for i in (4, 8, 12):
        params, masks, _ = steps[i]
        share = 0.4 / 2 * (1 + np.cos(np.pi * i / 30))
        for k in SIZES:
            live = int(masks[k].sum())
            kept = largest(jnp.abs(params[k]), live - int(share * live))
            assert np.all(np.asarray(steps[i + 1][1][k])[kept])


def test_rigl_grows_by_the_gradient_of_pruned_weights_and_set_at_random(history):
    name, steps = history
    by_gradient = []
    for i in (4, 8, 12):
        params, _, grads = steps[i]
        share = 0.4 / 2 * (1 + np.cos(np.pi * i / 30))
        for k in SIZES:
            new = np.asarray(steps[i + 1][1][k])
            live = int(new.sum())
            kept = largest(jnp.abs(params[k]), live - int(share * live))
            score = jnp.where(kept, -1.0, jnp.abs(grads[k]))
            by_gradient.append(
                np.array_equal(new & ~kept, largest(score, live - kept.sum()))
            )
    assert all(by_gradient) if name == "rigl" else not any(by_gradient)


def test_grown_weights_start_at_zero_with_no_momentum(history):
    """So the first step moves them by the gradient alone."""
    _, steps = history
    for i in (4, 8, 12):
        _, old, grads = steps[i]
        after, new, _ = steps[i + 1]
        for k in SIZES:
            grown = np.asarray(new[k] & ~old[k])
            assert grown.any()
            # One product and one subtraction from zero.
            np.testing.assert_allclose(
                np.asarray(after[k])[grown],
                -0.1 * np.asarray(grads[k])[grown],
                rtol=1e-6,
            )


def test_a_drop_fraction_of_zero_is_a_static_mask():
    method = zs.sparsity.rigl(0.8, 40, interval=2, drop_fraction=0.0)
    first, *_, last = train(method, 5)
    jax.tree.map(np.testing.assert_array_equal, first[1], last[1])


def test_one_shot_magnitude_pruning_is_dense_until_its_step_and_then_exact():
    method = zs.sparsity.gmp(
        0.75, 8, start_fraction=0.5, stop_fraction=0.5, interval=1, budget="uniform"
    )
    steps = list(train(method, 8))
    for i, (params, masks, _) in enumerate(steps):
        for k, size in SIZES.items():
            if i <= 4:
                assert masks[k].all()
                continue
            left = size - round(0.75 * size)
            assert abs(int(masks[k].sum()) - left) <= 1
            expected = largest(jnp.abs(steps[4][0][k]), int(masks[k].sum()))
            np.testing.assert_array_equal(masks[k], expected)
            assert np.all(np.asarray(params[k])[~expected] == 0)
    assert sum(int(steps[-1][1][k].sum()) for k in SIZES) == 186 - round(0.75 * 186)


def test_gradual_magnitude_pruning_follows_the_cubic_and_never_grows():
    method = zs.sparsity.gmp(
        0.9, 20, start_fraction=0.1, stop_fraction=0.9, interval=4, budget="uniform"
    )
    steps = list(train(method, 20, optimizer=optax.lion(1e-2)))
    final = {k: int(steps[-1][1][k].sum()) for k in SIZES}
    assert sum(final.values()) == 186 - round(0.9 * 186)
    for i in range(20):
        # Changes at 2, 6, 10, 14 and 18, the last of which is at the target.
        done = 1 - (1 - max(0, min(4, (i - 2) // 4)) / 4) ** 3
        for k, size in SIZES.items():
            after = np.asarray(steps[i + 1][1][k])
            assert after.sum() == pytest.approx(
                size - done * (size - final[k]), abs=0.501
            )
            assert not np.any(after & ~np.asarray(steps[i][1][k]))


def test_instant_sparsify_keeps_the_largest_weights_of_each_layer():
    tx = zs.sparsify(
        optax.sgd(0.1), zs.sparsity.static(0.75, "magnitude", budget="uniform")
    )
    masks = zs.sparsity.masks(tx.init(tree(0)))
    for k in SIZES:
        expected = largest(jnp.abs(tree(0)[k]), int(masks[k].sum()))
        np.testing.assert_array_equal(masks[k], expected)


def test_global_magnitude_pruning_has_one_threshold():
    tx = zs.sparsify(
        optax.sgd(0.1), zs.sparsity.static(0.75, "magnitude", budget="global")
    )
    params = tree(0)
    masks = zs.sparsity.masks(tx.init(params))
    kept = np.concatenate(
        [np.asarray(jnp.abs(params[k]))[np.asarray(masks[k])] for k in SIZES]
    )
    gone = np.concatenate(
        [np.asarray(jnp.abs(params[k]))[~np.asarray(masks[k])] for k in SIZES]
    )
    assert kept.size == 186 - round(0.75 * 186)
    assert kept.min() > gone.max()


def test_straight_through_weights_all_train_and_the_mask_is_that_of_the_largest():
    steps = list(train(zs.sparsity.ste(0.75, budget="uniform"), 4))
    for (params, masks, _), (after, _, _) in itertools.pairwise(steps[1:]):
        for k in SIZES:
            np.testing.assert_array_equal(
                masks[k], largest(jnp.abs(params[k]), int(masks[k].sum()))
            )
            assert np.all(np.asarray(after[k]) != np.asarray(params[k]))


@pytest.mark.parametrize("method", [*DYNAMIC, "static"])
def test_packed_masks_change_nothing(method):
    """jaxpruner multiplied gradients by the packed bytes."""
    rule = DYNAMIC.get(method, zs.sparsity.static(0.8))
    packed, plain = list(train(rule, 13, packed=True)), list(train(rule, 13))
    steps: Any = zip(packed, plain, strict=True)
    for (params, masks, _), (expected, held, _) in steps:
        jax.tree.map(np.testing.assert_array_equal, masks, held)
        for k in SHAPES:
            np.testing.assert_allclose(params[k], expected[k], rtol=1e-6, atol=1e-7)
