"""A network without the units that nothing reads computes what it computed before."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.sparsity import Units

FAMILIES = list(small_models.FAMILIES)


def network(family):
    """A small model, a batch, and random variables as `(params, model_state)`."""
    model, x = small_models.make(family), small_models.inputs(family)
    variables = small_models.drawn(model, x)
    return model, x, variables.pop("params"), variables


def unit_masks(model, params, rng, density):
    """Masks that prune units of each layer whole, and a share of all other weights."""
    flat = small_models.flat(params)
    masks = {
        path: rng.random(x.shape) < density if x.ndim > 1 else True
        for path, x in flat.items()
    }
    for row in model.cuts().values():
        size = row.units or flat[row.outgoing].shape[-2]
        number = rng.choice([1, 1, size, rng.integers(1, size + 1)])
        live = rng.permutation(size) < number
        for path in (row.outgoing, *row.others):
            rows = np.repeat(live, flat[path].shape[-2] // size)
            masks[path] = masks[path] & rows[:, None]
    return small_models.nested(masks)


def outputs(model, params, state, x, train):
    """The outputs, and the new statistics of the batch."""
    apply = functools.partial(model.apply, train=train, mutable=list(state))
    return jax.jit(apply)({"params": params, **state}, x)


def assert_close(found, expected):
    """To rounding, relative to the largest entry."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.max(np.abs(b), initial=1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * scale)


def size(tree):
    return sum(np.size(x) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smaller_network_computes_the_same(family):
    model, x, params, state = network(family)
    masks = unit_masks(model, params, np.random.default_rng(len(family)), 0.5)
    small = zs.sparsity.compact(model, params, masks, model_state=state)
    assert small.widths
    pruned = zs.sparsity.apply_masks(params, masks)
    # Without BatchNorm, training computes the same.
    for train in {False, bool(state)}:
        expected, new_state = outputs(model, pruned, state, x, train)
        found, found_state = outputs(
            small.model, small.params, small.model_state, x, train
        )
        assert_close(found, expected)
        assert_close(found_state, small.cut(new_state))
    assert size(params) - size(small.params) == sum(small.removed.values())
    # The model of these widths has these parameters, without the larger one.
    shapes = small_models.shapes(small_models.make(family, widths=small.widths), x)
    found = {"params": small.params, **small.model_state}
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, shapes)
    # A second cut finds nothing.
    again = zs.sparsity.compact(
        small.model, small.params, small.masks, model_state=small.model_state
    )
    assert (again.removed, again.widths) == ({}, small.widths)
    jax.tree.map(np.testing.assert_array_equal, again.params, small.params)
    # Without constant units it cuts what `removable` counts.
    counted = zs.sparsity.removable(params, masks, model.cuts())
    plain = zs.sparsity.compact(model, params, masks, model_state=state, fold=False)
    assert plain.removed == counted


def test_units_pruned_whole_are_those_that_go():
    model, _, params, state = network("bottleneck")
    groups = models.unit_groups("resnet50")
    masks = zs.sparsity.units(0.5, 100, groups).init(params).masks
    small = zs.sparsity.compact(model, params, masks, model_state=state)
    assert small.removed == zs.sparsity.removable(params, masks, groups)
    assert set(small.widths.values()) == {3, 5}
    assert not any("trunk" in name for name in small.widths)


@pytest.mark.parametrize("name", ["chex", "chase"])
def test_channels_that_a_method_prunes_are_those_that_go(name):
    """Kernels between two layers of channels have the product of two masks."""
    model, x, params, state = network("vgg")
    groups = small_models.FAMILIES["vgg"].units()
    method = {
        "chex": zs.sparsity.chex(0.6, 100, groups, interval=50),
        "chase": zs.sparsity.chase(
            0.6, 100, groups, interval=50, unit_sparsity=0.6, dense="head/*"
        ),
    }[name]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def change(params):
        return method.change(method.init(params), params, params, jnp.int32(100))

    topology = change(params)
    masks, live = topology.masks, topology.memory.rule
    total = sum(units.size for units in live)
    assert sum(int(units.sum()) for units in live) == total - round(0.6 * total)
    small = zs.sparsity.compact(model, params, masks, model_state=state)
    assert small.removed == zs.sparsity.removable(params, masks, model.cuts())
    widths = {f"channels{i}": int(units.sum()) for i, units in enumerate(live, 1)}
    # Of the weights that Chase leaves, more units may have none.
    found = {k: small.widths.get(k, live[i].size) for i, k in enumerate(widths)}
    assert all(found[k] <= n for k, n in widths.items())
    assert name == "chase" or found == widths
    pruned = zs.sparsity.apply_masks(params, masks)
    for train in (False, True):
        expected, new_state = outputs(model, pruned, state, x, train)
        found, found_state = outputs(
            small.model, small.params, small.model_state, x, train
        )
        assert_close(found, expected)
        assert_close(found_state, small.cut(new_state))


