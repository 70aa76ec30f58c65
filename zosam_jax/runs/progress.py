"""The display of a run's progress: a live bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text


class Status(NamedTuple):
    """The state of a run in progress.

    Attributes:
      step: Number of batches trained on.
      total_steps: Number of batches of the whole run.
      epoch: The epoch in progress or just finished, from 1.
      epochs: Number of epochs of the whole run.
      loss: Mean training loss of the epoch so far.
      accuracy: Training accuracy of the epoch so far, from 0 to 1.
      test_accuracy: Test accuracy of the last evaluation, or None before the first.
      sparsity: Fraction of the sparsified weights that are zero, from 0 to 1.
      images_per_second: Training throughput, without evaluation.
      seconds_left: Estimated time to the end of the run.
    """

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    test_accuracy: float | None
    sparsity: float
    images_per_second: float
    seconds_left: float


class Display(Protocol):
    """A display that the training loop reports to."""

    @property
    def interval(self) -> float:
        """Seconds between two calls of `update`."""
        ...

    def message(self, text: str) -> None:
        """Shows a line of text; one that ends in "..." is work that takes a while."""
        ...

    def update(self, status: Status) -> None:
        """Shows the state of the run within an epoch."""
        ...

    def epoch(self, status: Status) -> None:
        """Shows the state of the run at the end of an epoch."""
        ...

    def close(self) -> None:
        """Ends the display."""
        ...


class Silent:
    """A display that shows nothing."""

    interval = float("inf")

    def message(self, text: str) -> None:
        """Shows nothing."""
        del text

    def update(self, status: Status) -> None:
        """Shows nothing."""
        del status

    def epoch(self, status: Status) -> None:
        """Shows nothing."""
        del status

    def close(self) -> None:
        """Does nothing."""


class Shielded:
    """A display whose failure does not reach the training.

    A display fails where its reader has gone (`zosam train | head`, a lost connection)
    or where its output fills a disk. The failure is said once on standard error, and
    nothing is shown from then on.
    """

    def __init__(self, display: Display):
        """Shows nothing yet.

        Args:
          display: The display. One that is shielded already may be shielded again.
        """
        self._display = display

    @property
    def interval(self) -> float:
        """Seconds between two calls of `update`."""
        return self._display.interval

    def message(self, text: str) -> None:
        """Shows a line of text."""
        self._attempt(lambda: self._display.message(text))

    def update(self, status: Status) -> None:
        """Shows the state of the run within an epoch."""
        self._attempt(lambda: self._display.update(status))

    def epoch(self, status: Status) -> None:
        """Shows the state of the run at the end of an epoch."""
        self._attempt(lambda: self._display.epoch(status))

    def close(self) -> None:
        """Ends the display."""
        self._attempt(lambda: self._display.close())

    def _attempt(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:
            failed, self._display = self._display, Silent()
            # A live bar has taken over the terminal and gives it back.
            with contextlib.suppress(Exception):
                failed.close()
            _release(sys.stdout)
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(
                    f"progress is no longer shown ({type(error).__name__}: {error}); "
                    "the run goes on\n"
                )


def _release(stream: TextIO) -> None:
    """Points a stream that cannot be written to nowhere.

    Python flushes it once more at its end, and would then fail with a status of 120.
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class _Console(Console):
    """A console that raises where its reader has gone; Rich's ends the process."""

    def on_broken_pipe(self) -> None:
        """Raises the `BrokenPipeError` that is being handled."""
        raise


class Lines:
    """Plain lines: one per epoch, and one every `interval` seconds within an epoch."""

    def __init__(self, interval: float, console: Console | None = None):
        """Prints nothing yet.

        Args:
          interval: Seconds between two lines within an epoch.
          console: The console to print to. Default: standard output, unwrapped.
        """
        self.interval = interval
        self._console = console or _Console(file=sys.stdout, soft_wrap=True)

    def message(self, text: str) -> None:
        """Prints a line of text."""
        self._console.print(text, markup=False, highlight=False)

    def update(self, status: Status) -> None:
        """Prints a line."""
        self._line(f"  step {status.step}/{status.total_steps}", status)

    def epoch(self, status: Status) -> None:
        """Prints a line."""
        width = len(str(status.epochs))
        self._line(f"epoch {status.epoch:{width}}/{status.epochs}", status)

    def _line(self, where: str, status: Status) -> None:
        left = duration(status.seconds_left)
        self.message(f"{where}  {figures(status)}  {left} left")

    def close(self) -> None:
        """Does nothing."""


