"""Rectangles of a batch of images, and the draw of one that fits."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_ATTEMPTS = 10


class Box(NamedTuple):
    """Rectangles in pixels: int32 scalars, or `[N]` with one for every image.

    Attributes:
      top: First row. A box may reach over the border: only what lies within counts.
      left: First column.
      height: Rows; 0 is an empty box.
      width: Columns.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def inside(box: Box, height: int, width: int) -> jax.Array:
    """Returns which pixels of `[..., height, width]` lie in the box, as bool."""

    def span(first: jax.Array, length: jax.Array, size: int) -> jax.Array:
        offset = jnp.arange(size) - first[..., None]
        return (offset >= 0) & (offset < length[..., None])

    rows = span(box.top, box.height, height)
    return rows[..., :, None] & span(box.left, box.width, width)[..., None, :]


def draw(
    key: jax.Array,
    n: int,
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    least: int,
    most: tuple[int, int],
) -> tuple[Box, jax.Array]:
    """Draws `n` boxes by area and aspect ratio: the first of ten that fits.

    An attempt is a share of the image's area, uniform, and a ratio of height to width,
    log-uniform; the sides are rounded. All ten are drawn at once, for every image, and
    the first one whose sides lie between `least` and `most` is taken, which is what a
    loop that stops at it gives. Its place is uniform among those within the image.

    Args:
      key: A random key.
      n: Number of images.
      height: Their rows.
      width: Their columns.
      area: Bounds of the share of the area.
      aspect: Bounds of height / width.
      least: Smallest number of rows and of columns that fits.
      most: Largest number of rows and of columns that fits.

    Returns:
      The boxes, and which images have one, bool `[N]`. The box of another is the last
      attempt, cut down to `most`.
    """
    for_shape, for_place = jax.random.split(key)
    # The numbers of a draw of three axes, which XLA:CPU takes ten times as long to
    # compile.
    draws = jax.random.uniform(for_shape, (2 * n * _ATTEMPTS,))
    draws = draws.reshape(2, n, _ATTEMPTS)
    target = height * width * (area[0] + (area[1] - area[0]) * draws[0])
    low, high = (math.log(bound) for bound in aspect)
    ratio = jnp.exp(low + (high - low) * draws[1])
    rows = jnp.round(jnp.sqrt(target * ratio)).astype(jnp.int32)
    columns = jnp.round(jnp.sqrt(target / ratio)).astype(jnp.int32)
    fits = (rows <= most[0]) & (columns <= most[1])
    fits &= (rows >= least) & (columns >= least)
    chosen = jnp.where(fits.any(1), fits.argmax(1), _ATTEMPTS - 1)[:, None]
    rows = jnp.minimum(jnp.take_along_axis(rows, chosen, 1)[:, 0], most[0])
    columns = jnp.minimum(jnp.take_along_axis(columns, chosen, 1)[:, 0], most[1])
    limits = jnp.stack([height - rows + 1, width - columns + 1])
    top, left = jax.random.randint(for_place, (2, n), 0, limits)
    return Box(top, left, rows, columns), fits.any(1)
