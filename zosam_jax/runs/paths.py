"""Paths as a user types them, made absolute.

A configuration stores the paths of its data, of its teacher and of the weights that it
starts from absolute, so that it means the same from every working directory. If they
move, the path alone is no other configuration: `zosam_jax.runs.folder.check` compares
what lies there instead.
"""

import errno
import os
from pathlib import Path

from zosam_jax.runs.errors import PathError, sentence

# Data sets that are named by a path.
_KINDS = ("folder", "masks", "npz", "text")


def absolute(path: str | os.PathLike[str], name: str) -> Path:
    """Returns the absolute path, with `~` expanded and links followed.

    Nothing needs to lie there.

    Args:
      path: The path.
      name: What the user calls it, as "--out".

    >>> absolute("/tmp/../runs", "--out").as_posix()
    '/runs'

    Raises:
      PathError: No file or folder can have this path. It is a `RunError`, and a
        `ValueError` for configurations.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise PathError(f"{name}={text!r} holds a NUL character. Leave it out.")
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        user = text.split("/", 1)[0]
        raise PathError(
            f"{name}={text!r}: {user} is the home of a user that this machine does not "
            "have. Give the whole path."
        ) from error
    try:
        found = found.resolve()
    except FileNotFoundError as error:
        raise PathError(
            f"{name}={text!r} is relative to the working directory, which has been "
            "deleted. Change to another one, or give a path from / on."
        ) from error
    except (OSError, RuntimeError) as error:
        raise PathError(f"{name}={text!r} cannot be used: {error}.") from error
    try:
        found.lstat()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise PathError(f"{name}: {sentence(error, found, 'used')}") from error
    return found


def dataset(name: str) -> str:
    """Returns the name of a data set with the path in it, if any, absolute.

    >>> dataset("cifar10"), dataset("folder:/pets/../photos")
    ('cifar10', 'folder:/photos')

    Raises:
      PathError: As for `absolute`.
    """
    kind, _, path = name.partition(":")
    if kind not in _KINDS or not path:
        return name
    return f"{kind}:{absolute(path, f'dataset={kind}')}"


def in_name(name: str) -> bool:
    """Whether the name of a data set has a path in it.

    >>> in_name("folder:/photos"), in_name("cifar10")
    (True, False)
    """
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind in _KINDS


def is_moved(old: object, new: object) -> bool:
    """Whether two names of data sets differ in nothing but a path.

    >>> is_moved("folder:/a/pets", "folder:/b/pets"), is_moved("digits", "pydoc")
    (True, False)
    """
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    kinds = {name.partition(":")[0] for name in (old, new)}
    return len(kinds) == 1 and in_name(old) and in_name(new)
