"""Writes the README's tables from the files in benchmarks/results.

python -m benchmarks.tables
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
THROUGHPUT = "throughput-resnet32-cpu.json"
ALIGNMENT = "alignment-cifar10.json"
GRID = "sparse-grid-cifar10.json"
SPARSITY = "sparsity-cpu.json"

# Gradients of the sparse grid.
GRADIENTS = {"sgd": "SGD", "zosam": "ZO-SAM", "guided": "guided ZO-SAM"}

# Step of the throughput benchmark, constructor, and when to choose it.
METHODS = (
    ("SGD", "backprop", "The reference."),
    ("SAM", "sam", "Two passes are affordable; the best understood."),
    ("ASAM", "asam", "Layers differ much in scale; rho carries over between nets."),
    ("GSAM", "gsam", "SAM, with rho tied to the learning rate; large nets."),
    ("F-SAM", "fsam", "Small batches: perturbs along their noise alone."),
    ("VaSSO", "vasso", "Small batches: perturbs along a calmer direction."),
    ("WSAM", "wsam", "Sharpness should weigh more, or less, than in SAM."),
    ("ESAM", "esam", "Losses of single examples are at hand."),
    (
        "LookSAM, k=5",
        "looksam",
        "SAM at little more than SGD's price; alpha wants tuning.",
    ),
    ("AE-SAM", "aesam", "As LookSAM, with the steps chosen by the gradient's norm."),
    ("SSAM-F", "ssam", "To ask which weights need perturbing."),
    ("SSAM-D", 'ssam(mask="dynamic")', "The same without a Fisher matrix."),
    ("S2-SAM", "s2sam", "One pass only; plain SGD or little momentum."),
    ("MSAM", "msam", "One pass only; looks where the momentum leads."),
    ("RWP", "rwp", "One pass only; the control that knows nothing of the loss."),
    ("mRWP", "mrwp", "Two batches on two devices."),
    ("ARWP", "arwp", "RWP, less where gradients have been large."),
    ("ZO-SAM", "zosam", "The published method; nearly random directions."),
    (
        "guided ZO-SAM",
        'zosam(directions="guided")',
        "ZO-SAM's price, most of SAM's direction.",
    ),
    ("random, random sign", "rst", "The control: ZO-SAM without its probes."),
    ("ZO-SGD", "zeroth_order", "No backward pass is possible, or no memory for one."),
)

PROBES = (
    ("ZO-SAM, m=1", "ZO-SAM"),
    ("ZO-SAM, m=1, quarter batch", "ZO-SAM, quarter batch"),
    ("ZO-SAM, m=1, bfloat16", "ZO-SAM, bfloat16"),
    ("ZO-SAM, m=16", None),
    ("guided, m=1", "guided ZO-SAM"),
    ("guided, m=2", "guided ZO-SAM, m=2"),
    ("guided, m=1, quarter batch", "guided ZO-SAM, quarter batch"),
    ("guided, m=1, bfloat16", None),
    ("guided, m=1, every 5", "guided ZO-SAM, every 5"),
    ("S2-SAM", "S2-SAM"),
    ("MSAM", "MSAM"),
    ("VaSSO", "VaSSO"),
    ("SAM", "SAM"),
)


def load(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / name).read_text())


def methods(throughput: dict[str, Any]) -> str:
    """Every method: passes, memory, share of SGD's throughput, when to choose it."""
    rows = {row["step"]: row for row in throughput["steps"]}
    lines = [
        "| method | `zs.` | passes a step | remembers | share of SGD | when |",
        "|---|---|---|---|---|---|",
    ]
    for step, constructor, reason in METHODS:
        row = rows[step]
        passes = _passes(row["forward_passes"], row["backward_passes"])
        lines.append(
            f"| {step} | `{constructor}` | {passes} | {_copies(row['state_copies'])} "
            f"| {row['share_of_sgd']:.2f} | {reason} |"
        )
    return "\n".join(lines)


def _copies(copies: float) -> str:
    return "0" if copies < 0.001 else f"{copies:.2g}"


def _passes(forward: float, backward: float) -> str:
    parts = [(forward, "F"), (backward, "B")]
    return " + ".join(f"{n:.3g} {letter}" for n, letter in parts if n)


def probes(alignment: dict[str, Any], throughput: dict[str, Any]) -> str:
    """What the looks uphill see, and what they cost."""
    seen = {row["rule"]: row for row in alignment["rules"]}
    cost = {row["step"]: row for row in throughput["steps"]}
    lines = [
        "| look uphill | cosine to the batch's gradient | to that of a large batch "
        "| rise of the large batch's loss | share of SGD |",
        "|---|---|---|---|---|",
    ]
    for rule, step in PROBES:
        row = seen[rule]
        share = f"{cost[step]['share_of_sgd']:.2f}" if step in cost else "not run"
        lines.append(
            f"| {rule} | {row['cosine_batch']:.3f} | {row['cosine_large']:.3f} "
            f"| {row['rise_large']:.4f} | {share} |"
        )
    return "\n".join(lines)


