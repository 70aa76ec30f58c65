"""Mixup, CutMix and label smoothing.

As in timm and DeiT, image `i` of a batch is mixed with image `N - 1 - i`, since the
order of a batch is random. If the batch is split over devices, the devices exchange
their images once, and none gathers the whole batch. In a batch of odd size, the image
in the middle is unchanged.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax._types import Key, Scalar
from zosam_jax.data.augment import boxes
from zosam_jax.data.augment.boxes import Array, Box


class CutMix(NamedTuple):
    """The box of `cutmix`, one for the whole batch.

    Attributes:
      box: The box, within the image.
      share: float32 scalar in [0, 1], the fraction of the image outside of the box. It
        is the weight of the image's own label.
    """

    box: Box
    share: jax.Array


def mixup_parameters(key: Key, alpha: float) -> jax.Array:
    """Returns a weight for `mixup` from Beta(alpha, alpha), a float32 scalar."""
    if alpha == 1:  # Uniform, which compiles in a tenth of the time.
        return jax.random.uniform(key)
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def cutmix_parameters(key: Key, shape: tuple[int, ...], alpha: float = 1.0) -> CutMix:
    """Returns a random box for `cutmix`, by the rule of Yun et al. (arXiv:1905.04899).

    With `w ~ Beta(alpha, alpha)`, the box has about the fraction `1 - w` of the area
    and the aspect ratio of the image: its half sides are
    `floor(floor(sqrt(1 - w) H) / 2)` and the same for `W`. Its center is uniform over
    the pixels, and it is clipped at the border. The `share` is computed from the
    clipped box.

    Args:
      key: A random key.
      shape: `[N, H, W, C]`, the shape of the images.
      alpha: Parameter of the Beta distribution, > 0; 1 is uniform.
    """
    _, height, width, _ = shape
    for_area, for_centre = jax.random.split(key)
    weight = mixup_parameters(for_area, alpha)
    size = jnp.array([height, width])
    # Two roundings, as in the published code: the sides are even.
    half = (
        jnp.floor(jnp.sqrt(1 - weight) * size.astype(weight.dtype)).astype(jnp.int32)
        // 2
    )
    centre = jax.random.randint(for_centre, (2,), 0, size)
    first = jnp.maximum(centre - half, 0)
    sides = jnp.minimum(centre + half, size) - first
    share = 1 - sides[0] * sides[1] / (height * width)
    return CutMix(Box(*first, *sides), share.astype(jnp.float32))


def mixup(images: Array, weight: Scalar) -> jax.Array:
    """Returns `weight x_i + (1 - weight) x_(N-1-i)` (Zhang et al., arXiv:1710.09412).

    Args:
      images: uint8 or float32 `[N, H, W, C]`.
      weight: A scalar in [0, 1]; see `mixup_parameters`.

    Returns:
      float32 `[N, H, W, C]` from 0 to 255, not rounded.

    >>> images = jnp.array([0, 100], jnp.uint8).reshape(2, 1, 1, 1)
    >>> mixup(images, 0.75).ravel()
    Array([25., 75.], dtype=float32)
    """
    return _mix(images, weight)


def cutmix(images: Array, box: Box) -> jax.Array:
    """Returns image `i` with the box of image `N-1-i` pasted in (arXiv:1905.04899).

    Args:
      images: `[N, H, W, C]` of any type.
      box: One box for the batch; see `cutmix_parameters`.

    Returns:
      `[N, H, W, C]` of the same type.
    """
    pasted = boxes.inside(box, *images.shape[1:3])[None, ..., None]
    return jnp.where(pasted, images[::-1], images)


def mixup_or_cutmix(
    images: Array, weight: Scalar, box: Box, use_cutmix: jax.Array
) -> jax.Array:
    """Returns `cutmix(images, box)` if `use_cutmix`, otherwise `mixup(images, weight)`.

    Both are a weighted mean of two images. CutMix has weights 0 and 1 by pixel, so that
    one formula without a branch serves both.

    Args:
      images: uint8 or float32 `[N, H, W, C]`.
      weight: As in `mixup`.
      box: As in `cutmix`.
      use_cutmix: A bool scalar.

    Returns:
      float32 `[N, H, W, C]`.
    """
    # With a weight for each pixel, CutMix is a mixup.
    own = 1 - boxes.inside(box, *images.shape[1:3]).astype(jnp.float32)
    return _mix(images, jnp.where(use_cutmix, own, weight)[None, ..., None])


def _mix(images: Array, weight: Scalar) -> jax.Array:
    # Reversed before the conversion: devices exchange uint8, a quarter of float32.
    own, other = (jnp.asarray(x, jnp.float32) for x in (images, images[::-1]))
    return weight * own + (1 - weight) * other


def mix_labels(targets: Array, weight: Scalar, num_classes: int) -> jax.Array:
    """Returns `weight y_i + (1 - weight) y_(N-1-i)` of one-hot or soft labels.

    Args:
      targets: int `[N]`, or float32 `[N, K]`.
      weight: The weight of `mixup`, or the share of `cutmix`.
      num_classes: Number of classes, K.

    Returns:
      float32 `[N, K]`. The sums of rows are unchanged.

    >>> mix_labels(jnp.array([0, 1]), 0.75, 2)
    Array([[0.75, 0.25],
           [0.25, 0.75]], dtype=float32)
    """
    return _mix(one_hot(targets, num_classes), weight)


def one_hot(targets: Array, num_classes: int) -> jax.Array:
    """Returns integer labels one-hot, float32 with a new last axis of K classes.

    Labels of a floating type are soft labels and are returned unchanged.

    >>> one_hot(jnp.array([2]), 3)
    Array([[0., 0., 1.]], dtype=float32)
    """
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return jnp.asarray(targets, jnp.float32)
    return jax.nn.one_hot(targets, num_classes, dtype=jnp.float32)


def smooth_labels(targets: Array, smoothing: float, num_classes: int) -> jax.Array:
    """Returns `(1 - e) y + e / K`, label smoothing (Szegedy et al., arXiv:1512.00567).

    Smoothing is linear, so that it can be applied before mixing, as in DeiT, or after.

    Args:
      targets: int `[N]`, or `[N, T]` for text; or soft labels, float32 `[N, K]`.
      smoothing: Label-smoothing factor e, in [0, 1]; 0.1 in the paper.
      num_classes: Number of classes, K.

    Returns:
      float32 `[N, K]`, or `[N, T, K]`. The sums of rows are unchanged.

    >>> smooth_labels(jnp.array([2]), 0.3, 3).round(3)
    Array([[0.1, 0.1, 0.8]], dtype=float32)
    """
    return (1 - smoothing) * one_hot(targets, num_classes) + smoothing / num_classes
