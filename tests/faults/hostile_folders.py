"""Hostile folders, archives, sets of TFDS and names for `hostile_files.py`."""

import contextlib
import functools
import gzip
import io
import json
import os
import shutil
import socket
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from data import small_sets  # noqa: E402
from hostile_images import REFUSED, SIDE, Case  # noqa: E402

from zosam_jax import data  # noqa: E402


def cases() -> Iterator[Case]:
    """Yields all cases of folders, archives, sets of TFDS and names."""
    yield from _places()
    yield from _archives()
    yield from _tfds()
    yield from _names()


def _places() -> Iterator[Case]:
    nine = small_sets.solid(9, SIDE, SIDE)

    def case(
        name: str, make: Callable[[Path], object], wanted: object = REFUSED
    ) -> Case:
        def whole(root: Path) -> None:
            files = {f"set/{c}/{i}.png": nine for c in "ab" for i in range(6)}
            small_sets.write(root, files)
            make(root / "set")

        return Case("places", name, whole, _counts, wanted)

    def mount(path: str) -> Callable[[Path], object]:
        return lambda root: (root / "a" / "9.png").symlink_to(path)

    def socket_at(root: Path) -> None:
        with contextlib.chdir(root / "a"):  # Its path may be too long for a socket.
            socket.socket(socket.AF_UNIX).bind("9.png")

    def link(at: str, to: str) -> Callable[[Path], object]:
        return lambda root: (root / at).symlink_to(to)

    def many(root: Path) -> None:
        below = root / "a"
        for level in range(40):
            inside = root.parent / "levels" / str(level)
            inside.mkdir(parents=True)
            for name in ("x", "y"):
                (below / name).symlink_to(inside)
            below = inside

    yield case("nothing wrong", lambda root: None, [6, 6])
    yield case("a FIFO", lambda root: os.mkfifo(root / "a" / "9.png"))
    yield case("a socket", socket_at)
    yield case("a link to a device", mount("/dev/zero"))
    yield case("a link to a terminal", mount("/dev/tty"))
    yield case("a link to nothing", mount("nothing"))
    yield case("a link to itself", mount("9.png"))
    yield case("a link to an image of its class", mount("1.png"), [6, 6])
    yield case("a link to an image of another class", mount("../b/1.png"))
    yield case("a link to the set", link("a/x", ".."))
    yield case("a link to its own folder", link("a/x", "."))
    yield case("a link to the root of the file system", link("a/x", "/"))
    yield case("a link to another class", link("a/x", "../b"))
    yield case("a class that is the set", link("c", "."))
    yield case("2^40 ways by links", many, [6, 6])
    yield case("a folder named .png", lambda root: (root / "a/9.png").mkdir(), [6, 6])
    yield case("a class of no images", lambda root: (root / "c").mkdir())
    yield case(
        "hidden folders",
        lambda root: small_sets.write(root, {".x/0.png": b"", "a/.x/0.png": b""}),
        [6, 6],
    )
    yield case(
        "a class of no UTF-8", lambda root: os.mkdir(os.fsencode(root) + b"/\xff")
    )
    yield case("a deep folder", lambda root: _deep(root / "a", 200), [6, 6])


def _deep(folder: Path, levels: int) -> None:
    (folder / "/".join("d" * levels)).mkdir(parents=True)


def _counts(root: Path) -> object:
    """Returns the number of images of each class."""
    found = data.load(f"folder:{root / 'set'}")
    assert isinstance(found, data.Dataset)
    labels = np.concatenate([found.train_labels, found.test_labels])
    return np.bincount(labels).tolist()