def steps(throughput: dict[str, Any]) -> str:
    """Every step that was timed."""
    lines = [
        "| step | images/s | share of SGD | FLOPs of SGD | compile s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(throughput["steps"], key=lambda row: row["seconds_median"]):
        lines.append(
            f"| {row['step']} | {row['images_per_second']:.0f} "
            f"| {row['share_of_sgd']:.2f} | {row['flops_of_sgd']:.2f} "
            f"| {row['compile_seconds']:.1f} | {row['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def grid_rows(cells: list[dict[str, Any]]) -> list[list[str]]:
    """The grid, header first: a line a method, a column a sparsity and a gradient.

    Accuracies in per cent, mean and standard deviation over the seeds. The dense
    network stands in every column of its gradient.
    """
    levels = sorted({c["sparsity"] for c in cells if c["sparsity"]})
    gradients = [g for g in GRADIENTS if any(c["gradient"] == g for c in cells)]
    columns = [(s, g) for s in levels for g in gradients]
    found = {(c["method"], c["sparsity"], c["gradient"]): c for c in cells}
    lines = [["method", *(f"{s:.0%}, {GRADIENTS[g]}" for s, g in columns)]]
    for name in dict.fromkeys(c["method"] for c in cells):
        keys = [(name, s, g) for s, g in columns]
        own = [found.get(k) or found.get((name, 0.0, k[2])) for k in keys]
        lines.append([name, *map(_accuracy, own)])
    return lines


def _accuracy(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "not run"
    spread = cell["accuracy_std"]
    mean = f"{100 * cell['accuracy_mean']:.1f}"
    return mean if spread is None else f"{mean} ± {100 * spread:.1f}"


# Sizes of the sparsity benchmark.
SIZES = {"1": "1 M", "25": "25 M", "100": "100 M", "100-one": "100 M, one leaf"}


def sparsity_rows(rows: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """The tables of the sparsity benchmark by their markers, header first."""
    found = {(r["method"], r["size"]): r for r in rows}
    sizes = [s for s in SIZES if any(r["size"] == s for r in rows)]
    names = list(dict.fromkeys(r["method"] for r in rows if "average" in r))
    step = found.get(("ResNet-50 step", "25"))
    titles = [SIZES[s] for s in sizes]
    changes = [["what", *titles]]
    base = found.get(("RigL", sizes[0])) and "RigL"
    for case in ("read and write", "dense"):
        cells = [_reads(found.get((base, s)), case) for s in sizes]
        changes.append([{"dense": "SGD's whole update"}.get(case, case), *cells])
    for case in ("select", "select across"):
        cells = [_reads(found.get(("selection", s)), case) for s in sizes]
        changes.append([case, *cells])
    for name in names:
        if name != "static":
            cells = [_reads(found.get((name, s)), "change") for s in sizes]
            changes.append([f"change of {name}", *cells])
    heads = [f"{t}: {w}" for t in titles for w in ("no change", "change")]
    steps = [["method", *heads, "% of a ResNet-50 step"]]
    memory = [["method", *(f"{t}: {w}" for t in titles for w in ("masks", "temp"))]]
    for name in names:
        own = [found.get((name, s)) for s in sizes]
        cells = [_times(r, c) for r in own for c in ("ordinary", "changing")]
        share = "not run"
        if step and (name, "25") in found:
            extra = found[name, "25"]["average"]["unpacked"]
            share = f"{100 * extra / step['milliseconds']['step']:.3f}"
        steps.append([name, *cells, share])
        cells = [_mebibytes(r, kind) for r in own for kind in ("masks", "temp")]
        memory.append([name, *cells])
    dense = [
        "not run" if r is None else f"{r['programs']['dense']['temp'] / 2**20:.1f}"
        for r in (found.get((base, s)) for s in sizes)
    ]
    memory.append(["SGD alone", *(c for d in dense for c in ("none", d))])
    return {
        "sparsity-changes": changes,
        "sparsity-steps": steps,
        "sparsity-memory": memory,
    }


def _reads(row: dict[str, Any] | None, case: str) -> str:
    if row is None:
        return "not run"
    return f"{row['reads'][case]:.3g} ({row['milliseconds'][case]:.3g} ms)"


def _times(row: dict[str, Any] | None, case: str) -> str:
    if row is None:
        return "not run"
    return f"{row['of_dense'][case]:.3g}" if case in row["of_dense"] else "none"


def _mebibytes(row: dict[str, Any] | None, kind: str) -> str:
    """Of an update whose masks are a byte a weight, and where measured a bit."""
    if row is None:
        return "not run"
    sizes = row["programs"]
    case = "ordinary" if "ordinary" in sizes else "changing"
    found = [sizes[c][kind] for c in (case, f"{case}, packed") if c in sizes]
    return " / ".join(f"{x / 2**20:.1f}" for x in found)


def markdown(lines: list[list[str]]) -> str:
    """A table in Markdown, its header first."""
    header, *rest = lines
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rest))


def tables() -> dict[str, str]:
    """Every generated table by its marker in the README."""
    throughput, alignment = load(THROUGHPUT), load(ALIGNMENT)
    found = {
        "methods": methods(throughput),
        "probes": probes(alignment, throughput),
        "steps": steps(throughput),
    }
    if (RESULTS / GRID).exists():
        found["sparse-grid"] = markdown(grid_rows(load(GRID)["cells"]))
    if (RESULTS / SPARSITY).exists():
        lines = sparsity_rows(load(SPARSITY)["rows"])
        found |= {name: markdown(table) for name, table in lines.items()}
    return found


def insert(readme: str) -> str:
    """The README with its tables as the files have them."""
    for name, table in tables().items():
        pattern = rf"(<!-- {name}: .*? -->\n).*?(\n<!-- end -->)"
        readme, count = re.subn(
            pattern, lambda m, t=table: m[1] + t + m[2], readme, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the README has {count} places for the table {name!r}.")
    return readme


def main() -> None:
    """Rewrites the README's tables."""
    path = ROOT / "README.md"
    path.write_text(insert(path.read_text()))


if __name__ == "__main__":
    main()
