"""Every sparse method with SGD, SAM, ZO-SAM and a control, where SAM's gain is real.

    python -m benchmarks.sparse_training --part 1/2
    python -m benchmarks.sparse_training --part 2/2
    python -m benchmarks.sparse_training --merge

The problem is one of `benchmarks.study`. In each cell, a method with a gradient and a
sparsity, three radii are tried on held-out images and other seeds: the one that the
study chose with RigL at 90 % sparsity, and its neighbours there. The seeds of a cell
train in one program. Lottery tickets, and methods that keep the values of pruned
weights, train seed by seed with the trainer itself. The same commands go on after they
were stopped, from the line that each cell leaves in the log. `--merge` writes the
result file from the log.
"""

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command_line, record, side_by_side, sparse_table, tables
from benchmarks.side_by_side import Lane, Result
from benchmarks.study import HELD_OUT, TUNE_SEEDS
from benchmarks.study_plan import CONTENDERS, PROBLEMS
from zosam_jax import data, lottery, train
from zosam_jax.cli import compilation_cache
from zosam_jax.lottery import LotteryConfig
from zosam_jax.runs import summary
from zosam_jax.sparsity.registry import METHODS as SPARSE_METHODS
from zosam_jax.train import Divergence, TrainConfig, build, choices
from zosam_jax.train.objects import Objects

PROBLEM = "digits-noise40"
SPARSITIES = (0.9, 0.98)
DENSE, LOTTERY = "dense", "LT"
ROUNDS = 3  # of pruning, for a lottery ticket
REWIND_EPOCH = 1

# N:M, units and channels have sparsities of their own, and "your own" is no method.
LEFT_OUT = ("nm", "units", "chex", "chase", "dynamic", "ticket")


def _methods() -> dict[str, dict[str, Any]]:
    """Returns the fields of each method, by its label in the table."""
    found: dict[str, dict[str, Any]] = {DENSE: {"method": "dense"}}
    for name, row in SPARSE_METHODS.items():
        if name not in LEFT_OUT:
            label = sparse_table.LABELS.get(row.label, row.label)
            found[label] = {"method": name}
    found["MEST, EM&S"] = {"method": "mest", "method_options": ("soft=True",)}
    found["SR-STE"] = {"method": "ste", "method_options": ("decay=2e-4",)}
    return found


METHODS = _methods()


