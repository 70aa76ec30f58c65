"""What a study found: paired gains with their intervals, the table and the picture."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.side_by_side import Result
from benchmarks.study_plan import CONTENDERS, PROBLEMS, SAM, SGD, Training
from zosam_jax.runs import intervals

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

RESULT = "result.json"
"""Name of the result file in the folder of a problem."""
FLATNESS = "flatness.json"
"""Name of the file of `benchmarks.study_flatness` in that folder."""
FIGURES = {
    "accuracy": ("top-1, %", 100.0),
    "corrupted": ("corrupted, %", 100.0),
    "eigenvalue": ("largest eigenvalue", 1.0),
    "rise": ("rise within the radius", 1.0),
}
"""The heading of each figure of a network, and its factor in the table."""
COSTS = {"time": "time of a step", "passes": "gradients of a step"}
"""The two prices of a step, in steps of SGD."""
TICKS = (1, 1.2, 1.5, 2, 3, 4, 6, 8)


def summarize(
    groups: Iterable[Sequence[Training]],
    done: Mapping[Training, Result],
    costs: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Returns a row for each method and stage with a finished training.

    Args:
      groups: The trainings of each method and stage of a problem.
      done: Their results.
      costs: The price of a step by its kind, a key of `COSTS`, and by method.
    """
    own = {
        (trainings[0].stage, trainings[0].method): [x for x in trainings if x in done]
        for trainings in groups
    }
    values = {
        key: {each.seed: done[each].accuracy for each in trainings}
        for key, trainings in own.items()
    }
    rows = []
    for (stage, label), trainings in own.items():
        if not trainings:
            continue
        found = values[stage, label]
        row = {
            "problem": trainings[0].problem,
            "stage": stage,
            "method": label,
            "rho": trainings[0].rho,
            "epochs": trainings[0].epochs,
            **{kind: known.get(label) for kind, known in costs.items()},
            "seeds": list(found),
            "accuracies": list(found.values()),
            "diverged": sum(done[each].diverged for each in trainings),
            "mean": statistics.fmean(found.values()),
        }
        row |= compare("gain", found, values.get(("epochs", SGD), {}))
        row |= compare("to_sam", found, values.get(("epochs", SAM), {}))
        rows.append(row)
    return rows


def results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of each problem with a result, in the order of the plan.

    Args:
      folder: That of all problems.
    """
    paths = {name: folder / name / RESULT for name in PROBLEMS}
    return {
        name: json.loads(path.read_text())["rows"]
        for name, path in paths.items()
        if path.exists()
    }


def compare(
    name: str, found: Mapping[int, float], base: Mapping[int, float]
) -> dict[str, Any]:
    """Returns a paired difference over the seeds that both have, as a field.

    Args:
      name: Name of the field.
      found: Accuracy by seed.
      base: Accuracy by seed of what it is compared to.
    """
    seeds = sorted(found.keys() & base.keys())
    if len(seeds) < 2:
        return {}
    difference = intervals.paired([found[s] for s in seeds], [base[s] for s in seeds])
    return {name: difference._asdict()}


def table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table of a problem: a line for each method, header first.

    Args:
      rows: Its rows, of `summarize`.
    """
    lines = [
        [
            "method",
            "rho",
            "time",
            "gradients",
            "top-1, %",
            "gain over SGD",
            "of SAM's",
            "at equal time: epochs",
            "gain",
            "diverged",
        ]
    ]
    at_time = {row["method"]: row for row in rows if row["stage"] == "time"}
    at_epochs = {row["method"]: row for row in rows if row["stage"] == "epochs"}
    full = at_epochs.get(SAM, {}).get("gain")
    for row in at_epochs.values():
        longer = at_time.get(row["method"], {})
        diverged = row["diverged"] + longer.get("diverged", 0)
        lines.append(
            [
                row["method"],
                f"{row['rho']:g}" if row["rho"] else "",
                *(f"{row[kind]:.2f}" if row[kind] else "" for kind in COSTS),
                f"{100 * row['mean']:.2f}",
                _points(row.get("gain")),
                _share(row.get("gain"), full),
                str(longer.get("epochs", "")),
                _points(longer.get("gain")),
                str(diverged or ""),
            ]
        )
    return lines


