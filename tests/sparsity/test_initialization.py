"""Criteria at initialisation against explicit Hessians, differences and replicas."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import mlp

import zosam_jax as zs
from zosam_jax.sparsity.leaves import LeafRule
from zosam_jax.sparsity.methods.grasp import grasp_scores
from zosam_jax.sparsity.methods.synflow import shares_of_flow

KERNELS = ("hidden", "out")


def masks_of(method, params):
    return zs.sparsity.masks(zs.sparsify(optax.sgd(0.1), method).init(params))


def kernels(tree):
    """Both kernels as one NumPy vector."""
    return np.concatenate([np.asarray(tree[k]["kernel"]).ravel() for k in KERNELS])


def two_batches():
    """Parameters with biases that matter, and the losses of two batches."""
    params, first = mlp(0)
    _, second = mlp(1)
    rng = np.random.default_rng(2)
    for k in KERNELS:
        bias = params[k]["bias"]
        params[k]["bias"] = jnp.asarray(rng.normal(size=bias.shape), jnp.float32)
    return params, [first, second]


def test_snip_is_the_slope_along_the_connection_in_float64():
    """|dL/dc| at c = 1 of a factor c on one weight, over the mean of two batches."""
    params, losses = two_batches()

    def loss64(p):
        """The two losses of `mlp` in float64 NumPy."""
        total = 0
        for seed in (0, 1):
            rng = np.random.default_rng(seed)
            x = np.float64(np.float32(rng.normal(size=(16, 6))))
            y = np.float64(np.float32(rng.normal(size=(16, 2))))
            h = np.tanh(x @ p["hidden"]["kernel"] + p["hidden"]["bias"])
            total += np.mean((h @ p["out"]["kernel"] + p["out"]["bias"] - y) ** 2)
        return total / 2

    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    np.testing.assert_allclose(
        loss64(wide), np.mean([f(params) for f in losses]), rtol=1e-6
    )
    slopes, h = [], 1e-5
    for k in KERNELS:
        kernel = wide[k]["kernel"]
        for i in np.ndindex(kernel.shape):
            own, sides = kernel[i], []
            for c in (1 + h, 1 - h):
                kernel[i] = c * own
                sides.append(loss64(wide))
            kernel[i] = own
            slopes.append(abs(sides[0] - sides[1]) / (2 * h))
    for sparsity in (0.3, 0.75):
        masks = masks_of(zs.sparsity.static(sparsity, "snip", value_fn=losses), params)
        check_largest_kept(np.array(slopes), kernels(masks), sparsity)


def check_largest_kept(scores, kept, sparsity):
    """The kept are the largest, where the oracle tells them apart in float32."""
    count = scores.size - round(sparsity * scores.size)
    ordered = np.sort(scores)[::-1]
    assert ordered[count - 1] - ordered[count] > 1e-5 * np.abs(scores).max()
    np.testing.assert_array_equal(kept, scores >= ordered[count - 1])


def explicit_grasp(params, losses, names):
    """Theta * Hg from the whole Hessian of the named leaves, and their count."""

    def loss(vector):
        p, start = jax.tree.map(lambda x: x, params), 0
        for k, leaf in names:
            x = params[k][leaf]
            p[k][leaf] = vector[start : start + x.size].reshape(x.shape)
            start += x.size
        return sum(f(p) for f in losses) / len(losses)

    theta = jnp.concatenate([params[k][leaf].ravel() for k, leaf in names])
    g = np.asarray(jax.jit(jax.grad(loss))(theta), np.float64)
    hessian = np.asarray(jax.jit(jax.hessian(loss))(theta), np.float64)
    return np.asarray(theta, np.float64) * (hessian @ g)


def test_grasp_is_theta_times_the_hessian_times_the_gradient():
    params, losses = two_batches()
    names = [(k, "kernel") for k in KERNELS]
    expected = explicit_grasp(params, losses, names)
    found = grasp_scores(params, losses, LeafRule())
    # Float32 on both sides: some ten roundings of sums of 100 terms.
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(kernels(found), expected, rtol=0, atol=tolerance)
    # The product over all leaves, biases too, is another one: the test can tell.
    biases = [(k, "bias") for k in KERNELS]
    everything = explicit_grasp(params, losses, [*names, *biases])[: expected.size]
    assert np.abs(everything - expected).max() > 1000 * tolerance


@pytest.mark.parametrize("sparsity", [0.25, 0.6, 0.9])
def test_grasp_removes_the_lowest_with_their_sign(sparsity):
    params, losses = two_batches()
    expected = explicit_grasp(params, losses, [(k, "kernel") for k in KERNELS])
    method = zs.sparsity.static(sparsity, "grasp", value_fn=losses)
    kept = kernels(masks_of(method, params))
    check_largest_kept(expected, kept, sparsity)
    # The largest |.| and the reverse order, two other readings, choose otherwise.
    for wrong in (np.abs(expected), -expected):
        assert (kept != (wrong >= np.sort(wrong)[::-1][kept.sum() - 1])).sum() >= 4


def test_grasp_removal_changes_the_gradient_flow_as_it_scores():
    """-2 theta Hg is the first-order change of g'g when a weight shrinks."""
    params, losses = two_batches()
    scores = grasp_scores(params, losses, LeafRule())

    def flow(p):
        g = jax.grad(lambda p: sum(f(p) for f in losses) / 2)(p)
        return sum(jnp.sum(g[k]["kernel"] ** 2) for k in KERNELS)

    slope = jax.jit(jax.grad(flow))(params)
    for k in KERNELS:
        np.testing.assert_allclose(
            2 * scores[k]["kernel"],
            params[k]["kernel"] * slope[k]["kernel"],
            rtol=1e-4,
            atol=1e-5,
        )


