"""Noise, and the random generators (one for each image) of all corruptions.

A corruption of this package is a function `(x, rngs, c)`:

- `x`: float64 `[N, H, W, C]` in [0, 1] with C = 1 or 3;
- `rngs`: one generator for each image, from which all its random numbers come;
- `c`: the parameters of a severity, from `definitions`.

It returns an array in the shape of `x`, whose values may leave [0, 1].
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

Rngs = Sequence[np.random.Generator]


def generator(seed: int, name: str, severity: int, index: int) -> np.random.Generator:
    """Returns the random generator of an image.

    It is Philox with a key of 128 bits: CRC-32 of the name (32 bits), severity (3),
    index (29) and seed (64).

    Args:
      seed: From 0 to 2^64 - 1.
      name: Name of the corruption.
      severity: From 1 to 5.
      index: Index of the image in its set, below 2^29.
    """
    # Philox is counter-based: keys that differ in one bit give independent streams.
    word = zlib.crc32(name.encode()) << 32 | severity << 29 | index
    return np.random.Generator(np.random.Philox(key=word << 64 | seed))


def draw(rngs: Rngs, one: Callable[[np.random.Generator], ArrayLike]) -> np.ndarray:
    """Returns the draws of all images, `one(rng)` for each, stacked.

    >>> rngs = [generator(0, "snow", 1, index) for index in range(3)]
    >>> draw(rngs, lambda rng: rng.uniform(size=(8, 8))).shape
    (3, 8, 8)
    """
    return np.stack([one(rng) for rng in rngs])


def _normal(rngs: Rngs, shape: tuple[int, ...]) -> np.ndarray:
    return draw(rngs, lambda rng: rng.standard_normal(shape))


def gaussian_noise(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns `x + c z` for standard normal z.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Standard deviation.
    """
    return x + c * _normal(rngs, x.shape[1:])


def shot_noise(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns `Poisson(c x) / c`; c is the photon count of a white pixel.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Photon count of a white pixel.
    """
    # Photons of a pixel are Poisson: their variance is their mean.
    counts = [rng.poisson(image) for rng, image in zip(rngs, c * x, strict=True)]
    return np.stack(counts) / c


def impulse_noise(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns x with a fraction c of its values replaced by 0 or 1, equally often.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Fraction of the values.
    """
    # One draw decides both whether a value is replaced and by what.
    u = draw(rngs, lambda rng: rng.random(x.shape[1:]))
    return np.where(u < c / 2, 0.0, np.where(u < c, 1.0, x))


def speckle_noise(x: np.ndarray, rngs: Rngs, c: float) -> np.ndarray:
    """Returns `x + c x z` for standard normal z.

    Args:
      x: Images, float64 `[N, H, W, C]` in [0, 1].
      rngs: A random generator for each image.
      c: Standard deviation, relative to x.
    """
    return x + c * x * _normal(rngs, x.shape[1:])
