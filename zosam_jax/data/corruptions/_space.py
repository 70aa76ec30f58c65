"""Corruptions that move light: blurs and the elastic transform.

The signatures are those of `_pixels`.
"""

import functools
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from zosam_jax.data.corruptions._pixels import Rngs, draw


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Returns x `[N, H, W, C]` after a Gaussian filter, with its edges continued."""
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """Returns the middle of x `[N, H, W, C]`, enlarged.

    Along each axis, the middle `ceil(size / factor)` pixels are interpolated linearly,
    corner to corner, to `factor` times as many, of which the middle `size` stay.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        part = int(np.ceil(size / factor))
        length = round(part * factor)
        place = np.arange(size) + (length - size) // 2
        place = place * (part - 1) / max(length - 1, 1)
        left = np.minimum(place.astype(int), max(part - 2, 0))
        share = np.expand_dims(place - left, tuple(range(1, 4 - axis)))
        left += (size - part) // 2
        right = np.minimum(left + 1, size - 1)
        x = (1 - share) * np.take(x, left, axis) + share * np.take(x, right, axis)
    return x


def gaussian_blur(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns x after a Gaussian filter of deviation c, with its edges continued."""
    del rngs
    return smooth(x, c)


@functools.lru_cache(maxsize=16)
def disk(radius: float, sigma: float) -> np.ndarray:
    """Returns the kernel of a lens out of focus, of sum 1 (1 % more for the largest).

    The pixels whose centres lie within `radius`, smoothed by a Gaussian of deviation
    `sigma` of 3 x 3 taps, or 5 x 5 where the radius is above 8. The grid ends at the
    radius, where it is mirrored: what the largest disks lose there comes back double.
    """
    reach = int(max(radius, 8))
    grid = np.arange(-reach, reach + 1) ** 2
    kernel = (grid[:, None] + grid <= radius**2).astype(float)
    kernel /= kernel.sum()
    taps = np.arange(-2, 3) if radius > 8 else np.arange(-1, 2)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    for axis in (0, 1):
        kernel = ndimage.correlate1d(
            kernel, weights / weights.sum(), axis, mode="mirror"
        )
    kernel[kernel < 1e-12] = 0
    used = np.flatnonzero(kernel.max(0))
    return kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


# Taps from which on a product of Fourier transforms is quicker than a sum of shifts.
_MANY_TAPS = 64


def defocus_blur(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns x correlated with `disk(*c)`, mirrored at the centres of its edges."""
    del rngs
    kernel = disk(*c)
    reach = len(kernel) // 2
    height, width = x.shape[1:3]
    wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "reflect")
    if np.count_nonzero(kernel) > _MANY_TAPS:
        sizes = wide.shape[1:3]
        transform = np.conj(np.fft.rfft2(kernel, sizes))[..., None]
        product = np.fft.rfft2(wide, axes=(1, 2)) * transform
        return np.fft.irfft2(product, sizes, axes=(1, 2))[:, :height, :width]
    out = np.zeros_like(x)
    for row, column in np.argwhere(kernel):
        part = wide[:, row : row + height, column : column + width]
        out += kernel[row, column] * part
    return out


def glass_blur(x: np.ndarray, rngs: Rngs, c: tuple[float, int, int]) -> np.ndarray:
    """Returns x smoothed, with pixels moved at random, and smoothed again.

    Pixel after pixel, from the last to the first, takes the colour of one at most c1
    away, in c2 passes. (The paper's figure is an exchange of the two. The code that
    made the sets copies, for its exchange overwrites what it would copy back.)
    """
    sigma, reach, passes = c
    n, height, width, channels = x.shape
    x = np.floor(smooth(x, sigma) * 255 + ROUNDING) / 255
    rows = np.arange(reach + 1, height - reach + 1)
    columns = np.arange(reach + 1, width - reach + 1)
    here = (rows[:, None] * width + columns).ravel()
    size = (passes, 2, len(rows), len(columns))
    shifts = draw(rngs, lambda rng: rng.integers(-reach, reach, size))
    shifts = shifts.reshape(n, passes, 2, -1)
    flat = x.reshape(n, -1, channels)
    for turn in range(passes):
        source = _sources(
            here, here + shifts[:, turn, 0] * width + shifts[:, turn, 1], height * width
        )
        flat = np.take_along_axis(flat, source[..., None], 1)
    return smooth(flat.reshape(x.shape), sigma)


# What a float may lie below a whole number of levels and still count as that number.
ROUNDING = 1e-6


def _sources(here: np.ndarray, chosen: np.ndarray, pixels: int) -> np.ndarray:
    """Returns, for every pixel, the pixel that its colour comes from, `[N, pixels]`.

    In turn, from the last to the first, `here[j]` takes the colour of `chosen[:, j]`.
    A pixel chosen that had its turn before passes on what it took: the chains of such
    are followed to their ends by doubling.

    Args:
      here: Indices of the pixels that change, ascending.
      chosen: Index that each takes from, `[N, len(here)]`.
      pixels: Pixels of an image.
    """
    n = len(chosen)
    changes = np.zeros(pixels, bool)
    changes[here] = True
    # Index i stands for what i has taken, pixels + i for what i had at first.
    link = np.tile(np.arange(pixels, 2 * pixels), (n, 1))
    had_its_turn = changes[chosen] & (chosen > here)
    link[:, here] = np.where(had_its_turn, chosen, chosen + pixels)
    while (open_ := link < pixels).any():
        link = np.where(open_, np.take_along_axis(link, link % pixels, 1), link)
    return link - pixels


