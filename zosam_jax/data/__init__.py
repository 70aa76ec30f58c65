"""Data sets in memory, their preparation, and augmentation on the device.

dataset = load("digits")
images = augment.random_crop_flip(key, batch, dataset.crop_padding, dataset.flip)
x = augment.normalize(images, dataset.mean, dataset.std)
"""

import os
from collections.abc import Callable

from zosam_jax import _check
from zosam_jax.data import augment as augment
from zosam_jax.data import sources
from zosam_jax.data.sources import Dataset as Dataset
from zosam_jax.data.sources import DatasetError as DatasetError

_NAMES = ("digits", "cifar10", "cifar100")


def names() -> tuple[str, ...]:
    """Returns the names that `load` knows.

    >>> names()
    ('digits', 'cifar10', 'cifar100')
    """
    return _NAMES


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Returns a data set by name, decoded, in host memory.

    Args:
      name: One of `names()`. `digits` comes with scikit-learn; CIFAR is read from a
        TFDS data directory.
      data_dir: The TFDS data directory. Default: `TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`. `digits` does not use it.

    Raises:
      ValueError: `name` is unknown.
      DatasetError: The set is missing, incomplete or damaged; the message says where it
        was looked for and which command prepares it.
    """
    _check.one_of("dataset", name, _NAMES)
    if name == "digits":
        return sources.digits()
    from zosam_jax.data import cifar

    return cifar.load(name, data_dir)


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Makes a data set ready for `load`, without TensorFlow.

    Args:
      name: One of `names()`. `digits` needs no preparation.
      data_dir: The TFDS data directory. Default: `TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`.
      archive: A local copy of the data set's archive (the file that the download would
        fetch), for a machine without network. Default: it is downloaded.
      on_progress: Called with a line of text at every tenth of the download and of
        the writing, and at the end with what is ready and where. Default: silent.

    Raises:
      ValueError: `name` is unknown.
      DatasetError: The archive cannot be fetched, is not the right file, or cannot be
        written. Nothing is left where `load` would find it.
    """
    _check.one_of("dataset", name, _NAMES)
    progress = on_progress or (lambda _: None)
    if name == "digits":
        progress("digits needs no preparation: its images come with scikit-learn.")
        return
    from zosam_jax.data import preparation

    preparation.cifar(name, data_dir, archive, progress)
