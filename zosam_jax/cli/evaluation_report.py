"""An evaluation as a person sees it: progress, a table, a picture."""

import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import PercentFormatter
from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from zosam_jax.data.corruptions import COMMON, GROUPS, STANDIN
from zosam_jax.evaluate.run import CLEAN, Progress
from zosam_jax.runs.progress import duration


def title(name: str) -> str:
    """Returns the name of a corruption in words.

    >>> title("jpeg_compression")
    'jpeg compression'
    """
    return "frost (stand-in)" if name == STANDIN else name.replace("_", " ")


def group(name: str) -> str:
    """Returns the group that a corruption belongs to.

    >>> group("fog")
    'weather'
    """
    name = "frost" if name == STANDIN else name
    return next(key for key, names in GROUPS.items() if name in names)


class Display:
    """Shows an evaluation at work: a bar on a terminal, a line a test set elsewhere."""

    def __init__(self, console: Console):
        """Makes the display; nothing is shown before the first call.

        Args:
          console: Where to show it.
        """
        self._console = console
        self._began = time.perf_counter()
        self._reused = 0
        self._bar: Bar | None = None

    def __call__(self, progress: Progress) -> None:
        """Shows where the evaluation is."""
        p = progress
        if p.reused:
            self._reused += 1
        is_new = p.accuracy is not None and not p.reused
        here = p.done + (0 if p.accuracy is not None else p.share)
        done, left = here - self._reused, p.total - here
        seconds = (time.perf_counter() - self._began) / max(done, 1e-9) * left
        rest = duration(seconds) if done > 0 else "-"
        name = title(p.corruption) + (f" {p.severity}" if p.corruption != CLEAN else "")
        if self._console.is_terminal:
            self._move(here, p.total, name, rest)
        elif is_new:
            line = f"{name:24} {p.accuracy:7.2%}  {p.done}/{p.total}  {rest} left"
            self._console.print(line, markup=False, highlight=False)

    def _move(self, done: float, total: int, name: str, left: str) -> None:
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
        """Ends the display, and says what was there already."""
        if self._bar is not None:
            self._bar.stop()
        if self._reused:
            sets = "set was" if self._reused == 1 else "sets were"
            self._console.print(
                f"{self._reused} test {sets} evaluated before (--overwrite does it "
                "again)",
                markup=False,
                highlight=False,
            )


def display() -> Display:
    """Returns a display on standard output."""
    return Display(Console(file=sys.stdout))


def _means(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1%}"


