"""Budgets against the formula, by an independent route, and exact totals."""

import math

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from zosam_jax.sparsity import budgets

SHAPES = {
    "stem": (3, 3, 3, 16),
    "block/conv": (3, 3, 16, 32),
    "block/shortcut": (1, 1, 16, 32),
    "head": (64, 10),
}


def erk_by_bisection(shapes, sparsity):
    """Densities min(1, epsilon * p_l), epsilon found by bisection on the total."""
    sizes = {k: math.prod(s) for k, s in shapes.items()}
    raw = {k: sum(s) / math.prod(s) for k, s in shapes.items()}
    budget = (1 - sparsity) * sum(sizes.values())
    low, high = 0.0, max(1 / p for p in raw.values())
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(1, middle * raw[k]) * sizes[k] for k in shapes)
        low, high = (middle, high) if total < budget else (low, middle)
    return {k: min(1, high * raw[k]) for k in shapes}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8, 0.9, 0.98])
def test_erk_is_the_fixed_point(sparsity):
    density = budgets.erk(SHAPES, sparsity)
    expected = erk_by_bisection(SHAPES, sparsity)
    for path in SHAPES:
        assert density[path] == pytest.approx(expected[path], rel=1e-9), path


shapes = st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(shapes, min_size=1, max_size=8),
    st.floats(0, 0.99),
    st.sampled_from([budgets.erk, budgets.uniform]),
)
def test_totals_are_exact_and_layers_near_their_density(all_shapes, sparsity, rule):
    by_path = {str(i): s for i, s in enumerate(all_shapes)}
    sizes = {p: math.prod(s) for p, s in by_path.items()}
    total = sum(sizes.values()) - round(sparsity * sum(sizes.values()))
    densities = rule(by_path, sparsity)
    if total < len(by_path):
        with pytest.raises(ValueError, match="need at least one each"):
            budgets.exact_counts(by_path, densities, sparsity)
        return
    counts = budgets.exact_counts(by_path, densities, sparsity)
    assert sum(counts.values()) == total
    for path, count in counts.items():
        assert 1 <= count <= sizes[path]
        ideal = densities[path] * sizes[path]
        lifted = sum(1 for p in by_path if densities[p] * sizes[p] < 1)
        assert abs(count - ideal) <= 1 + lifted


PARAMS = {
    "layers": [
        {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)},
        {"kernel": jnp.ones((5, 2)), "bias": jnp.ones(2)},
    ],
    "norm": {"scale": jnp.ones(5)},
}


def test_leaves_with_fewer_than_two_axes_are_dense_by_rule():
    assert list(budgets.sparse_leaves(PARAMS)) == [
        "layers/0/kernel",
        "layers/1/kernel",
    ]


@pytest.mark.parametrize(
    "dense",
    ["layers/1/*", ("layers/1/kernel",), lambda path, shape: shape == (5, 2)],
)
def test_leaves_are_dense_by_path_or_function(dense):
    assert list(budgets.sparse_leaves(PARAMS, dense)) == ["layers/0/kernel"]


def test_a_pattern_without_a_leaf_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'layers/0/kernel'"):
        budgets.sparse_leaves(PARAMS, "layer/0/kernel")
    with pytest.raises(ValueError, match="No leaf of params is left"):
        budgets.sparse_leaves(PARAMS, "layers/*")


def test_a_path_that_looks_like_a_pattern_is_found_by_its_name():
    params = {"a[0]": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    assert list(budgets.sparse_leaves(params, "a[0]")) == ["b"]


def test_two_leaves_of_one_path_are_refused():
    params = {"a/b": jnp.ones((2, 2)), "a": {"b": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="one path: a/b"):
        budgets.sparse_leaves(params)


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        ({"layers/0/kernel": 0.5}, "differs at layers/1/kernel"),
        ({"layers/0/kernel": 0.5, "layers/1/kernel": np.nan}, "density of layers/1"),
        ({"layers/0/kernel": 1.0, "layers/1/kernel": 1.0}, "keep 30 weights"),
    ],
)
def test_a_budget_of_ones_own_is_checked(densities, message):
    with pytest.raises(ValueError, match=message):
        budgets.counts(PARAMS, 0.5, lambda shapes, sparsity: densities)


def test_uniform_counts():
    counts = budgets.counts(PARAMS, 0.5, "uniform")
    leaves = [x.size for x in (PARAMS["layers"][0]["kernel"],)]
    assert list(counts.values()) == [leaves[0] // 2, 5]


def test_published_erk_densities_of_the_wide_resnet32():
    """The reference sheet's figures for 95 %: fc dense, stage-3 3x3 convs 96.7 %."""
    shapes = {"stem": (3, 3, 3, 32), "fc": (128, 10)}
    for stage, (fan_in, width) in enumerate([(32, 32), (32, 64), (64, 128)]):
        for block in range(5):
            first = fan_in if block == 0 else width
            shapes[f"{stage}/{block}/conv1"] = (3, 3, first, width)
            shapes[f"{stage}/{block}/conv2"] = (3, 3, width, width)
        if stage:
            shapes[f"{stage}/shortcut"] = (1, 1, fan_in, width)
    density = budgets.erk(shapes, 0.95)
    assert {p for p, d in density.items() if d == 1} == {"fc"}
    np.testing.assert_allclose(1 - density["2/1/conv1"], 0.967, atol=5e-4)
    density = budgets.erk(shapes, 0.9)
    assert {p for p, d in density.items() if d == 1} == {"stem", "fc", "1/shortcut"}
    np.testing.assert_allclose(1 - density["2/1/conv1"], 0.932, atol=5e-4)
