"""Data sets, their preparation, and augmentation on the device.

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
from zosam_jax.data.streaming import Streamed as Streamed

_NAMES = ("digits", "cifar10", "cifar100", "imagenette", "oxford_iiit_pet")
_NAMES += ("imagenet2012", "pydoc")
_FORMS = ("folder:PATH", "text:PATH")


def names() -> tuple[str, ...]:
    """Returns the names of sets that need no TensorFlow at any point.

    `load` also takes any other image classification set of TFDS.

    >>> names()[:3]
    ('digits', 'cifar10', 'cifar100')
    """
    return _NAMES


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> Dataset | Streamed:
    """Returns a data set by name.

    Images of one size up to 96 x 96 that take up to 2 GiB are decoded into host memory,
    a `Dataset`; others are a `Streamed` set, which decodes them as they are needed.

    Args:
      name: One of

        - `digits`, in scikit-learn's wheel;
        - `cifar10`, `imagenette/320px-v2` or any image classification set of TFDS, in
          the TFDS data directory as `array_record`; `tfds_sets.find` says which splits
          are taken;
        - `folder:PATH`, images in a folder for each class: see `folders.find`;
        - `pydoc`, the documentation in Python, and `text:PATH`, any file, as sequences
          of 128 bytes: see `text.sequences`.
      data_dir: The TFDS data directory. Default: `TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`. Only TFDS's sets use it.
      image_size: Side of a streamed set's images, in pixels. Default: 224, or the
        images' own where all have the same up to that. Sets in memory do not use it.

    Raises:
      ValueError: `name` is unknown.
      DatasetError: The set is missing, incomplete or damaged; the message says where it
        was looked for and which command prepares it.
    """
    if image_size is not None:
        _check.whole("image_size", image_size)
    kind, _, path = name.partition(":")
    if name == "digits":
        return sources.digits()
    if name == "pydoc" or kind == "text":
        from zosam_jax.data import text

        return text.pydoc() if name == "pydoc" else text.file(path)
    from zosam_jax.data import assembly, folders, streaming

    if kind == "folder":
        found = folders.find(path)
    else:
        from zosam_jax.data import tfds_sets

        tfds_sets.check_name(name, data_dir, (*_NAMES, *_FORMS))
        found = tfds_sets.find(name, data_dir)
    if assembly.fits(found):
        return assembly.in_memory(found)
    return streaming.of(found, image_size)


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Makes a data set ready for `load`, without TensorFlow.

    A download that was interrupted is continued by the next call. Encoded images are
    kept as they are.

    Args:
      name: One of `names()`, `folder:PATH` or `text:PATH`. What needs no preparation is
        checked. `imagenet2012` must be downloaded by hand; of other sets of TFDS the
        error says the command that prepares them with TensorFlow.
      data_dir: The TFDS data directory. Default: `TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`.
      archive: A local copy of the data set's archive (the file that the download would
        fetch), or the folder of it, or of them where there are several. Default: they
        are downloaded, or those in DATA_DIR/downloads/manual are read. For
        `folder:PATH` any tar or zip, which is unpacked there.
      on_progress: Called with a line of text at every tenth of the download and of
        the writing, and at the end with what is ready and where. Default: silent.

    Raises:
      ValueError: `name` is unknown.
      DatasetError: The archive cannot be fetched, is not the right file, or cannot be
        written. Nothing is left where `load` would find it.
    """
    progress = on_progress or (lambda _: None)
    kind, _, path = name.partition(":")
    if name in ("digits", "pydoc") or kind == "text":
        found = load(name)
        progress(
            f"{name} needs no preparation: {found.num_train:,} training and "
            f"{found.num_test:,} test examples are read from where they are."
        )
        return
    from zosam_jax.data import preparation, tfds_sets

    if kind == "folder":
        preparation.folder(path, archive, progress)
        return
    tfds_sets.check_name(name, data_dir, (*_NAMES, *_FORMS))
    preparation.tfds_set(name, data_dir, archive, progress)
