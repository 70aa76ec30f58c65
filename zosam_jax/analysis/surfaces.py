"""The landscapes of an analysis, and the levels at which pictures show them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zosam_jax.runs.files import JSON

_COUNT = 22


class Surface(NamedTuple):
    """A landscape.

    Attributes:
      title: Its name.
      x: Places along the first direction.
      y: Places along the second.
      heights: The losses, `[len(x), len(y)]`.
      labels: Names of the directions.
      points: Where the networks are, `[n, 2]`.
    """

    title: str
    x: np.ndarray
    y: np.ndarray
    heights: np.ndarray
    labels: tuple[str, str]
    points: np.ndarray


def of(found: JSON, arrays: Mapping[str, np.ndarray]) -> list[Surface]:
    """Returns the landscape of every run, or the one through three runs.

    Args:
      found: The contents of `analysis.json`.
      arrays: The contents of `analysis.npz`.
    """
    if found["plane"] is not None:
        x, y, heights = (arrays[f"plane_{name}"] for name in ("x", "y", "heights"))
        title = f"through the runs, {_roughness(found['plane'])}"
        labels = "distance along the first two runs", "distance from their line"
        points = np.array(found["plane"]["points"])
        return [Surface(title, x, y, heights, labels, points)]
    kind = found["settings"]["directions"].removesuffix("s")
    name = kind if kind == "eigenvector" else f"{kind} direction"
    labels = f"along {name} 1", f"along {name} 2"
    surfaces: list[Surface] = []
    for run in found["runs"]:
        axis, heights = (arrays[f"{run['run']}/{key}"] for key in ("axis", "heights"))
        title = f"{short_name(run['run'])}\n{_roughness(run['landscape'])}"
        surfaces.append(Surface(title, axis, axis, heights, labels, np.zeros((1, 2))))
    return surfaces


def _roughness(figures: JSON) -> str:
    value = figures["roughness"]
    return f"Ra = {'not finite' if value is None else f'{value:.3g}'}"


def heights_at(surface: Surface, points: np.ndarray) -> np.ndarray:
    """Returns the heights at points between those of the grid, `[n]`, bilinearly.

    Args:
      surface: The landscape.
      points: `[n, 2]`, within the grid.

    >>> heights, axis = np.array([[0.0, 2.0], [4.0, 6.0]]), np.array([0.0, 1.0])
    >>> plane = Surface("", axis, axis, heights, ("", ""), np.zeros((1, 2)))
    >>> heights_at(plane, np.array([[0.5, 0.25]])).tolist()
    [2.5]
    """
    rows, columns = (
        np.clip(np.searchsorted(axis, at, "right") - 1, 0, len(axis) - 2)
        for axis, at in zip((surface.x, surface.y), points.T, strict=True)
    )
    u = (points[:, 0] - surface.x[rows]) / np.diff(surface.x)[rows]
    v = (points[:, 1] - surface.y[columns]) / np.diff(surface.y)[columns]
    h = surface.heights
    low = (1 - v) * h[rows, columns] + v * h[rows, columns + 1]
    high = (1 - v) * h[rows + 1, columns] + v * h[rows + 1, columns + 1]
    return (1 - u) * low + u * high


class Levels(NamedTuple):
    """Levels of a height.

    Attributes:
      values: The levels, rising.
      scale: "log"; "linear" if there are heights below 0.
    """

    values: np.ndarray
    scale: str

    def clipped(self, heights: np.ndarray) -> np.ndarray:
        """Returns heights within the levels; those that are not finite are highest."""
        finite = np.nan_to_num(heights, nan=np.inf)
        return np.clip(finite, self.values[0], self.values[-1])

    def scaled(self, heights: np.ndarray) -> np.ndarray:
        """Returns log10 of heights on a logarithmic scale, else the heights."""
        return np.log10(heights) if self.scale == "log" else heights


def common_levels(surfaces: Sequence[Surface]) -> Levels:
    """Returns levels common to all surfaces, without the highest peaks.

    Args:
      surfaces: The surfaces.
    """
    finite = np.concatenate([s.heights[np.isfinite(s.heights)] for s in surfaces])
    low, high = (*np.quantile(finite, (0, 0.98)),) if finite.size else (1.0, 1.0)
    if low < 0:
        # The losses of a loss of one's own.
        margin = 1e-3 * max(high - low, abs(low))
        return Levels(np.linspace(low - margin, high + margin, _COUNT), "linear")
    low = max(low, 1e-6)
    high = max(high, 1.01 * low)
    return Levels(np.geomspace(low * 0.999, high, _COUNT), "log")


def short_name(name: str, length: int = 34) -> str:
    """Returns a name that fits, with its end, where names of runs differ.

    Args:
      name: The name.
      length: The most letters.
    """
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= length else f"…{name[1 - length :]}"
