"""A small model of every family, with weights unlike those of any initializer."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zosam_jax import models

CLASSES = 5
_STAGES = ((8, 1), (4, 2), (4, 1), (4, 1), (4, 1))

# `compiler_options` for programs that run once; they compile in half the time.
QUICK = {"xla_backend_optimization_level": 0}

# For each family: the constructor, its arguments, and the shape of the input.
FAMILIES: dict[str, Any] = {
    "basic": (
        models.resnet.ResNet,
        {"blocks": (1, 2), "channels": (6, 10), "stem": "imagenet"},
        (8, 21, 21, 3),
    ),
    "bottleneck": (
        models.resnet.ResNet,
        {
            "blocks": (1, 2),
            "channels": (6, 10),
            "bottleneck": True,
            "stem": "imagenet",
        },
        (8, 24, 24, 3),
    ),
    "wide": (
        models.wide_resnet.WideResNet,
        {"blocks": 1, "factor": 2, "width": 0.25},
        (8, 6, 6, 3),
    ),
    "vgg": (models.vgg.VGG, {"stages": _STAGES}, (8, 16, 16, 3)),
    "vit": (
        models.vit.ViT,
        {"patch": 2, "heads": 2, "features": 8, "depth": 2},
        (4, 8, 8, 3),
    ),
    "deit": (
        models.vit.DeiT,
        {"patch": 4, "heads": 2, "features": 8, "depth": 2, "distillation": True},
        (4, 8, 8, 3),
    ),
    "mlp": (models.mlp.MLP, {"hidden": (8, 6)}, (4, 5, 5, 1)),
    "tinylm": (
        models.tinylm.TinyLM,
        {"heads": 2, "features": 8, "depth": 2},
        (4, 6),
    ),
    "tied": (
        models.tinylm.TinyLM,
        {"heads": 2, "features": 8, "depth": 2, "tied": True, "positions": "rotary"},
        (4, 6),
    ),
}


def make(family: str, **arguments: Any) -> Any:
    """Returns the model of a family."""
    kind, own, _ = FAMILIES[family]
    return kind(num_classes=CLASSES, **{**own, **arguments})


def groups(family: str) -> Any:
    """Returns the units of a family, by the functions named in the table of models."""
    own = FAMILIES[family][1]
    if family in ("basic", "bottleneck"):
        return models.resnet.units(family == "bottleneck")
    if family == "vgg":
        return models.vgg.units(own["stages"])
    if family == "mlp":
        return models.mlp.units(own["hidden"])
    if family == "wide":
        return models.wide_resnet.units()
    return models.transformer.units(own["heads"])


def inputs(family, seed=0):
    """Returns a batch for a family."""
    shape, rng = FAMILIES[family][2], np.random.default_rng(seed)
    if len(shape) == 2:
        return jnp.asarray(rng.integers(CLASSES, size=shape), jnp.int32)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def flat(tree) -> dict[str, Any]:
    """Returns the leaves of a tree of dictionaries by their paths."""
    return traverse_util.flatten_dict(dict(tree), sep="/")


def nested(leaves) -> dict[str, Any]:
    """Returns the tree of the leaves that `flat` returns."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def shapes(model, x):
    """Returns the shapes of the variables."""
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), x)


def drawn(model, x, seed=0):
    """Returns random variables that keep activations near 1."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        if path.endswith(("/var", "/scale")):
            return rng.uniform(0.5, 1.5, shape)
        if path.endswith("kernel"):
            return rng.normal(size=shape) * math.sqrt(1.5 / math.prod(shape[:-1]))
        return rng.normal(size=shape) * 0.3

    leaves = flat(shapes(model, x)).items()
    return nested({path: draw(path, s.shape).astype(np.float32) for path, s in leaves})
