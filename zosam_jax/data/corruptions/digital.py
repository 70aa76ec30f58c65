"""Digital corruptions: contrast, elastic transform, pixelation, JPEG, saturation.

`noise` describes the arguments of a corruption.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
import scipy
from PIL import Image

from zosam_jax.data.corruptions.noise import Rngs, draw


def contrast(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns `c (x - m) + m`; m is the mean of each channel of an image.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: Unused: nothing is drawn.
      c: Factor of the contrast.

    >>> contrast(np.array([0.0, 1.0]).reshape(1, 1, 2, 1), [], 0.5).ravel()
    array([0.25, 0.75])
    """
    del rngs
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * c + mean


def elastic_transform(
    x: np.ndarray, rngs: Rngs, c: tuple[float, float, float]
) -> np.ndarray:
    """Returns x after a random affine map and a random smooth displacement.

    The affine map moves three corners of the central square by at most c2 in each
    coordinate. The displacement is uniform noise in [-1, 1], smoothed by a Gaussian of
    standard deviation c1 and multiplied by c0. All three are fractions of the shorter
    side. Interpolation is linear.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Amplitude and smoothing of the displacement, and largest shift of a corner.
    """
    n, height, width, _ = x.shape
    side = min(height, width)
    alpha, sigma, reach = (value * side for value in c)
    shifts = draw(rngs, lambda rng: rng.uniform(-reach, reach, (3, 2)))
    fields = draw(rngs, lambda rng: rng.uniform(-1, 1, (2, height, width)))
    down, right = np.indices((height, width), dtype=float)

    centre = np.array([height // 2, width // 2], float)
    # The square spans two thirds; three of its corners define an affine map.
    step = side // 3
    old = centre + np.array([[step, step], [-step, step], [-step, -step]])
    new = old[None] + shifts[:, :, ::-1]
    # An image is warped by the inverse map: each output pixel asks where it came from.
    # With the three corners as rows (y, x, 1), `new @ inverse = old`.
    ones = np.ones((n, 3, 1))
    inverse = np.linalg.solve(np.concatenate([new, ones], 2), np.tile(old, (n, 1, 1)))
    grid = np.stack([down.ravel(), right.ravel(), np.ones(height * width)], 1)
    y, x_ = np.moveaxis(grid @ inverse, -1, 0).reshape(2, n, height, width)
    moved = _sample(x, y, x_, _mirror)

    # The filter may be wider than the image; products with its matrix are faster then.
    fields = _filter(height, sigma) @ fields @ _filter(width, sigma).T * alpha
    return _sample(moved, down + fields[:, 1], right + fields[:, 0], _reflect)


@functools.lru_cache(maxsize=16)
def _filter(size: int, sigma: float) -> np.ndarray:
    """Returns the matrix of a Gaussian filter: the filtered identity, `[size, size]`.

    The kernel ends at three standard deviations, and edges are mirrored.
    """
    return scipy.ndimage.gaussian_filter(
        np.eye(size), (sigma, 0), mode="reflect", truncate=3.0
    )


def _mirror(i: np.ndarray, size: int) -> np.ndarray:
    """Returns indices mirrored at the centers of the edge pixels (d c b | a b c d)."""
    # The mirrored axis repeats; its edge pixels stand once in a period.
    i = i % max(2 * size - 2, 1)
    return np.minimum(i, 2 * size - 2 - i)


def _reflect(i: np.ndarray, size: int) -> np.ndarray:
    """Returns indices mirrored at the outer edges (c b a | a b c)."""
    # Here edge pixels stand twice in a period.
    i = i % (2 * size)
    return np.minimum(i, 2 * size - 1 - i)


def _sample(
    x: np.ndarray,
    y: np.ndarray,
    x_: np.ndarray,
    fold: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """Returns x `[N, H, W, C]`, interpolated linearly at some positions.

    Args:
      x: The images.
      y: Rows, `[N, H, W]`, in pixels.
      x_: Columns, `[N, H, W]`, in pixels.
      fold: `(indices, size)`; maps indices outside of an axis into it.
    """
    n, height, width, channels = x.shape
    flat = x.reshape(-1, channels)
    first = np.arange(n)[:, None, None] * (height * width)
    # Four neighbors, weighted by the area of the opposite rectangle.
    top, left = np.floor(y), np.floor(x_)
    out = np.zeros_like(x)
    for row, weight in ((top, top + 1 - y), (top + 1, y - top)):
        start = first + fold(row.astype(int), height) * width
        for column, share in ((left, left + 1 - x_), (left + 1, x_ - left)):
            index = start + fold(column.astype(int), width)
            out += (weight * share)[..., None] * np.take(flat, index, axis=0)
    return out


def _by_pillow(
    x: np.ndarray, change: Callable[[Image.Image], Image.Image]
) -> np.ndarray:
    """Returns the images after a change by Pillow, on levels rounded to 8 bits."""
    grey = x.shape[-1] == 1
    out = np.empty(x.shape)
    for image, target in zip(np.rint(x * 255).astype(np.uint8), out, strict=True):
        picture = Image.fromarray(image[..., 0] if grey else image)
        target[...] = np.asarray(change(picture)).reshape(target.shape)
    return out / 255


def pixelate(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns x reduced to c times its size and enlarged again, with box filters.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: Unused: nothing is drawn.
      c: Factor of the resolution, in (0, 1].
    """
    del rngs
    height, width = x.shape[1:3]
    small = (max(int(width * c), 1), max(int(height * c), 1))
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda i: i.resize(small, box).resize((width, height), box))


def jpeg_compression(x: np.ndarray, rngs: Rngs, c: int) -> np.ndarray:
    """Returns x after compression as JPEG of quality c (1 to 95) by Pillow.

    Pillow's encoder (libjpeg) halves the resolution of color, as in the published sets.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: Unused: nothing is drawn.
      c: Quality, from 1 to 95.
    """
    del rngs
    return _by_pillow(x, lambda image: through_jpeg(image, c))


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Returns an image after it was saved as JPEG of a quality, from 1 to 95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def saved_as_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Returns images as they are read from JPEG files of a quality.

    Args:
      images: uint8 `[N, H, W, C]`, with 1 or 3 channels.
      quality: From 1 to 95.
    """
    levels = (
        np.asarray(through_jpeg(Image.fromarray(np.squeeze(image)), quality))
        for image in images
    )
    return np.stack([x.reshape(images.shape[1:]) for x in levels])


def saturate(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns x with its saturation S (of HSV) replaced by `c0 S + c1`, at most 1.

    At fixed hue and value V, `V - x` is proportional to the saturation. By the
    convention of HSV, the hue of a gray pixel is red.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: Unused: nothing is drawn.
      c: Factor of the saturation, and what is added to it.

    >>> saturate(np.array([[[[0.8, 0.4, 0.4]]]]), [], (0.5, 0)).ravel()
    array([0.8, 0.6, 0.6])
    """
    del rngs
    value = x.max(-1, keepdims=True)
    range_ = value - x.min(-1, keepdims=True)
    old = range_ / np.where(value > 0, value, 1)
    new = np.clip(c[0] * old + c[1], 0, 1)
    red = value * np.array([0.0, 1.0, 1.0]) * new
    # The hue stays if all channels keep their distances to the value in proportion.
    below = (value - x) * (new / np.where(old > 0, old, 1))
    return value - np.where(old > 0, below, red)
