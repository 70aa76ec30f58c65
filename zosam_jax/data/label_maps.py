"""Label maps as PNG files: the index in the palette is the class of a pixel."""

import io
import os

import numpy as np
from PIL import Image

from zosam_jax.data import decoding, files
from zosam_jax.data.dataset import DatasetError

PathLike = str | os.PathLike[str]


def palette() -> np.ndarray:
    """Returns the colors of the classes, uint8 `[256, 3]`, as Pascal VOC has them.

    The bits of a class are dealt out to red, green and blue, the lowest to the highest
    bit of a color, so that neighbors differ clearly. Class 0 is black.

    >>> palette()[:3].tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    classes, colors = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(8):
        channel, place = bit % 3, 7 - bit // 3
        colors[:, channel] |= (((classes >> bit) & 1) << place).astype(np.uint8)
    return colors


def write(path: PathLike, labels: np.ndarray) -> None:
    """Writes a label map as a PNG with a palette.

    Args:
      path: The file.
      labels: The class of each pixel, uint8 `[H, W]`.

    Raises:
      OSError: It cannot be written.
    """
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(palette().tobytes())
    with open(path, "wb") as file:
        image.save(file, format="PNG")


def read(path: PathLike) -> np.ndarray:
    """Returns the label map in a PNG file, uint8 `[H, W]`.

    Of a PNG with a palette it is the index of each pixel, whatever its color; of a gray
    one of 8 bits, the level.

    Raises:
      DatasetError: The file cannot be read, or is no such PNG.

    Example:
      >>> import tempfile
      >>> file = os.path.join(tempfile.mkdtemp(), "map.png")
      >>> write(file, np.array([[0, 2], [255, 1]], np.uint8))
      >>> read(file).tolist()
      [[0, 2], [255, 1]]
    """
    encoded: bytes | None = None
    try:
        encoded = files.read(path, decoding.MOST_BYTES)
        decoding.header(io.BytesIO(encoded))
        with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(
                    f"its pixels are {image.mode}, and classes are the indices of a "
                    "palette or gray levels of 8 bits"
                )
            return np.array(image)
    except decoding.BROKEN as error:
        reason = decoding.reason(error, encoded)
        raise DatasetError(
            f"{os.fspath(path)} is no label map: {reason}. Save it as a PNG whose "
            "pixels are classes from 0, and 255 where they do not count."
        ) from error
