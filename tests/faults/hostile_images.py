"""Hostile images for `hostile_files.py`: modes, orientation, damage, formats, bombs."""

import functools
import io
import os
import pickle
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from data import small_sets  # noqa: E402

from zosam_jax import data  # noqa: E402

SIDE = 12
REFUSED = "an error"


class Case(NamedTuple):
    """A hostile file.

    Attributes:
      group: The kind of the file.
      name: What is wrong with it.
      make: Makes the file in an empty folder.
      read: Reads the folder; returns what is compared with `wanted`.
      wanted: `REFUSED`, or what `read` returns.
      slow: Whether it takes longer than a second.
    """

    group: str
    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    wanted: object = REFUSED
    slow: bool = False


def cases() -> Iterator[Case]:
    """Yields all cases of images."""
    yield from _modes()
    yield from _orientations()
    yield from _damaged()
    yield from _other_formats()
    yield from _bombs()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Returns an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def solid(mode: str, color: Any) -> Image.Image:
    """Returns an image of one color."""
    return Image.new(mode, (SIDE, SIDE), color)


def _set(root: Path, file: str, content: bytes) -> None:
    """Writes a set of one training image, `file`, and one good test image."""
    good = small_sets.solid(1, SIDE, SIDE)
    small_sets.write(root, {f"train/a/{file}": content, "test/a/0.png": good})


def _color(root: Path) -> object:
    """Returns the color of the one training image, in memory or streamed."""
    found = data.load(f"folder:{root}", image_size=SIDE)
    if isinstance(found, data.Streamed):
        batches = found.batches(0, 1)
        images, _ = next(batches)
        batches.close()
        list(found.evaluation_batches(1))
    else:
        images = found.train_images
    colors = np.unique(images.reshape(-1, 3), axis=0)
    return [tuple(map(int, color)) for color in colors]


def _image(
    group: str, file: str, content: bytes, wanted: Any = REFUSED, slow: bool = False
) -> Case:
    """Returns the case of an image, whose right pixels are one color."""
    right = wanted if wanted == REFUSED else [wanted]
    suffix = file.rpartition(".")[2]
    return Case(
        group,
        file,
        lambda root: _set(root, f"0.{suffix}", content),
        _color,
        right,
        slow,
    )


