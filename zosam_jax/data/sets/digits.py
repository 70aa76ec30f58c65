"""Scikit-learn's handwritten digits, which are part of its wheel."""

from typing import Any

import numpy as np

from zosam_jax.data.dataset import Dataset, channel_statistics


def read() -> Dataset:
    """Returns the digits: 1,437 training and 360 test images of 8 x 8 x 1 pixels.

    Pixels from 0 to 16 are scaled to 0 to 255. The split is fixed: of the images sorted
    by class, and within a class by their place in the file, every fifth one is a test
    image.
    """
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = raw.target.astype(np.int32)
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(labels.size, bool)
    is_test[by_class[::5]] = True
    mean, std = channel_statistics(images[~is_test])
    return Dataset(
        name="digits",
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        class_names=tuple(str(c) for c in raw.target_names),
        mean=mean,
        std=std,
        crop_padding=1,
        flip=False,
    )
