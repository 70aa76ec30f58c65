"""Measures the throughput of a training step, relative to SGD's.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --model resnet20 --batch 64 --rounds 5
    python -m benchmarks.throughput --only "SAM;guided ZO-SAM"

Every step is compiled first. Then all steps are timed once per round, in random order,
so that other load on the machine affects them equally. Ratios are taken within a round;
quote their medians. AE-SAM's plain steps and SAM steps are timed apart. Its time is
their mean by the fraction of SAM steps in a training, which `benchmarks.aesam`
measures: on one fixed batch it chooses otherwise. Images are random, so no data set is
needed. Every gradient of `zosam_jax.gradients.registry` is measured; `SETTINGS` adds
forms of SAM and ZO-SAM.
"""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import zosam_jax as zs
from benchmarks import aesam, command_line, record
from zosam_jax import models
from zosam_jax._types import Params, PyTree
from zosam_jax.gradients.registry import METHODS

SPARSITY, INTERVAL = 0.9, 100


class Step(NamedTuple):
    """A compiled step, its argument, and the compiler's figures.

    Attributes:
      run: The compiled step.
      state: Its argument.
      compile_seconds: Time of tracing, lowering and compilation.
      temporary_bytes: Size of the buffers that live only during the step.
      peak_bytes: Size of these, the arguments and the results.
      flops: XLA's count; the sum over all branches.
      state_copies: Size of the method's memory, in copies of the parameters.
    """

    run: Any
    state: Any
    compile_seconds: float
    temporary_bytes: int
    peak_bytes: int
    flops: float
    state_copies: float = 0.0


# Options that a measurement needs, by label.
OPTIONS: dict[str, dict[str, Any]] = {
    "LookSAM, k=5": {"every": 5},
    "AE-SAM": {"total_steps": 100_000},
    "SAMPa": {"learning_rate": 0.1},
    "SSAM-D": {"total_steps": 100_000},
}

AESAM = "AE-SAM"
PLAIN_STEP, SAM_STEP = f"{AESAM}, plain step", f"{AESAM}, SAM step"
# Thresholds in standard deviations of the gradient norm, beyond all of them.
KINDS = {
    PLAIN_STEP: {"lambda_1": 1e9, "lambda_2": 1e9},
    SAM_STEP: {"lambda_1": -1e9, "lambda_2": -1e9},
}

GUIDED = {"directions": "guided"}

# Settings that are measured too, by the name of the gradient.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "sam": {
        "SAM, 1/4 of the batch": {"ascent_fraction": 1 / 4},
        "SAM, 1/8 of the batch": {"ascent_fraction": 1 / 8},
        "SAM, 1/16 of the batch": {"ascent_fraction": 1 / 16},
    },
    "looksam": {"LookSAM, k=10": {"every": 10}},
    "zosam": {
        "ZO-SAM, m=2": {"num_directions": 2},
        "ZO-SAM, vmapped": {"chunk_size": 1},
        "ZO-SAM, exact (jvp)": {"delta": None},
        "ZO-SAM, quarter batch": {},
        "ZO-SAM, bfloat16": {},
        "ZO-SAM, every 5": {"every": 5},
        "guided ZO-SAM, m=2": {**GUIDED, "num_directions": 2},
        "guided ZO-SAM, quarter batch": GUIDED,
        "guided ZO-SAM, every 5": {**GUIDED, "every": 5},
        "guided ZO-SAM, disjoint": {**GUIDED, "disjoint": True},
        "ZO-SAM, zeroth-order descent": {"descent": "zeroth_order"},
    },
}


def methods() -> dict[str, tuple[Callable[..., zs.GradientEstimator], dict[str, Any]]]:
    """Returns the constructor and the options of every gradient, by its label."""
    found = {}
    for row in METHODS.values():
        found[row.label] = row.make, OPTIONS.get(row.label, {})
        for variant in row.variants:
            options = {**variant.options, **OPTIONS.get(variant.label, {})}
            found[variant.label] = row.make, options
    make, usual = found[AESAM]
    found |= {label: (make, usual | limits) for label, limits in KINDS.items()}
    for name, settings in SETTINGS.items():
        found |= {k: (METHODS[name].make, options) for k, options in settings.items()}
    return found


# Steps of these methods differ; one measurement is the mean over so many steps.
PERIODS = {
    "LookSAM, k=5": 5,
    "LookSAM, k=10": 10,
    "ZO-SAM, every 5": 5,
    "guided ZO-SAM, every 5": 5,
}

# Share of the batch and dtype of the ascent pass, where not the whole and float32.
PROBES = {
    "ZO-SAM, quarter batch": (0.25, jnp.float32),
    "guided ZO-SAM, quarter batch": (0.25, jnp.float32),
    "ZO-SAM, bfloat16": (1.0, jnp.bfloat16),
}


