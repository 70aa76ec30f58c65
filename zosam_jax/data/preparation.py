"""Writes image sets as ordinary TFDS data sets, without TensorFlow.

TFDS's own builder of a set supplies its name, version, features, addresses and
checksums. Only the reading is replaced: TFDS reads the archives with TensorFlow, this
does so with the standard library. The keys of the examples are TFDS's own, and so is
the order that follows from them.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from zosam_jax.data import archives, download, folders, tfds_sets
from zosam_jax.data.download import Progress
from zosam_jax.data.sources import DatasetError

# A file that takes more than a few seconds to check, in bytes.
_LONG = 1 << 30
_TAR_ERRORS = (tarfile.TarError, shutil.ReadError, EOFError, zlib.error)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a set is prepared.

    Attributes:
      urls: The addresses of its archives, from TFDS's builder.
      layout: What is in them; see `archives`.
      manual: Where to get archives that cannot be downloaded; None where they can.
    """

    urls: Callable[[Any], tuple[str, ...]]
    layout: Callable[[Any, archives.Paths, Progress], archives.Splits]
    manual: str | None = None


_CIFAR = Recipe(archives.cifar_urls, archives.cifar)
_RECIPES = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "imagenette": Recipe(archives.imagenette_urls, archives.imagenette),
    "oxford_iiit_pet": Recipe(archives.pet_urls, archives.pets),
    "imagenet2012": Recipe(
        archives.imagenet_urls,
        archives.imagenet,
        "It needs an account: register at https://image-net.org/download-images and "
        "download the training and the validation images of ILSVRC2012 (138 GiB and 6 "
        "GiB; the disk should have room for them three times).",
    ),
}


def tfds_set(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    archive: str | os.PathLike[str] | None,
    progress: Progress,
) -> None:
    """Prepares a set of TFDS; see `zosam_jax.data.prepare`.

    A set that is there already and complete is left alone; an incomplete one is
    replaced, once the archives are at hand.
    """
    builder = tfds_sets.builder(name, data_dir)
    tfds_sets.is_there(builder, name)
    try:
        found = tfds_sets.find(name, data_dir)
    except DatasetError:
        root = tfds_sets.root(data_dir)
        try:
            _write(name, root, archive, progress)
        except (OSError, *_TAR_ERRORS) as error:
            raise DatasetError(
                f"{name} could not be prepared in {root}: {error}"
            ) from error
        builder = tfds_sets.builder(name, data_dir)
        found = tfds_sets.find(name, data_dir)
    progress(
        f"{name} is ready in {builder.data_path}: {len(found.train):,} training "
        f"and {len(found.test):,} test images."
    )


def _write(
    name: str,
    root: pathlib.Path,
    archive: str | os.PathLike[str] | None,
    progress: Progress,
) -> None:
    """Writes a data set from its archives, which are downloaded where not given.

    TFDS writes into a directory of another name, which it renames at the end.
    """
    plain = re.split("[/:]", name, maxsplit=1)[0]
    builder = tfds_sets.builder(name, root)
    if plain not in _RECIPES:
        raise DatasetError(_by_tfds(name, root, builder.data_path))
    recipe = _RECIPES[plain]
    folder = root / "downloads" / plain
    # Where nothing is prepared: TFDS's own code, whatever is damaged in `root`.
    official = tfds_sets.builder(name, folder)
    known = official.url_infos or {}
    infos = {url: known[url] for url in recipe.urls(official)}
    if archive is None and recipe.manual is None:
        paths = {url: folder / _file(url, info) for url, info in infos.items()}
        for url, path in paths.items():
            _download(name, root, url, infos[url], path, progress)
    else:
        paths = _local(name, root, archive, infos, recipe.manual, progress)
    if builder.data_path.exists():
        shutil.rmtree(builder.data_path)
    builder = tfds_sets.builder(name, root, file_format=tfds_sets.FORMAT)
    # On the instance, not in a subclass: the set keeps the official builder's name and
    # module, and TFDS's registry of builders stays as it was.
    builder._split_generators = lambda _: recipe.layout(builder, paths, progress)
    builder._log_download_bytes = builder._log_download_done = lambda: None
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    if archive is None and recipe.manual is None:
        for path in paths.values():
            path.unlink()


