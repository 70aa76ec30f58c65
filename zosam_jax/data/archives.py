"""Archives of data sets: resumable downloads, checksums, and reading tar files."""

import fcntl
import hashlib
import http.client
import lzma
import os
import pathlib
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, NamedTuple, Self

from zosam_jax.data import files
from zosam_jax.data.dataset import DatasetError

OnProgress = Callable[[str], None]
"""A function that is called with lines of text as a long operation proceeds."""

Report = Callable[[int], None]
"""A function that is called with an amount of work, as a number of bytes."""

Builder = Any
"""TFDS's builder of a data set, `tensorflow_datasets.core.DatasetBuilder`."""

UrlInfo = Any
"""TFDS's record of a file: its size in bytes, SHA-256 (`checksum`) and file name."""

Paths = dict[str, pathlib.Path]
"""The archives of a set on this machine, by their addresses."""

Examples = Iterator[tuple[str | int, dict[str, Any]]]
"""The keys and features of examples, as TFDS's own reader yields them."""

Splits = dict[str, Examples]
"""The examples of each split."""

DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
)
"""Exceptions for archives that are damaged, or are not archives."""

_BLOCK = 1 << 20
_REPORTS = 10
_TIMEOUT = 60
_PAUSE = 1.0
_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416


class Archives(NamedTuple):
    """How a set of TFDS is prepared from its archives without TensorFlow.

    Encoded images are passed on unchanged. (TFDS's reader re-encodes a few that its own
    decoder rejects: 12 of the pets, and 22 CMYK images and a PNG of ImageNet. Pillow
    decodes them.)

    Attributes:
      urls: Returns the addresses of the archives, from TFDS's builder.
      read: `(builder, paths, on_progress)`; returns the examples of each split, with
        the keys and features of TFDS's own reader.
      manual: Where to get archives that a program cannot download; None: it can.
    """

    urls: Callable[[Builder], tuple[str, ...]]
    read: Callable[[Builder, Paths, OnProgress], Splits]
    manual: str | None = None


class DownloadError(DatasetError):
    """A file could not be downloaded completely; the part that arrived is kept."""


class _Interrupted(Exception):
    """The connection ended before the file did."""


def every_tenth(on_progress: OnProgress, line: str, total: int) -> Report:
    """Returns a function that takes the amount done and reports every tenth.

    Args:
      on_progress: Called with the lines.
      line: Format of a line, with the fields `done` and `total`.
      total: The amount at the end.

    >>> report = every_tenth(print, "{done} of {total}", 20)
    >>> report(1)
    >>> report(5)
    5 of 20
    """
    reported = 0

    def report(done: int) -> None:
        nonlocal reported
        tenths = _REPORTS * done // total
        if tenths > reported:
            reported = tenths
            on_progress(line.format(done=done, total=total))

    return report


def fetch(
    url: str, wanted: UrlInfo, path: pathlib.Path, on_progress: OnProgress
) -> None:
    """Downloads a file, unless it is there already.

    The file is written to `path` + ".part", which is renamed when it is complete and
    has the right checksum. An incomplete file is continued by an HTTP range request:
    after a lost connection by this call, otherwise by the next one. A server without
    range requests sends the whole file again.

    Args:
      url: Address of the file.
      wanted: Its size and SHA-256.
      path: Where to put it.
      on_progress: Called with a line at every tenth of the download.

    Raises:
      DownloadError: The connection failed before more bytes arrived.
      DatasetError: The file has another checksum or is longer than it should be, and
        was removed; or another process is downloading it.
    """
    if path.exists() and sha256(path) == wanted.checksum:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    size = int(wanted.size)
    report = every_tenth(
        on_progress, f"{path.name}: {{done:,}} of {{total:,}} bytes", size
    )
    # The lock is on the open file: it ends with the process, however that ends.
    with part.open("ab") as sink:
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(f"Another process is writing {part}.") from error
        try:
            _fill(url, size, sink, report)
        except DownloadError:
            if not sink.tell():
                part.unlink()
            raise
        except DatasetError:
            part.unlink()
            raise
    try:
        verify(part, path.name, wanted)
    except DatasetError:
        part.unlink()
        raise
    part.replace(path)


def _fill(url: str, size: int, sink: BinaryIO, report: Report) -> None:
    """Downloads the missing bytes of a file of `size` bytes, in several requests."""
    while sink.tell() != size:
        before = sink.tell()
        try:
            _append(url, size, sink, report)
            return
        except (urllib.error.URLError, _Interrupted) as error:
            kept = sink.tell()
            if kept <= before:
                again = f" {kept:,} of {size:,} bytes are kept." if kept else ""
                raise DownloadError(
                    f"{url} could not be downloaded: {error}.{again}"
                ) from error
            time.sleep(_PAUSE)


def _append(url: str, size: int, sink: BinaryIO, report: Report) -> None:
    """Downloads the missing bytes of a file in one request.

    Args:
      url: Address of the file.
      size: Its size in bytes, used if the response has no length.
      sink: The incomplete file.
      report: Called with the number of bytes in the file.

    Raises:
      urllib.error.URLError: There is no response.
      _Interrupted: The response ended early.
      DatasetError: The response is longer than the file.
    """
    start = sink.tell()
    request = urllib.request.Request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        source = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        # A part as long as the file, or longer, leaves no range to ask for.
        if error.code != _RANGE_NOT_SATISFIABLE or not start:
            raise
        _empty(sink)  # the incomplete file is longer than the complete one
        return _append(url, size, sink, report)
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Interrupted(error) from error
    with source:
        continues = f"bytes {start}-"
        if not (
            source.status == _PARTIAL
            and source.headers.get("Content-Range", "").startswith(continues)
        ):
            _empty(sink)
        # A lost connection looks like an end of the file, unless the length is known.
        length = source.headers.get("Content-Length")
        left = size - sink.tell() if length is None else int(length)
        while block := _read(source):
            # Whatever a server sends, the disk takes no more than the published size.
            if sink.tell() + len(block) > size:
                raise DatasetError(
                    f"{url} sends more than the {size:,} bytes that the file should "
                    "have. What arrived was removed."
                )
            sink.write(block)
            report(sink.tell())
            left -= len(block)
        sink.flush()
        if left > 0:
            raise _Interrupted(f"the connection ended {left:,} bytes early")
    return None


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _read(source: Any) -> bytes:
    try:
        return source.read(_BLOCK)
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(error) from error


