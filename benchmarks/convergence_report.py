"""The picture of `benchmarks.convergence`, and its tables."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks import convergence_theory as theory

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLORS = {
    "SGD": ("black", "o"),
    "SAM": ("#D55E00", "s"),
    "ZO-SAM, m=1": ("#0072B2", "^"),
    "ZO-SAM, m=4": ("#56B4E9", "v"),
    "guided ZO-SAM": ("#009E73", "D"),
    "random sign": ("#CC79A7", "x"),
}
"""Colours that colour-blind readers tell apart (Okabe and Ito), and marks."""
NOISES = {"none": "no noise", "gradient": "noisy gradient", "data": "noisy data"}


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Draws curves, floors, bias and shares, and saves the picture.

    Args:
      content: Of the result file.
      path: File of the picture.
    """
    figure, axes = plt.subplots(3, 3, figsize=(14, 12), layout="constrained")
    settings = content["settings"]
    _curves(axes[0, 0], content, (100, "none", "constant"))
    rate = (1 - settings["rate"] * theory.LEAST_CURVATURE) ** 2
    times = np.geomspace(1, settings["steps"], 200)
    axes[0, 0].plot(times, rate**times, "k:", label="slowest direction of SGD")
    axes[0, 0].set_ylim(bottom=1e-8)
    _curves(axes[0, 1], content, (100, "none", "falling"))
    _lines(axes[0, 1], settings["steps"], {-1: 1e-4, -2: 1e-7})
    _curves(axes[0, 2], content, (100, "gradient", "falling"))
    _lines(axes[0, 2], settings["steps"], {-1: 3e-4})
    _curves(axes[1, 0], content, (10, "data", "falling"))
    _lines(axes[1, 0], settings["steps"], {-1: 5e-5})
    _floors(axes[1, 1], content)
    _bias(axes[1, 2], content)
    for axis, dim in zip(axes[2], settings["wells"]["dims"], strict=True):
        _wells(axis, content, dim)
    handles, labels = axes[2, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    print(f"written: {path}")


def _curves(axis: Axes, content: Mapping[str, Any], which: tuple[Any, ...]) -> None:
    """Draws f by the number of steps, the mean over the seeds."""
    dim, noise, schedule = which
    times, _ = theory.binned(np.ones(content["settings"]["steps"]))
    for row in content["bowl"]:
        own = row["dim"], row["noise"], row["schedule"]
        if own != which or row["rho"] != content["settings"]["rho"]:
            continue
        color, mark = COLORS[row["method"]]
        style = {"color": color, "marker": mark, "markersize": 4, "linewidth": 1}
        axis.plot(times, row["curve"], **style)
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="f(w) - minimum")
    rates = {"constant": "constant learning rate", "falling": "learning rate 1/t"}
    axis.set_title(f"{dim} dimensions, {NOISES[noise]}, {rates[schedule]}", fontsize=10)


def _lines(axis: Axes, steps: int, ends: Mapping[int, float]) -> None:
    """Draws powers of the number of steps that end at a height."""
    for exponent, height in ends.items():
        times = np.array([steps / 20, steps])
        axis.plot(times, height * (times / steps) ** exponent, "k:")
        start = height * 20.0**-exponent
        axis.annotate(f"$t^{{{exponent}}}$", (steps / 20, 1.3 * start), fontsize=9)


def _floors(axis: Axes, content: Mapping[str, Any]) -> None:
    """Draws the last value of f by the radius, where the data are noisy."""
    for name, (color, mark) in COLORS.items():
        own = [
            row
            for row in content["bowl"]
            if (row["method"], row["dim"]) == (name, content["settings"]["radii_dim"])
            and (row["noise"], row["schedule"]) == ("data", "falling")
        ]
        means, halves = np.array([list(row["floor"].values()) for row in own]).T
        radii = [row["rho"] for row in own]
        if name == "SGD":
            axis.axhline(means[0], color=color, linewidth=1)
            continue
        axis.errorbar(radii, means, halves, color=color, fmt=mark, capsize=2)
        if "floor_theory" in own[0]:
            axis.plot(radii, [row["floor_theory"] for row in own], ":", color=color)
    title = "10 dimensions, noisy data: last f, and theory (dotted)"
    axis.set(xscale="log", yscale="log", xlabel="radius rho", ylabel="f(w) - minimum")
    axis.set_title(title, fontsize=10)


