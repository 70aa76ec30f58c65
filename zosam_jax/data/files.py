"""Files that others supply: only regular ones are opened, and only a bounded part read.

Opening a FIFO waits for a writer, and a device such as /dev/zero has no end.
"""

import errno
import os
import pathlib
import stat
import tokenize
from typing import BinaryIO

from zosam_jax.data.dataset import DatasetError

PathLike = str | os.PathLike[str]

SHOWN = 160
"""Number of characters of a message or name from elsewhere that are shown."""

NOT_AN_ARRAY = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    OverflowError,
    TypeError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
"""What NumPy raises for a file that is no array, or has a damaged header."""

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
    stat.S_IFDIR: "a folder",
}


def place(name: str, path: PathLike) -> pathlib.Path:
    """Returns a path that a user typed, with `~` replaced by the home directory.

    Args:
      name: What the path is, for the error message: `folder:~/photos`.
      path: The path.

    Raises:
      DatasetError: The path has a NUL byte, or names an unknown user.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise DatasetError(f"{name!r} has a NUL byte, which no path can have.")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise DatasetError(f"{name}: there is no such user. Write the path.") from error


def open_regular(path: PathLike) -> BinaryIO:
    """Returns a regular file, open for reading, without waiting for anything.

    Raises:
      OSError: The file cannot be opened, or is a folder, FIFO, socket or device. The
        attribute `strerror` says which.

    >>> open_regular("/dev/null")
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device and not a regular file: '/dev/null'
    """
    # The kind is asked of the open file: the path could name another one by then.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        reason = f"it is {kind} and not a regular file"
        raise OSError(errno.EINVAL, reason, os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read(path: PathLike, most: int) -> bytes:
    """Returns the content of a regular file.

    Args:
      path: The file.
      most: Largest size that is read, in bytes.

    Raises:
      OSError: As `open_regular`, or the file is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            reason = f"it has {size:,} bytes, and at most {most:,} are read"
            raise OSError(errno.EFBIG, reason, os.fspath(path))
        return file.read(most)


def said(error: BaseException) -> str:
    r"""Returns the first line of an exception, shortened: TFDS adds lists.

    >>> said(ValueError("no such set.\nAvailable datasets:\n\t- abstract_reasoning"))
    'no such set.'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    is_short = len(line) <= SHOWN
    return line if is_short else f"{line[:SHOWN].rstrip()} ..."
