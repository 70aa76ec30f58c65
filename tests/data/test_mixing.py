"""Mixup, CutMix and label smoothing against NumPy, with the drawn numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zosam_jax.data import augment

SHAPE = (5, 8, 11, 3)
K = 7
IMAGES = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
LABELS = np.array([3, 0, 6, 6, 1], np.int32)
ONE_HOT = np.eye(K)[LABELS]


def test_mixup_is_the_mean_with_the_reversed_batch():
    weight = float(augment.mixup_parameters(jax.random.key(0), 0.8))
    assert 0 < weight < 1
    result = augment.mixup(IMAGES, weight)
    assert result.dtype == jnp.float32
    reversed_ = IMAGES[::-1].astype(float)
    expected = weight * IMAGES + (1 - weight) * reversed_
    # Three float32 roundings of numbers up to 255: 255 * 3 * 2^-24.
    np.testing.assert_allclose(result, expected, atol=5e-5)
    targets = augment.mix_labels(LABELS, weight, K)
    expected = weight * ONE_HOT + (1 - weight) * ONE_HOT[::-1]
    np.testing.assert_allclose(targets, expected, atol=2e-7)
    np.testing.assert_allclose(np.sum(targets, 1), 1, atol=2e-7)
    # The middle of an odd batch is mixed with itself.
    np.testing.assert_allclose(result[2], IMAGES[2], atol=5e-5)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_pastes_the_box_and_counts_its_pixels(seed):
    (top, left, rows, columns), share = augment.cutmix_parameters(
        jax.random.key(seed), SHAPE
    )
    expected = IMAGES.copy()
    window = np.s_[:, top : top + rows, left : left + columns]
    expected[window] = IMAGES[::-1][window]
    result = augment.cutmix(IMAGES, augment.Box(top, left, rows, columns))
    assert result.dtype == jnp.uint8
    np.testing.assert_array_equal(result, expected)
    pasted = np.zeros(SHAPE[1:3])
    pasted[window[1:]] = 1
    np.testing.assert_allclose(share, 1 - pasted.mean(), atol=1e-7)


def published_boxes(n, height, width, alpha):
    """The draw of Yun et al., as a loop: top, left, rows, columns and the share."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        ratio = np.sqrt(1 - rng.beta(alpha, alpha))
        y, x = rng.integers(height), rng.integers(width)
        half_y, half_x = int(height * ratio) // 2, int(width * ratio) // 2
        top, bottom = np.clip([y - half_y, y + half_y], 0, height)
        left, right = np.clip([x - half_x, x + half_x], 0, width)
        area = (bottom - top) * (right - left)
        found.append((top, left, bottom - top, right - left, 1 - area / height / width))
    return np.array(found).T


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_cutmix_boxes_are_distributed_as_the_published_ones(alpha):
    shape = (1, 300, 500, 1)
    keys = jax.random.split(jax.random.key(2), 4000)
    draw = jax.vmap(lambda key: augment.cutmix_parameters(key, shape, alpha))
    drawn = jax.jit(draw)(keys)
    published = published_boxes(10_000, 300, 500, alpha)
    for ours, theirs in zip((*drawn.box, drawn.share), published, strict=True):
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_mixup_weights_follow_the_beta_distribution(alpha):
    keys = jax.random.split(jax.random.key(0), 3000)
    weights = jax.vmap(lambda key: augment.mixup_parameters(key, alpha))(keys)
    assert weights.dtype == jnp.float32
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_either_of_both_is_that_one():
    box, _ = augment.cutmix_parameters(jax.random.key(1), SHAPE)
    weight = jnp.float32(0.3)
    either = augment.mixup_or_cutmix(IMAGES, weight, box, jnp.bool(True))
    np.testing.assert_array_equal(either, augment.cutmix(IMAGES, box))
    either = augment.mixup_or_cutmix(IMAGES, weight, box, jnp.bool(False))
    np.testing.assert_array_equal(either, augment.mixup(IMAGES, weight))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_its_equation_on_labels_and_on_soft_ones(smoothing):
    expected = (1 - smoothing) * ONE_HOT + smoothing / K
    result = augment.smooth_labels(LABELS, smoothing, K)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=1e-7)
    np.testing.assert_allclose(np.sum(result, 1), 1, atol=3e-7)
    # Linear: before or after mixing is the same.
    mixed = augment.mix_labels(LABELS, 0.3, K)
    np.testing.assert_allclose(
        augment.smooth_labels(mixed, smoothing, K),
        augment.mix_labels(result, 0.3, K),
        atol=2e-7,
    )


def test_a_batch_of_one_pixel_is_mixed_with_itself():
    image = np.full((1, 1, 1, 1), 77, np.uint8)
    np.testing.assert_allclose(augment.mixup(image, 0.37), image, rtol=2e-7)
    box, share = augment.cutmix_parameters(jax.random.key(0), image.shape)
    assert augment.cutmix(image, box).item() == 77
    assert share in (0, 1)
