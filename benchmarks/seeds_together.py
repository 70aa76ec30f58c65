"""How much faster several seeds train in one program than one after another.

    python -m benchmarks.seeds_together

Each network trains on digits, with RigL at 90 % sparsity and ZO-SAM. The time is that
of an epoch of steps, without compilation, evaluation and records. The runs of one seed
and those of several take turns in one process, and the ratios are of one turn each.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import command_line, record
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import loop
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.lanes import Lanes
from zosam_jax.train.objects import Objects

SEEDS = (4, 16)
NETWORKS: dict[str, dict[str, Any]] = {
    "MLP": {"model": "mlp"},
    "MLP, 64 units": {"model": "mlp", "model_options": ("hidden=(64,)",)},
    "ResNet-20, a quarter of the width": {"width": 0.25},
}
FIELDS: dict[str, Any] = {"gradient": "zosam", "method": "rigl", "sparsity": 0.9}
WINDOW = 0.5
"""Seconds for which each is timed at once."""


class _Alone:
    """The run of one seed, epoch by epoch."""

    def __init__(self, compiled: CompiledRun):
        compiled.compile()
        self._compiled, self._state, self._epoch = compiled, compiled.init(), 0

    def __call__(self) -> None:
        experiment = self._compiled.experiment
        count = experiment.steps_per_epoch
        start, stop = self._epoch * count, (self._epoch + 1) * count
        steps = (stop,) if experiment.scans else range(start + 1, stop + 1)
        batches = self._compiled.batches(start)
        for step in steps:
            self._state, _ = self._compiled.advance(self._state, next(batches), step)
        batches.close()
        jax.block_until_ready(self._state)
        self._epoch += 1


class _Together:
    """The runs of several seeds in one program, epoch by epoch."""

    def __init__(self, compiled: CompiledRun, seeds: int):
        experiment = compiled.experiment
        values = np.arange(seeds, dtype=np.int32)
        each = [experiment.with_seed(int(seed)) for seed in values]
        self._lanes = Lanes(each, experiment.with_seed, values)
        self._lanes.compile()
        self._parts, self._epoch = self._lanes.init(), 0

    def __call__(self) -> None:
        self._parts = self._lanes.epoch(self._parts, self._epoch)
        jax.block_until_ready(self._parts)
        self._epoch += 1


def timed(train: Callable[[], None], epochs: int) -> float:
    """Returns the mean time of an epoch in seconds.

    Args:
      train: Trains an epoch.
      epochs: Number of epochs.
    """
    began = time.perf_counter()
    for _ in range(epochs):
        train()
    return (time.perf_counter() - began) / epochs


def measure(
    fields: dict[str, Any], seeds: Sequence[int], turns: int
) -> dict[int, list[float]]:
    """Returns how many times faster seeds train in one program, turn by turn.

    Args:
      fields: Fields of the configuration.
      seeds: Numbers of seeds in one program.
      turns: Number of ratios.
    """
    compiled = loop.prepare(TrainConfig(**FIELDS, **fields, epochs=1000), Objects())
    programs = {1: _Alone(compiled)} | {n: _Together(compiled, n) for n in seeds}
    epochs = {}
    for number, train in programs.items():
        timed(train, 1)
        epochs[number] = max(1, round(WINDOW / timed(train, 1)))
    ratios: dict[int, list[float]] = {number: [] for number in seeds}
    for _ in range(turns):
        alone = timed(programs[1], epochs[1])
        for number in seeds:
            own = timed(programs[number], epochs[number])
            ratios[number].append(number * alone / own)
    return ratios


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table: a line for each network, header first.

    Args:
      rows: The rows of the result file; none if it has not been run.
    """
    found = [["network", *(f"{number} seeds" for number in SEEDS)]]
    measured = {row["network"]: row["ratios"] for row in rows}
    for network in NETWORKS:
        cells = ["not run"] * len(SEEDS)
        if network in measured:
            cells = [_cell(measured[network][str(number)]) for number in SEEDS]
        found.append([network, *cells])
    return found


def _cell(ratios: Sequence[float]) -> str:
    """Returns the median of ratios, and their range."""
    median = statistics.median(ratios)
    return f"{median:.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def main() -> None:
    """Measures and writes the result file."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--turns", metavar="N", type=int, default=7, help="number of ratios"
    )
    parser.add_argument(
        "--result",
        metavar="FILE",
        type=Path,
        default=Path(__file__).parent / "results" / "seeds-together-cpu.json",
        help="result file",
    )
    args = parser.parse_args()
    rows = []
    for name, fields in NETWORKS.items():
        ratios = measure(fields, SEEDS, args.turns)
        rows.append({"network": name, "ratios": {str(k): x for k, x in ratios.items()}})
        print(f"{name}: {ratios}", flush=True)
    settings = {**FIELDS, "networks": NETWORKS, "seeds": SEEDS, "turns": args.turns}
    record.write(args.result, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
