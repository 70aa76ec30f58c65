"""Folders of images and of label maps with the same names, `masks:PATH`."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from zosam_jax.data import decoding, encoded_images, files, label_maps
from zosam_jax.data.dataset import (
    IGNORED,
    Dataset,
    DatasetError,
    channel_statistics,
)
from zosam_jax.data.sets import image_paths

MOST_BYTES = 1 << 30
"""Largest size of all images and maps together, in bytes: they are kept in memory."""

_NAMES = "classes.txt"
_FORM = (
    "It must have train/images, train/masks, test/images and test/masks, or images and "
    "masks."
)

Pairs = list[tuple[str, str]]
"""Paths of images and of their maps."""


def read(path: str) -> Dataset:
    """Returns the images of a folder, with the class of each of their pixels.

    The folder has one of two forms:

    - PATH/train/images, PATH/train/masks, PATH/test/images and PATH/test/masks;
    - PATH/images and PATH/masks. Every fifth image by name is a test image.

    Every image has a label map of its name, as `images/7.jpg` and `masks/7.png`; see
    `label_maps.read`. All have one size. A file `classes.txt`, if there is one, has the
    name of each class on a line. Default: the numbers of the classes.

    Raises:
      DatasetError: The folder is not of this form, an image has no map or a map no
        image, sizes differ, or a file cannot be used.
    """
    name = f"masks:{path}"
    root = files.place(name, path)
    train, test = _parts(name, root)
    first = _image(train[0][0], None)
    count = len(train) + len(test)
    size = count * first.shape[0] * first.shape[1] * 4
    if size > MOST_BYTES:
        raise DatasetError(
            f"{name}: {count:,} images of {first.shape[0]} x {first.shape[1]} pixels "
            f"take {size:,} bytes, and at most {MOST_BYTES:,} are kept in memory. Make "
            "them smaller."
        )
    arrays = [_read(name, pairs, first.shape[:2]) for pairs in (train, test)]
    (train_images, train_labels), (test_images, test_labels) = arrays
    names = _class_names(root)
    if names is None:
        names = _numbers(name, (train_labels, test_labels))
    else:
        _check_named(root, names, (*train, *test), (*train_labels, *test_labels))
    mean, std = channel_statistics(train_images)
    try:
        return Dataset(
            name=name,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            class_names=names,
            mean=mean,
            std=std,
            crop_padding=max(first.shape[:2]) // 8,
            flip=True,
        )
    except ValueError as error:
        raise DatasetError(str(error)) from error


def _parts(name: str, root: pathlib.Path) -> tuple[Pairs, Pairs]:
    """Returns the training and the test images, with their maps."""
    if all((root / part).is_dir() for part in ("train", "test")):
        return _pairs(name, root / "train"), _pairs(name, root / "test")
    if not (root / "images").is_dir():
        raise DatasetError(f"{name}: {root} is no folder of images and masks. {_FORM}")
    pairs = _pairs(name, root)
    if len(pairs) < 2:
        raise DatasetError(f"{name} has one image, and one more is needed for testing.")
    test = pairs[::5]
    return [pair for pair in pairs if pair not in test], test


def _pairs(name: str, folder: pathlib.Path) -> Pairs:
    """Returns the images in `folder/images` by name, with the maps of their names."""
    found: list[dict[str, str]] = []
    for part in ("images", "masks"):
        place = folder / part
        if not place.is_dir():
            raise DatasetError(f"{name} has no folder {place}. {_FORM}")
        (paths,) = image_paths.images_below(name, [str(place.absolute())])
        stems = {os.path.splitext(os.path.relpath(p, place))[0]: p for p in paths}
        if len(stems) < len(paths):
            raise DatasetError(
                f"{name}: two files in {place} have one name, but for the suffix."
            )
        found.append(stems)
    images, masks = found
    for stem in sorted(images.keys() ^ masks.keys()):
        has, lacks = ("image", "mask") if stem in images else ("mask", "image")
        raise DatasetError(
            f"{name}: the {has} {stem!r} in {folder} has no {lacks} of this name."
        )
    if not images:
        raise DatasetError(f"{name}: there are no images in {folder / 'images'}.")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _read(
    name: str, pairs: Pairs, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, uint8 `[N, H, W, 3]`, and label maps, uint8 `[N, H, W]`."""
    images, maps = [], []
    for image, mask in pairs:
        labels = label_maps.read(mask)
        if labels.shape != size:
            raise DatasetError(
                f"{name}: {mask} has {labels.shape[0]} x {labels.shape[1]} pixels; the "
                f"first image has {size[0]} x {size[1]}, and all must have one size."
            )
        images.append(_image(image, size))
        maps.append(labels)
    return np.stack(images), np.stack(maps)


def _image(path: str, size: tuple[int, ...] | None) -> np.ndarray:
    """Returns the pixels of an image, which must have a size."""
    encoded: bytes | None = None
    try:
        encoded = files.read(path, decoding.MOST_BYTES)
        wanted = None if size is None else (size[0], size[1])
        return encoded_images.pixels(decoding.decode(encoded, 3, wanted))
    except decoding.BROKEN as error:
        reason = decoding.reason(error, encoded)
        raise DatasetError(
            f"{path} cannot be used: {reason}. All images of a set for segmentation "
            "must have one size. Replace it, or remove it with its mask."
        ) from error


def _numbers(name: str, labels: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Returns the numbers up to the largest class as names, if most have pixels."""
    found = sorted({int(k) for x in labels for k in np.unique(x)} - {IGNORED})
    count = found[-1] + 1 if found else 1
    if 2 * len(found) < count:
        listed = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise DatasetError(
            f"{name}: the masks have the classes {listed}, and most numbers up to "
            f"{count - 1} have no pixel. Number the classes from 0 without gaps, or "
            f"name all {count} in {_NAMES}."
        )
    return tuple(map(str, range(count)))


def _check_named(
    root: pathlib.Path,
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    labels: Sequence[np.ndarray],
) -> None:
    """Raises `DatasetError` if a mask has a class without a name."""
    for (_, mask), each in zip(pairs, labels, strict=True):
        largest = int(each[each != IGNORED].max(initial=0))
        if largest >= len(names):
            raise DatasetError(
                f"{mask} has class {largest}, and {root / _NAMES} names the classes 0 "
                f"to {len(names) - 1}. Add a line for each class; pixels of {IGNORED} "
                "do not count."
            )


def _class_names(root: pathlib.Path) -> tuple[str, ...] | None:
    """Returns the names in `classes.txt`; None if there is no such file."""
    place = root / _NAMES
    if not os.path.lexists(place):
        return None
    try:
        text = files.read(place, 1 << 20).decode()
    except (OSError, UnicodeError) as error:
        raise DatasetError(f"{place} cannot be read: {files.said(error)}.") from error
    names = tuple(line.strip() for line in text.strip().splitlines())
    if not all(names) or len({*names}) < len(names):
        raise DatasetError(f"{place}: two names of classes are equal, or one is empty.")
    return names
