"""Pictures of an analysis, one for each part: as many runs as are given, side by side.

Colors are those of Okabe and Ito, which color-blind readers can tell apart; lines also
differ in their style, and maps are in cividis.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    ScalarFormatter,
)

from zosam_jax.analysis import surfaces
from zosam_jax.analysis.noise import expected_cosine
from zosam_jax.analysis.surfaces import Levels, Surface, short_name
from zosam_jax.runs.files import JSON

Arrays = Mapping[str, np.ndarray]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH, _HEIGHT = 4.2, 3.4
_MATRIX = 25
"""Number of classes of which a picture shows each."""


def drawable(found: JSON) -> list[str]:
    """Returns the names of the pictures that an analysis has.

    Args:
      found: The contents of `analysis.json`.
    """
    return [name for name, picture in PICTURES.items() if picture.shows(found)]


def draw(name: str, found: JSON, arrays: Arrays, path: Path) -> None:
    """Writes a picture.

    Args:
      name: One of `drawable(found)`.
      found: The contents of `analysis.json`.
      arrays: The contents of `analysis.npz`.
      path: File to write, ending in .png or another suffix that Matplotlib knows. Its
        folder must exist.
    """
    figure = PICTURES[name].draw(found, arrays)
    temporary = path.with_name(f".{path.name}")
    with warnings.catch_warnings():
        # A name in a script that the font does not have is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(temporary, dpi=200, format=path.suffix.removeprefix("."))
    temporary.replace(path)


def curvature(found: JSON, arrays: Arrays) -> Figure:
    """Returns the spectral density, and the largest eigenvalues of set and batches."""
    figure, (left, right) = _panels(2)
    for number, run in enumerate(found["runs"]):
        grid = arrays[f"{run['run']}/grid"]
        density = arrays[f"{run['run']}/density"]
        left.plot(grid, density, **_line(number))
        figures, color = run["curvature"], COLORS[number % len(COLORS)]
        each = figures["largest_by_batch"]
        spread = np.linspace(-0.15, 0.15, len(each)) if len(each) > 1 else [0.0]
        right.plot(number + np.array(spread), each, "o", ms=3.5, color=color, alpha=0.5)
        right.plot(
            [number - 0.28, number + 0.28], [figures["largest"][0]] * 2, color=color
        )
    left.set_yscale("log")
    peak = max(arrays[f"{run['run']}/density"].max() for run in found["runs"])
    # A single eigenvalue is ten times as high as the lower end.
    single = min(
        0.4 / (run["weights"] * run["curvature"]["density_width"])
        for run in found["runs"]
    )
    left.set_ylim(single / 10, peak * 3)
    left.set_xlabel("eigenvalue of the Hessian")
    left.set_ylabel("density")
    left.set_title("spectral density")
    right.set_ylabel("largest eigenvalue")
    right.set_ylim(0, 1.08 * right.dataLim.y1)
    right.set_title("the set (line) and its batches (dots)")
    _ticks(right, found["runs"])
    _legend(figure, found["runs"])
    return figure


def sharpness(found: JSON, arrays: Arrays) -> Figure:
    """Returns the rise of the loss within a radius, at worst and on average."""
    del arrays
    figure, axes = _panels(2)
    for axis, kind in zip(axes, ("plain", "adaptive"), strict=True):
        for number, run in enumerate(found["runs"]):
            figures, line = run["sharpness"][kind], _line(number)
            rises = figures["rises"]
            axis.plot(range(1, len(rises) + 1), rises, **line, marker=_marker(number))
            axis.axhline(figures["average"], **{**line, "lw": 1.0}, alpha=0.5)
        rho = found["runs"][0]["sharpness"][kind]["rho"]
        axis.set_title(f"{kind}, radius {rho:g}")
        axis.set_xlabel("ascent step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("rise of the loss")
        _log_if_wide(axis)
    mean = Line2D([], [], color="0.4", lw=1, alpha=0.6)
    _legend(figure, found["runs"], extra=[(mean, "mean on the sphere")])
    return figure


def surface(found: JSON, arrays: Arrays) -> Figure:
    """Returns a contour map for every run, on common levels, and lines through them.

    Of the plane through three runs, it has one map with the places of the runs.
    """
    runs, shapes = found["runs"], surfaces.of(found, arrays)
    has_lines = found["plane"] is None
    count = len(shapes) + has_lines
    figure, axes = _panels(count, min(count, 3))
    levels = surfaces.common_levels(shapes)
    maps = axes[: len(shapes)]
    shown = [_map(axis, each, levels) for axis, each in zip(maps, shapes, strict=True)]
    for axis, each in zip(maps, shapes, strict=True):
        axis.set_title(each.title, parse_math=False)
        axis.set(xlabel=each.labels[0], ylabel=each.labels[1])
    bar = figure.colorbar(shown[0], ax=list(maps), label="loss", shrink=0.9)
    bar.ax.minorticks_off()
    chosen = levels.values[:: len(levels.values) // 6]
    bar.set_ticks(list(chosen), labels=[f"{level:.3g}" for level in chosen])
    if not has_lines:
        for number, (x, y) in enumerate(shapes[0].points):
            maps[0].plot(x, y, _marker(number), color=COLORS[number], mec="white", ms=8)
        _legend(figure, runs)
        return figure
    line = axes[len(shapes)]
    for number, each in enumerate(shapes):
        middle = each.heights.shape[1] // 2
        line.plot(each.x, each.heights[:, middle], **_line(number))
    line.set_xlabel(shapes[0].labels[0])
    line.set_ylabel("loss")
    line.set_title("through the networks")
    _log_if_wide(line)
    _legend(figure, runs)
    return figure


def _map(axis: Axes, each: Surface, levels: Levels) -> QuadContourSet:
    """Draws a contour map; the first direction is horizontal."""
    grid, values = (each.x, each.y, levels.clipped(each.heights).T), levels.values
    shown = axis.contourf(*grid, levels=values, cmap="cividis", norm=levels.scale)
    axis.contour(*grid, levels=values[::3], colors="white", linewidths=0.5)
    axis.plot(*each.points.T, "+", color="white", ms=8, mew=1.5)
    axis.grid(visible=False)
    axis.set_aspect("equal")
    return shown


def noise(found: JSON, arrays: Arrays) -> Figure:
    """Returns the variance of gradients, and the cosine of zeroth-order estimates."""
    del arrays
    figure, (left, right) = _panels(2)
    runs = found["runs"]
    for number, run in enumerate(runs):
        figures, color = run["noise"], COLORS[number % len(COLORS)]
        for kind, marker, face in (
            ("backprop", "o", color),
            ("training", "D", "white"),
        ):
            variance = figures.get(kind, {}).get("variance")
            if variance:
                style = {"color": color, "mfc": face, "mew": 1.5, "ms": 7}
                left.plot(number, variance, marker, **style)
        rows = figures["zeroth_order"]
        x = [row["num_directions"] for row in rows]
        y = [row["cosine"] for row in rows]
        error = [row["cosine_error"] for row in rows]
        style = {"color": color, "marker": _marker(number), "ls": "none", "ms": 5}
        right.errorbar(x, y, error, capsize=3, **style)
        many = range(min(x), max(x) + 1)
        law = [expected_cosine(int(m), rows[0]["dimension"]) for m in many]
        right.plot(many, law, **_line(number), alpha=0.7)
    left.set_ylabel("variance over batches")
    left.set_title("gradient of a batch")
    if left.lines:
        _log_if_wide(left)
    _ticks(left, runs)
    x = [row["num_directions"] for row in runs[0]["noise"]["zeroth_order"]]
    right.set_xscale("log")
    right.set_xticks(x, [str(m) for m in x])
    right.minorticks_off()
    right.set_ylim(bottom=0)
    right.set_xlabel("random directions m")
    right.set_ylabel("cosine to the gradient")
    right.set_title("zeroth-order estimate (line: its law)")
    marks = [
        (Line2D([], [], color="0.3", marker="o", ls="none"), "backpropagation"),
        (
            Line2D([], [], color="0.3", marker="D", mfc="white", ls="none"),
            "gradient of the training",
        ),
    ]
    _legend(figure, runs, extra=marks)
    return figure


def masks(found: JSON, arrays: Arrays) -> Figure:
    """Returns the densities of the layers, and the overlap of several runs."""
    del arrays
    each = [run["masks"]["densities"] for run in found["runs"]]
    paths = [*dict.fromkeys(path for densities in each for path in densities)]
    overlap = found["overlap"]
    width = 2.2 * _WIDTH if overlap else 1.4 * _WIDTH
    size = (width, max(_HEIGHT, 0.9 + 0.21 * len(paths)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 2 if overlap else 1, squeeze=False)[0]
    for number, densities in enumerate(each):
        rows = [i for i, path in enumerate(paths) if path in densities]
        values = [densities[paths[i]] for i in rows]
        # Runs of one budget have the same densities: side by side they are seen.
        places = np.array(rows) + 0.5 * ((number + 0.5) / len(each) - 0.5)
        style = {"color": COLORS[number % len(COLORS)], "marker": _marker(number)}
        axes[0].plot(values, places, ls="none", ms=4.5, alpha=0.85, **style)
    axes[0].set_yticks(range(len(paths)), paths, fontsize=7)
    axes[0].set_ylim(len(paths) - 0.4, -0.6)
    lowest = min((d for densities in each for d in densities.values() if d), default=1)
    if lowest < 0.1:
        axes[0].set_xscale("log")
        axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes[0].xaxis.set_minor_formatter(NullFormatter())
    else:
        axes[0].set_xlim(0, 1)
    axes[0].set_xlabel("density")
    axes[0].set_title("live weights by layer")
    axes[0].grid(alpha=0.3)
    if overlap:
        _matrix(axes[1], overlap)
    _legend(figure, found["runs"])
    return figure


def _matrix(axis: Axes, overlap: JSON) -> None:
    values = np.array(overlap["jaccard"])
    axis.imshow(values, cmap="cividis", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(values):
        color = "white" if value < 0.5 else "black"
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=color)
    count = range(len(values))
    names = [f"{i + 1}: {short_name(name)}" for i, name in enumerate(overlap["runs"])]
    axis.set_xticks(count, [str(i + 1) for i in count])
    axis.set_yticks(count, names, fontsize=8, parse_math=False)
    axis.set_title("overlap of the masks (Jaccard)")


def relief(found: JSON, arrays: Arrays) -> Figure:
    """Returns the surface of every landscape in three dimensions, on common axes."""
    shapes = surfaces.of(found, arrays)
    figure = Figure(figsize=(_WIDTH * len(shapes), 1.1 * _WIDTH))
    levels = surfaces.common_levels(shapes)
    low, high = levels.scaled(levels.values[[0, -1]])
    height = "log10 of loss" if levels.scale == "log" else "loss"
    for number, each in enumerate(shapes):
        axis = figure.add_subplot(1, len(shapes), number + 1, projection="3d")
        heights = levels.scaled(levels.clipped(each.heights))
        x, y = np.meshgrid(each.x, each.y, indexing="ij")
        axis.plot_surface(  # pyright: ignore[reportAttributeAccessIssue]
            *(x, y, heights),
            cmap="cividis",
            vmin=low,
            vmax=high,
            rstride=1,
            cstride=1,
            linewidth=0.2,
            edgecolor="0.3",
        )
        axis.set(xlabel=each.labels[0], ylabel=each.labels[1], zlabel=height)
        axis.set_zlim(low, high)  # pyright: ignore[reportAttributeAccessIssue]
        # Smaller than usual, so that the label of the vertical axis is in the picture.
        axis.set_box_aspect(  # pyright: ignore[reportAttributeAccessIssue]
            (4, 4, 3),
            zoom=0.84,  # pyright: ignore[reportArgumentType]
        )
        axis.zaxis.labelpad = 8  # pyright: ignore[reportAttributeAccessIssue]
        axis.set_title(each.title, parse_math=False, fontsize=10)
    figure.subplots_adjust(left=0.02, right=0.94, bottom=0.06, top=0.9, wspace=0.15)
    return figure


def errors(found: JSON, arrays: Arrays) -> Figure:
    """Returns which classes are taken for which, and the accuracy on each class.

    Of more classes than a picture can show, it has the accuracy on the hardest.
    """
    runs = found["runs"]
    names = [run["errors"]["classes"] for run in runs]
    maps = [i for i, each in enumerate(names) if len(each) <= _MATRIX]
    groups = [[i] for i in range(len(runs)) if i not in maps]
    if all(each == names[0] for each in names):
        groups = [[*range(len(runs))]]
    count = len(maps) + len(groups)
    figure, axes = _panels(count, min(count, 3))
    for axis, i in zip(axes, maps, strict=False):
        _confusion(axis, arrays[f"{runs[i]['run']}/confusion"], names[i])
        axis.set_title(short_name(runs[i]["run"]), parse_math=False)
    for axis, group in zip(axes[len(maps) :], groups, strict=False):
        _by_class(axis, {i: runs[i] for i in group})
    if groups:
        _legend(figure, runs)
    return figure


def _by_class(axis: Axes, runs: Mapping[int, JSON]) -> None:
    """Plots the accuracy on each class, or on the hardest, of runs by their number."""
    found = [run["errors"] for run in runs.values()]
    names = found[0]["classes"]
    values = np.array([each["by_class"] for each in found], np.float64)
    rows, title = np.arange(len(names)), "by class"
    if len(names) > _MATRIX:
        # A class without examples is no hard one.
        means = np.where(np.isnan(values), np.inf, values).mean(0)
        rows, title = np.argsort(means)[:_MATRIX], f"the {_MATRIX} hardest classes"
    for place, (number, run) in enumerate(zip(runs, values, strict=True)):
        places = np.arange(len(rows)) + 0.4 * ((place + 0.5) / len(values) - 0.5)
        style: dict[str, Any] = {"color": COLORS[number % len(COLORS)]}
        axis.plot(run[rows], places, _marker(number), ms=4, **style)
    shown = [short_name(names[i], 14) for i in rows]
    axis.set_yticks(range(len(rows)), shown, fontsize=7, parse_math=False)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlabel("accuracy on the test examples")
    axis.set_title(title)


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


def features(found: JSON, arrays: Arrays) -> Figure:
    """Returns the strength of the features of each layer, for every run and image."""
    runs = [run for run in found["runs"] if run["features"]]
    images = arrays[f"{runs[0]['run']}/images"]
    rows = [(run, layer) for run in runs for layer in run["features"]["layers"]]
    # The same layer of all runs, one below the other.
    rows.sort(key=lambda row: row[0]["features"]["layers"].index(row[1]))
    size = 1.1 * len(images) + 2.4, 1.1 * (len(rows) + 1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows) + 1, len(images), squeeze=False)
    for axis, image in zip(axes[0], images, strict=True):
        axis.imshow(image.squeeze(), cmap="gray")
    for line, (run, layer) in zip(axes[1:], rows, strict=True):
        maps = arrays[f"{run['run']}/features/{layer}"]
        for axis, found_map in zip(line, maps, strict=True):
            axis.imshow(found_map, cmap="cividis")
        label = f"{layer}\n{short_name(run['run'], 24)}" if len(runs) > 1 else layer
        line[0].set_ylabel(
            label, rotation=0, ha="right", va="center", fontsize=7, parse_math=False
        )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


_ALONG = (
    ("largest eigenvalue", ("curvature", "largest", 0)),
    ("worst rise of the loss", ("sharpness", "plain", "best")),
    ("roughness Ra", ("landscape", "roughness")),
    ("variance of the gradient", ("noise", "backprop", "variance")),
    ("signal to noise", ("noise", "backprop", "ratio")),
    ("test accuracy", ("errors", "accuracy")),
)
"""What is shown along a training, and where it stands."""


def along(found: JSON, arrays: Arrays) -> Figure:
    """Returns the figures of the runs at each of their checkpoints."""
    del arrays
    runs: dict[str, list[JSON]] = {}
    for run in found["runs"]:
        runs.setdefault(run["run"].rpartition("@")[0], []).append(run)
    shown = [row for row in _ALONG if row[1][0] in found["settings"]["parts"]]
    figure, axes = _panels(len(shown), min(len(shown), 3))
    for axis, (label, path) in zip(axes, shown, strict=False):
        for number, checkpoints in enumerate(runs.values()):
            values = [_at(run, path) for run in checkpoints]
            steps = [run["step"] for run in checkpoints]
            axis.plot(steps, values, **_line(number), marker=_marker(number), ms=4)
        axis.set_xlabel("step")
        axis.set_title(label)
        _log_if_wide(axis)
    _legend(figure, [{"run": name} for name in runs])
    return figure


def _at(run: JSON, path: tuple[str | int, ...]) -> float:
    """A figure of a run; NaN where it has none."""
    value: Any = run
    for key in path:
        value = value.get(key) if isinstance(value, dict) else value and value[key]
    return math.nan if value is None else value


class _Picture(NamedTuple):
    """A picture.

    Attributes:
      part: The part of the analysis that it shows; None: all of them, along a training.
      draw: `(contents of analysis.json, of analysis.npz) -> figure`.
      needs: The figures of a run without which it shows nothing; None: none.
    """

    part: str | None
    draw: Callable[[JSON, Arrays], Figure]
    needs: str | None = None

    def shows(self, found: JSON) -> bool:
        """Whether an analysis has it."""
        if self.part is None:
            along = {row[1][0] for row in _ALONG} & set(found["settings"]["parts"])
            return found["settings"]["checkpoints"] and bool(along)
        if self.part not in found["settings"]["parts"]:
            return False
        return self.needs is None or any(
            run[self.part].get(self.needs) for run in found["runs"]
        )


PICTURES = {
    "curvature": _Picture("curvature", curvature),
    "sharpness": _Picture("sharpness", sharpness),
    "landscape": _Picture("landscape", surface),
    "landscape-3d": _Picture("landscape", relief),
    "noise": _Picture("noise", noise),
    "masks": _Picture("masks", masks, needs="densities"),
    "errors": _Picture("errors", errors),
    "features": _Picture("features", features, needs="layers"),
    "along-training": _Picture(None, along),
}


def _panels(count: int, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, in rows."""
    columns = columns or count
    rows = math.ceil(count / columns)
    size = (_WIDTH * columns, _HEIGHT * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
        axis.title.set_fontsize(10)
    return figure, axes


def _line(number: int) -> dict[str, Any]:
    style = _STYLES[number % len(_STYLES)]
    return {"color": COLORS[number % len(COLORS)], "ls": style, "lw": 1.6}


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def _legend(
    figure: Figure,
    runs: Sequence[JSON],
    extra: Sequence[tuple[Line2D, str]] = (),
) -> None:
    """Names the runs below the panels, where the legend hides nothing."""
    marked = [{**_line(i), "marker": _marker(i)} for i in range(len(runs))]
    handles = [Line2D([], [], ms=4, **style) for style in marked]
    pairs = [*zip(handles, (run["run"] for run in runs), strict=True), *extra]
    legend = figure.legend(
        [handle for handle, _ in pairs],
        [str(i) for i in range(len(pairs))],
        loc="outside lower center",
        fontsize=8,
        ncols=min(3, len(pairs)),
        frameon=False,
    )
    # Given as labels, names with a leading "_" would be left out.
    for text, (_, name) in zip(legend.get_texts(), pairs, strict=True):
        text.set_parse_math(False)
        text.set_text(short_name(name, 60))


def _ticks(axis: Axes, runs: Sequence[JSON]) -> None:
    """Puts the runs along the horizontal axis; the legend has their names."""
    axis.set_xticks(range(len(runs)), [""] * len(runs))
    axis.set_xlim(-0.6, len(runs) - 0.4)
    axis.set_xlabel("run")
    axis.grid(visible=False, axis="x")


def _log_if_wide(axis: Axes) -> None:
    """Makes the vertical axis logarithmic where values above 0 span decades."""
    values = np.concatenate([np.ravel(line.get_ydata()) for line in axis.lines])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")
    else:
        axis.yaxis.set_major_formatter(ScalarFormatter(useMathText=True))
