"""Image sets exported as one file of NumPy arrays, `npz:PATH`."""

import math
import os
import sys
import zipfile
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from zosam_jax.data import archives, files
from zosam_jax.data.dataset import (
    IGNORED,
    Dataset,
    DatasetError,
    channel_statistics,
)

MOST_BYTES = 1 << 30
"""Largest size of all arrays together, in bytes: they are kept in memory."""

MOST_CLASSES = 1 << 16
"""Largest number of classes."""

_SURROGATES = 0xD800 >> 11

PARTS = ("train", "test")
_NEEDED = tuple(f"{part}_{what}" for part in PARTS for what in ("images", "labels"))
_OPTIONAL = ("class_names", "flip")

# `RuntimeError`: an encrypted member, or a later version of the format.
_BROKEN = (*files.NOT_AN_ARRAY, *archives.DAMAGED, RuntimeError)


class _Form(NamedTuple):
    """What an array must be.

    Attributes:
      kinds: Allowed kinds of its dtype.
      size: Largest size of an item, in bytes.
      axes: Numbers of axes that it may have.
      words: The same in words.
    """

    kinds: str
    size: int
    axes: tuple[int, ...]
    words: str


_IMAGES = _Form("u", 1, (4,), "uint8 [N, H, W, C], from 0 to 255")
_LABELS = _Form(
    *("iu", 8, (1, 3)),
    words="integers [N], from 0, or [N, H, W], a class for each pixel (several classes "
    "or values for an example: give a data.Dataset of your own)",
)
_FORMS = {
    **{f"{part}_images": _IMAGES for part in PARTS},
    **{f"{part}_labels": _LABELS for part in PARTS},
    "class_names": _Form("U", 4 * files.SHOWN, (1,), "strings [classes]"),
    "flip": _Form("b", 1, (0,), "True or False"),
}


def read(path: str | os.PathLike[str]) -> Dataset:
    """Returns the image set in a file that `np.savez` or `np.savez_compressed` wrote.

    The arrays, of at most 1 GiB together:

    - `train_images`, `test_images`: uint8 `[N, H, W, C]` with 1 or 3 channels;
    - `train_labels`, `test_labels`: integers `[N]` from 0; or label maps, integers `[N,
      H, W]`, in which 255 does not count;
    - `class_names`, optional: strings. Default: the numbers of the classes;
    - `flip`, optional: whether the mirror image of an image has the same label.
      Default: True.

    Nothing in the file is executed: pickled objects are refused.

    Raises:
      DatasetError: The file cannot be read or is damaged, an array is missing or is not
        of this form, or a label is not a class.
    """
    name = f"npz:{path}"
    place = files.place(name, path)
    try:
        with files.open_regular(place) as file, zipfile.ZipFile(file) as packed:
            _check_names(name, packed)
            arrays = _arrays(name, packed)
    except DatasetError:
        raise
    except _BROKEN as error:
        raise DatasetError(f"{name} cannot be read: {_reason(error)}.") from error
    images, labels = (
        [arrays[f"{part}_{what}"] for part in PARTS] for what in ("images", "labels")
    )
    _check_images(name, images)
    names = _class_names(name, arrays, labels)
    mean, std = channel_statistics(images[0])
    try:
        return Dataset(
            name=name,
            train_images=images[0],
            train_labels=labels[0],
            test_images=images[1],
            test_labels=labels[1],
            class_names=names,
            mean=mean,
            std=std,
            crop_padding=max(images[0].shape[1:3]) // 8,
            flip=bool(arrays.get("flip", True)),
        )
    except ValueError as error:
        # Label maps of other pixels than those of the images.
        raise DatasetError(str(error)) from error


def _check_names(name: str, packed: zipfile.ZipFile) -> None:
    """Raises `DatasetError` unless the file has the arrays of a set, and no others."""
    found = [info.filename.removesuffix(".npy") for info in packed.infolist()]
    known = f"The arrays are {', '.join(_NEEDED)}, and {' and '.join(_OPTIONAL)}."
    for key in _NEEDED:
        if key not in found:
            raise DatasetError(f"{name} has no array {key}. {known}")
    for key in found:
        if key not in _FORMS:
            raise DatasetError(
                f"{name} has an array {key[: files.SHOWN]!r}, which is not one of a "
                f"set. {known}"
            )
        if found.count(key) > 1:
            raise DatasetError(f"{name} has the array {key} more than once.")


