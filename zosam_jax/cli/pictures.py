"""The pictures: the curves of runs, and an evaluation."""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator, PercentFormatter

from zosam_jax.cli.evaluation_report import group, score, title
from zosam_jax.cli.terminal import printable
from zosam_jax.data.corruptions import GROUPS
from zosam_jax.runs.dataset_facts import score_title
from zosam_jax.runs.files import JSON
from zosam_jax.runs.groups import Band
from zosam_jax.runs.groups import group as group_runs
from zosam_jax.runs.record import RunRecord


class _Panel(NamedTuple):
    """A panel of curves: its title, and the split and figure that it shows."""

    title: str
    split: str
    figure: str


_PANELS = (
    _Panel("test accuracy", "test", "accuracy"),
    _Panel("test loss", "test", "loss"),
    _Panel("training accuracy", "train", "accuracy"),
    _Panel("training loss", "train", "loss"),
)
# Each is drawn if it changes during the training, or from run to run.
_FURTHER = (
    _Panel("sparsity", "test", "sparsity"),
    _Panel("learning rate", "train", "learning_rate"),
    _Panel("length of the perturbation", "train", "perturbation_norm"),
    _Panel("cosine of perturbation and gradient", "train", "perturbation_cosine"),
    _Panel("cosine of successive gradients", "train", "successive_cosine"),
)
# Smaller differences are mostly chance, and fill no panel: of accuracy, in itself, and
# of the loss, relative to the largest.
_LEAST_ACCURACY, _LEAST_LOSS = 0.05, 0.1
_STYLES = ("-", "--", ":", "-.")


class _Line(NamedTuple):
    """A line of the picture: its name, and the curve of a split and a figure."""

    name: str
    curve: Callable[[str, str], Band]


def _lines(runs: Sequence[RunRecord]) -> list[_Line]:
    """Returns a line for each group of seeds; for each run if none has two."""
    groups = group_runs(runs)
    counts = [each.seeds for each in groups]
    if max(counts, default=1) == 1:
        return [_Line(run.name, _of_run(run)) for run in runs]
    return [
        _Line(each.label + (f" ({n} seeds)" if n > 1 else ""), each.curve)
        for each, n in zip(groups, counts, strict=True)
    ]


def _of_run(run: RunRecord) -> Callable[[str, str], Band]:
    def curve(split: str, figure: str) -> Band:
        epochs, values = run.curve(split, figure)
        return Band(epochs, values, [0.0] * len(values))

    return curve


def curves(runs: Sequence[RunRecord], path: Path) -> None:
    """Writes a picture of accuracy, loss and other figures over epochs.

    Runs that differ in the seed alone are one line, the mean, in a band of one standard
    deviation to each side.

    Args:
      runs: The runs. One without metrics appears in the legend only.
      path: File to write, with a suffix that Matplotlib knows. Its folder must exist.
    """
    lines = _lines(runs)
    panels = [*_PANELS, *(panel for panel in _FURTHER if _changes(runs, panel))]
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(9, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, sharex=True)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, lines, panel)
        heading = panel.title
        if panel.figure == "accuracy":
            heading = score_title(heading, {run.score for run in runs})
        heading += _beside(runs, panel.split, panel.figure)
        axis.set_title(heading, fontsize=10)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for number in range(max(0, len(panels) - 2), len(panels)):
        axis = axes.flat[number]
        axis.set_xlabel("epoch")
        axis.tick_params(labelbottom=True)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    columns = min(3, math.ceil(len(lines) / 4))
    legend = figure.legend(
        axes.flat[0].lines,
        [str(number) for number in range(len(lines))],
        loc="outside lower center",
        fontsize=8,
        ncols=columns,
    )
    # Given as labels, names with a leading "_" would be left out.
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set_parse_math(False)
        text.set_text(printable(line.name))
    _save(figure, path)


def _changes(runs: Sequence[RunRecord], panel: _Panel) -> bool:
    """Whether a figure is not the same number in all runs and epochs.

    A constant radius, too, is measured with the rounding of float32.
    """
    values = [v for run in runs for v in run.curve(panel.split, panel.figure)[1]]
    return bool(values) and np.ptp(values) > 1e-5 * np.max(np.abs(values))


