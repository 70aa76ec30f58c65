"""Measures what `zosam train --compact-every` costs and saves, cut by cut.

    python -m benchmarks.compact_every
    python -m benchmarks.compact_every --epochs 12 --out runs/compact-every.json

A training on the digits with Chase and the plain gradient is cut at the end of every
N-th epoch. After each cut, steps of the programs before and after it run in turns on
the same batches; the fastest block of each counts. The compilation of the new programs
is measured with an empty cache.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import command_line, record
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import cutting, forward, loop
from zosam_jax.train.checkpoint import snapshot
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.objects import Objects
from zosam_jax.train.step import TrainState

BLOCK, ROUNDS = 5, 6


def config(model: str, epochs: int, every: int) -> TrainConfig:
    """Returns the configuration: 60 % of the channels go, in three quarters of it."""
    return TrainConfig(
        model=model,
        method="chase",
        method_options=("unit_sparsity=0.6", "unit_stop_fraction=0.75"),
        gradient="backprop",
        epochs=epochs,
        compact_every=every,
    )


def seconds_per_step(
    programs: Sequence[CompiledRun], states: Sequence[TrainState]
) -> list[float]:
    """Returns the seconds of a step of each program, which run in turns.

    Args:
      programs: The programs, compiled.
      states: A state of each, as NumPy arrays, at the same step.
    """
    found = [float("inf")] * len(programs)
    now = [
        program.place(state) for program, state in zip(programs, states, strict=True)
    ]
    step = int(states[0].step)
    batches = [program.batches(step) for program in programs]
    for number in range(1 + ROUNDS):
        for i, program in enumerate(programs):
            began = time.perf_counter()
            for k in range(BLOCK):
                stop = step + number * BLOCK + k + 1
                now[i], _ = program.advance(now[i], next(batches[i]), stop)
            jax.block_until_ready(now[i])
            if number:  # The first block warms up.
                seconds = (time.perf_counter() - began) / BLOCK
                found[i] = min(found[i], seconds)
    for generator in batches:
        generator.close()
    return found


def measure(chosen: TrainConfig) -> list[dict[str, Any]]:
    """Trains, and returns a row for each cut."""
    compiled = loop.prepare(chosen, Objects().made())
    compiled.compile()
    state, steps = compiled.init(), compiled.experiment.steps_per_epoch
    rows = []
    assert chosen.compact_every is not None
    for epoch in range(1, chosen.epochs):
        batches = compiled.batches(int(state.step))
        for _ in range(steps):
            at = int(state.step) + 1
            state, _ = compiled.advance(state, next(batches), at)
        batches.close()
        found = None
        if epoch % chosen.compact_every == 0:
            found = cutting.cut(compiled, state)
        if found is None:
            continue
        before = sum(compiled.compile_seconds.values())
        found.compiled.compile()
        # With the tracing, which was part of the cut.
        seconds = sum(found.compiled.compile_seconds.values()) - before
        host = snapshot(state)
        before, after = seconds_per_step(
            (compiled, found.compiled), (host, found.state)
        )
        saved = (before - after) * steps
        rows.append(
            {
                "epoch": epoch,
                "macs": [
                    forward.macs(x.experiment) for x in (compiled, found.compiled)
                ],
                "parameters": [
                    sum(x.size for x in jax.tree.leaves(p))
                    for p in (host.params, found.state.params)
                ],
                "seconds_per_epoch": [before * steps, after * steps],
                "compile_seconds": seconds,
                "epochs_to_pay": seconds / saved if saved > 0 else None,
                "epochs_left": chosen.epochs - epoch,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        compiled, state = found.compiled, found.compiled.place(found.state)
    return rows


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table: a line for each cut, header first.

    Args:
      rows: The cuts of the result file; none if it has not been run.
    """
    found = [["cut after epoch", "multiply-adds", "s an epoch", "compilation", "pays"]]
    for row in rows:
        epochs, left = row["epochs_to_pay"], row["epochs_left"]
        pays = "never" if epochs is None else f"in {epochs:.0f} epochs, of {left} left"
        macs = " -> ".join(f"{x / 1e6:.2f} M" for x in row["macs"])
        times = " -> ".join(f"{x:.2f}" for x in row["seconds_per_epoch"])
        compiled = f"{row['compile_seconds']:.0f} s"
        found.append([f"{row['epoch']}", macs, times, compiled, pays])
    return found


def main() -> None:
    """Measures and writes the file."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--model", default="resnet20", help="the model")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of the training")
    parser.add_argument("--every", type=int, default=10, help="epochs between two cuts")
    parser.add_argument(
        "--out",
        type=Path,
        default=command_line.ROOT / "benchmarks/results/compact-every-cpu.json",
        help="the file",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        jax.config.update("jax_compilation_cache_dir", empty)
        rows = measure(config(options.model, options.epochs, options.every))
    content = {**record.environment(), "model": options.model, "cuts": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
