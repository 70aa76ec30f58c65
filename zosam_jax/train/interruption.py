"""What ends a session before the end of its run: signals and a time limit."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator
from types import FrameType

# Ctrl-C and `kill`, which mean "at once" if they are sent twice.
_URGENT = (signal.SIGINT, signal.SIGTERM)
# A lost connection, which the kernel and the shell may both report, and the warning
# that Slurm sends before its time limit (`sbatch --signal=USR1@60`).
_WARNINGS = (signal.SIGHUP, signal.SIGUSR1)


EARLY = ("interrupted", "out of time")
"""How results say that a signal or the time limit ended a call early."""


class Stop:
    """Whether a session must end, and why.

    Attributes:
      signals: The signals that were received.
      deadline: Time of `time.monotonic` at which the session ends; infinite for none.
    """

    signals: list[int]
    deadline: float

    def __init__(self, minutes: float | None = None):
        """Starts the clock.

        Args:
          minutes: The time limit. None: no limit.
        """
        self.signals = []
        self.deadline = float("inf")
        if minutes is not None:
            self.deadline = time.monotonic() + 60 * minutes

    @property
    def is_over(self) -> bool:
        """Whether the time limit is over."""
        return time.monotonic() >= self.deadline


@contextlib.contextmanager
def interruptions(stop: Stop, left: Collection[int] = ()) -> Iterator[Stop]:
    """Collects signals in `stop` and yields it.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 are collected. After a first SIGINT or SIGTERM,
    a second one acts at once.

    Args:
      stop: What takes the signals.
      left: Signals that somebody else collects.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    found = {number: signal.getsignal(number) for number in (*_URGENT, *_WARNINGS)}
    # `nohup` ignores SIGHUP so that a lost connection ends nothing.
    ignored = [n for n in _WARNINGS if found[n] == signal.SIG_IGN]
    kept = {*ignored, *left}
    replaced = {n: handler for n, handler in found.items() if n not in kept}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if not stop.signals:
            # A compilation cannot be interrupted and may take many seconds. The
            # terminal may be what is lost, so the line may have no reader.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(
                    "\nstopping after this step, or after the compilation...\n"
                )
        stop.signals.append(number)
        if number in _URGENT:
            for urgent in replaced.keys() & _URGENT:
                signal.signal(urgent, replaced[urgent])

    for number in replaced:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
