"""Small image sets decoded into host memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from zosam_jax.data import encoded_images
from zosam_jax.data.dataset import Dataset, channel_statistics
from zosam_jax.data.encoded_images import EncodedImages, Source

SIDE = 96
"""Largest side of images that are kept in memory, in pixels."""

MEMORY = 2 << 30
"""Largest size of a set that is kept in memory, in bytes: CIFAR and STL-10 are below
it, ImageNet at 64 x 64 is above."""

# The interpreter lock is held for most of the decoding of a small image: two threads
# take 0.7 of the time of one, and six threads are no faster than one.
_THREADS = 2
_CHUNK = 1000


def fits(images: EncodedImages) -> bool:
    """Returns whether a set is kept in memory: few small images of one size."""
    if images.size is None:
        return False
    height, width = images.size
    count = len(images.train) + len(images.test)
    memory = count * height * width * images.channels
    return max(height, width) <= SIDE and memory <= MEMORY


def decode_all(images: EncodedImages) -> Dataset:
    """Returns a set of images of one size, decoded.

    Raises:
      DatasetError: An image cannot be read or decoded, or its label is not a class.
    """
    # Statistics come from the training images alone: test images stay unseen.
    train_images, train_labels = _decode(images, images.train)
    test_images, test_labels = _decode(images, images.test)
    mean, std = channel_statistics(train_images)
    return Dataset(
        name=images.name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=images.class_names,
        mean=mean,
        std=std,
        crop_padding=max(train_images.shape[1:3]) // 8,
        flip=images.flip,
    )


def _decode(images: EncodedImages, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, uint8 `[N, H, W, C]`, and labels, int32 `[N]`."""
    assert images.size is not None
    array = np.empty((len(source), *images.size, images.channels), np.uint8)
    labels = np.empty(len(source), np.int32)

    def read(start: int) -> None:
        rows = range(start, min(start + _CHUNK, len(source)))
        for row, (encoded, label) in zip(rows, source.read(rows), strict=True):
            image = encoded_images.decode(
                images, source, row, encoded, label, images.size
            )
            array[row] = encoded_images.pixels(image)
            labels[row] = label

    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(read, s) for s in range(0, len(labels), _CHUNK)]:
            done.result()
    return array, labels
