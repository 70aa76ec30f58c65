"""Pictures of the errors of networks: of classes, labels, values and pixels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from zosam_jax.analysis import drawing
from zosam_jax.analysis.surfaces import short_name
from zosam_jax.runs.files import JSON

Arrays = Mapping[str, np.ndarray]

_MATRIX = 25
"""Number of classes of which a picture shows each."""
_VALUES = 3
"""Number of values of which a picture shows each."""


def classes(found: JSON, arrays: Arrays) -> Figure:
    """Returns which classes are taken for which, and the accuracy on each class.

    Of more classes than a picture can show, it has the accuracy on the hardest.
    """
    runs = _of(found, "by_class")
    values = [run["errors"]["by_class"] for run in runs]
    return _classes(runs, arrays, values, "accuracy on the test examples")


def regions(found: JSON, arrays: Arrays) -> Figure:
    """Returns which classes of pixels are taken for which, and the IoU of each class.

    Of more classes than a picture can show, it has the IoU of the hardest.
    """
    runs = _of(found, "by_region")
    values = [run["errors"]["by_region"]["iou"] for run in runs]
    return _classes(runs, arrays, values, "IoU on the test examples")


def maps(found: JSON, arrays: Arrays) -> Figure:
    """Returns the shown images, their label maps, and those that each run predicts.

    Pixels that are ignored are white.
    """
    runs = _of(found, "by_region")
    seen = arrays[f"{runs[0]['run']}/seen"]
    rows = [("image", seen), ("true", arrays[f"{runs[0]['run']}/true"])]
    rows += [(short_name(r["run"], 24), arrays[f"{r['run']}/predicted"]) for r in runs]
    size = 1.3 * len(seen) + 2.0, 1.3 * len(rows) + 0.6
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(seen), squeeze=False)
    names = runs[0]["errors"]["classes"]
    cmap = ListedColormap(_colors(len(names)), "classes").with_extremes(under="white")
    for line, (name, shown) in zip(axes, rows, strict=True):
        for axis, each in zip(line, shown, strict=True):
            if name == "image":
                axis.imshow(each.squeeze(), cmap="gray")
            else:
                axis.imshow(each, cmap=cmap, vmin=0, vmax=max(len(names) - 1, 1))
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=8, parse_math=False)
    # More than a legend can hold are told apart by their colors alone.
    some = [*zip(_colors(len(names)), names, strict=True)][:_MATRIX]
    patches = [Patch(facecolor=color, edgecolor="0.5") for color, _ in some]
    texts = [short_name(name, 20).replace("_", " ") for _, name in some]
    style: dict[str, Any] = {"loc": "outside lower center", "frameon": False}
    figure.legend(patches, texts, ncols=min(6, len(some)), fontsize=8, **style)
    return figure


def _colors(count: int) -> list[Any]:
    """Returns a color for each class; those of few differ also in their brightness."""
    few = ("#DDDDDD", *drawing.COLORS)
    if count <= len(few):
        return [*few[:count]]
    return [colormaps["nipy_spectral"](x) for x in np.linspace(0, 0.95, count)]


def _classes(
    runs: Sequence[JSON],
    arrays: Arrays,
    figures: Sequence[Sequence[float | None]],
    what: str,
) -> Figure:
    """Returns the confusion of each run, and a figure of each class."""
    names = [run["errors"]["classes"] for run in runs]
    maps = [i for i, each in enumerate(names) if len(each) <= _MATRIX]
    groups = [[i] for i in range(len(runs)) if i not in maps]
    if all(each == names[0] for each in names):
        groups = [[*range(len(runs))]]
    count = len(maps) + len(groups)
    figure, axes = drawing.panels(count, min(count, 3))
    for axis, i in zip(axes, maps, strict=False):
        _confusion(axis, arrays[f"{runs[i]['run']}/confusion"], names[i])
        axis.set_title(short_name(runs[i]["run"]), parse_math=False)
    for axis, group in zip(axes[len(maps) :], groups, strict=False):
        values = {i: figures[i] for i in group}
        hardest = _hardest([*values.values()])
        _by_name(axis, values, names[group[0]], hardest)
        axis.set_xlabel(what)
        some = len(hardest) < len(names[group[0]])
        axis.set_title(f"the {_MATRIX} hardest classes" if some else "by class")
    if groups:
        drawing.legend(figure, runs)
    return figure


_OF_LABELS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "average_precision": "average precision",
}


def labels(found: JSON, arrays: Arrays) -> Figure:
    """Returns precision, recall, F1 and average precision of each label.

    Of more labels than a picture can show, it has those of the lowest F1. Runs of other
    labels have a row of their own.
    """
    del arrays
    runs = _of(found, "by_label")
    names = [run["errors"]["classes"] for run in runs]
    groups = [[i] for i in range(len(runs))]
    if all(each == names[0] for each in names):
        groups = [[*range(len(runs))]]
    figure, axes = drawing.panels(len(_OF_LABELS) * len(groups), len(_OF_LABELS))
    for row, group in enumerate(groups):
        by_label = {i: runs[i]["errors"]["by_label"] for i in group}
        hardest = _hardest([each["f1"] for each in by_label.values()])
        some = len(hardest) < len(names[group[0]])
        line = axes[row * len(_OF_LABELS) :]
        for axis, (figure_, title) in zip(line, _OF_LABELS.items(), strict=False):
            values = {i: each[figure_] for i, each in by_label.items()}
            _by_name(axis, values, names[group[0]], hardest)
            axis.set_xlim(-0.03, 1.03)
            axis.set_title(title + f", the {_MATRIX} hardest" * some)
        line[0].set_ylabel("label")
    drawing.legend(figure, runs)
    return figure


def values(found: JSON, arrays: Arrays) -> Figure:
    """Returns the predicted against the true values, a row of panels for each run.

    Of more values than a row can show, it has those of the lowest R².
    """
    runs = _of(found, "by_value")
    chosen = [_hardest([run["errors"]["by_value"]["r2"]], _VALUES) for run in runs]
    columns = max(map(len, chosen))
    figure, axes = drawing.panels(columns * len(runs), columns)
    for number, (run, shown) in enumerate(zip(runs, chosen, strict=True)):
        row = axes[number * columns : (number + 1) * columns]
        true, guess = (arrays[f"{run['run']}/{k}"] for k in ("labels", "predictions"))
        for axis, value in zip(row, shown, strict=False):
            _against(axis, true[:, value], guess[:, value], number)
            r2, rmse = (run["errors"]["by_value"][k][value] for k in ("r2", "rmse"))
            fit = "no R²" if r2 is None else f"R² {r2:.3f}"
            name = short_name(run["errors"]["classes"][value])
            title = f"{name}: {fit}, RMSE {rmse:.3g}"
            axis.set_title(title, parse_math=False)
        for axis in row[len(shown) :]:
            axis.set_axis_off()
    drawing.legend(figure, runs)
    return figure


def _of(found: JSON, figure: str) -> list[JSON]:
    """Returns the runs whose errors have a figure: those of one task."""
    return [run for run in found["runs"] if figure in run["errors"]]


def _hardest(
    values: Sequence[Sequence[float | None]], most: int = _MATRIX
) -> list[int]:
    """Returns the places of the lowest means, if there are more; else of all."""
    found = np.array(values, np.float64)
    if found.shape[1] <= most:
        return [*range(found.shape[1])]
    # What has no figure, as a class without examples, is not hard.
    means = np.where(np.isnan(found), np.inf, found).mean(0)
    return np.argsort(means, kind="stable")[:most].tolist()


def _by_name(
    axis: Axes,
    values: Mapping[int, Sequence[float | None]],
    names: Sequence[str],
    chosen: Sequence[int],
) -> None:
    """Plots a figure of some classes, one below the other, of runs by their number."""
    for place, (number, run) in enumerate(values.items()):
        places = np.arange(len(chosen)) + 0.4 * ((place + 0.5) / len(values) - 0.5)
        style: dict[str, Any] = {"color": drawing.color(number), "ms": 4}
        shown = np.array(run, np.float64)[list(chosen)]
        axis.plot(shown, places, drawing.marker(number), **style)
    texts = [short_name(names[i], 14) for i in chosen]
    axis.set_yticks(range(len(chosen)), texts, fontsize=7, parse_math=False)
    axis.set_ylim(len(chosen) - 0.4, -0.6)


def _confusion(axis: Axes, counts: np.ndarray, names: Sequence[str]) -> None:
    """Draws the shares of each class. The diagonal would hide the rest: numbers."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wrong = np.where(np.eye(len(shares), dtype=bool), 0, shares)
    top = max(wrong.max(), 0.01)
    axis.imshow(wrong, cmap="Blues", vmin=0, vmax=top)
    for (i, j), share in np.ndenumerate(shares):
        if share >= 0.005:
            axis.text(
                *(j, i, f"{100 * share:.0f}"),
                ha="center",
                va="center",
                fontsize=6 if len(shares) <= 12 else 4,
                color="white" if wrong[i, j] > 0.6 * top else "black",
            )
    axis.grid(visible=False)
    shown = [short_name(name, 14) for name in names]
    axis.set_yticks(range(len(names)), shown, fontsize=6, parse_math=False)
    axis.set_xticks(range(len(names)), shown, fontsize=6, rotation=90, parse_math=False)
    axis.set_xlabel("taken for, % of the class")
    axis.set_ylabel("class")


def _against(axis: Axes, true: np.ndarray, guess: np.ndarray, number: int) -> None:
    """Plots predictions over true values; on the dashed line they are equal."""
    ends = [min(true.min(), guess.min()), max(true.max(), guess.max())]
    axis.plot(ends, ends, color="0.4", ls="--", lw=1)
    style: dict[str, Any] = {"color": drawing.color(number), "ms": 3.5, "alpha": 0.5}
    axis.plot(true, guess, drawing.marker(number), mew=0, **style)
    axis.set_xlabel("true value")
    axis.set_ylabel("prediction")
