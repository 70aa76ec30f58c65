"""A stack of layers, `[layers, in, out]`, is treated as a list of the same layers.

A list of layers and a stack of them have the same names, order and random draws. So the
network with separate leaves is an exact oracle for the network with stacked leaves.
"""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from marks import quick

import zosam_jax as zs
from zosam_jax.sparsity import budgets
from zosam_jax.sparsity.leaves import SparseLeaves, sparse_leaves, stack_axes
from zosam_jax.sparsity.methods.scaled_arithmetic import mantissa_and_exponent
from zosam_jax.sparsity.registry import METHODS

# An expert in each of two layers, and two layers with biases.
RULE = {"experts": 2, "layers/*": 1}
FAST = {"xla_backend_optimization_level": 0}


def separate():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "embed": normal(8, 8),
        "experts": [[normal(8, 4)], [normal(8, 4)]],
        "head": normal(8, 4),
        "layers": {
            "offset": [normal(8) for _ in range(2)],
            # Of different magnitudes, so that one ranking of both would differ.
            "w": [normal(8, 8) * 3**i for i in range(2)],
        },
    }


def stack(tree):
    """The tree with arrays in place of lists; one scalar for a list of dense masks."""

    def joined(x):
        if not isinstance(x, list):
            return x
        parts = [joined(y) for y in x]
        dense = parts[0].dtype == bool and parts[0].ndim == 0
        return parts[0] if dense else jnp.stack(parts)

    return jax.tree.map(joined, tree, is_leaf=lambda x: isinstance(x, list))


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def loss(params):
    """A network of both kinds of tree: indexing is the same."""
    h = jnp.linspace(-1, 1, 40).reshape(5, 8) @ params["embed"]
    for i in range(2):
        w, b = params["layers"]["w"][i], params["layers"]["offset"][i]
        h = jax.nn.relu(h @ w / 3**i + b)
        h += jnp.tile(h @ params["experts"][i][0], 2) / 4
    return jnp.mean((h @ params["head"] - 1) ** 2)


def flow(params):
    h = jnp.ones((1, 8)) @ params["embed"]
    for i in range(2):
        h = jax.nn.relu(h @ params["layers"]["w"][i])
        h += jnp.tile(h @ params["experts"][i][0], 2)
    return jnp.sum(h @ params["head"])


@pytest.mark.quick
def test_a_layer_has_the_name_and_place_that_it_has_in_a_list():
    listed, params = separate(), stack(separate())
    layers = sparse_leaves(params, stacked=RULE)
    assert layers.names == tuple(sparse_leaves(listed).names)
    assert layers.names[1:3] == ("experts/0/0", "experts/1/0")
    assert layers.shapes == tuple(sparse_leaves(listed).shapes)
    assert_equal(layers.of(params), sparse_leaves(listed).of(listed))
    assert_equal(layers.put(params, layers.of(params)), params)


@pytest.mark.quick
@pytest.mark.parametrize(
    "budget",
    [
        "erk",
        "er",
        "uniform",
        budgets.by_path({"layers/w/0": 0.2, "experts/*": 0.75}, rest="uniform"),
    ],
)
def test_budgets_are_those_of_separate_leaves(budget):
    expected = budgets.counts(separate(), 0.7, budget)
    assert budgets.counts(stack(separate()), 0.7, budget, stacked=RULE) == expected
    # As one leaf each, the stacks have other budgets, and their biases are pruned.
    assert "layers/offset" in budgets.counts(stack(separate()), 0.7, budgets.uniform)


OFTEN = {"interval": 2, "drop_fraction": 0.5, "stop_fraction": 1.0}
HIDDEN = {"rows": zs.sparsity.Units("layers/w*", incoming=("layers/offset*",))}
# The columns of a kernel, with the biases for their scales.
CHANNELS = zs.sparsity.Units(
    "layers/w*",
    incoming=("layers/w*", "layers/offset*"),
    outgoing_axis=-1,
    scale="layers/offset*",
)
DYNAMIC = {
    "rigl": lambda **o: zs.sparsity.rigl(0.7, 8, **OFTEN, **o),
    "mest": lambda **o: zs.sparsity.mest(0.7, 8, interval=2, **o),
    "dsr": lambda **o: zs.sparsity.dsr(0.7, 300, interval=2, threshold=1.0, **o),
    "gmp": lambda **o: zs.sparsity.gmp(0.7, 8, interval=2, budget="global", **o),
    "safe": lambda **o: zs.sparsity.safe(0.7, 7, interval=2, strength=0.1, **o),
    "ste": lambda **o: zs.sparsity.ste(pattern=(2, 4), decay=0.1, **o),
    "srigl": lambda **o: zs.sparsity.srigl(0.7, 8, gamma=0.1, **OFTEN, **o),
    "nm": lambda **o: zs.sparsity.nm(2, 4, 8, **OFTEN, **o),
    "units": lambda **o: zs.sparsity.units(0.5, 8, HIDDEN, **OFTEN, **o),
    "chase": lambda **o: zs.sparsity.chase(
        0.7, 8, {"columns": CHANNELS}, interval=2, **o
    ),
    "chex": lambda **o: zs.sparsity.chex(
        0.5, 8, {"columns": CHANNELS}, interval=2, stop_fraction=0.9, **o
    ),
}


