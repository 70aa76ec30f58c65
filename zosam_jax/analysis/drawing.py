"""What the pictures of an analysis share: panels, lines, markers and the legend.

Colors are those of Okabe and Ito, which color-blind readers can tell apart; lines also
differ in their style.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import ScalarFormatter

from zosam_jax.analysis.surfaces import short_name
from zosam_jax.runs.files import JSON

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

WIDTH, HEIGHT = 4.2, 3.4
"""Size of a panel, in inches."""


def panels(count: int, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    """Returns a figure of equal panels, in rows.

    Args:
      count: Number of panels.
      columns: Panels of a row. Default: all.
    """
    columns = columns or count
    rows = math.ceil(count / columns)
    size = (WIDTH * columns, HEIGHT * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
        axis.title.set_fontsize(10)
    return figure, axes


def color(number: int) -> str:
    """Returns the color of a run by its number.

    >>> color(0) == color(len(COLORS)) == COLORS[0]
    True
    """
    return COLORS[number % len(COLORS)]


def line(number: int) -> dict[str, Any]:
    """Returns the color and the style of the line of a run by its number."""
    style = _STYLES[number % len(_STYLES)]
    return {"color": color(number), "ls": style, "lw": 1.6}


def marker(number: int) -> str:
    """Returns the marker of a run by its number.

    >>> marker(0), marker(1)
    ('o', 's')
    """
    return _MARKERS[number % len(_MARKERS)]


def legend(
    figure: Figure,
    runs: Sequence[JSON],
    extra: Sequence[tuple[Line2D, str]] = (),
) -> None:
    """Names the runs below the panels, where the legend hides nothing.

    Args:
      figure: The figure.
      runs: Its runs, in the order of their numbers.
      extra: Further lines or markers, with what they stand for.
    """
    marked = [{**line(i), "marker": marker(i)} for i in range(len(runs))]
    handles = [Line2D([], [], ms=4, **style) for style in marked]
    pairs = [*zip(handles, (run["run"] for run in runs), strict=True), *extra]
    named = figure.legend(
        [handle for handle, _ in pairs],
        [str(i) for i in range(len(pairs))],
        loc="outside lower center",
        fontsize=8,
        ncols=min(3, len(pairs)),
        frameon=False,
    )
    # Given as labels, names with a leading "_" would be left out.
    for text, (_, name) in zip(named.get_texts(), pairs, strict=True):
        text.set_parse_math(False)
        text.set_text(short_name(name, 60))


def ticks(axis: Axes, runs: Sequence[JSON]) -> None:
    """Puts the runs along the horizontal axis; the legend has their names.

    Args:
      axis: A panel.
      runs: Its runs, in the order of their numbers.
    """
    axis.set_xticks(range(len(runs)), [""] * len(runs))
    axis.set_xlim(-0.6, len(runs) - 0.4)
    axis.set_xlabel("run")
    axis.grid(visible=False, axis="x")


def log_if_wide(axis: Axes) -> None:
    """Makes the vertical axis logarithmic where values above 0 span decades."""
    values = np.concatenate([np.ravel(each.get_ydata()) for each in axis.lines])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")
    else:
        axis.yaxis.set_major_formatter(ScalarFormatter(useMathText=True))
