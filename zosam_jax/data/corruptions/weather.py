"""Weather: snow, frost, fog, brightness, spatter.

`noise` describes the arguments of a corruption; `frost` takes photographs in addition.
"""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy

from zosam_jax.data import decoding, files
from zosam_jax.data.corruptions.blur import motion, smooth, zoom
from zosam_jax.data.corruptions.noise import Rngs, draw
from zosam_jax.data.dataset import DatasetError

_LUMA = np.array([0.299, 0.587, 0.114])


def _grey(x: np.ndarray) -> np.ndarray:
    """Returns the luma of colors, `[..., 1]`; images of one channel are unchanged."""
    return x if x.shape[-1] == 1 else (x @ _LUMA)[..., None]


def _like(colors: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns colors `[..., 3]`, or their luma if x has one channel."""
    return _grey(colors) if x.shape[-1] == 1 else colors


def snow(x: np.ndarray, rngs: Rngs, c: tuple[float, ...]) -> np.ndarray:
    """Returns x made paler, with snowflakes of enlarged noise.

    The paler image is `c6 x + (1 - c6) max(x, 1.5 luma + 0.5)`. The flakes are normal
    noise of mean c0 and standard deviation c1, enlarged by c2, set to zero below c3,
    and blurred by `motion` with radius c4 and standard deviation c5 in a random
    direction from -135 to -45 degrees. They are added twice: as they are, and rotated
    by 180 degrees.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: The seven parameters above.
    """
    mean, deviation, factor, threshold, radius, sigma, share = c
    shape = x.shape[1:3]
    flakes = draw(rngs, lambda rng: rng.normal(mean, deviation, shape))
    angles = draw(rngs, lambda rng: rng.uniform(-135, -45))
    flakes = zoom(flakes[..., None], factor)
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1))
    flakes = motion(np.floor(flakes * 255) / 255, angles, radius, sigma)
    # Whiter by luma, so that colors fade; nothing becomes darker.
    pale = np.maximum(x, _grey(x) * 1.5 + 0.5)
    return share * x + (1 - share) * pale + flakes + flakes[:, ::-1, ::-1]


def plasma(rngs: Rngs, shape: tuple[int, ...], decay: float) -> np.ndarray:
    """Returns clouds by the diamond-square algorithm, `[N, H, W]` from 0 to 1.

    The algorithm fills a torus with a side of the next power of two, of which the upper
    left corner is returned. Each round halves the grid's step: first the middles of the
    squares, then the middles of their edges become the mean of their four neighbors
    plus uniform noise. The amplitude of the noise falls by `decay^2` each round.

    Args:
      rngs: A random generator for each image.
      shape: H and W.
      decay: Factor by which the square root of the amplitude falls in each round. A
        larger one gives smoother clouds.
    """
    height, width = shape
    size = 1 << (max(shape) - 1).bit_length()
    # One draw for all rounds: every point but the first gets one number.
    noise = draw(rngs, lambda rng: rng.uniform(-1, 1, size * size - 1))
    field = np.zeros((len(noise), size, size))
    used, step, amplitude = 0, size, 100.0

    def put(rows: slice, columns: slice, total: np.ndarray) -> None:
        nonlocal used
        count = total[0].size
        wobble = noise[:, used : used + count].reshape(total.shape)
        field[:, rows, columns] = total / 4 + amplitude**2 * wobble
        used += count

    # `np.roll` closes the torus: every point has four neighbors.
    while step >= 2:
        on, off = slice(0, size, step), slice(step // 2, size, step)
        corners = field[:, on, on]
        total = corners + np.roll(corners, -1, 1)
        put(off, off, total + np.roll(total, -1, 2))
        middles, corners = field[:, off, off], field[:, on, on]
        beside = corners + np.roll(corners, -1, 2)
        put(on, off, middles + np.roll(middles, 1, 1) + beside)
        beside = corners + np.roll(corners, -1, 1)
        put(off, on, middles + np.roll(middles, 1, 2) + beside)
        step //= 2
        # Rough at large scales and fine at small ones: a power law of the frequency.
        amplitude /= decay
    field -= field.min((1, 2), keepdims=True)
    field /= field.max((1, 2), keepdims=True)
    return field[:, :height, :width]


def fog(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns `(x + c0 p) m / (m + c0)`: p is `plasma`, m the image's maximum.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Weight of the fog, and decay of its details in `plasma`.
    """
    strength, decay = c
    # The last factor gives an image back its range, whatever the weight of the fog.
    top = x.max((1, 2, 3), keepdims=True)
    clouds = plasma(rngs, x.shape[1:3], decay)[..., None]
    return (x + strength * clouds) * top / (top + strength)


def photographs(folder: Path, every: int) -> list[np.ndarray]:
    """Returns the pictures in a folder by name, float64 `[H, W, 3]` in [0, 1].

    Args:
      folder: Folder of .png, .jpg or .jpeg files.
      every: Every how many pixels one is kept, along both axes.

    Raises:
      DatasetError: A file is not a picture.
      OSError: The folder cannot be listed.
    """
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    pictures = []
    for path in paths:
        try:
            encoded = files.read(path, decoding.MOST_BYTES)
            pixels = np.asarray(decoding.decode(encoded, 3))
        except decoding.BROKEN as error:
            raise DatasetError(
                f"{path} is not a picture that can be used: {decoding.reason(error)}."
            ) from error
        pictures.append(pixels[every // 2 :: every, every // 2 :: every] / 255)
    return pictures


@functools.lru_cache(maxsize=4)
def _cached_photographs(folder: Path, every: int) -> tuple[np.ndarray, ...]:
    return tuple(photographs(folder, every))


def frost_pictures(
    folder: str | os.PathLike[str] | None, height: int, width: int, every: int
) -> tuple[np.ndarray, ...]:
    """Returns the photographs of frost from a folder.

    Args:
      folder: Folder of the photographs; None raises an error with instructions.
      height: Smallest number of rows that they must have after the reduction.
      width: Smallest number of columns.
      every: Every how many pixels one is kept, along both axes.

    Raises:
      DatasetError: There are no photographs, or one is too small.
    """
    if folder is None:
        raise DatasetError(
            "the corruption 'frost' needs photographs of frost, which are not part of "
            "this package. Name a folder of them with frost_dir (--frost-dir), or use "
            "'frost_standin', which draws a texture instead."
        )
    place = files.place(f"frost_dir={folder}", folder).resolve()
    try:
        pictures = _cached_photographs(place, every)
    except OSError as error:
        raise DatasetError(
            f"frost_dir={place} cannot be read: {error.strerror}."
        ) from error
    if not pictures or any(p.shape[0] < height or p.shape[1] < width for p in pictures):
        raise DatasetError(
            f"frost_dir={place} has no pictures (.png, .jpg), or some with fewer than "
            f"{every * height} x {every * width} pixels."
        )
    return pictures


def frost(
    x: np.ndarray,
    rngs: Rngs,
    c: tuple[float, float],
    pictures: Sequence[np.ndarray],
) -> np.ndarray:
    """Returns `c0 x + c1 f`; f is a random crop of a random photograph of frost.

    Args:
      x: As in `noise`.
      rngs: As in `noise`.
      c: As in `noise`.
      pictures: The photographs, from `frost_pictures`.
    """
    height, width = x.shape[1:3]

    def part(rng: np.random.Generator) -> np.ndarray:
        picture = pictures[int(rng.integers(len(pictures)))]
        i = rng.integers(picture.shape[0] - height + 1)
        j = rng.integers(picture.shape[1] - width + 1)
        return picture[i : i + height, j : j + width]

    return c[0] * x + c[1] * _like(draw(rngs, part), x)


# Measured on crops of the published photographs: the range of their mean gray levels,
# the range of the standard deviation of gray, and the mean color minus its gray.
_FROST_GREY = (0.38, 0.88)
_FROST_DEVIATION = (0.05, 0.125)
_FROST_TINT = np.array([-0.07, 0.01, 0.06])


def frost_standin(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns `c0 x + c1 f`; f is a drawn texture instead of a photograph of frost.

    f is `plasma` without decay, which has details of all sizes, with the brightness,
    contrast and tint of crops of the published photographs. It has no ice crystals, and
    accuracies under it are not comparable with those under the published corruption.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Weights of the image and of the texture.
    """
    grey = draw(rngs, lambda rng: rng.uniform(*_FROST_GREY))
    contrast = draw(rngs, lambda rng: rng.uniform(*_FROST_DEVIATION))
    tint = draw(rngs, lambda rng: rng.uniform(0, 2))[:, None] * _FROST_TINT
    texture = plasma(rngs, x.shape[1:3], 1.0)
    # Standardized first: the drawn contrast and gray are then exact.
    texture -= texture.mean((1, 2), keepdims=True)
    texture *= (contrast / texture.std((1, 2)))[:, None, None]
    layer = (texture + grey[:, None, None])[..., None] + tint[:, None, None]
    return c[0] * x + c[1] * _like(np.clip(layer, 0, 1), x)


def brightness(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns x with c added to its value (of HSV), at most 1.

    At fixed hue and saturation, all channels are proportional to the value.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: Unused: nothing is drawn.
      c: Added to the value.

    >>> brightness(np.array([[[[0.2, 0.1, 0.0]]]]), [], 0.2).ravel()
    array([0.4, 0.2, 0. ])
    """
    del rngs
    # Black has no hue: all its channels become c.
    value = x.max(-1, keepdims=True)
    target = np.minimum(value + c, 1)
    return np.where(value > 0, x * (target / np.where(value > 0, value, 1)), target)


_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255


def spatter(x: np.ndarray, rngs: Rngs, c: tuple[float, ...]) -> np.ndarray:
    """Returns x with drops of water added, or partly covered by mud if c5.

    Drops are where normal noise of mean c0 and standard deviation c1, smoothed by a
    Gaussian of standard deviation c2, is at least c3. Water is shaded by `_water` and
    multiplied by c4. The opacity of mud is smoothed by a Gaussian of standard deviation
    c4, and values below 0.8 become 0.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: The six parameters above.
    """
    mean, deviation, sigma, threshold, strength, is_mud = c
    shape = x.shape[1:3]
    drops = draw(rngs, lambda rng: rng.normal(mean, deviation, shape))
    drops = smooth(drops[..., None], sigma)[..., 0]
    if is_mud:
        spots = smooth((drops > threshold)[..., None].astype(float), strength)
        spots[spots < 0.8] = 0
        return x * (1 - spots) + spots * _like(np.broadcast_to(_MUD, (1, 3)), x)
    drops = np.where(drops < threshold, 0, np.floor(np.clip(drops, 0, 1) * 255))
    water = np.stack([_water(image) for image in drops.astype(np.uint8)])
    color = _like(np.broadcast_to(_WATER, (1, 3)), x)
    return x + strength * water[..., None] * color


def _water(drops: np.ndarray) -> np.ndarray:
    """Returns the light on drops of water, `[H, W]` from 0 to 1.

    As in the published code: the distance to the nearest edge of a
    drop (at most 20 pixels), a 3x3 mean, histogram equalization, an emboss filter, a
    3x3 mean, and the product with the drops. The distance is exact here, and OpenCV
    approximates it. Equalization uses the order of the distances only.

    Args:
      drops: uint8 `[H, W]`.
    """
    edges = _edges(drops.astype(float), 50, 150)
    distance = np.full(drops.shape, 20.0)
    if edges.any():
        distance = np.asarray(scipy.ndimage.distance_transform_edt(~edges))
        distance = np.minimum(distance, 20)
    # The distances are whole levels in the published code; the margin keeps a mean of
    # equal ones from falling to the level below.
    levels = np.floor(scipy.ndimage.uniform_filter(distance, 3, mode="mirror") + 1e-9)
    levels = _equalized(levels.astype(int))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    levels = np.clip(scipy.ndimage.correlate(levels, emboss, mode="mirror"), 0, 255)
    light = drops * np.rint(scipy.ndimage.uniform_filter(levels, 3, mode="mirror"))
    return light / max(light.max(), 1)


def _equalized(levels: np.ndarray) -> np.ndarray:
    """Returns the levels after OpenCV's histogram equalization, 0 to 255."""
    counts = np.bincount(levels.ravel(), minlength=256)
    lowest = int(levels.min())
    rest = levels.size - counts[lowest]
    if rest == 0:
        return levels.astype(float)
    # OpenCV maps the lowest level to 0 and spreads the others by their ranks.
    above = np.cumsum(counts) - counts[lowest]
    return np.rint(np.clip(above[levels] * (255 / rest), 0, 255))


def _edges(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns the edges of an image by Canny's algorithm, bool `[H, W]`.

    Edge points are local maxima, across the edge, of the L1 norm of Sobel's gradient.
    Those above `high` are kept, and those above `low` that are connected to them.

    Args:
      x: The image, `[H, W]`; edge pixels are repeated.
      low: Lower threshold of the gradient's norm.
      high: Upper threshold.
    """
    right = scipy.ndimage.sobel(x, 1, mode="nearest")
    down = scipy.ndimage.sobel(x, 0, mode="nearest")
    size = np.abs(right) + np.abs(down)
    wide = np.pad(size, 1)
    height, width = x.shape

    def beside(i: int, j: int) -> np.ndarray:
        return wide[1 + i : 1 + i + height, 1 + j : 1 + j + width]

    def ridge(i: int, j: int, after: Callable[..., np.ndarray]) -> np.ndarray:
        return (size > beside(-i, -j)) & after(size, beside(i, j))

    # The direction of the gradient is rounded to a multiple of 45 degrees; the two
    # neighbors in that direction are compared.
    slope, flat = np.tan(np.pi / 8), np.abs(right)
    same = np.sign(right) * np.sign(down) >= 0
    peak = np.where(
        np.abs(down) < slope * flat,
        ridge(0, 1, np.greater_equal),
        np.where(
            np.abs(down) > flat / slope,
            ridge(1, 0, np.greater_equal),
            np.where(same, ridge(1, 1, np.greater), ridge(1, -1, np.greater)),
        ),
    )
    # Hysteresis: a weak part of a strong edge belongs to the edge.
    weak = peak & (size > low)
    return scipy.ndimage.binary_propagation(
        peak & (size > high), structure=np.ones((3, 3)), mask=weak
    )
