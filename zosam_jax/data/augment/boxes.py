"""Boxes in images, and a random draw of boxes by area and aspect ratio."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import Key

Array = jax.Array | np.ndarray
"""An array on a device, or of NumPy."""

_ATTEMPTS = 10


class Box(NamedTuple):
    """Boxes in pixels: int32 scalars, or `[N]` with a box for each image.

    A box may extend beyond the image; only the part within counts.

    Attributes:
      top: First row.
      left: First column.
      height: Number of rows; 0 is an empty box.
      width: Number of columns.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def inside(box: Box, height: int, width: int) -> jax.Array:
    """Returns which pixels lie in the box, bool `[..., height, width]`.

    Args:
      box: One box, or a box for each image.
      height: Number of rows of the image.
      width: Number of columns of the image.

    >>> box = Box(*jnp.array([1, 0, 1, 2]))
    >>> inside(box, 2, 3).astype(int)
    Array([[0, 0, 0],
           [1, 1, 0]], dtype=int32)
    """

    def span(first: jax.Array, length: jax.Array, size: int) -> jax.Array:
        pixels = jnp.arange(size).reshape((1,) * first.ndim + (size,))
        offset = pixels - first[..., None]
        return (offset >= 0) & (offset < length[..., None])

    rows = span(box.top, box.height, height)
    return rows[..., :, None] & span(box.left, box.width, width)[..., None, :]


def draw(
    key: Key,
    n: int,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    least: int,
    most: tuple[int, int],
) -> tuple[Box, jax.Array]:
    """Returns `n` random boxes: for each image, the first of ten attempts that fits.

    In each attempt, the fraction of the image's area is uniform, height / width is
    log-uniform, and the sides are rounded. An attempt fits if its sides are between
    `least` and `most`. All ten attempts are drawn at once, which has the distribution
    of a loop that stops at the first one that fits. The position is uniform within the
    image.

    Args:
      key: A random key.
      n: Number of images.
      height: Number of rows of the images.
      width: Number of columns of the images.
      area: Bounds of the fraction of the area.
      aspect: Bounds of height / width.
      least: Smallest number of rows and of columns that fits.
      most: Largest numbers of rows and columns that fit.

    Returns:
      The boxes, and whether one fits for each image, bool `[N]`. Where none fits, the
      box is the last attempt, limited to `most`.
    """
    for_shape, for_place = jax.random.split(key)
    # Flat: XLA:CPU takes ten times as long to compile a draw with three axes. The
    # numbers are the same.
    draws = jax.random.uniform(for_shape, (2 * n * _ATTEMPTS,))
    draws = draws.reshape(2, n, _ATTEMPTS)
    target = height * width * (area[0] + (area[1] - area[0]) * draws[0])
    # Uniform in the logarithm: a shape is as likely as the same one on its side.
    low, high = (math.log(bound) for bound in aspect)
    ratio = jnp.exp(low + (high - low) * draws[1])
    rows = jnp.round(jnp.sqrt(target * ratio)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(target / ratio)).astype(jnp.int32)
    fits = (rows <= most[0]) & (columns <= most[1])
    fits &= (rows >= least) & (columns >= least)
    chosen = jnp.where(fits.any(1), fits.argmax(1), _ATTEMPTS - 1)[:, None]
    rows = jnp.minimum(jnp.take_along_axis(rows, chosen, 1)[:, 0], most[0])
    columns = jnp.minimum(jnp.take_along_axis(columns, chosen, 1)[:, 0], most[1])
    # A position for each image: the bounds of an integer draw may be arrays.
    limits = jnp.stack([height - rows + 1, width - columns + 1])
    top, left = jax.random.randint(for_place, (2, n), 0, limits)
    return Box(top, left, rows, columns), fits.any(1)
