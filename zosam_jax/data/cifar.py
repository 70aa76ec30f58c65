"""CIFAR-10 and CIFAR-100 from a TFDS data directory, without TensorFlow.

They are read where TFDS keeps them (`data_dir`, else `TFDS_DATA_DIR`, else
`~/tensorflow_datasets`), in the `array_record` format: the one of TFDS's formats that
can be read at random and complete without TensorFlow.
"""

import io
import os
import pathlib
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from PIL import Image
from tensorflow_datasets.core import constants

from zosam_jax.data import sources

FORMAT = "array_record"
# Decoding small images holds the interpreter lock most of the time: two threads take
# 0.7 of the time of one, six no less than one.
_THREADS = 2
_CHUNK = 1000

_READ_ERRORS = (OSError, RuntimeError, ValueError, LookupError, DecodeError)


def builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Returns TFDS's builder of a data set, on `data_dir` or on TFDS's own default.

    Raises:
      sources.DatasetError: The set's description there cannot be read.
    """
    place = pathlib.Path(data_dir or constants.DATA_DIR).expanduser()
    try:
        return tfds.builder(name, data_dir=os.fspath(place), try_gcs=False)
    except json_format.ParseError as error:
        raise _damaged(name, place / name, place, error) from error


def _damaged(
    name: str, place: os.PathLike[str], data_dir: os.PathLike[str], detail: object
) -> sources.DatasetError:
    """Returns the error for a set that is there and cannot be read whole."""
    return sources.DatasetError(
        f"{name} in {os.fspath(place)} is incomplete or damaged ({detail}). Remove "
        f"that directory and run `{command(name, data_dir)}`."
    )


def root(tfds_builder: Any) -> pathlib.Path:
    """Returns the data directory of a builder, above the sets' own directories."""
    return pathlib.Path(tfds_builder.data_path).parents[1]


def command(name: str, data_dir: str | os.PathLike[str]) -> str:
    """Returns the command that prepares a data set in `data_dir`."""
    words = ["python", "-m", "zosam_jax", "data", "prepare", name]
    return shlex.join([*words, "--data-dir", os.fspath(data_dir)])


def is_there(tfds_builder: Any) -> bool:
    """Returns whether something prepared is in the builder's directory.

    Raises:
      sources.DatasetError: It is there in another format than `array_record`.
    """
    place = tfds_builder.data_path
    if not (place / "dataset_info.json").exists():
        return False
    formats = {f.value for f in tfds_builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise sources.DatasetError(
            f"{place} holds {tfds_builder.name} as {', '.join(sorted(formats))}, which "
            f"cannot be read without TensorFlow; {FORMAT} is needed. Run "
            f"`{command(tfds_builder.name, 'DIR')}` with another directory DIR."
        )
    return True


def open_splits(tfds_builder: Any) -> dict[str, Any]:
    """Returns TFDS's data sources `train` and `test`, with images as encoded bytes.

    Raises:
      sources.DatasetError: The set is missing, in another format, incomplete or
        damaged.
    """
    name, place = tfds_builder.name, tfds_builder.data_path
    run = command(name, root(tfds_builder))
    if not is_there(tfds_builder):
        raise sources.DatasetError(
            f"{name} is not in {place}. To put it there, run `{run}`, or name the "
            "directory that has it with --data-dir or TFDS_DATA_DIR."
        )
    splits = {}
    for split in ("train", "test"):
        try:
            examples = tfds_builder.as_data_source(
                split=split,
                decoders={"image": tfds.decode.SkipDecoding()},
                file_format=FORMAT,
            )
            found, wanted = len(examples), tfds_builder.info.splits[split].num_examples
            complete = found == wanted and examples[0] and examples[found - 1]
        except _READ_ERRORS as error:
            raise _damaged(name, place, root(tfds_builder), error) from error
        if not complete:
            detail = f"{split} has {found} of {wanted} examples"
            raise _damaged(name, place, root(tfds_builder), detail)
        splits[split] = examples
    return splits


def _decode(
    examples: Any, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images, uint8 `[N, *shape]`, and labels, int32 `[N]`."""
    images = np.empty((len(examples), *shape), np.uint8)
    labels = np.empty(len(examples), np.int32)

    def read(start: int) -> None:
        rows = range(start, min(start + _CHUNK, len(examples)))
        for row, example in zip(rows, examples.__getitems__(list(rows)), strict=True):
            with Image.open(io.BytesIO(example["image"]), formats=("PNG",)) as image:
                images[row] = np.asarray(image).reshape(shape)
            labels[row] = example["label"]

    with ThreadPoolExecutor(_THREADS) as pool:
        for done in [pool.submit(read, s) for s in range(0, len(labels), _CHUNK)]:
            done.result()
    return images, labels


def load(name: str, data_dir: str | os.PathLike[str] | None) -> sources.Dataset:
    """Returns `cifar10` or `cifar100` (with its 100 fine labels), decoded.

    Raises:
      sources.DatasetError: See `open_splits`; also where an image cannot be decoded.
    """
    tfds_builder = builder(name, data_dir)
    splits = open_splits(tfds_builder)
    features = tfds_builder.info.features
    arrays = {}
    for split, examples in splits.items():
        try:
            arrays[split] = _decode(examples, features["image"].shape)
        except _READ_ERRORS as error:
            place, data_dir = tfds_builder.data_path, root(tfds_builder)
            raise _damaged(name, place, data_dir, error) from error
    mean, std = sources.channel_statistics(arrays["train"][0])
    return sources.Dataset(
        name=name,
        train_images=arrays["train"][0],
        train_labels=arrays["train"][1],
        test_images=arrays["test"][0],
        test_labels=arrays["test"][1],
        class_names=tuple(features["label"].names),
        mean=mean,
        std=std,
        crop_padding=4,
        flip=True,
    )
