"""ImageNet (ILSVRC2012) and Imagenette, its subset of ten classes."""

import io
import pathlib
import tarfile
from typing import IO, Any

from zosam_jax.data.archives import (
    Archives,
    Builder,
    Examples,
    OnProgress,
    Paths,
    Splits,
    check_label,
    files_of,
    reading,
)
from zosam_jax.data.dataset import DatasetError


def imagenet_urls(builder: Builder) -> tuple[str, ...]:
    """Returns the addresses of the training and validation archives."""
    return tuple(sorted(builder.url_infos))


def read_imagenet(builder: Builder, paths: Paths, on_progress: OnProgress) -> Splits:
    """Returns the examples of ImageNet.

    The training archive has a tar file for each class. The validation archive has
    images only; TFDS contains their labels in the order of the images' names.

    Args:
      builder: TFDS's builder of the set.
      paths: The archives, by their addresses.
      on_progress: Called with lines of text.
    """
    train, validation = (paths[url] for url in sorted(paths))
    tick = reading(on_progress, [train, validation])
    known = set(builder.info.features["label"].names)

    def training() -> Examples:
        for outer, content in files_of(train, tick):
            label = pathlib.PurePosixPath(outer).stem
            check_label(outer, label, known)
            # A stream within a stream: the inner archives are never unpacked to disk.
            with tarfile.open(fileobj=content, mode="r|") as tar:
                for member in tar:
                    if (file := tar.extractfile(member)) is not None:
                        yield _imagenet_example(member.name, file, label)

    def validating() -> Examples:
        labels = validation_labels()
        with tarfile.open(validation, mode="r:") as tar:
            names = sorted(member.name for member in tar if member.isfile())
        if len(names) != len(labels):
            raise DatasetError(
                f"{validation} has {len(names):,} images, not the {len(labels):,} for "
                "which TFDS has labels."
            )
        label = dict(zip(names, labels, strict=True))
        for name, file in files_of(validation, tick):
            yield _imagenet_example(name, file, label[name])

    return {"train": training(), "validation": validating()}


def validation_labels() -> list[str]:
    """Returns the classes of the validation images, in the order of their names."""
    import tensorflow_datasets as tfds

    file = "datasets/imagenet2012/validation_labels.txt"
    return tfds.core.tfds_path(file).read_text().split()


def _imagenet_example(
    path: str, file: IO[bytes], label: str
) -> tuple[str, dict[str, Any]]:
    name = pathlib.PurePosixPath(path).name
    image = io.BytesIO(file.read())
    return name, {"file_name": name, "image": image, "label": label}


def imagenette_urls(builder: Builder) -> tuple[str, ...]:
    """Returns the address of the archive of a configuration of Imagenette."""
    file = f"/{builder.builder_config.dirname}.tgz"
    return tuple(url for url in builder.url_infos if url.endswith(file))


def read_imagenette(builder: Builder, paths: Paths, on_progress: OnProgress) -> Splits:
    """Returns the examples of Imagenette: DIRECTORY/train/CLASS/IMAGE, and val.

    Args:
      builder: TFDS's builder of the set.
      paths: The archives, by their addresses.
      on_progress: Called with lines of text.
    """
    (path,) = paths.values()
    tick = reading(on_progress, [path, path])
    known = set(builder.info.features["label"].names)

    def split(folder: str) -> Examples:
        for name, file in files_of(path, tick):
            parts = ("", "", "", *pathlib.PurePosixPath(name).parts)
            part, label, image = parts[-3:]
            if part == folder and image.endswith(".JPEG"):
                check_label(name, label, known)
                yield image, {"image": io.BytesIO(file.read()), "label": label}

    return {"train": split("train"), "validation": split("val")}


IMAGENET = Archives(
    imagenet_urls,
    read_imagenet,
    "It needs an account: register at https://image-net.org/download-images and "
    "download the training and the validation images of ILSVRC2012 (138 GiB and 6 GiB; "
    "the disk should have room for them three times).",
)
IMAGENETTE = Archives(imagenette_urls, read_imagenette)
