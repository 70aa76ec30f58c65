"""Mixup and CutMix of a batch with itself, and label smoothing.

Image `i` is mixed with image `N - 1 - i`, as in timm and DeiT: the order of a batch is
random already. On several devices that pairs images of different ones: the batch is
exchanged once between them, and is never gathered. In a batch of an odd size the image
in the middle stays as it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax.data.augment import boxes
from zosam_jax.data.augment.boxes import Box


class CutMix(NamedTuple):
    """The box of `cutmix`, the same for the whole batch.

    Attributes:
      box: The box, within the image.
      share: Float32, the share of the image outside of it: the weight of its own label.
    """

    box: Box
    share: jax.Array


def mixup_parameters(key: jax.Array, alpha: float) -> jax.Array:
    """Draws the weight of `mixup`, float32 from Beta(`alpha`, `alpha`), one a batch."""
    if alpha == 1:  # It is uniform, which compiles in a tenth of the time.
        return jax.random.uniform(key)
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def cutmix_parameters(
    key: jax.Array, shape: tuple[int, ...], alpha: float = 1.0
) -> CutMix:
    """Draws the box of `cutmix`.

    With `w ~ Beta(alpha, alpha)`, the half sides are `floor(floor(sqrt(1 - w) H) / 2)`
    and the same of `W`, and the centre is uniform over the pixels: the box of Yun et
    al., of area `1 - w` before it is cut off at the border. The share is that of what
    is left of it, exactly.

    Args:
      key: A random key.
      shape: `[N, H, W, C]` of the images.
      alpha: Parameter of the Beta distribution; 1 is uniform.
    """
    _, height, width, _ = shape
    for_area, for_centre = jax.random.split(key)
    weight = mixup_parameters(for_area, alpha)
    size = jnp.array([height, width])
    half = jnp.floor(jnp.sqrt(1 - weight) * size).astype(jnp.int32) // 2
    centre = jax.random.randint(for_centre, (2,), 0, size)
    first = jnp.maximum(centre - half, 0)
    sides = jnp.minimum(centre + half, size) - first
    share = 1 - sides[0] * sides[1] / (height * width)
    return CutMix(Box(*first, *sides), share.astype(jnp.float32))


def mixup(images: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns `weight x_i + (1 - weight) x_(N-1-i)` (Zhang et al., arXiv:1710.09412).

    Args:
      images: uint8 or float32 `[N, H, W, C]`.
      weight: A scalar in [0, 1], as of `mixup_parameters`.

    Returns:
      float32 `[N, H, W, C]`, not rounded to levels.
    """
    return _mix(images, weight)


def cutmix(images: jax.Array, box: Box) -> jax.Array:
    """Returns the images with the box cut from image `N-1-i` pasted into image `i`.

    Yun et al., arXiv:1905.04899.

    Args:
      images: `[N, H, W, C]` of any type.
      box: One box for the batch, as of `cutmix_parameters`.

    Returns:
      `[N, H, W, C]` of the same type.
    """
    pasted = boxes.inside(box, *images.shape[1:3])[..., None]
    return jnp.where(pasted, images[::-1], images)


def mixup_or_cutmix(
    images: jax.Array, weight: jax.Array, box: Box, use_cutmix: jax.Array
) -> jax.Array:
    """Returns `cutmix(images, box)` where `use_cutmix`, else `mixup(images, weight)`.

    Both are a mean of the two images with a weight for every pixel, 0 or 1 for CutMix:
    one pass, without a branch.

    Args:
      images: uint8 or float32 `[N, H, W, C]`.
      weight: As for `mixup`.
      box: As for `cutmix`.
      use_cutmix: A bool scalar.

    Returns:
      float32 `[N, H, W, C]`.
    """
    own = 1 - boxes.inside(box, *images.shape[1:3]).astype(jnp.float32)
    return _mix(images, jnp.where(use_cutmix, own, weight)[..., None])


def _mix(images: jax.Array, weight: jax.Array) -> jax.Array:
    # The exchange between devices is of the images as they are: uint8 is a quarter.
    own, other = (x.astype(jnp.float32) for x in (images, images[::-1]))
    return weight * own + (1 - weight) * other


def mix_labels(targets: jax.Array, weight: jax.Array, num_classes: int) -> jax.Array:
    """Returns `weight y_i + (1 - weight) y_(N-1-i)` of one-hot or soft labels.

    Args:
      targets: int `[N]`, or float32 `[N, K]`.
      weight: The weight of `mixup`, or the share of `cutmix`.
      num_classes: K.

    Returns:
      float32 `[N, K]`; a row sums to 1 where it did.
    """
    return _mix(one_hot(targets, num_classes), weight)


def one_hot(targets: jax.Array, num_classes: int) -> jax.Array:
    """Returns int labels `[N]`, or `[N, T]`, as float32 with a last axis of K.

    Soft labels, of a floating type, stay as they are.
    """
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return targets.astype(jnp.float32)
    return jax.nn.one_hot(targets, num_classes, dtype=jnp.float32)


def smooth_labels(targets: jax.Array, smoothing: float, num_classes: int) -> jax.Array:
    """Returns `(1 - e) y + e / K`, label smoothing (Szegedy et al., arXiv:1512.00567).

    It is linear: smoothing before mixing, as DeiT does it, gives the same.

    Args:
      targets: int `[N]`, or `[N, T]` of text; or soft labels `[N, K]`.
      smoothing: e, in [0, 1]; 0.1 in the paper.
      num_classes: K.

    Returns:
      float32 `[N, K]` (`[N, T, K]`); a row sums to 1 where it did.
    """
    return (1 - smoothing) * one_hot(targets, num_classes) + smoothing / num_classes
