"""Writes the tables of the documentation from result files and registries.

    python -m benchmarks.tables

A table stands between `<!-- NAME: python -m benchmarks.tables -->` and `<!-- end -->`
on the page that `PAGES` names. A method without a measurement shows "not run".
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import (
    accelerator_tables,
    collectives,
    compact_every,
    convergence_report,
    forward_memory,
    inference_tables,
    others,
    paper_tables,
    seeds_together,
    segmentation,
    sharded_step,
    sparse_table,
    study_report,
)
from benchmarks.paper_plan import SCALES
from benchmarks.paper_plan import TABLES as PAPER_TABLES
from benchmarks.rounding import significant
from benchmarks.throughput import AESAM, SAM_STEP
from zosam_jax.gradients.registry import METHODS as GRADIENT_METHODS
from zosam_jax.gradients.registry import GradientMethod
from zosam_jax.runs.presets import PRESETS
from zosam_jax.sparsity.registry import METHODS as SPARSE_METHODS
from zosam_jax.sparsity.registry import NamedMethod

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
THROUGHPUT = "throughput-resnet32-cpu.json"
# Timed later, in a run of their own.
ASCENT_PART = "throughput-ascent-part-cpu.json"
ALIGNMENT = "alignment-cifar10.json"
GUIDED, GUIDED_SLOPES = "alignment-digits.json", "guided-slopes-digits.json"
NORMS = "norms-digits.json"
GRID = "sparse-training.json"
SPARSITY = "sparsity-cpu.json"
EVALUATION = "imagenet-resnet50-quick/evaluation.json"
GROWN = "grown-moments.json"
COMPILE = ("compile-time-jax0.10.json", "compile-time-jax0.12.json")
ACCELERATOR = "accelerator.json"
CONVERGENCE = "convergence.json"
PAPER = "paper-{}.json"
INFERENCE = "inference-cpu.json"
COLLECTIVES = "collectives.json"
SHARDED, OTHERS = "sharded-step.json", "others-cpu.json"
TOGETHER = "seeds-together-cpu.json"
SEGMENTATION = "segmentation-shapes.json"
FORWARD = "forward-memory-cpu.json"
CUTS = "compact-every-cpu.json"
NOT_RUN = "not run"

Gradients = Mapping[str, GradientMethod]

# Table label of a probe in the alignment benchmark, and its step in the throughput one.
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
    ("no probe, mean of gradients", None),
    ("random, random sign", "random, random sign"),
    ("RWP", "RWP"),
    ("F-SAM", "F-SAM"),
    ("ASAM", "ASAM"),
    ("SAM, 1/16 of the batch", "SAM, 1/16 of the batch"),
    ("SAM", "SAM"),
)

# What `tests/faults` tries: its name, result file and the entry with the number of it.
FAULTS = (
    ("hostile command lines", "command-lines.json", "lines"),
    ("hostile files", "hostile-files.json", "files"),
    ("readings of damaged run folders", "damaged-folders.json", "readings"),
    ("kills and interruptions", "kills.json", "kills"),
    ("kills of one process of several", "lost-processes.json", "kills"),
)


def load(name: str) -> dict[str, Any]:
    """Returns the content of a result file."""
    return json.loads((RESULTS / name).read_text())


def timed(throughput: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the measured steps.

    AE-SAM's are left out where its two kinds were not timed apart: on the one batch of
    the benchmark they are mixed otherwise than in a training.
    """
    steps = throughput["steps"]
    apart = any(row["step"] == SAM_STEP for row in steps)
    return [row for row in steps if apart or row["step"] != AESAM]


def without_outdated(
    throughput: dict[str, Any], newer: dict[str, Any]
) -> dict[str, Any]:
    """Returns a file without guided and vmapped steps that a newer one has.

    Their sums over the directions are faster since.
    """
    known = {row["step"] for row in newer["steps"]}
    steps = [
        row
        for row in throughput["steps"]
        if row["step"] not in known or not re.match("guided|.*vmapped", row["step"])
    ]
    return {**throughput, "steps": steps}


