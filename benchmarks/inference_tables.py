"""The tables of how fast sparse networks answer, and how small their files are."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rounding import significant


def tables(found: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Returns the tables by their names.

    Args:
      found: The content of the result file.
    """
    return {
        "inference-trained": trained_inference_rows(found["trained"]["rows"]),
        "inference": inference_rows(
            [*found["grid"]["rows"], *found.get("large", {"rows": ()})["rows"]]
        ),
        "inference-files": file_rows(found["files"]["rows"]),
    }


def inference_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns how much faster each form of a network is, header first.

    Args:
      rows: Rows of the grid.
    """
    forms = list(dict.fromkeys(r["form"] for r in rows if r["form"] != "dense"))
    head = ["network", "batch", "pruned", "dense, ms", "compact: fewer MACs"]
    lines = [[*head, *forms]]
    found = {(r["network"], r["batch"], r["form"], r["sparsity"]): r for r in rows}
    for network, batch in dict.fromkeys((r["network"], r["batch"]) for r in rows):
        dense = found[network, batch, "dense", 0.0]
        for sparsity in sorted(
            {r["sparsity"] for r in rows if r["network"] == network} - {0.0}
        ):
            cells = []
            for form in forms:
                is_dense = form.endswith(" dense")
                key = (network, batch, form, 0.0 if is_dense else sparsity)
                row = found.get(key)
                cells.append("-" if row is None else f"{row['speedup']:.1f}")
            compact = found[network, batch, "compact", sparsity]
            said = [
                significant(dense["milliseconds"], 2),
                f"{compact['macs_ratio']:.1f}x",
            ]
            lines.append([network, str(batch), f"{sparsity:.0%}", *said, *cells])
    return lines


def trained_inference_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns accuracy, speed and file of trained networks, header first.

    Args:
      rows: Rows of the trained networks, one for each seed and batch.
    """
    head = ["network", "pruned", "seeds", "top-1, %", "against dense", "fewer MACs"]
    batches = list(dict.fromkeys(r["batch"] for r in rows))
    head += [f"faster, batch {batch}" for batch in batches]
    lines = [[*head, "parameters", "smaller file"]]
    dense = {
        (r["network"], r["seed"]): r["accuracy"] for r in rows if r["form"] == "dense"
    }
    for network, form in dict.fromkeys((r["network"], r["form"]) for r in rows):
        own = [r for r in rows if (r["network"], r["form"]) == (network, form)]
        one = [r for r in own if r["batch"] == batches[0]]
        gains = [r["accuracy"] - dense[network, r["seed"]] for r in one]
        speeds = [
            statistics.median(r["speedup"] for r in own if r["batch"] == batch)
            for batch in batches
        ]
        mean = statistics.fmean(r["accuracy"] for r in one)
        cells = [f"{100 * mean:.2f}", f"{100 * statistics.fmean(gains):+.2f}"]
        cells += [f"{one[0]['macs_ratio']:.1f}x", *(f"{x:.1f}x" for x in speeds)]
        sizes = [f"{one[0]['parameters']:,}", f"{one[0]['file_ratio']:.1f}x"]
        lines.append([network, form, str(len(one)), *cells, *sizes])
    return lines


def file_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns how much smaller files are than dense float32 weights, header first.

    Args:
      rows: Rows of the files.
    """
    levels = list(dict.fromkeys(r["sparsity"] for r in rows))
    lines = [["network", "values", *(f"{level:.0%}" for level in levels)]]
    for network in dict.fromkeys(r["network"] for r in rows):
        own = {r["sparsity"]: r for r in rows if r["network"] == network}
        for dtype in ("float32", "bfloat16"):
            cells = [f"{own[level][f'{dtype}_ratio']:.1f}x" for level in levels]
            lines.append([network, dtype, *cells])
    return lines
