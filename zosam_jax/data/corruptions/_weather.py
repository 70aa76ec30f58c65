"""Corruptions that put something before the camera: snow, frost, fog, spatter.

The signatures are those of `_pixels`; `frost` and `frost_standin` take more.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from zosam_jax.data.corruptions._pixels import Rngs, draw
from zosam_jax.data.corruptions._space import motion, smooth, zoom

_LUMA = np.array([0.299, 0.587, 0.114])


def _grey(x: np.ndarray) -> np.ndarray:
    """Returns the luma of colours, `[..., 1]`; grey stays as it is."""
    return x if x.shape[-1] == 1 else (x @ _LUMA)[..., None]


def _like(colors: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns colours `[..., 3]`, as their luma where x is grey."""
    return _grey(colors) if x.shape[-1] == 1 else colors


def snow(x: np.ndarray, rngs: Rngs, c: tuple[float, ...]) -> np.ndarray:
    """Returns x paler, with flakes of enlarged noise that fall in two directions.

    The flakes are a normal field of mean c0 and deviation c1, enlarged c2 times, zero
    below c3, blurred by `motion` of radius c4 and deviation c5 in a direction from -135
    to -45 degrees; they are added as they are and rotated by 180 degrees. Of the image,
    the share `1 - c6` is as pale as `max(x, 1.5 luma + 0.5)`.
    """
    mean, deviation, factor, threshold, radius, sigma, share = c
    shape = x.shape[1:3]
    flakes = draw(rngs, lambda rng: rng.normal(mean, deviation, shape))
    angles = draw(rngs, lambda rng: rng.uniform(-135, -45))
    flakes = zoom(flakes[..., None], factor)
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1))
    flakes = motion(np.floor(flakes * 255) / 255, angles, radius, sigma)
    pale = np.maximum(x, _grey(x) * 1.5 + 0.5)
    return share * x + (1 - share) * pale + flakes + flakes[:, ::-1, ::-1]


def plasma(rngs: Rngs, shape: tuple[int, ...], decay: float) -> np.ndarray:
    """Returns clouds by the diamond-square algorithm, `[N, H, W]` from 0 to 1.

    A torus of the next power of two, of which the upper left corner is returned. At
    every halving of the step, the new points are the means of their four neighbours
    plus uniform noise, whose amplitude falls by `decay^2`.
    """
    height, width = shape
    size = 1 << (max(shape) - 1).bit_length()
    noise = draw(rngs, lambda rng: rng.uniform(-1, 1, size * size - 1))
    field = np.zeros((len(noise), size, size))
    used, step, amplitude = 0, size, 100.0

    def put(rows: slice, columns: slice, total: np.ndarray) -> None:
        nonlocal used
        count = total[0].size
        wobble = noise[:, used : used + count].reshape(total.shape)
        field[:, rows, columns] = total / 4 + amplitude**2 * wobble
        used += count

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
        amplitude /= decay
    field -= field.min((1, 2), keepdims=True)
    field /= field.max((1, 2), keepdims=True)
    return field[:, :height, :width]


