"""Segmentation of the drawn shapes by a sparse network, with three gradients.

    python -m benchmarks.segmentation

ResNet-20 at half the width with the heads of FCN-8s trains with RigL at 80 % sparsity.
It is `zosam train --dataset shapes` with the settings in the result file. The same
command goes on after it was stopped.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import command_line, record
from zosam_jax.cli import compilation_cache
from zosam_jax.runs import metrics
from zosam_jax.train import TrainConfig, run

GRADIENTS = {"backprop": "SGD", "sam": "SAM", "zosam": "ZO-SAM"}
FIELDS: dict[str, Any] = {
    "dataset": "shapes",
    "model": "resnet20",
    "width": 0.5,
    "method": "rigl",
    "sparsity": 0.8,
    "update_interval": 50,
    "batch_size": 32,
    "epochs": 15,
}
FIGURES = ("mean_iou", "pixel_accuracy")
RESULTS = Path("benchmarks/results/segmentation-shapes.json")


def measure(gradient: str, seed: int, folder: Path) -> dict[str, Any] | None:
    """Trains a network; returns its figures, or None if it was interrupted.

    Args:
      gradient: The gradient.
      seed: The seed.
      folder: Where the runs are.
    """
    out = folder / f"{gradient}-{seed}"
    config = TrainConfig(**FIELDS, gradient=gradient, seed=seed, out=str(out))
    summary = run(config).summary
    if summary is None:
        return None
    last = metrics.read(out / "metrics.jsonl")[-1]
    return {
        "gradient": gradient,
        "seed": seed,
        "mean_iou": summary["test_accuracy"],
        "pixel_accuracy": last["pixel_accuracy"],
        "train_mean_iou": summary["train_accuracy"],
        "sparsity": summary["sparsity"],
        "parameters_live": summary["parameters_live"],
        "seconds": summary["seconds"],
    }


def summarized(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean and standard deviation of the figures of each gradient.

    Args:
      rows: What `measure` returns for each training.
    """
    found = []
    for gradient, label in GRADIENTS.items():
        own = [row for row in rows if row["gradient"] == gradient]
        values = {name: [row[name] for row in own] for name in FIGURES}
        found.append(
            {
                "method": label,
                "seeds": len(own),
                **{name: statistics.fmean(each) for name, each in values.items()},
                **{f"{n}_std": statistics.stdev(each) for n, each in values.items()},
            }
        )
    return found


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the table of the summary, header first.

    Args:
      rows: What `summarized` returns.
    """
    made = [["gradient", "mean IoU, %", "pixel accuracy, %"]]
    for row in rows:
        cells = [
            f"{100 * row[name]:.1f} ± {100 * row[f'{name}_std']:.1f}"
            for name in FIGURES
        ]
        made.append([row["method"], *cells])
    return made


def main() -> None:
    """Runs the benchmark and writes its results."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=3, help="number of seeds, from 0"
    )
    parser.add_argument(
        "--runs",
        metavar="FOLDER",
        type=Path,
        default=Path("runs/segmentation"),
        help="folder of the runs",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=RESULTS, help="result file"
    )
    args = parser.parse_args()
    compilation_cache.use()
    rows = []
    for seed in range(args.seeds):
        for gradient in GRADIENTS:
            row = measure(gradient, seed, args.runs)
            if row is None:
                raise SystemExit("interrupted; the same command goes on.")
            rows.append(row)
            print(f"{gradient} {seed}: mean IoU {row['mean_iou']:.4f}", flush=True)
    content = {"settings": FIELDS, "summary": summarized(rows), "rows": rows}
    record.write(args.out, content)


if __name__ == "__main__":
    main()
