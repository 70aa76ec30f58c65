"""The data set type and the embedded digits, against scikit-learn's own arrays."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from zosam_jax import data
from zosam_jax.data import dataset


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.mark.quick
def test_digits_are_scikit_learns_split_once(digits):
    raw = load_digits()
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    # 255 / 16 a grey level: rounding loses nothing.
    levels = np.round(images[..., 0] / 255 * 16).astype(int)
    found = sorted((int(y), x.tobytes()) for x, y in zip(levels, labels, strict=True))
    wanted = sorted(
        (int(y), x.tobytes())
        for x, y in zip(raw.images.astype(int), raw.target, strict=True)
    )
    assert found == wanted
    assert images.max() == 255
    assert images.min() == 0


def test_digits_have_the_documented_form(digits):
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
    assert digits.class_names == tuple("0123456789")
    assert (digits.num_classes, digits.image_shape) == (10, (8, 8, 1))
    assert (digits.crop_padding, digits.flip) == (1, False)


def test_digits_are_stratified_to_one_image(digits):
    train = np.bincount(digits.train_labels)
    test = np.bincount(digits.test_labels)
    assert np.all(np.abs(test - (train + test) * 360 / 1797) <= 1)


@pytest.mark.quick
def test_the_split_is_fixed(digits):
    again = data.load("digits")
    np.testing.assert_array_equal(again.test_images, digits.test_images)
    # The sum of the test images by class, as first released: runs depend on it.
    sums = [
        int(digits.test_images[digits.test_labels == c].sum(dtype=np.int64))
        for c in (0, 1, 9)
    ]
    assert sums == [182129, 175554, 178364]


def test_channel_statistics_are_the_mean_and_deviation():
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)
    mean, std = dataset.channel_statistics(images)
    scaled = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, scaled.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(0), rtol=1e-12)
    assert all(type(x) is float for x in mean + std)


def test_a_data_set_cannot_be_changed(digits):
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.flip = True


def test_digits_need_no_preparation(tmp_path):
    lines = []
    data.prepare("digits", on_progress=lines.append)
    assert "needs no preparation" in lines[0]
    with pytest.raises(ValueError, match="has no effect: digits is read from where"):
        data.prepare("digits", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", [data.load, data.prepare])
def test_unknown_names_are_refused_with_the_nearest(function, tmp_path):
    with pytest.raises(ValueError, match=r"'cifar11'.*Did you mean 'cifar10'"):
        function("cifar11", tmp_path)
    assert list(tmp_path.iterdir()) == []