def train(method, params):
    """Masks and memory before and in seven steps, then parameters and moments."""
    tx = zs.sparsify(optax.adam(0.1), method, grown_second_moment="mean")

    # One program: operations that run one by one compile one by one.
    @functools.partial(jax.jit, compiler_options=FAST)
    def run(params):
        target = jax.tree.map(lambda x: jnp.sin(17 * x), params)
        state = tx.init(params)
        if not method.pruned_in_params:
            params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

        def step(carry, _):
            params, state = carry
            seen = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
            pull = 1 + state.step.astype(jnp.float32) % 3
            grads = jax.tree.map(lambda w, t: (w - t) * pull, seen, target)
            updates, new = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, new), (zs.sparsity.masks(state), state.memory)

        (params, state), history = jax.lax.scan(step, (params, state), None, length=8)
        return history, params, state.inner

    return run(params)


@pytest.mark.parametrize("name", quick(DYNAMIC, "rigl"))
def test_masks_and_moments_are_those_of_separate_leaves(name):
    dense = {} if name in ("units", "chex") else {"dense": "head"}
    listed = DYNAMIC[name](**dense)
    (masks, memory), params, moments = train(listed, separate())
    method = DYNAMIC[name](**dense, stacked=RULE)
    (found, counts), stacked, held = train(method, stack(separate()))
    for step in range(8):
        expected = stack(jax.tree.map(lambda m, at=step: m[at], masks))
        assert_equal(jax.tree.map(lambda m, at=step: m[at], found), expected)
    # SAFE remembers weights too, in the tree's structure.
    assert_equal(*((x[:2] if name == "safe" else x) for x in (counts, memory)))
    # The compiler contracts products and sums in other places.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, (stacked, held), stack((params, moments)))
    history = found["layers"]["w"]
    assert history.shape == (8, 2, 8, 8)
    assert bool(jnp.any(history != history[:1]))


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "random"},
        {"criterion": "magnitude", "budget": "global"},
        {"criterion": "magnitude", "pattern": (1, 2), "sparsity": None},
        {"criterion": "snip", "value_fn": loss},
        {"criterion": "grasp", "value_fn": loss},
        {"criterion": "synflow", "value_fn": flow, "rounds": 3},
    ],
    ids=lambda options: options["criterion"],
)
def test_static_masks_are_those_of_separate_leaves(options):
    options = {"sparsity": 0.8} | options
    listed = zs.sparsity.static(**options, dense="head")
    made = zs.sparsity.static(**options, dense="head", stacked=RULE)
    # One program: operations that run one by one compile one by one.
    expected, found = jax.jit(
        lambda a, b: (listed.init(a).masks, made.init(b).masks), compiler_options=FAST
    )(separate(), stack(separate()))
    assert_equal(found, stack(expected))


@pytest.mark.quick
def test_a_flow_through_stacked_activations_cannot_overflow():
    def value(theta):
        (w,) = theta
        first, second = jnp.unstack(jnp.stack([w @ w @ w, w @ w @ w]))
        return (first + second)[0, 0]

    # Twice 2^180, which float32 cannot hold: 0.5 * 2^182.
    found = mantissa_and_exponent(value, [jnp.array([[2.0**60]])])
    assert tuple(map(float, found)) == (0.5, 182)