def fog(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns `(x + c0 p) m / (m + c0)`: p from `plasma`, m the image's largest."""
    strength, decay = c
    top = x.max((1, 2, 3), keepdims=True)
    clouds = plasma(rngs, x.shape[1:3], decay)[..., None]
    return (x + strength * clouds) * top / (top + strength)


def photographs(folder: Path, every: int) -> list[np.ndarray]:
    """Returns the pictures in a folder, float64 `[H, W, 3]` in [0, 1], by name.

    Args:
      folder: Files with the endings .png, .jpg or .jpeg.
      every: Pixels of which one is kept, along both axes.
    """
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    pictures = []
    for path in files:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        pictures.append(pixels[every // 2 :: every, every // 2 :: every] / 255)
    return pictures


def frost(
    x: np.ndarray,
    rngs: Rngs,
    c: tuple[float, float],
    pictures: Sequence[np.ndarray],
) -> np.ndarray:
    """Returns `c0 x + c1 f`, with f a random part of one of the `photographs`."""
    height, width = x.shape[1:3]

    def part(rng: np.random.Generator) -> np.ndarray:
        picture = pictures[int(rng.integers(len(pictures)))]
        i = rng.integers(picture.shape[0] - height + 1)
        j = rng.integers(picture.shape[1] - width + 1)
        return picture[i : i + height, j : j + width]

    return c[0] * x + c[1] * _like(draw(rngs, part), x)


# Of parts of the released code's photographs: the range of their means, that of the
# deviation of their grey, and their mean colour less its grey.
_FROST_GREY = (0.38, 0.88)
_FROST_DEVIATION = (0.05, 0.125)
_FROST_TINT = np.array([-0.07, 0.01, 0.06])


def frost_standin(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns `c0 x + c1 f`, with f drawn instead of cut out of a photograph.

    f is a texture as coarse and as fine as parts of the published photographs are, with
    details of all sizes alike (`plasma` that does not decay), of their range of
    brightness, contrast and tint. It is not frost: it has no crystals, and the accuracy
    under it is not that under the published corruption.
    """
    grey = draw(rngs, lambda rng: rng.uniform(*_FROST_GREY))
    contrast = draw(rngs, lambda rng: rng.uniform(*_FROST_DEVIATION))
    tint = draw(rngs, lambda rng: rng.uniform(0, 2))[:, None] * _FROST_TINT
    texture = plasma(rngs, x.shape[1:3], 1.0)
    texture -= texture.mean((1, 2), keepdims=True)
    texture *= (contrast / texture.std((1, 2)))[:, None, None]
    layer = (texture + grey[:, None, None])[..., None] + tint[:, None, None]
    return c[0] * x + c[1] * _like(np.clip(layer, 0, 1), x)


_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255


def spatter(x: np.ndarray, rngs: Rngs, c: tuple[float, ...]) -> np.ndarray:
    """Returns x with drops of water added, or with spots of mud in its place.

    The drops are where a normal field of mean c0 and deviation c1, smoothed at c2, is
    at least c3. Water is as strong as c4 says, and shaded by `_water`; mud has edges
    smoothed at c4, cut off below 0.8.
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
    """Returns the light on drops, `[H, W]` from 0 to 1.

    The distance to the nearest edge of a drop, up to 20 pixels, smoothed, spread evenly
    over the levels, embossed from the upper left, smoothed, and times the drops. (The
    distance is exact. OpenCV's, in the published code, is rounded to its mask's steps;
    what counts after the spreading is the order alone.)
    """
    edges = _edges(drops.astype(float), 50, 150)
    distance = np.full(drops.shape, 20.0)
    if edges.any():
        distance = np.minimum(np.asarray(ndimage.distance_transform_edt(~edges)), 20)
    levels = np.floor(ndimage.uniform_filter(distance, 3, mode="mirror") + 1e-9)
    levels = _equalized(levels.astype(int))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    levels = np.clip(ndimage.correlate(levels, emboss, mode="mirror"), 0, 255)
    light = drops * np.rint(ndimage.uniform_filter(levels, 3, mode="mirror"))
    return light / max(light.max(), 1)


def _equalized(levels: np.ndarray) -> np.ndarray:
    """Returns levels from 0 to 255 whose cumulative histogram is close to a line."""
    counts = np.bincount(levels.ravel(), minlength=256)
    lowest = int(levels.min())
    rest = levels.size - counts[lowest]
    if rest == 0:
        return levels.astype(float)
    above = np.cumsum(counts) - counts[lowest]
    return np.rint(np.clip(above[levels] * (255 / rest), 0, 255))


def _edges(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns Canny's edges of an image `[H, W]`, as a mask.

    Sobel's gradient of the edge-continued image, its L1 norm, points where that is
    largest across the edge, those above `high` and all above `low` that touch them.
    """
    right = ndimage.sobel(x, 1, mode="nearest")
    down = ndimage.sobel(x, 0, mode="nearest")
    size = np.abs(right) + np.abs(down)
    wide = np.pad(size, 1)
    height, width = x.shape

    def beside(i: int, j: int) -> np.ndarray:
        return wide[1 + i : 1 + i + height, 1 + j : 1 + j + width]

    def ridge(i: int, j: int, after: Callable[..., np.ndarray]) -> np.ndarray:
        return (size > beside(-i, -j)) & after(size, beside(i, j))

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
    weak = peak & (size > low)
    return ndimage.binary_propagation(
        peak & (size > high), structure=np.ones((3, 3)), mask=weak
    )
