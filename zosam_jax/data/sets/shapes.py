"""Drawn images of circles, squares and triangles, with the class of every pixel."""

import numpy as np

from zosam_jax.data.dataset import Dataset, channel_statistics

CLASSES = ("background", "circle", "square", "triangle")
SIDE = 32
TRAIN, TEST = 1_024, 256

_MOST = 3
"""Largest number of shapes of an image."""

_NOISE = 20.0
"""Standard deviation of the noise of each channel, in levels."""


def read() -> Dataset:
    """Returns the set: 1,024 training and 256 test images of 32 x 32 x 3 pixels.

    `draw` says what is on them. They are drawn anew at every call, and are the same
    every time.
    """
    train_images, train_labels = draw(TRAIN, seed=0)
    test_images, test_labels = draw(TEST, seed=1)
    mean, std = channel_statistics(train_images)
    return Dataset(
        name="shapes",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=CLASSES,
        mean=mean,
        std=std,
        crop_padding=SIDE // 8,
        flip=True,
    )


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns drawn images and their label maps.

    An image has one to three shapes on a striped background, which may overlap and
    reach over its border; a later one covers an earlier one. A shape has any place,
    size and angle, and any color that differs from the background by 64 levels in each
    channel: its class is its outline alone. All pixels have Gaussian noise.

    Args:
      count: Number of images, N.
      seed: Integer >= 0. The first images of a larger set are others.

    Returns:
      Images, uint8 `[N, 32, 32, 3]`, and the class of each pixel, uint8 `[N, 32, 32]`.

    >>> images, maps = draw(2, seed=0)
    >>> images.shape, sorted(set(maps.ravel().tolist()))
    ((2, 32, 32, 3), [0, 1, 2, 3])
    """
    rng = np.random.default_rng([seed, 0x73686170])
    background = rng.uniform(48, 208, (count, 3))
    colors = (background[:, None] + rng.uniform(64, 192, (count, _MOST, 3))) % 256
    kinds = rng.integers(1, len(CLASSES), (count, _MOST))
    inside = _inside(rng, kinds)
    inside &= np.arange(_MOST)[:, None, None] < rng.integers(
        1, _MOST + 1, (count, 1, 1, 1)
    )
    images = background[:, None, None] + _stripes(rng, count)[..., None]
    labels = np.zeros((count, SIDE, SIDE), np.uint8)
    for i in range(_MOST):
        images = np.where(inside[:, i, ..., None], colors[:, i, None, None], images)
        labels = np.where(inside[:, i], kinds[:, i, None, None], labels)
    images += rng.normal(0, _NOISE, images.shape)
    return np.clip(np.round(images), 0, 255).astype(np.uint8), labels.astype(np.uint8)


def _inside(rng: np.random.Generator, kinds: np.ndarray) -> np.ndarray:
    """Returns which pixels each shape covers, bool `[N, S, 32, 32]`."""
    pixel = np.arange(SIDE) + 0.5
    center = rng.uniform(4, SIDE - 4, (2, *kinds.shape, 1, 1))
    radius = rng.uniform(4, 9, (*kinds.shape, 1, 1))
    # A rotation of rational numbers: the last bits of sines differ between machines.
    t = rng.uniform(-1, 1, radius.shape)
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    y, x = pixel[:, None] - center[0], pixel[None] - center[1]
    u, v = (cosine * x - sine * y) / radius, (sine * x + cosine * y) / radius
    circle = u * u + v * v <= 1
    square = np.maximum(abs(u), abs(v)) <= 0.88
    triangle = (v >= -0.7) & (abs(u) <= 0.62 * (1.2 - v))
    kinds = kinds[..., None, None]
    return np.where(kinds == 1, circle, np.where(kinds == 2, square, triangle))


def _stripes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns stripes of any direction, width and height, float64 `[N, 32, 32]`."""
    step = rng.uniform(-1, 1, (2, count, 1, 1))
    height = rng.uniform(0, 40, (count, 1, 1))
    pixel = np.arange(SIDE)
    phase = (step[0] * pixel[:, None] + step[1] * pixel[None]) / 4
    return height * (2 * abs(phase % 2 - 1) - 1)
