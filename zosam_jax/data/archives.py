"""What is in the archives of a few TFDS sets, read without TensorFlow.

A layout is a function `(builder, paths, progress)`: TFDS's builder of the set, the
archives by their addresses, and what takes lines of text. It returns the examples of
each split, `{split: iterator of (key, features)}`, with the keys and features of TFDS's
own reader. Encoded images are passed on as they are. TFDS's reader writes a few anew,
which its own decoder dislikes (12 pets; 22 CMYK images and a PNG of ImageNet): Pillow
decodes them.
"""

import io
import itertools
import pathlib
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from zosam_jax.data.download import Progress, every_tenth
from zosam_jax.data.sources import DatasetError

Paths = dict[str, pathlib.Path]
Examples = Iterator[tuple[Any, dict[str, Any]]]
Splits = dict[str, Examples]

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


def cifar_urls(builder: Any) -> tuple[str, ...]:
    """Returns the address of CIFAR's archive."""
    return (builder._cifar_info.url,)


def cifar(builder: Any, paths: Paths, progress: Progress) -> Splits:
    """The layout of CIFAR-10 and CIFAR-100; also sets the names of the classes."""
    layout = builder._cifar_info
    files = {}
    with tarfile.open(paths[layout.url]) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                files[member.name.removeprefix(layout.prefix)] = file.read()
    for key, file in zip(layout.label_keys, layout.label_files, strict=True):
        builder.info.features[key].names = [
            n for n in files[file].decode().splitlines() if n
        ]
    keys = layout.label_keys
    batches = {
        split: [_records(files[file], len(keys)) for file in names]
        for split, names in (("train", layout.train_files), ("test", layout.test_files))
    }
    total = sum(len(rows) for split in batches.values() for rows in split)
    report = every_tenth(progress, "written: {done:,} of {total:,} images", total)
    written = itertools.count(1)

    def tick() -> None:
        report(next(written))

    return {
        split: _cifar_split(
            f"{split}_", itertools.chain.from_iterable(rows), keys, tick
        )
        for split, rows in batches.items()
    }


def _records(data: bytes, num_labels: int) -> np.ndarray:
    """Returns a CIFAR file as uint8 `[N, num_labels + 3072]`.

    A record is its labels, one byte each, and the red, green and blue planes of
    32 x 32 pixels, row by row.
    """
    return np.frombuffer(data, np.uint8).reshape(-1, num_labels + _PIXELS)


def _cifar_split(
    prefix: str,
    records: Iterable[np.ndarray],
    label_keys: list[str],
    tick: Callable[[], None],
) -> Examples:
    """Yields each record's key and features, its image as PNG; `tick` after each."""
    for index, record in enumerate(records):
        labels, pixels = record[: len(label_keys)], record[len(label_keys) :]
        png = io.BytesIO()
        Image.fromarray(
            np.ascontiguousarray(pixels.reshape(_SHAPE).transpose(1, 2, 0))
        ).save(png, "PNG")
        png.seek(0)
        example = {"id": f"{prefix}{index:05d}", "image": png}
        example |= {k: int(v) for k, v in zip(label_keys, labels, strict=True)}
        yield index, example
        tick()


def imagenette_urls(builder: Any) -> tuple[str, ...]:
    """Returns the address of the archive of a configuration of Imagenette."""
    file = f"/{builder.builder_config.dirname}.tgz"
    return tuple(url for url in builder.url_infos if url.endswith(file))


def imagenette(builder: Any, paths: Paths, progress: Progress) -> Splits:
    """The layout of Imagenette: DIRECTORY/train/CLASS/IMAGE, and val."""
    (path,) = paths.values()
    tick = _reading(progress, [path, path])
    known = set(builder.info.features["label"].names)

    def split(folder: str) -> Examples:
        for name, file in _files(path, tick):
            _, part, label, image = ("", "", "", *pathlib.PurePosixPath(name).parts)[
                -4:
            ]
            if part == folder and image.endswith(".JPEG"):
                _check_label(name, label, known)
                yield image, {"image": io.BytesIO(file.read()), "label": label}

    return {"train": split("train"), "validation": split("val")}


def pet_urls(builder: Any) -> tuple[str, ...]:
    """Returns the addresses of the pets' annotations and images."""
    return tuple(sorted(builder.url_infos))


