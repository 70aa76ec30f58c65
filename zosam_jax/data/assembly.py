"""From an image set on disk to what is trained on: in memory, or streamed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from zosam_jax.data import images
from zosam_jax.data.sources import Dataset, channel_statistics

# Images of one size up to this side, and all together up to this many bytes, are kept
# in memory: CIFAR and STL-10 are, ImageNet at 64 x 64 is not.
SIDE = 96
MEMORY = 2 << 30
# Decoding small images holds the interpreter lock most of the time: two threads take
# 0.7 of the time of one, six no less than one.
_THREADS = 2
_CHUNK = 1000


def fits(found: images.Found) -> bool:
    """Returns whether a set is kept in memory."""
    if found.size is None:
        return False
    height, width = found.size
    total = (len(found.train) + len(found.test)) * height * width * found.channels
    return max(height, width) <= SIDE and total <= MEMORY


def in_memory(found: images.Found) -> Dataset:
    """Returns a set of images of one size, decoded.

    Raises:
      DatasetError: An image cannot be read or decoded, or has a label that is none.
    """
    assert found.size is not None
    train_images, train_labels = _decode(found, found.train)
    test_images, test_labels = _decode(found, found.test)
    mean, std = channel_statistics(train_images)
    return Dataset(
        name=found.name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=found.class_names,
        mean=mean,
        std=std,
        crop_padding=max(found.size) // 8,
        flip=found.flip,
    )


def _decode(
    found: images.Found, source: images.Source
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, uint8 `[N, H, W, C]`, and labels, int32 `[N]`."""
    assert found.size is not None
    array = np.empty((len(source), *found.size, found.channels), np.uint8)
    labels = np.empty(len(source), np.int32)

    def read(start: int) -> None:
        rows = range(start, min(start + _CHUNK, len(source)))
        for row, (encoded, label) in zip(rows, source.read(rows), strict=True):
            image = images.decode(found, source, row, encoded, label, found.size)
            array[row] = images.pixels(image)
            labels[row] = label

    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(read, s) for s in range(0, len(labels), _CHUNK)]:
            done.result()
    return array, labels