def _modes() -> Iterator[Case]:
    palette = solid("P", 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    sixteen = Image.fromarray(np.full((SIDE, SIDE), 32_768, np.uint16))
    floats = Image.fromarray(np.full((SIDE, SIDE), 0.2, np.float32))
    integers = Image.fromarray(np.full((SIDE, SIDE), 70_000, np.int32))
    bright = Image.fromarray(np.full((SIDE, SIDE), 200, np.float32))
    unknown = Image.fromarray(np.full((SIDE, SIDE), np.nan, np.float32))
    two = [solid("RGB", "red"), solid("RGB", "blue")]
    rows: list[tuple[str, bytes, Any]] = [
        ("1.png", saved(solid("1", 255), "PNG"), (255,) * 3),
        ("1.tif", saved(solid("1", 0), "TIFF"), (0,) * 3),
        ("L.png", saved(solid("L", 9), "PNG"), (9,) * 3),
        ("L.bmp", saved(solid("L", 9), "BMP"), (9,) * 3),
        ("RGB.ppm", saved(solid("RGB", (1, 2, 3)), "PPM"), (1, 2, 3)),
        ("RGB.tiff", saved(solid("RGB", (1, 2, 3)), "TIFF"), (1, 2, 3)),
        ("P.png", saved(palette, "PNG"), (40, 50, 60)),
        ("P.gif", saved(palette, "GIF"), (40, 50, 60)),
        ("P transparent.png", saved(palette, "PNG", transparency=1), (255,) * 3),
        ("P transparent.gif", saved(palette, "GIF", transparency=1), (255,) * 3),
        ("RGBA invisible.png", saved(solid("RGBA", (255, 0, 0, 0)), "PNG"), (255,) * 3),
        (
            "RGBA half.png",
            saved(solid("RGBA", (255, 0, 0, 128)), "PNG"),
            (255, 127, 127),
        ),
        (
            "RGBA.webp",
            saved(solid("RGBA", (255, 0, 0, 128)), "WEBP", lossless=True),
            (255, 127, 127),
        ),
        ("LA.png", saved(solid("LA", (100, 51)), "PNG"), (224,) * 3),
        ("LA.tif", saved(solid("LA", (100, 51)), "TIFF"), (224,) * 3),
        (
            "L transparent.png",
            saved(solid("L", 5), "PNG", transparency=5),
            (255,) * 3,
        ),
        ("CMYK.tif", saved(solid("CMYK", (51, 0, 102, 0)), "TIFF"), (204, 255, 153)),
        ("YCbCr.tif", saved(solid("YCbCr", (9, 128, 128)), "TIFF"), (9,) * 3),
        ("16 bits.png", saved(sixteen, "PNG"), (128,) * 3),
        ("16 bits.tif", saved(sixteen, "TIFF"), (128,) * 3),
        ("16 bits.ppm", saved(sixteen, "PPM"), (128,) * 3),
        ("float.tif", saved(floats, "TIFF"), (51,) * 3),
        ("float to 200.tif", saved(bright, "TIFF"), REFUSED),
        ("float NaN.tif", saved(unknown, "TIFF"), REFUSED),
        ("32 bits.tif", saved(integers, "TIFF"), REFUSED),
        ("16 bits transparent.png", saved(sixteen, "PNG", transparency=7), REFUSED),
    ]
    rows += [
        (
            f"animated.{kind.lower()}",
            saved(two[0], kind, save_all=True, append_images=two[1:]),
            REFUSED,
        )
        for kind in ("GIF", "PNG", "WEBP", "TIFF")
    ]
    yield from (_image("modes", *row) for row in rows)


def _orientations() -> Iterator[Case]:
    """Images whose upper half is to be seen white, whatever the file's orientation."""
    turns = {
        1: (0, False),
        2: (0, True),
        3: (2, False),
        4: (2, True),
        5: (1, True),
        6: (1, False),
        7: (3, True),
        8: (3, False),
    }
    shown = np.zeros((SIDE, SIDE, 3), np.uint8)
    shown[: SIDE // 2] = 255
    shown[0, 0] = 128  # tells a mirrored one

    def read(root: Path) -> object:
        found = data.load(f"folder:{root}")
        assert isinstance(found, data.Dataset)
        return found.train_images[0].tolist()

    for orientation, (quarters, mirrored) in turns.items():
        # What a turn by the quarters clockwise, and then a mirror, makes upright.
        stored = np.rot90(shown[:, ::-1] if mirrored else shown, quarters)
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("PNG", "TIFF"):
            content = saved(Image.fromarray(stored.copy()), kind, exif=exif)
            make = functools.partial(_set, file=f"0.{kind.lower()}", content=content)
            yield Case(
                "orientations", f"{orientation} {kind}", make, read, shown.tolist()
            )
    nine = solid("RGB", (9, 9, 9))
    for name, notes in (
        ("no TIFF in EXIF", b"Exif\0\0nothing"),
        ("cut EXIF", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
        ("EXIF that points far away", b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        ("EXIF of 60 kB", b"Exif\0\0" + b"MM" * 30_000),
    ):
        content = saved(nine, "PNG", exif=notes)
        yield _image("orientations", f"{name}.png", content, (9, 9, 9))


def _damaged() -> Iterator[Case]:
    image = Image.open(io.BytesIO(small_sets.texture(0, SIDE, SIDE, "PNG")))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        suffix = kind.lower()
        whole = saved(image, kind)
        yield _image("damaged", f"cut in half.{suffix}", whole[: len(whole) // 2])
        yield _image("damaged", f"header alone.{suffix}", whole[:20])
    whole = saved(image, "PNG")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    yield _image("damaged", "a changed byte.png", bytes(flipped))
    yield _image("damaged", "without its last bytes.png", whole[:-40])
    for name, content in {
        "empty": b"",
        "zeros": bytes(5_000),
        "noise": np.random.default_rng(0).bytes(5_000),
        "text": b"404 Not Found",
        "a page": b"<!DOCTYPE html><html><body>404</body></html>",
        "one byte": b"\x89",
        "no pixels": small_png(0, 0, b""),
    }.items():
        yield _image("damaged", f"{name}.png", content)
    # With right checksums nothing shows that rows were left out, but their number.
    # Pillow, as browsers do, leaves the rest black.
    row = b"\0" + bytes(3 * SIDE)
    content = small_png(SIDE, SIDE, row)
    yield _image("damaged", "fewer rows than it says.png", content, (0, 0, 0))


def small_png(width: int, height: int, raw: bytes, extra: bytes = b"") -> bytes:
    """Returns a PNG of 8-bit RGB with any header."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(raw, 9))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def _other_formats() -> Iterator[Case]:
    red = solid("RGB", (255, 0, 0))
    for kind in ("EPS", "PDF", "ICO", "TGA", "SGI", "PCX", "ICNS", "DDS", "SPIDER"):
        image = red.convert("F") if kind == "SPIDER" else red
        yield _image("formats", f"{kind} named .png.png", saved(image, kind))
    ghost = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n"
    run = b"(%pipe%touch ran) (w) file\n"
    yield _image("formats", "a program in EPS named .jpg.jpg", ghost + run)
    yield _image("formats", "SVG named .png.png", b"<svg xmlns='x'></svg>")
    yield _image("formats", "a pickle named .png.png", pickle.dumps(print))
    # These are what their first bytes say.
    for kind, suffix in (("PNG", "jpg"), ("GIF", "png"), ("BMP", "webp")):
        name = f"{kind} named .{suffix}.{suffix}"
        yield _image("formats", name, saved(red, kind), (255, 0, 0))
    content = saved(red, "MPO", save_all=True, append_images=[solid("RGB", "blue")])
    yield _image("formats", "a JPEG with a second picture.jpg", content, (254, 0, 0))


def _bombs() -> Iterator[Case]:
    line, side = bytes(1 + 3), 8_000
    blocks = zlib.compressobj(9)
    rows = b"".join(blocks.compress(bytes(3 * side + 1)) for _ in range(side))
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    large = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    large += chunk(b"IDAT", rows + blocks.flush()) + chunk(b"IEND", b"")
    black = (0, 0, 0)
    text = zlib.compress(bytes(1 << 28), 9)
    gif = bytearray(saved(solid("RGB", "red"), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    bmp = bytearray(saved(solid("RGB", "red"), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    tiff = Image.new("1", (80_000, 20_000))
    yield _image("bombs", "1 x 20,000.png", small_png(1, 20_000, line * 20_000), black)
    wide = small_png(20_000, 1, b"\0" + bytes(60_000))
    yield _image("bombs", "20,000 x 1.png", wide, black)
    yield _image("bombs", "64 million pixels.png", large, black, slow=True)
    yield _image("bombs", "says 60,000 x 60,000.png", small_png(60_000, 60_000, b""))
    yield _image("bombs", "says 12,000 x 12,000.png", small_png(12_000, 12_000, b""))
    yield _image("bombs", "says 65,535 x 65,535.gif", bytes(gif))
    yield _image("bombs", "says 60,000 x 60,000.bmp", bytes(bmp))
    yield _image("bombs", "says 60,000 x 60,000.ppm", b"P6 60000 60000 255\n")
    packed = saved(tiff, "TIFF", compression="group4")
    yield _image("bombs", "1,600 million pixels in fax.tif", packed, slow=True)
    progressive = saved(
        Image.new("RGB", (4_000, 4_000)), "JPEG", progressive=True, quality=50
    )
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    content = progressive[:-2] + 5_000 * scan + progressive[-2:]
    yield _image("bombs", "a JPEG of 5,000 scans.jpg", content)
    yield _image("bombs", "a JPEG of 10 scans.jpg", progressive, black)
    for name, kind in (("a profile", b"iCCP"), ("a text", b"zTXt")):
        extra = chunk(kind, b"x\0\0" + text)
        content = small_png(SIDE, SIDE, (b"\0" + bytes(3 * SIDE)) * SIDE, extra)
        # Without its profile or text, the image is whole.
        yield _image("bombs", f"{name} of 256 MiB.png", content, black, slow=True)

    def sparse(root: Path) -> None:
        _set(root, "0.png", saved(solid("RGB", (9, 9, 9)), "PNG"))
        os.truncate(root / "train" / "a" / "0.png", 1 << 40)

    yield Case("bombs", "a file of a terabyte.png", sparse, _color)