class Problem:
    """A network in two precisions, random images, and training steps on them."""

    def __init__(self, model: str, width: float, batch: int, side: int = 32):
        """Makes the networks and the images.

        Args:
          model: Name of the network.
          width: Its width.
          batch: Number of images.
          side: Their side in pixels.
        """
        shape = (side, side, 3)
        self.networks = {
            dtype: models.create(
                model, num_classes=10, width=width, image_size=side, dtype=dtype
            )
            for dtype in (jnp.float32, jnp.bfloat16)
        }
        self.params, self.model_state = models.initialize(
            self.networks[jnp.float32], jax.random.key(0), shape
        )
        rng = np.random.default_rng(0)
        self.images = jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32)
        self.labels = jnp.asarray(rng.integers(10, size=batch), jnp.int32)

    def loss(
        self,
        params: Params,
        model_state: PyTree,
        examples: jax.Array | None = None,
        mean: bool = True,
        dtype: Any = jnp.float32,
    ) -> tuple[jax.Array, PyTree]:
        """Returns the cross-entropy and the new batch statistics.

        Args:
          params: Parameters of the network.
          model_state: Its batch statistics.
          examples: Indices of the examples, [n]; all by default.
          mean: Whether to average; otherwise the losses are [n].
          dtype: Dtype that the network computes in, float32 or bfloat16.
        """
        images, labels = self.images, self.labels
        if examples is not None:
            images, labels = images[examples], labels[examples]
        logits, changed = self.networks[dtype].apply(
            {"params": params, **model_state},
            images.astype(dtype),
            train=True,
            mutable=list(model_state),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), labels
        )
        return (losses.mean() if mean else losses), dict(changed)

    def step(
        self,
        tx: Any,
        by_example: bool = False,
        probe: tuple[float, Any] | None = None,
    ) -> Callable[[PyTree], PyTree]:
        """Returns `state -> state`, where a state is (params, model state, opt state).

        Args:
          tx: The optimizer, with its gradient: an Optax transformation, whose types do
            not know that incoming updates may be None.
          by_example: Whether the gradient asks for losses of single examples.
          probe: Share of the batch and dtype of the ascent pass; None: as the descent.
        """

        def step(state: PyTree) -> PyTree:
            params, model_state, opt_state = state

            def value_fn(p: Params, examples: jax.Array | None = None) -> Any:
                return self.loss(p, model_state, examples, mean=not by_example)

            extra = {}
            if probe is not None:
                share, dtype = probe
                few = jnp.arange(round(share * len(self.labels)))
                extra["ascent_value_fn"] = lambda p: self.loss(
                    p, model_state, few, dtype=dtype
                )
            updates, opt_state = tx.update(
                None, opt_state, params, value_fn=value_fn, **extra
            )
            estimate = zs.estimate(opt_state)
            return optax.apply_updates(params, updates), estimate.aux, opt_state

        return step


def make_steps(problem: Problem, only: Sequence[str] | None = None) -> dict[str, Step]:
    """Returns the compiled steps by label: all but AE-SAM's, or those in `only`.

    For AE-SAM there are its two kinds of steps.
    """
    if only is not None and AESAM in only:
        only = [*only, *KINDS]
    params, model_state = problem.params, problem.model_state
    sgd = optax.sgd(0.1, momentum=0.9)
    rigl = zs.sparsity.rigl(SPARSITY, 100_000, interval=INTERVAL)
    steps = {}

    def add(
        name: str, tx: optax.GradientTransformationExtraArgs, **options: Any
    ) -> None:
        if only is None or name in only:
            state = (params, model_state, tx.init(params))
            held = _bytes(state[2]) - _bytes((sgd.init(params), model_state))
            steps[name] = compile_step(problem.step(tx, **options), state)._replace(
                state_copies=max(held, 0) / _bytes(params)
            )
            print(f"compiled {name}: {steps[name].compile_seconds:.0f} s", flush=True)

    steps["loss only"] = compile_step(
        lambda state: problem.loss(*state)[0], (params, model_state)
    )
    for name, (make, options) in methods().items():
        if name == AESAM:
            continue
        gradient = make(has_aux=True, aux_like=model_state, **options)
        tx = optax.chain(gradient, sgd)
        add(name, tx, by_example=gradient.by_example, probe=PROBES.get(name))
        if name in ("SGD", "ZO-SAM"):
            add(f"{name} + RigL", zs.sparsify(sgd, rigl, gradient=gradient))
    return steps


