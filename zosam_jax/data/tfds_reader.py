"""Reader of image classification sets in a TFDS data directory, without TensorFlow.

The directory is `data_dir`, `TFDS_DATA_DIR` or `~/tensorflow_datasets`. The sets must
be in the format `array_record`, the only one of TFDS's formats that gives random access
without TensorFlow.
"""

import dataclasses
import difflib
import os
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tensorflow_datasets.core import constants, registered

from zosam_jax import _check
from zosam_jax.data import files, tfds_folder
from zosam_jax.data.archives import Builder
from zosam_jax.data.dataset import STATISTICS, DatasetError
from zosam_jax.data.encoded_images import CHANNELS, EncodedImages

FORMAT = "array_record"
"""The format of TFDS that can be read."""

READ_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    DecodeError,
)
"""Exceptions that TFDS raises for damaged records."""

UNUSABLE = (*READ_ERRORS, json_format.ParseError, AssertionError)
"""Exceptions that TFDS raises for descriptions that are damaged, or names that are
wrong."""

_NAME = re.compile(r"\w+(/[^/:=,\s]+)?(:(\d+|\*)\.(\d+|\*)\.(\d+|\*))?", re.ASCII)
_FIFTH = 5
# Words in the names of sets of letters and digits, which are not mirrored.
_UPRIGHT = ("mnist", "svhn", "omniglot", "emnist", "quickdraw", "digits", "binarized")


def root(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns the TFDS data directory: `data_dir`, or TFDS's own default."""
    path = data_dir or constants.DATA_DIR
    return files.place(f"data_dir={os.fspath(path)}", path)


def check_name(
    name: str, data_dir: str | os.PathLike[str] | None, ours: tuple[str, ...]
) -> None:
    """Raises `ValueError` unless TFDS or the data directory has a set of a name.

    Args:
      name: Name of a set, optionally with a configuration or version.
      data_dir: The TFDS data directory.
      ours: Names to suggest before TFDS's.
    """
    plain = re.split("[/:]", name, maxsplit=1)[0]
    theirs = registered.list_imported_builders()
    if plain not in theirs and not (plain and os.path.isdir(root(data_dir) / plain)):
        near = difflib.get_close_matches(name, ours, 1)
        _check.one_of("dataset", name, ours if near else (*ours, *theirs))
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"dataset={name!r} must be NAME, NAME/CONFIGURATION, NAME:VERSION or "
            "NAME/CONFIGURATION:VERSION, with a version such as 1.0.0."
        )


def builder(
    name: str, data_dir: str | os.PathLike[str] | None, **options: Any
) -> Builder:
    """Returns TFDS's builder of a data set.

    Args:
      name: TFDS's name of a set, optionally with a configuration or version: `mnist`,
        `imagenette/320px-v2`, `cifar10:3.0.2`.
      data_dir: The TFDS data directory. None: TFDS's default.
      **options: Other arguments of the builder.

    Raises:
      ValueError: Neither TFDS nor `data_dir` has such a set, configuration or version.
      DatasetError: The description of the set in `data_dir` cannot be read, or must not
        be.
    """
    place = root(data_dir)
    plain = re.split("[/:]", name, maxsplit=1)[0]
    if os.path.isdir(place / plain):
        tfds_folder.check(name, place / plain)
    try:
        return tfds.builder(name, data_dir=os.fspath(place), try_gcs=False, **options)
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"{name} is not image classification, or TFDS cannot describe it without "
            f"TensorFlow: {error.msg}."
        ) from error
    except UNUSABLE as error:
        if is_known(name):
            _check_version(name, plain)
        detail = error
        if isinstance(error, registered.DatasetNotFoundError):
            detail = "none of its versions has a features.json"
        raise damaged(name, place / plain, place, detail) from error


def _check_version(name: str, plain: str) -> None:
    """Raises `ValueError` if TFDS knows a set, but not in a version or configuration.

    Args:
      name: Name of the set, with its configuration and version.
      plain: Name of the set alone.
    """
    known = tfds.builder_cls(plain)
    rest, _, version = name.partition(":")
    configuration = rest.partition("/")[2]
    configurations = tuple(known.builder_configs)
    if configuration and not configurations:
        raise ValueError(f"dataset={name!r}: {plain} has no configurations.")
    if configuration:
        _check.one_of(f"dataset={name!r}: configuration", configuration, configurations)
    every = [known.VERSION, *known.SUPPORTED_VERSIONS]
    versions = tuple(dict.fromkeys(str(v) for v in every if v is not None))
    if version and version not in versions:
        raise ValueError(
            f"dataset={name!r}: TFDS has {plain} in the version "
            f"{' or '.join(versions)}, not in {version}."
        )