def _draw_panel(axis: Axes, lines: Sequence[_Line], panel: _Panel) -> None:
    """Draws a figure of all lines."""
    values: list[float] = []
    for number, line in enumerate(lines):
        epochs, means, deviations = line.curve(panel.split, panel.figure)
        values += means
        # A line of one or two points is hard to see.
        marker = "o" if len(epochs) < 3 else None
        # Matplotlib has ten colors, so the next ten lines get another style.
        style = _STYLES[number // 10 % len(_STYLES)]
        (drawn,) = axis.plot(epochs, means, style, marker=marker, ms=4, lw=1.4)
        if any(deviations):
            low = [m - d for m, d in zip(means, deviations, strict=True)]
            high = [m + d for m, d in zip(means, deviations, strict=True)]
            axis.fill_between(
                epochs, low, high, color=drawn.get_color(), alpha=0.2, lw=0
            )
    if panel.figure in ("accuracy", "sparsity"):
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        _widen(axis, _LEAST_ACCURACY)
    elif _spans_decades(values):
        axis.set_yscale("log")
    elif values:
        _widen(axis, _LEAST_LOSS * max(map(abs, values)))
    axis.grid(alpha=0.3)


def _widen(axis: Axes, least: float) -> None:
    """Gives the vertical axis a range of at least this length around its middle."""
    low, high = axis.get_ylim()
    missing = max(least - (high - low), 0.0)
    if missing and math.isfinite(missing):
        axis.set_ylim(low - missing / 2, high + missing / 2)


def _beside(runs: Sequence[RunRecord], split: str, name: str) -> str:
    """Returns what the title of a panel adds: what a figure is computed on."""
    configs = [run.config for run in runs]
    if name == "accuracy":
        noisy = any(config.get("label_noise") for config in configs)
        return " on the given, noisy labels" * (noisy and split == "train")
    if split == "train" and name == "loss":
        # Cheaper probes do not know the loss of the batch, so that is recorded where
        # the second pass takes it.
        some = any(
            config.get("probe_fraction", 1) != 1
            or config.get("probe_dtype", "same") not in ("same", config.get("dtype"))
            for config in configs
        )
        return " (with cheaper probes: at the perturbed weights)" if some else ""
    return ""


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis is better; within a decade it has too few ticks."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def _save(figure: Figure, path: Path) -> None:
    """Writes a figure to a file that is either complete or unchanged."""
    temporary = path.with_name(f".{path.name}")
    with warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(temporary, dpi=120, format=path.suffix.removeprefix("."))
    temporary.replace(path)


_COLORS = {
    "noise": "#c44e52",
    "blur": "#4c72b0",
    "weather": "#55a868",
    "digital": "#8172b3",
    "extra": "#8c8c8c",
}


def evaluation(figures: JSON, path: Path) -> None:
    """Writes a picture of an evaluation.

    It shows the accuracy, or the score of another task, by corruption and severity, its
    mean over each group of corruptions, and a reliability diagram. Values have none:
    they come without probabilities.

    Args:
      figures: The contents of `evaluation.json`.
      path: File to write, with a suffix that Matplotlib knows. Its folder must exist.
    """
    rows = len(figures["corruptions"])
    figure = Figure(figsize=(11, max(5.6, 0.3 * rows + 1.6)), layout="constrained")
    grid = GridSpec(2, 2, figure=figure, width_ratios=(1.25, 1))
    _heat(figure.add_subplot(grid[:, 0]), figures)
    calibrated = "reliability" in figures
    _by_group(figure.add_subplot(grid[0 if calibrated else slice(None), 1]), figures)
    if calibrated:
        _reliability(figure.add_subplot(grid[1, 1]), figures)
    name = printable(Path(figures["run"]).name)
    what = "" if score(figures) == "accuracy" else f"{score(figures)}, "
    figure.suptitle(
        f"{name}: {what}clean {figures['clean']['accuracy']:.1%}, corrupted "
        f"{figures['mean_corrupted_accuracy']:.1%}",
        fontsize=12,
        parse_math=False,
    )
    figure.supxlabel(
        f"{printable(figures['dataset'])}, {figures['images']:,} images; "
        f"{figures['corrupted_images']}",
        fontsize=8,
        parse_math=False,
        color="0.35",
    )
    _save(figure, path)


def _heat(axes: Axes, figures: JSON) -> None:
    """Draws the accuracies as a table of colored cells, one row for each corruption."""
    rows = figures["corruptions"]
    values = np.array([row["accuracy"] for row in rows.values()])
    values = np.concatenate([values, values.mean(1, keepdims=True)], 1)
    # R² has no least value, and may have no positive one.
    top = max(figures["clean"]["accuracy"], values.max(), 0.01)
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
    axes.set_title(f"{score(figures)} (%) by corruption and severity", fontsize=10)


def _by_group(axes: Axes, figures: JSON) -> None:
    """Draws the mean accuracy of each group of corruptions over the severities."""
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
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    # Alone, it is twice as high.
    _legend_below(axes, 6, -0.2 if "reliability" in figures else -0.09)
    what = score(figures).removeprefix("mean ")
    axes.set_title(f"mean {what} by group", fontsize=10)


def _legend_below(axes: Axes, columns: int, offset: float = -0.2) -> Legend:
    """Adds a legend below the axes, where it hides no point.

    Args:
      axes: The axes.
      columns: Columns of the legend.
      offset: Its place, relative to the height of the axes.
    """
    return axes.legend(
        fontsize=8,
        ncols=columns,
        loc="upper center",
        bbox_to_anchor=(0.5, offset),
        frameon=False,
        columnspacing=1.0,
        handlelength=1.5,
    )


def _reliability(axes: Axes, figures: JSON) -> None:
    """Draws accuracy over confidence; areas are fractions of the predictions."""
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
        pooled = "pooled " if "by_label" in figures else ""
        label = f"{label}: {pooled}ECE {diagram['ece']:.3f}"
        axes.scatter(x, y, sizes, color=color, alpha=0.7, linewidths=0, label=label)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(-0.03, 1.05)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    of_labels = "by_label" in figures
    axes.set_xlabel("probability" if of_labels else "confidence", fontsize=9)
    axes.set_ylabel("share that has it" if of_labels else "accuracy", fontsize=9)
    axes.grid(alpha=0.3)
    legend = _legend_below(axes, columns=2)
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([40])
    what = "reliability of all labels" if of_labels else "reliability"
    axes.set_title(f"{what} (area: fraction of the predictions)", fontsize=10)
