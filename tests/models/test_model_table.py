"""Every row of the table of models: completeness, options, types, masks, units."""

import fnmatch
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from small_models import flat, nested

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.models import table
from zosam_jax.sparsity.leaves import sparse_leaves

FAMILIES = list(small_models.FAMILIES)


def every(name):
    """Returns the shapes of a model's parameters at its published size."""
    shape = table.MODELS[name].counts[0].shape
    model = models.create(name, num_classes=10, image_size=shape[0])
    dtype = jnp.float32 if models.kind(name) == "image" else jnp.int32
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    return small_models.shapes(model, x)["params"]


def lacks(name):
    """Returns what a row of the table still lacks, in words."""
    row = table.MODELS[name]
    if not row.counts:
        return ["a published number of parameters: add a Count to its row"]
    found = []
    if not row.paper or not row.label:
        found.append("its label and paper: fill in these fields of its row")
    unknown = sorted(set(row.options) - set(table.OPTIONS))
    if unknown:
        found.append(f"the check and help of {', '.join(unknown)}: add to OPTIONS")
    parameters = inspect.signature(row.make).parameters
    missing = [n for n in (*row.options, *row.fixed) if n not in parameters]
    if missing:
        found.append(f"the arguments {', '.join(missing)} of its constructor")
    side = row.counts[0].shape[0]
    kind = type(models.create(name, num_classes=10, image_size=side))
    if kind not in {family.kind for family in small_models.FAMILIES.values()}:
        found.append(
            "a small version, with its units and its reference in NumPy: add it to "
            "FAMILIES in tests/models/small_models"
        )
    return found


@pytest.mark.parametrize("name", models.names())
def test_rows_are_complete(name):
    missing = lacks(name)
    assert not missing, f"the model {name} lacks " + "; ".join(missing)


def test_the_completeness_test_says_what_is_missing(monkeypatch):
    row = table.MODELS["mlp"]
    monkeypatch.setitem(table.MODELS, "new", row._replace(counts=()))
    assert lacks("new") == ["a published number of parameters: add a Count to its row"]
    changed = row._replace(paper="", options=("hidden", "bias"))
    monkeypatch.setitem(table.MODELS, "new", changed)
    assert [words.partition(":")[0] for words in lacks("new")] == [
        "its label and paper",
        "the check and help of bias",
        "the arguments bias of its constructor",
    ]
    monkeypatch.setitem(small_models.FAMILIES, "mlp", small_models.FAMILIES["vgg"])
    monkeypatch.setitem(table.MODELS, "new", row)
    assert [words.partition(",")[0] for words in lacks("new")] == ["a small version"]


@pytest.mark.parametrize("name", models.names())
def test_kernels_are_sparse_by_default_and_all_else_is_dense(name):
    params = every(name)
    sparse = set(sparse_leaves(params, models.dense_paths(name)).paths)
    assert sparse == {path for path in flat(params) if path.endswith("/kernel")}


@pytest.mark.parametrize(
    ("family", "name"), [("tied", "tinylm"), ("deit", "deit-tiny")]
)
def test_dense_paths_fit_with_options_too(family, name):
    model = small_models.make(family)
    params = small_models.shapes(model, small_models.inputs(family))["params"]
    sparse = sparse_leaves(params, models.dense_paths(name)).paths
    assert set(sparse) == {path for path in flat(params) if path.endswith("/kernel")}


