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

from zosam_jax.cli.terminal import printable
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


_HEADINGS = {
    "pixel_accuracy": "pixel accuracy",
    "loss": "loss",
    "ece": "ECE",
    "brier": "Brier",
    "iou": "IoU",
}
"""Headings of the figures of an image set beside the score. Which of them there are,
the task says."""


def score(figures: JSON) -> str:
    """Returns what the accuracies of an evaluation are, in a word.

    Args:
      figures: The contents of `evaluation.json`.

    >>> score({"score": "R²"}), score({})
    ('R²', 'accuracy')
    """
    # Older versions evaluated classes alone.
    return figures.get("score", "accuracy")


def summary(figures: JSON) -> list[list[str]]:
    """Returns rows of text that sum up all image sets: a name and its figures.

    Args:
      figures: The contents of `evaluation.json`.
    """
    clean = figures["clean"]
    corrupted = {name: figures[f"mean_corrupted_{name}"] for name in clean}
    changes = {name: corrupted[name] - clean[name] for name in clean}
    of = f"{len(figures['corruptions'])} x {len(figures['severities'])}"
    rows = [
        ["clean", *_cells(clean)],
        [f"mean of {of} corrupted", *_cells(corrupted)],
        ["difference", *_cells(changes, "+")],
    ]
    empty = [""] * (len(clean) - 1)
    if "mean_common_accuracy" in figures:
        mean = f"{figures['mean_common_accuracy']:.2%}"
        rows.append([f"mean of the {len(COMMON)} common", mean, *empty])
    if "mce" in figures:
        rows.append(["mCE, relative to AlexNet", f"{figures['mce']:.1%}", *empty])
    return rows


def _cells(figures: JSON, sign: str = "") -> list[str]:
    shares = ("accuracy", "pixel_accuracy")
    forms = {name: ".2%" if name in shares else ".4f" for name in figures}
    return [format(value, f"{sign}{forms[name]}") for name, value in figures.items()]


def terminal_table(figures: JSON) -> Group:
    """Returns the tables and notes of an evaluation for a terminal.

    Args:
      figures: The contents of `evaluation.json`.
    """
    notes = [_sentence(f"{figures['images']:,} images", figures["corrupted_images"])]
    notes += [
        _sentence(f"{title(n)} left out", why) for n, why in figures["left_out"].items()
    ]
    if "reliability" not in figures:
        notes.append("Values have no probabilities, and so no calibration.")
    notes += [f"{note[:1].upper()}{note[1:]}." for note in figures.get("notes", [])]
    tables = [_by_corruption(figures), *_by_name(figures), _totals(figures)]
    return Group(*tables, *(Text(note) for note in (*notes, *_doubt(figures))))


def _by_corruption(figures: JSON) -> Table:
    """Returns the score by corruption and severity, and the ECE where there is one."""
    calibrated = "ece" in figures["clean"]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(score(figures), no_wrap=True)
    for severity in figures["severities"]:
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right")
    if calibrated:
        table.add_column("ECE", justify="right")
    rows = figures["corruptions"]
    names = list(rows)
    for name, after in zip(names, [*names[1:], None], strict=True):
        row = rows[name]
        table.add_row(
            title(name),
            *[f"{value:.1%}" for value in row["accuracy"]],
            f"{np.mean(row['accuracy']):.1%}",
            *([f"{np.mean(row['ece']):.3f}"] if calibrated else []),
            end_section=after is not None and group(after) != group(name),
        )
    return table


_ROWS = 25
"""Number of labels or classes of which a table shows each."""


def _by_name(figures: JSON) -> list[Table]:
    """Returns a table of the calibration of each label, or of the IoU of each class.

    Of many it has those of the largest ECE, or of the least IoU, on clean images. There
    is none if an image has one class.
    """
    if "by_label" in figures:
        found, what, worst, by = figures["by_label"], "label", "largest ECE", "ece"
    elif "by_class" in figures:
        found, what, worst, by = figures["by_class"], "class", "least IoU", "iou"
    else:
        return []
    names = found[f"{what}s" if what == "label" else "classes"]
    clean, corrupted = found["clean"], found["mean_corrupted"]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(what, overflow="fold")
    for kind in ("clean", "corrupted"):
        for name in clean:
            table.add_column(f"{_HEADINGS[name]}, {kind}", justify="right")
    # What has no figure, as a class without pixels, comes last.
    values = np.array(clean[by], np.float64)
    order = np.argsort(-values if by == "ece" else values, kind="stable")[:_ROWS]
    for place in sorted(order.tolist()):
        cells = [_cell(x[name][place]) for x in (clean, corrupted) for name in clean]
        table.add_row(*map(Text, (printable(names[place]), *cells)))
    if len(order) < len(names):
        table.caption = f"the {_ROWS} of the {worst}; evaluation.json has all"
    return [table]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _totals(figures: JSON) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in figures["clean"]:
        heading = score(figures) if name == "accuracy" else _HEADINGS[name]
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary(figures):
        table.add_row(*row)
    return table


def _sentence(what: str, text: str) -> str:
    return f"{what}: {text}".rstrip(".") + "."


def _doubt(figures: JSON) -> list[str]:
    """Returns a note if the clean score differs from that at the end of training."""
    found, trained = figures["clean"]["accuracy"], figures["training_test_accuracy"]
    if trained is None:
        return [
            "The run is unfinished, or this is not its end: these are the figures at "
            f"step {figures['step']}."
        ]
    # R² is a sum of rounded numbers, and of many pixels some have two classes that are
    # all but equal; the others are counts of fewer predictions.
    close = 1e-4 if score(figures) in ("R²", "mean IoU") else 1e-9
    if figures["images"] != figures["test_images"] or abs(found - trained) < close:
        return []
    exported = ""
    if figures["run"].endswith(".safetensors"):
        exported = ", or the file was exported with --reestimate or in bfloat16"
    return [
        f"The training ended at a test {score(figures)} of {trained:.2%}; here it is "
        f"{found:.2%}, so the images, the software or the machine are different"
        f"{exported}."
    ]
