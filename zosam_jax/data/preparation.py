"""Writes CIFAR as an ordinary TFDS data set, without TensorFlow.

TFDS's own builder of the set supplies its name, version, features, address and
checksum. Only the reading is replaced: TFDS reads the archive and encodes its images
with TensorFlow, this does so with the standard library and Pillow. The keys of the
examples are TFDS's own, and so is the order that follows from them.
"""

import hashlib
import http.client
import io
import itertools
import os
import pathlib
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from zosam_jax.data import tfds_sets as reader
from zosam_jax.data.sources import DatasetError

Progress = Callable[[str], None]

_BLOCK = 1 << 20
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_REPORTS = 10


def cifar(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    archive: str | os.PathLike[str] | None,
    progress: Progress,
) -> None:
    """Prepares `cifar10` or `cifar100`; see `zosam_jax.data.prepare`.

    A set that is there already and complete is left alone; an incomplete one is
    replaced, once the archive is at hand.
    """
    builder = reader.builder(name, data_dir)
    reader.is_there(builder, name)
    try:
        found = reader.find(name, data_dir)
    except DatasetError:
        root = reader.root(data_dir)
        try:
            _write(name, root, archive, progress)
        except OSError as error:
            raise DatasetError(
                f"{name} could not be prepared in {root}: {error}"
            ) from error
        builder = reader.builder(name, data_dir)
        found = reader.find(name, data_dir)
    progress(
        f"{name} is ready in {builder.data_path}: {len(found.train):,} training "
        f"and {len(found.test):,} test images."
    )


def _every_tenth(progress: Progress, line: str, total: int) -> Callable[[int], None]:
    """Returns a function of the amount done that reports `line` at every tenth.

    Args:
      progress: What takes the lines.
      line: A format of `done` and `total`.
      total: The amount at the end.
    """
    reported = 0

    def report(done: int) -> None:
        nonlocal reported
        tenths = _REPORTS * done // total
        if tenths > reported:
            reported = tenths
            progress(line.format(done=done, total=total))

    return report


def _write(
    name: str,
    root: pathlib.Path,
    archive: str | os.PathLike[str] | None,
    progress: Progress,
) -> None:
    """Writes a data set from its archive, which is downloaded where it is not given.

    TFDS writes into a directory of another name, which it renames at the end.
    """
    official: Any = tfds.builder_cls(name)
    url = reader.builder(name, root)._cifar_info.url
    wanted = official.url_infos[url]
    if archive is None:
        path = _download(name, url, wanted, root / "downloads", progress)
    else:
        path = pathlib.Path(archive).expanduser()
        if not path.is_file():
            raise DatasetError(f"archive={path} is not a file. Get it from {url}.")
        _verify(path, wanted)
    damaged = reader.builder(name, root).data_path
    if damaged.exists():
        shutil.rmtree(damaged)
    builder = official(data_dir=os.fspath(root), file_format=reader.FORMAT)
    # On the instance, not in a subclass: the set keeps the official builder's name and
    # module, and TFDS's registry of builders stays as it was.
    builder._split_generators = lambda _: _splits(builder, path, progress)
    builder._log_download_bytes = builder._log_download_done = lambda: None
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    if archive is None:
        path.unlink()


def _download(
    name: str, url: str, wanted: Any, folder: pathlib.Path, progress: Progress
) -> pathlib.Path:
    """Returns the archive in `folder`, downloaded unless it is there already.

    The file has its name only once it is complete and its checksum is right.
    """
    path = folder / wanted.filename
    if path.exists() and _sha256(path) == wanted.checksum:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    line = f"{wanted.filename}: {{done:,}} of {{total:,}} bytes"
    report = _every_tenth(progress, line, int(wanted.size))
    try:
        with urllib.request.urlopen(url, timeout=60) as source, part.open("wb") as sink:
            while block := source.read(_BLOCK):
                sink.write(block)
                report(sink.tell())
        _verify(part, wanted)
        part.replace(path)
    except _NETWORK_ERRORS as error:
        raise DatasetError(
            f"{url} could not be downloaded: {error}. On a machine without network, "
            f"bring the file from another one and run "
            f"`{reader.command(name, folder.parent)} --archive FILE`."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: pathlib.Path, wanted: Any) -> None:
    """Raises `DatasetError` unless a file has the SHA-256 that TFDS knows."""
    found = _sha256(path)
    if found != wanted.checksum:
        raise DatasetError(
            f"{path} is not {wanted.filename}, or not all of it: it has "
            f"{path.stat().st_size:,} bytes and the SHA-256 {found}, not "
            f"{int(wanted.size):,} bytes and {wanted.checksum}. Fetch it again."
        )


def _splits(
    builder: Any, archive: pathlib.Path, progress: Progress
) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Returns the examples of both splits, and sets the names of the classes."""
    layout = builder._cifar_info
    files = {}
    with tarfile.open(archive) as tar:
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
    report = _every_tenth(progress, "written: {done:,} of {total:,} images", total)
    written = itertools.count(1)

    def tick() -> None:
        report(next(written))

    return {
        split: _examples(f"{split}_", itertools.chain.from_iterable(rows), keys, tick)
        for split, rows in batches.items()
    }


def _records(data: bytes, num_labels: int) -> np.ndarray:
    """Returns a CIFAR file as uint8 `[N, num_labels + 3072]`.

    A record is its labels, one byte each, and the red, green and blue planes of
    32 x 32 pixels, row by row.
    """
    return np.frombuffer(data, np.uint8).reshape(-1, num_labels + _PIXELS)


def _examples(
    prefix: str,
    records: Iterable[np.ndarray],
    label_keys: list[str],
    tick: Callable[[], None],
) -> Iterator[tuple[int, dict[str, Any]]]:
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
