"""The ResNets and the ViT: sizes, outputs against NumPy, types, initial values."""

import fnmatch
import math

import jax
import jax.numpy as jnp
import model_references as references
import numpy as np
import pytest
import small_models
from jax import export

from zosam_jax import models
from zosam_jax.models import resnet, vit


def shapes(name, image=(32, 32, 3), **kwargs):
    model = models.create(name, image_size=image[0], **{"num_classes": 10, **kwargs})
    x = jnp.zeros((1, *image))
    if name == "tinylm":
        x = jnp.zeros((1, 64), jnp.uint8)
    return jax.eval_shape(lambda k: model.init(k, x, train=False), jax.random.key(0))


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def randomize(tree, rng):
    """Returns random values, so that every parameter matters to the output."""
    return jax.tree.map(
        lambda x: rng.normal(0.3, 0.2, x.shape).astype(np.float32) * (x.size > 0), tree
    )


# --- sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 0.5, 1.75])
@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56"])
def test_resnet_sizes_in_closed_form(name, width):
    a, b, c = (round(k * width) for k in (16, 32, 64))
    n = (int(name[-2:]) - 2) // 6

    def block(i, o):
        return 9 * i * o + 9 * o * o + 4 * o

    expected = 9 * 3 * a + 2 * a + 10 * c + 10
    expected += n * block(a, a) + (n - 1) * (block(b, b) + block(c, c))
    expected += block(a, b) + a * b + 2 * b + block(b, c) + b * c + 2 * c
    variables = shapes(name, width=width)
    assert count(variables["params"]) == expected
    norms = 2 * n * (a + b + c) + a + b + c  # one per norm: stem, blocks, two shortcuts
    assert count(variables["batch_stats"]) == 2 * norms


@pytest.mark.parametrize(("side", "width", "d"), [(8, 1, 192), (32, 2, 384)])
def test_vit_size_in_closed_form(side, width, d):
    variables = shapes("vit", (side, side, 3), width=width)
    assert set(variables) == {"params"}
    patch = {8: 2, 32: 4}[side]
    tokens = (side // patch) ** 2
    block = 4 * (d * d + d) + 8 * d * d + 5 * d + 4 * d
    expected = patch * patch * 3 * d + d + tokens * d + 6 * block + 2 * d + 10 * d + 10
    assert count(variables["params"]) == expected


@pytest.mark.parametrize(
    ("side", "patch"), [(8, 2), (16, 2), (28, 2), (32, 4), (64, 8), (96, 12), (224, 16)]
)
def test_patch_size(side, patch):
    assert vit.patch_size(side) == patch


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1, (3, 192)), (2, (6, 384)), (1 / 3, (1, 64)), (0.5, (2, 96)), (1 / 16, (1, 12))],
)
def test_heads_and_width(width, expected):
    assert vit.heads_and_width(width) == expected


# --- forward passes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_resnet():
    model = resnet.ResNet(blocks=2, num_classes=5, width=0.25)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 8, 8, 3)).astype(np.float32)
    variables = jax.eval_shape(
        lambda k: model.init(k, images[:1], train=False), jax.random.key(0)
    )
    return model, randomize(variables["params"], rng), variables, images


def statistics(variables):
    return jax.tree.map(
        lambda x: np.linspace(0.5, 2, x.size, dtype=np.float32),
        variables["batch_stats"],
    )


def test_resnet_evaluates_as_numpy_does(small_resnet):
    model, params, variables, images = small_resnet
    stats = statistics(variables)
    apply = jax.jit(lambda p, s, x: model.apply(_join(p, s), x, train=False))
    norms = references.Norms(params, stats, train=False)
    expected = references.cifar_resnet(params, norms, images.astype(np.float64), 2)
    np.testing.assert_allclose(apply(params, stats, images), expected, rtol=2e-4)


