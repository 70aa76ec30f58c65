"""The table of data sets: a row for each name, and the functions that read the rows.

To add a data set, write its module in `sets` and add a row to `DATASETS`. Image
classification sets of TFDS can be loaded without a row. `tests/data/test_data_table.py`
says what is still missing.
"""

import os
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from zosam_jax import _check
from zosam_jax.data import in_memory, streaming
from zosam_jax.data.archives import Archives, OnProgress
from zosam_jax.data.dataset import Dataset
from zosam_jax.data.encoded_images import EncodedImages
from zosam_jax.data.sets import (
    cifar,
    class_folders,
    digits,
    imagenet,
    mask_folders,
    npz,
    oxford_iiit_pet,
    shapes,
    text,
)
from zosam_jax.data.streaming import Streamed

PathLike = str | os.PathLike[str]

MOST_SIDE = 4096
"""Largest side of the images of a streamed set, in pixels."""


class Counts(NamedTuple):
    """The published size of a data set.

    Attributes:
      train: Number of training examples.
      test: Number of test examples.
      classes: Number of classes.
    """

    train: int
    test: int
    classes: int


class NamedDataset(NamedTuple):
    """A row of the table. It has `open` or `archives`, and not both.

    Attributes:
      label: The data set in words.
      source: Paper or place that it comes from.
      counts: The published size, or a reason why there is none.
      open: `path -> data set`, for a set that is read where it is; path is the part of
        the name after "NAME:", or "".
      archives: How to prepare a set of TFDS from its archives. It is read from the TFDS
        data directory.
      prepare: `(path, archive, on_progress)`, if a set with `open` has something to
        prepare.
      kind: Type of the examples.
    """

    label: str
    source: str
    counts: Counts | str
    open: Callable[[str], Dataset | EncodedImages] | None = None
    archives: Archives | None = None
    prepare: Callable[[str, PathLike | None, OnProgress], None] | None = None
    kind: Literal["image", "text"] = "image"


# A name with ":PATH" stands for all names with that beginning.
DATASETS: dict[str, NamedDataset] = {
    "digits": NamedDataset(
        "handwritten digits, 8x8",
        "part of scikit-learn",
        Counts(1_437, 360, 10),
        open=lambda _: digits.read(),
    ),
    "shapes": NamedDataset(
        "circles, squares and triangles for segmentation, 32x32",
        "drawn here",
        Counts(shapes.TRAIN, shapes.TEST, len(shapes.CLASSES)),
        open=lambda _: shapes.read(),
    ),
    "cifar10": NamedDataset(
        "CIFAR-10, 32x32",
        "Krizhevsky 2009",
        Counts(50_000, 10_000, 10),
        archives=cifar.ARCHIVES,
    ),
    "cifar100": NamedDataset(
        "CIFAR-100, 32x32",
        "Krizhevsky 2009",
        Counts(50_000, 10_000, 100),
        archives=cifar.ARCHIVES,
    ),
    "imagenette": NamedDataset(
        "Imagenette, ten classes of ImageNet",
        "github.com/fastai/imagenette",
        Counts(9_469, 3_925, 10),
        archives=imagenet.IMAGENETTE,
    ),
    "oxford_iiit_pet": NamedDataset(
        "the Oxford-IIIT pets, cats and dogs by breed",
        "Parkhi et al. 2012",
        Counts(3_680, 3_669, 37),
        archives=oxford_iiit_pet.ARCHIVES,
    ),
    "imagenet2012": NamedDataset(
        "ImageNet (ILSVRC2012)",
        "Russakovsky et al. 2015, arXiv:1409.0575",
        Counts(1_281_167, 50_000, 1000),
        archives=imagenet.IMAGENET,
    ),
    "pydoc": NamedDataset(
        "Python's documentation, byte by byte",
        "part of CPython",
        "its size differs between versions of Python",
        open=lambda _: text.read_pydoc(),
        kind="text",
    ),
    "folder:PATH": NamedDataset(
        "a folder of images for each class",
        "your files",
        "its size depends on the folder",
        open=class_folders.find,
        prepare=class_folders.prepare,
    ),
    "masks:PATH": NamedDataset(
        "a folder of images and of label maps for segmentation",
        "your files",
        "its size depends on the folder",
        open=mask_folders.read,
    ),
    "npz:PATH": NamedDataset(
        "arrays of images and labels in a file of np.savez",
        "your files",
        "its size depends on the file",
        open=npz.read,
    ),
    "text:PATH": NamedDataset(
        "any file, byte by byte",
        "your files",
        "its size depends on the file",
        open=text.read_file,
        kind="text",
    ),
}


def names() -> tuple[str, ...]:
    """Returns the names of the data sets that never need TensorFlow.

    `load` also takes any other image classification set of TFDS.

    >>> names()[:3]
    ('digits', 'shapes', 'cifar10')
    """
    return tuple(name for name in DATASETS if not name.endswith(":PATH"))


def is_of_tfds(name: str) -> bool:
    """Returns whether a data set is read from the TFDS data directory.

    >>> is_of_tfds("cifar10"), is_of_tfds("digits")
    (True, False)
    """
    row, _ = _row(name)
    return row is None or row.open is None


def describe() -> str:
    """Returns a list of all data sets as text.

    >>> print(describe().splitlines()[2])
    cifar10: CIFAR-10, 32x32; 50,000 + 10,000 examples, 10 classes (Krizhevsky 2009)
    """
    lines = []
    for name, row in DATASETS.items():
        size = row.counts
        if isinstance(size, Counts):
            size = f"{size.train:,} + {size.test:,} examples, {size.classes} classes"
        lines.append(f"{name}: {row.label}; {size} ({row.source})")
    return "\n".join(lines)


