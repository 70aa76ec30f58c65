"""The test sets of an evaluation: clean, corrupted here, or corrupted and published."""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zosam_jax import data
from zosam_jax.data import corruptions
from zosam_jax.data.corruptions import published
from zosam_jax.runs.errors import RunError

CLEAN = "clean"
SOURCES = ("generated", "published")

Batch = tuple[np.ndarray, np.ndarray]


class CorruptedTests:
    """The test sets: which there are, what they are called, their batches."""

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
        """Checks that the data set is one of images.

        Args:
          dataset: Its test images are the clean ones.
          source: One of `SOURCES`.
          images: How many of each set to use; None: all.
          seed: Of what is random in generated corruptions.
          data_dir: TFDS directory of the published sets.
          published_dir: Folder of released files instead.
          frost_dir: Photographs for generated frost.

        Raises:
          RunError: It has no test images.
        """
        self.data = dataset
        if dataset.kind != "image" or not dataset.num_test:
            raise RunError(
                f"{self.data.name} has no test images; corruptions are of images."
            )
        self.source, self.seed = source, seed
        self.count = min(images or dataset.num_test, dataset.num_test)
        self.shape = tuple(int(size) for size in dataset.image_shape)
        self.data_dir, self.published_dir = data_dir, published_dir
        self.frost_dir = None if frost_dir is None else Path(frost_dir).resolve()
        # Of a set on disk, a few images tell it from another.
        whole = isinstance(dataset, data.Dataset)
        pixels = dataset.test(0, self.count if whole else min(self.count, 16))[0]
        self._crc32 = zlib.crc32(np.ascontiguousarray(pixels).data)

    def choose(self, wanted: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Returns the corruptions, in the published order, and why others are not."""
        generated = self.source == "generated"
        common = list(corruptions.COMMON)
        if generated and self.frost_dir is None:
            common[common.index("frost")] = corruptions.STANDIN
        groups = {"common": common, "all": [*common, *corruptions.EXTRA]}
        chosen = {n for name in wanted for n in groups.get(name, [name])}
        refused = {}
        for name in chosen & set(corruptions.NAMES):
            reason = corruptions.refusal(name, self.shape)
            if not generated and name == corruptions.STANDIN:
                reason = "it is not in the published sets; take frost."
            if reason and name in wanted:
                raise RunError(f"corruption={name!r}: {reason}")
            if reason:
                refused[name] = reason
        order = [*groups["all"], *corruptions.NAMES]
        names = sorted(chosen - set(refused), key=order.index)
        if not names:
            raise RunError(f"no corruption is left: {next(iter(refused.values()))}")
        return names, refused

    def key(self, name: str, severity: int) -> dict[str, Any]:
        """Returns all that a test set depends on."""
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
        return key | ({"from": str(self.frost_dir)} if name == "frost" else {})

    def batches(
        self, name: str, severity: int, size: int
    ) -> Iterator[Callable[[], Batch]]:
        """Yields functions that return the images and labels of a batch.

        The last batch is filled up with images of label -1.

        Args:
          name: A corruption, or `CLEAN`.
          severity: 1 to 5.
          size: Images of a batch.

        Raises:
          zosam_jax.data.DatasetError: The set is missing; before the first batch.
        """
        read = self.data.test
        if name != CLEAN and self.source == "published":
            stored = published.load(
                self.data.name,
                name,
                severity,
                data_dir=self.data_dir,
                folder=self.published_dir,
            )
            if stored.size < self.count:
                raise data.DatasetError(
                    f"{name} of severity {severity} has {stored.size} images, fewer "
                    f"than the {self.count} asked for."
                )
            read = stored.read
        make = name if self.source == "generated" and name != CLEAN else None
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)

            def batch(start: int = start, stop: int = stop) -> Batch:
                made, labels = self._made(read, make, severity, start, stop)
                short = size - len(made)
                pad = ((0, short), (0, 0), (0, 0), (0, 0))
                labels = labels.astype(np.int32)
                return np.pad(made, pad), np.pad(labels, (0, short), constant_values=-1)

            yield batch

    def _made(
        self,
        read: Callable[[int, int], Batch],
        name: str | None,
        severity: int,
        start: int,
        stop: int,
    ) -> Batch:
        images, labels = read(start, stop)
        if images.shape[1:] != self.shape:
            raise data.DatasetError(
                f"the corrupted images are {images.shape[1:]}, those of the run "
                f"{self.shape}."
            )
        if name is not None:
            images = corruptions.corrupt(
                images,
                name,
                severity,
                seed=self.seed,
                indices=range(start, stop),
                frost_dir=self.frost_dir,
            )
        return images, labels

    def description(self, names: Sequence[str]) -> str:
        """Returns what the corrupted images are, as a result should call them."""
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
