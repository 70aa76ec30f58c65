"""What becomes of an image of each mode, orientation and format, by values of hand."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import small_sets
from PIL import Image

from zosam_jax.data import decoding, encoded_images


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of_mode(mode, pixels):
    """Returns an image of one row of pixels."""
    image = Image.new(mode, (len(pixels), 1))
    for x, value in enumerate(pixels):
        image.putpixel((x, 0), value)
    return image


def png(width, height, depth, colour, rows, extra=b""):
    """Returns a PNG of raw rows, written by hand: Pillow writes no 48-bit colours."""

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row for row in rows)
    chunks = chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


PALETTE = of_mode("P", [0, 1, 2])
PALETTE.putpalette([10, 20, 30, 40, 50, 60, 255, 0, 0])
CLEAR_RED = (255, 0, 0, 0)
LEVELS_16 = np.array([[0, 128, 129, 257, 32_768, 65_535]], np.uint16)
# level / 257: 0, 0.498, 0.502, 1, 127.502, 255.
LEVELS_8 = [0, 0, 1, 1, 128, 255]
FLOATS = np.array([[0, 0.2, 0.5, 1]], np.float32)

# name: (bytes, RGB of each pixel)
MODES = {
    "1": (saved(of_mode("1", [0, 255]), "PNG"), [0, 255]),
    "L": (saved(of_mode("L", [0, 7, 255]), "PNG"), [0, 7, 255]),
    "RGB": (saved(of_mode("RGB", [(1, 2, 3)]), "BMP"), [(1, 2, 3)]),
    "P": (saved(PALETTE, "PNG"), [(10, 20, 30), (40, 50, 60), (255, 0, 0)]),
    # An invisible red pixel is white; 255 * 127 / 255 = 127 of white shine through.
    "RGBA": (
        saved(of_mode("RGBA", [CLEAR_RED, (255, 0, 0, 128), (1, 2, 3, 255)]), "PNG"),
        [(255, 255, 255), (255, 127, 127), (1, 2, 3)],
    ),
    # 100 * 0.2 + 255 * 0.8 = 224.
    "LA": (saved(of_mode("LA", [(100, 51), (100, 255)]), "PNG"), [224, 100]),
    "P, a transparent colour": (
        saved(PALETTE, "PNG", transparency=2),
        [(10, 20, 30), (40, 50, 60), (255, 255, 255)],
    ),
    "GIF, a transparent colour": (
        saved(PALETTE, "GIF", transparency=1),
        [(10, 20, 30), (255, 255, 255), (255, 0, 0)],
    ),
    "L, a transparent level": (
        saved(of_mode("L", [5, 6]), "PNG", transparency=5),
        [255, 6],
    ),
    "RGB, a transparent colour": (
        saved(of_mode("RGB", [(1, 2, 3), (4, 5, 6)]), "PNG", transparency=(1, 2, 3)),
        [(255, 255, 255), (4, 5, 6)],
    ),
    # (255 - 51) * (255 - 51) / 255 = 163.2.
    "CMYK": (
        saved(
            of_mode("CMYK", [(51, 0, 102, 0), (51, 0, 255, 51), (0, 0, 0, 255)]), "TIFF"
        ),
        [(204, 255, 153), (163, 204, 0), (0, 0, 0)],
    ),
    "YCbCr": (saved(of_mode("YCbCr", [(9, 128, 128)]), "TIFF"), [9]),
    "I;16 of a PNG": (saved(Image.fromarray(LEVELS_16), "PNG"), LEVELS_8),
    "I;16 of a TIFF": (saved(Image.fromarray(LEVELS_16), "TIFF"), LEVELS_8),
    "I;16B of a TIFF": (
        saved(Image.fromarray(LEVELS_16.astype(">u2")), "TIFF"),
        LEVELS_8,
    ),
    "I of a PGM": (saved(Image.fromarray(LEVELS_16), "PPM"), LEVELS_8),
    # Levels to 1,000: 500 / 1000 * 255 = 127.5.
    "PGM to 1,000": (
        b"P5 2 1 1000\n" + np.array([500, 1000], ">u2").tobytes(),
        [128, 255],
    ),
    "RGB of 16 bits": (
        png(1, 1, 16, 2, [np.array([0x80FF, 0x01FE, 0xFFFF], ">u2").tobytes()]),
        [(0x80, 0x01, 0xFF)],
    ),
    # 0.2 * 255 = 51, 0.5 * 255 = 127.5.
    "F of a TIFF": (saved(Image.fromarray(FLOATS), "TIFF"), [0, 51, 128, 255]),
    "F of a PFM": (saved(Image.fromarray(FLOATS), "PPM"), [0, 51, 128, 255]),
}


@pytest.mark.parametrize("name", MODES)
def test_the_pixels_of_every_mode(name):
    encoded, wanted = MODES[name]
    image = decoding.decode(encoded, 3)
    assert (image.mode, image.height) == ("RGB", 1)
    wanted = [(x, x, x) if isinstance(x, int) else x for x in wanted]
    assert np.asarray(image)[0].tolist() == [list(x) for x in wanted]


def test_four_channels_keep_alpha_and_one_is_luma():
    encoded = MODES["RGBA"][0]
    kept = np.asarray(decoding.decode(encoded, 4))[0]
    assert kept.tolist() == [[255, 0, 0, 0], [255, 0, 0, 128], [1, 2, 3, 255]]
    plain = saved(of_mode("RGB", [(255, 0, 0)]), "PNG")
    assert np.asarray(decoding.decode(plain, 4))[0].tolist() == [[255, 0, 0, 255]]
    # 0.299 * 255 = 76.2; and white where alpha is 0.
    assert np.asarray(decoding.decode(plain, 1)).tolist() == [[76]]
    assert np.asarray(decoding.decode(encoded, 1))[0, 0] == 255


def animated(kind):
    first, second = (Image.new("RGB", (4, 4), c) for c in ("red", "blue"))
    return saved(first, kind, save_all=True, append_images=[second])


def scans(more):
    """Returns a progressive JPEG with its last scan repeated."""
    whole = saved(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + more * scan + whole[-2:]


def test_a_progressive_image_has_its_scans():
    assert decoding.decode(scans(0), 3).size == (16, 16)


REFUSED = {
    "several frames, and an example is one image": [
        animated(kind) for kind in ("GIF", "PNG", "WEBP", "TIFF")
    ],
    r"floating point are from -1 to 0\.5": [
        saved(Image.fromarray(np.array([[-1, 0.5]], np.float32)), "TIFF")
    ],
    "from nan to nan": [
        saved(Image.fromarray(np.array([[np.nan, 0.5]], np.float32)), "TIFF")
    ],
    r"from 0 to 200": [saved(Image.fromarray(np.array([[0, 200]], np.float32)), "PPM")],
    "integers of 32 bits": [
        saved(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF")
    ],
    "a transparent level of I;16": [
        saved(Image.fromarray(LEVELS_16), "PNG", transparency=7)
    ],
    "it has 12,000 x 12,000 pixels, and at most 89,478,485": [
        b"P6 12000 12000 255\n",
        png(12_000, 12_000, 8, 2, []),
    ],
    "it has 1,010 scans, and 10 are usual": [scans(1_000)],
    "could be decompression bomb": [png(60_000, 60_000, 8, 2, [])],
    "bytes have no header of an image in BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP": [
        saved(Image.new("RGB", (4, 4)), kind) for kind in ("EPS", "ICO", "TGA", "PDF")
    ],
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_says_why(message):
    for encoded in REFUSED[message]:
        with pytest.raises(decoding.BROKEN) as error:
            decoding.decode(encoded, 3)
        shown = decoding.reason(error.value, encoded)
        assert re.search(message, shown), shown


# Where the row 0 and the column 0 of the file are to be seen, in the words of EXIF.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", SIDES)
def test_the_orientation_of_exif_is_applied(kind, orientation):
    stored = np.array(
        [[[10, 0, 0], [20, 0, 0]], [[30, 0, 0], [40, 0, 0]], [[50] * 3] * 2]
    )
    row_side, column_side = SIDES[orientation]
    shown = stored
    if row_side in ("left", "right"):  # rows of the file are columns to be seen
        shown = shown.swapaxes(0, 1)
    if "bottom" in (row_side, column_side):
        shown = shown[::-1]
    if "right" in (row_side, column_side):
        shown = shown[:, ::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(stored.astype(np.uint8))
    encoded = saved(image, kind, exif=exif, **options)
    size = shown.shape[:2]
    assert decoding.header(io.BytesIO(encoded)) == size
    np.testing.assert_array_equal(decoding.decode(encoded, 3, size), shown)


def test_damaged_notes_of_a_camera_leave_the_image_as_it_is():
    encoded = saved(Image.new("RGB", (3, 2), "red"), "PNG", exif=b"Exif\0\0MM nothing")
    assert decoding.decode(encoded, 3).size == (3, 2)


def test_the_main_picture_of_an_mpo_is_used():
    first, second = (Image.new("RGB", (8, 8), c) for c in ("red", "blue"))
    encoded = saved(first, "MPO", save_all=True, append_images=[second])
    red, _, blue = np.asarray(decoding.decode(encoded, 3)).mean((0, 1))
    assert (red > 250, blue < 5) == (True, True)


def test_another_size_is_refused_by_the_header_alone():
    encoded = png(5_000, 5_000, 8, 2, [])  # no pixels at all
    with pytest.raises(ValueError, match=r"5000 x 5000 pixels, not 32 x 32"):
        decoding.decode(encoded, 3, (32, 32))


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 5_000)])
def test_the_work_of_a_center_crop_is_bounded_by_its_result(size, monkeypatch):
    image, sizes = Image.new("RGB", size, (9, 9, 9)), []
    resize = Image.Image.resize

    def watched(self, size, *args, **options):
        sizes.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    cropped = encoded_images.center_crop(image, 224, 256)
    assert np.all(np.asarray(cropped) == 9)
    assert cropped.size == (224, 224)
    assert max(w * h for w, h in sizes) <= 16 * 256 * 256


def test_the_middle_of_a_long_image_is_its_middle():
    column = np.arange(20_001) // 80
    image = Image.fromarray(np.tile(column.astype(np.uint8), (100, 1)))
    assert np.asarray(
        encoded_images.center_crop(image, 64, 64)
    ).mean() == pytest.approx(10_000 // 80, abs=0.5)
    # Up to 16 : 1 nothing is cut before, and the pixels are those of a whole resize.
    image = Image.open(io.BytesIO(small_sets.texture(0, 30, 480, "PNG")))
    whole = image.resize((64 * 16, 64), Image.Resampling.BILINEAR)
    wanted = whole.crop((480, 0, 544, 64))
    np.testing.assert_array_equal(encoded_images.center_crop(image, 64, 64), wanted)
