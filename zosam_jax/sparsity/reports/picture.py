"""The picture of a sparsity report."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from zosam_jax.sparsity.reports import table

_SPARSE, _FAINT, _WHOLE, _ALARM = "#1f5fa8", "#9aa5b1", "#d5dbe3", "#c0392b"


def draw(found: Any) -> Figure:
    """Returns a figure with the density and the share of the cost of every layer.

    Args:
      found: A `SparsityReport`.
    """
    layers = table.layers(found)
    shares = _shares(found, layers)
    lines = len(shares)
    size = (11.0, 1.7 + 0.24 * max(lines, 4))
    figure = Figure(figsize=size, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _densities(left, layers, 1 - found.sparsity)
    y = range(lines)
    bars = {"color": _WHOLE, "height": 0.8, "label": "dense network"}
    right.barh(y, [dense for _, dense, _ in shares], **bars)
    bars = {"color": _SPARSE, "height": 0.4, "label": "sparse network"}
    right.barh(y, [live for _, _, live in shares], **bars)
    right.xaxis.set_major_formatter(PercentFormatter(1.0))
    right.set_xlabel(f"share of all {_quantity(found)} of each network")
    left.set_yticks(range(lines), [name for name, _, _ in shares], fontsize=8)
    left.set_ylim(lines - 0.4, -0.6)
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=4,
            fontsize=8,
            frameon=False,
            borderaxespad=0.2,
        )
    figure.suptitle(table.summary(found), fontsize=10, x=0.01, ha="left")
    return figure


def _quantity(found: Any) -> str:
    return "FLOPs" if found.inference_sparse else "weights"


def _shares(found: Any, layers: list[Any]) -> list[tuple[str, float, float]]:
    """Returns rows `(name, share of the dense cost, share of the sparse cost)`."""
    if not found.inference_sparse:
        pairs = [(r.path, r.weights, r.live) for r in layers]
        whole = found.weights, found.live
    else:
        pairs = [(r.path, r.flops_dense or 0.0, r.flops_sparse or 0.0) for r in layers]
        whole = found.inference_dense or 0.0, found.inference_sparse
        if found.flops_other:
            pairs.append((table.OTHER, found.flops_other, found.flops_other))
    return [(n, d / max(whole[0], 1), s / max(whole[1], 1)) for n, d, s in pairs]


def _densities(axis: Axes, layers: list[Any], overall: float) -> None:
    live = [r.density for r in layers if r.density > 0]
    lowest = min([*live, overall or 1.0])
    # Over more than a decade a linear axis would hide the sparsest layers.
    logarithmic = lowest < 0.1
    start = 10.0 ** math.floor(math.log10(lowest)) if logarithmic else 0.0
    for whole, color, label in ((False, _SPARSE, "sparse"), (True, _FAINT, "dense")):
        chosen = [i for i, r in enumerate(layers) if r.whole is whole and r.live]
        if not chosen:
            continue
        x = [max(layers[i].density, start) for i in chosen]
        axis.hlines(chosen, start, x, color=color, linewidth=1.4)
        axis.plot(x, chosen, "o", color=color, markersize=5, label=label, clip_on=False)
    seen = [i for i, r in enumerate(layers) if r.explored is not None]
    if seen:
        x = [layers[i].explored or 0.0 for i in seen]
        axis.plot(x, seen, "|", color=_SPARSE, markersize=9, label="ever live")
    dead = [i for i, r in enumerate(layers) if r.weights and not r.live]
    if dead:
        x, label = [start] * len(dead), "no live weight"
        axis.plot(x, dead, "X", color=_ALARM, markersize=8, label=label, clip_on=False)
    for i, row in enumerate(layers):
        axis.annotate(
            "dense" if row.whole else f"{row.density:.3g}",
            (1.0, i),
            xycoords=("axes fraction", "data"),
            xytext=(34, 0),
            textcoords="offset points",
            va="center",
            ha="right",
            fontsize=7.5,
            color=_ALARM if row.warning else "black",
        )
    if any(row.sparse for row in layers):
        label = f"all sparse leaves: {overall:.3g}"
        axis.axvline(overall, color=_ALARM, linewidth=1, zorder=0, label=label)
    if logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_xlim(start, 1.0)
    axis.set_xlabel(
        "density (numbers in red: see the warnings)"
        if any(row.warning for row in layers)
        else "density"
    )