def _bytes(tree: PyTree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def compile_step(step: Callable[[Any], Any], state: Any) -> Step:
    """Compiles a function of one argument ahead of time."""
    start = time.perf_counter()
    compiled = jax.jit(step).lower(state).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("this backend has no memory analysis.")
    cost = compiled.cost_analysis() or {}
    return Step(
        compiled,
        state,
        seconds,
        memory.temp_size_in_bytes,
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        float(cost.get("flops", float("nan"))),
    )


def measure(
    steps: dict[str, Step], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[tuple[float, float]]]]:
    """Returns seconds and (forward, backward) passes of each step in each round.

    Two rounds of warm-up come first. The order within a round is random, because a step
    is slower after one that needs a different amount of memory.
    """
    rng = np.random.default_rng(0)
    states = {name: step.state for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    passes: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name in rng.permutation(list(steps)):
            times = []
            for _ in range(PERIODS.get(name, 1)):
                start = time.perf_counter()
                result = jax.block_until_ready(steps[name].run(states[name]))
                times.append(time.perf_counter() - start)
                if name == "loss only":
                    continue
                states[name] = result
                info = zs.estimate(result[2]).info
                counts = info.forward_evaluations, info.backward_evaluations
                if turn >= 2:
                    passes[name].append((float(counts[0]), float(counts[1])))
            if turn >= 2:
                seconds[name].append(statistics.fmean(times))
    return seconds, passes


def put_together(
    steps: dict[str, Step],
    seconds: dict[str, list[float]],
    passes: dict[str, list[tuple[float, float]]],
    share: float,
) -> None:
    """Adds AE-SAM to what was measured, if both kinds of its steps were.

    Args:
      steps: The compiled steps.
      seconds: Times of each step.
      passes: (forward, backward) passes of each step.
      share: Fraction of SAM steps.
    """
    if not set(KINDS) <= set(steps):
        return
    steps[AESAM] = steps[SAM_STEP]
    kinds = zip(seconds[PLAIN_STEP], seconds[SAM_STEP], strict=True)
    seconds[AESAM] = [(1 - share) * plain + share * sam for plain, sam in kinds]
    passes[AESAM] = [(0.0, 1 + share)]


def page_faults(steps: dict[str, Step]) -> dict[str, int]:
    """Returns the minor page faults of one call of each step.

    On a CPU every call allocates its temporaries anew, and the first access to a page
    costs time that does not depend on the arithmetic.
    """
    faults = {}
    for name, step in steps.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        jax.block_until_ready(step.run(step.state))
        faults[name] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults


def topology_updates(params: Params) -> dict[str, Callable[[], Any]]:
    """Returns compiled updates for given gradients, in place, by their kind.

    The kinds are plain SGD, `sparsify` without a change of the topology, and `sparsify`
    with one.

    Args:
      params: The parameters that are updated.
    """
    grads = zs.tree.normal_like(jax.random.key(1), params)
    sgd = optax.sgd(0.1, momentum=0.9)
    rigl = zs.sparsity.rigl(SPARSITY, 100_000, interval=INTERVAL)

    def cases(tx: Any) -> Callable[[int | None], Callable[[], Any]]:
        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        start = params, tx.init(params)
        jitted = jax.jit(update, donate_argnums=(0, 1))
        program = jitted.lower(*start, grads).compile()

        def case(step: int | None) -> Callable[[], Any]:
            held = list(jax.tree.map(jnp.copy, start))

            def call() -> Any:
                if step is not None:
                    held[1] = held[1]._replace(step=jnp.int32(step))
                held[:] = program(*held, grads)
                return held

            return call

        return case

    sparse = cases(zs.sparsify(sgd, rigl))
    return {
        "sgd": cases(sgd)(None),
        "ordinary": sparse(1),
        "changing": sparse(INTERVAL),
    }


def topology_cost(params: Params, rounds: int) -> dict[str, float]:
    """Returns the milliseconds of each update of `topology_updates`.

    Within a whole training step these differences would drown in noise.

    Args:
      params: The parameters that are updated.
      rounds: A third of the number of timed calls.
    """
    cases = topology_updates(params)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(3 * rounds + 2):
        for name, update in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(update())
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(x) for name, x in seconds.items()}


def summarize(
    steps: dict[str, Step],
    seconds: dict[str, list[float]],
    passes: dict[str, list[tuple[float, float]]],
    batch: int,
) -> list[dict[str, Any]]:
    """Returns a row per step; a share is the median of the ratios within a round."""
    sgd = seconds["SGD"]
    rows = []
    for name, step in steps.items():
        times = seconds[name]
        shares = [a / b for a, b in zip(sgd, times, strict=True)]
        counts = passes[name] or [(1.0, 0.0)]
        rows.append(
            {
                "step": name,
                "seconds_median": statistics.median(times),
                "seconds_min": min(times),
                "images_per_second": batch / statistics.median(times),
                "share_of_sgd": statistics.median(shares),
                "forward_passes": statistics.fmean(f for f, _ in counts),
                "backward_passes": statistics.fmean(b for _, b in counts),
                "state_copies": step.state_copies,
                "compile_seconds": step.compile_seconds,
                "temporary_mib": step.temporary_bytes / 2**20,
                "temporary_of_sgd": step.temporary_bytes / steps["SGD"].temporary_bytes,
                "peak_mib": step.peak_bytes / 2**20,
                "flops_of_sgd": step.flops / steps["SGD"].flops,
                "seconds": times,
            }
        )
    return rows


