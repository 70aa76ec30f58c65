"""Files as a network sees them: prepared as the test examples of its training were."""

import os
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps

from zosam_jax.data import decoding, encoded_images, files
from zosam_jax.data.dataset import DatasetError
from zosam_jax.data.sets import image_paths, text

PathLike = str | os.PathLike[str]


def found(paths: Iterable[PathLike]) -> list[str]:
    """Returns the paths of all files, with the images below a folder in its place.

    Args:
      paths: Files and folders. Images below a folder have one of
        `image_paths.SUFFIXES`, and are sorted by path.

    Raises:
      DatasetError: Nothing is at a path, or a folder has no images.
    """
    every: list[str] = []
    for path in paths:
        place = str(files.place(os.fspath(path), path))
        if not os.path.lexists(place):
            raise DatasetError(f"there is no file {place!r}.")
        if not os.path.isdir(place):
            every.append(place)
            continue
        # Absolute, as that of a class folder: "." has no parent in its name.
        root = os.path.abspath(place)
        (below,) = image_paths.images_below(place, [root])
        if not below:
            raise DatasetError(
                f"{place} has no images below it: no files that end in "
                f"{', '.join(image_paths.SUFFIXES)}."
            )
        every += [os.path.join(place, os.path.relpath(p, root)) for p in below]
    return every


def image(path: PathLike, shape: tuple[int, ...], resize: int | None) -> np.ndarray:
    """Returns the pixels of an image file, uint8 `[H, W, C]`.

    Args:
      path: The file; formats, modes and orientation are those of
        `zosam_jax.data.decoding`.
      shape: Height, width and channels of the result.
      resize: Shorter side before the center is cropped, in pixels, as
        `encoded_images.center_crop` does it. None: an image of the right size is used
        as it is. Of another, the largest central part of the right proportions is
        resized, bilinearly with antialiasing.

    Raises:
      DatasetError: The file cannot be read, or is no image that can be used.
    """
    height, width, channels = shape
    encoded: bytes | None = None
    try:
        encoded = files.read(path, decoding.MOST_BYTES)
        picture = decoding.decode(encoded, channels)
    except decoding.BROKEN as error:
        reason = decoding.reason(error, encoded)
        raise DatasetError(
            f"{os.fspath(path)} cannot be used: {reason}. Replace it, or leave it out."
        ) from error
    if resize is not None:
        picture = encoded_images.center_crop(picture, height, resize)
    elif picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return encoded_images.pixels(picture)


def tokens(path: PathLike, length: int) -> np.ndarray:
    """Returns the last bytes of a file, uint8 `[length]`.

    Args:
      path: The file.
      length: Number of tokens, T.

    Raises:
      DatasetError: The file cannot be read, or is shorter.
    """
    try:
        content = files.read(path, text.MOST_BYTES)
    except OSError as error:
        raise DatasetError(
            f"{os.fspath(path)} cannot be read: {error.strerror}."
        ) from error
    if len(content) < length:
        raise DatasetError(
            f"{os.fspath(path)} has {len(content):,} bytes; the network reads {length}."
        )
    return np.frombuffer(content[-length:], np.uint8)