def gradient_rows(
    throughputs: Sequence[dict[str, Any]], gradients: Gradients = GRADIENT_METHODS
) -> list[list[str]]:
    """Returns what every gradient costs and when to choose it, header first.

    Args:
      throughputs: Result files; of a step in several, the first counts.
      gradients: The gradients.
    """
    found = (row for file in reversed(throughputs) for row in timed(file))
    measured = {row["step"]: row for row in found}
    lines = [["gradient", "`zs.`", "passes a step", "memory", "share of SGD", "when"]]
    for label, constructor, _, when in _forms(gradients):
        row = measured.get(label)
        cost = [NOT_RUN] * 3
        if row is not None:
            passes = _passes(row["forward_passes"], row["backward_passes"])
            share = f"{row['share_of_sgd']:.2f}"
            cost = [passes, _copies(row["state_copies"]), share]
        lines.append([label, f"`{constructor}`", *cost, when])
    return lines


def gradient_choice(gradients: Gradients = GRADIENT_METHODS) -> list[list[str]]:
    """Returns every gradient, when to choose it and its source, header first."""
    lines = [["gradient", "`zs.`", "when to choose it", "source"]]
    for label, constructor, paper, when in _forms(gradients):
        lines.append([label, f"`{constructor}`", when, _source(paper) or "-"])
    return lines


def _forms(gradients: Gradients) -> list[tuple[str, str, str, str]]:
    """Returns `(label, constructor, paper, when)` of all gradients and variants."""
    found = []
    for name, row in gradients.items():
        found.append((row.label, name, row.paper, row.when))
        for options, label, when in row.variants:
            given = ", ".join(f"{k}={json.dumps(v)}" for k, v in options.items())
            found.append((label, f"{name}({given})", row.paper, when))
    return found


def sparse_choice(
    methods: Mapping[str, NamedMethod] = SPARSE_METHODS,
) -> list[list[str]]:
    """Returns every sparse method and how it works, header first."""
    lines = [["method", "`--method`", "`zs.sparsity.`", "prunes", "grows", "source"]]
    for name, row in methods.items():
        texts = (text.replace("|", "\\|") or "-" for text in (row.prunes, row.grows))
        names = name, row.make.__name__
        if name == "ticket":  # the command line runs its rounds itself
            names = "zosam lottery", "prune_ticket"
        codes = (f"`{code}`" for code in names)
        lines.append([row.label, *codes, *texts, _source(row.paper)])
    return lines


def _source(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})" if number != paper else paper


def _copies(copies: float) -> str:
    return "0" if copies < 0.001 else f"{copies:.2g}"


def _passes(forward: float, backward: float) -> str:
    parts = [(forward, "F"), (backward, "B")]
    return " + ".join(f"{n:.3g} {letter}" for n, letter in parts if n)


def probes(
    alignment: dict[str, Any], throughputs: Sequence[dict[str, Any]]
) -> list[list[str]]:
    """Returns the alignment of each perturbation and its cost, header first.

    Args:
      alignment: Result file.
      throughputs: As for `gradient_rows`.
    """
    seen = {row["rule"]: row for row in alignment["rules"]}
    cost = {r["step"]: r for file in reversed(throughputs) for r in file["steps"]}
    lines = [
        [
            "perturbation",
            "cosine to the batch's gradient",
            "cosine to the large batch's gradient",
            "rise of the large batch's loss, 1e-3",
            "downhill",
            "share of SGD",
        ]
    ]
    for rule, step in PROBES:
        row = seen[rule]
        share = f"{cost[step]['share_of_sgd']:.2f}" if step in cost else NOT_RUN
        cosines = (
            f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}"
            for name in ("cosine_batch", "cosine_large")
        )
        rise = f"{1e3 * row['rise_large']:.2f} ± {1e3 * row['rise_large_std']:.2f}"
        lines.append([rule, *cosines, rise, f"{row['downhill']:.0%}", share])
    return lines