def test_grasp_of_bfloat16_parameters_is_computed_in_float32():
    params, losses = two_batches()
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    jax.tree.map(
        np.testing.assert_array_equal,
        grasp_scores(low, losses, LeafRule()),
        grasp_scores(exact, losses, LeafRule()),
    )


def relu_net(widths, seed=0, bias=False):
    rng = np.random.default_rng(seed)
    params = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        kernel = rng.normal(size=(n_in, n_out)) * np.sqrt(2 / n_in)
        params[f"{i}"] = {"kernel": jnp.asarray(kernel, jnp.float32)}
        if bias:
            b = jnp.asarray(rng.normal(size=n_out) / 10, jnp.float32)
            params[f"{i}"]["bias"] = b

    def apply(p, x):
        for i in range(len(p)):
            x = x @ p[f"{i}"]["kernel"] + p[f"{i}"].get("bias", 0)
            x = jax.nn.relu(x) if i < len(p) - 1 else x
        return x

    def flow(p, scale=1.0):
        return jnp.sum(apply(p, jnp.full((1, widths[0]), scale)))

    return params, apply, flow


def test_synflow_is_conserved_through_every_unit_and_layer():
    params, _, flow = relu_net([5, 9, 7, 4])
    theta = [jnp.abs(params[f"{i}"]["kernel"]) for i in range(3)]
    value, shares = shares_of_flow(
        lambda t: flow({f"{i}": {"kernel": x} for i, x in enumerate(t)}), theta
    )
    product = np.ones((1, 5))
    for t in theta:
        product = product @ np.asarray(t, np.float64)
    np.testing.assert_allclose(value, np.log2(product.sum()), rtol=1e-6)
    shares = [np.asarray(s, np.float64) for s in shares]
    for layer in shares:  # In units of R.
        np.testing.assert_allclose(layer.sum(), 1, rtol=1e-6)
    for before, after in itertools.pairwise(shares):
        np.testing.assert_allclose(before.sum(axis=0), after.sum(axis=1), rtol=1e-5)


def replica_synflow(params, sparsity, rounds):
    """The iteration in float64 NumPy: forward and backward written out."""
    depth = len(params)
    w = [np.abs(np.asarray(params[f"{i}"]["kernel"], np.float64)) for i in range(depth)]
    b = [np.abs(np.asarray(params[f"{i}"].get("bias", 0.0))) for i in range(depth)]
    masks = [np.ones(x.shape, bool) for x in w]
    size = sum(x.size for x in w)
    last = size - round(sparsity * size)
    for k in range(1, rounds + 1):
        live = [x * m for x, m in zip(w, masks, strict=True)]
        h = [np.ones(w[0].shape[0])]
        for i in range(depth):
            h.append(h[-1] @ live[i] + b[i])
        back, scores = np.ones(w[-1].shape[1]), [np.zeros(0)] * depth
        for i in reversed(range(depth)):
            scores[i] = live[i] * np.outer(h[i], back)
            back = live[i] @ back
        ranked = np.concatenate(
            [np.where(m, s, -1).ravel() for m, s in zip(masks, scores, strict=True)]
        )
        count = round(size * (last / size) ** (k / rounds))
        chosen = np.zeros(size, bool)
        chosen[np.argsort(-ranked, kind="stable")[:count]] = True
        cuts = np.cumsum([x.size for x in w])[:-1]
        masks = [
            c.reshape(x.shape) for c, x in zip(np.split(chosen, cuts), w, strict=True)
        ]
    return masks


