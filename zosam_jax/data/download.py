"""Fetching a file whose checksum is known; an interrupted one is continued."""

import fcntl
import hashlib
import http.client
import os
import pathlib
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, BinaryIO

from zosam_jax.data.sources import DatasetError

Progress = Callable[[str], None]

_BLOCK = 1 << 20
_REPORTS = 10
_TIMEOUT = 60
_PAUSE = 1.0
_PARTIAL, _RANGE_NOT_SATISFIABLE = 206, 416


class Failed(DatasetError):
    """A file could not be fetched, or not all of it; what came is kept."""


class _Interrupted(Exception):
    """The connection ended before the file did."""


def every_tenth(progress: Progress, line: str, total: int) -> Callable[[int], None]:
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


def fetch(url: str, wanted: Any, path: pathlib.Path, progress: Progress) -> None:
    """Downloads a file to `path`, unless it is there already.

    It is written to `path` with `.part` after it, which is renamed once it is complete
    and has its checksum. What is in that file is not fetched again: it is continued
    with an HTTP range, by this call after a lost connection, by the next one else. A
    server that knows no ranges sends everything again.

    Args:
      url: Its address.
      wanted: TFDS's `UrlInfo`: size and SHA-256.
      path: Where it goes.
      progress: What takes a line at every tenth.

    Raises:
      Failed: The connection fails before anything more has come.
      DatasetError: What came has another checksum, and was removed; or another process
        is fetching it.
    """
    if path.exists() and sha256(path) == wanted.checksum:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    size = int(wanted.size)
    report = every_tenth(
        progress, f"{path.name}: {{done:,}} of {{total:,}} bytes", size
    )
    with part.open("ab") as sink:
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DatasetError(f"Another process is writing {part}.") from error
        try:
            _fill(url, size, sink, report)
        except Failed:
            if not sink.tell():
                part.unlink()
            raise
    try:
        verify(part, path.name, wanted)
    except DatasetError:
        part.unlink()
        raise
    part.replace(path)


def _fill(url: str, size: int, sink: BinaryIO, report: Callable[[int], None]) -> None:
    """Appends to a file what it lacks of `size` bytes."""
    while sink.tell() != size:
        before = sink.tell()
        try:
            _append(url, size, sink, report)
            return
        except (urllib.error.URLError, _Interrupted) as error:
            kept = sink.tell()
            if kept <= before:
                again = f" {kept:,} of {size:,} bytes are kept." if kept else ""
                raise Failed(
                    f"{url} could not be downloaded: {error}.{again}"
                ) from error
            time.sleep(_PAUSE)


def _append(url: str, size: int, sink: BinaryIO, report: Callable[[int], None]) -> None:
    """Appends to a file the rest of what is at an address, in one request.

    The answer says how long it is; else it should have the rest of `size` bytes.

    Raises:
      urllib.error.URLError: There is no answer.
      _Interrupted: The answer ends early.
    """
    start = sink.tell()
    request = urllib.request.Request(url)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        source = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE or not start:
            raise
        _empty(sink)  # what is there is longer than the file
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
        length = source.headers.get("Content-Length")
        left = size - sink.tell() if length is None else int(length)
        while block := _read(source):
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


def sha256(path: pathlib.Path, report: Callable[[int], None] | None = None) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits.

    Args:
      path: The file.
      report: Called with the number of bytes read, a MiB at a time.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            if report is not None:
                report(file.tell())
    return digest.hexdigest()


def verify(
    path: pathlib.Path,
    name: str,
    wanted: Any,
    report: Callable[[int], None] | None = None,
) -> None:
    """Raises `DatasetError` unless a file has the SHA-256 that TFDS knows.

    Args:
      path: The file.
      name: The name of what it should be.
      wanted: TFDS's `UrlInfo`.
      report: As in `sha256`.
    """
    found = sha256(path, report)
    if found != wanted.checksum:
        raise DatasetError(
            f"{path} is not {name}, or not all of it: it has "
            f"{os.path.getsize(path):,} bytes and the SHA-256 {found}, not "
            f"{int(wanted.size):,} bytes and {wanted.checksum}. Fetch it again."
        )
