"""Pictures of an analysis, one for each part: as many runs as are given, side by side.

Colors are those of Okabe and Ito, which color-blind readers can tell apart; lines also
differ in their style, and maps are in cividis.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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

from zosam_jax.analysis.noise import expected_cosine
from zosam_jax.runs.files import JSON

Arrays = Mapping[str, np.ndarray]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_WIDTH, _HEIGHT = 4.2, 3.4


def drawable(found: JSON) -> list[str]:
    """Returns the parts of an analysis that have a picture.

    Args:
      found: The contents of `analysis.json`.
    """
    sparse = any(run.get("masks", {}).get("densities") for run in found["runs"])
    parts = found["settings"]["parts"]
    return [part for part in PICTURES if part in parts and (part != "masks" or sparse)]


def draw(part: str, found: JSON, arrays: Arrays, path: Path) -> None:
    """Writes the picture of a part.

    Args:
      part: One of `drawable(found)`.
      found: The contents of `analysis.json`.
      arrays: The contents of `analysis.npz`.
      path: File to write, ending in .png or another suffix that Matplotlib knows. Its
        folder must exist.
    """
    figure, temporary = PICTURES[part](found, arrays), path.with_name(f".{path.name}")
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
    """Returns a contour map for every run, on common levels, and lines through them."""
    runs = found["runs"]
    columns = min(len(runs) + 1, 3)
    figure, axes = _panels(len(runs) + 1, columns)
    heights = [arrays[f"{run['run']}/heights"] for run in runs]
    levels = _levels(heights)
    settings = found["settings"]
    maps = axes[: len(runs)]
    shown = [
        _map(axis, arrays[f"{run['run']}/axis"], height, levels)
        for axis, run, height in zip(maps, runs, heights, strict=True)
    ]
    for axis, run in zip(maps, runs, strict=True):
        roughness = run["landscape"]["roughness"]
        text = "not finite" if roughness is None else f"{roughness:.3g}"
        axis.set_title(f"{_short(run['run'])}\nRa = {text}", parse_math=False)
        axis.set_xlabel(_direction(settings, 1))
        axis.set_ylabel(_direction(settings, 2))
    bar = figure.colorbar(shown[0], ax=list(maps), label="loss", shrink=0.9)
    bar.ax.minorticks_off()
    chosen = levels[:: max(1, len(levels) // 6)]
    bar.set_ticks(list(chosen), labels=[f"{level:.3g}" for level in chosen])
    line = axes[len(runs)]
    for number, (run, height) in enumerate(zip(runs, heights, strict=True)):
        middle = height.shape[1] // 2
        line.plot(arrays[f"{run['run']}/axis"], height[:, middle], **_line(number))
    line.set_xlabel(_direction(settings, 1))
    line.set_ylabel("loss")
    line.set_title("through the networks")
    _log_if_wide(line)
    _legend(figure, runs)
    return figure


def _map(
    axis: Axes, x: np.ndarray, heights: np.ndarray, levels: np.ndarray
) -> QuadContourSet:
    """Draws a contour map; the first direction is horizontal."""
    clipped = np.clip(np.nan_to_num(heights.T, nan=np.inf), levels[0], levels[-1])
    shown = axis.contourf(x, x, clipped, levels=levels, cmap="cividis", norm="log")
    axis.contour(x, x, clipped, levels=levels[::3], colors="white", linewidths=0.5)
    axis.plot(0, 0, "+", color="white", ms=8, mew=1.5)
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
    names = [f"{i + 1}: {_short(name)}" for i, name in enumerate(overlap["runs"])]
    axis.set_xticks(count, [str(i + 1) for i in count])
    axis.set_yticks(count, names, fontsize=8, parse_math=False)
    axis.set_title("overlap of the masks (Jaccard)")


PICTURES: dict[str, Callable[[JSON, Arrays], Figure]] = {
    "curvature": curvature,
    "sharpness": sharpness,
    "landscape": surface,
    "noise": noise,
    "masks": masks,
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
        text.set_text(_short(name, 60))


def _short(name: str, length: int = 34) -> str:
    """A name that fits, with its end, where names of runs differ."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _ticks(axis: Axes, runs: Sequence[JSON]) -> None:
    """Puts the runs along the horizontal axis; the legend has their names."""
    axis.set_xticks(range(len(runs)), [""] * len(runs))
    axis.set_xlim(-0.6, len(runs) - 0.4)
    axis.set_xlabel("run")
    axis.grid(visible=False, axis="x")


def _direction(settings: JSON, number: int) -> str:
    if settings["directions"] == "eigenvectors":
        return f"along eigenvector {number}"
    return f"along random direction {number}"


def _levels(heights: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithmic levels common to all surfaces, without the highest peaks."""
    finite = np.concatenate([h[np.isfinite(h)] for h in heights])
    low = max(float(finite.min()), 1e-6) if finite.size else 1.0
    high = max(float(np.quantile(finite, 0.98)) if finite.size else 1.0, 1.01 * low)
    return np.geomspace(low * 0.999, high, 22)


def _log_if_wide(axis: Axes) -> None:
    """Makes the vertical axis logarithmic where values above 0 span decades."""
    values = np.concatenate([np.ravel(line.get_ydata()) for line in axis.lines])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")
    else:
        axis.yaxis.set_major_formatter(ScalarFormatter(useMathText=True))
