"""What `benchmarks.accelerator` measures, and the tables of its results."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zosam_jax.runs import intervals

NOT_RUN = "not run"
CORE = ("SAM", "ZO-SAM, vmapped", "guided ZO-SAM")
"""Timed in every cell, besides SGD and ZO-SAM."""


class Cell(NamedTuple):
    """A network and its images, for which steps are timed.

    Attributes:
      model: Name of the network.
      width: Its width.
      batch: Number of images.
      side: Their side in pixels.
      precision: Of the matrix products, as for `jax.default_matmul_precision`.
    """

    model: str
    width: float
    batch: int
    side: int = 32
    precision: str = "default"

    @property
    def name(self) -> str:
        """The cell as part of a file name."""
        end = "" if self.precision == "default" else f"-{self.precision}"
        return f"{self.model}-w{self.width:g}-b{self.batch}-{self.side}px{end}"


def cells(small: bool = False) -> tuple[Cell, ...]:
    """Returns the cells, the most valuable first.

    The first is the network of the preset `cifar-resnet32`, the second that of the
    table of a CPU.
    """
    if small:
        return (Cell("mlp", 1, 8),)
    others = [
        Cell("resnet32", width, batch)
        for batch in (256, 1024, 64, 128, 512)
        for width in (2, 1)
    ]
    first = (
        Cell("resnet32", 2, 64),
        Cell("resnet32", 1, 128),
        Cell("resnet32", 2, 64, precision="highest"),
        Cell("resnet50", 1, 64, 224),
        Cell("deit-tiny", 1, 64, 224),
    )
    return (*first, *(cell for cell in others if cell not in first))


class Training(NamedTuple):
    """A training of the preset `cifar-resnet32`, RigL at 90 %.

    Attributes:
      name: Part of the name of its folder.
      step: Label of the step in the throughput benchmark whose time is nearest.
      passes: Passes through the network, in those of SGD, as a first guess of its time.
      flags: Of `zosam train`.
    """

    name: str
    step: str
    passes: float
    flags: tuple[str, ...]


TRAININGS = {
    "SGD": Training("sgd", "SGD", 1, ("--gradient", "backprop")),
    "SAM": Training("sam", "SAM", 2, ("--gradient", "sam")),
    "ZO-SAM": Training("zosam", "ZO-SAM", 1.7, ("--gradient", "zosam")),
    "SAM, 1/4 of the batch": Training(
        "sam-quarter",
        "SAM",
        1.3,
        ("--gradient", "sam", "--probe-fraction", "0.25"),
    ),
}

Found = Mapping[str, Any] | None


def tables(found: Found) -> dict[str, list[list[str]]]:
    """Returns the tables of a result file, each with its header first.

    Args:
      found: Content of the file; None if nothing was run.
    """
    return {
        "accelerator-correctness": correctness(found),
        "accelerator-throughput": steps(found),
        "accelerator-trainings": trainings(found),
    }


def correctness(found: Found) -> list[list[str]]:
    """Returns the errors of each comparison, a column a precision."""
    if found is None or found["correctness"] is None:
        return [["comparison", "error"], ["all", NOT_RUN]]
    rows = found["correctness"]["rows"]
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    lines = [[f"comparison, on {found['settings']['device']}", *precisions]]
    for name in dict.fromkeys(row["comparison"] for row in rows):
        own = {r["precision"]: r for r in rows if r["comparison"] == name}
        cells = (own[p] for p in precisions)
        lines.append(
            [
                name,
                *(f"{r['error']:.1g}{'' if r['right'] else ' WRONG'}" for r in cells),
            ]
        )
    return lines


def steps(found: Found) -> list[list[str]]:
    """Returns what each step takes in each cell; a cell that was not run says so.

    SGD and ZO-SAM were timed in each process of a cell. The first is shown.
    """
    lines = [["network", "width", "batch", "side", "matrix products", "step"]]
    lines[0] += ["images/s", "share of SGD", "compile s", "peak MiB"]
    timed: dict[Cell, dict[str, Any]] = {}
    for part in (found or {}).get("throughput", []):
        settings = part["settings"]
        names = "model", "width", "batch", "image_size", "matmul_precision"
        cell = Cell(*(settings[name] for name in names))
        for row in part["steps"]:
            timed.setdefault(cell, {}).setdefault(row["step"], row)
    for cell in dict.fromkeys((*cells(), *timed)):
        head = [cell.model, f"{cell.width:g}", str(cell.batch), str(cell.side)]
        head.append(cell.precision)
        for label, row in timed.get(cell, {"all": None}).items():
            cost = [NOT_RUN] * 4
            if row is not None:
                cost = [f"{row['images_per_second']:.0f}", f"{row['share_of_sgd']:.2f}"]
                cost += [f"{row['compile_seconds']:.1f}", f"{row['peak_mib']:.0f}"]
            lines.append([*head, label, *cost])
    return lines


def trainings(found: Found) -> list[list[str]]:
    """Returns accuracy, gain over SGD, minutes and corrupted accuracy of each training.

    The gain is paired by seed; it and the interval need two seeds.
    """
    lines = [["gradient", "seeds", "test accuracy", "gain over SGD"]]
    lines[0] += ["minutes", "corrupted accuracy"]
    rows = (found or {}).get("trainings", [])
    by_seed = {
        label: {r["seed"]: r for r in rows if r["training"] == label}
        for label in TRAININGS
    }
    for label, own in by_seed.items():
        if not own:
            lines.append([label, *[NOT_RUN] * 5])
            continue
        pairs = sorted(own.keys() & by_seed["SGD"].keys())
        gain = "-"
        if label != "SGD" and len(pairs) > 1:
            values = [
                [100 * by_seed[name][seed]["accuracy"] for seed in pairs]
                for name in (label, "SGD")
            ]
            gain = _interval(intervals.paired(*values), "+")
        corrupted = [r["corrupted_accuracy"] for r in own.values()]
        known = [100 * value for value in corrupted if value is not None]
        minutes = statistics.fmean(r["seconds"] / 60 for r in own.values())
        accuracy = [100 * r["accuracy"] for r in own.values()]
        figures = [_mean(accuracy), gain, f"{minutes:.1f}", _mean(known)]
        lines.append([label, str(len(own)), *figures])
    return lines


def _mean(values: Sequence[float]) -> str:
    if len(values) > 1:
        return _interval(intervals.interval(values))
    return f"{values[0]:.2f}" if values else NOT_RUN


def _interval(found: intervals.Interval, sign: str = "") -> str:
    return f"{found.mean:{sign}.2f} ± {found.half_width:.2f}"
