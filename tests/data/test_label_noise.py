"""Symmetric label noise: how many labels change, to what, and reproducibly."""

import numpy as np
import pytest

from zosam_jax.data import label_noise

LABELS = np.random.default_rng(0).integers(0, 10, 20_000).astype(np.int32)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 1.0])
def test_exactly_the_fraction_is_wrong(fraction):
    before = LABELS.copy()
    noisy = label_noise.symmetric(LABELS, 10, fraction, seed=3)
    assert np.sum(noisy != LABELS) == fraction * len(LABELS)
    assert noisy.dtype == LABELS.dtype
    assert noisy.min() >= 0
    assert noisy.max() <= 9
    np.testing.assert_array_equal(LABELS, before)


def test_every_other_class_is_as_likely():
    noisy = label_noise.symmetric(LABELS, 10, 0.9, seed=0)
    shift = (noisy - LABELS)[noisy != LABELS] % 10
    counts = np.bincount(shift, minlength=10)
    assert counts[0] == 0
    # 18,000 draws of nine: 2,000 each, with a standard deviation of 42.
    assert np.all(np.abs(counts[1:] - 2_000) < 5 * 42)
    # The changed examples are drawn over the whole set.
    where = np.flatnonzero(noisy != LABELS)
    assert abs(where.mean() - 10_000) < 5 * 20_000 / np.sqrt(12 * 18_000)


def test_the_seed_says_which():
    one, again = (label_noise.symmetric(LABELS, 10, 0.4, seed=1) for _ in range(2))
    other = label_noise.symmetric(LABELS, 10, 0.4, seed=2)
    np.testing.assert_array_equal(one, again)
    assert np.mean(one != other) > 0.4


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((LABELS, 10, 1.5, 0), "fraction=1.5"),
        ((LABELS, 1, 0.5, 0), "num_classes=1"),
        ((LABELS, 10, 0.5, -1), "seed=-1"),
        ((LABELS.reshape(2, -1), 10, 0.5, 0), r"the shape \[N\]"),
    ],
)
def test_arguments_out_of_range(arguments, part):
    with pytest.raises(ValueError, match=part):
        label_noise.symmetric(*arguments)
