"""Cutout and random erasing against loops in NumPy, with the drawn boxes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zosam_jax.data import augment

SHAPE = (6, 9, 12, 3)
MEAN, STD = (0.2, 0.5, 0.9), (0.1, 0.2, 0.3)
IMAGES = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


erasing_parameters = jax.jit(augment.erasing_parameters, static_argnums=(1, 2, 3, 4))


def covered(box, height, width):
    """Which pixels a box covers, in NumPy: [N, height, width]."""
    result = []
    for top, left, rows, columns in np.stack(box, -1):
        mask = np.zeros((height, width), bool)
        mask[
            max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)
        ] = 1
        result.append(mask)
    return np.array(result)


@pytest.mark.parametrize("size", [0, 1, 4, 5, 40])
def test_cutout_covers_its_square_and_nothing_else(size):
    box = augment.cutout_parameters(jax.random.key(1), SHAPE, size)
    result = augment.cutout(IMAGES, box, MEAN)
    assert result.dtype == jnp.uint8
    expected = np.where(
        covered(box, 9, 12)[..., None], np.uint8([51, 128, 230]), IMAGES
    )
    np.testing.assert_array_equal(result, expected)
    # Black is the default.
    expected = np.where(covered(box, 9, 12)[..., None], 0, IMAGES)
    np.testing.assert_array_equal(augment.cutout(IMAGES, box), expected)


def test_cutout_has_a_side_of_its_size_and_any_pixel_as_its_centre():
    n, size = 6000, 5
    box = augment.cutout_parameters(jax.random.key(0), (n, 4, 5, 1), size)
    mask = np.asarray(covered(box, 40, 40))
    assert np.all(np.asarray(box.height) == size)
    assert np.all(np.asarray(box.width) == size)
    assert mask.shape[0] == n
    centres = np.stack([box.top, box.left], -1) + size // 2
    counts = np.zeros((4, 5))
    np.add.at(counts, tuple(centres.T), 1)  # an IndexError if one lies outside
    assert centres.min() == 0
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


def test_erasing_fills_the_box_with_the_noise_of_normalised_images():
    drawn = erasing_parameters(jax.random.key(3), SHAPE, 0.8)
    result = augment.erase(IMAGES, drawn, MEAN, STD)
    assert result.dtype == jnp.float32
    mask = covered(drawn.box, 9, 12)[..., None]
    assert 0 < mask.any((1, 2, 3)).sum() < len(mask)
    assert np.all(np.where(mask, 0, IMAGES) == np.where(mask, 0, result))
    # After normalisation, a box is the noise itself: float32 rounding of values < 4.
    normalised = augment.normalize(result, MEAN, STD)
    np.testing.assert_allclose(
        np.where(mask, normalised, 0), np.where(mask, drawn.noise, 0), atol=1e-5
    )


def test_erasing_without_a_deviation_is_the_mean_in_levels():
    drawn = erasing_parameters(jax.random.key(3), SHAPE, 1.0)
    result = augment.erase(IMAGES, drawn, MEAN)
    assert result.dtype == jnp.uint8
    mask = covered(drawn.box, 9, 12)[..., None]
    expected = np.where(mask, np.uint8([51, 128, 230]), IMAGES)
    np.testing.assert_array_equal(result, expected)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def erasing_boxes(key, shape, probability, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3)):
    """The boxes alone: compiled, the noise is left out."""
    return augment.erasing_parameters(key, shape, probability, area, aspect).box


def test_erased_boxes_have_the_areas_ratios_and_places_of_the_paper():
    n, side = 4000, 1000
    box = erasing_boxes(jax.random.key(5), (n, side, side, 1), 0.25)
    top, left, rows, columns = (np.asarray(x) for x in box)
    erased = rows > 0
    assert stats.binomtest(int(erased.sum()), n, 0.25).pvalue > 0.01
    top, left, rows, columns = (x[erased] for x in (top, left, rows, columns))
    assert np.all((top >= 0) & (left >= 0))
    assert np.all((top + rows <= side) & (left + columns <= side))
    # A box of the widest ratio and a third of the area is 1,054 pixels long: those
    # are drawn again, so that the law holds for boxes that always fit.
    share = rows * columns / side**2
    small = share < 0.29  # 0.29 * 1 / 0.3 < 1
    uniform = stats.uniform(0.02, 0.27)
    assert stats.kstest(share[small], uniform.cdf).pvalue > 0.01
    ratio = np.log(rows / columns)[small]
    bound = np.log(1 / 0.3)
    assert stats.kstest(ratio, stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01
    place = (top + 0.5) / (side - rows + 1)
    assert stats.kstest(place, "uniform").pvalue > 0.01


def test_a_box_that_does_not_fit_is_drawn_again_and_then_given_up():
    key = jax.random.key(0)
    box = erasing_boxes(key, (50, 8, 8, 1), 1.0, (0.999, 1.0), (0.999, 1.001))
    assert not np.any(box.height)
    assert not np.any(box.width)
    # 1 of 3 fits: a single attempt would leave most images alone.
    box = erasing_boxes(key, (200, 8, 8, 1), 1.0, (0.25, 0.25), (1 / 12, 12.0))
    assert np.mean(np.asarray(box.height) > 0) > 0.98
    assert np.max(box.height) < 8
    assert np.max(box.width) < 8


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_erasing_probability_at_its_ends(probability):
    box = erasing_boxes(jax.random.key(0), (200, 16, 16, 1), probability)
    assert np.all((np.asarray(box.height) > 0) == bool(probability))


def test_a_single_pixel_can_be_cut_out_and_is_never_erased():
    image = np.full((1, 1, 1, 1), 9, np.uint8)
    box = augment.cutout_parameters(jax.random.key(0), image.shape, 1)
    assert augment.cutout(image, box).item() == 0
    drawn = erasing_parameters(jax.random.key(0), image.shape, 1.0)
    assert augment.erase(image, drawn, (0.5,), (0.5,)).item() == 9
