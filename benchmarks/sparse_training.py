"""Every sparse-training method with SGD's and with ZO-SAM's gradient, in whole runs.

    python -m benchmarks.sparse_training --part 1/2
    python -m benchmarks.sparse_training --part 2/2
    python -m benchmarks.sparse_training --merge

Each training is a run of `zosam_jax.train` (lottery tickets: a search of
`zosam_jax.lottery`) with the configuration of a preset, in a folder of its own. The
same command goes on after it was stopped. `--merge` writes the result file from the
folders of the finished runs.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command_line, record, tables
from zosam_jax import lottery, train
from zosam_jax.cli import compilation_cache
from zosam_jax.lottery import LotteryConfig
from zosam_jax.runs import folder
from zosam_jax.runs.config import METHOD_FIELDS, default
from zosam_jax.runs.progress import Lines
from zosam_jax.sparsity.registry import METHODS as SPARSE_METHODS
from zosam_jax.train import TrainConfig, preset

SPARSITIES = (0.9, 0.95, 0.98)
DENSE, LOTTERY = "dense", "LT"
ROUNDS = 3  # of pruning, for a lottery ticket
REWIND_EPOCH = 1

GRADIENTS: dict[str, dict[str, Any]] = {
    "sgd": {"gradient": "backprop"},
    "zosam": {"gradient": "zosam"},
    "guided": {"gradient": "zosam", "gradient_options": ("directions=guided",)},
}

# N:M, units and channels have sparsities of their own, and "your own" is no method.
LEFT_OUT = ("nm", "units", "chex", "chase", "dynamic", "ticket")


def _methods() -> dict[str, dict[str, Any]]:
    """Returns the fields of each method, by its label in the table."""
    found: dict[str, dict[str, Any]] = {DENSE: {"method": "dense"}}
    for name, row in SPARSE_METHODS.items():
        if name not in LEFT_OUT:
            label = tables.GRID_LABELS.get(row.label, row.label)
            found[label] = {"method": name}
    found["MEST, EM&S"] = {"method": "mest", "method_options": ("soft=True",)}
    found["SR-STE"] = {"method": "ste", "method_options": ("decay=2e-4",)}
    return found


METHODS = _methods()


class Cell(NamedTuple):
    """A training: the labels of method and gradient, sparsity and seed."""

    method: str
    gradient: str
    sparsity: float
    seed: int


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Yields the trainings of a part, all of the first seed first.

    The trainings of a dense network have one sparsity, 0.
    """
    whole = [
        Cell(method, gradient, sparsity, seed)
        for seed in range(args.seeds)
        for method in args.methods
        for sparsity in ((0.0,) if method == DENSE else args.sparsities)
        for gradient in args.gradients
    ]
    yield from record.own_part(whole, args.part)


def config(cell: Cell, args: argparse.Namespace) -> TrainConfig | LotteryConfig:
    """Returns the configuration of a training, or of the search for a ticket."""
    fields = METHODS.get(cell.method, METHODS[DENSE])
    base = preset(args.preset).config
    if fields["method"] == "dense":
        # Fields of the preset's own sparse method.
        fields = {name: default(name) for name in METHOD_FIELDS} | fields
    name = f"{cell.method}-{cell.sparsity:g}-{cell.gradient}-s{cell.seed}"
    made = dataclasses.replace(
        base,
        **fields,
        **GRADIENTS[cell.gradient],
        **({"sparsity": cell.sparsity} if cell.sparsity else {}),
        seed=cell.seed,
        data_dir=args.data_dir,
        out=str(args.runs / args.preset / name.replace(", ", "-").replace(" ", "-")),
    )
    if cell.method != LOTTERY:
        return made
    return LotteryConfig(train=made, rounds=ROUNDS, rewind_epoch=REWIND_EPOCH)


def execute(cell: Cell, args: argparse.Namespace) -> bool:
    """Trains, or goes on; returns whether it came to its end."""
    made, display = config(cell, args), Lines(60.0)
    display.message(f"{cell}")
    if isinstance(made, LotteryConfig):
        return not lottery.run_lottery(made, display=display).ended_early
    return not train.run(made, display=display).ended_early


