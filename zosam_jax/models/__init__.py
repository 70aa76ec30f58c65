"""The models that the command line trains, as Flax Linen modules.

    model = create("resnet32", num_classes=10)
    params, model_state = initialize(model, jax.random.key(0), (32, 32, 3))
    logits = model.apply({"params": params, **model_state}, images, train=False)

The rest of the library works on any pytree of parameters and knows none of these.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from zosam_jax import _check
from zosam_jax._types import Units
from zosam_jax.models import resnet, vit

_RESNET_DEPTHS = {"resnet20": 20, "resnet32": 32, "resnet44": 44, "resnet56": 56}
_NAMES = (*_RESNET_DEPTHS, "vit")


def names() -> tuple[str, ...]:
    """Returns the names that `create` knows.

    >>> names()
    ('resnet20', 'resnet32', 'resnet44', 'resnet56', 'vit')
    """
    return _NAMES


def create(
    name: str,
    *,
    num_classes: int,
    width: float = 1.0,
    image_size: int = 32,
    dtype: DTypeLike = jnp.float32,
) -> nn.Module:
    """Returns a model by name.

    Args:
      name: One of `names()`.
      num_classes: Logits that go out.
      width: Multiplier of the layers' widths, at least 1/16. ResNet-32 has 466,906
        parameters at width 1 and 1,860,522 at width 2, for 10 classes; the
        sparse-training literature uses the latter.
      image_size: Side of the images in pixels. It sets the ViT's patches; a ResNet
        takes images of any size.
      dtype: Type that the model computes in, e.g. `jnp.bfloat16`. Parameters, batch
        statistics and logits are float32.

    Raises:
      ValueError: An argument is unknown or out of range; the message names it.
    """
    _check.one_of("model", name, _NAMES)
    _check.whole("num_classes", num_classes)
    _check.number("width", width, least=1 / 16)
    _check.whole("image_size", image_size)
    if name == "vit":
        patch = vit.patch_size(image_size)
        heads, features = vit.heads_and_width(width)
        return vit.ViT(num_classes, patch, heads, features, dtype=dtype)
    blocks = (_RESNET_DEPTHS[name] - 2) // 6
    return resnet.ResNet(blocks, num_classes, width, dtype)


def dense_paths(name: str) -> tuple[str, ...]:
    """Returns glob patterns of the parameters that stay dense by default.

    They are patterns on "/"-joined key paths, for the `dense=` of a sparse method.
    Biases and the scales of normalisations (fewer than two axes) are dense anyway.

    * ResNets: none. An ERK budget keeps the stem, the head and the small shortcuts
      dense or almost dense by itself. For a uniform budget, pass `("stem/*",)`, as RigL
      does (arXiv:1911.11134), or also `"*/shortcut/*"` and `"head/*"`, as MEST does.
    * ViT: the position embedding, which is a table of additive vectors and has no
      fan-in.

    Raises:
      ValueError: `name` is not one of `names()`.
    """
    _check.one_of("model", name, _NAMES)
    return ("position_embedding",) if name == "vit" else ()


def unit_groups(name: str, *, width: float = 1.0) -> dict[str, Units]:
    """Returns the units that `zosam_jax.sparsity.units` can prune, by name.

    * ViT: "heads", which drop by their effect on the loss, and "mlp", the hidden units
      of the blocks' MLPs, which drop by the norms of their weights, both as in S2ViTE
      (arXiv:2106.04533).
    * ResNets: "channels", those between the two convolutions of a block. The others are
      read by several layers.

    Args:
      name: One of `names()`.
      width: As in `create`; it sets the number of heads.

    Raises:
      ValueError: An argument is unknown or out of range; the message names it.
    """
    _check.one_of("model", name, _NAMES)
    _check.number("width", width, least=1 / 16)
    if name == "vit":
        inputs = [f"*/attention/{n}" for n in ("query", "key", "value")]
        return {
            "heads": Units(
                "*/attention/out/kernel",
                vit.heads_and_width(width)[0],
                tuple(f"{n}/{leaf}" for n in inputs for leaf in ("kernel", "bias")),
                "taylor",
            ),
            "mlp": Units("*/mlp2/kernel", incoming=("*/mlp1/kernel", "*/mlp1/bias")),
        }
    channels = ("*/conv1/kernel", "*/norm1/scale", "*/norm1/bias")
    return {"channels": Units("*/conv2/kernel", incoming=channels)}


def initialize(
    model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]
) -> tuple[Any, dict[str, Any]]:
    """Returns the initial parameters and the rest of the model's variables.

    `key` seeds a generator of JAX's `rbg` kind, from which the model's own initialisers
    draw, in one compiled program. ResNet-32 compiles in 2 s; with JAX's default kind
    (threefry) it takes 3 s on JAX 0.10 and 12 s on 0.12. The same key gives the same
    values in every run, whatever the sharding of later steps; JAX does not promise that
    another kind of device (a TPU) or another version of XLA draws the same. A run is
    repeated exactly elsewhere from its checkpoint, not from its seed.

    Args:
      model: A model of `create`, or any Linen module that is called with
        `(images, train=False)`.
      key: A random key, typed or raw.
      image_shape: Height, width and channels of one image.

    Returns:
      `(params, model_state)`; `model_state` is `{}`, or `{"batch_stats": ...}` for a
      model with batch normalisation.

    Raises:
      ValueError: `image_shape` is not three positive integers, or does not fit.
    """
    if len(image_shape) != 3:
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width, channels)."
        )
    for size in image_shape:
        _check.whole("image_shape", size)
    bits = jax.random.bits(key, (4,), jnp.uint32)
    rbg_key = jax.random.wrap_key_data(bits, impl="rbg")
    images = jnp.zeros((1, *image_shape))
    variables = jax.jit(lambda k: model.init(k, images, train=False))(rbg_key)
    model_state = dict(variables)
    return model_state.pop("params"), model_state
