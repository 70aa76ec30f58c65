"""An analysis in the terminal: its tables and notes, and the file of the answers."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from zosam_jax.analysis import pictures
from zosam_jax.cli.terminal import printable
from zosam_jax.runs import files
from zosam_jax.runs.dataset_facts import score_title
from zosam_jax.runs.files import JSON

# Heading, part, and where the figure is in the part.
_COLUMNS = (
    ("λ1", "curvature", ("largest", 0)),
    ("λmin", "curvature", ("smallest",)),
    ("trace", "curvature", ("trace",)),
    ("worst rise", "sharpness", ("plain", "best")),
    ("mean rise", "sharpness", ("plain", "average")),
    ("adaptive worst rise", "sharpness", ("adaptive", "best")),
    ("Ra", "landscape", ("roughness",)),
    ("signal/noise", "noise", ("backprop", "ratio")),
    ("accuracy", "errors", ("accuracy",)),
)


def table(found: JSON) -> Table:
    """Returns a table with a row for each run and the figures of the parts.

    Args:
      found: The contents of `analysis.json`.
    """
    columns = [row for row in _COLUMNS if row[1] in found["settings"]["parts"]]
    scores = {files.at(run, ("errors", "score")) for run in found["runs"]}
    made = Table(box=box.SIMPLE_HEAD)
    made.add_column("run", overflow="fold")
    for heading in ("loss", *(row[0] for row in columns)):
        made.add_column(score_title(heading, scores - {None}), justify="right")
    for run in found["runs"]:
        cells = [_number(run["loss"])]
        cells += [_number(files.at(run[part], path)) for _, part, path in columns]
        # As text: a name may look like Rich's markup.
        made.add_row(*map(Text, (printable(run["run"]), *cells)))
    return made


_ROWS = 25
"""Number of labels or values of a run in the terminal."""

# Of labels, of classes of pixels, and of values: the heading of their names, that of
# each figure, and by which the hardest are chosen.
_BY_NAME = {
    "by_label": (
        "label",
        {
            "examples": "examples",
            "precision": "precision",
            "recall": "recall",
            "f1": "F1",
            "average_precision": "average precision",
        },
        "f1",
    ),
    "by_region": (
        "class",
        {
            "pixels": "pixels",
            "iou": "IoU",
            "precision": "precision",
            "recall": "recall",
        },
        "iou",
    ),
    "by_value": ("value", {"rmse": "RMSE", "mae": "MAE", "r2": "R²"}, "r2"),
}


def error_tables(found: JSON) -> Iterator[Table]:
    """Yields a table of the figures of each label, or of each value, if runs have some.

    Of many labels it has the hardest.

    Args:
      found: The contents of `analysis.json`.
    """
    for kind, (heading, headings, hardest) in _BY_NAME.items():
        runs = [run for run in found["runs"] if kind in run.get("errors", {})]
        if not runs:
            continue
        made = Table(box=box.SIMPLE_HEAD)
        made.add_column("run", overflow="fold")
        made.add_column(heading, overflow="fold")
        for text in headings.values():
            made.add_column(text, justify="right")
        for run in runs:
            errors, names = run["errors"][kind], run["errors"]["classes"]
            rows = range(len(names))
            if len(rows) > _ROWS:
                by = [1 if x is None else x for x in errors[hardest]]
                rows = sorted(np.argsort(by, kind="stable")[:_ROWS].tolist())
                made.caption = f"the {_ROWS} hardest; analysis.json has all"
            for place, row in enumerate(rows):
                cells = [_number(errors[name][row]) for name in headings]
                first = printable(run["run"]) if place == 0 else ""
                cells = [first, printable(names[row]), *cells]
                made.add_row(*map(Text, cells), end_section=row == rows[-1])
        yield made


def _number(value: float | None) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else f"{value:.3g}"


def notes(found: JSON) -> list[str]:
    """Returns a sentence for everything that is asked for and that a run has not.

    Args:
      found: The contents of `analysis.json`.
    """
    runs, said = found["runs"], []

    def tell(what: str, why: str, lacks: Callable[[JSON], bool]) -> None:
        names = [printable(run["run"]) for run in runs if lacks(run)]
        if names:
            said.append(f"no {what} of {', '.join(names)}: {why}.")

    tell(
        "picture of the features",
        "no layer has a map of the image",
        lambda run: run.get("features", True) == {},
    )
    tell(
        "densities of the masks",
        "all layers are dense",
        lambda run: files.at(run, ("masks", "densities")) == {},
    )
    tell(
        "noise of the gradient of the training",
        "it has two parts (wsam with decouple=True)",
        lambda run: files.at(run, ("noise", "training")) == {},
    )
    sparse = [run for run in runs if files.at(run, ("masks", "densities"))]
    if len(sparse) > 1 and found["overlap"] is None:
        said.append("no overlap of the masks: the runs are not of one model.")
    return said + _on_checkpoints(found)


def _on_checkpoints(found: JSON) -> list[str]:
    """Returns a sentence for runs of which only one checkpoint is there."""
    if not found["settings"]["checkpoints"]:
        return []
    single = [k for k, each in pictures.trainings(found).items() if len(each) == 1]
    if not single:
        return []
    return [
        f"no curve along the training of {', '.join(map(printable, single))}: one "
        "checkpoint is there. A training keeps the last two; with --keep 40 "
        "--checkpoint-every 1, one of each of 40 epochs."
    ]


def write_predictions(
    found: JSON, arrays: Mapping[str, np.ndarray], folder: Path
) -> Path:
    """Writes the answers of all runs to all test examples; returns the file.

    Of classes it has a line for each example; of labels and of values, one for each
    label or value of each example. Of label maps it has the right pixels of each.

    Args:
      found: The contents of `analysis.json`.
      arrays: The contents of `analysis.npz`.
      folder: The folder to write to.
    """
    path = folder / "predictions.csv"
    lines: list[JSON] = []
    for run in found["runs"]:
        errors = run["errors"]
        of = {
            key: arrays[f"{run['run']}/{key}"]
            for key in ("labels", "predictions", "probabilities", "right", "pixels")
            if f"{run['run']}/{key}" in arrays
        }
        answers = _of_columns
        for kind, own in (("by_class", _of_classes), ("by_region", _of_maps)):
            answers = own if kind in errors else answers
        lines += [{"run": run["run"], **line} for line in answers(errors, of)]
    with path.open("w", newline="") as file:
        # Runs of several tasks have columns of their own.
        columns = {name: None for line in lines for name in line}
        writer = csv.DictWriter(file, [*columns])
        writer.writeheader()
        writer.writerows(lines)
    return path


def _of_classes(errors: JSON, of: Mapping[str, np.ndarray]) -> Iterator[JSON]:
    names = errors["classes"]
    answers = zip(*of.values(), strict=True)
    for number, (label, answer, share) in enumerate(answers):
        yield {
            "example": number,
            "class": names[label],
            "prediction": names[answer],
            "probability": f"{share:.4f}",
        }


def _of_maps(errors: JSON, of: Mapping[str, np.ndarray]) -> Iterator[JSON]:
    del errors
    counts = zip(of["right"].tolist(), of["pixels"].tolist(), strict=True)
    for number, (right, pixels) in enumerate(counts):
        line = {"example": number, "pixels": pixels, "right": right}
        yield line | {"pixel accuracy": f"{right / max(pixels, 1):.4f}"}


def _of_columns(errors: JSON, of: Mapping[str, np.ndarray]) -> Iterator[JSON]:
    """Yields a line for each label or value of each example."""
    names: Sequence[str] = errors["classes"]
    for (number, column), true in np.ndenumerate(of["labels"]):
        guess: Any = of["predictions"][number, column]
        line = {"example": number}
        if "by_label" in errors:
            share = of["probabilities"][number, column]
            line |= {"label": names[column], "true": int(true)}
            yield line | {"prediction": int(guess), "probability": f"{share:.4f}"}
        else:
            line |= {"value": names[column], "true": f"{true:.6g}"}
            residual = float(guess) - float(true)
            yield line | {"prediction": f"{guess:.6g}", "residual": f"{residual:.6g}"}
