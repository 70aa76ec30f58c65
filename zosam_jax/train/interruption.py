"""The signals that end a run after the current step."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """Yields a list that collects SIGINT and SIGTERM. A second signal acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        restore()
        # A compilation cannot be interrupted and may take many seconds.
        sys.stderr.write("\nstopping after this step, or after the compilation...\n")

    for number in old:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
