"""Readers of the published corrupted sets: CIFAR-10-C, CIFAR-100-C, ImageNet-C.

Nothing is downloaded. The sets are read from the folder of `.npy` files in which the
CIFAR sets are released, or from a TFDS data directory, where they must be in the format
`array_record`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zosam_jax import _check
from zosam_jax.data import decoding, files
from zosam_jax.data.archives import Builder
from zosam_jax.data.corruptions.definitions import COMMON, EXTRA, SEVERITIES
from zosam_jax.data.dataset import DatasetError


class Released(NamedTuple):
    """Where the published corrupted test set of a data set is.

    Attributes:
      name: The name of the set.
      builder: Its name in TFDS; None if TFDS does not have it.
      split: Its split in TFDS.
      renamed: TFDS's names of the corruptions that it calls differently.
      url: Address of the released files.
    """

    name: str
    builder: str | None
    split: str
    renamed: dict[str, str]
    url: str


RELEASED = {
    "cifar10": Released(
        "CIFAR-10-C",
        "cifar10_corrupted",
        "test",
        {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"},
        "https://zenodo.org/records/2535967",
    ),
    "cifar100": Released(
        "CIFAR-100-C", None, "test", {}, "https://zenodo.org/records/3555552"
    ),
    "imagenet2012": Released(
        "ImageNet-C",
        "imagenet2012_corrupted",
        "validation",
        {},
        "https://zenodo.org/records/2235448",
    ),
}

# Top-1 errors of AlexNet on ImageNet-C, averaged over the severities
# (arXiv:1903.12261, table 1, with the digits of the authors' evaluation code).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


class CorruptedSet(NamedTuple):
    """A published test set under one corruption of one severity.

    Attributes:
      size: Number of images.
      read: `(start, stop)`; returns the images from `start` to `stop - 1`, uint8
        `[N, H, W, C]`, and their labels, int32 `[N]`.
    """

    size: int
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def load(
    dataset: str,
    name: str,
    severity: int,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> CorruptedSet:
    """Returns a published corrupted test set, whose images are read on demand.

    Args:
      dataset: "cifar10", "cifar100" or "imagenet2012".
      name: One of the 15 common or 4 extra corruptions.
      severity: From 1 to 5.
      data_dir: TFDS data directory. Default: `TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`.
      folder: Folder with the released files NAME.npy and labels.npy of a CIFAR set,
        used instead of `data_dir`.

    Raises:
      ValueError: An argument is unknown.
      DatasetError: The set is not published, or missing, incomplete or damaged.
    """
    _check.one_of("corruption", name, (*COMMON, *EXTRA))
    _check.one_of("severity", severity, SEVERITIES)
    if dataset not in RELEASED:
        raise DatasetError(
            f"no corrupted set of {dataset} is published (only of "
            f"{', '.join(RELEASED)}). Its corruptions can be generated."
        )
    released = RELEASED[dataset]
    if folder is not None:
        place = files.place(f"published_dir={folder}", folder)
        return _from_files(released, place, name, severity)
    if released.builder is None:
        raise DatasetError(
            f"TFDS has no {released.name}. Unpack the archive from {released.url} and "
            "set --published-dir to the folder of its .npy files."
        )
    return _from_tfds(released, data_dir, name, severity)


def _from_files(
    released: Released, folder: Path, name: str, severity: int
) -> CorruptedSet:
    """Reads the released files, which hold the five severities one after another."""
    hint = f"It is in the archive from {released.url}."
    arrays = []
    for file in (f"{name}.npy", "labels.npy"):
        try:
            files.open_regular(folder / file).close()
            # Not `np.load`, which reads other formats too.
            arrays.append(np.lib.format.open_memmap(folder / file, mode="r"))
        except FileNotFoundError as error:
            raise DatasetError(
                f"{released.name}: {folder} has no {file}. {hint}"
            ) from error
        except files.NOT_AN_ARRAY as error:
            raise DatasetError(
                f"{released.name}: {folder / file} cannot be read ({_reason(error)}). "
                f"{hint}"
            ) from error
    images, labels = arrays
    count, rest = divmod(images.shape[0] if images.ndim else 0, len(SEVERITIES))
    is_whole = images.ndim == 4 and images.dtype == np.uint8 and count and not rest
    if (
        not is_whole
        or labels.shape != images.shape[:1]
        or labels.dtype.kind not in "iu"
    ):
        raise DatasetError(
            f"{released.name}: {folder / name}.npy and labels.npy hold "
            f"{images.dtype} {images.shape} and {labels.shape}. They should hold uint8 "
            f"images, five times as many as the test set, and their labels. {hint}"
        )
    first = (severity - 1) * count

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(first + start, first + min(stop, count))
        return np.array(images[part]), labels[part].astype(np.int32)

    return CorruptedSet(count, read)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is no array of NumPy, or is damaged"


def _from_tfds(
    released: Released,
    data_dir: str | os.PathLike[str] | None,
    name: str,
    severity: int,
) -> CorruptedSet:
    """Reads a prepared set of TFDS."""
    from zosam_jax.data import tfds_reader

    place = tfds_reader.root(data_dir)
    full = f"{released.builder}/{released.renamed.get(name, name)}_{severity}"
    builder = tfds_reader.builder(full, place)
    folder = builder.data_path
    advice = _advice(released, full, place)
    if not (folder / "dataset_info.json").exists():
        raise DatasetError(f"{full} is not in {folder}. {advice}")
    formats = {f.value for f in builder.info.available_file_formats()}
    if tfds_reader.FORMAT not in formats:
        raise DatasetError(
            f"{folder} holds {full} as {', '.join(sorted(formats))}, which cannot be "
            f"read without TensorFlow; array_record is needed. {advice}"
        )
    return _from_builder(builder, released.split, f"{full} in {folder}", advice)


def _from_builder(builder: Builder, split: str, what: str, advice: str) -> CorruptedSet:
    """Reads a split of a prepared set of TFDS.

    Args:
      builder: TFDS's builder of the set.
      split: The split.
      what: The set and its folder, for error messages.
      advice: How to prepare it, for error messages.
    """
    import tensorflow_datasets as tfds

    from zosam_jax.data import tfds_reader

    damaged = f"{what} is incomplete or damaged"
    try:
        examples = builder.as_data_source(
            split=split,
            decoders={"image": tfds.decode.SkipDecoding()},
            file_format=tfds_reader.FORMAT,
        )
        count = len(examples)
        wanted = builder.info.splits[split].num_examples
    except tfds_reader.READ_ERRORS as error:
        raise DatasetError(f"{damaged} ({files.said(error)}). {advice}") from error
    if count != wanted:
        raise DatasetError(f"{damaged}: {count} of {wanted} images. {advice}")

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            rows = examples.__getitems__(list(range(start, min(stop, count))))
            pictures = [decoding.decode(row["image"], 3) for row in rows]
            images = np.stack([np.asarray(picture) for picture in pictures])
        except tfds_reader.READ_ERRORS as error:
            raise DatasetError(f"{damaged} ({files.said(error)}). {advice}") from error
        return images, np.array([row["label"] for row in rows], np.int32)

    return CorruptedSet(count, read)


def _advice(released: Released, full: str, place: Path) -> str:
    """Returns how to prepare a set of TFDS, by its full name, in a directory."""
    prepare = (
        'python -c "import tensorflow_datasets as tfds; tfds.builder('
        f"'{full}', data_dir='{place}', file_format='array_record')"
        '.download_and_prepare()"'
    )
    return (
        f"With TensorFlow installed, `{prepare}` writes it there. "
        f"(The files are at {released.url}. Those of a CIFAR set can be read from "
        "--published-dir without TensorFlow.)"
    )
