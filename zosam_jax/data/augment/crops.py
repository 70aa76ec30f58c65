"""Crops: the padded one and its flip, and those that are resized as Pillow does it."""

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax.data.augment import boxes
from zosam_jax.data.augment.boxes import Box


def random_crop_flip(
    key: jax.Array, images: jax.Array, padding: int, flip: bool
) -> jax.Array:
    """Returns every image cropped at random after zero padding, and flipped at random.

    An image is padded with `padding` zeros on each side and a window of its own size is
    cut out at one of the `(2 padding + 1)^2` positions, uniformly; then it is mirrored
    left to right with probability 1/2.

    Args:
      key: A random key. One draw of `[N, 3]` integers depends on it.
      images: uint8 `[N, H, W, C]`.
      padding: Pixels, a Python integer >= 0; 0 does not crop.
      flip: Whether to mirror, a Python bool.

    Returns:
      uint8 `[N, H, W, C]`.
    """
    n, height, width, _ = images.shape
    limits = jnp.array([2 * padding + 1, 2 * padding + 1, 2])
    draws = jax.random.randint(key, (n, 3), 0, limits)
    rows = jnp.arange(height) + draws[:, :1]
    columns = jnp.arange(width)
    if flip:
        columns = jnp.where(draws[:, 2:] == 1, columns[::-1], columns)
    columns = columns + draws[:, 1:2]
    if padding:
        pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        images = jnp.pad(images, pad)

    def window(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return image.at[rows[:, None], columns].get(mode="promise_in_bounds")

    # Mapped, it stays where the images are; one index of the batch would gather them.
    return jax.vmap(window)(images, rows, jnp.broadcast_to(columns, (n, width)))


def resized_crop_parameters(
    key: jax.Array,
    shape: tuple[int, ...],
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws the windows of `resized_crop`: torchvision's rule, for all images at once.

    An attempt is a share of the area, uniform, and a ratio width / height, log-uniform;
    the sides are rounded, and the place is uniform within the image. The first of ten
    attempts that fits into the image counts; without one, it is the largest window in
    the middle whose ratio lies within `aspect`. Unlike there, all ten attempts are
    drawn, whichever counts.

    Args:
      key: A random key.
      shape: `[N, H, W, C]` of the images.
      area: Bounds of the window's share of the area.
      aspect: Bounds of width / height.

    Returns:
      One box for every image, within it.
    """
    n, height, width, _ = shape
    low, high = aspect
    most = height, width
    box, fits = boxes.draw(key, n, *most, area, (1 / high, 1 / low), 1, most)
    rows = height if width >= low * height else round(width / low)
    columns = width if width <= high * height else round(high * height)
    middle = (height - rows) // 2, (width - columns) // 2, rows, columns
    pairs = zip(box, middle, strict=True)
    return Box(*(jnp.where(fits, drawn, jnp.int32(other)) for drawn, other in pairs))


def resized_crop(
    images: jax.Array,
    box: Box,
    size: tuple[int, int],
    interpolation: str = "bicubic",
) -> jax.Array:
    """Returns a window of every image, resized to one size.

    Equal to Pillow's `crop` and `resize`: a separable filter, widened where the window
    shrinks, over the window's own pixels; across first, then down, each rounded to
    levels. (Since 13, Pillow takes the cheaper order; that moves levels by one at
    most.) Here each is a product with a matrix for every image, which accelerators do
    best.

    Args:
      images: uint8 `[N, H, W, C]`.
      box: One box for every image, within it, as of `resized_crop_parameters`.
      size: Height and width of the result.
      interpolation: "bilinear" or "bicubic" (a = -1/2).

    Returns:
      uint8 `[N, *size, C]`.
    """
    _check.one_of("interpolation", interpolation, _KERNELS)
    _, height, width, _ = images.shape
    across = _weights(box.left, box.width, size[1], width, interpolation)
    down = _weights(box.top, box.height, size[0], height, interpolation)
    return _resample(images, down, across)


def evaluation_crop(
    images: jax.Array,
    size: int,
    share: float = 0.875,
    interpolation: str = "bicubic",
) -> jax.Array:
    """Returns the resized square in the middle of the images, for evaluation.

    The shorter side is resized to `floor(size / share)` and the other in proportion,
    and `size` pixels in the middle are kept, as torchvision's `Resize` and `CenterCrop`
    do it with Pillow: 256 and 224 for ImageNet.

    Args:
      images: uint8 `[N, H, W, C]`.
      size: Side of the result.
      share: Share of the shorter side that is kept, in (0, 1].
      interpolation: "bilinear" or "bicubic".

    Returns:
      uint8 `[N, size, size, C]`.
    """
    _check.one_of("interpolation", interpolation, _KERNELS)
    _check.number("share", share, above=0, most=1)
    _, height, width, _ = images.shape
    shorter = int(size / share)
    zero = jnp.zeros(1, jnp.int32)
    both = []
    for side in (height, width):
        resized = shorter * side // min(height, width)
        first = round((resized - size) / 2)
        weights = _weights(zero, zero + side, resized, side, interpolation)
        both.append(weights[:, first : first + size])
    return _resample(images, *both)


_KERNELS = {
    "bilinear": (1.0, lambda x: 1 - x),
    "bicubic": (
        2.0,
        lambda x: jnp.where(
            x < 1,
            (1.5 * x - 2.5) * x * x + 1,
            ((-0.5 * x + 2.5) * x - 4) * x + 2,
        ),
    ),
}


def _weights(
    first: jax.Array, length: jax.Array, size: int, limit: int, interpolation: str
) -> jax.Array:
    """Returns the weights `[N, size, limit]` of a resampling of `length` pixels."""
    radius, kernel = _KERNELS[interpolation]
    first, scale = first[:, None, None], (length / size)[:, None, None]
    centre = (jnp.arange(size)[:, None] + 0.5) * scale
    offset = jnp.arange(limit) - first
    distance = jnp.abs(offset + 0.5 - centre) / jnp.maximum(scale, 1)
    within = (offset >= 0) & (offset < length[:, None, None]) & (distance < radius)
    weights = jnp.where(within, kernel(distance), 0)
    return weights / weights.sum(-1, keepdims=True)


def _resample(images: jax.Array, down: jax.Array, across: jax.Array) -> jax.Array:
    precise = jax.lax.Precision.HIGHEST
    n = len(images)
    across, down = (jnp.broadcast_to(x, (n, *x.shape[1:])) for x in (across, down))
    x = images.astype(jnp.float32)
    x = _levels(jnp.einsum("nxw,nhwc->nhxc", across, x, precision=precise))
    return _levels(jnp.einsum("nyh,nhxc->nyxc", down, x, precision=precise)).astype(
        jnp.uint8
    )


def _levels(x: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)