def _by_tfds(name: str, root: pathlib.Path, place: os.PathLike[str]) -> str:
    """Returns what to do about a set that only TFDS itself can prepare."""
    program = (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}, data_dir={os.fspath(root)!r}, "
        f"file_format={tfds_sets.FORMAT!r}).download_and_prepare()"
    )
    return (
        f"{name} is not in {os.fspath(place)}, and only TFDS itself can prepare it, "
        "with TensorFlow. Run `pip install 'zosam-jax[tf]'`, then "
        f"`{shlex.join(['python', '-c', program])}`. Training needs no TensorFlow."
    )


def _file(url: str, info: Any) -> str:
    return info.filename or url.rpartition("/")[2]


def _download(
    name: str,
    root: pathlib.Path,
    url: str,
    wanted: Any,
    path: pathlib.Path,
    progress: Progress,
) -> None:
    try:
        download.fetch(url, wanted, path, progress)
    except download.Failed as error:
        run = tfds_sets.command(name, root)
        raise DatasetError(
            f"{error} Run `{run}` again to go on. On a machine without network, bring "
            f"the file {path.name} from another one, and add --archive with the file, "
            "or with the folder of all files where there are several."
        ) from error


def _local(
    name: str,
    root: pathlib.Path,
    archive: str | os.PathLike[str] | None,
    infos: dict[str, Any],
    manual: str | None,
    progress: Progress,
) -> archives.Paths:
    """Returns the archives on this machine, verified.

    Args:
      name: The set's name.
      root: The TFDS data directory.
      archive: The archive, or the folder of the archives. None: TFDS's own folder for
        manual downloads.
      infos: What TFDS knows of each archive, by its address.
      manual: Where to get them, if they cannot be downloaded.
      progress: What takes lines of text.
    """
    given = pathlib.Path(archive or root / "downloads" / "manual").expanduser()
    names = [_file(url, info) for url, info in infos.items()]
    if given.is_dir() or len(names) > 1 or archive is None:
        paths = dict(zip(infos, [given / file for file in names], strict=True))
    else:
        paths = dict.fromkeys(infos, given)
    missing = [path for path in paths.values() if not path.is_file()]
    if missing and manual:
        raise DatasetError(
            f"{name} cannot be downloaded by a program. {manual} Put "
            f"{' and '.join(names)} into {given}, or name their folder with --archive, "
            f"and run `{tfds_sets.command(name, root)}` again. Not there: "
            f"{', '.join(path.name for path in missing)}."
        )
    if missing:
        raise DatasetError(
            f"archive={archive}: {missing[0]} is not a file. Get it from "
            f"{' and '.join(infos)}."
        )
    for url, path in paths.items():
        wanted, size = infos[url], path.stat().st_size
        line = f"{path.name}: {{done:,}} of {{total:,}} bytes checked"
        large = size > 1 << 30
        report = download.every_tenth(
            progress if large else _silent, line, max(size, 1)
        )
        download.verify(path, _file(url, wanted), wanted, report)
    return paths


def _silent(line: str) -> None:
    del line


def folder(
    path: str, archive: str | os.PathLike[str] | None, progress: Progress
) -> None:
    """Checks a folder of images, unpacked from an archive where one is given.

    Args:
      path: The folder. With an archive it must not exist yet, or be empty.
      archive: A tar or zip of the folder's content, perhaps in one folder.
      progress: What takes lines of text.

    Raises:
      DatasetError: The archive cannot be unpacked, or the folder is not such as
        `folders.find` reads.
    """
    root = pathlib.Path(path).expanduser()
    if archive is not None:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DatasetError(f"{root} is there already; {archive} was not unpacked.")
        progress(f"unpacking {archive} into {root}")
        try:
            _unpack(pathlib.Path(archive).expanduser(), root)
        except (OSError, ValueError, *_TAR_ERRORS) as error:
            raise DatasetError(
                f"{archive} could not be unpacked into {root}: {error}."
            ) from error
    found = folders.find(path)
    progress(
        f"{found.name} is ready: {len(found.train):,} training and "
        f"{len(found.test):,} test images of {len(found.class_names)} classes."
    )


def _unpack(archive: pathlib.Path, root: pathlib.Path) -> None:
    """Unpacks into a folder of another name, and renames it at the end."""
    part = root.with_name(f"{root.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        if tarfile.is_tarfile(archive):
            shutil.unpack_archive(archive, part, filter="data")
        else:
            shutil.unpack_archive(archive, part)
        inner, content = part, list(part.iterdir())
        # A folder around all, which is not itself the only class.
        if len(content) == 1 and any(f.is_dir() for f in content[0].iterdir()):
            inner = content[0]
        if root.exists():
            root.rmdir()
        inner.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
