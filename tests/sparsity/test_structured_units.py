"""Units pruned whole: against NumPy, against a smaller network, on the models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from structured import best, cosine, normal, train, train_in_numpy

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.sparsity import Units

SHAPES = {"in": (5, 12), "out": (12, 4), "q": (6, 8), "proj": (8, 6), "bias": (12,)}
GROUPS = {
    "mlp": Units("out", incoming=("in", "bias")),
    "heads": Units("proj", 4, ("q",), "taylor"),
}
STEPS, INTERVAL = 1000, 20


def blocks(x, units):
    """Rows by unit, `[units, -1]`."""
    return np.asarray(x).reshape(units, -1)


def test_a_thousand_steps_equal_the_numpy_replica():
    start = normal(SHAPES)
    method = zs.sparsity.units(
        {"mlp": 0.4, "heads": 0.5}, STEPS, GROUPS, interval=INTERVAL, seed=3
    )
    run = train(method, start, STEPS)
    _, w, masks, memory = next(run)
    assert masks["in"].ndim == masks["q"].ndim == masks["bias"].ndim == 0
    # 12 - round(4.8) rows of 4, and 4 - 2 heads of 2 rows of 6; "out" sorts first.
    assert memory.live.tolist() == memory.target.tolist() == [28, 24]

    def scores(k, w, g):
        if k == "proj":
            return np.abs(blocks(w[k] * g[k], 4).sum(1))
        return np.abs(w["in"]).sum(0) + np.abs(w["out"]).sum(1)

    def change(step, w, g, masks):
        new = {}
        for k, units in (("out", 12), ("proj", 4)):
            live = np.flatnonzero(blocks(masks[k], units).all(1))
            share = cosine(0.5, step, STEPS, 0.005) * np.float32(len(live))
            dropped = min(int(np.ceil(share)), len(live))
            kept = best(scores(k, w, g), live, len(live) - dropped)
            rest = [i for i in range(units) if i not in kept]
            grown = best(np.abs(blocks(g[k], units)).sum(1), rest, dropped)
            rows = np.zeros(units, bool)
            rows[kept + grown] = True
            new[k] = np.broadcast_to(
                np.repeat(rows, len(w[k]) // units)[:, None], w[k].shape
            )
        return new

    replica = train_in_numpy(
        start,
        w,
        {k: masks[k] for k in ("out", "proj")},
        STEPS,
        lambda step: step > 0 and step % INTERVAL == 0 and step < 0.8 * STEPS,
        change,
    )
    seen = {"out": set(), "proj": set()}
    for (index, params, held, _), (_, expected, wanted) in zip(
        run, replica, strict=True
    ):
        for k in seen:
            np.testing.assert_array_equal(held[k], wanted[k], err_msg=f"{k} {index}")
            assert np.all(params[k][~held[k]] == 0)
            seen[k].add(held[k].tobytes())
        for k in SHAPES:
            # Rounding, which momentum carries over steps.
            np.testing.assert_allclose(params[k], expected[k], rtol=1e-3, atol=1e-5)
    assert len(seen["out"]) > 5
    assert len(seen["proj"]) > 1


def vit():
    model = models.vit.ViT(3, 4, heads=4, features=8, depth=1)
    params, _ = models.initialize(model, jax.random.key(0), (8, 8, 3))
    # Weights of a size that matters, and biases that are not zero.
    leaves, treedef = jax.tree.flatten(params)
    drawn = [
        x + jnp.asarray(np.random.default_rng(i).normal(size=x.shape) / 3, x.dtype)
        for i, x in enumerate(leaves)
    ]
    groups = models.unit_groups("vit")
    groups["heads"] = groups["heads"]._replace(units=4)
    return model, jax.tree.unflatten(treedef, drawn), groups


IMAGES = jax.random.normal(jax.random.key(9), (5, 8, 8, 3))
LABELS = jnp.asarray([0, 1, 2, 0, 1])


def test_a_vit_equals_the_one_with_the_pruned_units_deleted():
    """The MLPs' hidden units and the heads, taken out of every array by hand."""
    _, params, groups = vit()
    method = zs.sparsity.units({"heads": 0.5, "mlp": 0.25}, 100, groups)
    masks = jax.jit(method.init)(params).masks
    pruned = jax.tree.map(np.asarray, zs.sparsity.apply_masks(params, masks))
    counted = zs.sparsity.removable(params, masks, groups)

    def numpy_block(p, x, delete):
        def norm(name, x):
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
            return x * p[name]["scale"] + p[name]["bias"]

        heads = blocks(masks[name]["attention"]["out"]["kernel"], 4).all(1)
        hidden = np.asarray(masks[name]["mlp2"]["kernel"]).all(1)
        kept_heads = range(4) if not delete else np.flatnonzero(heads)
        kept_hidden = slice(None) if not delete else np.flatnonzero(hidden)
        y, attended = norm("norm1", x), p["attention"]["out"]["bias"]
        for h in kept_heads:
            part = slice(2 * h, 2 * h + 2)
            q, k, v = (
                y @ p["attention"][n]["kernel"][:, part]
                + p["attention"][n]["bias"][part]
                for n in ("query", "key", "value")
            )
            weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(2))
            weights = weights / weights.sum(-1, keepdims=True)
            attended = attended + weights @ v @ p["attention"]["out"]["kernel"][part]
        x = x + attended
        y = norm("norm2", x) @ p["mlp1"]["kernel"][:, kept_hidden]
        y = np.asarray(jax.nn.gelu(y + p["mlp1"]["bias"][kept_hidden]))
        return x + y @ p["mlp2"]["kernel"][kept_hidden] + p["mlp2"]["bias"], heads

    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    name = "block0"
    block = jax.jit(models.vit.Block(4).apply)
    whole = block({"params": pruned[name]}, x)
    alike, heads = numpy_block(pruned[name], x, delete=False)
    smaller, _ = numpy_block(pruned[name], x, delete=True)
    assert heads.sum() == 2
    np.testing.assert_allclose(whole, alike, rtol=1e-4, atol=1e-4)
    # Float32 sums in another order.
    np.testing.assert_allclose(whole, smaller, rtol=1e-4, atol=1e-4)
    # 2 heads of 2 features of 4, 8 of 32 hidden units; 8 features.
    assert counted[f"{name}/attention/out/kernel"] == 2 * 2 * 8
    assert counted[f"{name}/attention/query/kernel"] == 2 * 2 * 8
    assert counted[f"{name}/attention/value/bias"] == 2 * 2
    assert counted[f"{name}/mlp1/kernel"] == 8 * 8
    assert counted[f"{name}/mlp1/bias"] == 8
    assert counted[f"{name}/mlp2/kernel"] == 8 * 8
    assert len(counted) == 1 + 6 + 3


