"""Sparse matrices in place of dense ones: the same outputs, chosen by the clock."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.sparsity import acceleration

RNG = np.random.default_rng(0)


def drawn(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def some(*shape, share=0.3):
    return jnp.asarray(RNG.random(shape) < share)


def clock(monkeypatch, times):
    """Decides the time of every measured call, given how many are measured together."""
    monkeypatch.setattr(acceleration, "_best", lambda calls, repeats: times(calls))


def always_sparse(monkeypatch):
    clock(monkeypatch, lambda calls: [2.0, 1.0])


@pytest.mark.quick
def test_products_from_either_side_are_those_of_the_masked_weights(monkeypatch):
    """By NumPy in float64: `x @ w`, `v @ x`, and a product over the middle axis."""
    always_sparse(monkeypatch)
    params = {"w": drawn(6, 4), "v": drawn(5, 3), "u": drawn(4, 7)}
    masks = {name: some(*x.shape) for name, x in params.items()}

    def apply(p, x):
        right = jnp.einsum("nab,ac->nbc", x, p["w"])  # [n, 3, 4]
        left = p["v"] @ right[0]
        return jax.jit(lambda y, u: jax.nn.relu(y @ u))(left, p["u"])

    x = drawn(2, 6, 3)
    fast = zs.sparsity.accelerate(apply, params, masks, x)
    p = {k: np.where(masks[k], v, 0).astype(np.float64) for k, v in params.items()}
    right = np.einsum("nab,ac->nbc", x, p["w"])
    expected = np.maximum(p["v"] @ right[0] @ p["u"], 0)
    np.testing.assert_allclose(fast(x), expected, rtol=1e-5, atol=1e-6)
    rows = {row.path: row for row in fast.layers}
    assert all(row.is_sparse for row in rows.values())
    assert {k: row.columns for k, row in rows.items()} == {"u": 5, "v": 4, "w": 6}
    assert rows["w"].sparsity == pytest.approx(1 - np.asarray(masks["w"]).mean())
    # Nothing of the program is dense: no product but those of the matrices.
    text = str(jax.make_jaxpr(fast)(x))
    assert "dot_general" not in text.replace("bcsr_dot_general", "")


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("mlp", (6, 6, 1), {"hidden": (12, 9)}),
        ("vit", (4, 4, 1), {"image_size": 4, "width": 1 / 16, "depth": 1}),
        ("tinylm", (5,), {"width": 0.25, "depth": 1}),
    ],
)
def test_networks_compute_what_their_masked_weights_do(
    name, shape, options, monkeypatch
):
    always_sparse(monkeypatch)
    model = models.create(name, num_classes=7, **options)
    params, _ = models.initialize(model, jax.random.key(0), shape)
    method = zs.sparsity.static(0.8, dense=models.dense_paths(name))
    masks = method.init(params).masks
    is_text = len(shape) == 1
    x = RNG.integers(7, size=(3, *shape)) if is_text else RNG.normal(size=(3, *shape))
    x = jnp.asarray(x, jnp.int32 if is_text else jnp.float32)

    def apply(p, x):
        return model.apply({"params": p}, x, train=False)

    fast = zs.sparsity.accelerate(apply, params, masks, x)
    sparse = {
        path
        for path, mask in zip(
            zs.tree.paths(params), jax.tree.leaves(masks), strict=True
        )
        if np.ndim(mask) == 2
    }
    assert {row.path for row in fast.layers if row.is_sparse} == sparse
    expected = jax.jit(apply)(zs.sparsity.apply_masks(params, masks), x)
    np.testing.assert_allclose(fast(x), expected, rtol=1e-5, atol=1e-5)
    if name == "mlp":  # of another number of examples
        np.testing.assert_allclose(fast(x[:1]), expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.quick
def test_the_faster_matrix_is_chosen(monkeypatch):
    """The first leaf is faster sparse, and the network as a whole if it is."""
    params = {"a": drawn(3, 5), "b": drawn(5, 4)}
    masks = {"a": some(3, 5), "b": some(5, 4)}
    x = drawn(2, 3)

    def accelerated(whole):
        def times(calls):
            weight = calls[0][1]
            if isinstance(weight, list):
                return [1.0, whole]
            return [3.0, 2.0] if weight.shape == (3, 5) else [2.0, 3.0]

        clock(monkeypatch, times)
        return zs.sparsity.accelerate(
            lambda p, x: x @ p["a"] @ p["b"], params, masks, x
        )

    fast = accelerated(0.25)
    assert [row.is_sparse for row in fast.layers] == [True, False]
    assert (fast.dense_ms, fast.milliseconds) == (1000.0, 250.0)
    assert str(fast).splitlines()[-1] == "1 of 2 layers sparse: 1e+03 ms -> 250 ms"
    assert "dense 3e+03 ms, sparse 2e+03 ms -> sparse" in str(fast)
    slow = accelerated(1.5)
    assert [row.is_sparse for row in slow.layers] == [False, False]
    assert (slow.dense_ms, slow.milliseconds) == (1000.0, 1000.0)
    np.testing.assert_allclose(np.asarray(slow(x)), fast(x), rtol=1e-5)


@pytest.mark.quick
def test_what_else_reads_a_leaf_keeps_it_dense(monkeypatch):
    always_sparse(monkeypatch)
    params = {"embed": drawn(6, 4), "half": drawn(4, 4).astype(jnp.bfloat16)}
    params |= {"loop": drawn(4, 4), "dense": drawn(4, 4), "conv": drawn(2, 2, 1, 1)}
    masks = {name: some(*x.shape) for name, x in params.items()} | {"dense": True}

    def apply(p, tokens):
        x = p["embed"][tokens]
        x = jax.lax.fori_loop(0, 2, lambda _, y: y @ p["loop"], x) @ p["dense"]
        return (x @ p["half"].astype(jnp.float32)) @ p["embed"].T + p["conv"].sum()

    tokens = jnp.arange(6)
    same = zs.sparsity.accelerate(apply, params, masks, tokens)
    assert same.layers == ()
    expected = apply(zs.sparsity.apply_masks(params, masks), tokens)
    np.testing.assert_allclose(same(tokens), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="masks must have the structure of params"):
        zs.sparsity.accelerate(apply, params, {}, tokens)


def test_the_clock_takes_turns_and_counts_the_shortest():
    calls = [(jax.jit(lambda x: x + 1), 1.0), (jax.jit(lambda x: x * 2), 1.0)]
    found = acceleration._best(calls, 3)
    assert len(found) == 2
    assert all(0 < t < 1 for t in found)
