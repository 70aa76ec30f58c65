"""Pictures of an analysis, one for each part: as many runs as are given, side by side.

Maps are in cividis.
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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from zosam_jax.analysis import drawing, error_pictures, surfaces
from zosam_jax.analysis.noise import expected_cosine
from zosam_jax.analysis.surfaces import Levels, Surface, short_name
from zosam_jax.runs import files
from zosam_jax.runs.dataset_facts import score_title
from zosam_jax.runs.files import JSON

Arrays = Mapping[str, np.ndarray]


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
    figure, (left, right) = drawing.panels(2)
    for number, run in enumerate(found["runs"]):
        grid = arrays[f"{run['run']}/grid"]
        density = arrays[f"{run['run']}/density"]
        left.plot(grid, density, **drawing.line(number))
        figures, color = run["curvature"], drawing.color(number)
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
    drawing.ticks(right, found["runs"])
    drawing.legend(figure, found["runs"])
    return figure


def sharpness(found: JSON, arrays: Arrays) -> Figure:
    """Returns the rise of the loss within a radius, at worst and on average."""
    del arrays
    figure, axes = drawing.panels(2)
    for axis, kind in zip(axes, ("plain", "adaptive"), strict=True):
        for number, run in enumerate(found["runs"]):
            figures, line = run["sharpness"][kind], drawing.line(number)
            rises = figures["rises"]
            steps = range(1, len(rises) + 1)
            axis.plot(steps, rises, **line, marker=drawing.marker(number))
            axis.axhline(figures["average"], **{**line, "lw": 1.0}, alpha=0.5)
        rho = found["runs"][0]["sharpness"][kind]["rho"]
        axis.set_title(f"{kind}, radius {rho:g}")
        axis.set_xlabel("ascent step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("rise of the loss")
        drawing.log_if_wide(axis)
    mean = Line2D([], [], color="0.4", lw=1, alpha=0.6)
    drawing.legend(figure, found["runs"], extra=[(mean, "mean on the sphere")])
    return figure


def surface(found: JSON, arrays: Arrays) -> Figure:
    """Returns a contour map for every run, on common levels, and lines through them.

    Of the plane through three runs, it has one map with the places of the runs.
    """
    runs, shapes = found["runs"], surfaces.of(found, arrays)
    has_lines = found["plane"] is None
    count = len(shapes) + has_lines
    figure, axes = drawing.panels(count, min(count, 3))
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
        for number, point in enumerate(shapes[0].points):
            maps[0].plot(*point, **_mark(number))
        drawing.legend(figure, runs)
        return figure
    line = axes[len(shapes)]
    for number, each in enumerate(shapes):
        middle = each.heights.shape[1] // 2
        line.plot(each.x, each.heights[:, middle], **drawing.line(number))
    line.set_xlabel(shapes[0].labels[0])
    line.set_ylabel("loss")
    line.set_title("through the networks")
    drawing.log_if_wide(line)
    drawing.legend(figure, runs)
    return figure


def _mark(number: int) -> dict[str, Any]:
    """The mark of a run on a landscape."""
    style = {"color": drawing.color(number), "marker": drawing.marker(number)}
    return {**style, "ls": "none", "mec": "white", "ms": 8}


def _map(axis: Axes, each: Surface, levels: Levels) -> QuadContourSet:
    """Draws a contour map; the first direction is horizontal."""
    grid, values = (each.x, each.y, levels.clipped(each.heights).T), levels.values
    shown = axis.contourf(*grid, levels=values, cmap="cividis", norm=levels.scale)
    axis.contour(*grid, levels=values[::3], colors="white", linewidths=0.5)
    axis.plot(*each.points.T, "+", color="white", ms=8, mew=1.5)
    axis.grid(visible=False)
    axis.set_aspect("equal")
    return shown


# Both marks of a run stay visible where the training has no perturbation, or next to
# none, and their values are equal.
_NOISE_MARKS: dict[str, tuple[str, dict[str, Any]]] = {
    "backprop": ("backpropagation", {"marker": "o", "ms": 5}),
    "training": (
        "gradient of the training",
        {"marker": "D", "mfc": "none", "ms": 10, "mew": 1.5},
    ),
}


def noise(found: JSON, arrays: Arrays) -> Figure:
    """Returns the variance of gradients, and the cosine of zeroth-order estimates."""
    del arrays
    figure, (left, right) = drawing.panels(2)
    runs = found["runs"]
    for number, run in enumerate(runs):
        figures, color = run["noise"], drawing.color(number)
        for kind, (_, style) in _NOISE_MARKS.items():
            variance = figures.get(kind, {}).get("variance")
            if variance:
                left.plot(number, variance, color=color, ls="none", **style)
        rows = figures["zeroth_order"]
        x = [row["num_directions"] for row in rows]
        y = [row["cosine"] for row in rows]
        error = [row["cosine_error"] for row in rows]
        style = {"color": color, "marker": drawing.marker(number), "ms": 5}
        right.errorbar(x, y, error, ls="none", capsize=3, **style)
        many = range(min(x), max(x) + 1)
        law = [expected_cosine(int(m), rows[0]["dimension"]) for m in many]
        right.plot(many, law, **drawing.line(number), alpha=0.7)
    left.set_ylabel("variance over batches")
    left.set_title("gradient of a batch")
    if left.lines:
        drawing.log_if_wide(left)
    drawing.ticks(left, runs)
    x = [row["num_directions"] for row in runs[0]["noise"]["zeroth_order"]]
    right.set_xscale("log")
    right.set_xticks(x, [str(m) for m in x])
    right.minorticks_off()
    right.set_ylim(bottom=0)
    right.set_xlabel("random directions m")
    right.set_ylabel("cosine to the gradient")
    right.set_title("zeroth-order estimate (line: its law)")
    marks = [
        (Line2D([], [], color="0.3", ls="none", **style), name)
        for name, style in _NOISE_MARKS.values()
    ]
    drawing.legend(figure, runs, extra=marks)
    return figure


def masks(found: JSON, arrays: Arrays) -> Figure:
    """Returns the densities of the layers, and the overlap of several runs."""
    del arrays
    each = [run["masks"]["densities"] for run in found["runs"]]
    paths = [*dict.fromkeys(path for densities in each for path in densities)]
    overlap = found["overlap"]
    width = 2.2 * drawing.WIDTH if overlap else 1.4 * drawing.WIDTH
    size = (width, max(drawing.HEIGHT, 0.9 + 0.21 * len(paths)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 2 if overlap else 1, squeeze=False)[0]
    for number, densities in enumerate(each):
        rows = [i for i, path in enumerate(paths) if path in densities]
        values = [densities[paths[i]] for i in rows]
        # Runs of one budget have the same densities: side by side they are seen.
        places = np.array(rows) + 0.5 * ((number + 0.5) / len(each) - 0.5)
        style = {"color": drawing.color(number), "marker": drawing.marker(number)}
        axes[0].plot(values, places, ls="none", ms=4.5, alpha=0.85, **style)
    axes[0].set_yticks(range(len(paths)), paths, fontsize=7)
    axes[0].set_ylim(len(paths) - 0.4, -0.6)
    lowest = min((d for densities in each for d in densities.values() if d), default=1)
    if lowest < 0.1:
        axes[0].set_xscale("log")
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes[0].xaxis.set_minor_formatter(NullFormatter())
    else:
        axes[0].set_xlim(0, 1)
    axes[0].set_xlabel("density")
    axes[0].set_title("live weights by layer")
    axes[0].grid(alpha=0.3)
    if overlap:
        _matrix(axes[1], overlap)
    drawing.legend(figure, found["runs"])
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
    """Returns the surface of every landscape in three dimensions, on common axes.

    On the plane through three runs, the runs are marked.
    """
    shapes = surfaces.of(found, arrays)
    figure = Figure(figsize=(drawing.WIDTH * len(shapes), 1.1 * drawing.WIDTH))
    levels = surfaces.common_levels(shapes)
    low, high = levels.scaled(levels.values[[0, -1]])
    height = "log10 of loss" if levels.scale == "log" else "loss"
    for number, each in enumerate(shapes):
        axis: Any = figure.add_subplot(1, len(shapes), number + 1, projection="3d")
        heights = levels.scaled(levels.clipped(each.heights))
        x, y = np.meshgrid(each.x, each.y, indexing="ij")
        axis.plot_surface(
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
        axis.set_zlim(low, high)
        # Smaller than usual, so that the label of the vertical axis is in the picture.
        axis.set_box_aspect((4, 4, 3), zoom=0.84)
        axis.zaxis.labelpad = 8
        axis.set_title(each.title, parse_math=False, fontsize=10)
    if found["plane"] is not None:
        _mark_runs(figure.axes[0], shapes[0], levels)
        drawing.legend(figure, found["runs"])
    figure.subplots_adjust(left=0.02, right=0.94, bottom=0.06, top=0.9, wspace=0.15)
    return figure


def _mark_runs(axis: Axes, each: Surface, levels: Levels) -> None:
    """Marks the networks on a surface, each with a line down to the floor."""
    cube: Any = axis
    # Marks that the surface hides would be as good as none.
    cube.computed_zorder = False
    heights = levels.scaled(levels.clipped(surfaces.heights_at(each, each.points)))
    floor = levels.scaled(levels.values[:1])[0]
    for number, ((x, y), z) in enumerate(zip(each.points, heights, strict=True)):
        color = drawing.color(number)
        cube.plot([x, x], [y, y], [floor, z], color=color, lw=1, ls=":", zorder=5)
        cube.plot([x], [y], [z], **_mark(number), zorder=6)


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
    ("cosine of successive batches", ("noise", "successive_cosine")),
    ("test accuracy", ("errors", "accuracy")),
)
"""What is shown along a training, and where it stands."""


def along(found: JSON, arrays: Arrays) -> Figure:
    """Returns the figures of the runs at each of their checkpoints."""
    del arrays
    runs = trainings(found)
    shown = [row for row in _ALONG if row[1][0] in found["settings"]["parts"]]
    figure, axes = drawing.panels(len(shown), min(len(shown), 3))
    for axis, (label, path) in zip(axes, shown, strict=False):
        for number, checkpoints in enumerate(runs.values()):
            found_at = [files.at(run, path) for run in checkpoints]
            values = [math.nan if x is None else x for x in found_at]
            steps = [run["step"] for run in checkpoints]
            style = {**drawing.line(number), "marker": drawing.marker(number)}
            axis.plot(steps, values, **style, ms=4)
        axis.set_xlabel("step")
        axis.set_title(_scored(label, found["runs"]))
        drawing.log_if_wide(axis)
    drawing.legend(figure, [{"run": name} for name in runs])
    return figure


def _scored(title: str, runs: Sequence[JSON]) -> str:
    """Returns a title with the name of the score that the runs have."""
    scores = dict.fromkeys(files.at(run, ("errors", "score")) for run in runs)
    return score_title(title, [score for score in scores if score is not None])


def trainings(found: JSON) -> dict[str, list[JSON]]:
    """Returns the analysed checkpoints of each run, by its name.

    Args:
      found: The contents of `analysis.json`, of all checkpoints of the runs.

    >>> runs = [{"run": "a@4"}, {"run": "a@8"}, {"run": "b@8"}]
    >>> {name: len(each) for name, each in trainings({"runs": runs}).items()}
    {'a': 2, 'b': 1}
    """
    runs: dict[str, list[JSON]] = {}
    for run in found["runs"]:
        runs.setdefault(run["run"].rpartition("@")[0], []).append(run)
    return runs


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
            shown = {row[1][0] for row in _ALONG} & set(found["settings"]["parts"])
            if not (found["settings"]["checkpoints"] and shown):
                return False
            # One point is no curve.
            return max(map(len, trainings(found).values())) > 1
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
    "errors": _Picture("errors", error_pictures.classes, needs="by_class"),
    "label-errors": _Picture("errors", error_pictures.labels, needs="by_label"),
    "regions": _Picture("errors", error_pictures.regions, needs="by_region"),
    "label-maps": _Picture("errors", error_pictures.maps, needs="by_region"),
    "residuals": _Picture("errors", error_pictures.values, needs="by_value"),
    "features": _Picture("features", features, needs="layers"),
    "along-training": _Picture(None, along),
}
