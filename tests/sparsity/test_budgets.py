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


def kernel_share(shape):
    return sum(shape) / math.prod(shape)


def channel_share(shape):
    n_in, n_out = shape[-2:]
    return 1 / n_in + 1 / n_out


RULES = [(budgets.erk, kernel_share), (budgets.er, channel_share)]


def by_bisection(shapes, sparsity, share):
    """Densities min(1, epsilon * p_l), epsilon found by bisection on the total."""
    sizes = {k: math.prod(s) for k, s in shapes.items()}
    raw = {k: share(s) for k, s in shapes.items()}
    budget = (1 - sparsity) * sum(sizes.values())
    low, high = 0.0, max(1 / p for p in raw.values())
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(1, middle * raw[k]) * sizes[k] for k in shapes)
        low, high = (middle, high) if total < budget else (low, middle)
    return {k: min(1, high * raw[k]) for k in shapes}


@pytest.mark.quick
@pytest.mark.parametrize(("rule", "share"), RULES)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.8, 0.9, 0.98])
def test_erdos_renyi_is_the_fixed_point(sparsity, rule, share):
    density = rule(SHAPES, sparsity)
    expected = by_bisection(SHAPES, sparsity, share)
    for path in SHAPES:
        assert density[path] == pytest.approx(expected[path], rel=1e-9), path


shapes = st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(shapes, min_size=1, max_size=8), st.floats(0, 1), st.sampled_from(RULES)
)
def test_one_epsilon_gives_every_density(all_shapes, sparsity, rule_and_share):
    """d_l = min(1, epsilon * p_l), and the total is met."""
    rule, share = rule_and_share
    by_path = {str(i): s for i, s in enumerate(all_shapes)}
    densities = rule(by_path, sparsity)
    # Sums of at most eight layers in float64: a few units in the last place.
    assert all(0 <= d <= 1 for d in densities.values())
    total = sum(d * math.prod(by_path[p]) for p, d in densities.items())
    size = sum(map(math.prod, all_shapes))
    assert total == pytest.approx((1 - sparsity) * size, rel=1e-12, abs=1e-9)
    epsilons = [d / share(by_path[p]) for p, d in densities.items() if d < 1]
    if epsilons:
        epsilon = epsilons[0]
        np.testing.assert_allclose(epsilons, epsilon, rtol=1e-12)
        full = [share(by_path[p]) for p, d in densities.items() if d == 1]
        assert all(epsilon * p >= 1 - 1e-12 for p in full)


def test_er_counts_the_channels_alone():
    wide = {"conv": (5, 5, 20, 40), "dense": (20, 40)}
    er = budgets.er(wide, 0.9)
    assert er["conv"] == er["dense"] == pytest.approx(0.1)
    assert budgets.erk(wide, 0.9)["conv"] < er["conv"]
    flat = {k: s[-2:] for k, s in SHAPES.items()}
    assert budgets.er(flat, 0.9) == budgets.erk(flat, 0.9)


@pytest.mark.parametrize("rule", [budgets.erk, budgets.er, budgets.uniform])
def test_leaves_without_entries_take_no_part(rule):
    empty = {"empty": (0, 5), **SHAPES}
    densities = rule(empty, 0.9)
    assert {p: densities[p] for p in SHAPES} == rule(SHAPES, 0.9)
    counts = budgets.exact_counts(empty, densities, 0.9)
    assert counts.pop("empty") == 0
    assert counts == budgets.exact_counts(SHAPES, rule(SHAPES, 0.9), 0.9)


@pytest.mark.parametrize("rule", [budgets.erk, budgets.er])
@pytest.mark.parametrize("sparsity", [-0.1, 1.1, np.nan])
def test_a_sparsity_out_of_range_is_refused(rule, sparsity):
    with pytest.raises(ValueError, match=r"sparsity=.* must be"):
        rule(SHAPES, sparsity)


