"""The progress of an analysis in the terminal."""

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from zosam_jax.cli.terminal import printable
from zosam_jax.runs.progress import duration

if TYPE_CHECKING:
    from zosam_jax.analysis.of_runs import Progress


class AnalysisDisplay:
    """Shows the progress of an analysis.

    A terminal gets a bar, other outputs one line for each part of a run.
    """

    def __init__(self, console: Console):
        """Prints nothing before the first call.

        Args:
          console: The console to print to.
        """
        self._console = console
        self._began = time.perf_counter()
        self._bar: Bar | None = None

    def __call__(self, progress: "Progress") -> None:
        """Shows the progress."""
        p = progress
        seconds = time.perf_counter() - self._began
        name = f"{printable(p.run)}: {p.part}"
        if self._console.is_terminal:
            self._move_bar(p.share, name)
        elif p.finished:
            line = f"{name}  {p.share:.0%} done after {duration(seconds)}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _move_bar(self, share: float, name: str) -> None:
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:.0f}%"),
                console=self._console,
                expand=True,
                transient=True,
            )
            self._task = self._bar.add_task(name, total=1.0)
            self._bar.start()
        self._bar.update(self._task, description=name, completed=share)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
