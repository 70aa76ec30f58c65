"""Augmentation against a loop over images in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax.data import augment

# Every pixel of an image has a value of its own: a window is found by its content.
SIDE, WIDE = 4, 5
IMAGE = (1 + np.arange(SIDE * WIDE * 2)).reshape(SIDE, WIDE, 2).astype(np.uint8)
N = 4000

crop = jax.jit(augment.random_crop_flip, static_argnums=(2, 3))


def windows(padding, flip):
    """Every possible result, in NumPy: {bytes: (row, column, mirrored)}."""
    padded = np.pad(IMAGE, ((padding, padding), (padding, padding), (0, 0)))
    found = {}
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            window = padded[row : row + SIDE, column : column + WIDE]
            for mirrored in (False, True) if flip else (False,):
                view = window[:, ::-1] if mirrored else window
                found[view.tobytes()] = row, column, mirrored
    return found


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (1, False), (0, True)])
def test_every_window_is_drawn_equally_often(padding, flip):
    batch = np.broadcast_to(IMAGE, (N, *IMAGE.shape))
    result = crop(jax.random.key(3), batch, padding, flip)
    assert result.dtype == jnp.uint8
    assert result.shape == batch.shape
    possible = windows(padding, flip)
    drawn = [possible[x.tobytes()] for x in np.asarray(result)]  # nothing else occurs
    counts = np.array([drawn.count(window) for window in possible.values()])
    expected = N / len(possible)
    chi_squared = float(np.sum((counts - expected) ** 2 / expected))
    freedom = len(possible) - 1
    assert chi_squared < freedom + 5 * np.sqrt(2 * freedom)


def test_each_image_keeps_its_place_in_the_batch():
    batch = np.stack([np.full((3, 3, 1), i, np.uint8) for i in range(1, 60)])
    result = np.asarray(crop(jax.random.key(0), batch, 1, True))
    for i, image in enumerate(result, start=1):
        assert set(np.unique(image)) <= {0, i}
        assert image[1, 1, 0] == i


def test_nothing_is_done_without_padding_and_flip():
    batch = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), np.uint8)
    np.testing.assert_array_equal(crop(jax.random.key(0), batch, 0, False), batch)


@pytest.mark.quick
def test_a_key_decides_the_windows():
    batch = np.broadcast_to(IMAGE, (64, *IMAGE.shape))
    first, again, other = (crop(jax.random.key(k), batch, 2, True) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))


@pytest.mark.quick
def test_normalize_is_its_equation():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2), np.uint8)
    mean, std = (0.3, 0.6), (0.2, 0.25)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    result = augment.normalize(images, mean, std)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    half = augment.normalize(images, mean, std, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, result.astype(jnp.bfloat16))
