"""Blurs: defocus, frosted glass, motion, zoom, Gaussian.

`noise` describes the arguments of a corruption.
"""

import functools

import numpy as np
import scipy

from zosam_jax.data.corruptions.noise import Rngs, draw

# A value this little below a whole level counts as that level. The published code
# truncates to levels; without the margin, rounding errors would decide.
ROUNDING = 1e-6


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Returns x after a Gaussian filter of `sigma` pixels; edge pixels are repeated."""
    return scipy.ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def zoom(x: np.ndarray, factor: float) -> np.ndarray:
    """Returns the center of x `[N, H, W, C]`, enlarged by `factor`.

    Along each axis, the central `ceil(size / factor)` pixels are interpolated linearly
    to `factor` times as many, first onto first and last onto last. The central `size`
    of them are kept.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        part = int(np.ceil(size / factor))
        length = round(part * factor)
        place = np.arange(size) + (length - size) // 2
        # n pixels have n - 1 gaps: the ends fall onto the ends.
        place = place * (part - 1) / max(length - 1, 1)
        # The last pixel has none to its right; it ends the gap before it.
        left = np.minimum(place.astype(int), max(part - 2, 0))
        share = np.expand_dims(place - left, tuple(range(1, 4 - axis)))
        left += (size - part) // 2
        right = np.minimum(left + 1, size - 1)
        x = (1 - share) * np.take(x, left, axis) + share * np.take(x, right, axis)
    return x


@functools.lru_cache(maxsize=16)
def disk(radius: float, sigma: float) -> np.ndarray:
    """Returns the kernel of a lens out of focus.

    It is 1 for pixels whose centers are within `radius`, normalized, and then smoothed
    by a Gaussian of 3 x 3 taps (5 x 5 for a radius above 8). The grid of the published
    code ends at the radius and is mirrored there. For the largest disks, the smoothing
    reaches beyond the grid, so that the kernel's sum is up to 1.3 % above 1.

    Args:
      radius: In pixels.
      sigma: Standard deviation of the smoothing, in pixels.

    >>> disk(1.0, 0.1).round(2)
    array([[0. , 0.2, 0. ],
           [0.2, 0.2, 0.2],
           [0. , 0.2, 0. ]])
    """
    reach = int(max(radius, 8))
    grid = np.arange(-reach, reach + 1) ** 2
    kernel = (grid[:, None] + grid <= radius**2).astype(float)
    kernel /= kernel.sum()
    taps = np.arange(-2, 3) if radius > 8 else np.arange(-1, 2)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    for axis in (0, 1):
        kernel = scipy.ndimage.correlate1d(
            kernel, weights / weights.sum(), axis, mode="mirror"
        )
    # Taps this small change no level, and each would cost a shift of all images.
    kernel[kernel < 1e-12] = 0
    used = np.flatnonzero(kernel.max(0))
    return kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


# With more nonzero taps, a product of Fourier transforms beats a sum of shifts.
_MANY_TAPS = 64


