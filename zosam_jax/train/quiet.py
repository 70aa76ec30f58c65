"""Silence for what Orbax and TensorStore print beside the errors that they raise.

A checkpoint that cannot be written or read raises an error, of which `checkpoint` makes
one sentence. Orbax also logs that error with its traceback in every thread, and
TensorStore's threads print another where their event loop has ended: hundreds of lines
above the one that counts.
"""

import asyncio
import functools
import logging
import sys
import traceback
from pathlib import Path
from types import TracebackType

_ASYNCIO = str(Path(asyncio.__file__).parent)


@functools.cache
def silence() -> None:
    """Drops Orbax's log records and TensorStore's late errors, from now on.

    Other records and other uncaught errors are shown as before. Further calls do
    nothing.
    """
    # Orbax logs through absl, whose logger is named so; the path tells them apart.
    logging.getLogger("absl").addFilter(lambda r: "orbax" not in Path(r.pathname).parts)
    show = sys.excepthook

    def hook(
        kind: type[BaseException],
        error: BaseException,
        trace: TracebackType | None,
    ) -> None:
        if not is_late(error, trace):
            show(kind, error, trace)

    sys.excepthook = hook


def is_late(error: BaseException, trace: TracebackType | None) -> bool:
    """Returns whether a thread outside Python called an event loop that has ended.

    An error of Python code has frames of other files than asyncio's.
    """
    frames = traceback.extract_tb(trace)
    return (
        isinstance(error, RuntimeError)
        and str(error) == "Event loop is closed"
        and all(frame.filename.startswith(_ASYNCIO) for frame in frames)
    )
