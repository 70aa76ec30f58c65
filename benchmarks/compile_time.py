"""Measures how long training steps take to compile, by the number of leaves.

    python -m benchmarks.compile_time

A network of equal blocks, each of two kernels and two biases, is compiled with each
step, without the persistent cache. The steps take turns within a repetition, so that
what else the machine does hits all of them alike. Times are medians over the
repetitions: seconds of CPU time of all threads, and seconds that passed, from the first
trace to the program. So are those of the programs of whole presets: the first state,
the step, and the evaluation. The file's name says the version of JAX.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import zosam_jax as zs
from benchmarks import command_line, record
from zosam_jax._types import Params, ValueFn
from zosam_jax.runs import presets
from zosam_jax.train import loop
from zosam_jax.train.objects import Objects

LEAVES, WIDTH = (20, 160, 400), 64
PRESETS = ("digits",)


def _plain(gradient: zs.GradientEstimator) -> optax.GradientTransformationExtraArgs:
    return optax.chain(gradient, optax.sgd(0.1, momentum=0.9))


def _sparse(method: Any, gradient: Any = None) -> Any:
    gradient = zs.backprop() if gradient is None else gradient
    return zs.sparsify(optax.sgd(0.1, momentum=0.9), method, gradient=gradient)


# What each step is compared with, and the step.
STEPS: Mapping[str, tuple[str, Callable[[], Any]]] = {
    "SGD": ("SGD", lambda: _plain(zs.backprop())),
    "SAM": ("SGD", lambda: _plain(zs.sam())),
    "ZO-SAM": ("SAM", lambda: _plain(zs.zosam())),
    "guided ZO-SAM": ("SAM", lambda: _plain(zs.zosam(directions="guided"))),
    "RWP": ("SAM", lambda: _plain(zs.rwp())),
    "static masks": ("SGD", lambda: _sparse(zs.sparsity.static(0.9))),
    "RigL": ("static masks", lambda: _sparse(zs.sparsity.rigl(0.9, 1000))),
    "SET": ("static masks", lambda: _sparse(zs.sparsity.set_(0.9, 1000))),
    "GMP": ("static masks", lambda: _sparse(zs.sparsity.gmp(0.9, 1000))),
    "DSR": ("static masks", lambda: _sparse(zs.sparsity.dsr(0.9, 1000))),
}


class Compiled(NamedTuple):
    """What one compilation took.

    Attributes:
      cpu: Seconds of CPU time of all threads.
      passed: Seconds that passed.
      instructions: Instructions of the compiled program.
    """

    cpu: float
    passed: float
    instructions: int


def network(leaves: int, width: int = WIDTH) -> tuple[Params, ValueFn]:
    """Returns the shapes of the parameters, and the loss.

    Args:
      leaves: Number of leaves, a multiple of 4.
      width: Features between the blocks; half of those within.
    """
    shapes = {
        "in": (width, 2 * width),
        "in_bias": (2 * width,),
        "out": (2 * width, width),
        "out_bias": (width,),
    }
    block = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    params = {f"block{i:03}": dict(block) for i in range(leaves // 4)}

    def loss(params: Params) -> jax.Array:
        x = jnp.ones((8, width))
        for b in params.values():
            hidden = jnp.tanh(x @ b["in"] + b["in_bias"])
            x = jnp.tanh(hidden @ b["out"] + b["out_bias"])
        return jnp.mean(x**2)

    return params, loss


def lowered(tx: Any, leaves: int, width: int = WIDTH) -> jax.stages.Lowered:
    """Returns the training step, as it is handed to XLA.

    Args:
      tx: The optimizer.
      leaves: See `network`.
      width: See `network`.
    """
    params, loss = network(leaves, width)
    state = jax.eval_shape(tx.init, params)

    def step(params: Params, state: Any) -> tuple[Params, Any]:
        updates, state = tx.update(None, state, params, value_fn=loss)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state)


def measure(name: str, leaves: int) -> Compiled:
    """Returns what one compilation of a step takes.

    Args:
      name: A step of `STEPS`.
      leaves: See `network`.
    """
    tx = STEPS[name][1]()
    cpu, passed = time.process_time(), time.perf_counter()
    program = lowered(tx, leaves).compile()
    cpu, passed = time.process_time() - cpu, time.perf_counter() - passed
    return Compiled(cpu, passed, (program.as_text() or "").count(" = "))


def measure_preset(name: str) -> dict[str, float]:
    """Returns what the programs of a training take, each as `zosam train` adds them up.

    Args:
      name: Name of a preset.

    Returns:
      Seconds that passed by program, and "cpu" seconds of all threads for all of them.
    """
    cpu = time.process_time()
    compiled = loop.prepare(presets.preset(name).config, Objects())
    compiled.compile()
    compiled.init()
    return {"cpu": time.process_time() - cpu, **compiled.compile_seconds}


def preset_row(name: str, taken: list[dict[str, float]]) -> dict[str, Any]:
    """Returns a row of the result file: medians over the repetitions."""
    passed = [sum(t.values()) - t["cpu"] for t in taken]
    return {
        "preset": name,
        "cpu_seconds": statistics.median(t["cpu"] for t in taken),
        "seconds": statistics.median(passed),
        "seconds_each": [round(t, 3) for t in passed],
        "seconds_by_program": {
            program: statistics.median(t[program] for t in taken)
            for program in taken[0].keys() - {"cpu"}
        },
    }


def row(name: str, leaves: int, taken: list[Compiled]) -> dict[str, Any]:
    """Returns a row of the result file: medians over the repetitions."""
    return {
        "step": name,
        "leaves": leaves,
        "cpu_seconds": statistics.median(x.cpu for x in taken),
        "seconds": statistics.median(x.passed for x in taken),
        "instructions": taken[0].instructions,
        "cpu_seconds_each": [round(x.cpu, 3) for x in taken],
    }


def main() -> None:
    """Runs the benchmark and writes its results."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--leaves",
        metavar="N",
        type=int,
        nargs="+",
        default=list(LEAVES),
        help="numbers of leaves",
    )
    parser.add_argument(
        "--steps",
        metavar="STEP",
        nargs="+",
        choices=STEPS,
        default=list(STEPS),
        help=command_line.listed("steps", list(STEPS)),
    )
    parser.add_argument(
        "--presets",
        metavar="NAME",
        nargs="*",
        default=list(PRESETS),
        help="presets whose programs are compiled",
    )
    parser.add_argument(
        "--repetitions", metavar="N", type=int, default=3, help="compilations of each"
    )
    version = ".".join(jax.__version__.split(".")[:2])
    results = command_line.ROOT / "benchmarks" / "results"
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=results / f"compile-time-jax{version}.json",
        help="result file",
    )
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    measure("SGD", 4)  # What starts with the first compilation.
    rows = []
    for leaves in args.leaves:
        taken: dict[str, list[Compiled]] = {name: [] for name in args.steps}
        for _ in range(args.repetitions):
            for name in args.steps:
                # Traced and compiled anew.
                jax.clear_caches()
                taken[name].append(measure(name, leaves))
        rows += [row(name, leaves, own) for name, own in taken.items()]
        for name in args.steps:
            print(leaves, name, f"{statistics.median(x.cpu for x in taken[name]):.2f}")
    found = []
    for name in args.presets:
        whole = []
        for _ in range(args.repetitions):
            jax.clear_caches()
            whole.append(measure_preset(name))
        found.append(preset_row(name, whole))
        print(name, f"{found[-1]['seconds']:.1f}")
    record.write(args.out, {"width": WIDTH, "rows": rows, "presets": found})


if __name__ == "__main__":
    main()
