"""The tables of `benchmarks.paper`: published, ours, and their difference."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.paper_plan import MEASURES, SCALES, TABLES, Cell, Table
from benchmarks.paper_published import PUBLISHED, Number

NOT_RUN, NOT_FOUND = "not run", "not found"
NOTES = {
    "full": "Published numbers with a question mark are of unsure source.",
    "medium": "A narrow network, a part of the data and few epochs: the differences to "
    "published numbers say nothing about the papers.",
    "smoke": "Small networks on the 8 x 8 digits stand in for everything: the numbers "
    "show that the command works, and say nothing about the papers.",
}
_DIGITS = {
    "accuracy": 2,
    "clean": 2,
    "corrupted": 2,
    "epochs": 0,
    "speed": 0,
    "share": 1,
}


Rows = Sequence[Mapping[str, Any]]


def tables(files: Mapping[str, Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Returns the tables of the documentation by name, header first.

    Each shows the scale with the most numbers, of equal ones the largest: the cells
    with a published number and those with ours.

    Args:
      files: Result files by scale.
    """
    found = {}
    for name, table in TABLES.items():
        each = {scale: _of(table, scale, files) for scale in SCALES}
        scale = max(each, key=lambda scale: len(each[scale]))
        rows = each[scale]
        ours = {_cell(row) for row in rows}
        shown = [
            cell
            for cell in table.all_of(scale)
            if cell in ours or any((cell, m) in PUBLISHED for m in table.measures)
        ]
        found[f"paper-{name}"] = lines(table, shown, rows, scale)
    return found


def _of(table: Table, scale: str, files: Mapping[str, Mapping[str, Any]]) -> Rows:
    """The rows of a scale for the cells of a table."""
    cells = set(table.of(scale))
    rows = files[scale]["rows"] if scale in files else ()
    return [r for r in rows if _cell(r) in cells and r["measure"] in table.measures]


def lines(
    table: Table, cells: Iterable[Cell], rows: Rows, scale: str
) -> list[list[str]]:
    """Returns a table, a line for each cell, header first.

    Args:
      table: The table.
      cells: The cells to show.
      rows: Of `benchmarks.paper.measured`.
      scale: The scale of the rows.
    """
    known = {(_cell(row), row["measure"]): list(row["values"].values()) for row in rows}
    found = [["network", "data", "method", "sparsity", "gradient"]]
    for measure in table.measures:
        heads = f"{MEASURES[measure]}: published", f"ours, {scale}", "difference"
        found[0] += heads[: _columns(measure, scale)]
    for cell in cells:
        own = [*cell[:3], f"{100 * cell.sparsity:g} %", cell.gradient]
        for measure in table.measures:
            key = cell, measure
            compared = _compared(measure, PUBLISHED.get(key), known.get(key))
            own += compared[: _columns(measure, scale)]
        found.append(own)
    return found


def _columns(measure: str, scale: str) -> int:
    """Speeds of different machines, and other data, are shown without a difference."""
    return 2 if measure == "speed" or scale == "smoke" else 3


def _cell(row: Mapping[str, Any]) -> Cell:
    return Cell(*(row[name] for name in Cell._fields))


def _compared(
    measure: str, published: Number | None, values: Sequence[float | None] | None
) -> list[str]:
    """The published number, ours with deviation and seeds, and their difference."""
    digits = _DIGITS[measure]
    said = NOT_FOUND
    if published is not None:
        said = f"{published.value:.{digits}f}{'' if published.sure else ' ?'}"
    if not values:
        return [said, NOT_RUN, ""]
    reached = [value for value in values if value is not None]
    if lacking := len(values) - len(reached):
        end = "did not reach it" if measure == "epochs" else "diverged"
        return [said, f"{lacking} of {len(values)} {end}", ""]
    mean = statistics.fmean(reached)
    ours = f"{mean:.{digits}f}"
    if len(reached) > 1:
        ours += f" ± {statistics.stdev(reached):.{max(digits, 1)}f}"
    difference = "" if published is None else f"{mean - published.value:+.{digits}f}"
    return [said, f"{ours} ({len(reached)})", difference]
