"""Loss landscapes as a page on which surfaces can be turned and zoomed."""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zosam_jax.analysis import drawing, surfaces
from zosam_jax.analysis.surfaces import Levels, Surface
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON

_COLUMNS = 2
# From farther away than usual: the whole cube with its titles is in view.
_CAMERA = {
    "eye": {"x": 1.6, "y": 1.6, "z": 1.1},
    "center": {"x": 0, "y": 0, "z": -0.15},
}


def check(parts: Sequence[str]) -> None:
    """Raises `RunError` if there will be no landscape, or Plotly is missing.

    Args:
      parts: Parts of the analysis.
    """
    if "landscape" not in parts:
        raise RunError("--interactive shows the landscape, which --parts leaves out.")
    if importlib.util.find_spec("plotly") is None:
        raise RunError(
            "--interactive needs Plotly: pip install 'zosam-jax[interactive]'."
        )


def write(found: JSON, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes one page with the surface of every landscape; it needs no network.

    Heights are on a logarithmic axis, the same for all; on a linear one, if there are
    losses below 0.

    Args:
      found: The contents of `analysis.json`.
      arrays: The contents of `analysis.npz`.
      path: File to write.
    """
    from plotly import subplots

    shapes = surfaces.of(found, arrays)
    columns = min(len(shapes), _COLUMNS)
    rows = -(-len(shapes) // columns)
    figure = subplots.make_subplots(
        rows=rows,
        cols=columns,
        specs=[[{"type": "surface"}] * columns] * rows,
        # A name of a run is no markup.
        subplot_titles=[_escaped(each.title) for each in shapes],
        horizontal_spacing=0.02,
        vertical_spacing=0.06,
    )
    levels = surfaces.common_levels(shapes)
    low, high = levels.scaled(levels.values[[0, -1]])
    for number, each in enumerate(shapes):
        row, column = number // columns + 1, number % columns + 1
        figure.add_trace(_surface(each, levels), row=row, col=column)
        axes = {
            "xaxis_title": each.labels[0],
            "yaxis_title": each.labels[1],
            "zaxis_title": "loss",
            "zaxis_type": levels.scale,
            "zaxis_range": [low, high],
            "camera": _CAMERA,
        }
        if levels.scale == "log" and high - low > 2:
            # Powers of ten alone; else 2 and 5 stand between them, and crowd.
            axes["zaxis_dtick"] = math.ceil((high - low) / 6)
        figure.update_scenes(**axes, row=row, col=column)
    if found["plane"] is not None:
        for mark in _marks(found, shapes[0], levels):
            figure.add_trace(mark, row=1, col=1)
    figure.update_layout(height=640 * rows, margin={"l": 10, "r": 10, "t": 60, "b": 10})
    temporary = path.with_name(f".{path.name}")
    figure.write_html(temporary, include_plotlyjs=True)
    temporary.replace(path)


def _surface(each: Surface, levels: Levels) -> Any:
    """A landscape as Plotly draws it."""
    from plotly import graph_objects

    heights = levels.clipped(each.heights)
    low, high = levels.scaled(levels.values[[0, -1]])
    return graph_objects.Surface(
        x=each.x,
        y=each.y,
        z=heights.T,
        surfacecolor=levels.scaled(heights.T),
        cmin=low,
        cmax=high,
        colorscale="Cividis",
        showscale=False,
        hovertemplate="%{x:.3g}, %{y:.3g}: loss %{z:.4g}<extra></extra>",
    )


def _marks(found: JSON, each: Surface, levels: Levels) -> list[Any]:
    """The runs on the plane through them, their names above the highest level."""
    from plotly import graph_objects

    heights = levels.clipped(surfaces.heights_at(each, each.points))
    rows = zip(found["runs"], each.points, heights, strict=True)
    return [
        graph_objects.Scatter3d(
            # A surface may hide the mark in its valley, and not the line out of it.
            x=[point[0]] * 2,
            y=[point[1]] * 2,
            z=[height, levels.values[-1]],
            mode="lines+markers+text",
            text=["", _escaped(surfaces.short_name(run["run"]))],
            line={"color": drawing.color(number), "width": 4},
            marker={"color": drawing.color(number), "size": [6, 1]},
            showlegend=False,
            hoverinfo="skip",
        )
        for number, (run, point, height) in enumerate(rows)
    ]


def _escaped(title: str) -> str:
    lines = title.replace("&", "&amp;").replace("<", "&lt;").split("\n")
    return "<br>".join(lines)
