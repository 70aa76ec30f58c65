"""The tables and the picture of `benchmarks.sparse_training`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.study_plan import SAM, SGD
from zosam_jax.runs import intervals
from zosam_jax.sparsity.registry import METHODS, NamedMethod

matplotlib.use("agg")
from matplotlib import pyplot as plt

GRADIENTS = (SGD, SAM, "SAM, 1/16 of the batch", "ZO-SAM", "random, random sign")
"""Of the study. The last is the control of the one before."""
LABELS = {"MEST": "MEST, EM", "lottery ticket": "LT"}
"""Labels of methods that have another one in the registry."""
NOT_RUN = "not run"

Rows = Sequence[Mapping[str, Any]]


def tables(
    rows: Rows, methods: Mapping[str, NamedMethod] = METHODS
) -> dict[str, list[list[str]]]:
    """Returns a table for each sparsity: SGD's accuracy, and the gains over it.

    Accuracies are means ± standard deviations over the seeds in per cent; gains are
    paired differences in points, with 95 % intervals. The dense network stands in every
    table.

    Args:
      rows: Cells of the result file.
      methods: Methods that get a line even without a measurement.
    """
    known = (row.label for name, row in methods.items() if name != "dynamic")
    labels = [LABELS.get(label, label) for label in known]
    names = list(dict.fromkeys([*(row["method"] for row in rows), *labels]))
    return {
        f"sparse-grid-{100 * sparsity:.0f}": [
            ["method", f"{SGD}, %", *GRADIENTS[1:]],
            *([name, *_line(rows, name, sparsity)] for name in names),
        ]
        for sparsity in sorted({row["sparsity"] for row in rows} - {0.0})
    }


def _line(rows: Rows, method: str, sparsity: float) -> list[str]:
    found = accuracies(rows, method, sparsity)
    base = found.get(SGD)
    if base is None:
        return [NOT_RUN] * len(GRADIENTS)
    mean, spread = statistics.fmean(base), statistics.stdev(base)
    cells = [f"{100 * mean:.1f} ± {100 * spread:.1f}"]
    for name in GRADIENTS[1:]:
        gain = intervals.paired(found[name], base) if name in found else None
        cells.append(
            f"{100 * gain.mean:+.1f} ± {100 * gain.half_width:.1f}" if gain else NOT_RUN
        )
    return cells


def accuracies(rows: Rows, method: str, sparsity: float) -> dict[str, list[float]]:
    """Returns the accuracies of the seeds by gradient.

    Those of a dense network are the same at any sparsity.

    Args:
      rows: Cells of the result file.
      method: Label of the method.
      sparsity: The sparsity.
    """
    own = [r for r in rows if r["method"] == method and r["sparsity"] in (sparsity, 0)]
    return {row["gradient"]: row["accuracies"] for row in own}


def mean_gains(rows: Rows, sparsity: float) -> dict[str, float]:
    """Returns the mean gain over SGD of each gradient, over the methods that have it.

    Args:
      rows: Cells of the result file.
      sparsity: The sparsity.
    """
    methods = {row["method"] for row in rows if row["sparsity"] == sparsity}
    gains: dict[str, list[float]] = {}
    for found in (accuracies(rows, method, sparsity) for method in methods):
        for name in found.keys() - {SGD}:
            gain = statistics.fmean(found[name]) - statistics.fmean(found[SGD])
            gains.setdefault(name, []).append(gain)
    return {name: statistics.fmean(gains[name]) for name in GRADIENTS if name in gains}


def draw(rows: Rows, path: Path) -> None:
    """Plots the accuracy of every method and gradient, a panel for each sparsity.

    Args:
      rows: Cells of the result file.
      path: File of the picture.
    """
    sparsities = sorted({row["sparsity"] for row in rows} - {0.0})
    names = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(
        *(1, len(sparsities)),
        figsize=(6 * len(sparsities), 0.32 * len(names) + 1.5),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    colors = plt.get_cmap("tab10")
    for axis, sparsity in zip(axes[0], sparsities, strict=True):
        for index, gradient in enumerate(GRADIENTS):
            points = [
                (100 * statistics.fmean(found[gradient]), line)
                for line, name in enumerate(names)
                if gradient in (found := accuracies(rows, name, sparsity))
            ]
            axis.plot(
                *zip(*points, strict=True),
                "osD^v"[index],
                color=colors(index),
                markersize=5,
                alpha=0.8,
                label=gradient,
            )
        axis.set(
            title=f"{sparsity:.0%} of the weights pruned", xlabel="test accuracy, %"
        )
        axis.set_yticks(range(len(names)), names)
        axis.grid(alpha=0.25)
    axes[0][0].invert_yaxis()
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"written: {path}")
