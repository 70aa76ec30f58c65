"""Encoded images on disk: the sources that supply them, and crops on the host."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from zosam_jax.data import decoding
from zosam_jax.data.dataset import DatasetError

CHANNELS = tuple(decoding.MODES)
LEAST_AREA = 0.08
"""Default of the least fraction of the area that a random window has."""

# Longer side of a center crop's source, in multiples of the shorter one.
_MOST_RATIO = 16
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
        return decoding.decode(encoded, images.channels, size)
    except decoding.BROKEN as error:
        reason = decoding.reason(error, encoded)
        raise DatasetError(
            f"{source.where(row)} cannot be used: {reason}. {images.repair}"
        ) from error


def random_resized_crop(
    image: Image.Image, draws: np.ndarray, size: int, least_area: float = LEAST_AREA
) -> Image.Image:
    """Returns a random window of an image, resized to `size` x `size` pixels.

    This is the random resized crop of Szegedy et al. (arXiv:1409.4842). The fraction of
    the image's area is uniform from `least_area` to 1, and width / height is
    log-uniform from 3/4 to 4/3. The position is uniform. If none of ten such windows
    fits, the largest central window with an aspect ratio in these bounds is used.
    Interpolation is bilinear with antialiasing.

    Args:
      image: The image.
      draws: Random numbers in [0, 1), `[DRAWS]`.
      size: Side of the result in pixels.
      least_area: Least fraction of the area, in (0, 1]; 0.08 in the paper.

    >>> draws = np.full(DRAWS, 0.5)
    >>> random_resized_crop(Image.new("RGB", (400, 300)), draws, size=224).size
    (224, 224)
    """
    width, height = image.size
    # Uniform in the logarithm, so that wide and high windows are equally likely.
    low, high = (math.log(r) for r in _RATIO)
    # All draws come in, whatever their use: the window depends on no other image.
    for area, ratio, x, y in draws.reshape(_ATTEMPTS, 4):
        target = width * height * (least_area + (1 - least_area) * area)
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

    Interpolation is bilinear with antialiasing. Of an image more than 16 times as long
    as wide, only the central part of that shape is resized: the work is bounded by the
    result, not by the image.

    Args:
      image: The image.
      size: Side of the result in pixels.
      resize: Shorter side of the image before the crop in pixels, at least `size`.

    >>> center_crop(Image.new("RGB", (400, 300)), size=224, resize=256).size
    (224, 224)
    """
    # 1 x 20,000 pixels would become 256 x 5,120,000 before the cut.
    short = min(image.size)
    most = _MOST_RATIO * short
    if max(image.size) > most:
        image = _centered(image, min(image.width, most), min(image.height, most))
    width, height = image.size
    width, height = resize * width // short, resize * height // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return _centered(image, size, size)


def _centered(image: Image.Image, width: int, height: int) -> Image.Image:
    """Returns the central part of an image, of some size in pixels."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels of an image, uint8 `[H, W, C]`.

    >>> pixels(Image.new("L", (3, 2))).shape
    (2, 3, 1)
    """
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
