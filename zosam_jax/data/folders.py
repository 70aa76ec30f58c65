"""Folders of images, a class a folder."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from zosam_jax.data import images
from zosam_jax.data.sources import DatasetError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TEST = ("test", "val", "validation")
_FIFTH = 5
_REPAIR = "Replace that file, or remove it."


@dataclasses.dataclass(frozen=True)
class Files:
    """Images in files; an `images.Source`.

    Attributes:
      paths: A path a row.
      labels: int32 `[N]`.
    """

    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self.paths)

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns the contents and the label of each row."""
        found = []
        for row in rows:
            try:
                with open(self.paths[row], "rb") as file:
                    found.append((file.read(), int(self.labels[row])))
            except OSError as error:
                raise DatasetError(
                    f"{self.where(row)} cannot be read ({error.strerror}). {_REPAIR}"
                ) from error
        return found

    def where(self, row: int) -> str:
        """Returns the path."""
        return self.paths[row]


def find(path: str | os.PathLike[str]) -> images.Found:
    """Returns the image set in a folder.

    Either PATH/train/CLASS/IMAGE with PATH/test (or val, or validation) of the same
    classes, or PATH/CLASS/IMAGE, where the fifth, tenth, ... image of every class, by
    name, is a test image. Classes are numbered by name. An image is a file with one of
    `SUFFIXES`, at any depth in its class's folder; other files are passed over, and so
    is what has a name with a leading dot.

    Raises:
      DatasetError: The folder is missing or empty, a class has no images, or training
        and test set have not the same classes.
    """
    root = pathlib.Path(path).expanduser()
    name = f"folder:{path}"
    if not root.is_dir():
        raise DatasetError(f"{name}: {root} is not a folder.")
    if (root / "train").is_dir():
        held = [root / t for t in _TEST if (root / t).is_dir()]
        if not held:
            raise DatasetError(
                f"{name}: {root} has a folder train and none of {', '.join(_TEST)}. "
                f"For a test set held out of the images, name {root / 'train'}."
            )
        train, test = _classes(name, root / "train"), _classes(name, held[0])
        for missing, place in (
            (train.keys() - test.keys(), held[0]),
            (test.keys() - train.keys(), root / "train"),
        ):
            if missing:
                raise DatasetError(
                    f"{name}: {place} has no folder for the class "
                    f"{', '.join(sorted(missing))}."
                )
    else:
        whole = _classes(name, root)
        test = {c: paths[_FIFTH - 1 :: _FIFTH] for c, paths in whole.items()}
        held_out = {p for paths in test.values() for p in paths}
        if not held_out:
            raise DatasetError(
                f"{name}: {root} has fewer than {_FIFTH} images of every class, too "
                "few to hold out a fifth as the test set."
            )
        train = {c: [p for p in ps if p not in held_out] for c, ps in whole.items()}
    names = tuple(sorted(train))
    files = {
        split: Files(
            tuple(p for c in names for p in paths[c]),
            np.repeat(np.arange(len(names)), [len(paths[c]) for c in names]).astype(
                np.int32
            ),
        )
        for split, paths in (("train", train), ("test", test))
    }
    return images.Found(
        name=name,
        train=files["train"],
        test=files["test"],
        class_names=names,
        channels=3,
        size=_one_size([*files["train"].paths, *files["test"].paths]),
        repair=_REPAIR,
        flip=True,
    )


def _classes(name: str, place: pathlib.Path) -> dict[str, list[str]]:
    """Returns the paths of the images of each class, by name."""
    folders = [f for f in place.iterdir() if f.is_dir() and not f.name.startswith(".")]
    if not folders:
        raise DatasetError(
            f"{name}: {place} has no folders; one for each class is needed, with its "
            "images."
        )
    found = {f.name: _images(f) for f in folders}
    empty = sorted(c for c, paths in found.items() if not paths)
    if empty:
        raise DatasetError(
            f"{name}: no image in {place / empty[0]}: no file ends in "
            f"{', '.join(SUFFIXES)}."
        )
    return found


def _images(folder: pathlib.Path) -> list[str]:
    return sorted(
        os.path.join(place, file)
        for place, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    )


def _one_size(paths: list[str]) -> tuple[int, int] | None:
    """Returns height and width, if all images have the same; else None.

    Only headers are read, up to the first image that differs.
    """
    sizes = set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.add((image.height, image.width))
        except images.BROKEN as error:
            raise DatasetError(f"{path} is no image ({error}). {_REPAIR}") from error
        if len(sizes) > 1:
            return None
    return sizes.pop()