def damaged(
    name: str,
    place: os.PathLike[str],
    data_dir: os.PathLike[str],
    detail: BaseException | str,
) -> DatasetError:
    """Returns the error for a set that exists but is not complete.

    Args:
      name: Name of the set.
      place: Its directory.
      data_dir: The TFDS data directory.
      detail: What is wrong.
    """
    reason = detail if isinstance(detail, str) else files.said(detail)
    return DatasetError(
        f"{name} in {os.fspath(place)} is incomplete or damaged ({reason}). "
        f"{_repair(name, data_dir)}"
    )


def is_known(name: str) -> bool:
    """Returns whether TFDS has the program that writes a set."""
    plain = re.split("[/:]", name, maxsplit=1)[0]
    return plain in registered.list_imported_builders()


def _repair(name: str, data_dir: str | os.PathLike[str]) -> str:
    if is_known(name):
        return f"Remove that directory and run `{command(name, data_dir)}`."
    return (
        "Remove that directory and write the set again with the program that made it."
    )


def command(name: str, data_dir: str | os.PathLike[str]) -> str:
    """Returns the command that prepares a data set in `data_dir`.

    >>> command("cifar10", "my data")
    "python -m zosam_jax data prepare cifar10 --data-dir 'my data'"
    """
    words = ["python", "-m", "zosam_jax", "data", "prepare", name]
    return shlex.join([*words, "--data-dir", os.fspath(data_dir)])