def _bias(axis: Axes, content: Mapping[str, Any]) -> None:
    """Draws the bias of the mean iterate as a share of SAM's in theory."""
    rows = content["bias"]
    sam = {row["dim"]: row["theory"] for row in rows if row["method"] == "SAM"}
    for name, (color, mark) in COLORS.items():
        own = [row for row in rows if row["method"] == name]
        if not own:
            continue
        dims = [row["dim"] for row in own]
        shares, halves = (
            [row["bias"][x] / sam[row["dim"]] for row in own]
            for x in ("mean", "half_width")
        )
        axis.errorbar(dims, shares, halves, color=color, fmt=mark, capsize=2)
        if "theory" in own[0]:
            known = [row["theory"] / sam[row["dim"]] for row in own]
            axis.plot(dims, known, ":", color=color)
    axis.set(xscale="log", yscale="log", xlabel="dimensions", ylabel="bias / SAM's")
    axis.set_title("Noisy data: bias of order rho, and theory (dotted)", fontsize=10)


def _wells(axis: Axes, content: Mapping[str, Any], dim: int) -> None:
    """Draws the shares of seeds in the flat well by the radius."""
    for name, (color, mark) in COLORS.items():
        for start, filled in (("sharp", True), ("flat", False)):
            own = [
                row
                for row in content["wells"]
                if (row["method"], row["dim"], row["start"]) == (name, dim, start)
            ]
            shares = np.array([row["flat"] / row["seeds"] for row in own])
            low, high = np.array([row["interval"] for row in own]).T
            radii = [row["rho"] or content["settings"]["wells"]["least"] for row in own]
            axis.errorbar(
                *(radii, shares, np.maximum(0, [shares - low, high - shares])),
                color=color,
                marker=mark,
                linestyle="-" if filled else ":",
                fillstyle="full" if filled else "none",
                markersize=5,
                linewidth=1,
                capsize=2,
                label=name if filled else None,
            )
    axis.set(
        xscale="log", xlabel="radius rho", ylabel="share of seeds", ylim=(-0.05, 1.05)
    )
    axis.set_title(f"Ended in the flat well, {dim} dimensions", fontsize=10)


def tables(content: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the tables of the result file by their names, header first."""
    return {
        "convergence-slopes": _by_case(content, "falling", _slope),
        "convergence-floors": _by_case(content, "constant", _floor),
        "convergence-bias": _biases(content["bias"]),
        "convergence-wells": _shares(content["wells"]),
    }


Cell = Callable[[Mapping[str, Any]], str]


def _by_case(content: Mapping[str, Any], schedule: str, cell: Cell) -> list[list[str]]:
    rows = [
        row
        for row in content["bowl"]
        if row["schedule"] == schedule and row["rho"] == content["settings"]["rho"]
    ]
    columns = [(n, d) for n in NOISES for d in dict.fromkeys(r["dim"] for r in rows)]
    found = {(r["method"], r["noise"], r["dim"]): r for r in rows}
    lines = [["method", *(f"{NOISES[noise]}, d={dim}" for noise, dim in columns)]]
    for name in COLORS:
        lines.append([name, *(cell(found[name, *column]) for column in columns)])
    return lines


def _slope(row: Mapping[str, Any]) -> str:
    found, known = row["slope"], row.get("slope_theory")
    own = f"{found['mean']:.2f} ± {found['half_width']:.2f}"
    return own if known is None else f"{own} ({known:.2f})"


def _floor(row: Mapping[str, Any]) -> str:
    found, known = row["floor"]["mean"], row.get("floor_theory")
    if found < 1e-11:
        return "0"
    return f"{found:.1e}" if not known else f"{found:.1e} ({known:.1e})"


def _biases(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    dims = list(dict.fromkeys(row["dim"] for row in rows))
    lines = [["method", *(f"d={dim}" for dim in dims)]]
    found = {(row["method"], row["dim"]): row for row in rows}
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for row in (found[name, dim] for dim in dims):
            bias, known = row["bias"], row.get("theory")
            own = f"{1e3 * bias['mean']:.1f} ± {1e3 * bias['half_width']:.1f}"
            cells.append(own if known is None else f"{own} ({1e3 * known:.1f})")
        lines.append([name, *cells])
    return lines


def _shares(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    radii = sorted({row["rho"] for row in rows if row["rho"]})
    lines = [["d", "method", *(f"rho {rho:g}" for rho in radii)]]
    found: dict[tuple[int, str], dict[float, Mapping[str, Any]]] = {}
    for row in (row for row in rows if row["start"] == "sharp"):
        found.setdefault((row["dim"], row["method"]), {})[row["rho"]] = row
    for (dim, name), own in found.items():
        cells = (_share(own.get(rho) or own[0.0]) for rho in radii)
        lines.append([str(dim), name, *cells])
    return lines


def _share(row: Mapping[str, Any]) -> str:
    low, high = (100 * x for x in row["interval"])
    return f"{100 * row['flat'] / row['seeds']:.0f} ({low:.0f}-{high:.0f})"