def test_pruned_units_have_a_gradient_and_taylor_is_that_of_a_gate():
    model, params, groups = vit()
    method = zs.sparsity.units(0.5, 100, groups)
    first = jax.jit(method.init)(params)
    masks = first.masks
    pruned = zs.sparsity.apply_masks(params, masks)

    @jax.jit
    def loss(p):
        logits = model.apply({"params": p}, IMAGES, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    grads = jax.jit(jax.grad(loss))(pruned)
    for block in ["block0"]:
        pulls = blocks(grads[block]["mlp2"]["kernel"], 32)
        live = blocks(masks[block]["mlp2"]["kernel"], 32).all(1)
        assert np.all(np.abs(pulls[~live]).sum(1) > 0)
        # The incoming weights of a pruned unit do not move.
        assert np.all(np.asarray(grads[block]["mlp1"]["kernel"])[:, ~live] == 0)
        heads = blocks(masks[block]["attention"]["out"]["kernel"], 4).all(1)
        pulls = blocks(grads[block]["attention"]["out"]["kernel"], 4)
        assert np.all(np.abs(pulls[~heads]).sum(1) > 0)

        kernel = np.asarray(pruned[block]["attention"]["out"]["kernel"])
        taylor = np.abs(blocks(kernel * pulls.reshape(kernel.shape), 4).sum(1))
        for head in range(4):

            def gated(c, head=head, kernel=kernel, block=block):
                rows = np.ones(8, np.float32)
                rows[2 * head : 2 * head + 2] = c
                attention = pruned[block]["attention"]
                moved = {"out": attention["out"] | {"kernel": kernel * rows[:, None]}}
                changed = {"attention": attention | moved}
                return float(loss(pruned | {block: pruned[block] | changed}))

            h = 0.05
            slope = abs(gated(1 + h) - gated(1 - h)) / (2 * h)
            # Rounding of the loss, 1e-7 / h, and the third derivative times h^2.
            assert taylor[head] == pytest.approx(slope, rel=2e-2, abs=1e-4)

    # Of two live heads one drops at step 1: the one with the lower score stays only
    # if it also pulls hardest.
    new = jax.jit(method.change)(first, pruned, grads, 1).masks
    for block in ["block0"]:
        old = blocks(masks[block]["attention"]["out"]["kernel"], 4).all(1)
        kernel = pruned[block]["attention"]["out"]["kernel"]
        slope = grads[block]["attention"]["out"]["kernel"]
        taylor = np.abs(blocks(kernel * slope, 4).sum(1))
        pulls = np.abs(blocks(slope, 4)).sum(1)
        stays = max(np.flatnonzero(old), key=lambda i: taylor[i])
        grows = max(set(range(4)) - {stays}, key=lambda i: pulls[i])
        held = blocks(new[block]["attention"]["out"]["kernel"], 4).all(1)
        assert set(np.flatnonzero(held)) == {stays, grows}


def changed(w, g, drop, alpha):
    """The live units after one change of a kernel of one row a unit."""
    method = zs.sparsity.units(
        0.5, 100, {"u": Units("w", drop=drop)}, drop_fraction=lambda step: alpha
    )
    first = jax.jit(method.init)({"w": w})
    live = jnp.any(w != 0, 1, keepdims=True)
    first = first._replace(masks={"w": jnp.broadcast_to(live, w.shape)})
    new = jax.jit(method.change)(first, {"w": w}, {"w": g}, 0).masks["w"]
    return np.flatnonzero(np.asarray(new).all(1)).tolist()


def test_taylor_lets_contributions_cancel_and_magnitude_does_not():
    w = jnp.asarray([[9.0, 9.0], [1.0, 1.0], [0, 0], [0, 0]])
    # Of the first unit 9 * 2 - 9 * 2 = 0, of the second 1 + 1 = 2.
    g = jnp.asarray([[2.0, -2.0], [1.0, 1.0], [3.0, -3.0], [5.0, 0]])
    assert changed(w, g, "taylor", 0.5) == [1, 2]
    assert changed(w, g, "magnitude", 0.5) == [0, 2]


def test_a_unit_just_dropped_may_come_back():
    w = jnp.asarray([[9.0, 9.0], [1.0, 1.0], [0, 0], [0, 0]])
    g = jnp.asarray([[0, 0], [7.0, 7.0], [3.0, -3.0], [5.0, 0]])
    assert changed(w, g, "magnitude", 0.5) == [0, 1]
    # Both drop; the two that pull hardest grow.
    assert changed(w, g, "magnitude", 1.0) == [1, 2]


def test_a_regrown_unit_trains_at_once():
    model, params, groups = vit()
    del groups["heads"]

    def loss(p):
        logits = model.apply({"params": p}, IMAGES, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    tx = zs.sparsify(
        optax.adam(1e-2),
        zs.sparsity.units(0.5, 100, groups, interval=1),
        zs.backprop(),
    )
    state = jax.jit(tx.init)(params)
    params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    regrown = 0
    for _ in range(4):
        before = np.asarray(zs.sparsity.masks(state)["block0"]["mlp2"]["kernel"])
        params, state = step(params, state)
        after = np.asarray(zs.sparsity.masks(state)["block0"]["mlp2"]["kernel"])
        fresh = (after & ~before).all(1)
        regrown += fresh.sum()
        assert np.all(np.asarray(params["block0"]["mlp2"]["kernel"])[fresh] != 0)
        assert after.all(1).sum() == 16
    assert regrown


def test_channels_of_a_resnet():
    groups = models.unit_groups("resnet20")
    model = models.create("resnet20", num_classes=3, width=0.25)
    images = (8, 8, 3)
    params = jax.eval_shape(
        lambda key: models.initialize(model, key, images)[0], jax.random.key(0)
    )
    params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params)
    masks = jax.jit(zs.sparsity.units(0.5, 100, groups).init)(params).masks
    sparse = [m for m in jax.tree.leaves(masks) if m.ndim]
    assert len(sparse) == 9
    for mask in sparse:
        channels = np.asarray(mask).all((0, 1, 3))
        np.testing.assert_array_equal(channels, np.asarray(mask).any((0, 1, 3)))
        assert channels.sum() == len(channels) // 2
    removed = zs.sparsity.removable(params, masks, groups)
    first, *_ = [p for p in removed if p.endswith("conv1/kernel")]
    block = params[first.split("/")[0]]
    assert removed[first] == block["conv1"]["kernel"].size // 2
    assert removed[first.replace("conv1/kernel", "norm1/scale")] == 2


def test_a_kernel_between_two_layers_of_units_shrinks_on_both_sides():
    params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 6)), "c": jnp.ones((6, 2))}
    groups = {"one": Units("b", incoming=("a",)), "two": Units("c", 3, ("b",))}
    method = zs.sparsity.units({"one": 0.5, "two": 0.3}, 100, groups)
    masks = jax.jit(method.init)(params).masks
    assert zs.sparsity.removable(params, masks, groups) == {
        "a": 24 - 3 * 4,
        "b": 48 - 4 * 4,
        "c": 12 - 4 * 2,
    }


