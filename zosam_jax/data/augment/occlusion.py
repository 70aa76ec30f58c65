"""Cutout and random erasing: a rectangle of every image is covered."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax.data.augment import boxes
from zosam_jax.data.augment.boxes import Box

_ASPECT = 0.3


def cutout_parameters(key: jax.Array, shape: tuple[int, ...], size: int) -> Box:
    """Draws the squares of `cutout`: their centres are uniform over the pixels.

    Args:
      key: A random key. One draw of `[N, 2]` integers depends on it.
      shape: `[N, H, W, C]` of the images.
      size: Side of the square in pixels, a Python integer >= 0.

    Returns:
      Boxes that may reach over the border. The square of centre `y` has the rows
      `y - size // 2, ..., y - size // 2 + size - 1`.
    """
    n, height, width, _ = shape
    centre = jax.random.randint(key, (n, 2), 0, jnp.array([height, width]))
    first = centre - size // 2
    side = jnp.full(n, size)
    return Box(first[:, 0], first[:, 1], side, side)


def cutout(
    images: jax.Array, box: Box, mean: tuple[float, ...] | None = None
) -> jax.Array:
    """Returns the images with the boxes covered (DeVries and Taylor, arXiv:1708.04552).

    What of a box lies outside of the image is cut off, so that an image loses less than
    the whole square where its centre is near the border.

    Args:
      images: uint8 `[N, H, W, C]`.
      box: One box for every image, as of `cutout_parameters`.
      mean: Mean of each channel of `images / 255`: a box gets its nearest level, which
        is about 0 after normalisation, as in the paper's experiments. Default: black.

    Returns:
      uint8 `[N, H, W, C]`.
    """
    covered = boxes.inside(box, *images.shape[1:3])[..., None]
    return jnp.where(covered, levels(mean or (0.0,)), images)


def levels(mean: tuple[float, ...]) -> jax.Array:
    """Returns the nearest uint8 level of the mean of each channel."""
    return jnp.array([round(255 * m) for m in mean], jnp.uint8)


class Erasing(NamedTuple):
    """What `erase` covers, and with what.

    Attributes:
      box: One box for every image; empty where the image stays.
      noise: float32 `[N, H, W, C]`, standard normal.
    """

    box: Box
    noise: jax.Array


def erasing_parameters(
    key: jax.Array,
    shape: tuple[int, ...],
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (_ASPECT, 1 / _ASPECT),
) -> Erasing:
    """Draws the boxes and the noise of `erase`.

    With `probability`, an image gets a box whose share of the area is uniform and whose
    height / width is log-uniform, uniform among the places within the image. A box as
    high or as wide as the image is drawn again, ten times at most; an image without a
    box after that stays. Defaults: timm's, as DeiT uses them (there as `reprob`).

    Args:
      key: A random key.
      shape: `[N, H, W, C]` of the images.
      probability: Chance of an image to lose a box.
      area: Bounds of the box's share of the area.
      aspect: Bounds of height / width.
    """
    n, height, width, _ = shape
    for_choice, for_box, for_noise = jax.random.split(key, 3)
    most = height - 1, width - 1
    box, fits = boxes.draw(for_box, n, height, width, area, aspect, 0, most)
    erased = fits & (jax.random.uniform(for_choice, (n,)) < probability)
    rows, columns = (jnp.where(erased, x, 0) for x in (box.height, box.width))
    # Flat, for the compilation: as in `boxes.draw`.
    noise = jax.random.normal(for_noise, (math.prod(shape),), jnp.float32)
    return Erasing(Box(box.top, box.left, rows, columns), noise.reshape(shape))


def erase(
    images: jax.Array,
    parameters: Erasing,
    mean: tuple[float, ...],
    std: tuple[float, ...] | None = None,
) -> jax.Array:
    """Returns the images with a box erased (Zhong et al., arXiv:1708.04896).

    With `std`, every pixel of a box becomes `255 (mean + std noise)`: standard normal
    after normalisation, which is timm's and DeiT's mode `pixel`. It can lie outside of
    0 to 255 and is not clipped. Without, a box becomes the nearest level of the mean
    (their mode `const`, and the paper's second choice).

    Args:
      images: uint8 `[N, H, W, C]`.
      parameters: As of `erasing_parameters`.
      mean: Mean of each channel of `images / 255`.
      std: Standard deviation of each channel of `images / 255`, or None.

    Returns:
      `[N, H, W, C]`: float32 with `std`, uint8 without.
    """
    if std is None:
        return cutout(images, parameters.box, mean)
    covered = boxes.inside(parameters.box, *images.shape[1:3])[..., None]
    centre, spread = (255 * jnp.array(x, jnp.float32) for x in (mean, std))
    noise = centre + spread * parameters.noise
    return jnp.where(covered, noise, images.astype(jnp.float32))
