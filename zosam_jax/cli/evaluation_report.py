"""An evaluation in the terminal: its progress, and the tables of its figures."""

import time
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from zosam_jax.data.corruptions import COMMON, GROUPS, STANDIN
from zosam_jax.evaluate.image_sets import CLEAN
from zosam_jax.runs.files import JSON
from zosam_jax.runs.progress import duration

if TYPE_CHECKING:
    from zosam_jax.evaluate.scoring import Progress


def title(name: str) -> str:
    """Returns the display name of a corruption.

    >>> title("jpeg_compression")
    'jpeg compression'
    """
    return "frost (stand-in)" if name == STANDIN else name.replace("_", " ")


def group(name: str) -> str:
    """Returns the group of a corruption: noise, blur, weather, digital or extra.

    >>> group("fog")
    'weather'
    """
    name = "frost" if name == STANDIN else name
    return next(key for key, names in GROUPS.items() if name in names)


class EvaluationDisplay:
    """Shows the progress of an evaluation.

    A terminal gets a bar, other outputs one line for each image set.
    """

    def __init__(self, console: Console):
        """Prints nothing before the first call.

        Args:
          console: The console to print to.
        """
        self._console = console
        self._began = time.perf_counter()
        self._reused = 0
        self._bar: Bar | None = None

    def __call__(self, progress: "Progress") -> None:
        """Shows the progress."""
        p = progress
        if p.reused:
            self._reused += 1
        is_finished = p.accuracy is not None
        done = p.done + (0 if is_finished else p.share)
        name = title(p.corruption) + (f" {p.severity}" if p.corruption != CLEAN else "")
        left = self._time_left(done, p.total)
        if self._console.is_terminal:
            self._move_bar(done, p.total, name, left)
        elif is_finished and not p.reused:
            line = f"{name:24} {p.accuracy:7.2%}  {p.done}/{p.total}  {left} left"
            self._console.print(line, markup=False, highlight=False)

    def _time_left(self, done: float, total: int) -> str:
        # Reused results took no time, so they say nothing about the others.
        evaluated = done - self._reused
        if evaluated <= 0:
            return "-"
        seconds = time.perf_counter() - self._began
        return duration(seconds / evaluated * (total - done))

    def _move_bar(self, done: float, total: int, name: str, left: str) -> None:
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.description:24}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[left]} left"),
                console=self._console,
                expand=True,
                transient=True,
            )
            self._task = self._bar.add_task(name, total=total, left=left)
            self._bar.start()
        self._bar.update(self._task, description=name, completed=done, left=left)

    def close(self) -> None:
        """Removes the bar and reports how many results were reused."""
        if self._bar is not None:
            self._bar.stop()
        if self._reused:
            sets = "set was" if self._reused == 1 else "sets were"
            self._console.print(
                f"{self._reused} test {sets} evaluated before (--overwrite repeats "
                "them)",
                markup=False,
                highlight=False,
            )


def summary(figures: JSON) -> list[tuple[str, str, str, str]]:
    """Returns rows of text that sum up all image sets: name, accuracy, loss and ECE.

    Args:
      figures: The contents of `evaluation.json`.
    """
    clean = figures["clean"]
    corruptions, severities = figures["corruptions"], figures["severities"]
    of = f"{len(corruptions)} x {len(severities)}"
    rows = [
        (
            "clean",
            f"{clean['accuracy']:.2%}",
            f"{clean['loss']:.4f}",
            f"{clean['ece']:.4f}",
        ),
        (
            f"mean of {of} corrupted",
            f"{figures['mean_corrupted_accuracy']:.2%}",
            f"{figures['mean_corrupted_loss']:.4f}",
            f"{figures['mean_corrupted_ece']:.4f}",
        ),
        (
            "difference",
            f"{-figures['difference']:+.2%}",
            f"{figures['mean_corrupted_loss'] - clean['loss']:+.4f}",
            f"{figures['mean_corrupted_ece'] - clean['ece']:+.4f}",
        ),
    ]
    if "mean_common_accuracy" in figures:
        mean = figures["mean_common_accuracy"]
        rows.append((f"mean of the {len(COMMON)} common", f"{mean:.2%}", "", ""))
    if "mce" in figures:
        rows.append(("mCE, relative to AlexNet", f"{figures['mce']:.1%}", "", ""))
    return rows


def terminal_table(figures: JSON) -> Group:
    """Returns the tables and notes of an evaluation for a terminal.

    Args:
      figures: The contents of `evaluation.json`.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("accuracy", no_wrap=True)
    for severity in figures["severities"]:
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right")
    table.add_column("ECE", justify="right")
    rows = figures["corruptions"]
    names = list(rows)
    for name, after in zip(names, [*names[1:], None], strict=True):
        row = rows[name]
        table.add_row(
            title(name),
            *[f"{value:.1%}" for value in row["accuracy"]],
            f"{np.mean(row['accuracy']):.1%}",
            f"{np.mean(row['ece']):.3f}",
            end_section=after is not None and group(after) != group(name),
        )
    totals = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(("", "accuracy", "loss", "ECE")):
        totals.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in summary(figures):
        totals.add_row(*row)
    notes = [_sentence(f"{figures['images']:,} images", figures["corrupted_images"])]
    notes += [
        _sentence(f"{title(n)} left out", why) for n, why in figures["left_out"].items()
    ]
    notes += [f"{note[:1].upper()}{note[1:]}." for note in figures.get("notes", [])]
    return Group(table, totals, *(Text(note) for note in (*notes, *_doubt(figures))))


def _sentence(what: str, text: str) -> str:
    return f"{what}: {text}".rstrip(".") + "."


def _doubt(figures: JSON) -> list[str]:
    """Returns a note if the clean accuracy differs from that at the end of training."""
    found, trained = figures["clean"]["accuracy"], figures["training_test_accuracy"]
    if trained is None:
        return [
            "The run is unfinished, or this is not its end: these are the figures at "
            f"step {figures['step']}."
        ]
    if figures["images"] != figures["test_images"] or abs(found - trained) < 1e-9:
        return []
    return [
        f"The training ended at a test accuracy of {trained:.2%}; here it is "
        f"{found:.2%}, so the images, the software or the machine are different."
    ]
