"""The variables of a model: initial values, outputs of its layers, random draws."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from zosam_jax import _check
from zosam_jax._types import Key, Params, PyTree


def initialize(
    model: nn.Module, key: Key, image_shape: tuple[int, ...]
) -> tuple[Params, dict[str, PyTree]]:
    """Returns the initial parameters and the other variables of a model.

    The values are drawn in one compiled program by a generator of JAX's kind `rbg`,
    which `key` seeds. ResNet-32 compiles in 2 s; with JAX's default kind (threefry) it
    takes 3 s on JAX 0.10 and 12 s on 0.12. The same key gives the same values in every
    run on one kind of device. JAX does not promise this across kinds of devices or
    versions of XLA: to repeat a run exactly elsewhere, start from its checkpoint.

    Args:
      model: A model of `create`, or any Linen module that is called with
        `(images, train=False)`.
      key: A random key, typed or raw.
      image_shape: Shape of one example: (H, W, C) of an image, (T,) of token ids.

    Returns:
      `(params, model_state)`. `model_state` is `{"batch_stats": ...}` for a model with
      batch normalization and `{}` for others.

    Raises:
      ValueError: `image_shape` is not one or three positive integers, or does not fit.

    >>> from zosam_jax import models
    >>> model = models.create("mlp", num_classes=10, hidden=(4,))
    >>> params, model_state = models.initialize(model, jax.random.key(0), (8, 8, 1))
    >>> params["hidden1"]["kernel"].shape, model_state
    ((64, 4), {})
    """
    if len(image_shape) not in (1, 3):
        raise ValueError(
            f"image_shape={image_shape!r} must be (height, width, channels), or "
            "(length,) for token ids."
        )
    for size in image_shape:
        _check.whole("image_shape", size)
    # An rbg key has four words, and a threefry key two: four are drawn.
    bits = jax.random.bits(key, (4,), jnp.uint32)
    rbg_key = jax.random.wrap_key_data(bits, impl="rbg")
    dtype = jnp.float32 if len(image_shape) == 3 else jnp.int32
    # Initial values depend on the shape of an example only.
    x = jnp.zeros((1, *image_shape), dtype)
    variables = jax.jit(lambda k: model.init(k, x, train=False))(rbg_key)
    model_state = dict(variables)
    return model_state.pop("params"), model_state


def draws(model: nn.Module) -> bool:
    """Returns whether the model draws random numbers if `train=True`.

    Such a model needs `rngs={"dropout": key}`. The same key gives the same draws, so
    that all passes of a step can use one network. Dropout compiles in a third of the
    time with a key of the kind "rbg". The answer depends on the fields `dropout` and
    `stochastic_depth` of the model.

    >>> from zosam_jax import models
    >>> models.draws(models.create("vit", num_classes=10, dropout=0.1))
    True
    """
    rates = (getattr(model, name, 0) for name in ("dropout", "stochastic_depth"))
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def intermediates(
    model: nn.Module, variables: Mapping[str, PyTree], x: jax.Array
) -> dict[str, jax.Array]:
    """Returns the outputs of all named layers in evaluation mode.

    Args:
      model: A model of `create`, or any Linen module that is called with
        `(x, train=False)`.
      variables: Its variables, `{"params": ..., ...}`.
      x: A batch, `[N, H, W, C]` or `[N, T]`.

    Returns:
      `{path: array}` in the order of the first calls. Paths are the
      parameters' paths, as "stage1_block0/conv1", and "output" is the model's own
      output. The outputs of a layer that is called several times, or has several
      outputs, are at `path/0`, `path/1`, ...
    """
    _, state = model.apply(
        variables, x, train=False, capture_intermediates=True, mutable=["intermediates"]
    )
    found: dict[str, jax.Array] = {}
    for path, value in traverse_util.flatten_dict(state["intermediates"]).items():
        # Flax adds the method's name; all layers here have one method.
        name = "/".join(part for part in path if part != "__call__") or "output"
        arrays = jax.tree.leaves(value)
        if len(arrays) == 1:
            found[name] = arrays[0]
        else:
            found |= {f"{name}/{i}": array for i, array in enumerate(arrays)}
    return found
