"""Folders of images with one folder for each class, `folder:PATH`."""

import dataclasses
import os
import pathlib
import shutil
import tarfile
from collections.abc import Sequence

import numpy as np

from zosam_jax.data import archives, decoding, files
from zosam_jax.data.archives import OnProgress
from zosam_jax.data.dataset import DatasetError
from zosam_jax.data.encoded_images import EncodedImages
from zosam_jax.data.sets import image_paths

_TEST = ("test", "val", "validation")
_FIFTH = 5
_REPAIR = "Replace that file, or remove it."


@dataclasses.dataclass(frozen=True)
class Files:
    """Images in files; an `encoded_images.Source`.

    Attributes:
      paths: The path of each row.
      labels: int32 `[N]`.
    """

    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self.paths)

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns the encoded bytes and the label of each row."""
        found = []
        for row in rows:
            try:
                encoded = files.read(self.paths[row], decoding.MOST_BYTES)
                found.append((encoded, int(self.labels[row])))
            except OSError as error:
                raise DatasetError(
                    f"{self.where(row)} cannot be read ({error.strerror}). {_REPAIR}"
                ) from error
        return found

    def where(self, row: int) -> str:
        """Returns the path of a row."""
        return self.paths[row]


def find(path: str | os.PathLike[str]) -> EncodedImages:
    """Returns the image set in a folder.

    The folder has one of two forms:

    - PATH/train/CLASS/IMAGE, and PATH/test (or val, or validation) with the same
      classes;
    - PATH/CLASS/IMAGE. Of each class, every fifth image by name is a test image.

    Classes are numbered by name. Images are found by `image_paths.images_below`: at any
    depth in the folder of their class, and through links. Other files, and names that
    begin with a dot, are ignored.

    Raises:
      DatasetError: The folder is missing or empty, a class has no images, the training
        and test set have different classes, or links put an image into two of them.
    """
    name = f"folder:{path}"
    root = files.place(name, path)
    if not os.path.isdir(root):
        raise DatasetError(f"{name}: {root} is not a folder.")
    train, test = _splits(name, root)
    names = tuple(sorted(train))
    parts = {
        split: Files(
            tuple(p for c in names for p in paths[c]),
            np.repeat(np.arange(len(names)), [len(paths[c]) for c in names]).astype(
                np.int32
            ),
        )
        for split, paths in (("train", train), ("test", test))
    }
    return EncodedImages(
        name=name,
        train=parts["train"],
        test=parts["test"],
        class_names=names,
        channels=3,
        size=_one_size([*parts["train"].paths, *parts["test"].paths]),
        repair=_REPAIR,
        flip=True,
    )


def prepare(
    path: str, archive: str | os.PathLike[str] | None, progress: OnProgress
) -> None:
    """Checks a folder of images, after unpacking an archive if one is given.

    Args:
      path: The folder. With an archive it must not exist, or be empty.
      archive: A tar or zip file of the folder's content, with or without one folder
        around it.
      progress: Called with lines of text.

    Raises:
      DatasetError: The archive cannot be unpacked, or `find` cannot read the folder.
    """
    root = files.place(f"folder:{path}", path)
    if archive is None:
        found = find(path)
    else:
        found = _from_archive(
            path, root, files.place(f"archive={archive}", archive), progress
        )
    progress(
        f"{found.name} is ready: {len(found.train):,} training and "
        f"{len(found.test):,} test images of {len(found.class_names)} classes."
    )


def _from_archive(
    path: str, root: pathlib.Path, archive: pathlib.Path, progress: OnProgress
) -> EncodedImages:
    """Unpacks an archive into a folder; one that does not fit leaves nothing behind."""
    if os.path.lexists(root) and not _is_empty_folder(root):
        raise DatasetError(f"{root} is there already; {archive} was not unpacked.")
    progress(f"unpacking {archive} into {root}")
    try:
        _unpack(archive, root)
    except tarfile.ReadError as error:
        raise DatasetError(
            f"{archive} could not be unpacked into {root}: it is no tar or zip "
            "archive, or is damaged."
        ) from error
    except (OSError, ValueError, *archives.DAMAGED) as error:
        raise DatasetError(
            f"{archive} could not be unpacked into {root}: {files.said(error)}."
        ) from error
    try:
        return find(path)
    except DatasetError as error:
        shutil.rmtree(root)
        raise DatasetError(f"{archive} was not kept: {error}") from error


def _is_empty_folder(path: pathlib.Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _unpack(archive: pathlib.Path, root: pathlib.Path) -> None:
    """Unpacks into a folder with another name and renames it at the end."""
    part = root.with_name(f"{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        archives.unpack(archive, part)
        inner, content = part, list(part.iterdir())
        # One folder around all, unless it is the only class itself.
        if len(content) == 1 and any(f.is_dir() for f in content[0].iterdir()):
            inner = content[0]
        if root.exists():
            root.rmdir()
        inner.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _splits(
    name: str, root: pathlib.Path
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Returns the paths of the training and test images of each class."""
    if not os.path.isdir(root / "train"):
        (whole,) = _classes(name, [root])
        test = {c: paths[_FIFTH - 1 :: _FIFTH] for c, paths in whole.items()}
        held_out = {p for paths in test.values() for p in paths}
        if not held_out:
            raise DatasetError(
                f"{name}: {root} has fewer than {_FIFTH} images of every class, which "
                "is too few to hold out a fifth of them as the test set."
            )
        train = {c: [p for p in ps if p not in held_out] for c, ps in whole.items()}
        return train, test
    held = [root / t for t in _TEST if os.path.isdir(root / t)]
    if not held:
        raise DatasetError(
            f"{name}: {root} has a folder train and none of {', '.join(_TEST)}. "
            f"To hold out a fifth of the images, use folder:{root / 'train'}."
        )
    train, test = _classes(name, [root / "train", held[0]])
    for missing, place in (
        (train.keys() - test.keys(), held[0]),
        (test.keys() - train.keys(), root / "train"),
    ):
        if missing:
            raise DatasetError(
                f"{name}: {place} has no folder for the class "
                f"{', '.join(sorted(missing))}."
            )
    return train, test


def _classes(name: str, places: list[pathlib.Path]) -> list[dict[str, list[str]]]:
    """Returns the paths of the images of each class, for each part of the set."""
    folders = [image_paths.class_folders(name, place) for place in places]
    every = [path for classes in folders for path in classes.values()]
    found = dict(zip(every, image_paths.images_below(name, every), strict=True))
    empty = next((path for path in every if not found[path]), None)
    if empty is not None:
        raise DatasetError(
            f"{name}: no image in {empty}: no file ends in "
            f"{', '.join(image_paths.SUFFIXES)}."
        )
    return [{c: found[path] for c, path in classes.items()} for classes in folders]


def _one_size(paths: list[str]) -> tuple[int, int] | None:
    """Returns height and width if all images have the same, otherwise None.

    Only the headers are read, up to the first image that differs.
    """
    sizes = set()
    for path in paths:
        try:
            with files.open_regular(path) as file:
                sizes.add(decoding.header(file))
        except decoding.BROKEN as error:
            raise DatasetError(
                f"{path} is not an image that can be used: {decoding.reason(error)}. "
                f"{_REPAIR}"
            ) from error
        if len(sizes) > 1:
            return None
    return sizes.pop()
