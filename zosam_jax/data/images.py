"""Encoded images: where they are kept, decoding, and crops on the host."""

import dataclasses
import io
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from zosam_jax.data.sources import DatasetError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CHANNELS = tuple(_MODES)
# What Pillow's readers raise on files that are damaged, or no images.
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


class Source(Protocol):
    """A list of encoded images with labels, read at random; it can be pickled."""

    def __len__(self) -> int:
        """Returns the number of images."""
        ...

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns the encoded bytes and the label of each row.

        Raises:
          DatasetError: One of them cannot be read.
        """
        ...

    def where(self, row: int) -> str:
        """Returns which image a row is, for a message."""
        ...


@dataclasses.dataclass(frozen=True)
class Found:
    """An image set as it lies on disk.

    Attributes:
      name: Its name.
      train: The training images.
      test: The test images.
      class_names: The name of each class, by label.
      channels: Channels of the decoded images.
      size: Height and width, if all images have the same; else None.
      repair: What to do about a damaged image, a sentence.
      flip: Whether left-right mirroring keeps the label.
    """

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None
    repair: str
    flip: bool


def decode(
    found: Found,
    source: Source,
    row: int,
    encoded: bytes,
    label: int,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """Returns an image, whole and with the set's channels.

    Args:
      found: The set.
      source: Its part that has the image.
      row: The image's row there, for the message.
      encoded: The image's bytes.
      label: Its label.
      size: Height and width that it must have; None: any.

    Raises:
      DatasetError: It cannot be decoded, has another size, or its label is not one of
        the classes.
    """
    classes = len(found.class_names)
    if not 0 <= label < classes:
        raise DatasetError(
            f"{source.where(row)} has the label {label}; the {classes} classes of "
            f"{found.name} are 0 to {classes - 1}. {found.repair}"
        )
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            decoded = image.convert(_MODES[found.channels])
    except BROKEN as error:
        reason = error
        if isinstance(error, UnidentifiedImageError):  # its text is an object's address
            reason = f"{len(encoded):,} bytes that do not begin as an image does"
        raise DatasetError(
            f"{source.where(row)} cannot be decoded ({reason}). {found.repair}"
        ) from error
    if size is not None and (decoded.height, decoded.width) != size:
        raise DatasetError(
            f"{source.where(row)} has {decoded.height} x {decoded.width} pixels, not "
            f"{size[0]} x {size[1]}. {found.repair}"
        )
    return decoded


def random_resized_crop(
    image: Image.Image, draws: np.ndarray, size: int
) -> Image.Image:
    """Returns a random part of an image at `size` x `size`, as in Inception's training.

    The part has 0.08 to 1 of the area, uniformly, and a ratio of width to height from
    3/4 to 4/3, uniformly in the logarithm; it lies anywhere inside, uniformly. What
    does not fit is drawn again, ten times; then it is the largest part in the middle
    with a ratio in bounds. Bilinear, with a support that grows with the reduction.

    Source: Szegedy et al., "Going deeper with convolutions", 2015 (arXiv:1409.4842).

    Args:
      image: The image.
      draws: Uniform in [0, 1), `[DRAWS]`.
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
    """Returns the middle `size` x `size` of an image whose shorter side is `resize`.

    Bilinear, with a support that grows with the reduction.

    Args:
      image: The image.
      size: Side of the result in pixels.
      resize: Shorter side before the crop, at least `size`.
    """
    width, height = image.size
    short = min(width, height)
    width, height = resize * width // short, resize * height // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def pixels(image: Image.Image) -> np.ndarray:
    """Returns an image as uint8 `[H, W, C]`."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
