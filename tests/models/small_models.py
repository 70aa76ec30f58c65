"""A small model of every family, with weights unlike those of any initializer."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import model_references as references
import numpy as np
from flax import traverse_util

from zosam_jax import models
from zosam_jax._types import Units

CLASSES = 5
_STAGES = ((8, 1), (4, 2), (4, 1), (4, 1), (4, 1))

# `compiler_options` for programs that run once; they compile in half the time.
QUICK = {"xla_backend_optimization_level": 0}


class Family(NamedTuple):
    """A small model, and what its outputs and its units are compared with.

    Attributes:
      kind: The constructor.
      arguments: Its arguments, beside the number of classes.
      shape: Shape of the input; two axes are token ids.
      units: Constructor of its units.
      reference: `(params, norms, x) -> logits` in NumPy, as in evaluation; `norms` are
        the `Norms` of `model_references`.
    """

    kind: Any
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    units: Callable[[], dict[str, Units]]
    reference: Callable[[Any, references.Norms, np.ndarray], np.ndarray]


def _logits(reference, *sizes):
    """Returns the reference of a model without batch normalization."""
    return lambda params, norms, x: reference(params, x, *sizes)


_ATTENTION = partial(models.transformer.units, 2)

FAMILIES: dict[str, Family] = {
    "basic": Family(
        models.resnet.ResNet,
        {"blocks": (1, 2), "channels": (6, 10), "stem": "imagenet"},
        (8, 21, 21, 3),
        models.resnet.units,
        partial(references.imagenet_resnet, blocks=(1, 2)),
    ),
    "bottleneck": Family(
        models.resnet.ResNet,
        {
            "blocks": (1, 2),
            "channels": (6, 10),
            "bottleneck": True,
            "stem": "imagenet",
        },
        (8, 24, 24, 3),
        partial(models.resnet.units, True),
        partial(references.imagenet_resnet, blocks=(1, 2)),
    ),
    "wide": Family(
        models.wide_resnet.WideResNet,
        {"blocks": 1, "factor": 2, "width": 0.25},
        (8, 6, 6, 3),
        models.wide_resnet.units,
        partial(references.wide_resnet, blocks=1),
    ),
    "vgg": Family(
        models.vgg.VGG,
        {"stages": _STAGES},
        (8, 16, 16, 3),
        partial(models.vgg.units, _STAGES),
        partial(references.vgg, counts=[count for _, count in _STAGES]),
    ),
    "vit": Family(
        models.vit.ViT,
        {"patch": 2, "heads": 2, "features": 8, "depth": 2},
        (4, 8, 8, 3),
        _ATTENTION,
        _logits(references.vit, 2, 2, 2),
    ),
    "deit": Family(
        models.vit.DeiT,
        {"patch": 4, "heads": 2, "features": 8, "depth": 2, "distillation": True},
        (4, 8, 8, 3),
        _ATTENTION,
        lambda params, norms, x: np.mean(references.deit(params, x, 4, 2, 2), axis=0),
    ),
    "mlp": Family(
        models.mlp.MLP,
        {"hidden": (8, 6)},
        (4, 5, 5, 1),
        partial(models.mlp.units, (8, 6)),
        _logits(references.mlp, 2),
    ),
    "tinylm": Family(
        models.tinylm.TinyLM,
        {"heads": 2, "features": 8, "depth": 2},
        (4, 6),
        _ATTENTION,
        _logits(references.tinylm, 2, 2),
    ),
    "tied": Family(
        models.tinylm.TinyLM,
        {"heads": 2, "features": 8, "depth": 2, "tied": True, "positions": "rotary"},
        (4, 6),
        _ATTENTION,
        _logits(references.tinylm, 2, 2),
    ),
}


def make(family: str, **arguments: Any) -> Any:
    """Returns the model of a family."""
    row = FAMILIES[family]
    return row.kind(num_classes=CLASSES, **{**row.arguments, **arguments})


def inputs(family, seed=0):
    """Returns a batch for a family."""
    shape, rng = FAMILIES[family].shape, np.random.default_rng(seed)
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
    init = partial(model.init, train=False)
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