def _archives() -> Iterator[Case]:
    nine = small_sets.solid(9, SIDE, SIDE)
    good = {f"set/{c}/{i}.png": nine for c in "ab" for i in range(6)}

    def unpacked(root: Path) -> object:
        (archive,) = root.iterdir()
        try:
            data.prepare(f"folder:{root / 'set'}", archive=archive)
        except data.DatasetError:
            assert list(root.iterdir()) == [archive], "something was left"
            raise
        assert sorted(p.name for p in root.iterdir()) == sorted(["set", archive.name])
        return _counts(root)

    def tar(
        name: str,
        kind: bytes = tarfile.REGTYPE,
        size: int = 0,
        link: str = "",
        mode: Any = "w",
    ) -> Callable[[Path], object]:
        def make(root: Path) -> None:
            with tarfile.open(root / "x.tar", mode) as file:
                for path, content in good.items():
                    member = tarfile.TarInfo(path)
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = kind, link, size
                file.addfile(member, io.BytesIO(bytes(size)))

        return make

    def zipped(
        name: str, mode: int = 0o100644, change: Callable[[bytes], bytes] = lambda b: b
    ) -> Callable[[Path], object]:
        def make(root: Path) -> None:
            with zipfile.ZipFile(root / "x.zip", "w") as file:
                for path, content in good.items():
                    file.writestr(path, content)
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                file.writestr(info, b"../b")
            path = root / "x.zip"
            path.write_bytes(change(path.read_bytes()))

        return make

    def last_entry(at: int, value: bytes) -> Callable[[bytes], bytes]:
        """Returns a change of the last entry of the directory of a zip file."""

        def change(content: bytes) -> bytes:
            place = content.rindex(b"PK\1\2") + at
            return content[:place] + value + content[place + len(value) :]

        return change

    def nulls(root: Path) -> None:
        tar("x", size=0)(root)
        whole = (root / "x.tar").read_bytes()
        (root / "x.tar").unlink()
        (root / "x.tgz").write_bytes(gzip.compress(whole[:-1024])[:-40])

    def huge(root: Path) -> None:
        """A member of 2^60 bytes, by a header without content."""
        member = tarfile.TarInfo("set/a/9.png")
        member.size = 1 << 60
        (root / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))

    def long_header(root: Path) -> None:
        member = tarfile.TarInfo("long")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
        head = member.tobuf(tarfile.GNU_FORMAT)
        with gzip.open(root / "x.tar.gz", "wb", compresslevel=1) as file:
            file.write(head)
            for _ in range(64):
                file.write(bytes(1 << 20))

    def written(name: str, content: bytes) -> Callable[[Path], object]:
        return lambda root: (root / name).write_bytes(content)

    fine = [6, 6]
    rows: list[tuple[str, Callable[[Path], object], object]] = [
        ("nothing wrong.tar", tar("set/notes.txt", size=9), fine),
        ("nothing wrong.zip", zipped("set/notes.txt"), fine),
        ("a name with ...tar", tar("set/../../x.png", size=9), REFUSED),
        ("an absolute name.tar", tar("/tmp/zosam-hostile.png", size=9), REFUSED),
        ("a folder with ...tar", tar("../x", tarfile.DIRTYPE), REFUSED),
        ("a link out.tar", tar("set/a/x", tarfile.SYMTYPE, link="../.."), REFUSED),
        ("a link in.tar", tar("set/a/x", tarfile.SYMTYPE, link="../b"), REFUSED),
        ("a link away.tar", tar("set/a/x", tarfile.SYMTYPE, link="/etc"), REFUSED),
        (
            "a hard link.tar",
            tar("set/a/x.png", tarfile.LNKTYPE, link="set/b/0.png"),
            REFUSED,
        ),
        (
            "a hard link away.tar",
            tar("set/a/x.png", tarfile.LNKTYPE, link="/etc/passwd"),
            REFUSED,
        ),
        ("a FIFO.tar", tar("set/a/x.png", tarfile.FIFOTYPE), REFUSED),
        ("a device.tar", tar("set/a/x.png", tarfile.CHRTYPE), REFUSED),
        ("a file for a folder.tar", tar("set/a", size=3), REFUSED),
        ("a member of 2^60 bytes.tar", huge, REFUSED),
        ("a header of 4 GiB.tar.gz", long_header, REFUSED),
        ("cut.tar.gz", nulls, REFUSED),
        ("empty.tar", written("x.tar", b""), REFUSED),
        ("text.tar", written("x.tar", b"404 Not Found"), REFUSED),
        ("no image in a class.tar", tar("set/c/notes.txt", size=9), REFUSED),
        ("a name with ...zip", zipped("../x.png"), REFUSED),
        ("a name with backslashes.zip", zipped("..\\..\\x.png"), REFUSED),
        ("an absolute name.zip", zipped("/tmp/zosam-hostile.png"), REFUSED),
        ("a link.zip", zipped("set/a/x.png", 0o120777), REFUSED),
        ("a FIFO.zip", zipped("set/a/x.png", 0o010644), REFUSED),
        ("encrypted.zip", zipped("set/x", change=last_entry(8, b"\1\0")), REFUSED),
        (
            "an unknown compression.zip",
            zipped("set/x", change=last_entry(10, b"\x63\0")),
            REFUSED,
        ),
        (
            "a later version.zip",
            zipped("set/x", change=last_entry(6, b"\xff\0")),
            REFUSED,
        ),
        (
            "a member of 4 GiB.zip",
            zipped("set/x", change=last_entry(20, b"\xfe\xff\xff\xff" * 2)),
            REFUSED,
        ),
        ("a wrong checksum.zip", zipped("x", change=last_entry(16, b"abcd")), REFUSED),
        ("cut.zip", zipped("x", change=lambda b: b[: len(b) // 2]), REFUSED),
    ]
    for name, make, wanted in rows:
        yield Case("archives", name, make, unpacked, wanted)


# Folders of TFDS.


@functools.cache
def _template() -> Path:
    """Returns the folder of a version of a set of 6 images, of no builder of TFDS."""
    root = Path(tempfile.mkdtemp())
    rows = [
        {"id": str(i), "image": small_sets.solid(i, 32, 32), "label": i}
        for i in (1, 2, 3)
    ]
    # In a process of its own: the threads that write do not survive a fork.
    child = os.fork()
    if not child:
        small_sets.prepare("svhn_cropped", root, {"train": rows, "test": rows})
        os._exit(0)
    os.waitpid(child, 0)
    place = root / "svhn_cropped" / "3.1.0"
    for path in list(place.iterdir()):
        path.rename(path.with_name(path.name.replace("svhn_cropped", "mine")))
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace("svhn_cropped", "mine"))
    return place


def clean() -> None:
    """Removes what the cases share."""
    if _template.cache_info().currsize:
        shutil.rmtree(_template().parents[1], ignore_errors=True)


def _tfds() -> Iterator[Case]:
    info, features = "dataset_info.json", "features.json"

    def case(
        name: str, change: Callable[[Path], object], wanted: object = REFUSED
    ) -> Case:
        def make(root: Path) -> None:
            place = root / "mine" / "3.1.0"
            shutil.copytree(_template(), place)
            change(place)

        return Case("tfds", name, make, _numbers, wanted)

    def text(
        file: str, change: Callable[[str], str | bytes]
    ) -> Callable[[Path], object]:
        def apply(place: Path) -> None:
            changed = change((place / file).read_text())
            content = changed if isinstance(changed, bytes) else changed.encode()
            (place / file).write_bytes(content)

        return apply

    def entry(file: str, *path: Any, value: Any) -> Callable[[Path], object]:
        def change(content: str) -> str:
            found = inner = json.loads(content)
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
            return json.dumps(found)

        return text(file, change)

    def instead(file: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
        def apply(place: Path) -> None:
            (found,) = place.glob(file)
            found.unlink()
            make(found)

        return apply

    def records(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
        def apply(place: Path) -> None:
            (path,) = place.glob("*train.array_record*")
            path.write_bytes(change(path.read_bytes()))

        return apply

    yield case("nothing wrong", lambda place: None, [1, 2, 3])
    for file in (info, features):
        for name, content in {
            "empty": b"",
            "an object of nothing": b"{}",
            "a list": b"[]",
            "null": b"null",
            "half": None,
            "no UTF-8": b"\xff\xfe{}",
            "deep": b"[" * 100_000,
            "a number": b"3",
            "NUL bytes": bytes(3_000),
        }.items():
            change = (
                text(file, lambda t: t[: len(t) // 2])
                if content is None
                else text(file, lambda _, c=content: c)
            )
            yield case(f"{file}: {name}", change)
        yield case(f"{file}: removed", instead(file, lambda path: None))
        yield case(f"{file}: a FIFO", instead(file, os.mkfifo))
        yield case(f"{file}: a folder", instead(file, Path.mkdir))
        yield case(
            f"{file}: a link to a device",
            instead(file, lambda path: path.symlink_to("/dev/zero")),
        )
        yield case(
            f"{file}: a terabyte",
            lambda place, file=file: os.truncate(place / file, 1 << 40),
        )
    image = "featuresDict", "features", "image"
    for name, value in {
        "a module": "hostile_module.Feature",
        "a package of TFDS": "tensorflow_datasets.scripts.cli.main.Feature",
        "no dot": "Feature",
        "a number": 3,
    }.items():
        change = entry(features, *image, "pythonClassName", value=value)
        yield case(f"features.json: the class is {name}", change)
    inner = json.dumps({"x": {"type": "hostile_module.Feature", "content": {}}})
    change = entry(features, *image, "jsonFeature", value={"json": inner})
    yield case("features.json: a class within JSON in JSON", change)
    yield case(
        "features.json: no image", entry(features, "featuresDict", "features", value={})
    )
    for name, dimensions in {
        "of another size": ["16", "16", "3"],
        "of five channels": ["32", "32", "5"],
        "negative": ["-32", "-32", "3"],
        "of one axis": ["3"],
        "of letters": ["a", "b", "c"],
        "of 2^40 pixels": [str(1 << 20), str(1 << 20), "3"],
    }.items():
        change = entry(
            features, *image, "image", "shape", "dimensions", value=dimensions
        )
        yield case(f"features.json: shape {name}", change)
    label = "featuresDict", "features", "label", "classLabel", "numClasses"
    for value in ("2", "0", "-3", "x", str(10**30)):
        yield case(
            f"features.json: {value} classes", entry(features, *label, value=value)
        )
    for key, value in (
        ("splits", []),
        ("splits", "train"),
        ("version", "9"),
        ("version", 3),
        ("fileFormat", "tfrecord"),
        ("fileFormat", "nothing"),
        ("moduleName", "hostile_module"),
        ("supervisedKeys", {"tuple": {"items": [{"featureKey": "x"}] * 2}}),
    ):
        # The name of a module is not imported.
        wanted = [1, 2, 3] if key == "moduleName" else REFUSED
        yield case(
            f"{info}: {key} {value!r:.20}", entry(info, key, value=value), wanted
        )
    for key, value in (
        ("shardLengths", ["4"]),
        ("shardLengths", []),
        ("shardLengths", ["-1"]),
        ("shardLengths", ["1", "2"]),
        ("name", "other"),
        ("filepathTemplate", "../../{SHARD_X_OF_Y}"),
    ):
        for split in (0, 1):
            change = entry(info, "splits", split, key, value=value)
            yield case(f"{info}: {key} {value!r:.20} of split {split}", change)
    yield case("records: removed", instead("*train*", lambda path: None))
    yield case("records: a FIFO", instead("*train*", os.mkfifo))
    yield case("records: a folder", instead("*train*", Path.mkdir))
    yield case("records: empty", records(lambda b: b""))
    yield case("records: half", records(lambda b: b[: len(b) // 2]))
    yield case("records: zeros", records(lambda b: bytes(len(b))))
    yield case(
        "records: noise", records(lambda b: np.random.default_rng(0).bytes(len(b)))
    )
    # A record is 32 KiB from the start, behind headers that are checksummed.
    yield case(
        "records: an image is none",
        records(lambda b: b.replace(b"\x89PNG", b"\x89PNX")),
    )


def _numbers(root: Path) -> object:
    """Returns the numbers of the training images of the set of TFDS, sorted."""
    (root / "hostile_module.py").write_text("import os; os._exit(9)")
    sys.path.insert(0, str(root))
    found = data.load("mine", root)
    if isinstance(found, data.Streamed):
        found = next(found.batches(0, found.num_train))[0]
    else:
        found = found.train_images
    return sorted(map(int, small_sets.numbers(found)))


def _names() -> Iterator[Case]:
    def case(name: str, make: Callable[[Path], object] = lambda root: None) -> Case:
        def read(root: Path) -> object:
            os.chdir(root)
            return data.load(name.format(root=root))

        return Case("names", name, make, read)

    def sparse(root: Path) -> None:
        (root / "x").write_bytes(b"a")
        os.truncate(root / "x", 1 << 40)

    yield case("folder:")
    yield case("text:")
    yield case("folder:{root}/nothing")
    yield case("folder:{root}")
    yield case("folder:~nobody-at-all/x")
    yield case("folder:a\0b")
    yield case("folder:/dev/null")
    yield case("folder:" + "a/" * 3_000)
    yield case("text:{root}")
    yield case("text:{root}/x", lambda root: os.mkfifo(root / "x"))
    yield case("text:/dev/zero")
    yield case("text:{root}/x ", lambda root: (root / "x ").write_bytes(b"short"))
    yield case("text:{root}/./x", sparse)
    yield case("text:a\0b")
    yield case("npz:")
    yield case("npz:a\0b")
    yield case("npz:{root}")
    yield case("npz:/dev/zero")
    yield case("npz:{root}/x", lambda root: os.mkfifo(root / "x"))
    yield case("npz:{root}/./x", sparse)
    yield case("n" * 300)
    yield case("..")
    yield case("cifar10:9.9.9")
    yield case("imagenette/nothing")
    yield case("huggingface:imdb")

    def archive(name: str, place: str) -> Case:
        def read(root: Path) -> object:
            return data.prepare(f"folder:{root}/set", archive=place.format(root=root))

        return Case("names", name, lambda root: os.mkfifo(root / "x"), read)

    yield archive("--archive a FIFO", "{root}/x")
    yield archive("--archive a folder", "{root}")
    yield archive("--archive of a long name", "{root}/" + "a" * 5_000)
    yield archive("--archive nothing", "{root}/nothing")
    yield archive("--archive of nobody", "~nobody-at-all/x.tar")

    def long_folder(root: Path) -> object:
        return data.load("cifar10", data_dir=str(root) + "/a" * 3_000)

    yield Case("names", "a long --data-dir", lambda root: None, long_folder)
