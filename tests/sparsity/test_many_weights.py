"""Leaves and trees of more weights than int32 counts, as shapes alone."""

import jax
import jax.numpy as jnp
import optax
import pytest

import zosam_jax as zs

sparsity = zs.sparsity


def tree_of(*shapes):
    leaves = {f"kernel{i}": shape for i, shape in enumerate(shapes)}
    return {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in {"bias": (4,), **leaves}.items()
    }


LEAF = tree_of((50_000, 50_000), (8, 8))
TOTAL = tree_of((40_000, 40_000), (40_000, 40_000), (30_000, 40_000))
METHODS = {
    "static": lambda **o: sparsity.static(0.5, **o),
    "pattern": lambda **o: sparsity.static(pattern=(2, 4), **o),
    "rigl": lambda **o: sparsity.rigl(0.5, 1000, **o),
    "set_": lambda **o: sparsity.set_(0.5, 1000, by_sign=True, **o),
    "mest": lambda **o: sparsity.mest(0.5, 1000, **o),
    "dsr": lambda **o: sparsity.dsr(0.9, 1000, **o),
    "gmp": lambda **o: sparsity.gmp(0.5, 1000, **o),
    "safe": lambda **o: sparsity.safe(0.5, 1000, **({"budget": "erk"} | o)),
    "svite": lambda **o: sparsity.svite(0.5, 1000, **o),
    "itop": lambda **o: sparsity.itop(0.5, 1000, **o),
    "ste": lambda **o: sparsity.ste(0.5, **o),
    "srigl": lambda **o: sparsity.srigl(0.5, 1000, **o),
    "nm": lambda **o: sparsity.nm(2, 4, 1000, **o),
}


def square(params):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", METHODS)
def test_a_sparse_leaf_beyond_int32_is_named_at_init_and_may_be_dense(name):
    make = METHODS[name]
    message = r"params: kernel0 has 2,500,000,000 weights.*dense=\('kernel0',\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(zs.sparsify(optax.sgd(0.1), make()).init, LEAF)
    jax.eval_shape(make(dense="kernel0").init, LEAF)


def test_units_of_such_a_leaf_are_refused_too():
    method = sparsity.units(0.5, 1000, {"rows": sparsity.Units(outgoing="kernel0")})
    with pytest.raises(ValueError, match="kernel0 has 2,500,000,000 weights"):
        jax.eval_shape(method.init, LEAF)


@pytest.mark.parametrize("name", METHODS)
def test_leaves_that_are_beyond_it_together_train(name):
    tx = zs.sparsify(optax.sgd(0.1, momentum=0.9), METHODS[name](), zs.backprop())
    state = jax.eval_shape(tx.init, TOTAL)
    update = lambda s, p: tx.update(None, s, p, value_fn=square)  # noqa: E731
    updates, _ = jax.eval_shape(update, state, TOTAL)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, TOTAL)
    jax.eval_shape(sparsity.sparsity_of, state.masks, TOTAL)


GLOBAL = {
    "static": sparsity.static(0.5, "magnitude", budget="global"),
    "snip": sparsity.static(0.5, "snip", value_fn=square),
    "synflow": sparsity.static(0.5, "synflow", value_fn=square),
    "gmp": sparsity.gmp(0.5, 1000, budget="global"),
    "safe": sparsity.safe(0.5, 1000),
    "ste": sparsity.ste(0.5, budget="global"),
    "dsr": sparsity.dsr(0.5, 1000),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_what_counts_over_all_leaves_says_so_at_init(name):
    with pytest.raises(ValueError, match=r"params has .* up to 2,147,483,647\. \w"):
        jax.eval_shape(GLOBAL[name].init, TOTAL)


def test_tickets_and_masks_of_gradients_say_so_too():
    masks = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, bool), TOTAL)
    masks["bias"] = jax.ShapeDtypeStruct((), bool)

    def pruned(per_layer):
        prune = lambda p, m: sparsity.prune_ticket(p, m, 0.5, per_layer=per_layer)  # noqa: E731
        return jax.eval_shape(prune, TOTAL, masks)

    with pytest.raises(ValueError, match="per_layer=True"):
        pruned(False)
    assert jax.tree.map(jnp.shape, pruned(True)) == jax.tree.map(jnp.shape, masks)
    with pytest.raises(ValueError, match="early_bird the masks of some leaves"):
        jax.eval_shape(sparsity.early_bird().init, masks)
    with pytest.raises(ValueError, match=r"zs\.ssam ranks all weights"):
        jax.eval_shape(zs.ssam(sparsity=0.5).init, TOTAL)


def test_the_sparsity_of_many_weights_is_right_to_rounding(monkeypatch):
    """The count by rows, on masks small enough to exist."""
    masks = {"a": jnp.arange(600).reshape(20, 30) % 3 == 0, "bias": jnp.asarray(True)}
    params = {"a": jnp.ones((20, 30)), "bias": jnp.ones(40)}
    exact = sparsity.sparsity_of(masks), sparsity.sparsity_of(masks, params)
    monkeypatch.setattr("zosam_jax._check.LARGEST_COUNT", 100)
    assert exact == (sparsity.sparsity_of(masks), sparsity.sparsity_of(masks, params))
    assert exact[0] == pytest.approx(400 / 600)
