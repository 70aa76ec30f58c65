"""CIFAR-10 and CIFAR-100: the address and the contents of their archives."""

import io
import itertools
import tarfile
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from zosam_jax.data.archives import (
    Archives,
    Builder,
    Examples,
    OnProgress,
    Paths,
    Splits,
    every_tenth,
)

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


def urls(builder: Builder) -> tuple[str, ...]:
    """Returns the address of the archive of a set."""
    return (builder._cifar_info.url,)


def read(builder: Builder, paths: Paths, on_progress: OnProgress) -> Splits:
    """Returns the examples of CIFAR-10 or CIFAR-100, and sets the builder's classes.

    Args:
      builder: TFDS's builder of the set.
      paths: The archives, by their addresses.
      on_progress: Called with lines of text.
    """
    layout = builder._cifar_info
    files = {}
    with tarfile.open(paths[layout.url]) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                files[member.name.removeprefix(layout.prefix)] = file.read()
    for key, file in zip(layout.label_keys, layout.label_files, strict=True):
        # The names are in the archive only; TFDS's builder starts without them.
        builder.info.features[key].names = [
            n for n in files[file].decode().splitlines() if n
        ]
    keys = layout.label_keys
    batches = {
        split: [_records(files[file], len(keys)) for file in names]
        for split, names in (("train", layout.train_files), ("test", layout.test_files))
    }
    total = sum(len(rows) for split in batches.values() for rows in split)
    report = every_tenth(on_progress, "written: {done:,} of {total:,} images", total)
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

    A record has one byte for each label, followed by the red, green and blue values of
    32 x 32 pixels, row by row.
    """
    return np.frombuffer(data, np.uint8).reshape(-1, num_labels + _PIXELS)


def _cifar_split(
    prefix: str,
    records: Iterable[np.ndarray],
    label_keys: list[str],
    tick: Callable[[], None],
) -> Examples:
    """Yields the key and features of each record, with its image encoded as PNG.

    Args:
      prefix: Prefix of the feature "id".
      records: uint8 arrays from `_records`.
      label_keys: Names of the features that hold the labels.
      tick: Called after each record.
    """
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


ARCHIVES = Archives(urls, read)
