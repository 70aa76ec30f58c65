"""The text of a sparsity report: its table and its totals.

`found` is a `SparsityReport` and a row is a `LeafReport`. Both are defined in
`findings`, which imports this module.
"""

from collections.abc import Callable, Sequence
from typing import Any

OTHER = "products of no leaf"


def text(found: Any) -> str:
    """Returns a line for every layer, the totals and the warnings."""
    parts = [_table(found), _totals(found)]
    if found.warnings:
        parts.append("\n".join(f"warning: {line}" for line in found.warnings))
    return "\n\n".join(parts)


def layers(found: Any) -> list[Any]:
    """Returns the rows of the layers, without biases and norms, in network order."""
    rows = [r for r in found.rows if r.sparse or r.flops_dense or len(r.shape) > 1]
    return sorted(rows, key=lambda r: (r.place is None, r.place or 0))


def _table(found: Any) -> str:
    inference = found.inference_sparse
    columns: list[tuple[str, Callable[[Any], str]]] = [
        ("layer", lambda r: r.path),
        ("shape", lambda r: "x".join(map(str, r.shape))),
        ("weights", lambda r: f"{r.weights:,}"),
        ("live", lambda r: f"{r.live:,}"),
        ("density", lambda r: "dense" if r.whole else _percent(r.density)),
        ("dead in", lambda r: f"{r.inputs[1]:,}" if r.inputs else "-"),
        ("dead out", lambda r: f"{r.outputs[1]:,}" if r.outputs else "-"),
    ]
    if found.explored is not None:
        columns.append(("explored", lambda r: _percent(r.explored)))
    if inference is not None:
        columns += [
            ("FLOPs", lambda r: short(r.flops_dense)),
            ("live FLOPs", lambda r: short(r.flops_sparse)),
            ("share", lambda r: _percent(ratio(r.flops_sparse, inference))),
        ]
    shown = layers(found)
    cells = [[name for name, _ in columns]]
    cells += [[cell(row) for _, cell in columns] for row in shown]

    def line(**given: str) -> list[str]:
        return [given.get(name.replace(" ", "_"), "") for name, _ in columns]

    if count := len(found.rows) - len(shown):
        rest = found.weights - sum(row.weights for row in shown)
        live = found.live - sum(row.live for row in shown)
        name = f"{count} other {'leaf' if count == 1 else 'leaves'}"
        density = "dense" if live == rest else _percent(ratio(live, rest))
        cells.append(
            line(layer=name, weights=f"{rest:,}", live=f"{live:,}", density=density)
        )
    if found.flops_other:
        flops, share = short(found.flops_other), ratio(found.flops_other, inference)
        cells.append(
            line(
                layer=OTHER,
                FLOPs=flops,
                live_FLOPs=flops,
                share=_percent(share),
            )
        )
    return _aligned(cells, left=2)


def _totals(found: Any) -> str:
    def weights(live: int, of: int) -> str:
        return f"({live:,} of {of:,} live)"

    def flops(sparse: float, dense: float | None, *remarks: str) -> list[str]:
        part = ratio(sparse, dense)
        remarks = (f"{short(sparse)} of {short(dense)} dense", *remarks)
        return ["-" if part is None else f"{part:.4f}", f"({'; '.join(remarks)})"]

    lines = [
        ["sparsity of the sparse leaves", f"{found.sparsity:.2%}"],
        ["sparsity of all parameters", f"{found.sparsity_all:.2%}"],
    ]
    lines[0].append(weights(found.sparse_live, found.sparse_weights))
    lines[1].append(weights(found.live, found.weights))
    if found.removable is not None:
        what = "(parameters of units that nothing reads)"
        lines.append(["compact would cut out", f"{found.removable:,}", what])
    if found.explored is not None:
        lines.append(["explored of the sparse leaves", f"{found.explored:.2%}", ""])
    inference, training = found.inference_sparse, found.training_sparse
    if inference is not None and training is not None:
        lines.append(["inference FLOPs", *flops(inference, found.inference_dense)])
        lines.append(
            ["training FLOPs", *flops(training, found.training_dense, *_how(found))]
        )
        if found.passes != (0, 1) and found.inference_dense:
            plain = f"{training / (3 * found.inference_dense):.4f}"
            lines.append(["  of dense backpropagation's", plain, ""])
    return _aligned(lines, left=1, last_left=True)


def _how(found: Any) -> list[str]:
    """Returns how a training step was counted, in phrases."""
    forward, backward = found.passes
    passes = [f"{forward:g} forward"] if forward else []
    passes += [f"{backward:g} forward and backward"] if backward else []
    how = [] if found.passes == (0, 1) else [" + ".join(passes) or "no pass"]
    if found.dense_gradient_every == 1:
        how.append("dense gradient in every step")
    elif found.dense_gradient_every is not None:
        how.append(f"dense gradient every {found.dense_gradient_every} steps")
    if found.mean_pruned != 1:
        how.append(f"mean pruned share {found.mean_pruned:.3g} of the final one")
    return how


def summary(found: Any) -> str:
    """Returns the totals in one line."""
    parts = [
        f"sparsity {found.sparsity:.2%} of the sparse leaves, "
        f"{found.sparsity_all:.2%} of all parameters"
    ]
    for name in ("inference", "training"):
        sparse = getattr(found, f"{name}_sparse")
        part = ratio(sparse, getattr(found, f"{name}_dense"))
        if part is not None:
            parts.append(f"{name} FLOPs {part:.3g} of dense")
    return "; ".join(parts)


def _aligned(
    cells: Sequence[Sequence[str]], *, left: int, last_left: bool = False
) -> str:
    """Returns columns two blanks apart, of which the first `left` are flush left."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    flush = {*range(left), *([len(widths) - 1] if last_left else [])}
    lines = [
        "  ".join(
            cell.ljust(width) if i in flush else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def short(count: float | None) -> str:
    """Returns a number with four digits and a prefix; "-" for None.

    >>> short(551_234_567), short(60)
    ('551.2 M', '60')
    """
    if count is None:
        return "-"
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if count >= 10**power:
            return f"{count / 10**power:.4g} {prefix}"
    return f"{count:.4g}"


def ratio(part: float | None, whole: float | None) -> float | None:
    """Returns `part / whole`; None if one of them is not known.

    Example:
      >>> from zosam_jax.sparsity.reports.table import ratio
      >>> ratio(1.0, 4.0), ratio(None, 4.0)
      (0.25, None)
    """
    return None if part is None or not whole else part / whole
