"""Crops: random crop and flip, random resized crop, and the crop for evaluation."""

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._types import Key
from zosam_jax.data.augment import boxes
from zosam_jax.data.augment.boxes import Array, Box


def random_crop_flip(
    key: Key, images: Array, padding: int, flip: bool, fill: int = 0
) -> jax.Array:
    """Returns images after a random crop with padding and a random flip.

    Each image is padded by `padding` pixels on every side and cropped to its own size
    at one of the `(2 padding + 1)^2` positions, all equally likely. It is mirrored left
    to right with probability 1/2.

    Args:
      key: A random key. It determines one draw of `[N, 3]` integers.
      images: uint8 `[N, H, W, C]`.
      padding: In pixels, a Python integer >= 0; 0: no crop.
      flip: Whether to mirror, a Python bool.
      fill: Level of the padding.

    Returns:
      uint8 `[N, H, W, C]`.

    >>> images = jnp.ones((2, 8, 8, 3), jnp.uint8)
    >>> random_crop_flip(jax.random.key(0), images, padding=1, flip=True).shape
    (2, 8, 8, 3)
    """
    images = jnp.asarray(images)
    n, height, width, _ = images.shape
    limits = jnp.array([2 * padding + 1, 2 * padding + 1, 2])
    draws = jax.random.randint(key, (n, 3), 0, jnp.broadcast_to(limits, (n, 3)))
    rows = jnp.arange(height)[None] + draws[:, :1]
    columns = jnp.arange(width)[None]
    if flip:
        columns = jnp.where(draws[:, 2:] == 1, columns[:, ::-1], columns)
    columns = columns + draws[:, 1:2]
    if padding:
        pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        images = jnp.pad(images, pad, constant_values=fill)

    def window(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return image.at[rows[:, None], columns].get(mode="promise_in_bounds")

    # With vmap, each device indexes its own images. A single indexing operation on the
    # batch would gather all images on every device.
    return jax.vmap(window)(images, rows, jnp.broadcast_to(columns, (n, width)))


def resized_crop_parameters(
    key: Key,
    shape: tuple[int, ...],
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Returns random windows for `resized_crop`, by the rule of torchvision.

    In each of ten attempts, the fraction of the area is uniform, width / height is
    log-uniform, the sides are rounded, and the position is uniform. The first attempt
    that fits into the image is used. If none fits, the window is the largest central
    one with an aspect ratio within the bounds.

    Args:
      key: A random key.
      shape: `[N, H, W, C]`, the shape of the images.
      area: Bounds of the window's fraction of the area.
      aspect: Bounds of width / height.

    Returns:
      A box for each image, within the image.
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
    images: Array,
    box: Box,
    size: tuple[int, int],
    interpolation: str = "bicubic",
) -> jax.Array:
    """Returns a window of each image, resized to one size.

    The result equals Pillow's `crop` and `resize`: a separable filter over the pixels
    of the window, widened when the window is reduced (antialiasing), first along rows
    and then along columns. Each pass rounds to levels. (From version 13 on, Pillow
    chooses the cheaper order, which changes levels by at most one.) Each pass is a
    product with a matrix for each image, which suits accelerators.

    Args:
      images: uint8 `[N, H, W, C]`.
      box: A box for each image, within the image; see `resized_crop_parameters`.
      size: Height and width of the result, in pixels.
      interpolation: "bilinear" or "bicubic" (Keys' kernel with a = -1/2).

    Returns:
      uint8 `[N, *size, C]`.
    """
    _check.one_of("interpolation", interpolation, _KERNELS)
    _, height, width, _ = images.shape
    across = _weights(box.left, box.width, size[1], width, interpolation)
    down = _weights(box.top, box.height, size[0], height, interpolation)
    return _resample(images, down, across)


def resized_maps(maps: Array, box: Box, size: tuple[int, int]) -> jax.Array:
    """Returns a window of each label map, resized as `resized_crop` resizes images.

    A pixel has the class of the nearest pixel of the window: classes have no mean.

    Args:
      maps: Integers `[N, H, W, C]`.
      box: A box for each map, within it.
      size: Height and width of the result, in pixels.

    Returns:
      `[N, *size, C]` of the same type.
    """

    def places(first: jax.Array, length: jax.Array, count: int) -> jax.Array:
        # The centers of pixels lie at halves. In whole numbers, so that no rounding
        # leads out of the window.
        steps = (2 * jnp.arange(count) + 1)[None] * length[:, None] // (2 * count)
        return first[:, None] + steps

    rows = places(box.top, box.height, size[0])
    columns = places(box.left, box.width, size[1])
    return jax.vmap(lambda x, y, at: x[y[:, None], at])(
        jnp.asarray(maps), rows, columns
    )


def evaluation_crop(
    images: Array,
    size: int,
    share: float = 0.875,
    interpolation: str = "bicubic",
) -> jax.Array:
    """Returns the central square of the resized images, for evaluation.

    The shorter side is resized to `floor(size / share)` pixels, and the central `size`
    x `size` pixels are kept. This equals torchvision's `Resize` and `CenterCrop` with
    Pillow: 256 and 224 pixels for ImageNet.

    Args:
      images: uint8 `[N, H, W, C]`.
      size: Side of the result, in pixels.
      share: Fraction of the shorter side that is kept, in (0, 1].
      interpolation: "bilinear" or "bicubic".

    Returns:
      uint8 `[N, size, size, C]`.
    """
    _check.one_of("interpolation", interpolation, _KERNELS)
    _check.number("share", share, above=0, most=1)
    _, height, width, _ = images.shape
    # Rounded down, and the crop's place half to even, as torchvision does.
    shorter = int(size / share)
    zero = jnp.zeros(1, jnp.int32)
    both = []
    for side in (height, width):
        resized = shorter * side // min(height, width)
        first = round((resized - size) / 2)
        weights = _weights(zero, zero + side, resized, side, interpolation)
        both.append(weights[:, first : first + size])
    return _resample(images, *both)


# Radius and values of each interpolation kernel, for distances x in [0, radius).
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
    """Returns the matrices `[N, size, limit]` that resample some pixels of an axis.

    Args:
      first: First pixel of the window, `[N]`.
      length: Number of pixels of the window, `[N]`.
      size: Number of pixels of the result.
      limit: Number of pixels of the axis.
      interpolation: A name in `_KERNELS`.
    """
    radius, kernel = _KERNELS[interpolation]
    first, scale = first[:, None, None], (length / size)[:, None, None]
    # Pixels are areas, and their centers lie at halves. A kernel that is narrower than
    # the step would skip pixels: it widens with the scale.
    centre = (jnp.arange(size, dtype=float)[None, :, None] + 0.5) * scale
    offset = jnp.arange(limit)[None, None] - first
    distance = jnp.abs(offset.astype(float) + 0.5 - centre) / jnp.maximum(scale, 1)
    within = (offset >= 0) & (offset < length[:, None, None]) & (distance < radius)
    weights = jnp.where(within, kernel(distance), 0)
    # At the window's edge a part of the kernel is missing.
    return weights / weights.sum(-1, keepdims=True)


def _resample(images: Array, down: jax.Array, across: jax.Array) -> jax.Array:
    """Returns uint8 images after products with both matrices of `_weights`."""
    # The default of TPUs and GPUs (bfloat16, TF32) has too few bits for 256 levels.
    precise = jax.lax.Precision.HIGHEST
    n = len(images)
    across, down = (jnp.broadcast_to(x, (n, *x.shape[1:])) for x in (across, down))
    x = images.astype(jnp.float32)
    x = _levels(jnp.einsum("nxw,nhwc->nhxc", across, x, precision=precise))
    return _levels(jnp.einsum("nyh,nhxc->nyxc", down, x, precision=precise)).astype(
        jnp.uint8
    )


def _levels(x: jax.Array) -> jax.Array:
    """Returns x rounded to levels, half up as in Pillow, and limited to 0 to 255."""
    return jnp.clip(jnp.floor(x + 0.5), 0, 255)
