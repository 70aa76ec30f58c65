"""Masks read out of states of every kind, packed and not, and put to use."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import zosam_jax as zs


def start():
    rng = np.random.default_rng(0)
    shapes = {"a": {"b": (10,), "w": (6, 10)}, "c": {"b": (3,), "w": (10, 3)}}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def transformation(packed=True):
    return zs.sparsify(
        optax.sgd(0.1, momentum=0.9),
        zs.sparsity.rigl(0.5, 100, interval=2, drop_fraction=0.5),
        packed=packed,
        track_exploration=True,
    )


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert [x.dtype for x in jax.tree.leaves(a)] == [
        x.dtype for x in jax.tree.leaves(b)
    ]


def test_packed_masks_go_where_masks_go():
    plain, packed = (transformation(p).init(start()) for p in (False, True))
    masks = zs.sparsity.masks(plain)
    equal(zs.sparsity.masks(packed), masks)
    equal(zs.sparsity.pack(masks), packed.masks)
    assert zs.sparsity.pack(packed.masks) is packed.masks
    assert zs.sparsity.unpack(masks) is masks
    equal(
        zs.sparsity.apply_masks(start(), packed.masks),
        zs.sparsity.apply_masks(start(), masks),
    )
    assert float(zs.sparsity.sparsity_of(packed.masks)) == 0.5
    assert float(zs.sparsity.sparsity_of(packed.masks, start())) == pytest.approx(
        45 / 103
    )


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 16, 17])
def test_packing_is_exact_for_every_length_of_the_last_axis(n):
    masks = {"w": jnp.asarray(np.random.default_rng(n).random((2, 3, n)) < 0.5)}
    packed = zs.sparsity.pack(masks)
    assert packed.bits["w"].shape == (2, 3, -(-n // 8))
    equal(zs.sparsity.unpack(packed), masks)
    # An ensemble: another axis in front of everything.
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), packed)
    assert zs.sparsity.unpack(stacked)["w"].shape == (2, 2, 3, n)


@pytest.mark.parametrize("packed", [False, True])
def test_the_shapes_of_an_init_are_those_of_a_jitted_and_of_an_eager_one(packed):
    tx = transformation(packed)
    shapes = jax.eval_shape(tx.init, start())
    eager, jitted = tx.init(start()), jax.jit(tx.init)(start())
    equal(jitted, eager)
    assert jax.tree.structure(shapes) == jax.tree.structure(eager)
    held = jax.tree.map(lambda m: (m.shape, m.dtype), zs.sparsity.masks(shapes))
    expected = jax.tree.map(lambda m: (m.shape, m.dtype), zs.sparsity.masks(eager))
    assert held == expected


def test_a_state_survives_pickle_flax_and_orbax_and_trains_on(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = transformation()
    params, state = start(), tx.init(start())
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    step = jax.jit(tx.update)
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(7 * x + i), start())
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        like = jax.eval_shape(tx.init, params)
        from_orbax = checkpointer.restore(tmp_path / "state", like)
    back = {
        "pickle": pickle.loads(pickle.dumps(state)),
        "flax": serialization.from_bytes(state, serialization.to_bytes(state)),
        "orbax": from_orbax,
    }
    expected, _ = step(params, state, params)
    for restored in back.values():
        equal(restored, state)
        equal(step(params, restored, params)[0], expected)


def two_methods():
    """RigL packed on one part, gradual pruning unpacked on the other."""
    rigl = zs.sparsity.rigl(0.5, 100, interval=2, drop_fraction=0.5)
    gmp = zs.sparsity.gmp(0.5, 10, interval=1, start_fraction=0.1, stop_fraction=0.3)
    return optax.multi_transform(
        {
            "x": zs.sparsify(optax.sgd(0.1), rigl, packed=True, track_exploration=True),
            "y": zs.sparsify(optax.adam(0.1), gmp),
        },
        {"a": "x", "c": "y"},
    )


def test_two_methods_in_a_multi_transform_one_of_them_packed_and_donated():
    tx = optax.chain(optax.clip(5.0), two_methods())
    params = start()
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        grads = jax.tree.map(lambda x: jnp.cos(7 * x), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
    for _ in range(5):
        params, state = step(params, state)
        masks = zs.sparsity.masks(state)
        assert jax.tree.structure(masks) == jax.tree.structure(params)
        assert int(masks["a"]["w"].sum()) == 30
        equal(zs.sparsity.apply_masks(params, masks), params)
    assert int(masks["c"]["w"].sum()) == 15
    assert step._cache_size() == 1
    # Of the part that is tracked: two changes have shown it more than half.
    assert 0.5 < float(zs.sparsity.exploration(state)) < 1


def test_one_leaf_with_two_masks_is_refused():
    tx = optax.chain(transformation(), transformation(packed=False))
    with pytest.raises(ValueError, match="several masks of one leaf"):
        zs.sparsity.masks(tx.init(start()))
    with pytest.raises(ValueError, match="several masks of one leaf"):
        zs.sparsity.exploration(tx.init(start()))


@pytest.mark.parametrize("state", [None, (), optax.EmptyState(), start()])
def test_what_holds_no_masks_is_refused(state):
    with pytest.raises(ValueError, match="holds no masks"):
        zs.sparsity.masks(state)
    with pytest.raises(ValueError, match="track_exploration=True"):
        zs.sparsity.exploration(state)


def test_exploration_of_a_state_that_does_not_track_it_is_refused():
    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.5))
    with pytest.raises(ValueError, match="track_exploration=True"):
        zs.sparsity.exploration(tx.init(start()))


def test_what_is_applied_in_place_of_masks_is_refused_with_advice():
    state = transformation().init(start())
    for wrong in (None, state, zs.sparsity.masks(state)["a"]):
        with pytest.raises(ValueError, match=r"zs.sparsity.masks\(state\)") as error:
            zs.sparsity.apply_masks(start(), wrong)
        assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match="masks are boolean"):
        zs.sparsity.apply_masks(zs.sparsity.masks(state), start())
    masks = zs.sparsity.masks(state)
    masks["a"]["w"] = masks["a"]["w"].T
    with pytest.raises(ValueError, match=r"a/w has shape \(10, 6\)"):
        zs.sparsity.apply_masks(start(), zs.sparsity.pack(masks))