def guided_rows(rules: list[dict[str, Any]]) -> list[list[str]]:
    """Returns how rules align with the batch's gradient on digits, header first.

    Args:
      rules: Rows of the result file, one for each rule and learning rate.
    """
    rates = list(dict.fromkeys(row["learning_rate"] for row in rules))
    found = {(row["rule"], row["learning_rate"]): row for row in rules}
    lines = [
        ["perturbation"]
        + [f"cosine, rate {rate}" for rate in rates]
        + [f"downhill steps, rate {rate}" for rate in rates]
    ]
    for rule in dict.fromkeys(row["rule"] for row in rules):
        rows = [found[rule, rate] for rate in rates]
        cosines = [f"{r['cosine']:.3f} ± {r['cosine_std']:.3f}" for r in rows]
        shares = [
            f"{100 * r['downhill']:.1f} % ± {100 * r['downhill_std']:.1f}" for r in rows
        ]
        lines.append([rule, *cosines, *shares])
    return lines


def norms_rows(rules: list[dict[str, Any]]) -> list[list[str]]:
    """Returns what perturbations of normalisation layers gain, header first.

    Args:
      rules: Rows of the result file.
    """
    lines = [["method", "rho", "top-1, %", "gain over SGD", "over SAM"]]
    for row in rules:
        gains = [
            f"{100 * row[over]['mean']:+.1f} ± {100 * row[over]['half_width']:.1f}"
            for over in ("gain", "to_sam")
        ]
        rho = f"{row['rho']:g}" if row["rho"] else ""
        lines.append([row["rule"], rho, f"{100 * row['mean']:.1f}", *gains])
    return lines


def steps(throughput: dict[str, Any]) -> list[list[str]]:
    """Returns every step that was timed, the fastest first, after a header."""
    lines = [
        ["step", "images/s", "share of SGD", "FLOPs of SGD", "compile s", "peak MiB"]
    ]
    for row in sorted(timed(throughput), key=lambda row: row["seconds_median"]):
        numbers = [
            f"{row['images_per_second']:.0f}",
            f"{row['share_of_sgd']:.2f}",
            f"{row['flops_of_sgd']:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['peak_mib']:.0f}",
        ]
        lines.append([row["step"], *numbers])
    return lines


# Sizes of the sparsity benchmark.
SIZES = {"1": "1 M", "25": "25 M", "100": "100 M", "100-one": "100 M, one leaf"}

Found = dict[tuple[str, str], dict[str, Any]]