@pytest.mark.parametrize("name", models.names())
def test_units_are_those_of_the_model(name):
    params = every(name)
    groups = models.unit_groups(name)
    masks = jax.eval_shape(zs.sparsity.units(0.5, 100, groups).init, params).masks
    sparse = {path for path, mask in flat(masks).items() if mask.shape}
    patterns = [row.outgoing for row in groups.values()]
    assert sparse == {
        path for path in flat(params) if any(fnmatch.fnmatch(path, p) for p in patterns)
    }


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "tied"])
def test_a_pruned_unit_has_no_effect_whatever_makes_it(family):
    model, x = small_models.make(family), small_models.inputs(family)
    variables = small_models.drawn(model, x)
    before = flat(jax.tree.map(np.copy, variables["params"]))
    after = {path: np.copy(leaf) for path, leaf in before.items()}
    pruned = []
    for row in small_models.FAMILIES[family].units().values():
        for path in fnmatch.filter(before, row.outgoing):
            number = row.units or before[path].shape[-2]
            gone = np.arange(number) % 2 == 1
            star = path.removesuffix(row.outgoing.removeprefix("*"))
            for made in (incoming.replace("*", star) for incoming in row.incoming):
                columns = np.repeat(gone, before[made].shape[-1] // number)
                after[made] += 0.7 * columns
            pruned.append((path, np.repeat(gone, before[path].shape[-2] // number)))
    assert pruned
    # Last, as a kernel between two layers of units is changed and pruned.
    for path, rows in pruned:
        for leaves in (before, after):
            leaves[path][..., rows, :] = 0
    run = jax.jit(
        functools.partial(model.apply, train=False), compiler_options=small_models.QUICK
    )
    dense, found, expected = (
        np.asarray(run({**variables, "params": params}, x))
        for params in (
            variables["params"],
            nested(after),
            nested(before),
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(dense - expected).max() > 1e-3


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("basic", "vit")])
def test_gradients_reach_every_parameter(family):
    model, x = small_models.make(family), small_models.inputs(family)
    variables = small_models.drawn(model, x)
    rest = {k: v for k, v in variables.items() if k != "params"}

    def loss(params):
        # The batch's own statistics would take some gradients back to zero.
        return jnp.sum(jnp.sin(model.apply({"params": params, **rest}, x, train=False)))

    gradient = jax.jit(jax.grad(loss), compiler_options=small_models.QUICK)
    for path, slope in flat(gradient(variables["params"])).items():
        # A key's bias moves all scores of a query alike, and the softmax none.
        if not path.endswith("key/bias"):
            assert np.all(np.isfinite(slope)), path
            assert np.abs(slope).max() > 1e-3, path


@pytest.mark.parametrize("family", FAMILIES)
def test_types(family):
    model, x = (
        small_models.make(family, dtype=jnp.bfloat16),
        small_models.inputs(family),
    )
    variables = small_models.shapes(model, x)
    float32 = jnp.dtype("float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {float32}
    for train in (False, True):
        apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        out, state = jax.eval_shape(apply, variables, x)
        assert {leaf.dtype for leaf in jax.tree.leaves((out, state))} == {float32}
    found = jax.eval_shape(functools.partial(models.intermediates, model), variables, x)
    wide = {path for path, value in found.items() if value.dtype == float32}
    assert {"output"} <= wide <= {"output", "head", "distillation_head"}
    assert {v.dtype.name for k, v in found.items() if k not in wide} == {"bfloat16"}


@pytest.mark.parametrize("family", FAMILIES)
def test_intermediates_are_named_as_the_layers_are(family):
    model, x = small_models.make(family), small_models.inputs(family)
    variables = small_models.shapes(model, x)
    found = jax.eval_shape(functools.partial(models.intermediates, model), variables, x)
    layers = {path.rpartition("/")[0] for path in flat(variables["params"])}
    assert layers - {""} <= set(found)
    inner = {path.rpartition("/")[0] for path in layers} - {""}
    assert set(found) == (layers | inner | {"output"}) - {""}


def test_values_of_intermediates():
    model, x = small_models.make("mlp"), small_models.inputs("mlp")
    variables = small_models.drawn(model, x)
    found = models.intermediates(model, variables, x)
    p = variables["params"]
    hidden = (
        np.asarray(x).reshape(4, -1) @ p["hidden1"]["kernel"] + p["hidden1"]["bias"]
    )
    np.testing.assert_allclose(found["hidden1"], hidden, rtol=1e-5, atol=1e-5)
    expected = model.apply(variables, x, train=False)
    np.testing.assert_array_equal(found["output"], expected)
    assert list(found) == ["hidden1", "hidden2", "head", "output"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "resnet32",
            {"dropuot": 0.1},
            "resnet32 has no option 'dropuot'. Did you mean 'dropout'",
        ),
        ("resnet32", {"stem": "cifar"}, "resnet32 has no option 'stem'"),
        ("resnet18", {"stem": "cifer"}, "resnet18: stem='cifer' is unknown. Did you"),
        ("resnet50", {"zero_init_residual": 1}, "zero_init_residual=1 must be True or"),
        ("deit-tiny", {"distillation": "yes"}, "distillation='yes' must be True or"),
        ("vit", {"dropout": 1.0}, "vit: dropout=1.0 must be"),
        ("vit", {"stochastic_depth": -0.1}, "stochastic_depth=-0.1 must be"),
        ("vit", {"patch": 5}, "32 is not a whole number of patches of 5"),
        ("deit-tiny", {"image_size": 28}, "28 is not a whole number of patches of 16"),
        ("tinylm", {"depth": 0}, "tinylm: depth=0 must be an integer >= 1"),
        ("tinylm", {"positions": "sine"}, "tinylm: positions='sine' is unknown"),
        ("mlp", {"hidden": 300}, r"hidden=300 must be a tuple of sizes"),
        ("mlp", {"hidden": (300, 0)}, "mlp: hidden=0 must be an integer"),
        ("vgg19", {"image_size": 8}, "image_size=8 is too small for VGG"),
    ],
)
def test_wrong_options_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **{"num_classes": 10, **arguments})


def test_models_and_options_are_listed():
    text = models.describe()
    for name, row in table.MODELS.items():
        assert f"{name}: {row.label}, {row.counts[0].parameters:,} parameters" in text
    for name, option in table.OPTIONS.items():
        assert f"\n{name}: {option.help}" in text
        assert any(name in models.options(model) for model in models.names()), name


def test_the_nearest_model_is_suggested():
    with pytest.raises(ValueError, match="Did you mean 'vgg19'"):
        models.options("vgg")


def test_inputs_that_do_not_fit_are_refused():
    model = models.create("tinylm", num_classes=9)
    variables = small_models.shapes(model, jnp.zeros((1, 8), jnp.int32))
    apply = functools.partial(model.apply, train=False)
    with pytest.raises(ValueError, match="9 positions are more than the 8"):
        jax.eval_shape(apply, variables, jnp.zeros((1, 9), jnp.int32))
    with pytest.raises(ValueError, match=r"token ids; got float32 \(1, 8\)"):
        jax.eval_shape(apply, variables, jnp.zeros((1, 8)))
    vgg = models.create("vgg19", num_classes=9)
    with pytest.raises(ValueError, match="image_size=8 is too small"):
        small_models.shapes(vgg, jnp.zeros((1, 8, 8, 3)))


def test_a_token_out_of_range_is_not_another_token():
    model = models.create("tinylm", num_classes=5, depth=1, width=0.25)
    tokens = jnp.asarray([[0, 1, 5]])
    variables = small_models.drawn(model, tokens)
    out = np.asarray(
        jax.jit(functools.partial(model.apply, train=False))(variables, tokens)
    )
    assert np.all(np.isnan(out[0, 2]))
