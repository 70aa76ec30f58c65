"""Heads that give every pixel its logits: fully convolutional ones, and Segmenter's."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

SKIPS = 2
"""Stages before the last whose features a fully convolutional head reads, as FCN-8s."""


def upsampled(scores: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Returns maps resized bilinearly; pixels are areas, with their centers at halves.

    Args:
      scores: `[N, H, W, K]`.
      size: Height and width of the result, at least those of the maps.

    >>> upsampled(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1, 4)).ravel()
    Array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    """
    shape = scores.shape[0], *size, scores.shape[-1]
    return jax.image.resize(scores, shape, "bilinear")


def pixel_logits(
    maps: Mapping[str, jax.Array],
    size: tuple[int, ...],
    num_classes: int,
    kernel_init: nn.initializers.Initializer,
) -> jax.Array:
    r"""Returns the logits of every pixel, from one feature map or several.

    .. math::
      s_m = x_m W_m + b, \qquad
      s_l = x_l W_l + \mathrm{up}(s_{l+1}), \qquad
      z = \mathrm{up}(s_1)

    for the maps :math:`x_1` to :math:`x_m`, from fine to coarse; up is bilinear. A
    linear layer at every position is a 1x1 convolution. With three maps this is the
    head of FCN-8s (Long et al. 2015, arXiv:1411.4038) without learned upsampling, and
    with the tokens of a transformer as its one map the linear decoder of Segmenter
    (Strudel et al. 2021, arXiv:2105.05633). It computes in float32.

    Args:
      maps: Feature maps `[N, H_l, W_l, C_l]`, from fine to coarse, by the names of the
        layers that read them. The last layer has the bias. Call this function in the
        compact method of a model.
      size: Height and width of the images, H and W.
      num_classes: Number of classes, K.
      kernel_init: Initializer of the kernels.

    Returns:
      float32 `[N, H, W, K]`.
    """
    *finer, last = maps.items()
    scores = _scores(*last, num_classes, kernel_init)
    for name, x in reversed(finer):
        # Upsampling keeps a constant: one bias is enough.
        own = _scores(name, x, num_classes, kernel_init, use_bias=False)
        scores = own + upsampled(scores, own.shape[1:3])
    return upsampled(scores, size)


def _scores(
    name: str,
    x: jax.Array,
    num_classes: int,
    kernel_init: nn.initializers.Initializer,
    use_bias: bool = True,
) -> jax.Array:
    layer = nn.Dense(num_classes, use_bias=use_bias, kernel_init=kernel_init, name=name)
    return layer(jnp.asarray(x, jnp.float32))
