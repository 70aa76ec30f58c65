"""The models that the command line trains, as Flax Linen modules.

    model = create("resnet32", num_classes=10)
    params, model_state = initialize(model, jax.random.key(0), (32, 32, 3))
    logits = model.apply({"params": params, **model_state}, images, train=False)

Where `draws(model)`, a training step gives a key too, the same in all of its passes:
`model.apply(..., train=True, rngs={"dropout": key})`. The rest of the library works on
any pytree of parameters and knows none of these.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike

from zosam_jax import _check
from zosam_jax._types import Units
from zosam_jax.models import layers as layers
from zosam_jax.models import mlp as mlp
from zosam_jax.models import resnet as resnet
from zosam_jax.models import table
from zosam_jax.models import tinylm as tinylm
from zosam_jax.models import transformer as transformer
from zosam_jax.models import vgg as vgg
from zosam_jax.models import vit as vit
from zosam_jax.models import wide_resnet as wide_resnet


def names() -> tuple[str, ...]:
    """Returns the names that `create` knows.

    >>> names()[:5]
    ('resnet20', 'resnet32', 'resnet44', 'resnet56', 'vgg19')
    """
    return tuple(table.ROWS)


def options(name: str) -> tuple[str, ...]:
    """Returns the names of the options that `create` takes for a model.

    >>> options("vit")
    ('dropout', 'stochastic_depth', 'depth', 'patch')

    Raises:
      ValueError: `name` is not one of `names()`.
    """
    _check.one_of("model", name, table.ROWS)
    return table.ROWS[name].options


def create(
    name: str,
    *,
    num_classes: int,
    width: float = 1.0,
    image_size: int = 32,
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> nn.Module:
    """Returns a model by name.

    Parameters, with 10 classes and images of 32 pixels for the first three rows and
    1000 classes and 224 pixels for the next three:

    | name | parameters |
    |---|---|
    | `resnet20`, `resnet32`, `resnet44`, `resnet56` | 272,474 to 855,770 |
    | `vgg19` | 20,035,018 |
    | `wrn22-2`, `wrn28-10` | 1,079,642 and 36,479,194 |
    | `resnet18`, `resnet34`, `resnet50` | 11,689,512, 21,797,672 and 25,557,032 |
    | `deit-tiny`, `deit-small`, `deit-base` | 5,717,416, 22,050,664 and 86,567,656 |
    | the same with `distillation` | 5,910,800, 22,436,432 and 87,338,192 |
    | `vit`, for small images | 2,693,194 for 10 classes at 32 pixels |
    | `mlp` | 266,610 for MNIST |
    | `tinylm`, on token ids | 867,072 for 256 tokens and 64 positions |

    Args:
      name: One of `names()`.
      num_classes: Logits that go out; of a language model, the size of the vocabulary.
      width: Multiplier of the layers' widths, at least 1/16. ResNet-32 has 466,906
        parameters at width 1 and 1,860,522 at width 2, for 10 classes; the
        sparse-training literature uses the latter.
      image_size: Side of the images in pixels. It sets the ViT's patches, must be whole
        patches for a DeiT, and 16 or more for VGG. Others take any size.
      dtype: Type that the model computes in, e.g. `jnp.bfloat16`. Parameters, batch
        statistics and logits are float32.
      **options: Those in `options(name)`. `dropout` (rate; where it acts is the
        model's), `stochastic_depth` (rate at the last block, linear from 0 at the
        first), `zero_init_residual` (True: blocks start as identities), `stem` of the
        ImageNet ResNets ("imagenet", or "cifar": 3x3, no pooling), `distillation` of
        DeiT (True: a second token and head), `patch` (pixels), `depth` (blocks), of the
        language model `positions` ("learned", "rotary") and `tied` (True: the embedding
        is the head), `hidden` of the MLP (sizes).

    Raises:
      ValueError: An argument is unknown or out of range; the message names it.
    """
    row, fields = table.checked(name, options)
    _check.whole("num_classes", num_classes)
    _check.number("width", width, least=1 / 16)
    _check.whole("image_size", image_size)
    return row.make(
        num_classes=num_classes,
        width=width,
        image_size=image_size,
        dtype=dtype,
        **fields,
    )


def kind(name: str) -> str:
    """Returns what a model takes: "image" or "text".

    >>> kind("tinylm")
    'text'

    Raises:
      ValueError: `name` is not one of `names()`.
    """
    _check.one_of("model", name, table.ROWS)
    return "text" if name == "tinylm" else "image"


def dense_paths(name: str) -> tuple[str, ...]:
    """Returns glob patterns of the parameters that stay dense by default.

    They are patterns on "/"-joined key paths, for the `dense=` of a sparse method.
    Biases, tokens and the scales of normalisations (fewer than two axes) are dense
    anyway.

    * Convolutional networks and the MLP: none. An ERK budget keeps the stem, the head
      and the small shortcuts dense or almost dense by itself. For a uniform budget,
      pass `("stem/*",)`, as RigL does (arXiv:1911.11134), or also `"*/shortcut/*"` and
      `"head/*"`, as MEST and DSR do; for VGG `("conv1/*", "head/*")`.
    * ViT and DeiT: the position embedding, which is a table of additive vectors and has
      no fan-in. The patch embedding and the heads are pruned, as in SViTE.
    * `tinylm`: both embeddings, for the same reason; so a tied head, too.

    Raises:
      ValueError: `name` is not one of `names()`.
    """
    return table.checked(name, {})[0].dense


def unit_groups(name: str, *, width: float = 1.0, **options: Any) -> dict[str, Units]:
    """Returns the units that `zosam_jax.sparsity.units` can prune, by name.

    * ViT, DeiT, `tinylm`: "heads", which drop by their effect on the loss, and "mlp",
      the hidden units of the blocks' MLPs, which drop by the norms of their weights,
      both as in S2ViTE (arXiv:2106.04533).
    * ResNets: "channels", those between the two convolutions of a block; of ResNet-50
      "channels1" and "channels2", those that a block's second and third convolutions
      read. The others are read by several layers.
    * VGG: "channels1" to "channels16", those of each convolution.
    * MLP: "hidden1", ..., the units of each hidden layer.

    Args:
      name: One of `names()`.
      width: As in `create`; it sets the number of heads.
      **options: As in `create`.

    Raises:
      ValueError: An argument is unknown or out of range; the message names it.
    """
    row, fields = table.checked(name, options)
    _check.number("width", width, least=1 / 16)
    return row.units(width=width, **fields)


def draws(model: nn.Module) -> bool:
    """Returns whether the model draws random numbers where `train=True`.

    It then needs `rngs={"dropout": key}`. The same key gives the same draws, so that
    all passes of a step see one network. A key of the "rbg" kind compiles dropout in a
    third of the time that threefry takes. It is read off the fields `dropout` and
    `stochastic_depth`.

    >>> draws(create("vit", num_classes=10, dropout=0.1))
    True
    """
    rates = (getattr(model, name, 0) for name in ("dropout", "stochastic_depth"))
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def intermediates(model: nn.Module, variables: Any, x: jax.Array) -> dict[str, Any]:
    """Returns what every named layer gives out, in evaluation.

    Args:
      model: A model of `create`, or any Linen module called with `(x, train=False)`.
      variables: Its collections, `{"params": ..., ...}`.
      x: A batch.

    Returns:
      `{path: array}`, in the order in which the layers are called first; paths as those
      of the parameters, "stage1_block0/conv1", and "output" for the model's own. A
      layer that is called again, or gives out several arrays, has them at `path/0`,
      `path/1` and so on.
    """
    _, state = model.apply(
        variables, x, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    found = {}
    for path, value in traverse_util.flatten_dict(state["intermediates"]).items():
        name = "/".join(part for part in path if part != "__call__") or "output"
        arrays = jax.tree.leaves(value)
        if len(arrays) == 1:
            found[name] = arrays[0]
        else:
            found |= {f"{name}/{i}": array for i, array in enumerate(arrays)}
    return found


def initialize(
    model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]
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
      image_shape: Height, width and channels of one image; or `(length,)` of one
        sequence of token ids.

    Returns:
      `(params, model_state)`; `model_state` is `{}`, or `{"batch_stats": ...}` for a
      model with batch normalisation.

    Raises:
      ValueError: `image_shape` is not one or three positive integers, or does not fit.
    """
    if len(image_shape) not in (1, 3):
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width, channels), or "
            "(length,) for token ids."
        )
    for size in image_shape:
        _check.whole("image_shape", size)
    bits = jax.random.bits(key, (4,), jnp.uint32)
    rbg_key = jax.random.wrap_key_data(bits, impl="rbg")
    dtype = jnp.float32 if len(image_shape) == 3 else jnp.int32
    x = jnp.zeros((1, *image_shape), dtype)
    variables = jax.jit(lambda k: model.init(k, x, train=False))(rbg_key)
    model_state = dict(variables)
    return model_state.pop("params"), model_state
