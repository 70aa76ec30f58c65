"""How flat and how robust the networks of the study are: the gainers and the controls.

    python -m benchmarks.study_flatness --problem digits-noise40
    python -m benchmarks.study_flatness --problem digits-noise40 --merge

Each method trains with the radius that `benchmarks.study` chose, for as many epochs, a
run of the trainer for each seed. Then `zosam_jax.evaluate` gives the accuracy on
corrupted test images, and `zosam_jax.analysis` the largest eigenvalue of the Hessian
and the rise of the loss within a radius, both over the live weights. The loss is that
of training images with the labels of the training, wrong ones too. The same command
goes on after it was stopped.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import command_line, record, study_report, tables
from benchmarks.study import Study
from benchmarks.study_plan import CONTENDERS, PROBLEMS, SAM, SGD, Training
from zosam_jax import evaluate
from zosam_jax.analysis import of_runs
from zosam_jax.cli import compilation_cache

METHODS = (
    SGD,
    "SGD, 1/4 of the epochs",
    SAM,
    "SAM, 1/16 of the batch",
    "S2-SAM",
    "guided ZO-SAM",
    "ZO-SAM",
    "random, random sign",
)
RESULT = "flatness.json"
"""Name of the result file in the folder of a problem."""
IMAGES, RHO = 512, 0.2
FIELDS = {
    "accuracy": ("top-1, %", 100.0),
    "corrupted": ("corrupted, %", 100.0),
    "eigenvalue": ("largest eigenvalue", 1.0),
    "rise": ("rise within the radius", 1.0),
}
"""The heading of each figure, and its factor in the table."""


def chosen(study: Study) -> dict[str, tuple[float, int]]:
    """Returns radius and epochs of each method, from the result of the study.

    Args:
      study: The problem.
    """
    rows = study_report.results(tables.RESULTS / "study").get(study.name)
    if rows is None:
        raise SystemExit(f"{study.name} has no result of benchmarks.study yet.")
    found = {row["method"]: row for row in rows if row["stage"] == "epochs"}
    return {
        name: (found[name]["rho"], found[name]["epochs"])
        for name in METHODS
        if name in found
    }


def measure(study: Study, training: Training) -> dict[str, Any] | None:
    """Trains, evaluates and analyses; returns the figures, or None if interrupted.

    Args:
      study: The problem.
      training: The training.
    """
    ended = study.run(training)
    if ended is None or ended.diverged:
        return ended and {"diverged": True}
    run = study.config(training).folder
    # Without its perturbation: the objects are asked for, and no step is made.
    given = {"dataset": study.dataset()}
    given["gradient"] = CONTENDERS[training.method].gradient(training.rho, None)
    corrupted = evaluate.evaluate(run, **given)["mean_corrupted_accuracy"]
    settings = of_runs.Settings(
        parts=("curvature", "sharpness"), images=IMAGES, rho=RHO
    )
    figures = of_runs.analyze(run, settings, **given)["runs"][0]
    return {
        "diverged": False,
        "accuracy": ended.accuracy,
        "corrupted": corrupted,
        "eigenvalue": figures["curvature"]["largest"][0],
        "rise": figures["sharpness"]["plain"]["best"],
    }


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the table: a line for each method, mean ± deviation; header first.

    Args:
      rows: Lines of the log, of one problem. Those that diverged are left out and
        counted.
    """
    lines = [["method", "rho", *(name for name, _ in FIELDS.values()), "diverged"]]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        whole = [row for row in own if not row["diverged"]]
        cells = [
            _mean([factor * row[field] for row in whole])
            for field, (_, factor) in FIELDS.items()
        ]
        rho, lost = own[0]["rho"], len(own) - len(whole)
        lines.append([method, f"{rho:g}" if rho else "", *cells, str(lost or "")])
    return lines


def _mean(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return f"{mean:.3g} ± {spread:.2g}" if mean < 10 else f"{mean:.1f} ± {spread:.1f}"


def merge(log: record.Log, path: Path) -> None:
    """Writes the result file from the log."""
    rows = [{k: v for k, v in row.items() if k != "settings"} for row in log.rows()]
    record.write(path, {"settings": log.settings, "rows": rows})
    print(tables.markdown(summarize(rows)))


def main() -> None:
    """Measures what is left, or merges."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--problem", required=True, choices=list(PROBLEMS))
    parser.add_argument("--merge", action="store_true", help="write the result file")
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=5, help="number of seeds, from 0"
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="TFDS directory; default: TFDS_DATA_DIR"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        default=Path("runs/study-flatness"),
        help="folder of the runs and of the log",
    )
    args = parser.parse_args()
    settings = {"problem": args.problem, "images": IMAGES, "rho": RHO}
    log = record.Log(args.runs / args.problem / "log.jsonl", settings)
    if args.merge:
        merge(log, tables.RESULTS / "study" / args.problem / RESULT)
        return
    compilation_cache.use()
    given = {"methods": METHODS, "results": args.runs, "runs": args.runs}
    study = Study(args.problem, argparse.Namespace(**{**vars(args), **given}))
    done = {(row["method"], row["seed"]) for row in log.rows()}
    for method, (rho, epochs) in chosen(study).items():
        for seed in range(args.seeds):
            if (method, seed) in done:
                continue
            print(f"{method}, seed {seed}", flush=True)
            training = Training(args.problem, "epochs", method, rho, seed, epochs)
            found = measure(study, training)
            if found is None:
                raise SystemExit(130)
            about = {k: record.environment()[k] for k in ("commit", "versions")}
            log.append({"method": method, "seed": seed, "rho": rho, **found, **about})


if __name__ == "__main__":
    main()
