"""Two methods at once: each as it would be alone, the network the product of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from structured import normal, train

import zosam_jax as zs
from zosam_jax.sparsity import Units

SHAPES = {"in": (6, 12), "out": (12, 8), "bias": (12,)}
GROUPS = {"hidden": Units("out", incoming=("in", "bias"))}
STEPS = 60


def units(**options):
    return zs.sparsity.units(0.5, STEPS, GROUPS, interval=8, **options)


WEIGHTS = {
    "rigl": lambda: zs.sparsity.rigl(0.7, STEPS, interval=6, drop_fraction=0.5),
    "gmp": lambda: zs.sparsity.gmp(0.7, STEPS, interval=6, budget="global"),
    "nm": lambda: zs.sparsity.nm(1, 2, STEPS, interval=6),
    "static": lambda: zs.sparsity.static(0.7),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_changes_as_alone_and_the_mask_is_the_product(name):
    methods = units(), WEIGHTS[name]()
    method = zs.sparsity.product(*methods)
    start = normal(SHAPES)
    target = {k: np.roll(x, 1) * np.float32(0.7) for k, x in start.items()}
    alone = [None if m.change is None else jax.jit(m.change) for m in methods]
    before, changes = None, 0
    for step, params, masks, parts in train(method, start, STEPS):
        for k, mask in masks.items():
            wanted = np.logical_and(*(np.asarray(p.masks[k]) for p in parts))
            np.testing.assert_array_equal(mask, wanted)
            assert np.all(params[k][~np.broadcast_to(mask, params[k].shape)] == 0)
        # Their own counts, whatever the other prunes.
        first, second = parts
        assert first.memory.live.tolist() == [6 * 8]
        if name != "static":
            held = [int(m.sum()) for m in second.masks.values() if m.ndim]
            assert second.memory.live.tolist() == held
        if before is not None:
            weights, old = before
            stiffness = 1.5 + (step % 7) / 7
            grads = {k: (weights[k] - target[k]) * stiffness for k in weights}
            for single, m, a, b in zip(alone, methods, old, parts, strict=True):
                due = single is not None and bool(m.fires(jnp.int32(step)))
                found = single(a, weights, grads, jnp.int32(step)) if due else a
                jax.tree.map(np.testing.assert_array_equal, found.masks, b.masks)
                changes += due
        before = params, jax.tree.map(jnp.array, parts)
    assert changes > 4
    held = jax.tree.map(np.array, masks)
    cut = zs.sparsity.removable(start, held, GROUPS)
    assert cut["out"] >= 6 * 8


def test_its_state_is_donated_and_resumed_as_any_other():
    method = zs.sparsity.product(units(), WEIGHTS["rigl"]())
    tx = zs.sparsify(optax.adam(0.1), method, zs.zosam(), packed=True)
    params = {k: jnp.asarray(x) for k, x in normal(SHAPES).items()}
    state = tx.init(params)
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(
            None,
            state,
            params,
            value_fn=lambda p: sum(jnp.sum((x - 1) ** 2) for x in p.values()),
        )
        return optax.apply_updates(params, updates), state

    for _ in range(9):
        params, state = step(params, state)
    assert method.dense_gradient_every == 6
    assert int(state.memory.weights.memory.live.sum()) == 168 - round(0.7 * 168)
    pruned = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    jax.tree.map(np.testing.assert_array_equal, pruned, params)


def test_two_fixed_masks_never_change():
    method = zs.sparsity.product(zs.sparsity.static(0.5), zs.sparsity.static(0.5))
    assert method.fires is method.change is None


CHANNELS = {"u": Units("out", incoming=("in", "bias"), scale="bias")}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: zs.sparsity.ste(0.5), r"weights=.*\.ste\(.*\) keeps values"),
        (
            lambda: zs.sparsity.chex(0.5, 9, CHANNELS),
            r"weights=.*\.chex\(.*\) keeps values",
        ),
        (lambda: zs.sparsity.safe(0.5, 9), r"weights=.*\.safe\(.*\) prunes trained"),
        (lambda: zs.sparsity.static(0.5, stacked="in"), "stacked='in'. Give both"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(weights, message):
    with pytest.raises(ValueError, match=message):
        zs.sparsity.product(units(), weights())


def test_a_method_is_asked_for():
    with pytest.raises(TypeError, match="weights must be a method of"):
        zs.sparsity.product(units(), zs.sparsity.rigl)  # pyright: ignore
