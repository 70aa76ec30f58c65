"""The type of a data set in memory, and the error of all data sets."""

import dataclasses
from typing import Literal

import numpy as np

_BLOCK = 1000

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Published mean and standard deviation of the channels of `images / 255`."""

Task = Literal["classification", "multilabel", "regression", "segmentation"]
"""What is predicted: one class, or one token after another; any of several classes;
values; or the class of each pixel."""

IGNORED = 255
"""The label of pixels that do not count."""


class DatasetError(RuntimeError):
    """A data set is missing, incomplete or damaged; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images, or text, in host memory.

    The type of the labels says the task: classification, multi-label classification,
    regression or semantic segmentation.

    Attributes:
      name: The name given to `load`.
      train_images: Images, uint8 `[N, H, W, C]`; or tokens of text, `[N, T]`.
      train_labels: Classes, integers `[N]` from 0 to `num_classes - 1`, kept as int32;
        or the next token of each token, `[N, T]`; or which of K classes an example has,
        bool `[N, K]`; or K values, floats `[N, K]`, kept as float32. `[N]` floats
        become `[N, 1]`. Or the class of each pixel, integers `[N, H, W]`, kept as
        uint8; pixels of `IGNORED`, 255, do not count.
      test_images: uint8 `[M, H, W, C]`, or `[M, T]`.
      test_labels: int32 `[M]`, or `[M, T]`, bool or float32 `[M, K]`, or uint8 `[M, H,
        W]`.
      class_names: Name of each class, of each token, or of each value.
      mean: Mean of each channel of `train_images / 255`; empty for text.
      std: Standard deviation of each channel of `train_images / 255`; empty for text.
      crop_padding: Zero padding of the usual random crop, in pixels; 0: no crop.
      flip: Whether the mirror image of an image has the same label.
      kind: "image" or "text".

    Raises:
      ValueError: Images are not uint8, labels are not classes, numbers of images and
        labels differ, or `mean` and `std` do not fit the channels.
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

    def __post_init__(self):
        for field in ("train_labels", "test_labels"):
            labels = getattr(self, field)
            if np.issubdtype(labels.dtype, np.floating):
                values = labels[:, None] if labels.ndim == 1 else labels
                object.__setattr__(self, field, values.astype(np.float32))
        self._check("train", self.train_images, self.train_labels)
        self._check("test", self.test_images, self.test_labels)
        # Unsigned labels have no -1, which fills up batches.
        kept = {"classification": np.int32, "segmentation": np.uint8}.get(self.task)
        if kept is not None:
            for field in ("train_labels", "test_labels"):
                labels = getattr(self, field).astype(kept, copy=False)
                object.__setattr__(self, field, labels)
        channels = self.image_shape[-1] if self.kind == "image" else 0
        for field in ("mean", "std"):
            found = len(getattr(self, field))
            if found != channels:
                raise ValueError(
                    f"{self.name}: {field} has {found} values for {channels} channels. "
                    "Take zosam_jax.data.channel_statistics(train_images)."
                )

    def _check(self, part: str, examples: np.ndarray, labels: np.ndarray) -> None:
        """Raises `ValueError` unless the examples of a part and their labels fit."""
        if len(examples) != len(labels):
            raise ValueError(
                f"{self.name}: {len(examples)} {part} examples have {len(labels)} "
                "labels."
            )
        if self.kind == "image" and (examples.dtype, examples.ndim) != (np.uint8, 4):
            raise ValueError(
                f"{self.name}: {part}_images must be uint8 [N, H, W, C], from 0 to "
                f"255; got {examples.dtype} {list(examples.shape)}. (From 0 to 1: "
                "np.round(255 * images).astype(np.uint8).)"
            )
        if self.task == "segmentation":
            self._check_maps(part, examples, labels)
            return
        if self.task != "classification":
            self._check_columns(part, labels)
            return
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{self.name}: {part}_labels must be integers (classes), as those of "
                "the training, bool (several classes of an example) or floats "
                f"(values); got {labels.dtype}."
            )
        if labels.size and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise ValueError(
                f"{self.name}: {part}_labels run from {labels.min()} to "
                f"{labels.max()}, and {self.num_classes} class_names stand for 0 to "
                f"{self.num_classes - 1}."
            )

    def _check_maps(self, part: str, images: np.ndarray, labels: np.ndarray) -> None:
        """Raises `ValueError` unless labels have the class of each pixel."""
        if labels.shape != images.shape[:3] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{self.name}: {part}_labels must be integers {[*images.shape[:3]]}, a "
                "class for each pixel of the images, as those of the training; got "
                f"{labels.dtype} {[*labels.shape]}."
            )
        if self.num_classes > IGNORED:
            raise ValueError(
                f"{self.name}: {self.num_classes} class_names, and label maps have at "
                f"most {IGNORED} classes."
            )
        found = labels[labels != IGNORED]
        if not found.size:
            raise ValueError(
                f"{self.name}: no pixel of {part}_labels counts, since all are "
                f"{IGNORED}."
            )
        if found.min() < 0 or found.max() >= self.num_classes:
            raise ValueError(
                f"{self.name}: {part}_labels run from {found.min()} to {found.max()}, "
                f"and {self.num_classes} class_names stand for 0 to "
                f"{self.num_classes - 1}. Pixels of {IGNORED} do not count."
            )
        if part == "train" and found.min() == found.max():
            raise ValueError(
                f"{self.name}: all pixels of train_labels that count have class "
                f"{found.min()}, so there is nothing to learn. Pixels of {IGNORED} do "
                "not count: save masks of 0 and 255 as 0 and 1."
            )

    def _check_columns(self, part: str, labels: np.ndarray) -> None:
        """Raises `ValueError` unless labels have a column for each class or value."""
        wanted = np.bool_ if self.task == "multilabel" else np.float32
        if self.kind == "text":
            raise ValueError(f"{self.name}: the labels of text are tokens, integers.")
        if labels.dtype != wanted or labels.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"{self.name}: {part}_labels must be {np.dtype(wanted)} [N, "
                f"{self.num_classes}], a column for each of class_names; got "
                f"{labels.dtype} {list(labels.shape)}. (Classes are integers.)"
            )
        if not np.isfinite(labels).all():
            raise ValueError(f"{self.name}: some {part}_labels are not finite.")
        if self.task == "regression" and not label_variance(labels):
            raise ValueError(
                f"{self.name}: all {part}_labels are equal, so there is nothing to "
                "predict."
            )

    @property
    def task(self) -> Task:
        """What the labels are for."""
        kind, axes = self.train_labels.dtype.kind, self.train_labels.ndim
        if self.kind == "image" and kind in "iu" and axes == 3:
            return "segmentation"
        tasks: dict[str, Task] = {"b": "multilabel", "f": "regression"}
        return tasks.get(kind, "classification")

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
        """Number of classes, of different tokens, or of values."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image; `(T,)` of text."""
        return self.train_images.shape[1:]

    def test(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the test images from `start` to `stop - 1`, and their labels."""
        return self.test_images[start:stop], self.test_labels[start:stop]


def label_variance(labels: np.ndarray) -> float:
    """Returns the variance of the labels of a regression, summed over the columns.

    >>> label_variance(np.array([[0.0, 1.0], [2.0, 1.0]]))
    1.0
    """
    return float(np.var(labels, axis=0, dtype=np.float64).sum())


def channel_statistics(
    images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of each channel of `images / 255`.

    They are computed from the histogram of each channel, so that they are the same on
    every machine.

    Args:
      images: uint8 `[N, H, W, C]`.

    >>> channel_statistics(np.array([0, 255], np.uint8).reshape(1, 2, 1, 1))
    ((0.5,), (0.5,))
    """
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), _BLOCK):  # `bincount` copies as int64.
            block = images[start : start + _BLOCK, ..., channel]
            counts += np.bincount(block.ravel(), minlength=256)
        share = counts / counts.sum()
        mean = float(np.sum(share * levels))
        means.append(mean)
        deviations.append(float(np.sqrt(np.sum(share * (levels - mean) ** 2))))
    return tuple(means), tuple(deviations)