def load(
    name: str, data_dir: PathLike | None = None, image_size: int | None = None
) -> Dataset | Streamed:
    """Returns a data set by name.

    Images of one size up to 96 x 96 pixels that take at most 2 GiB are decoded into
    host memory, as a `Dataset`. Others are a `Streamed` set, which decodes on demand.

    Args:
      name: One of

        - `digits`, in scikit-learn's wheel;
        - `shapes`, drawn images with a class for every pixel;
        - `cifar10`, `imagenette/320px-v2` or any image classification set of TFDS, in
          the TFDS data directory as `array_record`; see `tfds_reader.find` for the
          splits;
        - `folder:PATH`, images in a folder for each class; see `class_folders.find`;
        - `masks:PATH`, images and label maps of the same names; see
          `mask_folders.read`;
        - `npz:PATH`, arrays of images and labels in one file; see `npz.read`;
        - `pydoc`, Python's documentation, and `text:PATH`, any file, as sequences of
          128 bytes; see `text.sequences`.
      data_dir: The TFDS data directory. Default: `TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`. Only sets of TFDS use it.
      image_size: Side of the images of a streamed set, in pixels, at most 4,096.
        Default: 224, or the side of the images if all have the same and it is smaller.
        Sets in memory do not use it.

    Raises:
      ValueError: `name` is unknown.
      DatasetError: The set is missing, incomplete or damaged; the message says where it
        should be and which command prepares it.

    >>> digits = load("digits")
    >>> digits.num_train, digits.image_shape
    (1437, (8, 8, 1))
    """
    if image_size is not None:
        _check.whole("image_size", image_size)
        if image_size > MOST_SIDE:
            raise ValueError(f"image_size={image_size} must be at most {MOST_SIDE:,}.")
    row, path = _row(name)
    if row is not None and row.open is not None:
        found = row.open(path)
    else:
        # Imported late: TFDS takes a second, and other sets do not need it.
        from zosam_jax.data import tfds_reader

        tfds_reader.check_name(name, data_dir, tuple(DATASETS))
        found = tfds_reader.find(name, data_dir)
    if isinstance(found, Dataset):
        return found
    if in_memory.fits(found):
        return in_memory.decode_all(found)
    return streaming.stream(found, image_size)


def prepare(
    name: str,
    data_dir: PathLike | None = None,
    archive: PathLike | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Downloads a data set and writes it where `load` finds it, without TensorFlow.

    The next call continues an interrupted download. Encoded images are kept as they
    are.

    Args:
      name: One of `names()`, `folder:PATH`, `npz:PATH` or `text:PATH`. Sets that need
        no preparation are checked. `imagenet2012` must be downloaded by hand. For other
        sets of TFDS, the error says which command prepares them with TensorFlow.
      data_dir: The TFDS data directory. Default: `TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`.
      archive: The published archive on this machine, or the folder of the archives if
        there are several. Default: they are downloaded, or read from
        DATA_DIR/downloads/manual if they cannot be downloaded. For `folder:PATH`, a tar
        or zip file that is unpacked there.
      on_progress: Called with a line of text at every tenth of the download and of the
        writing, and at the end with the place of the set. Default: silent.

    Raises:
      ValueError: `name` is unknown.
      DatasetError: The archive cannot be downloaded, is not the right file, or cannot
        be written. Nothing is left where `load` would find it.
    """
    on_progress = on_progress or (lambda _: None)
    row, path = _row(name)
    _check_prepare(name, row, data_dir, archive)
    if row is not None and row.prepare is not None:
        row.prepare(path, archive, on_progress)
    elif row is not None and row.open is not None:
        found = load(name)
        on_progress(
            f"{name} needs no preparation: its {found.num_train:,} training and "
            f"{found.num_test:,} test examples are read from where they are."
        )
    else:
        from zosam_jax.data import tfds_reader, tfds_writer

        tfds_reader.check_name(name, data_dir, tuple(DATASETS))
        archives = None if row is None else row.archives
        tfds_writer.prepare(name, archives, data_dir, archive, on_progress)


def _check_prepare(
    name: str,
    row: NamedDataset | None,
    data_dir: PathLike | None,
    archive: PathLike | None,
) -> None:
    """Raises `ValueError` for arguments of `prepare` that have no effect."""
    if row is None or row.open is None:
        return
    if data_dir is not None:
        raise ValueError(
            f"data_dir={str(data_dir)!r} has no effect: {name} is read from where it "
            "is. Leave it out."
        )
    if archive is not None and row.prepare is None:
        raise ValueError(
            f"archive={str(archive)!r} has no effect: {name} needs no preparation. "
            "Leave it out."
        )


def _row(name: str) -> tuple[NamedDataset | None, str]:
    """Returns the row of a name, None if it has none, and the path in the name."""
    kind, colon, path = name.partition(":")
    if colon and f"{kind}:PATH" in DATASETS:
        if not path:
            raise ValueError(
                f"dataset={name!r} names no path: it is {kind}:PATH, as "
                f"{kind}:~/data/mine."
            )
        return DATASETS[f"{kind}:PATH"], path
    # Names of TFDS may go on with a configuration or version.
    row = DATASETS.get(re.split("[/:]", name, maxsplit=1)[0])
    if row is not None and row.open is not None:
        row = DATASETS.get(name)
    return row, ""
