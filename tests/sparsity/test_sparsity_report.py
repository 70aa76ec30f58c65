"""`zs.sparsity.report` against numbers worked out by hand, XLA's count and papers."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from matplotlib.figure import Figure

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.models.convolution import conv_general_dilated
from zosam_jax.sparsity.reports.flops import products


def zeros(**shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


# --- whose product it is -------------------------------------------------------------

X, Y = jnp.ones((5, 4)), jnp.ones((4, 4))
MASK = jnp.eye(4, dtype=bool)


@jax.custom_vjp
def own_derivative(x, w):
    return x @ w


own_derivative.defvjp(
    lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g)
)


def straight_through(w):
    return w + lax.stop_gradient(MASK * w - w)


def stacked(p):
    """A scan over three stacked kernels."""
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), X, p["s"])[0]


def recurrent(p):
    """A scan whose carry starts as a constant; the kernel is fixed."""
    return lax.scan(lambda h, x: (h @ p["w"] + x, h), jnp.zeros(4), X)


def indexed(p):
    return lax.fori_loop(
        0, 3, lambda i, x: x @ lax.dynamic_index_in_dim(p["s"], i, 0, False), X
    )


def attention(p):
    q = X @ p["w"]
    return jax.nn.softmax(q @ q.T) @ q


def sharded(p):
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((5,), ("d",), axis_types=auto)
    spec = jax.sharding.PartitionSpec
    body = jax.shard_map(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(spec("d"), spec()),
        out_specs=spec("d"),
    )
    return body(X, p["w"])


XW = 5 * 4 * 4
CASES = {
    # name: (function, multiply-adds of w, of the stack s, of no leaf)
    "plain": (lambda p: X @ p["w"], XW, 0, 0),
    "leaf first": (lambda p: p["w"] @ X.T, XW, 0, 0),
    "transposed": (lambda p: X @ p["w"].T, XW, 0, 0),
    "cast": (lambda p: X.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16), XW, 0, 0),
    "masked": (lambda p: X @ (MASK * p["w"]), XW, 0, 0),
    "where": (lambda p: X @ jnp.where(MASK, p["w"], 0), XW, 0, 0),
    "reshaped": (lambda p: X @ p["w"].reshape(2, 8).reshape(4, 4), XW, 0, 0),
    "clipped, rounded": (lambda p: X @ jnp.round(jnp.clip(p["w"], -1, 1)), XW, 0, 0),
    "straight through": (lambda p: X @ straight_through(p["w"]), XW, 0, 0),
    "normalised": (lambda p: X @ (p["w"] / jnp.linalg.norm(p["w"])), XW, 0, 0),
    "half of it": (lambda p: X @ p["w"][:, :2], XW // 2, 0, 0),
    "with a bias": (lambda p: (X @ p["w"] + p["b"]) @ Y, XW, 0, XW),
    "scaled inputs": (lambda p: (X[0] * p["b"]) @ p["w"], 16, 0, 0),
    "scaled data": (lambda p: (X * p["b"]) @ Y, 0, 0, XW),
    "scaled activations": (lambda p: (p["w"] @ X[0] * p["b"]) @ Y, 16, 0, 16),
    "rows looked up": (lambda p: p["w"][jnp.array([0, 2])] @ Y, 0, 0, 2 * 16),
    "both leaves": (lambda p: p["b"] @ p["w"], 16, 0, 0),
    "a sum": (lambda p: X @ (p["w"] + Y), 0, 0, XW),
    "joined": (lambda p: X @ jnp.concatenate([p["w"], p["w"]], 1), 0, 0, 2 * XW),
    "unused": (lambda p: X @ Y, 0, 0, XW),
    "attention": (attention, XW, 0, 2 * 5 * 5 * 4),
    "jit": (lambda p: jax.jit(jnp.dot)(X, p["w"]), XW, 0, 0),
    "remat": (lambda p: jax.checkpoint(jnp.dot)(X, p["w"]), XW, 0, 0),
    "own derivative": (lambda p: own_derivative(X, p["w"]), XW, 0, 0),
    "vmap": (lambda p: jax.vmap(lambda x: x @ p["w"])(X), XW, 0, 0),
    "barrier": (lambda p: X @ lax.optimization_barrier((Y, p["w"]))[1], XW, 0, 0),
    "print": (lambda p: (jax.debug.print("{}", 1), X @ p["w"])[1], XW, 0, 0),
    "one of the stack": (lambda p: X @ p["s"][1], 0, XW, 0),
    "stacked": (stacked, 0, 3 * XW, 0),
    "indexed": (indexed, 0, 3 * XW, 0),
    "batched": (lambda p: jnp.einsum("nd,lde->lne", X, p["s"]), 0, 3 * XW, 0),
    "recurrent": (recurrent, 5 * 16, 0, 0),
    "a kernel carried": (
        lambda p: lax.fori_loop(0, 3, lambda i, c: (c[0] @ c[1], c[1]), (X, p["w"])),
        *(3 * XW, 0, 0),
    ),
    "a carry that changes": (
        lambda p: lax.fori_loop(
            0, 3, lambda i, c: (c[1], c[0] @ c[1]), (X.T @ X, p["w"])
        ),
        *(0, 0, 5 * 16 + 3 * 64),
    ),
    "cond": (
        lambda p: lax.cond(X[0, 0] > 0, lambda w: X @ w, lambda w: X @ w @ w, p["w"]),
        *(2 * XW, 0, 0),
    ),
    "sharded": (sharded, XW, 0, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_product_is_counted_for_the_leaf_it_is_with(name):
    function, w, s, other = CASES[name]
    found = products(function, zeros(b=(4,), s=(3, 4, 4), w=(4, 4)))
    assert found.macs == [0, s, w]
    assert found.other == other
    assert not found.notes


def test_a_while_loop_counts_once_and_says_so():
    def forward(p):
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ p["w"], X)

    found = products(forward, zeros(w=(4, 4)))
    assert found.macs == [XW]
    assert found.notes == ["the products in a `while` are counted for one turn"]


NHWC = ("NHWC", "HWIO", "NHWC")
CONVOLUTIONS = {
    # name: (kernel shape, options, layout)
    "plain": ((3, 2, 4, 6), {}, NHWC),
    "strided": ((3, 3, 4, 6), {"window_strides": (2, 3)}, NHWC),
    "grouped": ((3, 3, 2, 6), {"feature_group_count": 2}, NHWC),
    "depthwise": ((3, 3, 1, 4), {"feature_group_count": 4}, NHWC),
    "dilated kernel": ((3, 3, 4, 6), {"rhs_dilation": (2, 1)}, NHWC),
    "both dilated": (
        (3, 3, 4, 6),
        {
            "rhs_dilation": (2, 1),
            "lhs_dilation": (3, 2),
            "window_strides": (1, 2),
            "padding": [(1, 4), (2, 0)],
        },
        NHWC,
    ),
    "output first": ((6, 4, 3, 3), {}, ("NCHW", "OIHW", "NCHW")),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_against_the_count_of_xla(name):
    shape, options, layout = CONVOLUTIONS[name]
    x = jnp.ones((2, 9, 8, 4) if layout is NHWC else (2, 4, 9, 8))
    options = {"window_strides": (1, 1), "padding": "VALID", **options}

    def forward(w):
        return lax.conv_general_dilated(x, w, dimension_numbers=layout, **options)

    kernel = jnp.zeros(shape)
    # Without padding, or with dilated inputs, both count the same thing.
    xla = jax.jit(forward).lower(kernel).cost_analysis()["flops"]
    assert 2 * products(forward, kernel).macs[0] == xla
    if layout is NHWC:
        own = products(
            lambda w: conv_general_dilated(x, w, dimension_numbers=layout, **options),
            kernel,
        )
        assert 2 * own.macs[0] == xla


def test_zeros_between_dilated_inputs_are_no_work():
    x = jnp.ones((2, 5, 4, 3))
    transposed = nn.ConvTranspose(6, (3, 3), strides=(2, 2), padding="VALID")
    params = jax.eval_shape(transposed.init, jax.random.key(0), x)
    found = products(lambda p: transposed.apply(p, x), params)
    # Each of the 5 x 4 inputs meets the whole kernel once.
    assert sum(found.macs) == 2 * 5 * 4 * 3 * 3 * 3 * 6


# --- a net by hand -------------------------------------------------------------------

NET = {
    "conv": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "head": {"kernel": (4, 3), "bias": (3,)},
}
IMAGES = jnp.ones((2, 8, 8, 2))


def forward(p):
    """Two images: 8 x 8 to 4 x 4, then the mean and a linear head."""
    x = lax.conv_general_dilated(
        IMAGES, p["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=NHWC
    )
    x = jax.nn.relu(x + p["conv"]["bias"]).mean((1, 2))
    return x @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.fixture
def net():
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    params = jax.tree.map(jnp.zeros, NET, is_leaf=is_shape)
    kernel = jnp.zeros((3, 3, 2, 4), bool).at[0, 1, 0, :3].set(True)
    kernel = kernel.at[2, 2, 0, 0].set(True)
    masks = {
        "conv": {"kernel": kernel, "bias": jnp.asarray(True)},
        "head": {"kernel": jnp.ones((4, 3), bool).at[1].set(False), "bias": True},
    }
    return params, masks


CONV, HEAD = 2 * 16 * 9 * 2 * 4, 2 * 4 * 3  # FLOPs of an image
SPARSE = CONV * 4 / 72 + HEAD * 9 / 12


def test_a_net_by_hand(net):
    found = zs.sparsity.report(*net, forward=forward, examples=2)
    rows = {row.path: row for row in found.rows}
    assert list(rows) == ["conv/bias", "conv/kernel", "head/bias", "head/kernel"]
    conv, head = rows["conv/kernel"], rows["head/kernel"]
    assert (conv.weights, conv.live, conv.sparse, conv.shape) == (
        72,
        4,
        True,
        (3, 3, 2, 4),
    )
    assert (conv.density, conv.explored) == (4 / 72, None)
    assert (conv.outputs, conv.inputs) == ((4, 1), (2, 1))
    assert (head.outputs, head.inputs) == ((3, 0), (4, 1))
    assert (rows["conv/bias"].sparse, rows["conv/bias"].live) == (False, 4)
    assert (conv.flops_dense, head.flops_dense) == (CONV, HEAD)
    assert conv.flops_sparse == pytest.approx(CONV * 4 / 72, rel=1e-15)
    assert (rows["conv/bias"].flops_dense, found.flops_other) == (0, 0)
    assert (conv.place, head.place, rows["head/bias"].place) == (0, 1, None)
    assert (found.weights, found.live) == (91, 20)
    assert (found.sparse_weights, found.sparse_live) == (84, 13)
    assert found.sparsity == 1 - 13 / 84
    assert found.sparsity_all == 1 - 20 / 91
    assert found.inference_dense == CONV + HEAD
    assert found.inference_sparse == pytest.approx(SPARSE, rel=1e-15)
    assert found.training_dense == 3 * (CONV + HEAD)
    assert found.training_sparse == pytest.approx(3 * SPARSE, rel=1e-15)
    assert found.warnings == (
        "conv/kernel: 1 of 2 inputs have no live outgoing weight",
    )


def test_a_call_of_forward_is_the_unit_without_examples(net):
    twice = zs.sparsity.report(*net, forward=forward)
    assert twice.inference_dense == 2 * (CONV + HEAD)


def test_without_forward_there_are_no_flops(net):
    found = zs.sparsity.report(*net)
    assert found.inference_dense is found.inference_sparse is None
    assert found.training_dense is found.training_sparse is found.flops_other is None
    assert found.rows[1].outputs == (4, 1)
    assert "FLOPs" not in str(found)


def test_shapes_are_enough(net):
    params, masks = net
    shapes = jax.eval_shape(lambda: params)
    assert zs.sparsity.report(shapes, masks, forward=forward) == zs.sparsity.report(
        params, masks, forward=forward
    )


def test_no_masks_at_all(net):
    dense = jax.tree.map(lambda _: True, net[0])
    found = zs.sparsity.report(net[0], dense, forward=forward, dense_gradient_every=100)
    assert (found.sparsity, found.sparsity_all, found.explored) == (0, 0, None)
    assert found.training_sparse == found.training_dense
    assert not found.warnings


# --- the accounting ------------------------------------------------------------------

D = CONV + HEAD


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3 * SPARSE),  # static, SET, DSR, MEST
        ({"dense_gradient_every": 100}, (3 * SPARSE * 100 + 2 * SPARSE + D) / 101),
        ({"dense_gradient_every": 1}, 2 * SPARSE + D),  # STE
        ({"passes": (0, 2)}, 6 * SPARSE),  # SAM
        ({"passes": (2, 1)}, 5 * SPARSE),  # ZO-SAM
        ({"passes": (2, 0), "dense_gradient_every": 1}, 2 * SPARSE),  # no backward pass
        (
            {"passes": (2, 1), "dense_gradient_every": 10},
            2 * SPARSE + (3 * SPARSE * 10 + 2 * SPARSE + D) / 11,
        ),
    ],
)
def test_training_flops_are_those_of_the_rigl_paper(net, options, expected):
    found = zs.sparsity.report(*net, forward=forward, examples=2, **options)
    # A few float64 roundings.
    assert found.training_sparse == pytest.approx(expected, rel=1e-14)
    forwards, backwards = options.get("passes", (0, 1))
    assert found.training_dense == (forwards + 3 * backwards) * D


def test_gradual_pruning_averages_over_the_training(net):
    """E_t[3 f_{s_t}], summed step by step, with the cubic schedule in every layer."""
    steps, begin, end = 1000, 100, 700
    progress = np.clip((np.arange(steps) - begin) / (end - begin), 0, 1)
    share = 1 - (1 - progress) ** 3
    final = {CONV: 1 - 4 / 72, HEAD: 1 - 9 / 12}
    per_step = [3 * sum(f * (1 - s * x) for f, s in final.items()) for x in share]
    mean = float(np.mean(share))
    found = zs.sparsity.report(*net, forward=forward, examples=2, mean_pruned=mean)
    # A thousand float64 additions.
    assert found.training_sparse == pytest.approx(np.mean(per_step), rel=1e-12)
    assert found.inference_sparse == pytest.approx(SPARSE, rel=1e-15)


class Known(zs.sparsity.SparseMethod):
    """A method that says what a report asks."""

    dense_gradient_every = 100  # pyright: ignore[reportIncompatibleVariableOverride]
    mean_pruned = 0.5  # pyright: ignore[reportIncompatibleVariableOverride]


def test_a_method_says_how_it_trains(net):
    by_method = zs.sparsity.report(
        *net, forward=forward, method=Known(lambda params: params)
    )
    by_hand = zs.sparsity.report(
        *net, forward=forward, dense_gradient_every=100, mean_pruned=0.5
    )
    assert by_method == by_hand
    over = zs.sparsity.report(
        *net, forward=forward, method=Known(lambda params: params), mean_pruned=1
    )
    assert over.mean_pruned == 1
    assert over.dense_gradient_every == 100


# --- published nets ------------------------------------------------------------------

BLOCKS_ONLY = ["stem/*", "*shortcut*", "head/*"]


@pytest.fixture(scope="module")
def resnet():
    model = models.create("resnet32", width=2, num_classes=10, image_size=32)
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda k: model.init(k, x, train=False), jax.random.key(0))
    stats = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes["batch_stats"])

    def forward(params):
        return model.apply({"params": params, "batch_stats": stats}, x, train=False)

    return shapes["params"], forward


def first_ones(params, counts):
    masks = [
        (np.arange(math.prod(x.shape)) < counts[path]).reshape(x.shape)
        if path in counts
        else np.asarray(True)
        for path, x in zip(zs.tree.paths(params), jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), masks)


@pytest.mark.parametrize(
    ("budget", "sparsity", "kept", "macs"),
    [
        ("uniform", 0.90, 0.106, 0.106),
        ("uniform", 0.95, 0.056, 0.057),
        ("uniform", 0.98, 0.0265, 0.027),
        ("erk", 0.90, 0.100, 0.175),
        ("erk", 0.95, 0.050, 0.088),
        ("erk", 0.98, 0.020, 0.035),
    ],
)
def test_wide_resnet32(resnet, budget, sparsity, kept, macs):
    """The net of GraSP and MEST, whose uniform sparsity is of the 3x3 blocks alone."""
    params, forward = resnet
    dense = BLOCKS_ONLY if budget == "uniform" else ()
    counts = zs.sparsity.budgets.counts(params, sparsity, budget, dense)
    found = zs.sparsity.report(params, first_ones(params, counts), forward=forward)
    assert found.weights == 1_860_522
    assert found.inference_dense == 2 * 275_612_928
    if budget == "uniform":
        assert found.sparse_weights == 1_843_200
        published = {0.9: 0.8916, 0.95: 0.9412, 0.98: 0.9709}[sparsity]
        assert found.sparsity_all == pytest.approx(published, abs=5e-5)
    kernels = sum(row.live for row in found.rows if len(row.shape) > 1)
    # Half a unit of the last digit given.
    assert kernels / 1_855_584 == pytest.approx(kept, abs=5e-4)
    assert found.inference_sparse / found.inference_dense == pytest.approx(
        macs, abs=5e-4
    )


def test_vision_transformer():
    model = models.create("vit", num_classes=10, image_size=32)
    x = jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(lambda k: model.init(k, x, train=False), jax.random.key(0))
    masks = jax.tree.map(lambda _: True, params)
    found = zs.sparsity.report(
        params, masks, forward=lambda p: model.apply(p, x, train=False)
    )
    d, tokens = 192, 64
    linear = tokens * 12 * d * d * 6 + tokens * 4 * 4 * 3 * d + 10 * d
    attention = 6 * 2 * tokens * tokens * d
    assert found.flops_other == 2 * attention
    assert found.inference_dense == 2 * (linear + attention)
    assert not found.warnings


# --- trees of other libraries --------------------------------------------------------


def test_nnx():
    model = nnx.Sequential(
        nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))
    )
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.as_pure(params)
    masks = zs.sparsity.static(0.5).init(params).masks
    found = zs.sparsity.report(
        params, masks, forward=lambda p: nnx.merge(graph, p, rest, copy=True)(X)
    )
    assert found.inference_dense == 2 * 5 * (4 * 3 + 3 * 2)
    assert found.sparse_live == 9


def test_flax_attention_has_kernels_of_three_axes():
    layer = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
    x = jnp.ones((1, 5, 4))
    params = layer.init(jax.random.key(0), x, x)["params"]
    mask = jnp.ones((4, 2, 2), bool).at[:, 1, 0].set(False).at[3].set(False)
    masks = jax.tree.map(lambda _: True, params)
    masks["query"]["kernel"] = mask
    found = zs.sparsity.report(
        params, masks, forward=lambda p: layer.apply({"params": p}, x, x)
    )
    row = next(row for row in found.rows if row.path == "query/kernel")
    assert (row.outputs, row.inputs) == ((4, 1), (4, 1))
    assert found.inference_dense == 2 * (4 * 5 * 16 + 2 * 5 * 5 * 4)


def test_leaves_of_other_optimizers_count_as_dense():
    params = zeros(a=(2, 2), b=(3, 2))
    masks = {"a": MASK[:2, :2], "b": optax.MaskedNode()}
    found = zs.sparsity.report(params, masks)
    assert [row.sparse for row in found.rows] == [True, False]
    assert found.live == 2 + 6


def test_leaves_of_every_shape():
    params = {
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.zeros(()),
        "vector": jnp.zeros(3, jnp.bfloat16),
    }
    masks = {
        "empty": jnp.zeros((0, 3), bool),
        "scalar": True,
        "vector": jnp.array([True, False, False]),
    }
    found = zs.sparsity.report(
        params, masks, forward=lambda p: jnp.ones((2, 3)) @ p["vector"] + p["scalar"]
    )
    assert (found.live, found.inference_sparse) == (2, 2 * 2)
    assert (found.rows[2].outputs, found.rows[2].inputs) == ((1, 0), (3, 2))
    assert zs.sparsity.report(params, masks).rows[2].outputs is None
    json.dumps(found.as_dict())
    assert str(found)


# --- which units are dead ------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "outputs", "inputs"),
    [
        (None, (4, 2), (3, 1)),
        (lambda p: X[:, :3] @ p["w"], (4, 2), (3, 1)),
        (lambda p: p["w"] @ X.T[:4], (3, 1), (4, 2)),  # as Equinox has it
        (lambda p: X @ p["w"].T, (3, 1), (4, 2)),
    ],
)
def test_the_axes_of_a_kernel_are_read_off_its_product(forward, outputs, inputs):
    mask = jnp.ones((3, 4), bool).at[1].set(False).at[:, 2:].set(False)
    found = zs.sparsity.report(zeros(w=(3, 4)), {"w": mask}, forward=forward)
    assert found.rows[0].outputs == outputs
    assert found.rows[0].inputs == inputs


def test_stacked_kernels_have_units_of_their_own():
    mask = jnp.ones((3, 4, 4), bool).at[0, :, 1].set(False).at[2, 3].set(False)
    found = zs.sparsity.report(zeros(s=(3, 4, 4)), {"s": mask}, forward=stacked)
    assert found.rows[0].outputs == (12, 1)
    assert found.rows[0].inputs == (12, 1)


def test_a_layer_about_to_fail_is_named():
    params = zeros(a=(4, 4), b=(4, 4), c=(4, 4))
    masks = {"a": jnp.zeros((4, 4), bool), "b": MASK.at[0, 0].set(False), "c": MASK}
    found = zs.sparsity.report(params, masks, forward=lambda p: X @ p["a"] @ p["b"])
    assert found.warnings == (
        "a: no live weight: the layer passes nothing on",
        "b: 3 live weights for 4 outputs",
        "c: sparse, but no product of `forward` is with it; its FLOPs count as 0",
    )


# --- units ---------------------------------------------------------------------------


def test_what_leads_to_a_pruned_unit_counts_with_it():
    params = {
        "in": {"kernel": jnp.ones((3, 8)), "bias": jnp.ones(8)},
        "out": {"kernel": jnp.ones((8, 2)), "bias": jnp.ones(2)},
    }
    groups = {
        "hidden": zs.sparsity.Units("out/kernel", incoming=("in/kernel", "in/bias"))
    }
    method = zs.sparsity.units(0.75, 1000, groups, interval=100)
    masks = method.init(params).masks

    def forward(p):
        hidden = jnp.ones((1, 3)) @ p["in"]["kernel"] + p["in"]["bias"]
        return hidden @ p["out"]["kernel"] + p["out"]["bias"]

    options = {"forward": forward, "method": method}
    found = zs.sparsity.report(params, masks, groups=groups, **options)
    # The network with 2 of its 8 hidden units, written down.
    live = {row.path: row.live for row in found.rows}
    assert live == {"in/bias": 2, "in/kernel": 6, "out/bias": 2, "out/kernel": 4}
    assert found.inference_sparse == 2 * (3 * 2 + 2 * 2)
    assert found.training_sparse == 3 * 20 + (80 - 20) / (1 + 100)
    assert found.sparsity == 0.75
    assert found.sparsity_all == 1 - 14 / 50
    lines = [line.split() for line in str(found).splitlines()]
    assert ["2", "other", "leaves", "10", "4", "40.00%"] in lines
    # 6 of 8 hidden units, with 3 weights and a bias each before, and 2 weights behind.
    assert found.as_dict()["totals"]["removable"] == 6 * (3 + 1 + 2)
    assert ["compact", "would", "cut", "out", "36"] in [line[:5] for line in lines]
    plain = zs.sparsity.report(params, masks, **options)
    assert plain.removable is None
    assert {row.path: row.live for row in plain.rows} == live | {
        "in/bias": 8,
        "in/kernel": 24,
    }


# --- exploration ---------------------------------------------------------------------


def test_exploration(net):
    params, masks = net
    union = {
        "conv": {"kernel": masks["conv"]["kernel"].at[1].set(True), "bias": True},
        "head": {"kernel": True, "bias": True},
    }
    found = zs.sparsity.report(params, masks, explored=union)
    rows = {row.path: row for row in found.rows}
    assert rows["conv/kernel"].ever_live == 4 + 24
    assert rows["head/kernel"].explored == 1
    assert rows["conv/bias"].explored is None
    assert found.explored == (28 + 12) / 84


def test_exploration_holds_what_is_live(net):
    params, masks = net
    union = jax.tree.map(jnp.zeros_like, masks)
    union["conv"]["bias"] = union["head"]["bias"] = True
    with pytest.raises(ValueError, match="explored: conv/kernel lacks live weights"):
        zs.sparsity.report(params, masks, explored=union)


# --- as data, as a table, as a picture -----------------------------------------------


def test_as_data(net):
    found = zs.sparsity.report(*net, forward=forward, dense_gradient_every=100)
    data = json.loads(json.dumps(found.as_dict()))
    assert data == found.as_dict()
    assert [row["path"] for row in data["rows"]] == [row.path for row in found.rows]
    assert data["rows"][1]["density"] == 4 / 72
    totals = data["totals"]
    assert totals["sparsity"] == found.sparsity
    assert totals["sparsity_all"] == found.sparsity_all
    assert totals["inference_ratio"] == found.inference_sparse / found.inference_dense
    assert totals["training_ratio"] == found.training_sparse / found.training_dense
    assert data["assumptions"] == {
        "passes": [0, 1],
        "dense_gradient_every": 100,
        "mean_pruned": 1,
    }


TABLE = """\
layer        shape    weights  live  density  dead in  dead out  explored    FLOPs  \
live FLOPs   share
conv/kernel  3x3x2x4       72     4    5.56%        1         1     5.56%  2.304 k  \
       128  87.67%