@pytest.mark.quick
@settings(max_examples=200, deadline=None)
@given(
    st.lists(shapes, min_size=1, max_size=8),
    st.floats(0, 0.99),
    st.sampled_from([budgets.erk, budgets.er, budgets.uniform]),
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
    assert list(budgets.sparse_leaves(PARAMS).paths) == [
        "layers/0/kernel",
        "layers/1/kernel",
    ]


@pytest.mark.parametrize(
    "dense",
    [
        "layers/1/*",
        ("layers/1/kernel",),
        lambda path, shape: shape == (5, 2),
        budgets.last_layer(2),
        [budgets.last_layer(2), "norm/*"],
        ("layers/1/*", lambda path, shape: path.startswith("norm")),
    ],
)
def test_leaves_are_dense_by_path_or_function_or_both(dense):
    assert list(budgets.sparse_leaves(PARAMS, dense).paths) == ["layers/0/kernel"]


def test_first_and_last_layers_are_found_by_their_channels():
    shapes = {
        "stem": (3, 3, 3, 16),
        "conv": (3, 3, 16, 16),
        "embed": (3, 16),
        "head": (16, 10),
        "bias": (10,),
    }
    params = {k: jnp.zeros(s) for k, s in shapes.items()}

    def sparse(*dense):
        return set(budgets.sparse_leaves(params, dense).paths)

    assert sparse() == {"stem", "conv", "embed", "head"}
    assert sparse(budgets.first_layer(3)) == {"conv", "head"}
    assert sparse(budgets.last_layer(10)) == {"stem", "conv", "embed"}
    both = sparse(budgets.first_layer(3), budgets.last_layer(10))
    assert both == {"conv"}
    for make in (budgets.first_layer, budgets.last_layer):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            make(0)


def test_a_pattern_without_a_leaf_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'layers/0/kernel'"):
        budgets.sparse_leaves(PARAMS, "layer/0/kernel")
    with pytest.raises(ValueError, match="No leaf of params is left"):
        budgets.sparse_leaves(PARAMS, "layers/*")


def test_a_path_that_looks_like_a_pattern_is_found_by_its_name():
    params = {"a[0]": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    assert list(budgets.sparse_leaves(params, "a[0]").paths) == ["b"]


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


@pytest.mark.quick
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


@pytest.mark.parametrize("rest", ["erk", "er", "uniform", budgets.erk])
def test_leaves_by_path_have_their_sparsity_and_the_rest_the_rest(rest):
    rule = budgets.by_path({"head": 0.5, "block/*": 0.95, "block/conv": 0.0}, rest)
    densities = rule(SHAPES, 0.9)
    counts = budgets.exact_counts(SHAPES, densities, 0.9)
    sizes = {p: math.prod(s) for p, s in SHAPES.items()}
    assert sum(counts.values()) == sum(sizes.values()) - round(
        0.9 * sum(sizes.values())
    )
    assert counts["head"] == 320
    # The first pattern counts.
    for path in ("block/conv", "block/shortcut"):
        assert counts[path] == sizes[path] - round(0.95 * sizes[path])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(shapes, min_size=2, max_size=8),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
    st.sampled_from(["erk", "er", "uniform"]),
    st.data(),
)
def test_fixed_layers_keep_exactly_their_own(all_shapes, sparsity, own, rest, data):
    by_path = {str(i): s for i, s in enumerate(all_shapes)}
    fixed = data.draw(st.sets(st.sampled_from(sorted(by_path)), min_size=1))
    sizes = {p: math.prod(s) for p, s in by_path.items()}
    size = sum(sizes.values())
    total = size - round(sparsity * size)
    expected = {p: max(1, sizes[p] - round(own * sizes[p])) for p in fixed}
    room = total - sum(expected.values())
    free = size - sum(sizes[p] for p in fixed)
    rule = budgets.by_path(dict.fromkeys(fixed, own), rest)
    if len(fixed) == len(by_path):
        return
    if not len(by_path) - len(fixed) <= room <= free:
        with pytest.raises(ValueError, match="other leaves have to keep at least"):
            rule(by_path, sparsity)
        return
    counts = budgets.exact_counts(by_path, rule(by_path, sparsity), sparsity)
    assert sum(counts.values()) == total
    assert {p: counts[p] for p in fixed} == expected
    assert all(1 <= counts[p] <= sizes[p] for p in by_path)


def vit_shapes(blocks=12, d=192):
    """Kernels of DeiT-Tiny, as SViTE's code masks them, but for `attention/*`."""
    shapes = {"embed/kernel": (16, 16, 3, d), "head/kernel": (d, 1000)}
    for i in range(blocks):
        shapes[f"block{i}/attention/out/kernel"] = (d, d)
        shapes[f"block{i}/mlp1/kernel"] = (d, 4 * d)
        shapes[f"block{i}/mlp2/kernel"] = (4 * d, d)
    return shapes


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.95])
def test_three_kernels_get_the_counts_of_the_one_fused_kernel(sparsity):
    blocks, d = 12, 192
    names = ("query", "key", "value")
    own = {f"block{i}/attention/qkv": (d, 3 * d) for i in range(blocks)}
    one = vit_shapes() | own
    expected = budgets.exact_counts(one, budgets.erk(one, sparsity), sparsity)
    apart = vit_shapes() | {
        f"block{i}/attention/{n}/kernel": (d, d) for i in range(blocks) for n in names
    }
    rule = budgets.BUDGETS["erk_fused"]
    found = budgets.exact_counts(apart, rule(apart, sparsity), sparsity)
    for i in range(blocks):
        parts = [found.pop(f"block{i}/attention/{n}/kernel") for n in names]
        assert sum(parts) == expected.pop(f"block{i}/attention/qkv")
        assert max(parts) - min(parts) <= 1
    assert found == expected
    three = budgets.erk(apart, sparsity)
    assert not np.isclose(three["block0/attention/key/kernel"], parts[0] / d**2)


