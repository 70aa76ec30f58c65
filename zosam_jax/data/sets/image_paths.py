"""The images below the folders of classes: every real file once, whatever links say."""

import os
import pathlib
import stat
from collections import deque

from zosam_jax.data.dataset import DatasetError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def class_folders(name: str, place: pathlib.Path) -> dict[str, str]:
    """Returns the path of each class: the folders in `place` without a leading dot.

    Args:
      name: Name of the set, for error messages.
      place: The folder.

    Raises:
      DatasetError: There are none, or one cannot be used.
    """
    found = {e.name: e.path for e in _entries(name, str(place)) if e.is_dir()}
    if not found:
        raise DatasetError(
            f"{name}: {place} has no folders; one for each class is needed, with its "
            "images."
        )
    for label in found:
        if not label.isprintable():  # Nor is a byte that is no UTF-8.
            raise DatasetError(
                f"{name}: {place} has a folder {label!r}, which cannot be printed as "
                "the name of a class. Rename it."
            )
    return found


def images_below(name: str, folders: list[str]) -> list[list[str]]:
    """Returns the sorted paths of the images at any depth below each folder.

    An image is a file with one of `SUFFIXES`. Names that begin with a dot are ignored.
    Links are followed. A file or folder that is reached several times in one folder
    counts once.

    Args:
      name: Name of the set, for error messages.
      folders: The folders of the classes, of all parts of the set.

    Raises:
      DatasetError: A link leads to a folder that it is in, into another of the folders,
        or to nothing; or something cannot be listed or is no regular file.
    """
    walk = _Walk(name)
    found = [walk.images(folder) for folder in folders]
    dropped = walk.repeated()
    return [sorted(p for p in paths if p not in dropped) for paths in found]


class _Walk:
    """What has been found so far.

    Attributes:
      name: Name of the set, for error messages.
      owners: The class folder in which a real folder was found.
      links: For the real file behind a link: the link and its class folder.
    """

    def __init__(self, name: str):
        self.name = name
        self.owners: dict[str, str] = {}
        self.links: dict[str, tuple[str, str]] = {}

    def images(self, top: str) -> list[str]:
        """Returns the paths of the images below a class folder."""
        found: list[str] = []
        # (path, real path, real folders that hold the links on the way). Links wait,
        # so that what can be reached without one is.
        waiting = deque([self._step(top, ())])
        while waiting:
            path, real, through = waiting.popleft()
            if not self._enter(path, real, top):
                continue
            for entry in _entries(self.name, path):
                if self._is_folder(entry):
                    if entry.is_symlink():
                        waiting.append(self._step(entry.path, (*through, real)))
                    else:
                        inner = os.path.join(real, entry.name)
                        waiting.appendleft((entry.path, inner, through))
                elif _is_image(entry.name) and self._is_new(entry, top):
                    found.append(entry.path)
        return found

    def repeated(self) -> set[str]:
        """Returns the links to images that are found without a link too."""
        dropped = set()
        for real, (link, top) in self.links.items():
            folder, file = os.path.split(real)
            owner = self.owners.get(folder)
            if owner is not None and _is_image(file):
                self._same(link, real, owner, top)
                dropped.add(link)
        return dropped

    def _step(
        self, path: str, through: tuple[str, ...]
    ) -> tuple[str, str, tuple[str, ...]]:
        """Returns an entry of the queue for a folder that may be a link."""
        real = os.path.realpath(path)
        parent = os.path.realpath(os.path.dirname(path))
        for folder in (*through, parent):
            if os.path.commonpath([real, folder]) == real:
                raise DatasetError(
                    f"{self.name}: {path} is a link to {real}, a folder that it is in. "
                    "Remove the link."
                )
        return path, real, through

    def _enter(self, path: str, real: str, top: str) -> bool:
        """Returns whether a folder is new, and notes it."""
        owner = self.owners.get(real)
        if owner is None:
            self.owners[real] = top
            return True
        self._same(path, real, owner, top)
        return False

    def _is_new(self, entry: os.DirEntry[str], top: str) -> bool:
        """Returns whether an image is new; the file behind a link is noted."""
        if not entry.is_symlink():
            if not entry.is_file():
                raise DatasetError(
                    f"{self.name}: {entry.path} is not a regular file. Remove it."
                )
            return True
        try:
            mode = os.stat(entry.path).st_mode
        except OSError as error:
            raise self._dead(entry.path, error) from error
        real = os.path.realpath(entry.path)
        if not stat.S_ISREG(mode):
            raise DatasetError(
                f"{self.name}: {entry.path} is a link to {real}, which is not a "
                "regular file. Remove the link."
            )
        link, owner = self.links.setdefault(real, (entry.path, top))
        self._same(entry.path, real, owner, top)
        return link == entry.path

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:
            raise self._dead(entry.path, error) from error

    def _same(self, path: str, real: str, owner: str, top: str) -> None:
        """Raises `DatasetError` if two class folders have a file or folder."""
        if owner != top:
            raise DatasetError(
                f"{self.name}: {path} is {real}, which is in {owner} too. An image "
                "belongs to one class, and to one part of the set. Remove one of the "
                "links."
            )

    def _dead(self, path: str, error: OSError) -> DatasetError:
        return DatasetError(
            f"{self.name}: {path} is a link that cannot be followed "
            f"({error.strerror}). Remove it."
        )


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES) and not file.startswith(".")


def _entries(name: str, path: str) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder by name, without those with a leading dot."""
    try:
        with os.scandir(path) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DatasetError(
            f"{name}: {path} cannot be listed ({error.strerror})."
        ) from error
    return sorted(found, key=lambda entry: entry.name)