def sparsity_rows(rows: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """Returns the tables of the sparsity benchmark by their names, header first."""
    found = {(r["method"], r["size"]): r for r in rows}
    sizes = [s for s in SIZES if any(r["size"] == s for r in rows)]
    names = list(dict.fromkeys(r["method"] for r in rows if "average" in r))
    return {
        "sparsity-changes": _changes(found, names, sizes),
        "sparsity-steps": _updates(found, names, sizes),
        "sparsity-memory": _memory(found, names, sizes),
    }


def accelerator_changes(accelerator: dict[str, Any] | None) -> list[list[str]]:
    """Returns the topology updates on an accelerator, header first."""
    rows = accelerator["sparsity"]["rows"] if accelerator else []
    sizes = ("25", "100")
    found = {(r["method"], r["size"]): r for r in rows}
    names = [*dict.fromkeys(r["method"] for r in rows if "average" in r)]
    return _changes(found, names or ["RigL"], list(sizes))


def _changes(found: Found, names: list[str], sizes: list[str]) -> list[list[str]]:
    lines = [["operation", *(SIZES[s] for s in sizes)]]
    titles = {
        "read and write": "read and write",
        "dense": "whole update of SGD",
        "select": "selection within layers",
        "select across": "selection across layers",
    }
    for case, title in titles.items():
        method = "selection" if case.startswith("select") else "RigL"
        cells = [_reads(found.get((method, s)), case) for s in sizes]
        lines.append([title, *cells])
    for name in names:
        if name != "static":
            cells = [_reads(found.get((name, s)), "change") for s in sizes]
            lines.append([f"topology update of {name}", *cells])
    return lines


def _updates(found: Found, names: list[str], sizes: list[str]) -> list[list[str]]:
    heads = [f"{SIZES[s]}: {w}" for s in sizes for w in ("ordinary", "topology update")]
    lines = [["method", *heads, "% of a ResNet-50 step"]]
    step = found.get(("ResNet-50 step", "25"))
    for name in names:
        own = [found.get((name, s)) for s in sizes]
        cells = [_times(r, c) for r in own for c in ("ordinary", "changing")]
        share = NOT_RUN
        if step and (name, "25") in found:
            extra = found[name, "25"]["average"]["unpacked"]
            share = f"{100 * extra / step['milliseconds']['step']:.3f}"
        lines.append([name, *cells, share])
    return lines


def _memory(found: Found, names: list[str], sizes: list[str]) -> list[list[str]]:
    heads = (f"{SIZES[s]}: {w}" for s in sizes for w in ("masks", "temporaries"))
    lines = [["method", *heads]]
    for name in names:
        own = [found.get((name, s)) for s in sizes]
        cells = [_mebibytes(r, kind) for r in own for kind in ("masks", "temp")]
        lines.append([name, *cells])
    dense = [
        NOT_RUN if r is None else f"{r['programs']['dense']['temp'] / 2**20:.1f}"
        for r in (found.get(("RigL", s)) for s in sizes)
    ]
    lines.append(["SGD alone", *(c for d in dense for c in ("none", d))])
    return lines


def _reads(row: dict[str, Any] | None, case: str) -> str:
    if row is None:
        return NOT_RUN
    reads = significant(row["reads"][case], 3)
    return f"{reads} ({significant(row['milliseconds'][case], 3)} ms)"


def _times(row: dict[str, Any] | None, case: str) -> str:
    if row is None:
        return NOT_RUN
    return f"{row['of_dense'][case]:.3g}" if case in row["of_dense"] else "none"


def _mebibytes(row: dict[str, Any] | None, kind: str) -> str:
    """Returns the size with a byte a weight and, where measured, with a bit."""
    if row is None:
        return NOT_RUN
    sizes = row["programs"]
    case = "ordinary" if "ordinary" in sizes else "changing"
    found = [sizes[c][kind] for c in (case, f"{case}, packed") if c in sizes]
    return " / ".join(f"{x / 2**20:.1f}" for x in found)


def preset_rows() -> list[list[str]]:
    """Returns what every preset trains and what its stored run reached."""
    header = ["preset", "data", "network", "sparse method", "gradient", "epochs"]
    lines = [[*header, "live weights", "test accuracy", "minutes", "evidence"]]
    for name, preset in PRESETS.items():
        c = preset.config
        width = f" x {c.width:g}" if c.width != 1 else ""
        method = f"{c.method}, {c.sparsity:.0%}"
        line = [f"`{name}`", c.dataset, c.model + width, method, c.gradient]
        lines.append([*line, str(c.epochs), *_run(preset.evidence)])
    return lines


def _run(evidence: str) -> list[str]:
    if evidence == NOT_RUN:
        return [NOT_RUN] * 4
    folder = ROOT / evidence
    summary = json.loads((folder / "summary.json").read_text())
    seconds = summary["seconds"] + summary["compile_seconds"]
    return [
        f"{summary['parameters_live']:,} of {summary['parameters']:,}",
        f"{100 * summary['test_accuracy']:.2f} %",
        f"{seconds / 60:.1f}",
        f"[run]({folder.relative_to(ROOT / 'benchmarks')})",
    ]


def corruption_rows(evaluation: dict[str, Any]) -> list[list[str]]:
    """Returns accuracy in per cent by corruption and severity, header first."""
    clean = f"{100 * evaluation['clean']['accuracy']:.1f}"
    severities = evaluation["severities"]
    lines = [["corruption", *(f"severity {s}" for s in severities)]]
    lines.append(["none", *[clean] * len(severities)])
    for name, row in evaluation["corruptions"].items():
        cells = (f"{100 * a:.1f}" for a in row["accuracy"])
        lines.append([name.replace("_", " "), *cells])
    return lines


def grown_rows(summary: list[dict[str, Any]]) -> list[list[str]]:
    """Returns what each start of the moments of grown weights gives, header first."""
    differences = list(summary[0]["differences"])
    lines = [["training", "measure", "seeds", *summary[0]["means"], *differences]]
    for row in summary:
        measure = row["measure"].replace("_", " ")
        cells = [f"{value:.4f}" for value in row["means"].values()]
        for name in differences:
            found = row["differences"][name]
            cells.append(f"{found['mean']:+.4f} ± {found['half_width']:.4f}")
        lines.append([row["task"], measure, str(len(row["seeds"])), *cells])
    return lines


def compile_rows(files: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the CPU seconds that each step takes to compile, header first.

    Args:
      files: Result files, one for each version of JAX.
    """
    files = list(files)
    steps = list(dict.fromkeys(r["step"] for file in files for r in file["rows"]))
    lines = [["JAX", "leaves", *steps, "ZO-SAM / SAM", "RigL - static masks"]]
    for file in files:
        version = file["environment"]["versions"]["jax"]
        for leaves in dict.fromkeys(r["leaves"] for r in file["rows"]):
            own = {r["step"]: r for r in file["rows"] if r["leaves"] == leaves}
            taken = {step: r["cpu_seconds"] for step, r in own.items()}
            cells = [f"{taken[s]:.1f}" if s in taken else NOT_RUN for s in steps]
            share = f"{taken['ZO-SAM'] / taken['SAM']:.2f}"
            added = f"{taken['RigL'] - taken['static masks']:+.1f}"
            lines.append([version, str(leaves), *cells, share, added])
    return lines


def compiled_presets(files: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the seconds that the programs of presets take to compile, header first.

    Args:
      files: Result files, one for each version of JAX.
    """
    lines = [["JAX", "preset", "step", "first state", "all", "CPU seconds"]]
    for file in files:
        version = file["environment"]["versions"]["jax"]
        for row in file.get("presets", ()):
            step, first = (row["seconds_by_program"][k] for k in ("train", "init"))
            cells = step, first, row["seconds"], row["cpu_seconds"]
            lines.append([version, row["preset"], *(f"{x:.1f}" for x in cells)])
    return lines


WRONG = ("silent acceptance", "difference", "not reached", "too late")
"""Endings of an attack that are faults of the library or of the attack itself."""


def fault_rows() -> list[list[str]]:
    """Returns how often each attack of `tests/faults` ended in which way."""
    header = ["attack", "number", "survivals", "clean errors"]
    lines = [[*header, "silent or different results", "tracebacks", "file"]]
    for name, file, entry in FAULTS:
        found = load(file)
        counts = found["all"]
        wrong = sum(counts.get(ending, 0) for ending in WRONG)
        cells = found[entry], counts["survival"], counts["clean error"]
        numbers = [f"{n:,}" for n in (*cells, wrong, counts["traceback"])]
        lines.append([name, *numbers, f"[file](results/{file})"])
    return lines


def markdown(lines: list[list[str]]) -> str:
    """Returns a table in Markdown. The first line is its header."""
    header, *rest = lines
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rest))