@pytest.mark.parametrize(("sparsity", "rounds"), [(0.8, 1), (0.9, 7), (0.95, 40)])
def test_synflow_equals_its_replica(sparsity, rounds):
    params, _, flow = relu_net([6, 20, 15, 4], bias=True)
    method = zs.sparsity.static(sparsity, "synflow", value_fn=flow, rounds=rounds)
    masks = masks_of(method, params)
    for i, expected in enumerate(replica_synflow(params, sparsity, rounds)):
        np.testing.assert_array_equal(masks[f"{i}"]["kernel"], expected)
        assert masks[f"{i}"]["bias"].ndim == 0


def test_synflow_keeps_a_deep_network_connected_where_others_cut_it():
    params, apply, flow = relu_net([32] + [64] * 8 + [10])
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(16, 32)), jnp.float32)
    labels = jnp.arange(16) % 10

    def loss(p):
        logits = apply(p, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    sizes = [layer["kernel"].size for layer in params.values()]
    through = {}
    for criterion, value_fn in (("synflow", flow), ("snip", loss), ("magnitude", None)):
        method = zs.sparsity.static(
            0.999, criterion, value_fn=value_fn, budget="global"
        )
        masks = masks_of(method, params)
        live = sum(int(m["kernel"].sum()) for m in masks.values())
        assert live == sum(sizes) - round(0.999 * sum(sizes))
        through[criterion] = float(
            flow(jax.tree.map(lambda w, m: jnp.abs(w) * m, params, masks))
        )
    assert through["synflow"] > 0
    assert through["snip"] == through["magnitude"] == 0


def test_synflow_by_layer_keeps_each_layers_budget():
    params, _, flow = relu_net([6, 20, 15, 4])
    options = {"budget": "erk", "rounds": 5}
    masks = masks_of(
        zs.sparsity.static(0.8, "synflow", value_fn=flow, **options), params
    )
    random = masks_of(zs.sparsity.static(0.8, "random", budget="erk"), params)
    live = [int(masks[k]["kernel"].sum()) for k in masks]
    assert live == [int(random[k]["kernel"].sum()) for k in masks]
    assert flow(zs.sparsity.apply_masks(jax.tree.map(jnp.abs, params), masks)) > 0


def test_the_scale_of_synflows_input_cancels():
    params, _, flow = relu_net([6, 20, 15, 4])
    method = zs.sparsity.static(0.9, "synflow", value_fn=flow, rounds=5)
    # Powers of two round nothing.
    scaled = zs.sparsity.static(
        0.9, "synflow", value_fn=lambda p: flow(p, 2.0**-100), rounds=5
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        masks_of(method, params),
        masks_of(scaled, params),
    )


@pytest.mark.parametrize("gain", [1e12, 1e-14])
def test_synflow_ranks_flows_that_float32_cannot_hold(gain):
    """R is 1e114 and 1e-119 here, and the masks are traced, as in the trainer."""
    params, _, flow = relu_net([6] + [10] * 8 + [4])
    params = jax.tree.map(lambda w: w * gain, params)
    method = zs.sparsity.static(0.9, "synflow", value_fn=flow, rounds=5)
    masks = jax.jit(lambda p: method.init(p).masks)(params)
    for i, expected in enumerate(replica_synflow(params, 0.9, 5)):
        np.testing.assert_array_equal(masks[f"{i}"]["kernel"], expected)


def test_the_flow_through_a_residual_network_is_that_of_float32():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 4), "b": (3, 3, 4, 4), "c": (4, 3), "scale": (4,)}
    theta = {
        k: jnp.asarray(abs(rng.normal(size=s)), jnp.float32) for k, s in shapes.items()
    }

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def flow(t):
        x = nn.max_pool(conv(jnp.ones((1, 8, 8, 2)), t["a"]), (2, 2), (2, 2))
        # Normalised in evaluation mode, and a shortcut of fewer channels.
        y = (nn.relu(conv(x, t["b"])) - 0.5) * jax.lax.rsqrt(2.0 + 1e-5) * t["scale"]
        x = jnp.pad(x[..., :2], ((0, 0), (0, 0), (0, 0), (1, 1))) + jnp.where(
            y > 0, y, 0.1 * y
        )
        return jnp.sum(nn.avg_pool(x, (4, 4)).reshape(1, -1) @ t["c"] + 0.25)

    leaves, treedef = jax.tree.flatten(theta)
    value = lambda leaves: flow(treedef.unflatten(leaves))  # noqa: E731
    plain, slopes = jax.jit(jax.value_and_grad(value))(leaves)
    found, shares = jax.jit(lambda t: shares_of_flow(value, t))(leaves)
    np.testing.assert_allclose(2.0**found, plain, rtol=1e-5)
    # Powers of two round nothing; R is divided by at another place.
    for share, slope, t in zip(shares, slopes, leaves, strict=True):
        np.testing.assert_allclose(share, t * slope / plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.nn.gelu, "tanh"),
        (jax.nn.softmax, "exp"),
        (jax.nn.relu6, "min"),
        (lambda x: x / jnp.sum(x), "div"),
        (lambda x: x * jax.lax.rsqrt(jnp.mean(x * x)), "rsqrt"),
    ],
)
def test_synflow_refuses_a_network_without_a_flow(function, name):
    params = {"one": jnp.ones((3, 4)), "two": jnp.ones((4, 2))}
    method = zs.sparsity.static(
        0.5,
        "synflow",
        value_fn=lambda p: jnp.sum(function(jnp.ones((1, 3)) @ p["one"]) @ p["two"]),
    )
    with pytest.raises(ValueError, match=f"applies `{name}` to activations"):
        method.init(params)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_synflow_refuses_a_flow_that_is_not_positive(scale):
    params, _, flow = relu_net([6, 8, 4])
    method = zs.sparsity.static(
        0.5, "synflow", value_fn=lambda p: flow(p, 1.0) * scale, rounds=3
    )
    with pytest.raises(ValueError, match=r"no positive number in round 1 of 3"):
        masks_of(method, params)


