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
IMAGES, RHO = 512, 0.2


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
    given: dict[str, Any] = {"dataset": study.dataset()}
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


def merge(log: record.Log, path: Path) -> None:
    """Writes the result file from the log."""
    rows = [{k: v for k, v in row.items() if k != "settings"} for row in log.rows()]
    record.write(path, {"settings": log.settings, "rows": rows})
    print(tables.markdown(study_report.flatness(rows)))


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
        merge(log, tables.RESULTS / "study" / args.problem / study_report.FLATNESS)
        return
    compilation_cache.use()
    given: dict[str, Any] = {"methods": METHODS, "results": args.runs}
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