def test_fused_kernels_are_found_at_the_root_and_refused_where_they_do_not_fit():
    q, k, v = "query/kernel", "key/kernel", "value/kernel"
    found = budgets.fused()({k: (4, 4), q: (4, 8), v: (4, 4), "out": (4, 16)}, 0.5)
    # One kernel (4, 16), like the other: both keep half.
    assert found == {k: 0.5, q: 0.5, v: 0.5, "out": 0.5}
    with pytest.raises(ValueError, match=r"differ in more than the last axis: query"):
        budgets.fused()({k: (4, 4), q: (8, 4), v: (4, 4)}, 0.5)
    with pytest.raises(ValueError, match=r"finds no sparse leaves that end in query"):
        budgets.counts(PARAMS, 0.5, "erk_fused")
    with pytest.raises(ValueError, match="must be two or more ends of paths"):
        budgets.fused("query/kernel")


def test_paths_that_cover_every_leaf_have_to_meet_the_total():
    rule = budgets.by_path({"layers/*": 0.5})
    assert sum(budgets.counts(PARAMS, 0.5, rule).values()) == 15
    with pytest.raises(ValueError, match="keep 15 weights"):
        budgets.counts(PARAMS, 0.2, rule)


@pytest.mark.parametrize(
    ("patterns", "rest", "message"),
    [
        ({"head": 1.0}, "erk", "sparsity of head=1.0 must be"),
        ({"head": "dense"}, "erk", "sparsity of head='dense' must be"),
        ({}, "global", "rest='global' is unknown"),
        ({"heads": 0.5}, "erk", "Did you mean 'head'"),
        ({"block/*": 0.0}, "erk", "keeps 619 weights, of which the patterns keep 5120"),
    ],
)
def test_a_budget_by_path_that_cannot_be_is_named(patterns, rest, message):
    with pytest.raises(ValueError, match=message):
        budgets.by_path(patterns, rest)(SHAPES, 0.9)


def test_the_other_leaves_budget_is_checked_too():
    rule = budgets.by_path({"head": 0.5}, lambda shapes, sparsity: {"stem": 0.5})
    with pytest.raises(ValueError, match="differs at block/conv, block/shortcut"):
        rule(SHAPES, 0.9)
