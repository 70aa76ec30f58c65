"""Hostile arrays for `hostile_files.py`: published corruptions, and files of `npz:`."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from hostile_images import REFUSED, Case  # noqa: E402

from zosam_jax import data  # noqa: E402
from zosam_jax.data.corruptions import published  # noqa: E402

SHAPE = "{'descr': '%s', 'fortran_order': False, 'shape': %s}\n"
LARGE = 1 << 40


def cases() -> Iterator[Case]:
    """Yields all cases of arrays."""
    yield from _corruptions()
    yield from _sets()


def _with_header(text: str, content: bytes = bytes(64)) -> bytes:
    """Returns a file of NumPy with a header of one's own."""
    size = struct.pack("<H", len(text))
    return b"\x93NUMPY\x01\x00" + size + text.encode() + content


def _corruptions() -> Iterator[Case]:
    images = np.full((5, 8, 8, 3), 7, np.uint8)
    labels = np.zeros(5, np.uint8)

    def read(root: Path) -> object:
        found = published.load("cifar10", "fog", 3, folder=root)
        pixels, classes = found.read(0, 1)
        return int(pixels.min()), int(pixels.max()), classes.tolist()

    def case(
        name: str, change: Callable[[Path], object], wanted: object = REFUSED
    ) -> Case:
        def make(root: Path) -> None:
            np.save(root / "fog.npy", images)
            np.save(root / "labels.npy", labels)
            change(root / "fog.npy")

        return Case("arrays", name, make, read, wanted)

    def fifo(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def archive(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, fog=images)

    def head(text: str) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(_with_header(text))

    def shape(text: str) -> Callable[[Path], object]:
        return head(SHAPE % ("|u1", text))

    yield case("nothing wrong", lambda path: None, (7, 7, [0]))
    yield case("a FIFO", fifo)
    yield case("an archive of arrays", archive)
    yield case("a pickle", lambda path: path.write_bytes(pickle.dumps(images)))
    yield case("objects", lambda path: np.save(path, np.array([print], object)))
    yield case("one number", lambda path: np.save(path, np.uint8(3)))
    yield case("empty", lambda path: path.write_bytes(b""))
    yield case("cut", lambda path: os.truncate(path, 200))
    yield case("2^80 images", shape("(1208925819614629174706176, 8, 8, 3)"))
    yield case("a negative size", shape("(-5, 8, 8, 3)"))
    yield case("a program for a header", head("__import__('os').system('touch ran')\n"))
    yield case("a deep header", head("(" * 5_000 + "\n"))
    yield case("4 images", lambda path: np.save(path, images[:4]))
    yield case(
        "labels of floating point",
        lambda path: np.save(path.with_name("labels.npy"), labels * 0.5),
    )


def _saved(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def _sets() -> Iterator[Case]:
    images, labels = np.full((5, 8, 8, 3), 7, np.uint8), np.arange(5) % 2
    good = {
        f"{part}_{what}.npy": _saved(array)
        for part in ("train", "test")
        for what, array in (("images", images), ("labels", labels))
    }
    fine = (7, [0, 1, 0, 1, 0], ("0", "1"))

    def read(root: Path) -> object:
        found = data.load(f"npz:{root}/mine.npz")
        assert isinstance(found, data.Dataset)
        pixels = np.unique(found.train_images).tolist()
        return (*pixels, found.train_labels.tolist(), found.class_names)

    def case(
        name: str,
        members: dict[str, bytes],
        wanted: object = REFUSED,
        change: Callable[[bytes], bytes] = lambda b: b,
        compression: int = zipfile.ZIP_STORED,
    ) -> Case:
        def make(root: Path) -> None:
            path = root / "mine.npz"
            with zipfile.ZipFile(path, "w", compression) as file:
                for member, content in {**good, **members}.items():
                    file.writestr(member, content)
            path.write_bytes(change(path.read_bytes()))

        return Case("npz", name, make, read, wanted)

    def entry(at: int, value: bytes) -> Callable[[bytes], bytes]:
        """Returns a change of the first entry of the directory of the file."""

        def change(content: bytes) -> bytes:
            place = content.index(b"PK\1\2") + at
            return content[:place] + value + content[place + len(value) :]

        return change

    def other(name: str, write: Callable[[Path], object]) -> Case:
        return Case("npz", name, lambda root: write(root / "mine.npz"), read)

    first, names = "train_images.npy", "class_names.npy"
    deflated = zipfile.ZIP_DEFLATED
    yield case("nothing wrong", {}, fine)
    yield case("nothing wrong, compressed", {}, fine, compression=deflated)
    for what, content in {
        "empty": b"",
        "no array": b"train",
        "a pickle": pickle.dumps(images),
        "objects": _saved(np.array([print], object)),
        "one number": _saved(np.uint8(3)),
        "no images": _saved(images[:0]),
        "4 images": _saved(images[:4]),
        "images of no pixels": _saved(images[:, :0]),
        "floating point": _saved(images / 255),
        "records": _saved(np.zeros(5, [("é", "u1")])),
        "2^80 images": _with_header(SHAPE % ("|u1", f"({1 << 80}, 8, 8, 3)")),
        "2^40 images": _with_header(SHAPE % ("|u1", f"({LARGE}, 8, 8, 3)")),
        "a negative size": _with_header(SHAPE % ("|u1", "(-5, 8, 8, 3)")),
        "two negative sizes": _with_header(SHAPE % ("|u1", "(-1, -1, 8, 8)")),
        "a size of True": _with_header(SHAPE % ("|u1", "(True, 8, 8, 1)")),
        "a program for a header": _with_header("__import__('os')._exit(9)\n"),
        "a deep header": _with_header("(" * 5_000 + "\n"),
        "a long header": _with_header(" " * 60_000 + "\n"),
        "version 9": b"\x93NUMPY\x09\x00" + _saved(images)[8:],
        "cut": _saved(images)[:-1],
        "more than its array": _saved(images) + b"x",
    }.items():
        yield case(f"images: {what}", {first: content})
    for what, array in {
        "floating point": labels * 0.5,
        "negative": labels - 1,
        "2^63": np.full(5, 1 << 63, np.uint64),
        "100,000": labels + 100_000,
        "of two axes": labels[None],
    }.items():
        yield case(f"labels: {what}", {"test_labels.npy": _saved(array)})
    for what, content in {
        "one of two": _saved(["a"]),
        "equal": _saved(["a", "a"]),
        "empty": _saved(["", "a"]),
        "bytes": _saved([b"a", b"b"]),
        "long": _saved(["a" * 1_000, "b"]),
        "100,000": _saved([str(i) for i in range(100_000)]),
        "2^40 of no size": _with_header(SHAPE % ("<U0", f"({LARGE},)"), b""),
        "no character": _with_header(SHAPE % ("<U1", "(2,)"), b"\xff" * 8),
        "half a character": _with_header(SHAPE % ("<U1", "(2,)"), b"\0\xd8\0\0a\0\0\0"),
    }.items():
        yield case(f"class_names: {what}", {names: content})
    yield case("an array twice", {"train_images": good[first]})
    yield case("an array of another name", {"x.npy": good[first]})
    yield case("a name that leads out", {"../x.npy": good[first]})
    yield case("an encrypted array", {}, change=entry(8, b"\1"))
    yield case("an unknown compression", {}, change=entry(10, b"\x63"))
    yield case("another checksum", {}, change=entry(16, b"\0\0\0\0"))
    yield case("another size", {}, change=entry(24, struct.pack("<I", 1 << 31)))
    yield case("an offset beyond the end", {}, change=entry(42, b"\xff\xff\xff\x7f"))
    yield case("a later version", {}, change=entry(6, b"\xff"))
    yield case("cut", {}, change=lambda b: b[:-30])
    yield case("half", {}, change=lambda b: b[: len(b) // 2])
    pixels = np.random.default_rng(0).integers(0, 256, (99, 8, 8, 3), np.uint8)
    noise = {
        first: _saved(pixels),
        "train_labels.npy": _saved(np.arange(99) % 2),
    }
    yield case(
        "damaged within",
        noise,
        change=lambda b: b[:3_000] + bytes(500) + b[3_500:],
        compression=deflated,
    )
    for name, count in (("a gigabyte", 1 << 30), ("half of it", 1 << 29)):
        start = _with_header(SHAPE % ("|u1", f"({count // 192}, 8, 8, 3)"))
        size = struct.pack("<I", len(start) - 64 + count // 192 * 192)
        yield case(
            f"a directory that promises {name}",
            {first: start},
            change=entry(24, size),
            compression=deflated,
        )
    yield other("empty file", lambda path: path.write_bytes(b""))
    yield other("text", lambda path: path.write_bytes(b"hello" * 99))
    yield other("a file of np.save", lambda path: path.write_bytes(good[first]))
    yield other("a FIFO", os.mkfifo)
    yield other("a folder", Path.mkdir)
    yield other("a link to a device", lambda path: path.symlink_to("/dev/zero"))
    yield other("a link to itself", lambda path: path.symlink_to("mine.npz"))
