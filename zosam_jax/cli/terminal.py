"""What the commands write to the terminal: text, tables and one style of error."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from rich.console import Console, RenderableType

from zosam_jax.runs.errors import RunError


class OutputClosed(Exception):
    """The reader of standard output has gone, as in `zosam report | head -1`."""


def write(text: str) -> None:
    """Writes text to standard output at once.

    Raises:
      OutputClosed: Nobody reads it any more.
      RunError: It cannot be written, as to a full disk.
    """
    with guarded():
        sys.stdout.write(text)
        sys.stdout.flush()


def show(content: RenderableType, width: int | None = None) -> None:
    """Writes a table or text of Rich to standard output.

    Args:
      content: What to write; strings in it are markup of Rich.
      width: Width in characters. Default: that of the terminal.

    Raises:
      OutputClosed: As for `write`.
      RunError: As for `write`.
    """
    console = Console(file=sys.stdout, width=width)
    # Printed by Rich itself, it would end the process where nobody reads.
    with console.capture() as captured:
        console.print(content, highlight=False)
    write(captured.get())


def width() -> int | None:
    """Returns the width of the terminal, or None if standard output is none."""
    console = Console(file=sys.stdout)
    return console.width if console.is_terminal else None


def clear() -> None:
    """Clears the terminal; another output gets an empty line instead."""
    write("\n" if width() is None else "\x1b[H\x1b[2J")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Turns errors of standard output into those of `write`."""
    try:
        yield
    except BrokenPipeError as error:
        _close()
        raise OutputClosed from error
    except OSError as error:
        _close()
        raise RunError(
            f"standard output cannot be written: {error.strerror or error}. Send it "
            "somewhere else."
        ) from error


def _close() -> None:
    """Points standard output to nowhere: Python flushes it once more at its end."""
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def escape_unprintable() -> None:
    """Lets standard output and error escape what their encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drawn(draw: Callable[[Path], None], path: Path) -> str:
    """Draws a picture and returns a line for the user.

    A picture shows figures that are in files already: if it cannot be drawn, whatever
    the reason, the line says so, and the command goes on.

    Args:
      draw: Draws it to a file.
      path: The file.
    """
    try:
        draw(path)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return f"{path} could not be drawn: {type(error).__name__}: {reason}"
    return str(path)


def printable(text: str) -> str:
    r"""Returns text whose control characters are escaped.

    >>> printable("run\x1b[31m")
    'run\\x1b[31m'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


# Behind the name of an options field, names are those of a constructor.
_OPTIONS = re.compile(r"_options(=\[.*?\]|=\(.*?\))?: ")


def as_typed(message: str, fields: Collection[str]) -> str:
    """Returns an error message that names fields as flags, as they are typed.

    >>> as_typed("batch_size=0 must be an integer >= 1.", ["batch_size"])
    '--batch-size 0 must be an integer >= 1.'

    Args:
      message: A message that names fields as `field=value` or `field: text`.
      fields: The fields that are flags.
    """
    found = _OPTIONS.search(message)
    own, rest = (message, "") if found is None else _split(message, found.end())
    names = "|".join(sorted(map(re.escape, fields), key=len, reverse=True))
    if not names:
        return message

    def flag(match: re.Match[str]) -> str:
        joint = ":" if match[2] == ":" else " "
        return f"--{match[1].rstrip('_').replace('_', '-')}{joint}"

    return re.sub(rf"(?<![\w'\"/.-])({names})(= ?|:)", flag, own) + rest


def _split(text: str, at: int) -> tuple[str, str]:
    return text[:at], text[at:]