def tables() -> dict[str, list[list[str]]]:
    """Returns every generated table by its name."""
    part, alignment = load(ASCENT_PART), load(ALIGNMENT)
    throughput = without_outdated(load(THROUGHPUT), part)
    accelerator = load(ACCELERATOR) if (RESULTS / ACCELERATOR).exists() else None
    return {
        "gradients": gradient_rows([throughput, part]),
        "gradient-choice": gradient_choice(),
        "sparse-choice": sparse_choice(),
        "probes": probes(alignment, [throughput, part]),
        **convergence_report.tables(load(CONVERGENCE)),
        **paper_tables.tables(_papers()),
        "guided": guided_rows(load(GUIDED)["rules"] + load(GUIDED_SLOPES)["rules"]),
        "norms": norms_rows(load(NORMS)["rules"]),
        "steps": steps(throughput),
        "steps-ascent-part": steps(part),
        **{
            f"study-{problem}": study_report.table(rows)
            for problem, rows in study_report.results(RESULTS / "study").items()
        },
        **{
            f"flatness-{path.parent.name}": study_report.flatness(
                json.loads(path.read_text())["rows"]
            )
            for path in sorted(RESULTS.glob(f"study/*/{study_report.FLATNESS}"))
        },
        **sparse_table.tables(load(GRID)["cells"]),
        **sparsity_rows(load(SPARSITY)["rows"]),
        "collectives": collectives.lines(load(COLLECTIVES)["rows"]),
        "forward-memory": forward_memory.lines(_rows(FORWARD)),
        "sharded-step": sharded_step.lines(_rows(SHARDED)),
        "others": others.lines(_rows(OTHERS)),
        "seeds-together": seeds_together.lines(_rows(TOGETHER)),
        "segmentation": segmentation.lines(load(SEGMENTATION)["summary"]),
        "compact-every": compact_every.lines(load(CUTS)["cuts"]),
        "compile-time": compile_rows(map(load, COMPILE)),
        "compile-presets": compiled_presets(map(load, COMPILE)),
        "presets": preset_rows(),
        "corruptions": corruption_rows(load(EVALUATION)),
        "grown-moments": grown_rows(load(GROWN)["summary"]),
        **inference_tables.tables(load(INFERENCE)),
        "faults": fault_rows(),
        **accelerator_tables.tables(accelerator),
        "accelerator-changes": accelerator_changes(accelerator),
    }


