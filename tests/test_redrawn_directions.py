"""Directions drawn again: the estimate of those that are kept, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zosam_jax as zs
from zosam_jax import estimators

LARGE = (2**16 + 512, 1)


def params(dtype=jnp.float32):
    """A leaf that is drawn alone, and two that are drawn together."""
    shapes = {"a": (3,), "b": LARGE, "c": (5, 2)}
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}


def value_fn(w):
    total = sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in w.values())
    return total / 100, {"first": w["a"][0]}


MASKS = {
    "a": jnp.asarray(True),
    "b": jnp.arange(LARGE[0])[:, None] % 3 == 0,
    "c": jnp.asarray([[True, False]] * 5),
}


@pytest.mark.parametrize(
    ("distribution", "num_directions", "two_sided", "masks"),
    [
        ("gaussian", 1, True, None),
        ("sphere", 2, True, MASKS),
        ("rademacher", 3, False, MASKS),
    ],
)
def test_the_estimate_is_that_of_directions_that_are_kept(
    distribution, num_directions, two_sided, masks
):
    options = {
        "delta": 1e-2,
        "num_directions": num_directions,
        "distribution": distribution,
        "two_sided": two_sided,
        "masks": masks,
        "has_aux": True,
    }

    @jax.jit
    def both(w, key):
        kept, _ = estimators.rge(value_fn, w, key, **options)
        return kept, estimators.redrawn(value_fn, w, key, **options)

    kept, found = both(params(), jax.random.key(3))
    for path, x in kept.grad.items():
        np.testing.assert_allclose(found.grad[path], x, rtol=1e-3, atol=2e-5)
        assert float(jnp.abs(x).max()) > 1e-2
    np.testing.assert_allclose(found.value, kept.value, rtol=1e-5)
    np.testing.assert_allclose(found.aux["first"], kept.aux["first"], rtol=1e-6)
    for name, x in kept.info._asdict().items():
        np.testing.assert_allclose(
            getattr(found.info, name), x, rtol=1e-4, err_msg=name
        )


def test_parameters_of_half_precision_have_gradients_of_their_own_dtype():
    seen = estimators.redrawn(
        value_fn, params(jnp.bfloat16), jax.random.key(0), has_aux=True
    )
    assert {g.dtype for g in seen.grad.values()} == {jnp.dtype(jnp.bfloat16)}


def test_a_loss_without_differences_is_counted():
    seen = estimators.redrawn(lambda w: 0.0 * w["a"][0], params(), jax.random.key(0))
    assert int(seen.info.unperturbed) == 1


def temporary(redraw):
    """The temporary bytes of a step of 8 layers, per byte of their parameters."""
    layers = {f"layer{i}": jnp.ones((257, 257)) for i in range(8)}

    def loss(w):
        h = jnp.ones((8, 257))
        for x in w.values():
            h = jnp.tanh(h @ x)
        return jnp.mean(h)

    optimizer = zs.zo_sgd(0.1, distribution="rademacher", redraw=redraw)
    state = optimizer.init(layers)

    def step(w, state):
        updates, state = optimizer.update(None, state, w, value_fn=loss)
        return jax.tree.map(jnp.add, w, updates), state

    compiled = jax.jit(step, donate_argnums=0).lower(layers, state).compile()
    size = sum(x.nbytes for x in layers.values())
    return compiled.memory_analysis().temp_size_in_bytes / size


def test_a_step_holds_a_few_leaves_at_a_time():
    assert temporary(redraw=False) > 2
    assert temporary(redraw=True) < 0.75


def test_chunks_are_not_drawn_again():
    with pytest.raises(ValueError, match="redraw=True evaluates one direction after"):
        zs.zeroth_order(redraw=True, num_directions=4, chunk_size=2)
