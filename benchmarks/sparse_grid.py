"""Every sparse-training method with SGD's and with ZO-SAM's gradient, on CIFAR-10.

    taskset -c 0 python -m benchmarks.sparse_grid --part 1/2
    taskset -c 1 python -m benchmarks.sparse_grid --part 2/2
    python -m benchmarks.sparse_grid --merge

A network of 93,834 parameters trains for 1,000 steps, from three seeds, at three
sparsities. What is reported is the accuracy on the clean test set at the last step.
Each training is a line of a file as soon as it is done, so that the same command goes
on after it was stopped; `--merge` makes the result file and the picture. `--sweep` is
how the radii were chosen: RigL at 90 %, other seeds, accuracy on 5,000 images of the
training set that were held out.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib
from rich.console import Console
from rich.table import Table

from benchmarks import record, tables
from benchmarks import sparse_training as training

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

SPARSITIES = (0.9, 0.95, 0.98)
# The dense network, and what is pruned on the way to the first of the above.
TICKETS = (0.5, 0.75)
DENSE = "dense"
HELD_OUT, RADII, SWEEP_SEEDS = 5000, (0.0, 0.01, 0.05, 0.2, 1.0), (100, 101)
RHO = {"sgd": 0.0, "zosam": 0.05, "guided": 0.01}
COLORS = {"sgd": "tab:blue", "zosam": "tab:orange", "guided": "tab:green"}


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    fields = ("kind", "method", "gradient", "sparsity", "seed", "rho")
    return tuple(row[field] for field in fields)


def units(
    methods: list[str], args: argparse.Namespace
) -> Iterator[tuple[str, str, int]]:
    """`(method, gradient, seed)` of a part: the seeds one after another.

    Methods are dealt out by their cost, the longest first, so that no program is
    compiled in two parts, and all parts end at about the same time.
    """
    part, parts = map(int, args.part.split("/"))
    trainings = {training.LOTTERY: 1 + len(TICKETS) + len(args.sparsities)}
    passes = {"sgd": 3}
    jobs = [(m, g) for g in args.gradients for m in methods]
    cost = {
        job: trainings.get(job[0], len(args.sparsities)) * passes.get(job[1], 5)
        for job in jobs
    }
    loads, own = [0] * parts, []
    for job in sorted(jobs, key=lambda job: -cost[job]):
        lightest = loads.index(min(loads))
        loads[lightest] += cost[job]
        if lightest == part - 1:
            own.append(job)
    for seed in range(args.seeds):
        yield from ((*job, seed) for job in own)


def run_part(args: argparse.Namespace, log: record.Log) -> None:
    """Trains what is not in the log yet."""
    trainer = training.Trainer(args.steps, args.data_dir)
    environment = record.environment()
    methods = [m for m in trainer.methods if not args.methods or m in args.methods]
    for method, gradient, seed in units(methods, args):
        rho = RHO[gradient]
        fields = {"kind": "grid", "gradient": gradient, "seed": seed, "rho": rho}
        done = set(map(_identity, log.rows()))

        def missing(
            sparsity: float,
            method: str = method,
            fields: Any = fields,
            done: Any = done,
        ) -> bool:
            row = {**fields, "method": method, "sparsity": sparsity}
            return _identity(row) not in done

        def ends(
            method: str = method,
            gradient: str = gradient,
            seed: int = seed,
            rho: float = rho,
            missing: Any = missing,
        ) -> Iterator[tuple[str, float, training.State]]:
            if method != training.LOTTERY:
                for s in filter(missing, args.sparsities):
                    one = training.Training(method, gradient, s, seed, rho)
                    yield method, s, trainer.train(one)
            elif any(map(missing, args.sparsities)):
                ladder = (*TICKETS, *args.sparsities)
                for s, state in trainer.lottery(gradient, ladder, seed, rho):
                    yield (method if s else DENSE), s, state

        start = time.perf_counter()
        for name, sparsity, state in ends():
            row = result(trainer, state) | fields
            row |= {"method": name, "sparsity": sparsity}
            row["seconds"] = round(time.perf_counter() - start, 2)
            if sparsity not in TICKETS and _identity(row) not in done:
                log.append(row | {"environment": environment})
            say(row)
            start = time.perf_counter()


def result(
    trainer: training.Trainer, state: Any, split: str = "test"
) -> dict[str, Any]:
    """The accuracy at the end, and the exact counts."""
    live, sparse, total = training.live(state)
    return {
        "accuracy": trainer.accuracy(state, split, HELD_OUT),
        "live": live,
        "sparsified": sparse,
        "parameters": total,
    }


def say(row: dict[str, Any]) -> None:
    """One line of progress."""
    print(
        f"{time.strftime('%H:%M:%S')} {row['method']}, {row['gradient']}, "
        f"rho {row['rho']:g}, sparsity {row['sparsity']:g}, seed {row['seed']}: "
        f"{row['accuracy']:.4f} in {row['seconds']:.0f} s",
        flush=True,
    )


def sweep(args: argparse.Namespace, log: record.Log) -> None:
    """The radii, on held-out images."""
    trainer = training.Trainer(args.steps, args.data_dir)
    environment = record.environment()
    for seed in SWEEP_SEEDS:
        for gradient in args.gradients:
            for rho in RADII:
                fields = {
                    "kind": "sweep",
                    "method": "RigL",
                    "gradient": gradient,
                    "sparsity": 0.9,
                    "seed": seed,
                    "rho": rho,
                }
                # Radius 0 is SGD.
                if (gradient == "sgd") != (rho == 0) or _identity(fields) in set(
                    map(_identity, log.rows())
                ):
                    continue
                start = time.perf_counter()
                one = training.Training("RigL", gradient, 0.9, seed, rho, HELD_OUT)
                state = trainer.train(one)
                row = result(trainer, state, "held out") | fields
                row["seconds"] = round(time.perf_counter() - start, 2)
                log.append(row | {"environment": environment})
                say(row)


def cells(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """One row for each method, gradient, sparsity and radius: mean and deviation."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] == kind:
            fields = ("method", "gradient", "sparsity", "rho")
            groups.setdefault(tuple(row[f] for f in fields), []).append(row)
    known = [DENSE, *training.METHODS, training.LOTTERY]
    order = {name: place for place, name in enumerate(known)}
    found = []
    for key in sorted(groups, key=lambda k: (order[k[0]], *map(str, k[1:]))):
        own = sorted(groups[key], key=lambda row: row["seed"])
        values = [row["accuracy"] for row in own]
        found.append(
            dict(zip(("method", "gradient", "sparsity", "rho"), key, strict=True))
            | {
                "accuracy_mean": statistics.fmean(values),
                "accuracy_std": statistics.stdev(values) if len(own) > 1 else None,
                "accuracies": values,
                "seeds": [row["seed"] for row in own],
                # SRigL's may differ by a few from seed to seed.
                "live": [row["live"] for row in own],
                "sparsity_exact": 1
                - statistics.fmean(row["live"] / row["sparsified"] for row in own),
                "sparsity_all": statistics.fmean(
                    (row["sparsified"] - row["live"]) / row["parameters"] for row in own
                ),
                "seconds_mean": statistics.fmean(row["seconds"] for row in own),
            }
        )
    return found


