"""Augmentation on the device: pure functions of uint8 images, made to be jitted."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def random_crop_flip(
    key: jax.Array, images: jax.Array, padding: int, flip: bool
) -> jax.Array:
    """Returns every image cropped at random after zero padding, and flipped at random.

    An image is padded with `padding` zeros on each side and a window of its own size is
    cut out at one of the `(2 padding + 1)^2` positions, uniformly; then it is mirrored
    left to right with probability 1/2. One gather for the whole batch.

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
    return images[jnp.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalize(
    images: jax.Array,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Returns `(images / 255 - mean) / std`, computed in float32.

    Args:
      images: uint8 `[..., C]`.
      mean: Mean of each channel of `images / 255`.
      std: Standard deviation of each channel of `images / 255`.
      dtype: Type of the result.

    Returns:
      `dtype` `[..., C]`.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) * scale - offset).astype(dtype)