def test_equinox_layouts_are_an_option():
    params = {"in": jnp.ones((8, 3)), "out": jnp.ones((2, 8))}
    groups = {
        "hidden": Units("out", incoming=("in",), outgoing_axis=1, incoming_axis=0)
    }
    method = zs.sparsity.units(0.5, 100, groups)
    first = jax.jit(method.init)(params)
    assert np.asarray(first.masks["out"]).all(0).sum() == 4
    # Units by size, and all gradients the same: the largest four stay or come back.
    params = {"in": jnp.arange(24.0).reshape(8, 3), "out": 0 * params["out"]}
    grads = {"in": params["in"], "out": jnp.tile(jnp.arange(8.0), (2, 1))}
    new = jax.jit(method.change)(first, params, grads, 1).masks["out"]
    old = np.asarray(first.masks["out"])[0]
    kept = sorted(np.flatnonzero(old))[-2:]
    grown = sorted(set(range(8)) - set(kept))[-2:]
    assert set(np.flatnonzero(np.asarray(new)[0])) == {*kept, *grown}


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.99])
def test_at_least_one_unit_stays(sparsity):
    params = {"w": jnp.ones((6, 2))}
    method = zs.sparsity.units(sparsity, 9, {"u": Units("w", 3)})
    masks = jax.jit(method.init)(params).masks
    assert int(masks["w"].sum()) == 4 * max(1, 3 - round(3 * sparsity))