def targets(
    seconds: dict[str, list[float]], rows: list[dict[str, Any]], cost: dict[str, float]
) -> dict[str, float]:
    """Returns the figures that the design sets goals for.

    Args:
      seconds: Times of each step.
      rows: The summary.
      cost: Milliseconds from `topology_cost`.
    """
    floor = [
        s + 2 * f for s, f in zip(seconds["SGD"], seconds["loss only"], strict=True)
    ]
    zosam = seconds["ZO-SAM"]
    sgd_ms = 1e3 * statistics.median(seconds["SGD"])
    memory = {row["step"]: row["temporary_of_sgd"] for row in rows}
    sparse = (1 - 1 / INTERVAL) * cost["ordinary"] + cost["changing"] / INTERVAL
    return {
        "zosam_over_sgd_and_two_losses": statistics.median(
            a / b for a, b in zip(zosam, floor, strict=True)
        ),
        "share_at_that_floor": statistics.median(
            s / f for s, f in zip(seconds["SGD"], floor, strict=True)
        ),
        "rigl_cost_of_an_sgd_step": (sparse - cost["sgd"]) / sgd_ms,
        "zosam_temporary_memory_of_sgd": memory["ZO-SAM"],
    }


def show(rows: list[dict[str, Any]], targets: dict[str, float], title: str) -> None:
    """Prints the summary."""
    table = Table(title=title)
    table.add_column("step", no_wrap=True)
    for column in ("images/s", "share", "passes", "copies", "compile s", "peak MiB"):
        table.add_column(column, justify="right")
    for row in sorted(rows, key=lambda row: row["seconds_median"]):
        table.add_row(
            row["step"],
            f"{row['images_per_second']:.1f}",
            f"{row['share_of_sgd']:.3f}",
            f"{row['forward_passes']:.2g}F + {row['backward_passes']:.2g}B",
            f"{row['state_copies']:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['peak_mib']:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "share: of SGD's throughput. copies: memory, in copies of the parameters."
    )
    for name, value in targets.items():
        console.print(f"{name}: {value:.4f}", highlight=False)


def main() -> None:
    """Runs the benchmark and writes its results."""
    parser = command_line.parser(__doc__)
    of_images = [name for name in models.names() if models.kind(name) == "image"]
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="resnet32",
        choices=of_images,
        help=command_line.listed("model", of_images),
    )
    parser.add_argument(
        "--width", metavar="X", type=float, default=1.0, help="factor of its widths"
    )
    parser.add_argument(
        "--batch", metavar="N", type=int, default=128, help="images of a batch"
    )
    parser.add_argument(
        "--image-size", metavar="N", type=int, default=32, help="side in pixels"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=20, help="rounds of measurements"
    )
    parser.add_argument(
        "--only",
        metavar="LABELS",
        help="labels of steps, separated by ';'; SGD and ZO-SAM are always measured",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        help="result file; default: one of this model in benchmarks/results",
    )
    args = parser.parse_args()

    problem = Problem(args.model, args.width, args.batch, args.image_size)
    only = args.only and [*args.only.split(";"), "SGD", "ZO-SAM"]
    steps = make_steps(problem, only)
    seconds, passes = measure(steps, args.rounds)
    faults = page_faults(steps)
    put_together(steps, seconds, passes, aesam.share())
    cost = topology_cost(problem.params, args.rounds)
    rows = summarize(steps, seconds, passes, args.batch)
    promised = targets(seconds, rows, cost)
    device = jax.devices()[0]
    precision = jax.config.values["jax_default_matmul_precision"] or "default"
    title = (
        f"{args.model}, width {args.width:g}, batch {args.batch}, {args.image_size} "
        f"pixels, float32, matrix products of precision {precision}, "
        f"on {device.device_kind}: medians of {args.rounds} interleaved rounds"
    )
    show(rows, promised, title)
    name = f"throughput-{args.model}-{jax.default_backend()}.json"
    record.write(
        args.out or Path("benchmarks/results") / name,
        {
            "settings": {k: v for k, v in vars(args).items() if k != "out"}
            | {"sparsity": SPARSITY, "interval": INTERVAL, "seed": 0}
            | {"matmul_precision": precision},
            "device_memory": device.memory_stats(),
            "targets": promised,
            "update_milliseconds": cost,
            "page_faults": faults,
            "steps": rows,
        },
    )


if __name__ == "__main__":
    main()