def motion(
    x: np.ndarray, angles: np.ndarray, radius: float, sigma: float
) -> np.ndarray:
    """Returns x blurred along a line from each pixel, rounded to 8 bits.

    ImageMagick's motion blur: the pixels at distances 0 to `2 radius` in a direction,
    each at the nearest whole place, weighted by a Gaussian of the distance; edges are
    continued.

    Args:
      x: `[N, H, W, C]`.
      angles: Direction for each image, in degrees from the right towards below.
      radius: A whole number of pixels.
      sigma: Standard deviation of the distance.
    """
    distance = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = x.shape[1:3]
    reach = len(distance)
    wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
    out = np.zeros_like(x)
    for image, target, angle in zip(wide, out, np.deg2rad(angles), strict=True):
        down = np.ceil(distance * np.sin(angle) - 0.5).astype(int) + reach
        right = np.ceil(distance * np.cos(angle) - 0.5).astype(int) + reach
        for weight, i, j in zip(weights, down, right, strict=True):
            target += weight * image[i : i + height, j : j + width]
    return np.rint(out * 255) / 255


def motion_blur(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns x after `motion` in a direction from -45 to 45 degrees."""
    return motion(x, draw(rngs, lambda rng: rng.uniform(-45, 45)), *c)


def zoom_blur(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns the mean of x and of x enlarged by 1, 1 + c1, ..., up to c0."""
    del rngs
    factors = np.arange(1, *c)
    total = x.copy()
    for factor in factors:
        total += zoom(x, float(factor))
    return total / (len(factors) + 1)


def elastic_transform(
    x: np.ndarray, rngs: Rngs, c: tuple[float, float, float]
) -> np.ndarray:
    """Returns x after a random affine map and a random smooth displacement.

    The map takes three points to others at most c2 away in each coordinate; the
    displacement is uniform noise in [-1, 1] smoothed at c1, times c0. All are shares of
    the shorter side. Interpolation is linear.
    """
    n, height, width, _ = x.shape
    side = min(height, width)
    alpha, sigma, reach = (value * side for value in c)
    shifts = draw(rngs, lambda rng: rng.uniform(-reach, reach, (3, 2)))
    fields = draw(rngs, lambda rng: rng.uniform(-1, 1, (2, height, width)))
    down, right = np.indices((height, width), dtype=float)

    centre = np.array([height // 2, width // 2], float)
    step = side // 3
    old = centre + np.array([[step, step], [-step, step], [-step, -step]])
    new = old[None] + shifts[:, :, ::-1]
    # Rows (y, x, 1) of the points after the map, times this, are those before it.
    ones = np.ones((n, 3, 1))
    inverse = np.linalg.solve(np.concatenate([new, ones], 2), np.tile(old, (n, 1, 1)))
    grid = np.stack([down.ravel(), right.ravel(), np.ones(height * width)], 1)
    y, x_ = np.moveaxis(grid @ inverse, -1, 0).reshape(2, n, height, width)
    moved = _sample(x, y, x_, _mirror)

    # The smoothing may reach beyond the image, where a matrix is the quicker filter.
    fields = _filter(height, sigma) @ fields @ _filter(width, sigma).T * alpha
    return _sample(moved, down + fields[:, 1], right + fields[:, 0], _reflect)


@functools.lru_cache(maxsize=16)
def _filter(size: int, sigma: float) -> np.ndarray:
    """Returns the matrix of a Gaussian filter, mirrored at the edges: of the identity.

    Its kernel ends at three standard deviations.
    """
    return ndimage.gaussian_filter(
        np.eye(size), (sigma, 0), mode="reflect", truncate=3.0
    )


def _mirror(i: np.ndarray, size: int) -> np.ndarray:
    """Returns indices continued by mirroring at the centres of the edge pixels."""
    i = i % max(2 * size - 2, 1)
    return np.minimum(i, 2 * size - 2 - i)


def _reflect(i: np.ndarray, size: int) -> np.ndarray:
    """Returns indices continued by mirroring at the outer edges."""
    i = i % (2 * size)
    return np.minimum(i, 2 * size - 1 - i)


def _sample(
    x: np.ndarray,
    y: np.ndarray,
    x_: np.ndarray,
    fold: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """Returns x `[N, H, W, C]` at rows y and columns x_, `[N, H, W]`, linearly."""
    n, height, width, channels = x.shape
    flat = x.reshape(-1, channels)
    first = np.arange(n)[:, None, None] * (height * width)
    top, left = np.floor(y), np.floor(x_)
    out = np.zeros_like(x)
    for row, weight in ((top, top + 1 - y), (top + 1, y - top)):
        start = first + fold(row.astype(int), height) * width
        for column, share in ((left, left + 1 - x_), (left + 1, x_ - left)):
            index = start + fold(column.astype(int), width)
            out += (weight * share)[..., None] * np.take(flat, index, axis=0)
    return out