def pets(builder: Any, paths: Paths, progress: Progress) -> Splits:
    """The layout of the Oxford-IIIT pets: lists, masks and boxes beside the images."""
    del builder
    annotations, images = (paths[url] for url in sorted(paths))
    notes = {
        name.partition("annotations/")[2]: file.read()
        for name, file in _files(annotations)
    }
    tick = _reading(progress, [images, images])

    def split(file: str) -> Examples:
        lines = [line.split() for line in notes[file].decode().splitlines()]
        rows = {line[0]: line[1:] for line in lines if line}
        for name, content in _files(images, tick):
            stem, suffix = pathlib.PurePosixPath(name).stem, name[-4:]
            if suffix == ".jpg" and (row := rows.pop(stem, None)):
                yield (
                    f"{stem}.jpg",
                    {
                        "image": io.BytesIO(content.read()),
                        "label": int(row[0]) - 1,
                        "species": int(row[1]) - 1,
                        "file_name": f"{stem}.jpg",
                        "segmentation_mask": io.BytesIO(notes[f"trimaps/{stem}.png"]),
                        "head_bbox": _head(notes.get(f"xmls/{stem}.xml")),
                    },
                )
        if rows:
            raise DatasetError(
                f"{images} lacks {len(rows):,} images that {file} of {annotations} "
                f"names, as {min(rows)}.jpg."
            )

    return {"train": split("trainval.txt"), "test": split("test.txt")}


def _head(xml: bytes | None) -> Any:
    """Returns the box around a pet's head, in shares of the image; 0 where unknown."""
    if xml is None:
        return tfds.features.BBox(0.0, 0.0, 0.0, 0.0)
    tree = ET.fromstring(xml)

    def number(path: str) -> float:
        return float(tree.findtext(path, ""))

    width, height = number("size/width"), number("size/height")
    ends = {k: number(f"object/bndbox/{k}") for k in ("xmin", "xmax", "ymin", "ymax")}
    return tfds.features.BBox(
        ymin=ends["ymin"] / height,
        xmin=ends["xmin"] / width,
        ymax=ends["ymax"] / height,
        xmax=ends["xmax"] / width,
    )


def imagenet_urls(builder: Any) -> tuple[str, ...]:
    """Returns the addresses of ImageNet's training and validation archives."""
    return tuple(sorted(builder.url_infos))


def imagenet(builder: Any, paths: Paths, progress: Progress) -> Splits:
    """The layout of ImageNet: a tar of a tar for each class, and a tar of images.

    The labels of the validation images, in the order of their names, come with TFDS.
    """
    train, validation = (paths[url] for url in sorted(paths))
    tick = _reading(progress, [train, validation])
    known = set(builder.info.features["label"].names)

    def training() -> Examples:
        for outer, content in _files(train, tick):
            label = pathlib.PurePosixPath(outer).stem
            _check_label(outer, label, known)
            with tarfile.open(fileobj=content, mode="r|") as tar:
                for member in tar:
                    if (file := tar.extractfile(member)) is not None:
                        yield _imagenet_example(member.name, file, label)

    def validating() -> Examples:
        labels = _imagenet_labels()
        with tarfile.open(validation, mode="r:") as tar:
            names = sorted(member.name for member in tar if member.isfile())
        if len(names) != len(labels):
            raise DatasetError(
                f"{validation} has {len(names):,} images, not the {len(labels):,} that "
                "TFDS has labels of."
            )
        label = dict(zip(names, labels, strict=True))
        for name, file in _files(validation, tick):
            yield _imagenet_example(name, file, label[name])

    return {"train": training(), "validation": validating()}


def _imagenet_labels() -> list[str]:
    file = "datasets/imagenet2012/validation_labels.txt"
    return tfds.core.tfds_path(file).read_text().split()


def _imagenet_example(
    path: str, file: IO[bytes], label: str
) -> tuple[str, dict[str, Any]]:
    name = pathlib.PurePosixPath(path).name
    image = io.BytesIO(file.read())
    return name, {"file_name": name, "image": image, "label": label}


def _check_label(name: str, label: str, known: set[str]) -> None:
    if label not in known:
        raise DatasetError(f"{name} is of the class {label!r}, which TFDS has not.")


def _reading(progress: Progress, paths: list[pathlib.Path]) -> Callable[[int], None]:
    """Returns a function that reports how much of some archives, in turn, is read."""
    total = sum(path.stat().st_size for path in paths)
    report = every_tenth(progress, "archives read: {done:,} of {total:,} bytes", total)
    done = 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        report(done)

    return tick


def _files(
    path: pathlib.Path, tick: Callable[[int], None] | None = None
) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields the name and the content of each file in a tar, in one pass.

    A content must be read before the next is asked for.

    Args:
      path: The archive, compressed or not.
      tick: Called with how many bytes of it were read since the last call.
    """
    with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
        before = 0
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                yield member.name, file
                if tick is not None:
                    tick(raw.tell() - before)
                before = raw.tell()
        if tick is not None:  # what is after the last file
            tick(path.stat().st_size - before)
