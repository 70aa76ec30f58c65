"""Encoded images on disk: the sources that supply them, decoding, crops on the host."""

import dataclasses
import io
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from zosam_jax.data.dataset import DatasetError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CHANNELS = tuple(_MODES)
# Exceptions that Pillow raises for files that are damaged or are not images.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
DRAWS = 4 * _ATTEMPTS
"""Number of random numbers that `random_resized_crop` takes."""


class Source(Protocol):
    """Encoded images with labels in any order of access. It must be picklable."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns the encoded bytes and the label of each row.

        Raises:
          DatasetError: A row cannot be read.
        """
        ...

    def where(self, row: int) -> str:
        """Returns where the image of a row is, for error messages."""
        ...


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """An image set on disk.

    Attributes:
      name: Name of the set.
      train: The training images.
      test: The test images.
      class_names: Name of each class.
      channels: Number of channels of the decoded images: 1, 3 or 4.
      size: Height and width if all images have the same, otherwise None.
      repair: A sentence that says what to do about a damaged image.
      flip: Whether the mirror image of an image has the same label.
      statistics: Published mean and standard deviation of each channel of
        `images / 255`; None: they are computed from the images.
    """

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None
    repair: str
    flip: bool
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def decode(
    images: EncodedImages,
    source: Source,
    row: int,
    encoded: bytes,
    label: int,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """Returns a decoded image with the set's number of channels.

    Args:
      images: The set.
      source: The training or test images, for error messages.
      row: Row of the image in `source`, for error messages.
      encoded: Bytes of the image.
      label: Its label.
      size: Height and width that it must have; None: any.

    Raises:
      DatasetError: The image cannot be decoded or has another size, or its label is not
        one of the classes.
    """
    classes = len(images.class_names)
    if not 0 <= label < classes:
        raise DatasetError(
            f"{source.where(row)} has the label {label}; the {classes} classes of "
            f"{images.name} are 0 to {classes - 1}. {images.repair}"
        )
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            decoded = image.convert(_MODES[images.channels])
    except BROKEN as error:
        reason = error
        if isinstance(error, UnidentifiedImageError):  # its text is an object's address
            reason = f"{len(encoded):,} bytes without the header of an image"
        raise DatasetError(
            f"{source.where(row)} cannot be decoded ({reason}). {images.repair}"
        ) from error
    if size is not None and (decoded.height, decoded.width) != size:
        raise DatasetError(
            f"{source.where(row)} has {decoded.height} x {decoded.width} pixels, not "
            f"{size[0]} x {size[1]}. {images.repair}"
        )
    return decoded


def random_resized_crop(
    image: Image.Image, draws: np.ndarray, size: int
) -> Image.Image:
    """Returns a random window of an image, resized to `size` x `size` pixels.

    This is the random resized crop of Szegedy et al. (arXiv:1409.4842). The fraction of
    the image's area is uniform from 0.08 to 1, and width / height is log-uniform from
    3/4 to 4/3. The position is uniform. If none of ten such windows fits, the largest
    central window with an aspect ratio in these bounds is used. Interpolation is
    bilinear with antialiasing.

    Args:
      image: The image.
      draws: Random numbers in [0, 1), `[DRAWS]`.
      size: Side of the result in pixels.
    """
    width, height = image.size
    low, high = (math.log(r) for r in _RATIO)
    for area, ratio, x, y in draws.reshape(_ATTEMPTS, 4):
        target = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
        ratio = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            break
    else:
        w = max(1, min(width, round(height * _RATIO[1])))
        h = max(1, min(height, round(width / _RATIO[0])))
        left, top = (width - w) // 2, (height - h) // 2
    part = image.crop((left, top, left + w, top + h))
    return part.resize((size, size), Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, size: int, resize: int) -> Image.Image:
    """Returns the central `size` x `size` pixels of the resized image.

    Interpolation is bilinear with antialiasing.

    Args:
      image: The image.
      size: Side of the result in pixels.
      resize: Shorter side of the image before the crop in pixels, at least `size`.

    >>> center_crop(Image.new("RGB", (400, 300)), size=224, resize=256).size
    (224, 224)
    """
    width, height = image.size
    short = min(width, height)
    width, height = resize * width // short, resize * height // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels of an image, uint8 `[H, W, C]`.

    >>> pixels(Image.new("L", (3, 2))).shape
    (2, 3, 1)
    """
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