@pytest.mark.quick
def test_a_ranking_of_all_layers_leaves_each_layer_of_a_stack_a_weight():
    params = {"w": jnp.ones((6, 4, 4)) * 10.0 ** jnp.arange(6)[:, None, None]}
    for rule, alive in (((), 2), ("w", 6)):
        method = zs.sparsity.static(2 / 3, "magnitude", budget="global", stacked=rule)
        mask = jax.jit(method.init, compiler_options=FAST)(params).masks["w"]
        assert int(mask.sum()) == 32
        assert int(mask.any((1, 2)).sum()) == alive


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_the_rule(name):
    row = METHODS[name]
    needed = {
        "sparsity": 0.5,
        "total_steps": 1000,
        "n": 2,
        "m": 4,
        "drop": "magnitude",
        "grow": "gradient",
        "groups": {"columns": CHANNELS},
        "value_fn": loss,
    }
    takes = inspect.signature(row.make).parameters
    given = {k: v for k, v in needed.items() if k in takes} | dict(row.fixed)
    given.pop("last", None)
    assert row.make(**given, stacked=RULE).stacked == RULE


@pytest.mark.quick
def test_the_rule_counts_leading_axes():
    shape = (3, 4, 5, 6)
    # In a mapping the first match counts, also if it says that there is no stack.
    rule = {"a/shared": 0, "a/experts/*": 2, "a/*": 1}
    paths = ("a/shared", "a/experts/w", "a/w", "head")
    assert [stack_axes(rule, path, shape) for path in paths] == [0, 2, 1, 0]
    mixed = ("a/*", lambda path, shape: 2 if "expert" in path else 0)
    assert [stack_axes(mixed, path, shape) for path in paths] == [1, 2, 1, 0]
    assert stack_axes(lambda path, shape: len(shape) == 4, "w", shape) == 1
    assert stack_axes((), "w", shape) == 0


@pytest.mark.quick
def test_a_rule_that_does_not_fit_is_refused_by_name():
    params = stack(separate())
    with pytest.raises(
        ValueError, match=r"stacked='layer/\*' matches no leaf.*'layers/w'"
    ):
        sparse_leaves(params, stacked="layer/*")
    with pytest.raises(ValueError, match="leaves no kernel of two axes"):
        sparse_leaves({"layers": {"kernel": jnp.ones((3, 8, 8))}}, stacked={"*": 2})
    with pytest.raises(ValueError, match=r"head stacks layers along 3 leading axes"):
        sparse_leaves(params, stacked={"head": 3})
    with pytest.raises(ValueError, match=r"stacked\['head'\]=-1 must be an integer"):
        sparse_leaves(params, stacked={"head": -1})
    with pytest.raises(ValueError, match="beside those of a stack"):
        sparse_leaves({"bias": jnp.ones((3, 4))}, stacked="*")
    method = zs.sparsity.units(0.5, 100, HIDDEN, stacked="layers/w")
    with pytest.raises(ValueError, match=r"layers/offset.*must be stacks of as many"):
        method.init(params)
    with pytest.raises(ValueError, match=r"divide layers/w of shape \(8, 8\) along"):
        zs.sparsity.nm(1, 3, 1000, stacked=RULE, dense=("e*", "head")).init(params)


@pytest.mark.quick
def test_a_function_for_dense_leaves_sees_one_layer():
    seen = {}
    sparse_leaves(
        stack(separate()), lambda path, shape: seen.update({path: shape}), RULE
    )
    assert seen == {
        "embed": (8, 8),
        "experts": (8, 4),
        "head": (8, 4),
        "layers/w": (8, 8),
    }


def test_a_stack_compiles_to_no_more_than_its_layers():
    """The lowered program of an update, in lines; only the compiler makes it faster."""
    lines = []
    for params, rule in ((separate(), ()), (stack(separate()), RULE)):
        tx = zs.sparsify(optax.adam(0.1), zs.sparsity.rigl(0.7, 1000, stacked=rule))
        state = jax.eval_shape(tx.init, params)
        lowered = jax.jit(tx.update).lower(params, state, params)
        lines.append(lowered.as_text().count("\n"))
    assert lines[1] <= lines[0]


def test_a_ticket_is_pruned_by_layer():
    listed = separate()
    live = jax.tree.map(lambda x: jnp.ones(jnp.shape(x), bool), listed)
    prune = functools.partial(zs.sparsity.prune_ticket, sparsity=0.7, per_layer=True)
    expected, found = jax.jit(
        lambda x, m, y, n: (prune(x, m), prune(y, n, stacked=RULE)),
        compiler_options=FAST,
    )(listed, live, stack(listed), stack(live))
    assert_equal(found, stack(expected))


def scanned(params):
    def layer(h, w):
        return jax.nn.relu(h @ w["w"] + w["offset"]), None

    h, _ = jax.lax.scan(layer, jnp.ones((2, 8)) @ params["embed"], params["layers"])
    mixed = sum(h @ w for row in params["experts"] for w in jnp.unstack(row))
    return h @ params["head"] + mixed


