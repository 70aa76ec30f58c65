"""The signals that end a run in good order."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list; the second one acts as it used to."""
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

    def note(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        restore()
        # Compilation cannot be interrupted, and is not answered for many seconds.
        sys.stderr.write("\nstopping after this step, or after the compilation...\n")

    for number in old:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()
