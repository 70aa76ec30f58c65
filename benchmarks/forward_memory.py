"""Memory and time of steps without a backward pass, whose directions are drawn again.

    python -m benchmarks.forward_memory

A network of equal layers takes a step with each optimizer. Memory is what the compiled
program says that it needs beside its arguments, in copies of the parameters; the
parameters are donated. The steps take turns in one process, and a ratio of times is of
one turn.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import zosam_jax as zs
from benchmarks import command_line, record

LAYERS, BATCH = 12, 128
WIDTHS = (257, 512)
DTYPES = ("float32", "bfloat16")
KEPT = "ZO-SGD"
STEPS: Mapping[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "SGD": lambda: optax.chain(zs.backprop(), optax.sgd(1e-3)),
    KEPT: lambda: zs.zo_sgd(1e-6),
    "ZO-SGD, redrawn": lambda: zs.zo_sgd(1e-6, redraw=True),
}


class Step:
    """A compiled step, and its state.

    Attributes:
      copies: Temporary memory in copies of the parameters.
      compiled_in: Seconds of CPU time of its compilation.
    """

    def __init__(self, name: str, width: int, dtype: str):
        optimizer = STEPS[name]()
        keys = jax.random.split(jax.random.key(0), LAYERS)
        params = [
            jax.random.normal(k, (width, width), dtype) / width**0.5 for k in keys
        ]
        inputs = jnp.ones((BATCH, width), dtype)

        def loss(params: Sequence[jax.Array]) -> jax.Array:
            hidden = inputs
            for kernel in params:
                hidden = jnp.tanh(hidden @ kernel)
            return jnp.mean(jnp.square(hidden.astype(jnp.float32)))

        def step(params: Any, state: Any) -> tuple[Any, Any]:
            update: Any = optimizer.update
            updates, state = update(None, state, params, value_fn=loss)
            return optax.apply_updates(params, updates), state

        self._kept = params, optimizer.init(params)
        began = time.process_time()
        self._step = jax.jit(step, donate_argnums=(0, 1)).lower(*self._kept).compile()
        self.compiled_in = time.process_time() - began
        needed: Any = self._step.memory_analysis()
        self.copies = needed.temp_size_in_bytes / sum(x.nbytes for x in params)

    def timed(self, repeats: int) -> float:
        """Returns the mean time of a step in seconds, over some of them."""
        began = time.perf_counter()
        for _ in range(repeats):
            self._kept = self._step(*self._kept)
        jax.block_until_ready(self._kept)
        return (time.perf_counter() - began) / repeats


def measure(width: int, dtype: str, turns: int) -> list[dict[str, Any]]:
    """Returns a row for each optimizer.

    Args:
      width: Width of the layers.
      dtype: Data type of the parameters and of the loss.
      turns: Number of ratios of times.
    """
    steps = {name: Step(name, width, dtype) for name in STEPS}
    ratios: dict[str, list[float]] = {name: [] for name in STEPS}
    for step in steps.values():
        step.timed(2)
    for _ in range(turns):
        taken = {name: step.timed(5) for name, step in steps.items()}
        for name in STEPS:
            ratios[name].append(taken[name] / taken[KEPT])
    return [
        {
            "optimizer": name,
            "width": width,
            "dtype": dtype,
            "copies": round(step.copies, 2),
            "compiled_in": round(step.compiled_in, 1),
            "time_ratios": [round(x, 3) for x in ratios[name]],
        }
        for name, step in steps.items()
    ]


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the table, header first.

    Args:
      rows: The rows of the result file.
    """
    found = [
        ["layers", "optimizer", "memory, copies", f"time, {KEPT} = 1", "to compile, s"]
    ]
    for row in rows:
        width = row["width"]
        found.append(
            [
                f"{width} x {width}, {row['dtype']}",
                row["optimizer"],
                f"{row['copies']:.1f}",
                f"{statistics.median(row['time_ratios']):.2f}",
                f"{row['compiled_in']:.1f}",
            ]
        )
    return found


def main() -> None:
    """Measures and writes the result file."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--turns", metavar="N", type=int, default=9, help="number of ratios"
    )
    parser.add_argument(
        "--result",
        metavar="FILE",
        type=Path,
        default=Path("benchmarks/results/forward-memory-cpu.json"),
        help="result file",
    )
    args = parser.parse_args()
    # Programs of the cache take no time to compile.
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    for width in WIDTHS:
        for dtype in DTYPES:
            rows += measure(width, dtype, args.turns)
            for row in rows[-len(STEPS) :]:
                print(row, flush=True)
    settings = {"layers": LAYERS, "batch": BATCH, "turns": args.turns}
    record.write(args.result, {"settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
