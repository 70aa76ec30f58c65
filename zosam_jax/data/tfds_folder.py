"""Checks of a folder of TFDS before TFDS reads it.

TFDS imports the module that `features.json` names for each feature, so that a folder
from somewhere else could run code that is on this machine. Only the classes of TFDS's
own package of features are let through.
"""

import json
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

from zosam_jax.data import files
from zosam_jax.data.dataset import DatasetError

_OWN = "tensorflow_datasets.core.features."
# Metadata of ImageNet-21k take less than a megabyte.
_MOST_BYTES = 1 << 24
_CLASS_NAMES = ("pythonClassName", "python_class_name")


def check(name: str, place: pathlib.Path) -> None:
    """Raises `DatasetError` if the folder of a set must not be handed to TFDS.

    Args:
      name: Name of the set, for error messages.
      place: ROOT/NAME, in which the versions are, or configurations with versions.

    Raises:
      DatasetError: A description names a class that is not TFDS's own or cannot be
        read, or something is not a regular file.
    """
    for path in _files(name, place):
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise DatasetError(
                    f"{name}: {path} is not a regular file. Remove {path.parent}."
                )
            if path.suffix not in (".json", ".txt"):
                continue
            text = files.read(path, _MOST_BYTES).decode()
            is_description = path.name == "features.json"
            names = list(_classes(json.loads(text))) if is_description else []
        except (OSError, ValueError, RecursionError) as error:
            reason = files.said(error)
            raise DatasetError(
                f"{name}: {path} cannot be read ({reason}). Remove {path.parent}."
            ) from error
        for feature in names:
            if not feature.startswith(_OWN):
                shown = feature[: files.SHOWN]
                raise DatasetError(
                    f"{name}: {path} asks for the class {shown!r}. It would be "
                    "imported, and only TFDS's own features are. Use "
                    "another copy of the set."
                )


def _files(name: str, place: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields what is no folder in NAME/, NAME/*/ and NAME/*/*/."""
    folders = [place]
    for _ in range(3):
        inner: list[pathlib.Path] = []
        for folder in folders:
            try:
                for path in sorted(folder.iterdir()):
                    if path.is_dir():
                        inner.append(path)
                    else:
                        yield path
            except OSError as error:
                raise DatasetError(
                    f"{name}: {folder} cannot be listed ({error.strerror})."
                ) from error
        folders = inner


def _classes(value: Any) -> Iterator[str]:
    """Yields the names of classes at any depth of a description of features."""
    if isinstance(value, list):
        for item in value:
            yield from _classes(item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        # Before 2022, {"type": CLASS, "content": ...}.
        if key in _CLASS_NAMES or (key == "type" and "content" in value):
            yield str(item)
        # Features of some classes are JSON within JSON.
        if isinstance(item, str) and item.lstrip()[:1] in ("{", "["):
            yield from _classes(json.loads(item))
        yield from _classes(item)