def _rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a result file; none if it has not been run."""
    return load(name)["rows"] if (RESULTS / name).exists() else []


def _papers() -> dict[str, dict[str, Any]]:
    """Returns the result files of `benchmarks.paper` by scale."""
    names = {scale: PAPER.format(scale) for scale in SCALES}
    return {s: load(name) for s, name in names.items() if (RESULTS / name).exists()}


# The pages with generated tables.
PAGES = {
    "benchmarks/README.md": (
        "study-digits-noise40",
        "study-digits-noise20",
        "study-digits-resnet-noise40",
        "study-cifar-mlp-noise40",
        "study-tinylm",
        "study-cifar-sparse90",
        "study-cifar-sparse98",
        "study-cifar-vit",
        "flatness-digits-noise40",
        "flatness-digits-noise20",
        "gradients",
        "probes",
        "guided",
        "convergence-slopes",
        "convergence-floors",
        "convergence-bias",
        "convergence-wells",
        *(f"paper-{name}" for name in PAPER_TABLES),
        "norms",
        "steps",
        "steps-ascent-part",
        "others",
        "sparse-grid-90",
        "sparse-grid-98",
        "sparsity-changes",
        "sparsity-steps",
        "sparsity-memory",
        "compile-time",
        "compile-presets",
        "collectives",
        "sharded-step",
        "presets",
        "corruptions",
        "grown-moments",
        "inference-trained",
        "inference",
        "inference-files",
        "faults",
        "accelerator-correctness",
        "accelerator-throughput",
        "accelerator-changes",
        "accelerator-trainings",
    ),
    "examples/docs/choose_a_gradient.md": ("gradient-choice", "forward-memory"),
    "examples/docs/choose_a_sparse_method.md": ("sparse-choice",),
    "examples/docs/compare_runs.md": ("seeds-together",),
    "examples/docs/your_own_data.md": ("segmentation",),
    "examples/docs/use_a_run.md": ("compact-every",),
}


def insert(page: str, names: Iterable[str]) -> str:
    """Returns the text of a page with its tables written anew.

    Args:
      page: Text with a pair of markers for each table.
      names: Names of the tables of this page.

    Raises:
      ValueError: The page does not have exactly one place for a table.
    """
    found = tables()
    for name in names:
        pattern = rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- end -->)"
        table = markdown(found[name]) + "\n"
        page, count = re.subn(
            pattern, lambda m, t=table: m[1] + t + m[2], page, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"the page has {count} places for the table {name!r}.")
    return page


def main() -> None:
    """Rewrites the tables of all pages."""
    for path, names in PAGES.items():
        page = ROOT / path
        page.write_text(insert(page.read_text(), names))


if __name__ == "__main__":
    main()
