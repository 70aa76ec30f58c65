import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import mlp

import zosam_jax as zs


def masks_of(method, params):
    return zs.sparsity.masks(zs.sparsify(optax.sgd(0.1), method).init(params))


def leaves(masks):
    return [np.asarray(m) for m in jax.tree.leaves(masks) if m.ndim]


@pytest.mark.parametrize("budget", ["erk", "er", "uniform"])
def test_magnitude_keeps_the_largest_of_each_layer(budget):
    params, _ = mlp()
    masks = masks_of(zs.sparsity.static(0.6, "magnitude", budget=budget), params)
    assert sum(m.sum() for m in leaves(masks)) == 80 - round(0.6 * 80)
    for name in ("hidden", "out"):
        w, m = np.abs(params[name]["kernel"]), np.asarray(masks[name]["kernel"])
        assert w[m].min() > w[~m].max()


def test_global_magnitude_has_one_threshold():
    params, _ = mlp()
    masks = masks_of(zs.sparsity.static(0.6, "magnitude", budget="global"), params)
    live, pruned = [], []
    for name in ("hidden", "out"):
        w, m = np.abs(params[name]["kernel"]), np.asarray(masks[name]["kernel"])
        live.append(w[m])
        pruned.append(w[~m])
    assert np.concatenate(live).min() > np.concatenate(pruned).max()


def test_random_masks_are_exact_and_differ_by_seed():
    params = {"w": jnp.zeros((30, 30))}
    drawn = [
        np.asarray(masks_of(zs.sparsity.static(0.9, seed=s), params)["w"])
        for s in (0, 0, 1)
    ]
    assert [m.sum() for m in drawn] == [90] * 3
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_given_masks_are_used_as_they_are():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    masks = {"w": jnp.array([[True, False], [False, True]]), "b": True}
    held = masks_of(zs.sparsity.static(masks=masks), params)
    np.testing.assert_array_equal(held["w"], masks["w"])


def test_a_static_step_has_no_branch():
    params, loss = mlp()
    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.5))
    state = tx.init(params)
    text = str(jax.make_jaxpr(tx.update)(jax.grad(loss)(params), state, params))
    assert "cond[" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 must be a finite number >= 0 and < 1"),
        ({"sparsity": None}, "sparsity=None must be"),
        ({"sparsity": 0.5, "criterion": "snap"}, "Did you mean 'snip'"),
        ({"sparsity": 0.5, "budget": "erkk"}, "Did you mean 'erk'"),
        ({"sparsity": 0.5, "criterion": "snip"}, "needs value_fn"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        zs.sparsity.static(**arguments)


def test_a_budget_that_cannot_be_met_says_so():
    params, _ = mlp()
    with pytest.raises(ValueError, match="2 layers need at least one each"):
        masks_of(zs.sparsity.static(0.99), params)


@pytest.mark.parametrize("sparsity", [0.6, 0.97])
def test_a_global_budget_leaves_every_layer_a_weight(sparsity):
    params = {"small": jnp.full((8, 10), 1e-3), "large": jnp.ones((8, 10))}
    method = zs.sparsity.static(sparsity, "magnitude", budget="global")
    masks = masks_of(method, params)
    assert int(masks["small"].sum()) == 1
    assert sum(m.sum() for m in leaves(masks)) == 160 - round(sparsity * 160)


def test_a_global_budget_that_cannot_be_met_says_so():
    params = {"a": jnp.ones((8, 10)), "b": jnp.ones((8, 10))}
    method = zs.sparsity.static(0.999, "magnitude", budget="global")
    with pytest.raises(ValueError, match="2 layers need at least one each"):
        masks_of(method, params)


def test_scores_that_are_not_finite_are_refused():
    params, loss = mlp()
    method = zs.sparsity.static(0.5, "snip", value_fn=lambda p: loss(p) * jnp.nan)
    with pytest.raises(ValueError, match="scores of the initial mask are not finite"):
        masks_of(method, params)


def test_a_global_budget_is_exact_where_scores_are_nan():
    """Under jit nothing can be refused: NaN ranks lowest, each layer keeps a weight."""
    params = {"a": jnp.ones((4, 5)), "b": jnp.ones((4, 5)), "c": jnp.ones((4, 5))}
    bad = {"a": params["a"] * jnp.nan, "b": params["b"] * -jnp.inf, "c": params["c"]}
    method = zs.sparsity.static(0.9, lambda *_: bad, budget="global")
    masks = jax.jit(lambda p: masks_of(method, p))(params)
    assert [int(masks[k].sum()) for k in "abc"] == [1, 1, 4]