def unrolled(params):
    h = jnp.ones((2, 8)) @ params["embed"]
    for w, b in zip(params["layers"]["w"], params["layers"]["offset"], strict=True):
        h = jax.nn.relu(h @ w + b)
    return h @ params["head"] + sum(h @ w for row in params["experts"] for w in row)


def test_the_report_has_a_row_for_each_layer():
    method = zs.sparsity.units(0.6, 100, HIDDEN, stacked=RULE)
    params, listed = stack(separate()), separate()
    masks = method.init(params).masks
    # The first layer is pruned by hand beyond its share: all but one input.
    first = masks["layers"]["w"].at[0].set(jnp.arange(8)[:, None] == 2)
    masks["layers"]["w"] = first
    apart = SparseLeaves.every(listed).treedef.unflatten(
        SparseLeaves.every(params, RULE).of(masks)
    )
    found = zs.sparsity.report(
        params, masks, forward=scanned, method=method, explored=masks, groups=HIDDEN
    )
    expected = zs.sparsity.report(
        listed, apart, forward=unrolled, explored=apart, groups=HIDDEN
    )

    def row(x):
        return {k: v for k, v in x.items() if k != "place"}

    rows = [row(x) for x in found.as_dict()["rows"]]
    assert rows == [row(x) for x in expected.as_dict()["rows"]]
    for name in ("sparsity", "inference_sparse", "inference_dense", "explored"):
        assert getattr(found, name) == getattr(expected, name)
    assert set(found.warnings) == set(expected.warnings)
    assert any(line.startswith("layers/w/0: 7 of 8 inputs") for line in found.warnings)
    assert "layers/w/1" in str(found)
    # A rule that is given goes before that of the method.
    assert len(zs.sparsity.report(params, masks, method=method, stacked=()).rows) == 5


def test_removable_counts_by_layer():
    listed, params = separate(), stack(separate())
    masks = zs.sparsity.units(0.5, 100, HIDDEN, stacked=RULE).init(params).masks
    apart = zs.sparsity.units(0.5, 100, HIDDEN).init(listed).masks
    expected = zs.sparsity.removable(listed, apart, HIDDEN)
    assert zs.sparsity.removable(params, masks, HIDDEN, RULE) == expected
    assert expected["layers/offset/1"] == 4


USUALLY_DENSE = [
    "attention/query/bias",
    "q_bias",
    "relative_position_bias_table",
    "encoder/LayerNorm_0/scale",
    "ln_1/weight",
    "BatchNorm/gamma",
    "rms_norm/w",
    "norm/weight",
    "position_embedding",
    "posembed_input/pos_embedding",
    "position_embeddings/embedding",
    "PositionalEncoding/table",
    "wpe/embedding",
]
USUALLY_SPARSE = [
    "attention/query/kernel",
    "PreNorm_0/Dense_0/kernel",
    "upscale/kernel",
    "token_embedding",
    "embed/embedding",
    "composer/w",
    "normal/w",
    "alpha/kernel",
]


def nested(path, x):
    for part in reversed(path.split("/")):
        x = {part: x}
    return x


@pytest.mark.quick
@pytest.mark.parametrize("path", USUALLY_DENSE)
def test_a_leaf_with_the_name_of_a_bias_is_told(path):
    params = nested(path, jnp.ones((4, 4))) | {"kernel": jnp.ones((4, 4))}
    pattern = f"sparse leaves include {path}. By name"
    with pytest.warns(UserWarning, match=pattern) as caught:
        zs.sparsity.static(0.5).init(params)
    assert caught[0].filename == __file__
    zs.sparsity.static(0.5, dense=path).init(params)
    zs.sparsity.static(0.5, stacked=path).init(params)


@pytest.mark.quick
@pytest.mark.parametrize("path", USUALLY_SPARSE)
def test_a_kernel_is_not_told(path):
    zs.sparsity.static(0.5).init(nested(path, jnp.ones((4, 4))))


@pytest.mark.parametrize(
    "name", [n for n in DYNAMIC if n not in ("units", "chex", "chase")]
)
def test_the_init_of_every_method_tells_once(name):
    """All leaves in one warning."""
    params = {
        "embed": jnp.ones((8, 8)),
        "a": {"bias": jnp.ones((4, 8)), "scale": jnp.ones((4, 8))},
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.eval_shape(zs.sparsify(optax.sgd(0.1), DYNAMIC[name]()).init, params)
    (told,) = caught
    assert str(told.message).startswith("the sparse leaves include a/bias, a/scale. By")
    assert "dense=('a/bias',)" in str(told.message)
