"""Cutout and random erasing, which cover a box of each image."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax._types import Key
from zosam_jax.data.augment import boxes
from zosam_jax.data.augment.boxes import Array, Box

_ASPECT = 0.3


def cutout_parameters(key: Key, shape: tuple[int, ...], size: int) -> Box:
    """Returns random squares for `cutout`, with centers uniform over the pixels.

    Args:
      key: A random key. It determines one draw of `[N, 2]` integers.
      shape: `[N, H, W, C]`, the shape of the images.
      size: Side of the square in pixels, a Python integer >= 0.

    Returns:
      Boxes that may extend beyond the image. A square with center `y` covers the rows
      from `y - size // 2` to `y - size // 2 + size - 1`.
    """
    n, height, width, _ = shape
    limits = jnp.broadcast_to(jnp.array([height, width]), (n, 2))
    centre = jax.random.randint(key, (n, 2), 0, limits)
    # An even side has no middle pixel: the square reaches one further up.
    first = centre - size // 2
    side = jnp.full(n, size)
    return Box(first[:, 0], first[:, 1], side, side)


def cutout(images: Array, box: Box, mean: tuple[float, ...] | None = None) -> jax.Array:
    """Returns the images with the boxes covered (DeVries and Taylor, arXiv:1708.04552).

    Near the border, an image loses less than the whole square.

    Args:
      images: uint8 `[N, H, W, C]`.
      box: A box for each image; see `cutout_parameters`.
      mean: Mean of each channel of `images / 255`. Boxes are filled with the nearest
        level, which is about 0 after normalization as in the paper. Default: black.

    Returns:
      uint8 `[N, H, W, C]`.
    """
    covered = boxes.inside(box, *images.shape[1:3])[..., None]
    return jnp.where(covered, levels(mean or (0.0,))[None, None, None], images)


def levels(mean: tuple[float, ...]) -> jax.Array:
    """Returns the level nearest to the mean of each channel, uint8 `[C]`.

    >>> levels((0.5, 0.1))
    Array([128,  26], dtype=uint8)
    """
    return jnp.array([round(255 * m) for m in mean], jnp.uint8)


class Erasing(NamedTuple):
    """The boxes of `erase` and their contents.

    Attributes:
      box: A box for each image; an empty one leaves the image unchanged.
      noise: Standard normal noise, float32 `[N, H, W, C]`.
    """

    box: Box
    noise: jax.Array


def erasing_parameters(
    key: Key,
    shape: tuple[int, ...],
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (_ASPECT, 1 / _ASPECT),
) -> Erasing:
    """Returns random boxes and noise for `erase`.

    With `probability`, an image has a box. Its fraction of the area is uniform, height
    / width is log-uniform, and the position is uniform within the image. A box as high
    or as wide as the image is drawn again, up to ten attempts in all; after that the
    image is unchanged. The defaults are timm's and DeiT's (`reprob`).

    Args:
      key: A random key.
      shape: `[N, H, W, C]`, the shape of the images.
      probability: Probability that an image has a box, in [0, 1].
      area: Bounds of the box's fraction of the area.
      aspect: Bounds of height / width.
    """
    n, height, width, _ = shape
    for_choice, for_box, for_noise = jax.random.split(key, 3)
    most = height - 1, width - 1
    box, fits = boxes.draw(for_box, n, height, width, area, aspect, 0, most)
    erased = fits & (jax.random.uniform(for_choice, (n,)) < probability)
    # An empty box erases nothing: one shape for all images, without a branch.
    rows, columns = (jnp.where(erased, x, 0) for x in (box.height, box.width))
    # Flat for a faster compilation, as in `boxes.draw`.
    noise = jax.random.normal(for_noise, (math.prod(shape),), jnp.float32)
    return Erasing(Box(box.top, box.left, rows, columns), noise.reshape(shape))


def erase(
    images: Array,
    parameters: Erasing,
    mean: tuple[float, ...],
    std: tuple[float, ...] | None = None,
) -> jax.Array:
    """Returns the images with a box erased (Zhong et al., arXiv:1708.04896).

    With `std`, the pixels of a box become `255 (mean + std noise)`, which is standard
    normal after normalization (the mode `pixel` of timm and DeiT). Values are not
    clipped to 0 to 255. Without `std`, they become the level nearest to the mean (the
    mode `const`).

    Args:
      images: uint8 `[N, H, W, C]`.
      parameters: See `erasing_parameters`.
      mean: Mean of each channel of `images / 255`.
      std: Standard deviation of each channel of `images / 255`, or None.

    Returns:
      `[N, H, W, C]`, float32 with `std` and uint8 without.
    """
    if std is None:
        return cutout(images, parameters.box, mean)
    covered = boxes.inside(parameters.box, *images.shape[1:3])[..., None]
    centre, spread = (
        255 * jnp.array(x, jnp.float32)[None, None, None] for x in (mean, std)
    )
    # Normalization later subtracts the mean and divides by the deviation.
    noise = centre + spread * parameters.noise
    return jnp.where(covered, noise, images.astype(jnp.float32))