class _BarAboveFigures(Progress):
    """A bar as wide as the terminal, with the figures on a line below it."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.figures)


# Seconds between two changes of a clock.
_TICK = 1.0


class _Clock:
    """The seconds since its start on the last line of a terminal, until it stops."""

    def __init__(self, console: Console):
        self._console = console
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def _count(self) -> None:
        began = time.perf_counter()
        # Nobody would see an error of this thread, nor miss what it shows.
        with contextlib.suppress(OSError, ValueError):
            while not self._is_over.wait(_TICK):
                seconds = duration(time.perf_counter() - began)
                self._console.file.write(f"\r{seconds} ")
                self._console.file.flush()
            self._console.file.write("\r\x1b[2K")
            self._console.file.flush()

    def stop(self) -> None:
        """Removes the line."""
        self._is_over.set()
        self._thread.join()


class Bar:
    """A live bar on a terminal."""

    interval = 0.5

    def __init__(self, console: Console):
        """Shows nothing yet; the bar appears with the first status."""
        self._console = console
        self._bar: _BarAboveFigures | None = None
        self._task: TaskID | None = None
        self._clock: _Clock | None = None

    def message(self, text: str) -> None:
        """Prints a line of text above the bar.

        If it ends in "...", the seconds since then stand under it up to the next call.
        """
        self._stop_clock()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        if text.endswith("..."):
            self._clock = _Clock(self._console)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.stop()
            self._clock = None

    def update(self, status: Status) -> None:
        """Moves the bar."""
        self._stop_clock()
        name = f"epoch {status.epoch}/{status.epochs}"
        if self._bar is None:
            self._bar = self._new_bar()
            self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task(name, total=status.total_steps, left="")
        self._bar.figures = figures(status, self._console.width)
        self._bar.update(
            self._task,
            description=name,
            completed=status.step,
            left=duration(status.seconds_left),
            refresh=True,
        )

    def _new_bar(self) -> _BarAboveFigures:
        self._task = None
        return _BarAboveFigures(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[left]} left"),
            console=self._console,
            expand=True,
            # Otherwise a thread draws, whose errors nobody catches.
            auto_refresh=False,
        )

    def epoch(self, status: Status) -> None:
        """Moves the bar, and prints the figures of the epoch above it."""
        width = len(str(status.epochs))
        name = f"epoch {status.epoch:{width}}/{status.epochs}  "
        self.message(name + figures(status, self._console.width - len(name)))
        self.update(status)

    def close(self) -> None:
        """Stops the bar; the next status starts a new one."""
        self._stop_clock()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def display(log_every: float) -> Display:
    """Returns a bar if standard output is a terminal, else plain lines; shielded.

    Args:
      log_every: Seconds between two lines within an epoch. A bar ignores it.
    """
    console = _Console()
    return Shielded(Bar(console) if console.is_terminal else Lines(log_every))


def figures(status: Status, width: int = 80) -> str:
    """Returns the figures of a status as one line.

    Args:
      status: The status.
      width: Largest length in characters, up to which the last figures are left out.

    >>> figures(Status(30, 120, 2, 8, 1.25, 0.5, None, 0.9, 1234.0, 60.0))
    'loss 1.2500  train 50.00%  test      -  sparsity 90.00%  1,234 images/s'
    """
    test = status.test_accuracy
    parts = [
        f"loss {status.loss:.4f}",
        f"train {status.accuracy:6.2%}",
        "test      -" if test is None else f"test {test:6.2%}",
        f"sparsity {status.sparsity:.2%}",
        f"{status.images_per_second:,.0f} images/s",
    ]
    while len("  ".join(parts)) > width and len(parts) > 1:
        parts.pop()
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time in seconds as `m:ss` or `h:mm:ss`.

    >>> duration(59.6), duration(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