def defocus_blur(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns x correlated with `disk(*c)`, mirrored at the centers of edge pixels.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: Unused: nothing is drawn.
      c: Radius of the disk and standard deviation of its smoothing, in pixels.
    """
    del rngs
    kernel = disk(*c)
    reach = len(kernel) // 2
    height, width = x.shape[1:3]
    wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "reflect")
    if np.count_nonzero(kernel) > _MANY_TAPS:
        sizes = wide.shape[1:3]
        # The conjugate: a correlation, where the plain product is a convolution.
        transform = np.conj(np.fft.rfft2(kernel, sizes))[..., None]
        product = np.fft.rfft2(wide, axes=(1, 2)) * transform
        return np.fft.irfft2(product, sizes, axes=(1, 2))[:, :height, :width]
    out = np.zeros_like(x)
    for row, column in np.argwhere(kernel):
        part = wide[:, row : row + height, column : column + width]
        out += kernel[row, column] * part
    return out


def glass_blur(x: np.ndarray, rngs: Rngs, c: tuple[float, int, int]) -> np.ndarray:
    """Returns x smoothed, with pixels displaced at random, and smoothed again.

    In c2 passes, every pixel from the last to the first takes the color of a random
    pixel at most c1 rows and columns away. c0 is the standard deviation of both
    smoothings, in pixels. (The paper describes a swap of the two pixels. The published
    code copies, since its swap overwrites the value that it would copy back.)

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Standard deviation and largest displacement, in pixels, and number of passes.
    """
    sigma, reach, passes = c
    n, height, width, channels = x.shape
    # The published code moves the pixels of an 8-bit image.
    x = np.floor(smooth(x, sigma) * 255 + ROUNDING) / 255
    rows = np.arange(reach + 1, height - reach + 1)
    columns = np.arange(reach + 1, width - reach + 1)
    here = (rows[:, None] * width + columns).ravel()
    size = (passes, 2, len(rows), len(columns))
    shifts = draw(rngs, lambda rng: rng.integers(-reach, reach, size))
    # All passes of an image are one draw of its own generator.
    shifts = shifts.reshape(n, passes, 2, -1)
    flat = x.reshape(n, -1, channels)
    for turn in range(passes):
        source = _sources(
            here, here + shifts[:, turn, 0] * width + shifts[:, turn, 1], height * width
        )
        flat = np.take_along_axis(flat, source[..., None], 1)
    return smooth(flat.reshape(x.shape), sigma)


def _sources(here: np.ndarray, chosen: np.ndarray, pixels: int) -> np.ndarray:
    """Returns the index of the pixel whose color each pixel ends up with.

    The loop that this replaces goes over j from the last to the first, and pixel
    `here[j]` takes the color that pixel `chosen[:, j]` has at that time. If the chosen
    pixel has a larger index, its turn is over, and it passes on the color it took.
    These chains are followed to their ends by pointer doubling.

    Args:
      here: Indices of the pixels that change, ascending.
      chosen: Indices that they take from, `[N, len(here)]`.
      pixels: Number of pixels of an image.

    Returns:
      `[N, pixels]`.
    """
    n = len(chosen)
    changes = np.zeros(pixels, bool)
    changes[here] = True
    # Index i stands for the color that i has taken, pixels + i for its original color.
    link = np.tile(np.arange(pixels, 2 * pixels), (n, 1))
    had_its_turn = changes[chosen] & (chosen > here)
    link[:, here] = np.where(had_its_turn, chosen, chosen + pixels)
    while (open_ := link < pixels).any():
        link = np.where(open_, np.take_along_axis(link, link % pixels, 1), link)
    return link - pixels


def motion(
    x: np.ndarray, angles: np.ndarray, radius: float, sigma: float
) -> np.ndarray:
    """Returns x blurred along a line that starts at each pixel, rounded to 8 bits.

    This is ImageMagick's motion blur: a mean of the pixels at distances 0 to
    `2 radius`, each at its nearest whole position, weighted by a Gaussian of the
    distance. Edge pixels are repeated.

    Args:
      x: `[N, H, W, C]`.
      angles: Direction for each image in degrees, from right (0) to down (90).
      radius: A whole number of pixels.
      sigma: Standard deviation of the distance, in pixels.
    """
    distance = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(distance**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = x.shape[1:3]
    reach = len(distance)
    wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), "edge")
    out = np.zeros_like(x)
    # `ceil(v - 0.5)` rounds halves down, as ImageMagick does.
    for image, target, angle in zip(wide, out, np.deg2rad(angles), strict=True):
        down = np.ceil(distance * np.sin(angle) - 0.5).astype(int) + reach
        right = np.ceil(distance * np.cos(angle) - 0.5).astype(int) + reach
        for weight, i, j in zip(weights, down, right, strict=True):
            target += weight * image[i : i + height, j : j + width]
    return np.rint(out * 255) / 255


def motion_blur(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns x after `motion` in a random direction from -45 to 45 degrees.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Radius and standard deviation of `motion`, in pixels.
    """
    return motion(x, draw(rngs, lambda rng: rng.uniform(-45, 45)), *c)


def zoom_blur(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns the mean of x and of x enlarged by 1, 1 + c1, ..., below c0.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: Unused: nothing is drawn.
      c: End and step of the factors.
    """
    del rngs
    factors = np.arange(1, *c)
    total = x.copy()
    for factor in factors:
        total += zoom(x, float(factor))
    # The image itself counts twice: once as it is, and once enlarged by 1.
    return total / (len(factors) + 1)


def gaussian_blur(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns x after a Gaussian filter of standard deviation c, in pixels.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: Unused: nothing is drawn.
      c: Standard deviation, in pixels.
    """
    del rngs
    return smooth(x, c)