def merge(args: argparse.Namespace, log: record.Log) -> None:
    """Writes the result file and the picture from the log."""
    rows = log.rows()
    grid = cells(rows, "grid")
    environments = []
    for row in rows:
        if (own := row.pop("environment")) not in environments:
            environments.append(own)
        row.pop("settings")
        row["process"] = environments.index(own)
    record.write(
        args.out,
        {
            "settings": log.settings,
            "processes": environments,
            "cells": grid,
            "sweep": cells(rows, "sweep"),
            "trainings": rows,
        },
    )
    show(grid, args.out.stem)
    draw(grid, args.out.with_suffix(".png"))


def show(grid: list[dict[str, Any]], title: str) -> None:
    """Prints the table."""
    header, *lines = tables.grid_rows(grid)
    table = Table(title=title)
    for column in header:
        table.add_column(column, no_wrap=True)
    for line in lines:
        table.add_row(*line)
    Console(width=140).print(table)


def draw(grid: list[dict[str, Any]], path: Path) -> None:
    """The picture: a panel for each sparsity, a line for each method."""
    sparse = [cell for cell in grid if cell["method"] != DENSE]
    levels = sorted({cell["sparsity"] for cell in sparse})
    methods = list(dict.fromkeys(cell["method"] for cell in sparse))[::-1]
    gradients = [g for g in COLORS if any(c["gradient"] == g for c in grid)]
    figure, axes = plt.subplots(
        1,
        len(levels),
        figsize=(4.2 * len(levels), 1.2 + 0.34 * len(methods)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, level in zip(axes[0], levels, strict=True):
        for number, gradient in enumerate(gradients):
            own = [
                c for c in sparse if (c["sparsity"], c["gradient"]) == (level, gradient)
            ]
            shift = 0.18 * ((len(gradients) - 1) / 2 - number)
            axis.errorbar(
                [100 * c["accuracy_mean"] for c in own],
                [methods.index(c["method"]) + shift for c in own],
                xerr=[100 * (c["accuracy_std"] or 0) for c in own],
                fmt="o",
                markersize=4,
                capsize=2,
                color=COLORS[gradient],
                label=tables.GRADIENTS[gradient],
            )
            for c in grid:
                if (c["method"], c["gradient"]) == (DENSE, gradient):
                    x = 100 * c["accuracy_mean"]
                    axis.axvline(x, color=COLORS[gradient], linewidth=0.8, ls="--")
        axis.set_title(f"{level:.0%} sparsity".replace("%", " %"))
        axis.set_yticks(range(len(methods)), methods)
        axis.set_xlabel("test accuracy, %")
        axis.grid(alpha=0.25)
    handles, names = axes[0][0].get_legend_handles_labels()
    dense = Line2D([], [], color="gray", linewidth=0.8, linestyle="--")
    figure.legend(
        [*handles, dense],
        [*names, "dense, same gradient"],
        loc="outside lower center",
        ncols=len(names) + 1,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"written: {path}")


def main() -> None:
    """Trains a part, sweeps the radii, or merges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", default="1/1", help="i/n: the i-th of n processes")
    parser.add_argument("--merge", action="store_true", help="make the result file")
    parser.add_argument("--sweep", action="store_true", help="try radii of ZO-SAM")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3, help="their number, from 0")
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument(
        "--gradients",
        nargs="+",
        default=["sgd", "zosam"],
        choices=list(training.GRADIENTS),
    )
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--data-dir", help="TFDS directory; default: TFDS_DATA_DIR")
    parser.add_argument(
        "--log", type=Path, default=Path("runs/sparse-grid/trainings.jsonl")
    )
    parser.add_argument("--out", type=Path, default=tables.RESULTS / tables.GRID)
    args = parser.parse_args()

    log = record.Log(args.log, settings(args.steps))
    if args.merge:
        merge(args, log)
    elif args.sweep:
        sweep(args, log)
    else:
        run_part(args, log)


def settings(steps: int) -> dict[str, Any]:
    """What all trainings of a file have in common."""
    return {
        "steps": steps,
        "batch": training.BATCH,
        "learning_rate": training.LEARNING_RATE,
        "momentum": training.MOMENTUM,
        "weight_decay": training.WEIGHT_DECAY,
        "rewind": training.REWIND,
        "tickets": list(TICKETS),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
