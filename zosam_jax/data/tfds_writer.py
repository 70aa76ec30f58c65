"""Writer of TFDS data sets, without TensorFlow.

TFDS's own builder of a set supplies its name, version, features, addresses and
checksums. Only the reading of the archives is replaced: TFDS uses TensorFlow for it,
the modules in `sets` use the standard library. The examples have the same keys, and so
the same order.
"""

import os
import pathlib
import re
import shlex
import shutil

import tensorflow_datasets as tfds

from zosam_jax.data import archives, files, tfds_reader
from zosam_jax.data.archives import DAMAGED, Archives, OnProgress, UrlInfo
from zosam_jax.data.dataset import DatasetError

# Size from which the check of a file takes more than a few seconds, in bytes.
_LARGE = 1 << 30


def prepare(
    name: str,
    known: Archives | None,
    data_dir: str | os.PathLike[str] | None,
    archive: str | os.PathLike[str] | None,
    on_progress: OnProgress,
) -> None:
    """Prepares a set of TFDS; see `zosam_jax.data.prepare`.

    A complete set is left unchanged. An incomplete one is replaced when its archives
    are available.

    Args:
      name: TFDS's name of a set, optionally with a configuration or version.
      known: How to read its archives. None: only TFDS itself can.
      data_dir: The TFDS data directory. None: TFDS's default.
      archive: The archive on this machine, or the folder of the archives. None: they
        are downloaded.
      on_progress: Called with lines of text.
    """
    builder = tfds_reader.builder(name, data_dir)
    tfds_reader.is_prepared(builder, name)
    try:
        found = tfds_reader.find(name, data_dir)
    except DatasetError:
        root = tfds_reader.root(data_dir)
        try:
            _write(name, known, root, archive, on_progress)
        except (OSError, *DAMAGED) as error:
            raise DatasetError(
                f"{name} could not be prepared in {root}: {files.said(error)}."
            ) from error
        builder = tfds_reader.builder(name, data_dir)
        found = tfds_reader.find(name, data_dir)
    on_progress(
        f"{name} is ready in {builder.data_path}: {len(found.train):,} training "
        f"and {len(found.test):,} test images."
    )


def _write(
    name: str,
    known: Archives | None,
    root: pathlib.Path,
    archive: str | os.PathLike[str] | None,
    on_progress: OnProgress,
) -> None:
    """Writes a data set from its archives, which are downloaded if they are not given.

    TFDS writes into a directory with another name and renames it at the end.
    """
    plain = re.split("[/:]", name, maxsplit=1)[0]
    builder = tfds_reader.builder(name, root)
    if known is None:
        if not tfds_reader.is_known(name):
            tfds_reader.find(name, root)  # It says what is wrong with the folder.
        raise DatasetError(_by_tfds(name, root, builder.data_path))
    folder = root / "downloads" / plain
    # In a directory without prepared sets, the builder is TFDS's own code, even if the
    # set in `root` is damaged.
    official = tfds_reader.builder(name, folder)
    all_infos = official.url_infos or {}
    infos = {url: all_infos[url] for url in known.urls(official)}
    if archive is None and known.manual is None:
        paths = {url: folder / _file(url, info) for url, info in infos.items()}
        for url, path in paths.items():
            _download(name, root, url, infos[url], path, on_progress)
    else:
        paths = _local(name, root, archive, infos, known.manual, on_progress)
    if builder.data_path.exists():
        shutil.rmtree(builder.data_path)
    builder = tfds_reader.builder(name, root, file_format=tfds_reader.FORMAT)
    # Set on the instance, not in a subclass, so that the written set has the name and
    # module of the official builder, and TFDS's registry of builders is unchanged.
    builder._split_generators = lambda _: known.read(builder, paths, on_progress)
    builder._log_download_bytes = builder._log_download_done = lambda: None
    tfds.disable_progress_bar()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    if archive is None and known.manual is None:
        for path in paths.values():
            path.unlink()


def _by_tfds(name: str, root: pathlib.Path, place: os.PathLike[str]) -> str:
    """Returns the instructions for a set that only TFDS itself can prepare."""
    program = (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}, data_dir={os.fspath(root)!r}, "
        f"file_format={tfds_reader.FORMAT!r}).download_and_prepare()"
    )
    return (
        f"{name} is not in {os.fspath(place)}, and only TFDS itself can prepare it, "
        "with TensorFlow. Run `pip install 'zosam-jax[tf]'`, then "
        f"`{shlex.join(['python', '-c', program])}`. Training needs no TensorFlow."
    )


def _file(url: str, info: UrlInfo) -> str:
    return info.filename or url.rpartition("/")[2]


def _download(
    name: str,
    root: pathlib.Path,
    url: str,
    wanted: UrlInfo,
    path: pathlib.Path,
    on_progress: OnProgress,
) -> None:
    """Downloads an archive; an error says how to continue or to work offline."""
    try:
        archives.fetch(url, wanted, path, on_progress)
    except archives.DownloadError as error:
        run = tfds_reader.command(name, root)
        raise DatasetError(
            f"{error} Run `{run}` again to go on. On a machine without network, copy "
            f"the file {path.name} from another one, and add --archive with the file, "
            "or with the folder of all files if there are several."
        ) from error


def _local(
    name: str,
    root: pathlib.Path,
    archive: str | os.PathLike[str] | None,
    infos: dict[str, UrlInfo],
    manual: str | None,
    on_progress: OnProgress,
) -> archives.Paths:
    """Returns the archives on this machine after verifying their checksums.

    Args:
      name: Name of the set.
      root: The TFDS data directory.
      archive: The archive, or the folder of the archives. None: TFDS's folder for
        manual downloads.
      infos: TFDS's record of each archive, by its address.
      manual: Where to get archives that cannot be downloaded.
      on_progress: Called with lines of text.
    """
    given = root / "downloads" / "manual"
    if archive is not None:
        given = files.place(f"archive={os.fspath(archive)}", archive)
    names = [_file(url, info) for url, info in infos.items()]
    if os.path.isdir(given) or len(names) > 1 or archive is None:
        paths = dict(zip(infos, [given / file for file in names], strict=True))
    else:
        paths = dict.fromkeys(infos, given)
    missing = [path for path in paths.values() if not os.path.isfile(path)]
    if missing and manual:
        raise DatasetError(
            f"{name} cannot be downloaded by a program. {manual} Put "
            f"{' and '.join(names)} into {given}, or set --archive to their folder, "
            f"and run `{tfds_reader.command(name, root)}` again. Not there: "
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
        shown = on_progress if size > _LARGE else _silent
        report = archives.every_tenth(shown, line, max(size, 1))
        archives.verify(path, _file(url, wanted), wanted, report)
    return paths


def _silent(line: str) -> None:
    del line
