"""Parameters and multiply-adds against the published numbers."""

import math

import jax
import jax.numpy as jnp
import pytest
import small_models

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.models import table


def counts(name, classes, shape, **options):
    """Returns the parameters, and the multiply-adds for one example."""
    side = shape[0] if len(shape) == 3 else 32
    model = models.create(name, num_classes=classes, image_size=side, **options)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.int32 if len(shape) == 1 else jnp.float32)
    rest = dict(small_models.shapes(model, x))
    params = rest.pop("params")
    x, rest = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (x, rest))
    found = zs.sparsity.report(
        params,
        jax.tree.map(lambda _: True, params),
        forward=lambda p: model.apply({"params": p, **rest}, x, train=False),
    )
    size = sum(math.prod(s.shape) for s in jax.tree.leaves(params))
    assert found.inference_dense is not None
    return size, found.inference_dense / 2


CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, count) for name, row in table.MODELS.items() for count in row.counts],
)
def test_parameters(name, count):
    found, _ = counts(name, count.classes, count.shape, **count.options)
    assert found == count.parameters


@pytest.mark.parametrize(
    ("name", "shape", "options", "giga", "digit"),
    [
        ("resnet18", IMAGENET, {}, 1.81, 0.01),
        ("resnet34", IMAGENET, {}, 3.66, 0.01),
        ("resnet50", IMAGENET, {}, 4.09, 0.01),
        ("deit-tiny", IMAGENET, {}, 1.3, 0.1),
        ("deit-small", IMAGENET, {}, 4.6, 0.1),
        # torchvision's vit_b_16, the same network.
        ("deit-base", IMAGENET, {}, 17.56, 0.01),
        ("resnet20", CIFAR, {}, 0.0408, 1e-4),
        ("resnet56", CIFAR, {}, 0.126, 1e-3),
        ("resnet32", CIFAR, {"width": 2}, 0.2756, 1e-4),
        ("vgg19", CIFAR, {}, 0.398, 1e-3),
        ("wrn28-10", CIFAR, {}, 5.24, 0.01),
    ],
)
def test_multiply_adds(name, shape, options, giga, digit):
    classes = 1000 if shape == IMAGENET else 10
    _, macs = counts(name, classes, shape, **options)
    assert macs / 1e9 == pytest.approx(giga, abs=digit / 2)


@pytest.mark.parametrize(("depth", "factor", "name"), [(22, 2, "wrn22-2")])
def test_wide_resnet_in_closed_form(depth, factor, name):
    n, total, channels = (depth - 4) // 6, 9 * 3 * 16, 16
    for out in (16 * factor, 32 * factor, 64 * factor):
        total += 2 * channels + 9 * channels * out + channels * out
        total += (n - 1) * (2 * out + 9 * out * out) + n * (2 * out + 9 * out * out)
        channels = out
    found, _ = counts(name, 10, CIFAR)
    assert found == total + 2 * channels + 10 * channels + 10


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_language_model_in_closed_form(tied, positions):
    vocabulary, length, d, depth = 256, 64, 128, 4
    found, macs = counts(
        "tinylm", vocabulary, (length,), tied=tied, positions=positions
    )
    block = 4 * (d * d + d) + 8 * d * d + 5 * d + 4 * d
    expected = vocabulary * d * (1 if tied else 2) + depth * block + 2 * d
    assert found == expected + (length * d if positions == "learned" else 0)
    linear = length * (12 * d * d * depth + d * vocabulary)
    assert macs == linear + depth * 2 * length * length * d
