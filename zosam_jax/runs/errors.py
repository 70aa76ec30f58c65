"""The errors that a user can act on, and what to do about those of the file system."""

import contextlib
import errno
import os
from collections.abc import Iterator


class RunError(RuntimeError):
    """A run cannot start or continue; the message says why and what would work.

    The command line prints the message without a traceback and exits with status 2.
    """


class Divergence(RunError):
    """The loss of a training is not finite."""


class LostProcess(RunError):
    """Another process of the run has died or cannot be reached."""


class PathError(RunError, ValueError):
    """A path that cannot be used, whatever lies there."""


_FULL = "Make room on that disk."
_FORBIDDEN = (
    "Change the permissions of it and of its folder (a file may be immutable: `lsattr` "
    "tells), or choose another place."
)
_WAYS_OUT = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: "Choose a place on a disk that can be written.",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EISDIR: "Move that folder away: a file belongs there.",
    errno.ENOTDIR: "A part of the path is a file: choose another place.",
    errno.EEXIST: "Move what is there away, or choose another place.",
    errno.ENOENT: "Create what is missing, or choose another place.",
    errno.ELOOP: "Its links lead in a circle: delete one, or choose another place.",
}


def sentence(error: OSError, path: str | os.PathLike[str], action: str) -> str:
    """Returns what failed, where and why, and a way out.

    Args:
      error: The error.
      path: The path in question if the error does not tell one.
      action: What failed, as "written" or "read".

    >>> full = OSError(errno.ENOSPC, "No space left on device")
    >>> sentence(full, "runs/a", "written")
    'runs/a cannot be written: no space left on device. Make room on that disk.'
    """
    place = os.fsdecode(path if error.filename is None else error.filename)
    reason = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    reason = reason[:1].lower() + reason[1:]
    way_out = _WAYS_OUT.get(error.errno or 0, "Choose another place.")
    return f"{place} cannot be {action}: {reason}. {way_out}"


@contextlib.contextmanager
def explained(path: str | os.PathLike[str], action: str = "written") -> Iterator[None]:
    """Makes errors of the file system a `RunError` with a path and a way out.

    Args:
      path: The path in question if an error does not tell one.
      action: What is being done, as "written" or "read".
    """
    try:
        yield
    except OSError as error:
        raise RunError(sentence(error, path, action)) from error