def relu_mlp(params, x):
    for layer in params[:-1]:
        x = jnp.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ params[-1]["kernel"] + params[-1]["bias"]


RELU_GROUPS = {
    f"hidden{i}": Units(
        f"{i}/kernel",
        incoming=(f"{i - 1}/kernel", f"{i - 1}/bias"),
        activation="relu",
    )
    for i in (1, 2)
}


def relu_params(seed, sizes=(3, 7, 6, 2)):
    rng = np.random.default_rng(seed)
    return [
        {
            "kernel": rng.normal(size=(a, b)).astype(np.float32),
            "bias": rng.normal(size=b).astype(np.float32),
        }
        for a, b in itertools.pairwise(sizes)
    ]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    density=st.floats(0, 1),
    multiple=st.sampled_from([1, 2, 4, 8]),
    fold=st.booleans(),
)
def test_any_masks_leave_the_function_as_it_was(seed, density, multiple, fold):
    params, rng = relu_params(seed), np.random.default_rng(seed + 1)
    masks = [
        {"kernel": rng.random(p["kernel"].shape) < density, "bias": True}
        for p in params
    ]
    x = rng.normal(size=(5, 3)).astype(np.float32)
    options = {"groups": RELU_GROUPS, "multiple": multiple, "fold": fold}
    options["outputs"] = lambda p: relu_mlp(p, x)
    small = zs.sparsity.compact(None, params, masks, **options)
    expected = relu_mlp(zs.sparsity.apply_masks(params, masks), x)
    assert_close(relu_mlp(small.params, x), expected)
    widths = {"hidden1": 7, "hidden2": 6, **small.widths}
    for name, before in (("hidden1", 7), ("hidden2", 6)):
        assert widths[name] % multiple == 0 or widths[name] == before
        assert widths[name] >= 1
    again = zs.sparsity.compact(None, small.params, small.masks, **options)
    assert again.removed == {}
    assert (again.folded == {}) or multiple > 1
    assert not fold or small.constant == {}


def by_hand():
    """Hidden units 0 to 5: live, unread, constant, only read by an unread unit, ..."""
    params = relu_params(0, (2, 4, 3, 2))
    masks = [{"kernel": np.ones(p["kernel"].shape, bool), "bias": True} for p in params]
    masks[2]["kernel"][1] = False  # Nothing reads unit 1 of the second layer,
    masks[1]["kernel"][2] = [False, True, False]  # the only reader of unit 2.
    masks[0]["kernel"][:, 3] = False  # Unit 3 of the first layer is a constant.
    return params, masks


def test_what_goes_and_what_stays_is_told():
    params, masks = by_hand()
    x = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    options = {"groups": RELU_GROUPS, "outputs": lambda p: relu_mlp(p, x)}
    small = zs.sparsity.compact(None, params, masks, **options)
    assert small.widths == {"hidden1": 2, "hidden2": 2}
    assert (small.folded, small.constant) == ({"hidden1": 1}, {})
    assert small.removed == {
        "0/bias": 2,
        "0/kernel": 4,
        "1/bias": 1,
        "1/kernel": 8,
        "2/kernel": 2,
    }
    constant = np.maximum(params[0]["bias"][3], 0)
    bias = params[1]["bias"] + constant * params[1]["kernel"][3]
    np.testing.assert_allclose(small.params[1]["bias"], bias[[0, 2]], rtol=1e-6)
    kept = zs.sparsity.compact(None, params, masks, fold=False, **options)
    assert kept.widths == {"hidden1": 3, "hidden2": 2}
    assert (kept.folded, kept.constant) == ({}, {"hidden1": 1})
    # A reader without a bias, or an unknown activation: the constant stays.
    unknown = {k: row._replace(activation="") for k, row in RELU_GROUPS.items()}
    kept = zs.sparsity.compact(
        None, params, masks, groups=unknown, outputs=options["outputs"]
    )
    assert (kept.folded, kept.constant) == ({}, {"hidden1": 1})


