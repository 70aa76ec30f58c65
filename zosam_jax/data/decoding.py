"""From the bytes of an image to its pixels: formats, limits, modes, orientation.

All images are opened here. What becomes of an image, by Pillow's mode:

| mode | example | pixels |
|---|---|---|
| `1` | bilevel PNG, PBM | 0 or 255 |
| `L`, `RGB`, `P`, `RGBX` | most images | unchanged, a palette by its colors |
| `LA`, `RGBA`, `PA`, a transparent color | PNG, WebP, GIF | on white, or kept in four |
| `CMYK` | JPEG for print | `(255 - C) (255 - K) / 255` and so on, without a profile |
| `YCbCr`, `LAB` | TIFF | converted to RGB by Pillow |
| `I;16`, and `I` of a PGM | PNG, TIFF and PGM of 16 bits | level / 257, rounded |
| RGB of 16 bits | PNG, PPM | the high byte (PNG), or level / 257 (PPM) |
| `F` | TIFF, PFM | 255 times the value, from 0 to 1; other values are refused |
| `I` | TIFF of 32-bit integers | refused: no level is white |

"Kept in four" holds for sets of four channels. The orientation in EXIF is applied; TFDS
and torchvision ignore it. Images with several frames (animations, pages of a TIFF) are
refused. Of a JPEG with further pictures (MPO), the main one is used. Color profiles and
gamma are ignored. A PNG with fewer rows than its header says is black below them.
"""

import io
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are opened. Pillow would hand others to programs (EPS to Ghostscript) or
to rarely tested code."""

MOST_PIXELS = 89_478_485
"""Largest number of pixels of an image: where Pillow warns of a decompression bomb. A
gigabyte holds three such images in RGB."""

MOST_BYTES = 1 << 29
"""Largest size of an image file, in bytes: above MOST_PIXELS without compression."""

MOST_SCANS = 100
"""Largest number of scans of a JPEG."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for each number of channels."""

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""Exceptions that Pillow raises for files that are damaged or are not images, and this
module for images that it refuses."""

_SCAN = b"\xff\xda"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its orientation in EXIF."""


def decode(
    encoded: bytes, channels: int, size: tuple[int, int] | None = None
) -> Image.Image:
    """Returns an image with a number of channels, upright, by the table above.

    Args:
      encoded: The bytes of the file.
      channels: 1 (luma of ITU-R 601-2), 3 or 4.
      size: Height and width that it must have, which its header is asked for; None:
        any.

    Raises:
      One of BROKEN, with the reason as its text: see `reason`.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        found = _checked(image)
        if size is not None and found != size:
            raise ValueError(
                f"it has {found[0]} x {found[1]} pixels, not {size[0]} x {size[1]}"
            )
        # A decoder goes over all pixels once for each scan of a progressive JPEG.
        if image.format in ("JPEG", "MPO") and encoded.count(_SCAN) > MOST_SCANS:
            raise ValueError(f"it has {encoded.count(_SCAN):,} scans, and 10 are usual")
        image.load()
        upright = _converted(image, channels)
        # Asked again: the EXIF of a PNG may stand behind its pixels.
        turn = _TURNS.get(_orientation(image))
    if turn is not None:
        upright = upright.transpose(turn)
    # The header had the size before the turn.
    if size is not None and (upright.height, upright.width) != size:
        raise ValueError("its orientation stands behind its pixels")
    return upright


def header(file: BinaryIO) -> tuple[int, int]:
    """Returns the height and width of an upright image, from its header alone.

    Raises:
      One of BROKEN: as `decode`.
    """
    with Image.open(file, formats=FORMATS) as image:
        return _checked(image)


def reason(error: BaseException, encoded: bytes | None = None) -> str:
    """Returns why an image was refused, from one of BROKEN.

    Args:
      error: The exception.
      encoded: The bytes of the file, if they were read.
    """
    if isinstance(error, UnidentifiedImageError):  # Its text is an object's address.
        size = "it has" if encoded is None else f"its {len(encoded):,} bytes have"
        return f"{size} no header of an image in {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _checked(image: Image.Image) -> tuple[int, int]:
    """Returns the height and width of an upright image that is not refused."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"it has {height:,} x {width:,} pixels, and at most {MOST_PIXELS:,} in all "
            "are decoded"
        )
    # Other pictures of an MPO are previews, or the view of a second lens.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ValueError("it has several frames, and an example is one image")
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _orientation(image: Image.Image) -> int:
    """Returns the orientation of EXIF, 1 (upright) to 8; 1 if it cannot be read.

    Pillow turns a TIFF itself, and then has no EXIF for it.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        turn = exif.get(ExifTags.Base.Orientation, 1)
    except BROKEN:  # Notes of a camera are damaged more often than its pixels.
        return 1
    return turn if turn in _TURNS else 1


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """Returns an image of a mode of MODES, by the table above."""
    mode = MODES[channels]
    if image.mode[0] in "IF":
        return _levels(image).convert(mode)
    if channels == 4 or not image.has_transparency_data:
        # `convert` would copy an image of the right mode.
        return image if image.mode == mode else image.convert(mode)
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image.convert("RGBA"))
    return background.convert(mode)


def _levels(image: Image.Image) -> Image.Image:
    """Returns an image of more than 8 bits as levels, of mode "L"."""
    if "transparency" in image.info:
        raise ValueError(f"a transparent level of {image.mode} cannot be applied")
    values: np.ndarray[Any, Any] = np.asarray(image)
    if image.mode == "F":
        low, high = float(np.min(values)), float(np.max(values))
        if not 0 <= low <= high <= 1:  # False for NaN.
            raise ValueError(
                f"its values of floating point are from {low:g} to {high:g}; they must "
                "be from 0 (black) to 1 (white)"
            )
        # Halves up, as Pillow rounds.
        levels = np.floor(values * 255 + 0.5)
    elif image.mode.startswith("I;16") or image.format == "PPM":
        # 65,535 / 255 = 257. Pillow scales the levels of a PGM to 65,535.
        levels = (values.astype(np.uint32) + 128) // 257
    else:
        raise ValueError("its levels are integers of 32 bits, of which none is white")
    return Image.fromarray(levels.astype(np.uint8))