def result(cell: Cell, args: argparse.Namespace) -> dict[str, Any] | None:
    """Returns the figures of a finished training, or None."""
    made = config(cell, args)
    run = made
    if isinstance(made, LotteryConfig):
        last = made.folder / f"round-{ROUNDS:02}"
        run = dataclasses.replace(made.train, method="ticket", out=str(last))
    found = folder.read_summary(run)
    if found is None:
        return None
    dense = found["parameters"] - found["parameters_sparsified"]
    sessions = folder.read_config(run.folder)["sessions"]
    return {
        **cell._asdict(),
        "accuracy": found["test_accuracy"],
        "live": found["parameters_live"] - dense,
        "sparsified": found["parameters_sparsified"],
        "parameters": found["parameters"],
        "seconds": found["seconds"],
        "sessions": [
            {name: session.get(name) for name in ("commit", "versions", "device")}
            for session in sessions
        ],
    }


def grouped(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each method, gradient and sparsity: mean and deviation."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    fields = ("method", "gradient", "sparsity")
    for row in rows:
        groups.setdefault(tuple(row[f] for f in fields), []).append(row)
    found = []
    for key, own in groups.items():
        values = [row["accuracy"] for row in own]
        pruned = [row["sparsified"] - row["live"] for row in own]
        mean = functools.partial(_mean_share, pruned, own)
        found.append(
            {
                **dict(zip(fields, key, strict=True)),
                "accuracy_mean": statistics.fmean(values),
                "accuracy_std": statistics.stdev(values) if len(own) > 1 else None,
                "accuracies": values,
                "seeds": [row["seed"] for row in own],
                "sparsity_exact": mean("sparsified"),
                "sparsity_all": mean("parameters"),
                "seconds_mean": statistics.fmean(row["seconds"] for row in own),
            }
        )
    return found


def _mean_share(pruned: list[int], rows: list[dict[str, Any]], of: str) -> float:
    return statistics.fmean(n / row[of] for n, row in zip(pruned, rows, strict=True))


def merge(args: argparse.Namespace) -> None:
    """Writes the result file from the finished runs and prints the table."""
    args.part = "1/1"
    found = (result(cell, args) for cell in cells(args))
    rows = [row for row in found if row is not None]
    settings = {"preset": args.preset, "rounds": ROUNDS, "rewind_epoch": REWIND_EPOCH}
    grid = grouped(rows)
    content = {"settings": settings, "cells": grid, "trainings": rows}
    record.write(args.result, content)
    print(tables.markdown(tables.grid_rows(grid)))


def main() -> None:
    """Trains a part, or merges."""
    names = [*METHODS, LOTTERY]
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--part", metavar="I/N", default="1/1", help="the I-th of N processes"
    )
    parser.add_argument("--merge", action="store_true", help="make the result file")
    parser.add_argument(
        "--preset", metavar="NAME", default="cifar10-quick", help="preset of the runs"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=3, help="number of seeds, from 0"
    )
    parser.add_argument(
        "--sparsities",
        metavar="S",
        type=float,
        nargs="+",
        default=SPARSITIES,
        help="fractions of pruned weights",
    )
    parser.add_argument(
        "--gradients",
        nargs="+",
        metavar="NAME",
        default=["sgd", "zosam"],
        choices=list(GRADIENTS),
        help=command_line.listed("gradients", list(GRADIENTS)),
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="LABEL",
        default=names,
        choices=names,
        help=command_line.listed("methods", names),
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="TFDS directory; default: TFDS_DATA_DIR"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        default=Path("runs/sparse-training"),
        help="folder of the runs",
    )
    parser.add_argument(
        "--result",
        metavar="FILE",
        type=Path,
        default=tables.RESULTS / "sparse-training.json",
        help="result file of --merge",
    )
    args = parser.parse_args()
    # The trainings of all seeds run the same programs.
    compilation_cache.use()
    if args.merge:
        merge(args)
    elif not all(execute(cell, args) for cell in cells(args)):
        raise SystemExit(130)
    else:
        merge_command = command_line.merging("benchmarks.sparse_training", sys.argv[1:])
        print(f"this part is done; when all are: {merge_command}", flush=True)


if __name__ == "__main__":
    main()