def test_constants_behind_a_padded_convolution_stay():
    model, x, params, state = network("basic")
    masks = jax.tree.map(lambda x: np.ones(x.shape, bool), params)
    masks["stage1_block0"]["conv1"]["kernel"][..., 2] = False
    small = zs.sparsity.compact(model, params, masks, model_state=state)
    assert (small.removed, small.folded) == ({}, {})
    assert small.constant == {"stage1_block0/channels": 1}
    found = outputs(small.model, small.params, small.model_state, x, False)
    pruned = zs.sparsity.apply_masks(params, masks)
    assert_close(found, outputs(model, pruned, state, x, False))


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_training_on_equals_training_masked(optimizer):
    model, x, params, state = network("wide")
    masks = unit_masks(model, params, np.random.default_rng(0), 0.7)
    rule = optax.adam(1e-2) if optimizer == "adam" else optax.sgd(0.1, momentum=0.9)
    labels = jnp.arange(len(x)) % small_models.CLASSES

    def train(model, masks, params, state, inner, steps):
        tx = zs.sparsify(rule, zs.sparsity.static(masks=masks))
        opt_state = tx.init(params)
        if inner is not None:
            opt_state = opt_state._replace(inner=inner)

        def loss(params, state):
            logits, new = outputs(model, params, state, x, True)
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean(), new

        @jax.jit
        def step(params, state, opt_state):
            grads, state = jax.grad(loss, has_aux=True)(params, state)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), state, opt_state

        params = zs.sparsity.apply_masks(params, masks)
        for _ in range(steps):
            params, state, opt_state = step(params, state, opt_state)
        return params, state, opt_state.inner

    before = train(model, masks, params, state, None, 2)
    small = zs.sparsity.compact(model, before[0], masks, model_state=before[1])
    assert small.constant == small.folded == {}
    expected = train(model, masks, *before, 3)
    inner = small.cut(before[2])
    found = train(small.model, small.masks, small.params, small.model_state, inner, 3)
    assert_close(found[0], small.cut(expected[0]))
    assert_close(found[1], small.cut(expected[1]))
    assert_close(found[2], small.cut(expected[2]))


def test_statistics_of_several_weights_cannot_be_cut():
    params, masks = by_hand()
    x = np.ones((1, 2), np.float32)
    small = zs.sparsity.compact(
        None, params, masks, groups=RELU_GROUPS, outputs=lambda p: relu_mlp(p, x)
    )
    state = optax.adafactor(0.1, min_dim_size_to_factor=2).init(params)
    with pytest.raises(ValueError, match=r"kernel.* several weights together"):
        small.cut(state)


def test_units_of_ones_own_are_checked():
    params, masks = by_hand()
    x = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    both = [*params, {"kernel": np.ones((4, 2), np.float32), "bias": np.zeros(2)}]
    masks = [*masks, {"kernel": True, "bias": True}]

    def network(params):
        """The first layer is read by a fourth kernel too."""
        first = jnp.maximum(x @ params[0]["kernel"] + params[0]["bias"], 0)
        return relu_mlp(params[:3], x) + first @ params[3]["kernel"]

    with pytest.raises(ValueError, match="hidden1: the outputs depend on units of 1/"):
        zs.sparsity.compact(None, both, masks, groups=RELU_GROUPS, outputs=network)
    named = RELU_GROUPS["hidden1"]._replace(others=("3/kernel",), activation="")
    groups = {**RELU_GROUPS, "hidden1": named}
    small = zs.sparsity.compact(None, both, masks, groups=groups, outputs=network)
    assert small.widths == {"hidden2": 2}
    with pytest.raises(ValueError, match="need outputs="):
        zs.sparsity.compact(None, both, masks, groups=groups)
    with pytest.raises(ValueError, match="dict does not say where its units are"):
        zs.sparsity.compact({}, both, masks)
    twice = {"a": RELU_GROUPS["hidden1"], "b": Units("3/kernel", incoming=("0/bias",))}
    with pytest.raises(ValueError, match="b and a both have units along axis 0 of 0/"):
        zs.sparsity.compact(None, both, masks, groups=twice, outputs=network)
    with pytest.raises(ValueError, match="reads the units too"):
        zs.sparsity.units(0.5, 100, groups)


def test_unknown_widths_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'hidden1'"):
        models.create("mlp", num_classes=3, widths={"hiden1": 4})
    with pytest.raises(ValueError, match="widths: hidden1=0 must"):
        models.create("mlp", num_classes=3, widths={"hidden1": 0})


def test_the_cost_before_and_after_is_two_lines():
    params, masks = by_hand()
    x = np.ones((4, 2), np.float32)
    small = zs.sparsity.compact(
        None, params, masks, groups=RELU_GROUPS, outputs=lambda p: relu_mlp(p, x)
    )
    before, after = (
        zs.sparsity.cost(lambda p: relu_mlp(p, x), p, repeats=1)
        for p in (params, small.params)
    )
    assert before.parameters == 2 * 4 + 4 + 4 * 3 + 3 + 3 * 2 + 2
    assert after.parameters == before.parameters - sum(small.removed.values())
    assert before.macs == 4 * (2 * 4 + 4 * 3 + 3 * 2)
    assert after.macs == 4 * (2 * 2 + 2 * 2 + 2 * 2)
    assert (before.bytes, after.bytes) == (4 * before.parameters, 4 * after.parameters)
    assert before.milliseconds > 0
    assert str(after).startswith("18 parameters, 48 MACs, 72 B, ")