def flatness(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns how flat the networks of each method are, header first: mean ± deviation.

    Args:
      rows: Lines of the log, of one problem. Those that diverged are left out and
        counted.
    """
    lines = [["method", "rho", *(name for name, _ in FIGURES.values()), "diverged"]]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        whole = [row for row in own if not row["diverged"]]
        cells = [
            _spread([factor * row[field] for row in whole])
            for field, (_, factor) in FIGURES.items()
        ]
        rho, lost = own[0]["rho"], len(own) - len(whole)
        lines.append([method, f"{rho:g}" if rho else "", *cells, str(lost or "")])
    return lines


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return f"{mean:.3g} ± {spread:.2g}" if mean < 10 else f"{mean:.1f} ± {spread:.1f}"


def _points(found: Mapping[str, float] | None) -> str:
    """A difference in percentage points, with its interval."""
    if found is None or math.isnan(found["mean"]):
        return ""
    return f"{100 * found['mean']:+.2f} ± {100 * found['half_width']:.2f}"


def _share(found: Mapping[str, float] | None, full: Mapping[str, float] | None) -> str:
    """A gain as a percentage of another, if the interval of that is above 0.

    >>> sam, unsure = ({"mean": 0.02, "half_width": x} for x in (0.01, 0.03))
    >>> _share({"mean": 0.01}, sam), _share({"mean": 0.01}, unsure)
    ('50 %', '')
    """
    if found is None or full is None or not full["mean"] > full["half_width"]:
        return ""
    return f"{found['mean'] / full['mean']:.0%}".replace("%", " %")


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Returns the labels that no other point beats, the cheapest first.

    >>> front({"a": (1.0, 0.0), "b": (2.0, 3.0), "c": (2.5, 2.0)})
    ['a', 'b']

    Args:
      points: `(price, gain)` by label.
    """
    best, kept = -math.inf, []
    for label in sorted(points, key=lambda x: (points[x][0], -points[x][1])):
        if points[label][1] > best:
            best = points[label][1]
            kept.append(label)
    return kept


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots the gain at equal epochs against the price of a step, and saves it.

    A row of pictures for each problem, with time and with gradients as the price. The
    line joins the methods that no other beats.

    Args:
      rows: Of `summarize`, of all problems.
      path: File of the picture.
    """
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plt.subplots(
        *(len(problems), len(COSTS)),
        figsize=(12, 4.2 * len(problems)),
        layout="constrained",
        squeeze=False,
    )
    for line, problem in zip(axes, problems, strict=True):
        own = [r for r in rows if r["problem"] == problem and r["stage"] == "epochs"]
        for axis, (kind, label) in zip(line, COSTS.items(), strict=True):
            _panel(axis, own, kind)
            axis.set(title=problem, xlabel=f"{label}, SGD = 1", ylabel="gain, points")
    known: dict[str, Any] = {}
    for handles, labels in (axis.get_legend_handles_labels() for axis in axes.flat):
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(
        known.values(), known, loc="outside right upper", frameon=False, fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"written: {path}")


def _panel(axis: Axes, rows: Sequence[dict[str, Any]], kind: str) -> None:
    """Plots the methods of a problem that have a price of this kind."""
    marks, names = "osD^v<>P*Xd", list(CONTENDERS)
    colors = plt.get_cmap("tab20")
    points = {}
    for row in rows:
        if row[kind] is None or "gain" not in row:
            continue
        gain, half = (100 * row["gain"][x] for x in ("mean", "half_width"))
        points[row["method"]] = row[kind], gain
        index = names.index(row["method"])
        axis.errorbar(
            *(row[kind], gain, half),
            fmt=marks[index % len(marks)],
            color=colors(index % 20),
            markersize=5,
            elinewidth=0.8,
            capsize=2,
            label=row["method"],
        )
    if not points:
        return
    # A method that trains some seeds badly has an interval that hides the others.
    gains = [gain for _, gain in points.values()]
    bottom = min(gains) - max(5, (max(gains) - min(gains)) / 2)
    axis.set_ylim(bottom=max(bottom, axis.get_ylim()[0]))
    line = [points[label] for label in front(points)]
    prices, gains = [x for x, _ in line], [y for _, y in line]
    axis.step(prices, gains, where="post", color="black", linewidth=0.8)
    axis.axhline(0, color="grey", linewidth=0.6)
    axis.set_xscale("log")
    axis.set_xlim(left=0.95)
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.25)
