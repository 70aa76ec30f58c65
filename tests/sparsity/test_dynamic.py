"""RigL and SET: schedules, counts and arguments."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, example, given, settings

import zosam_jax as zs
from zosam_jax.sparsity.prune_and_grow import Memory


def test_the_schedule_starts_after_an_interval_and_stops():
    method = zs.sparsity.rigl(0.5, 1000, interval=100, stop_fraction=0.75)
    fired = np.flatnonzero(jax.vmap(method.fires)(jnp.arange(1000)))
    assert fired.tolist() == [100, 200, 300, 400, 500, 600, 700]


@pytest.mark.parametrize(("step", "alpha"), [(0, 0.4), (250, 0.2), (500, 0.0)])
def test_the_drop_fraction_is_annealed_by_a_cosine(step, alpha):
    method = zs.sparsity.rigl(0.5, 1000, drop_fraction=0.4, stop_fraction=0.5)
    params = {"w": jnp.arange(1.0, 10_001).reshape(100, 100)}
    first = method.init(params)
    masks = first.masks
    # Growth can only come from outside the mask, so every drop is seen.
    grads = {"w": jnp.where(masks["w"], 0.0, 1.0)}
    new = method.change(first, params, grads, jnp.int32(step)).masks
    dropped = int(jnp.sum(masks["w"] & ~new["w"]))
    assert dropped == pytest.approx(alpha * 5000, abs=1)
    assert int(new["w"].sum()) == 5000


@jax.jit
def change(masks, params, grads, step):
    live = jnp.stack([m.sum(dtype=jnp.int32) for m in masks.values()])
    topology = zs.sparsity.Topology(masks, Memory(live, live))
    rule = zs.sparsity.rigl(0.5, 100, interval=1, drop_fraction=0.9)
    return rule.change(topology, params, grads, step).masks


values = st.sampled_from([-1.0, 0.0, 0.0, 0.5, 1.0, np.nan, np.inf])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_counts_never_change_whatever_the_scores(data):
    def array(elements, shape):
        size = int(np.prod(shape))
        return np.array(
            data.draw(st.lists(elements, min_size=size, max_size=size))
        ).reshape(shape)

    shapes = {"a": (3, 4), "b": (2, 1, 5)}
    masks = {k: jnp.asarray(array(st.booleans(), s)) for k, s in shapes.items()}
    params, grads = (
        {k: jnp.asarray(array(values, s), jnp.float32) for k, s in shapes.items()}
        for _ in range(2)
    )
    new = change(masks, params, grads, jnp.int32(data.draw(st.integers(0, 80))))
    for k in shapes:
        assert int(new[k].sum()) == int(masks[k].sum())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.97])
def test_exact_zeros_and_counts_through_training(dtype, sparsity):
    params = {"w": jax.random.normal(jax.random.key(0), (20, 31)).astype(dtype)}
    tx = zs.sparsify(
        optax.adamw(1e-2, weight_decay=0.1),
        zs.sparsity.rigl(sparsity, 40, interval=3, drop_fraction=0.5),
    )
    state = tx.init(params)
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    count = 620 - round(sparsity * 620)

    @jax.jit
    def step(params, state, key):
        grads = {"w": jax.random.normal(key, (20, 31)).astype(dtype)}
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(20):
        params, state = step(params, state, jax.random.key(i))
        mask = np.asarray(zs.sparsity.masks(state)["w"])
        w = np.asarray(params["w"])
        assert mask.sum() == count
        assert np.all(w[~mask] == 0)
        assert params["w"].dtype == dtype
        assert np.all(np.isfinite(w.astype(np.float32)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"interval": 0}, "interval=0"),
        ({"drop_fraction": 1.5}, "drop_fraction=1.5"),
        ({"stop_fraction": 2}, "stop_fraction=2"),
        ({"budget": "global"}, "budget='global' is unknown"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        zs.sparsity.rigl(**({"sparsity": 0.5, "total_steps": 10} | arguments))


def test_drop_and_grow_draw_from_keys_of_their_own():
    """With one key, what scored too low to stay would score too low to come back."""
    method = zs.sparsity.dynamic(
        0.5,
        10**6,
        drop=zs.sparsity.scores.random,
        grow=zs.sparsity.scores.random,
        drop_fraction=0.5,
    )
    params = {"w": jnp.ones((100, 100))}
    first = method.init(params)
    masks = first.masks
    new = method.change(first, params, params, jnp.int32(100)).masks
    back = 1 - float(jnp.sum(masks["w"] & ~new["w"])) / 2500
    # Of 7,500 candidates, 2,500 grow; 2,500 of the candidates were just dropped.
    assert back == pytest.approx(1 / 3, abs=0.05)


def test_dropping_everything_keeps_the_count():
    method = zs.sparsity.rigl(0.0, 10**6, drop_fraction=1.0)
    params = {"w": jnp.ones((10, 10))}
    new = method.change(method.init(params), params, params, jnp.int32(0)).masks
    assert int(new["w"].sum()) == 100


# Each example compiles a program; `test_conservation.py` draws many trees of two.
@settings(max_examples=4, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
    sparsity=st.floats(0, 0.95),
    levels=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
@example((7, 1), jnp.bfloat16, 0.5, 1, 0)
@example((3, 1, 5, 2), jnp.float16, 0.9, 2, 1)
def test_counts_and_zeros_are_exact_for_any_shape_dtype_density_and_ties(
    shape, dtype, sparsity, levels, seed
):
    """One change of topology and one step, on weights and gradients full of ties."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    count = size - round(sparsity * size)
    assume(count >= 1)
    assume(len(shape) == 2 or sum(n > 1 for n in shape) >= 2)
    drawn = rng.integers(-levels, levels + 1, size=(2, *shape))
    params = {"w": jnp.asarray(drawn[0], dtype)}
    grads = {"w": jnp.asarray(drawn[1], dtype)}
    rule = zs.sparsity.rigl(sparsity, 10**6, drop_fraction=0.8, seed=seed)
    tx = zs.sparsify(optax.sgd(0.1, momentum=0.9), rule)

    @jax.jit
    def step(params, grads):
        state = tx.init(params)._replace(step=jnp.int32(100))
        params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates)["w"], zs.sparsity.masks(state)["w"]

    new, mask = map(np.asarray, step(params, grads))
    assert mask.sum() == count
    assert np.all(new[~mask] == 0)
    assert new.dtype == dtype