def make(sparsity=0.5, groups=None, **arguments):
    params = {"b0": {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}}
    groups = {"u": Units("*/out", incoming=("*/in",))} if groups is None else groups
    return zs.sparsity.units(sparsity, 100, groups, **arguments).init(params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {"u": Units("*/oat")}}, r"u: outgoing='\*/oat' is unknown"),
        (
            {"groups": {"u": Units("*/out", incoming=("*/inn",))}},
            "u: incoming='b0/inn' is unknown. Did you mean 'b0/in'",
        ),
        ({"groups": {"u": Units("*/out", 3)}}, "3 units do not divide axis 0 of b0/ou"),
        ({"groups": {"u": Units("*/out", drop="l1")}}, "u: drop='l1' is unknown"),
        ({"groups": {"u": Units("*/out", 0)}}, "u: units=0"),
        ({"groups": {"u": Units("*/out"), "v": Units("b0/*t")}}, "v and u both prune"),
        ({"groups": [Units("*/out")]}, "groups must map names"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": {"v": 0.5}}, "must have a number for each of the groups u"),
        ({"sparsity": {"u": 2}}, r"sparsity\['u'\]=2"),
        ({"interval": 0}, "interval=0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_the_schedule_is_that_of_svite():
    svite = zs.sparsity.svite(0.5, 1000)
    method = zs.sparsity.units(0.5, 1000, {"u": Units("w")})
    fired = [
        np.flatnonzero(jax.vmap(m.fires)(jnp.arange(1000))) for m in (svite, method)
    ]
    assert fired[0].tolist() == fired[1].tolist()
    assert fired[1][-1] < 800
    assert set(np.diff(fired[1])) == {13}


def test_names_and_heads_of_the_models():
    assert set(models.unit_groups("vit")) == {"heads", "mlp"}
    assert [models.unit_groups("vit", width=w)["heads"].units for w in (1, 2)] == [3, 6]
    with pytest.raises(ValueError, match="Did you mean 'vit'"):
        models.unit_groups("vita")