def sha256(path: pathlib.Path, report: Report | None = None) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits.

    Args:
      path: The file.
      report: Called with the number of bytes read, after each MiB.
    """
    digest = hashlib.sha256()
    with files.open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if report is not None:
                report(file.tell())
    return digest.hexdigest()


def verify(
    path: pathlib.Path,
    name: str,
    wanted: UrlInfo,
    report: Report | None = None,
) -> None:
    """Raises `DatasetError` unless a file has the SHA-256 in TFDS's record.

    Args:
      path: The file.
      name: Name of the published file.
      wanted: Its size and SHA-256.
      report: As in `sha256`.
    """
    found = sha256(path, report)
    if found != wanted.checksum:
        raise DatasetError(
            f"{path} is not {name}, or is incomplete: it has "
            f"{os.path.getsize(path):,} bytes and the SHA-256 {found}, not "
            f"{int(wanted.size):,} bytes and {wanted.checksum}. Fetch it again."
        )


def reading(on_progress: OnProgress, paths: list[pathlib.Path]) -> Report:
    """Returns a function that reports the progress of reading archives.

    Args:
      on_progress: Called with a line at every tenth.
      paths: The archives. One that is read twice is listed twice.

    Returns:
      A function of the number of bytes read since its last call.
    """
    total = sum(path.stat().st_size for path in paths)
    line = "archives read: {done:,} of {total:,} bytes"
    report = every_tenth(on_progress, line, total)
    done = 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        report(done)

    return tick


def files_of(
    path: pathlib.Path, tick: Report | None = None
) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields the name and content of each file in a tar archive, in one pass.

    The content must be read before the next file is requested.

    Args:
      path: The archive, compressed or not.
      tick: Called with the number of bytes read since its last call.
    """
    with path.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
        before = 0
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                yield member.name, file
                if tick is not None:
                    tick(raw.tell() - before)
                before = raw.tell()
        if tick is not None:  # bytes after the last file
            tick(path.stat().st_size - before)


def check_label(name: str, label: str, known: set[str]) -> None:
    """Raises `DatasetError` if the class of a file is not one of the known ones.

    Args:
      name: The file.
      label: Its class.
      known: The classes of the set.
    """
    if label not in known:
        raise DatasetError(
            f"{name} is of the class {label!r}, which is not among TFDS's classes."
        )


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks the files and folders of a tar or zip archive into an empty folder.

    Args:
      archive: The archive, of a source that need not be trusted.
      folder: The folder, which exists.

    Raises:
      ValueError: The archive has a link, a device or an encrypted file, a name that
        leads out of the folder, or more bytes than the disk has room for.
      OSError: A file cannot be read or written.
      One of DAMAGED: The archive is damaged, or neither tar nor zip.
    """
    # A full disk would stop other programs too, and it shows only at the end.
    room = shutil.disk_usage(folder).free
    with files.open_regular(archive) as file:
        if zipfile.is_zipfile(file):
            try:
                packed = zipfile.ZipFile(file)
            except RuntimeError as error:  # of a later version of the format
                raise ValueError(str(error)) from error
            for info in packed.infolist():
                room = _allowed(info.filename, _kind(info), info.file_size, room)
            for info in packed.infolist():
                packed.extract(info, folder)
            return
        file.seek(0)
        with tarfile.open(fileobj=file, tarinfo=_Member) as tar:
            for member in tar:
                is_plain = member.isreg() or member.isdir()
                kind = "" if is_plain else "a link or device"
                room = _allowed(member.name, kind, member.size, room)
                tar.extract(member, folder, filter="data")


class _Member(tarfile.TarInfo):
    """A member of a tar whose long name or attributes do not fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Returns the member of a header; a header for another one has a limit."""
        member = super().frombuf(buf, encoding, errors)
        # These headers stand before a file, and `tarfile` reads them whole.
        if member.type in _EXTENSIONS and not 0 <= member.size <= _BLOCK:
            raise tarfile.HeaderError(f"a header of {member.size:,} bytes")
        return member


_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _kind(info: zipfile.ZipInfo) -> str:
    """Returns what a member of a zip archive is, if it is not unpacked."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or device"
    if info.flag_bits & _SECRET:
        return "encrypted"
    return "" if info.compress_type in _COMPRESSIONS else "of an unknown compression"


# Encrypted, a patch of another file, strongly encrypted.
_SECRET = 0x01 | 0x20 | 0x40
_COMPRESSIONS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)


def _allowed(name: str, kind: str, size: int, room: int) -> int:
    """Returns the room that a member of an archive leaves.

    Args:
      name: Name of the member.
      kind: What it is, if that is not unpacked; otherwise "".
      size: Its size in bytes.
      room: Bytes that are free.

    Raises:
      ValueError: It is not unpacked.
    """
    if kind:
        raise ValueError(f"{name} is {kind}; only files and folders are unpacked")
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name} leads out of the folder")
    if size > room:
        raise ValueError(f"the disk has no room for {name}, of {size:,} bytes")
    return room - max(size, 0)