def is_prepared(tfds_builder: Builder, name: str) -> bool:
    """Returns whether the builder's directory has a prepared set.

    Raises:
      DatasetError: It has one in another format than `array_record`.
    """
    place = tfds_builder.data_path
    if not (place / "dataset_info.json").exists():
        return False
    formats = {f.value for f in tfds_builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise DatasetError(
            f"{place} holds {name} as {', '.join(sorted(formats))}, which "
            f"cannot be read without TensorFlow; {FORMAT} is needed. Run "
            f"`{command(name, 'DIR')}` with another directory DIR."
        )
    return True


DatasetInfo = Any
"""TFDS's description of a set, `tensorflow_datasets.core.DatasetInfo`."""

DataSource = Any
"""TFDS's data source of a split, which reads records at random."""


@dataclasses.dataclass(frozen=True)
class Records:
    """The images of a split of a TFDS set; an `encoded_images.Source`.

    Attributes:
      examples: TFDS's data source of the split, with images as encoded bytes.
      image: Name of the feature that holds the image.
      label: Name of the feature that holds the label.
      place: The split and its directory, for error messages.
      repair: A sentence that says what to do about damage.
      rows: Indices of the records to use. None: all.
    """

    examples: DataSource
    image: str
    label: str
    place: str
    repair: str
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.examples) if self.rows is None else len(self.rows)

    def read(self, rows: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns the encoded image and the label of each row."""
        chosen = [int(self._record(row)) for row in rows]
        try:
            examples = self.examples.__getitems__(chosen)
            return [(e[self.image], int(e[self.label])) for e in examples]
        except READ_ERRORS as error:
            raise DatasetError(
                f"{self.place} is damaged ({files.said(error)}). {self.repair}"
            ) from error

    def _record(self, row: int) -> int:
        return row if self.rows is None else self.rows[row]

    def where(self, row: int) -> str:
        """Returns the record's index, the split and the directory."""
        return f"record {self._record(row)} of {self.place}"


def find(name: str, data_dir: str | os.PathLike[str] | None) -> EncodedImages:
    """Returns an image classification set by its name in TFDS.

    The test set is the split `test`, or `validation` if there is no `test` with labels.
    If `train` is the only split, every fifth record is a test image.

    Args:
      name: TFDS's name of a set, optionally with a configuration or version.
      data_dir: The TFDS data directory. None: TFDS's default.

    Raises:
      ValueError: TFDS has no such set.
      DatasetError: The set is missing, in another format, incomplete or damaged, or is
        not image classification.
    """
    tfds_builder = builder(name, data_dir)
    place = tfds_builder.data_path
    features = tfds_builder.info.features
    image, label = _features(name, tfds_builder.info)
    if not is_prepared(tfds_builder, name):
        raise DatasetError(
            f"{name} is not in {place}. Run `{command(name, root(data_dir))}` to "
            "prepare it there, or set --data-dir or TFDS_DATA_DIR to the directory "
            "that has it."
        )
    sizes, channels = features[image].shape[:2], features[image].shape[2]
    splits = set(tfds_builder.info.splits)
    if "train" not in splits:
        raise DatasetError(
            f"{place} has no split train; it has {', '.join(sorted(splits)) or 'none'}."
        )
    repair = _repair(name, root(data_dir))

    def split(which: str) -> Records:
        examples = _open(tfds_builder, name, which, label, data_dir)
        place_of_split = f"the split {which} in {place}"
        return Records(examples, image, label, place_of_split, repair)

    train, test = split("train"), None
    for which in ("test", "validation"):
        if which in splits and (test is None or _unlabelled(test)):
            test = split(which)
    if test is None:
        train, test = _held_out(train)
    is_imagenet = name.startswith("imagenet") and channels == 3
    return EncodedImages(
        name=name,
        train=train,
        test=test,
        class_names=tuple(features[label].names),
        channels=channels,
        size=None if None in sizes else sizes,
        repair=repair,
        flip=not any(word in name for word in _UPRIGHT),
        statistics=STATISTICS["imagenet"] if is_imagenet else None,
    )


def _held_out(whole: Records) -> tuple[Records, Records]:
    """Returns four fifths of some records, and every fifth of them."""
    rows = np.arange(len(whole))
    held = rows % _FIFTH == _FIFTH - 1
    if not held.any():
        raise DatasetError(
            f"{whole.place} is the only part of the set with labels, and its "
            f"{len(whole)} examples are too few to hold out a fifth for testing."
        )
    kept = dataclasses.replace(whole, rows=rows[~held])
    return kept, dataclasses.replace(whole, rows=rows[held])


def _unlabelled(records: Records) -> bool:
    return records.read([0])[0][1] < 0


def _features(name: str, info: DatasetInfo) -> tuple[str, str]:
    """Returns the names of the features that hold the image and the label.

    These are TFDS's supervised keys, or the only features of their types.
    """
    features = dict(info.features)
    kinds = tfds.features.Image, tfds.features.ClassLabel
    pair = info.supervised_keys
    if not (isinstance(pair, tuple) and len(pair) == 2):
        only = [[k for k, f in features.items() if type(f) is kind] for kind in kinds]
        pair = tuple(keys[0] if len(keys) == 1 else "" for keys in only)
    key, label = pair
    if not (
        isinstance(features.get(key), kinds[0])
        and isinstance(features.get(label), kinds[1])
    ):
        raise DatasetError(
            f"{name} is not image classification, with one image and one class label "
            f"for each example. Its features are {', '.join(sorted(features))}."
        )
    image = features[key]
    channels = image.shape[-1]
    if image.np_dtype != np.uint8 or channels not in CHANNELS:
        dtype = np.dtype(image.np_dtype).name
        raise DatasetError(
            f"{name} has images of {channels} channels of {dtype}; "
            "1, 3 or 4 channels of uint8 are needed."
        )
    return key, label


def _open(
    tfds_builder: Builder,
    name: str,
    split: str,
    label: str,
    data_dir: str | os.PathLike[str] | None,
) -> DataSource:
    """Returns TFDS's data source of a split, which decodes the label only.

    Args:
      tfds_builder: TFDS's builder of the set.
      name: Name of the set, for error messages.
      split: The split.
      label: Name of the feature that holds the label.
      data_dir: The TFDS data directory, for error messages.

    Raises:
      DatasetError: The split is incomplete or damaged.
    """
    place, info = tfds_builder.data_path, tfds_builder.info
    # Images stay encoded until their batch is needed. Other features stay so.
    skip = {key: tfds.decode.SkipDecoding() for key in info.features if key != label}
    try:
        examples = tfds_builder.as_data_source(
            split=split, decoders=skip, file_format=FORMAT
        )
        found, wanted = len(examples), info.splits[split].num_examples
        # The last record is at the end of the last file, which a cut takes away.
        complete = 0 < found == wanted and examples[0] and examples[found - 1]
    except READ_ERRORS as error:
        raise damaged(name, place, root(data_dir), error) from error
    if not complete:
        detail = f"{split} has {found} of {wanted} examples"
        raise damaged(name, place, root(data_dir), detail)
    return examples