def test_resnet_trains_as_numpy_does(small_resnet):
    model, params, variables, images = small_resnet
    stats = statistics(variables)
    apply = jax.jit(
        lambda p, s, x: model.apply(_join(p, s), x, train=True, mutable=["batch_stats"])
    )
    logits, state = apply(params, stats, images)
    norms = references.Norms(params, stats, train=True)
    expected = references.cifar_resnet(params, norms, images.astype(np.float64), 2)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    after = small_models.flat(state["batch_stats"])
    assert len(after) == 2 * len(norms.after)
    for path, (mean, var) in norms.after.items():
        np.testing.assert_allclose(after[f"{path}/mean"], mean, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(after[f"{path}/var"], var, rtol=1e-3, atol=1e-3)


def _join(params, stats):
    return {"params": params, "batch_stats": stats}


# --- types ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "vit"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_state(name):
    model = models.create(name, num_classes=10, image_size=8, dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
    variables = shapes(name, (8, 8, 1), dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def run(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, state = jax.eval_shape(run, variables, images)
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(state)} <= {jnp.dtype("float32")}
    program = str(jax.make_jaxpr(run)(variables, images))
    heavy = "conv_general_dilated" if name == "resnet20" else "dot_general"
    lines = [line for line in program.splitlines() if f" {heavy}[" in line]
    results = [line.split("=")[0] for line in lines]
    # float32: the ViT's head and the attention scores of its six blocks. The ResNet's
    # head is no convolution.
    in_float32 = {"resnet20": 0, "vit": 1 + 6}[name]
    assert len(results) > 20
    assert sum("bf16" not in r for r in results) == in_float32


def test_bfloat16_is_near_float32(small_resnet):
    model, params, variables, images = small_resnet
    stats = jax.tree.map(lambda x: np.ones(x.shape, np.float32), variables)
    stats = stats["batch_stats"]

    def apply(model):
        run = jax.jit(lambda v, x: model.apply(v, x, train=False))
        return run(_join(params, stats), images)

    half = apply(model.clone(dtype=jnp.bfloat16))
    np.testing.assert_allclose(half, apply(model), rtol=0.05)


# --- initialize ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def initial():
    model = models.create("resnet20", num_classes=100)
    keys = [jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(1)]
    return [models.initialize(model, key, (32, 32, 3)) for key in keys]


def test_initial_values_have_the_stated_distribution(initial):
    params, model_state = initial[0]
    leaves = small_models.flat(params)
    seen = set()
    for path, leaf in leaves.items():
        if leaf.ndim == 1:
            assert np.all(np.asarray(leaf) == (1 if path.endswith("scale") else 0))
            continue
        kh_kw = math.prod(leaf.shape[:-2])
        std = 0.01 if path == "head/kernel" else math.sqrt(2 / (kh_kw * leaf.shape[-1]))
        z = np.asarray(leaf, np.float64).ravel() / std
        assert abs(z.mean()) < 5 / math.sqrt(z.size), path
        assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / z.size), path
        seen.add(z[:4].tobytes())
    assert len(seen) == sum(leaf.ndim > 1 for leaf in leaves.values())
    stats = small_models.flat(model_state["batch_stats"])
    for path, leaf in stats.items():
        assert np.all(np.asarray(leaf) == (1 if path.endswith("var") else 0))


def test_a_key_decides_the_initial_values(initial):
    typed, raw, other = (np.asarray(p["stem"]["kernel"]) for p, _ in initial)
    np.testing.assert_array_equal(typed, raw)
    assert not np.any(typed == other)


def test_initialize_gives_a_vit_no_other_state():
    model = models.create("vit", num_classes=10, image_size=8, width=1 / 3)
    params, model_state = models.initialize(model, jax.random.key(0), (8, 8, 1))
    assert model_state == {}
    assert params["position_embedding"].shape == (16, 64)
    assert np.std(params["head"]["kernel"]) == pytest.approx(0.0176, rel=0.1)


# --- names and arguments -------------------------------------------------------------


@pytest.mark.parametrize("name", models.names())
def test_dense_paths_name_parameters(name):
    paths = small_models.flat(shapes(name)["params"])
    for pattern in models.dense_paths(name):
        assert fnmatch.filter(paths, pattern)
    embeddings = [p for p in paths if "embedding" in p]
    for path in embeddings:
        assert any(fnmatch.fnmatch(path, p) for p in models.dense_paths(name))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "resnet23"}, "model='resnet23' is unknown. Did you mean 'resnet"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"width": 0.01}, r"width=0.01 must be .* >= 0.0625"),
        ({"width": float("nan")}, "width=nan"),
        ({"image_size": 7.5}, "image_size=7.5 must be an integer"),
        ({"name": "vit", "image_size": 7}, "image_size=7 has no divisor"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        models.create(**{"name": "resnet20", "num_classes": 10, **kwargs})


def test_unknown_model_has_no_dense_paths():
    with pytest.raises(ValueError, match="Did you mean 'vit'"):
        models.dense_paths("vitt")


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 0), (0, 8, 3)])
def test_bad_image_shape_is_named(shape):
    with pytest.raises(ValueError, match="image_shape"):
        models.initialize(models.create("vit", num_classes=2), jax.random.key(0), shape)


def test_images_that_a_vit_cannot_cut_are_refused():
    model = models.create("vit", num_classes=2, image_size=32)
    with pytest.raises(ValueError, match=r"patches of 4.*30 x 32"):
        models.initialize(model, jax.random.key(0), (30, 32, 3))


@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_models_take_batches_of_any_size_at_once(family):
    """As an exported program needs it: the size is a symbol, not a number."""
    model, x = small_models.make(family), small_models.inputs(family)
    (batch,) = export.symbolic_shape("batch")
    found = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False),
        small_models.shapes(model, x),
        jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype),
    )
    assert found.shape == (batch, *found.shape[1:-1], small_models.CLASSES)