def summary(figures: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns the figures over all test sets: what, accuracy, loss and ECE.

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


def terminal_table(figures: Mapping[str, Any]) -> Group:
    """Returns the tables of an evaluation for a terminal.

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
            _means(row["accuracy"]),
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
    trained = figures["training_test_accuracy"]
    return Group(
        table, totals, *(Text(note) for note in (*notes, *_doubt(figures, trained)))
    )


def _sentence(what: str, text: str) -> str:
    return f"{what}: {text}".rstrip(".") + "."


def _doubt(figures: Mapping[str, Any], trained: float) -> list[str]:
    """Returns a note where the clean accuracy is not that of the training's end."""
    found = figures["clean"]["accuracy"]
    if figures["images"] != figures["test_images"] or abs(found - trained) < 1e-9:
        return []
    return [
        f"The training ended at a test accuracy of {trained:.2%}; here it is "
        f"{found:.2%}: the images, the software or the machine are not the same."
    ]


_COLORS = {
    "noise": "#c44e52",
    "blur": "#4c72b0",
    "weather": "#55a868",
    "digital": "#8172b3",
    "extra": "#8c8c8c",
}


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Writes a picture: accuracies, their fall with severity, and reliability.

    Args:
      figures: The contents of `evaluation.json`.
      path: A file whose suffix Matplotlib knows; its folder exists.
    """
    rows = len(figures["corruptions"])
    figure = Figure(figsize=(11, max(5.6, 0.3 * rows + 1.6)), layout="constrained")
    grid = GridSpec(2, 2, figure=figure, width_ratios=(1.25, 1))
    _heat(figure.add_subplot(grid[:, 0]), figures)
    _curves(figure.add_subplot(grid[0, 1]), figures)
    _reliability(figure.add_subplot(grid[1, 1]), figures)
    name = Path(figures["run"]).name
    figure.suptitle(
        f"{name}: clean {figures['clean']['accuracy']:.1%}, corrupted "
        f"{figures['mean_corrupted_accuracy']:.1%}",
        fontsize=12,
    )
    figure.supxlabel(
        f"{figures['dataset']}, {figures['images']:,} images; "
        f"{figures['corrupted_images']}",
        fontsize=8,
        color="0.35",
    )
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix("."))
    temporary.replace(path)


def _heat(axes: Axes, figures: Mapping[str, Any]) -> None:
    """Draws the accuracies, a row a corruption, and the means beside them."""
    rows = figures["corruptions"]
    values = np.array([row["accuracy"] for row in rows.values()])
    values = np.concatenate([values, values.mean(1, keepdims=True)], 1)
    top = max(figures["clean"]["accuracy"], values.max())
    axes.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        color = "white" if value < 0.6 * top else "black"
        weight = "bold" if j == values.shape[1] - 1 else "normal"
        axes.text(
            j,
            i,
            f"{100 * value:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color=color,
            weight=weight,
        )
    axes.axvline(values.shape[1] - 1.5, color="white", linewidth=3)
    names = list(rows)
    for i, (one, other) in enumerate(itertools.pairwise(names)):
        if group(one) != group(other):
            axes.axhline(i + 0.5, color="white", linewidth=3)
    severities = [str(severity) for severity in figures["severities"]]
    axes.set_xticks(range(values.shape[1]), [*severities, "mean"])
    axes.set_yticks(range(len(names)), [title(name) for name in names], fontsize=8.5)
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set_color(_COLORS[group(name)])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title("accuracy (%) by corruption and severity", fontsize=10)


def _curves(axes: Axes, figures: Mapping[str, Any]) -> None:
    """Draws the mean accuracy of each group over the severities."""
    severities = figures["severities"]
    clean = figures["clean"]["accuracy"]
    axes.axhline(clean, color="black", linestyle="--", linewidth=1, label="clean")
    for key in GROUPS:
        values = [
            row["accuracy"]
            for name, row in figures["corruptions"].items()
            if group(name) == key
        ]
        if values:
            mean = np.mean(values, 0)
            axes.plot(severities, mean, marker="o", label=key, color=_COLORS[key])
    axes.set_xticks(severities)
    axes.set_xlabel("severity", fontsize=9)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2, loc="lower left")
    axes.set_title("mean accuracy by group", fontsize=10)


def _reliability(axes: Axes, figures: Mapping[str, Any]) -> None:
    """Draws accuracy over confidence, and how many predictions are how confident."""
    axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1)
    for name, color, label in (
        ("clean", "#4c72b0", "clean"),
        ("corrupted", "#c44e52", "all corrupted together"),
    ):
        diagram = figures["reliability"][name]
        share = np.array(diagram["share"])
        some = share > 0
        x, y = (np.array(diagram[k], float)[some] for k in ("confidence", "accuracy"))
        axes.plot(x, y, color=color, linewidth=1, alpha=0.4)
        sizes = 6 + 260 * share[some]
        label = f"{label}: ECE {diagram['ece']:.3f}"
        axes.scatter(x, y, sizes, color=color, alpha=0.7, linewidths=0, label=label)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(-0.03, 1.05)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("confidence", fontsize=9)
    axes.set_ylabel("accuracy", fontsize=9)
    axes.grid(alpha=0.3)
    legend = axes.legend(fontsize=8, loc="upper left")
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([40])
    axes.set_title("reliability (area: share of the predictions)", fontsize=10)
