"""A data set in memory checks its arrays when it is made."""

import numpy as np
import pytest

from zosam_jax.data import Dataset, channel_statistics

IMAGES = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
LABELS = np.array([0, 1, 2, 1, 0], np.int32)


def made(**fields):
    mean, std = channel_statistics(IMAGES)
    usual = {
        "name": "mine",
        "train_images": IMAGES,
        "train_labels": LABELS,
        "test_images": IMAGES[:2],
        "test_labels": LABELS[:2],
        "class_names": ("a", "b", "c"),
        "mean": mean,
        "std": std,
        "crop_padding": 0,
        "flip": False,
    }
    return Dataset(**usual | fields)


@pytest.mark.quick
def test_arrays_that_fit_are_kept():
    assert made().num_classes == 3
    small = LABELS.astype(np.uint8)
    found = made(train_labels=LABELS.astype(np.int64), test_labels=small[:2])
    assert (found.train_labels.dtype, found.test_labels.dtype) == (np.int32, np.int32)
    assert found.train_labels.tolist() == LABELS.tolist()
    text = {"train_images": LABELS[:, None], "test_images": LABELS[:2, None]}
    assert made(kind="text", mean=(), std=(), **text).image_shape == (1,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_images": IMAGES / 255}, "train_images must be uint8 .* got float64"),
        ({"test_images": IMAGES[:2, ..., 0]}, r"test_images must be uint8 .* \[2, 2"),
        ({"train_labels": LABELS + 1}, "train_labels run from 1 to 3"),
        ({"test_labels": -LABELS[:2]}, "test_labels run from -1 to 0"),
        (
            {"train_labels": LABELS / 2},
            "must be float32 .*Classes are integers",
        ),
        ({"test_labels": LABELS}, "2 test examples have 5 labels"),
        ({"mean": ()}, "mean has 0 values for 3 channels"),
        ({"std": (1.0,)}, "std has 1 values for 3 channels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        made(**fields)