head/kernel  4x3           12     9   75.00%        1         0    75.00%       24  \
        18  12.33%
2 other leaves              7     7    dense

sparsity of the sparse leaves  84.52%  (13 of 84 live)
sparsity of all parameters     78.02%  (20 of 91 live)
explored of the sparse leaves  15.48%
inference FLOPs                0.0627  (146 of 2.328 k dense)
training FLOPs                 0.0646  (751.6 of 11.64 k dense; 2 forward + 1 forward \
and backward; dense gradient every 100 steps)
  of dense backpropagation's   0.1076

warning: conv/kernel: 1 of 2 inputs have no live outgoing weight"""


def test_as_a_table(net):
    found = zs.sparsity.report(
        *net,
        forward=forward,
        examples=2,
        passes=(2, 1),
        dense_gradient_every=100,
        explored=net[1],
    )
    words = [line.split() for line in str(found).splitlines()]
    assert words == [line.split() for line in TABLE.splitlines()]
    header, conv, head, _ = str(found).splitlines()[:4]
    # Numbers end where their heading ends.
    for name, cell in (("weights", "72"), ("live", "4"), ("share", "87.67%")):
        assert conv[: header.index(name) + len(name)].endswith(cell)
    assert len(header) == len(conv) == len(head)


@pytest.mark.parametrize("with_flops", [True, False])
def test_as_a_picture(net, tmp_path, with_flops):
    params, masks = net
    masks["head"]["kernel"] = jnp.zeros((4, 3), bool)
    found = zs.sparsity.report(params, masks, forward=forward if with_flops else None)
    path = tmp_path / "sparsity.png"
    figure = found.plot(path)
    assert isinstance(figure, Figure)
    assert path.read_bytes().startswith(b"\x89PNG")
    density, share = figure.axes
    names = [label.get_text() for label in density.get_yticklabels()]
    assert names == ["conv/kernel", "head/kernel"]
    assert density.get_xscale() == "log"  # 4 of 72 weights
    assert [text.get_text() for text in density.texts] == ["0.0556", "0"]
    widths = [bar.get_width() for bar in share.patches]
    dense = [CONV, HEAD] if with_flops else [72, 12]
    total = sum(dense) if with_flops else 91
    live = [1, 0] if with_flops else [4 / 11, 0]
    np.testing.assert_allclose(widths, [*(x / total for x in dense), *live], rtol=1e-12)
    assert ("FLOPs" if with_flops else "weights") in share.get_xlabel()


def test_a_picture_shows_what_was_ever_live(net):
    params, masks = net
    union = jax.tree.map(jnp.copy, masks)
    union["conv"]["kernel"] = union["conv"]["kernel"].at[1].set(True)
    density = zs.sparsity.report(params, masks, explored=union).plot().axes[0]
    lines = {line.get_label(): line for line in density.get_lines()}
    assert lines["ever live"].get_xdata() == pytest.approx([28 / 72, 9 / 12])
    assert "ever live" not in {
        line.get_label() for line in zs.sparsity.report(*net).plot().axes[0].get_lines()
    }


def test_a_picture_shows_products_of_no_leaf():
    found = zs.sparsity.report(
        zeros(w=(4, 4)), {"w": jnp.ones((4, 4), bool)}, forward=attention
    )
    density, share = found.plot().axes
    names = [label.get_text() for label in density.get_yticklabels()]
    assert names == ["w", "products of no leaf"]
    assert sum(bar.get_width() for bar in share.patches) == pytest.approx(2, rel=1e-12)
    assert density.get_xscale() == "linear"


# --- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"examples": 0}, ValueError, "examples=0"),
        ({"dense_gradient_every": 0}, ValueError, "dense_gradient_every=0"),
        ({"mean_pruned": -0.1}, ValueError, "mean_pruned=-0.1"),
        ({"passes": (0, -1)}, ValueError, r"passes\[1\]=-1"),
        ({"method": zs.sparsity.rigl}, TypeError, "method must come from zs.sparsity"),
        ({"explored": {"conv": True}}, ValueError, "masks must have the structure"),
    ],
)
def test_refusals(net, options, error, message):
    with pytest.raises(error, match=message):
        zs.sparsity.report(*net, forward=forward, **options)


def test_masks_that_do_not_fit_are_refused(net):
    params, masks = net
    masks["head"]["kernel"] = masks["head"]["kernel"].T
    with pytest.raises(ValueError, match="head/kernel has shape"):
        zs.sparsity.report(params, masks)