class Cell(NamedTuple):
    """The trainings of all seeds: labels of method and gradient, and the sparsity."""

    method: str
    gradient: str
    sparsity: float


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Yields the cells of a part. A dense network has one sparsity, 0."""
    whole = [
        Cell(method, gradient, sparsity)
        for method in args.methods
        for sparsity in ((0.0,) if method == DENSE else args.sparsities)
        for gradient in sparse_table.GRADIENTS
    ]
    yield from record.own_part(whole, args.part)


@functools.cache
def radii(gradient: str) -> tuple[float, ...]:
    """Returns the radii that are tried: those next to the study's, and that one.

    Args:
      gradient: A key of `CONTENDERS`. One without a radius has the radius 0.
    """
    known = CONTENDERS[gradient].radii
    if not known:
        return (0.0,)
    rows = tables.load(f"study/{PROBLEM}/result.json")["rows"]
    found = {row["method"]: row["rho"] for row in rows if row["stage"] == "epochs"}
    first = max(0, min(known.index(found[gradient]) - 1, len(known) - 3))
    return tuple(known[first : first + 3])


def config(
    cell: Cell, lane: Lane, runs: Path, held_out: float = 0.0
) -> TrainConfig | LotteryConfig:
    """Returns the configuration of a training, or of the search for a ticket.

    Args:
      cell: Its cell.
      lane: Its radius and seed.
      runs: Folder of the runs.
      held_out: Fraction of the training images that are held out.
    """
    name = f"{cell.method}-{cell.sparsity:g}-{cell.gradient}-r{lane.rho:g}-s{lane.seed}"
    fields: dict[str, Any] = {**PROBLEMS[PROBLEM].fields}
    fields |= METHODS.get(cell.method, METHODS[DENSE])
    if cell.sparsity:
        fields["sparsity"] = cell.sparsity
    made = TrainConfig(
        **fields,
        gradient=cell.gradient,
        seed=lane.seed,
        validation=held_out,
        out=str(runs / name.replace(", ", "-").replace(" ", "-").replace("/", "of")),
    )
    if cell.method != LOTTERY:
        return made
    return LotteryConfig(train=made, rounds=ROUNDS, rewind_epoch=REWIND_EPOCH)


def execute(cell: Cell, args: argparse.Namespace) -> tuple[float, list[Result]] | None:
    """Returns the radius of a cell, and the end of its training with each seed.

    Args:
      cell: The cell.
      args: The command line: `seeds`, `runs`.

    Returns:
      None if it was interrupted.
    """
    tried = radii(cell.gradient)
    rho = tried[0]
    if len(tried) > 1:
        lanes = [Lane(rho, seed) for rho in tried for seed in TUNE_SEEDS]
        found = train_lanes(cell, lanes, args.runs / "tune", HELD_OUT)
        if found is None:
            return None
        means = {
            rho: statistics.fmean(
                result.accuracy
                for lane, result in zip(lanes, found, strict=True)
                if lane.rho == rho
            )
            for rho in tried
        }
        rho = max(means, key=means.__getitem__)
    lanes = [Lane(rho, seed) for seed in range(args.seeds)]
    found = train_lanes(cell, lanes, args.runs)
    return None if found is None else (rho, found)


def train_lanes(
    cell: Cell, lanes: Sequence[Lane], runs: Path, held_out: float = 0.0
) -> list[Result] | None:
    """Returns the ends of trainings, side by side or one by one; None if interrupted.

    Args:
      cell: Their cell.
      lanes: Their radii and seeds.
      runs: Folder of the runs, where they train one by one.
      held_out: Fraction of the training images that are held out and tested on.
    """
    gradient = CONTENDERS[cell.gradient].gradient
    dataset = data.load(PROBLEMS[PROBLEM].fields["dataset"])
    if not isinstance(dataset, data.Dataset):
        raise TypeError("the comparison needs a data set in memory.")
    made = config(cell, lanes[0], runs, held_out)
    if isinstance(made, TrainConfig):
        rule = gradient(lanes[0].rho, None)
        chosen = choices.choose(made, gradient=rule)
        given = Objects(dataset=dataset, gradient=rule)
        if not build.experiment(made, given, chosen).holds_pruned:
            return side_by_side.train(made, dataset, gradient, lanes)
    found = []
    for lane in lanes:
        own = config(cell, lane, runs, held_out)
        ended = _alone(own, gradient(lane.rho, None), dataset)
        if ended is None:
            return None
        found.append(ended)
    return found


def _alone(
    made: TrainConfig | LotteryConfig, gradient: Any, dataset: data.Dataset
) -> Result | None:
    """Trains, or goes on, with the trainer itself; returns None if interrupted."""
    given: dict[str, Any] = {"gradient": gradient, "dataset": dataset}
    last, held_out = made.folder, 0.0
    try:
        if isinstance(made, LotteryConfig):
            early = lottery.run_lottery(made, **given).ended_early
            last, held_out = made.folder / f"round-{ROUNDS:02}", made.train.validation
        else:
            early, held_out = train.run(made, **given).ended_early, made.validation
    except Divergence:
        return Result(1 / dataset.num_classes, diverged=True)
    if early:
        return None
    found = summary.read(last)
    assert found is not None
    split = "validation" if held_out else "test"
    return Result(found[f"{split}_accuracy"], diverged=False)


def row(cell: Cell, rho: float, results: Sequence[Result]) -> dict[str, Any]:
    """Returns the line of the log for a finished cell."""
    return {
        **cell._asdict(),
        "rho": rho,
        "accuracies": [result.accuracy for result in results],
        "diverged": sum(result.diverged for result in results),
        **{k: record.environment()[k] for k in ("commit", "versions", "device")},
    }


def merge(log: record.Log, path: Path) -> None:
    """Writes the result file and its picture from the log, and prints the tables."""
    rows = log.rows()
    sessions: list[dict[str, Any]] = []
    for each in rows:
        about = {k: each.pop(k) for k in ("commit", "versions", "device")}
        if about not in sessions:
            sessions.append(about)
        del each["settings"]
    record.write(
        path, {"settings": {**log.settings, "trained": sessions}, "cells": rows}
    )
    for name, lines in sparse_table.tables(rows).items():
        print(f"\n{name}\n\n{tables.markdown(lines)}")
    sparse_table.draw(rows, path.with_suffix(".png"))


def main() -> None:
    """Trains a part, or merges."""
    names = [*METHODS, LOTTERY]
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--part", metavar="I/N", default="1/1", help="the I-th of N processes"
    )
    parser.add_argument("--merge", action="store_true", help="make the result file")
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=5, help="number of seeds, from 0"
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
        "--sparsities",
        metavar="S",
        type=float,
        nargs="+",
        default=SPARSITIES,
        help="fractions of pruned weights",
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=Path,
        default=Path("runs/sparse-training"),
        help="folder of the log, and of the runs of single seeds",
    )
    parser.add_argument(
        "--result",
        metavar="FILE",
        type=Path,
        default=tables.RESULTS / tables.GRID,
        help="result file of --merge",
    )
    args = parser.parse_args()
    problem = {"problem": PROBLEM, **json.loads(json.dumps(PROBLEMS[PROBLEM].fields))}
    settings = {"rounds": ROUNDS, "rewind_epoch": REWIND_EPOCH, "seeds": args.seeds}
    log = record.Log(args.runs / "log.jsonl", {**problem, **settings})
    if args.merge:
        merge(log, args.result)
        return
    # The trainings of all seeds run the same programs.
    compilation_cache.use()
    done = {Cell(*(each[f] for f in Cell._fields)) for each in log.rows()}
    for cell in cells(args):
        if cell in done:
            continue
        print(cell, flush=True)
        found = execute(cell, args)
        if found is None:
            raise SystemExit(130)
        log.append(row(cell, *found))
    merge_command = command_line.merging("benchmarks.sparse_training", sys.argv[1:])
    print(f"this part is done; when all are: {merge_command}", flush=True)


if __name__ == "__main__":
    main()
