"""The type of a data set in memory, its error, and the embedded digits."""

import dataclasses
from typing import Any, Literal

import numpy as np


class DatasetError(RuntimeError):
    """A data set is missing, incomplete or damaged; the message says what to run."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A set of labelled images, or of text, in host memory.

    Attributes:
      name: The name that `load` was given.
      train_images: uint8 `[N, H, W, C]`; of text `[N, T]`, the tokens.
      train_labels: int32 `[N]`, from 0 to `num_classes - 1`; of text `[N, T]`, each
        token's next.
      test_images: uint8 `[M, H, W, C]` or `[M, T]`.
      test_labels: int32 `[M]` or `[M, T]`.
      class_names: The name of each class, or token, by label.
      mean: Mean of each channel of `train_images / 255`; of text empty.
      std: Standard deviation of each channel of `train_images / 255`; of text empty.
      crop_padding: Pixels of zero padding of the usual random crop; 0 for none.
      flip: Whether left-right mirroring keeps the label.
      kind: "image" or "text".
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    kind: Literal["image", "text"] = "image"

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return len(self.train_labels)

    @property
    def num_test(self) -> int:
        """Number of test examples."""
        return len(self.test_labels)

    @property
    def num_classes(self) -> int:
        """Number of classes, of text the number of different tokens."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image; of text its length, `(T,)`."""
        return self.train_images.shape[1:]

    def test(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns some of the test images and their labels, from `start` to `stop`."""
        return self.test_images[start:stop], self.test_labels[start:stop]


def channel_statistics(
    images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation of each channel of `images / 255`.

    They are exact sums over the histogram of each channel: the same on every machine.

    Args:
      images: uint8 `[N, H, W, C]`.
    """
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        share = counts / counts.sum()
        mean = float(np.sum(share * levels))
        means.append(mean)
        deviations.append(float(np.sqrt(np.sum(share * (levels - mean) ** 2))))
    return tuple(means), tuple(deviations)


def digits() -> Dataset:
    """Returns scikit-learn's digits: 1,437 training and 360 test images of 8 x 8 x 1.

    They come inside scikit-learn's wheel. Pixels from 0 to 16 are scaled to 0 to 255.
    The split is fixed: of the images in order of class, then of place in the file,
    every fifth is a test image.
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