@pytest.mark.parametrize("criterion", ["snip", "grasp", "synflow"])
def test_init_may_be_traced(criterion):
    params, losses = two_batches()
    options = {"value_fn": losses}
    if criterion == "synflow":
        params, _, flow = relu_net([6, 20, 15, 4])
        options = {"value_fn": flow, "rounds": 4}
    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.static(0.8, criterion, **options))
    jax.tree.map(
        np.testing.assert_array_equal,
        zs.sparsity.masks(tx.init(params)),
        zs.sparsity.masks(jax.jit(tx.init)(params)),
    )


@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_batches_weigh_alike_and_aux_is_ignored(criterion):
    params, losses = two_batches()
    both = [lambda p, f=f: (f(p), "aux") for f in losses]
    one = [lambda p: (losses[0](p) + losses[1](p)) / 2]
    drawn = [
        kernels(masks_of(zs.sparsity.static(0.7, criterion, value_fn=v), params))
        for v in (losses, both, one, losses[0])
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert (drawn[0] != drawn[3]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "grasp"}, "needs value_fn: the loss of one batch"),
        ({"criterion": "grasp", "value_fn": []}, "needs value_fn"),
        ({"criterion": "synflow"}, "needs value_fn: the sum of the outputs"),
        ({"criterion": "synflow", "value_fn": len, "rounds": 0}, "rounds=0 must be"),
        ({"criterion": "synflo"}, "Did you mean 'synflow'"),
        ({"rounds": 3}, "'random' prunes once.*it is for 'synflow'"),
        ({"criterion": zs.sparsity.scores.magnitude, "rounds": 3}, "prunes once"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        zs.sparsity.static(0.5, **arguments)


def test_a_loss_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="must be a function"):
        zs.sparsity.static(0.5, "snip", value_fn=3.0)


def test_grasp_refuses_scores_that_are_not_finite():
    params, losses = two_batches()
    method = zs.sparsity.static(0.5, "grasp", value_fn=lambda p: losses[0](p) * jnp.inf)
    with pytest.raises(ValueError, match="scores of the initial mask are not finite"):
        masks_of(method, params)


def test_a_dense_leaf_has_no_part_in_grasp():
    """Its gradient does not count, and its entries move nothing."""
    params, losses = two_batches()
    method = zs.sparsity.static(0.5, "grasp", value_fn=losses, dense="out/kernel")
    masks = masks_of(method, params)
    assert masks["out"]["kernel"].ndim == 0
    expected = explicit_grasp(params, losses, [("hidden", "kernel")])
    check_largest_kept(expected, np.asarray(masks["hidden"]["kernel"]).ravel(), 0.5)


@pytest.mark.parametrize(
    "method",
    [
        zs.sparsity.static(0.9),
        zs.sparsity.set_(0.9, 1000),
        zs.sparsity.dsr(0.9, 1000),
        zs.sparsity.srigl(0.9, 1000),
        zs.sparsity.nm(1, 8, 1000),
    ],
    ids=lambda method: method.name,
)
def test_first_masks_do_not_follow_parameters_of_the_same_seed(method):
    """`split(key, n)[i]` is `fold_in(key, i)`: the keys of both must differ."""
    keys = [jax.random.key(0), *jax.random.split(jax.random.key(0), 9)]
    params = {f"w{i}": jax.random.normal(k, (64, 64)) for i, k in enumerate(keys)}
    masks = method.init(params).masks
    for name, w in params.items():
        kept = np.asarray(w)[np.asarray(masks[name])]
        assert abs(kept.mean()) * len(kept) ** 0.5 < 5
