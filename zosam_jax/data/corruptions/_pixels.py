"""Corruptions of single pixels and by codecs: noise, colour, resolution, JPEG.

Every corruption here and beside maps `x`, float64 `[N, H, W, C]` in [0, 1] with C = 1
or 3, to an array of its shape, which may leave [0, 1]. `rngs` has a generator for each
image, which alone draws for it; `c` is a row of the tables.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

Rngs = Sequence[np.random.Generator]


def draw(rngs: Rngs, one: Callable[[np.random.Generator], Any]) -> np.ndarray:
    """Returns the draws for all images, stacked."""
    return np.stack([one(rng) for rng in rngs])


def _normal(rngs: Rngs, shape: tuple[int, ...]) -> np.ndarray:
    return draw(rngs, lambda rng: rng.standard_normal(shape))


def gaussian_noise(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns `x + c z` with z standard normal."""
    return x + c * _normal(rngs, x.shape[1:])


def speckle_noise(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns `x + c x z` with z standard normal."""
    return x + c * x * _normal(rngs, x.shape[1:])


def shot_noise(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns `Poisson(c x) / c`."""
    counts = [rng.poisson(image) for rng, image in zip(rngs, c * x, strict=True)]
    return np.stack(counts) / c


def impulse_noise(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns x with a share c of its values replaced, by 0 and by 1 alike."""
    u = draw(rngs, lambda rng: rng.random(x.shape[1:]))
    return np.where(u < c / 2, 0.0, np.where(u < c, 1.0, x))


def brightness(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns x with c added to its value, as of HSV, cut off at 1.

    At fixed hue and saturation, all channels are proportional to the value.
    """
    del rngs
    value = x.max(-1, keepdims=True)
    target = np.minimum(value + c, 1)
    return np.where(value > 0, x * (target / np.where(value > 0, value, 1)), target)


def saturate(x: np.ndarray, rngs: Rngs, c: tuple[float, float]) -> np.ndarray:
    """Returns x with its saturation S, as of HSV, as `c0 S + c1`, cut off at 1.

    At fixed hue and value V, `V - x` is proportional to the saturation. A grey pixel
    has the hue of red, as HSV's convention is.
    """
    del rngs
    value = x.max(-1, keepdims=True)
    range_ = value - x.min(-1, keepdims=True)
    old = range_ / np.where(value > 0, value, 1)
    new = np.clip(c[0] * old + c[1], 0, 1)
    red = value * np.array([0.0, 1.0, 1.0]) * new
    below = (value - x) * (new / np.where(old > 0, old, 1))
    return value - np.where(old > 0, below, red)


def contrast(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns `c (x - m) + m` with m the mean of each channel of an image."""
    del rngs
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * c + mean


def _by_pillow(
    x: np.ndarray, change: Callable[[Image.Image], Image.Image]
) -> np.ndarray:
    """Returns every image as Pillow changes it."""
    grey = x.shape[-1] == 1
    out = np.empty(x.shape)
    for image, target in zip(np.rint(x * 255).astype(np.uint8), out, strict=True):
        picture = Image.fromarray(image[..., 0] if grey else image)
        target[...] = np.asarray(change(picture)).reshape(target.shape)
    return out / 255


def pixelate(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns x at c times its resolution, both ways by Pillow's box filter."""
    del rngs
    height, width = x.shape[1:3]
    small = (max(int(width * c), 1), max(int(height * c), 1))
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda i: i.resize(small, box).resize((width, height), box))


def jpeg_compression(x: np.ndarray, rngs: Rngs, c: int) -> np.ndarray:
    """Returns x written and read as JPEG of quality c, by Pillow."""
    del rngs

    def through_jpeg(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=c)
        return Image.open(file)

    return _by_pillow(x, through_jpeg)
