"""The image sets of an evaluation: clean, generated corruptions, published corruptions.

Generated sets are made here from the test images. Published ones, such as CIFAR-10-C,
are read from disk.
"""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from zosam_jax import data
from zosam_jax.data import corruptions
from zosam_jax.data.corruptions import published
from zosam_jax.runs import paths
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON

CLEAN = "clean"
SOURCES = ("generated", "published")

Images = tuple[np.ndarray, np.ndarray]
"""Images, uint8 `[N, H, W, C]`, and labels, int32 `[N]`, bool or float32 `[N, K]`, or
uint8 `[N, H, W]`."""

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images, labels, and which of the images count, bool `[N]`."""


def _absolute(path: str | os.PathLike[str] | None, name: str) -> Path | None:
    return None if path is None else paths.absolute(path, name)


class ImageSets:
    """The clean image set and the corrupted ones: names, identities and batches.

    Attributes:
      data: The data set whose test images are used.
      source: "generated" or "published".
      seed: Seed of the generated corruptions.
      count: Number of images in each set.
      shape: Height, width and channels of the images.
    """

    def __init__(
        self,
        dataset: data.Dataset | data.Streamed,
        *,
        source: str,
        images: int | None,
        seed: int,
        data_dir: str | None,
        published_dir: str | os.PathLike[str] | None,
        frost_dir: str | os.PathLike[str] | None,
    ):
        """Describes the sets; no corrupted image is made or read yet.

        Args:
          dataset: Its test images are the clean set.
          source: One of `SOURCES`.
          images: Number of images of each set to use, from its start. None: all.
          seed: Seed of the generated corruptions.
          data_dir: TFDS directory of the published sets.
          published_dir: Folder of released .npy files to read instead.
          frost_dir: Folder of photographs for generated `frost`.

        Raises:
          RunError: The data set has no test images, the published sets have other
            labels than these, or the labels of a regression are all equal.
        """
        self.data = dataset
        if dataset.kind != "image" or not dataset.num_test:
            raise RunError(
                f"{self.data.name} has no test images; corruptions are of images."
            )
        if source == "published" and dataset.task != "classification":
            raise RunError(
                "source='published': the images of the published sets have one class "
                f"each, and the labels of {dataset.name} are of {dataset.task}. "
                "Generate the corruptions."
            )
        self.source, self.seed = source, seed
        self.count = min(images or dataset.num_test, dataset.num_test)
        self.shape = tuple(int(size) for size in dataset.image_shape)
        self.data_dir = data_dir
        self.published_dir = _absolute(published_dir, "published_dir")
        self.frost_dir = _absolute(frost_dir, "frost_dir")
        if dataset.task == "regression":
            self._check_values()
        # A streamed set is identified by its first images, so that not all of them have
        # to be decoded.
        whole = isinstance(dataset, data.Dataset)
        pixels = dataset.test(0, self.count if whole else min(self.count, 16))[0]
        self._crc32 = zlib.crc32(np.ascontiguousarray(pixels).data)

    def _check_values(self) -> None:
        """Raises `RunError` unless the values of the images differ, for their R²."""
        values = self.data.test(0, self.count)[1]
        if not data.label_variance(values):
            raise RunError(
                f"images={self.count}: their values are equal, so they have no R². "
                "Take more."
            )

    def choose(self, wanted: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Returns the corruptions to evaluate, and those left out with the reason.

        Args:
          wanted: Names of corruptions, "common" or "all".

        Returns:
          The names in the published order, and `{name: reason}`.

        Raises:
          RunError: A corruption given by name, or every corruption, is impossible for
            these images.
        """
        generated = self.source == "generated"
        common = list(corruptions.COMMON)
        if generated and self.frost_dir is None:
            common[common.index("frost")] = corruptions.STANDIN
        groups = {"common": common, "all": [*common, *corruptions.EXTRA]}
        chosen = {n for name in wanted for n in groups.get(name, [name])}
        refused, of_maps = {}, self.data.task == "segmentation"
        order = [*groups["all"], *corruptions.NAMES]
        for name in sorted(chosen & set(corruptions.NAMES), key=order.index):
            reason = corruptions.refusal(name, self.shape, of_maps=of_maps)
            if not generated and name == corruptions.STANDIN:
                reason = "it is not in the published sets; take frost."
            if reason and name in wanted:
                raise RunError(f"corruption={name!r}: {reason}")
            if reason:
                refused[name] = reason
        names = sorted(chosen - set(refused), key=order.index)
        if not names:
            raise RunError(f"no corruption is left: {next(iter(refused.values()))}")
        return names, refused

    def key(self, name: str, severity: int) -> JSON:
        """Returns everything that determines the images of a set.

        Args:
          name: A corruption, or `CLEAN`.
          severity: 1 to 5; 0 for `CLEAN`.
        """
        key = {
            "dataset": self.data.name,
            "images": self.count,
            "corruption": name,
            "severity": severity,
        }
        if name != CLEAN and self.source == "published":
            place = self.published_dir or self.data_dir
            place = None if place is None else os.fspath(place)
            return key | {"source": "published", "from": place}
        key |= {"crc32": self._crc32}
        if name == CLEAN:
            return key
        key |= {
            "source": "generated",
            "seed": self.seed,
            "definitions": corruptions.table(self.shape),
        }
        if key["definitions"] == "ImageNet-C":
            # Results of versions before the JPEG are not taken for these.
            key["jpeg"] = corruptions.JPEG_QUALITY
        return key | ({"from": str(self.frost_dir)} if name == "frost" else {})

    def batches(
        self, name: str, severity: int, size: int
    ) -> Iterator[Callable[[], Batch]]:
        """Yields functions that each return one batch, so that threads can call them.

        The last batch is padded with images that do not count.

        Args:
          name: A corruption, or `CLEAN`.
          severity: 1 to 5; not used for `CLEAN`.
          size: Number of images in a batch.

        Raises:
          zosam_jax.data.DatasetError: The set is missing. Raised before the first
            batch.
        """
        read = self.data.test
        if name != CLEAN and self.source == "published":
            read = self._published(name, severity)
        corruption = name if self.source == "generated" and name != CLEAN else None
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)

            counts = np.arange(size) < stop - start

            def batch(
                start: int = start, stop: int = stop, counts: np.ndarray = counts
            ) -> Batch:
                images, labels = self._read(read, corruption, severity, start, stop)
                return _padded(images, size), _padded(labels, size), counts

            yield batch

    def _published(self, name: str, severity: int) -> Callable[[int, int], Images]:
        """Returns the function that reads images of a published set."""
        stored = published.load(
            self.data.name,
            name,
            severity,
            data_dir=self.data_dir,
            folder=self.published_dir,
        )
        if stored.size < self.count:
            raise data.DatasetError(
                f"{name} of severity {severity} has {stored.size} images, fewer than "
                f"the {self.count} asked for."
            )
        return stored.read

    def _read(
        self,
        read: Callable[[int, int], Images],
        corruption: str | None,
        severity: int,
        start: int,
        stop: int,
    ) -> Images:
        """Reads the images from `start` to `stop` and corrupts them, if asked to."""
        images, labels = read(start, stop)
        if images.shape[1:] != self.shape:
            raise data.DatasetError(
                f"the corrupted images are {images.shape[1:]}, those of the run "
                f"{self.shape}."
            )
        if corruption is not None:
            images = corruptions.corrupt(
                images,
                corruption,
                severity,
                seed=self.seed,
                indices=range(start, stop),
                frost_dir=self.frost_dir,
            )
        return images, labels

    def description(self, names: Sequence[str]) -> str:
        """Returns what a publication should call the corrupted images.

        Args:
          names: The corruptions in use.
        """
        height, width, _ = self.shape
        if self.source == "published":
            return f"{published.RELEASED[self.data.name].name}, as published"
        table = corruptions.table(self.shape)
        side = 224 if table == "ImageNet-C" else 32
        parts = [f"corruptions generated by the {table} definitions"]
        if (height, width) != (side, side):
            parts.append(f"made for {side} x {side} pixels, on {height} x {width}")
        if corruptions.STANDIN in names:
            parts.append("with a drawn stand-in for the photographs of frost")
        return ", ".join(parts)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns rows with zeros behind them."""
    return np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))
