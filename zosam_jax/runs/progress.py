"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text


class Status(NamedTuple):
    """Where a run is.

    Attributes:
      step: Optimizer steps done.
      total_steps: Steps of the whole run.
      epoch: The epoch that runs or has just ended, from 1.
      epochs: Epochs of the whole run.
      loss: Mean training loss of the epoch so far.
      accuracy: Training accuracy of the epoch so far, from 0 to 1.
      test_accuracy: Of the last evaluation; None before the first.
      sparsity: Zeros among the sparsified weights, from 0 to 1.
      images_per_second: Of the training, without evaluation.
      seconds_left: Estimate of the time to the end.
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
    """What the training loop tells; `interval` is how often, in seconds."""

    interval: float

    def message(self, text: str) -> None:
        """Shows a sentence."""
        ...

    def update(self, status: Status) -> None:
        """Shows where the run is, within an epoch."""
        ...

    def epoch(self, status: Status) -> None:
        """Shows where the run is at the end of an epoch."""
        ...

    def close(self) -> None:
        """Ends the display."""
        ...


class Silent:
    """Shows nothing."""

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


class Lines:
    """Plain lines: one an epoch, and one every `interval` seconds within one."""

    def __init__(self, interval: float, console: Console | None = None):
        """Makes the display.

        Args:
          interval: Seconds between two lines within an epoch.
          console: Where to write. Default: standard output, unwrapped.
        """
        self.interval = interval
        self._console = console or Console(file=sys.stdout, soft_wrap=True)

    def message(self, text: str) -> None:
        """Prints a sentence."""
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
    """A bar as wide as the terminal, and the figures in a line of their own."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.figures)


class Bar:
    """A live bar on a terminal."""

    interval = 0.5

    def __init__(self, console: Console):
        """Makes the display; the bar appears with the first status."""
        self._console = console
        self._bar: _BarAboveFigures | None = None
        self._task: TaskID | None = None

    def message(self, text: str) -> None:
        """Prints a sentence above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, status: Status) -> None:
        """Moves the bar."""
        name = f"epoch {status.epoch}/{status.epochs}"
        if self._bar is None:
            self._bar = self._new_bar()
            self._bar.start()
        if self._task is None:
            self._task = self._bar.add_task(name, total=status.total_steps, left="")
        self._bar.figures = figures(status)
        self._bar.update(
            self._task,
            description=name,
            completed=status.step,
            left=duration(status.seconds_left),
        )

    def _new_bar(self) -> _BarAboveFigures:
        self._task = None
        return _BarAboveFigures(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[left]} left"),
            console=self._console,
            expand=True,
        )

    def epoch(self, status: Status) -> None:
        """Moves the bar."""
        self.update(status)

    def close(self) -> None:
        """Leaves the bar where it is; the next status begins another."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def display(log_every: float) -> Display:
    """Returns a bar where standard output is a terminal, else lines.

    Args:
      log_every: Seconds between two lines within an epoch.
    """
    console = Console()
    return Bar(console) if console.is_terminal else Lines(log_every)


def figures(status: Status) -> str:
    """Returns the figures of a status as one line of less than 80 characters."""
    test = status.test_accuracy
    parts = [
        f"loss {status.loss:.4f}",
        f"train {status.accuracy:6.2%}",
        "test      -" if test is None else f"test {test:6.2%}",
        f"sparsity {status.sparsity:.2%}",
        f"{status.images_per_second:,.0f} images/s",
    ]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time as `m:ss` or `h:mm:ss`.

    >>> duration(59.6), duration(3725)
    ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