def _arrays(name: str, packed: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Returns the arrays, after a look at all headers: they say what it will cost."""
    room = MOST_BYTES
    for info in packed.infolist():
        with packed.open(info) as file:
            room -= _checked_size(name, info, file)
        if room < 0:
            raise DatasetError(
                f"{name} has more than {MOST_BYTES:,} bytes of arrays, which are kept "
                "in memory. Make it a folder of images, folder:PATH."
            )
    arrays = {}
    for info in packed.infolist():
        with packed.open(info) as file:
            array = npy.read_array(file, allow_pickle=False)
        arrays[info.filename.removesuffix(".npy")] = np.ascontiguousarray(array)
    return arrays


def _checked_size(name: str, info: zipfile.ZipInfo, file: IO[bytes]) -> int:
    """Returns the size of an array in bytes, from its header.

    Args:
      name: The data set.
      info: The member of the file.
      file: The same, open at its start.

    Raises:
      DatasetError: It is no array of the form that its name demands.
    """
    key = info.filename.removesuffix(".npy")
    version, form = npy.read_magic(file), _FORMS[key]
    if version not in ((1, 0), (2, 0)):
        raise ValueError(version)  # of structured arrays, which are not of a form
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, _, dtype = header[version](file)
    is_form = dtype.kind in form.kinds and 1 <= dtype.itemsize <= form.size
    if not is_form or len(shape) not in form.axes or min(shape, default=1) < 1:
        raise DatasetError(
            f"{name}: {key} must be {form.words}; it is {dtype} {list(shape)}."[:400]
        )
    size = math.prod(shape) * dtype.itemsize
    if file.tell() + size != info.file_size:
        raise ValueError(size)  # It is cut, or has more than its array.
    return size


def _check_images(name: str, images: list[np.ndarray]) -> None:
    """Raises `DatasetError` unless training and test images have one shape."""
    train, test = (list(x.shape[1:]) for x in images)
    if train != test:
        raise DatasetError(
            f"{name}: the training images are {train} and the test images {test}."
        )
    if train[-1] not in (1, 3):
        raise DatasetError(
            f"{name}: the images are {train} and have {train[-1]} channels, not 1 or 3."
        )


def _class_names(
    name: str, arrays: dict[str, np.ndarray], labels: list[np.ndarray]
) -> tuple[str, ...]:
    """Returns the names of the classes, after checks of them and of the labels."""
    for part, own in zip(PARTS, labels, strict=True):
        count = len(arrays[f"{part}_images"])
        if count != len(own):
            raise DatasetError(
                f"{name}: {count:,} {part}_images have {len(own):,} {part}_labels."
            )
    labels = [x[x != IGNORED] if x.ndim == 3 else x for x in labels]
    least = min(int(x.min(initial=0)) for x in labels)
    most = max(int(x.max(initial=0)) for x in labels)
    given = arrays.get("class_names")
    classes = most + 1 if given is None else len(given)
    if classes > MOST_CLASSES:
        raise DatasetError(
            f"{name} has {classes:,} classes; at most {MOST_CLASSES:,} are read."
        )
    if least < 0 or most >= classes:
        raise DatasetError(
            f"{name}: the labels run from {least} to {most}, and there are "
            f"{classes:,} class_names, from 0."
        )
    if given is None:
        return tuple(map(str, range(classes)))
    codes = given.astype(given.dtype.newbyteorder("=")).view(np.uint32)
    # Python ends in a `SystemError` for the former, and cannot print the latter.
    if codes.max() > sys.maxunicode or ((codes >> 11) == _SURROGATES).any():
        raise DatasetError(f"{name}: class_names hold something else than characters.")
    names = tuple(given.tolist())
    if not all(names) or len(set(names)) < classes:
        raise DatasetError(f"{name}: two class_names are equal, or one is empty.")
    return names


def _reason(error: BaseException) -> str:
    """Returns what is wrong with a file, in words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is no file of np.savez, or is damaged"
