"""Images per second of a training step, as a share of SGD's.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --model resnet20 --batch 64 --rounds 5
    python -m benchmarks.throughput --only "SAM;guided ZO-SAM"

All steps are compiled first, then timed in turn, round after round, so that what the
machine does besides falls on all of them alike. Ratios are taken within a round; their
medians are what to quote. Images are random; no data set is needed.
"""

import argparse
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
from benchmarks import record
from zosam_jax import models

SPARSITY, INTERVAL = 0.9, 100


class Step(NamedTuple):
    """A compiled step, its arguments, and what the compiler said of it.

    Attributes:
      run: The compiled step.
      state: Its argument.
      compile_seconds: Tracing, lowering and compilation.
      temporary_bytes: Buffers that live during the step alone.
      peak_bytes: These, the arguments and the results.
      flops: XLA's count; of a step with branches, that of all of them.
      state_copies: What the method remembers, in copies of the parameters.
    """

    run: Any
    state: Any
    compile_seconds: float
    temporary_bytes: int
    peak_bytes: int
    flops: float
    state_copies: float = 0.0


def methods() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every gradient that is compared: its constructor and its options."""
    guided = {"directions": "guided"}
    table: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "SGD": (zs.backprop, {}),
        "SAM": (zs.sam, {}),
        "ASAM": (zs.asam, {}),
        "GSAM": (zs.gsam, {}),
        "F-SAM": (zs.fsam, {}),
        "VaSSO": (zs.vasso, {}),
        "WSAM": (zs.wsam, {}),
        "ESAM": (zs.esam, {}),
        "LookSAM, k=5": (zs.looksam, {"every": 5}),
        "AE-SAM": (zs.aesam, {"total_steps": 100_000}),
        "SSAM-F": (zs.ssam, {}),
        "SSAM-D": (zs.ssam, {"mask": "dynamic", "total_steps": 100_000}),
        "S2-SAM": (zs.s2sam, {}),
        "MSAM": (zs.msam, {}),
        "RWP": (zs.rwp, {}),
        "mRWP": (zs.mrwp, {}),
        "ARWP": (zs.arwp, {}),
        "random, random sign": (zs.rst, {}),
        "ZO-SAM": (zs.zosam, {}),
        "ZO-SAM, m=2": (zs.zosam, {"num_directions": 2}),
        "ZO-SAM, vmapped": (zs.zosam, {"chunk_size": 1}),
        "ZO-SAM, exact (jvp)": (zs.zosam, {"delta": None}),
        "ZO-SAM, quarter batch": (zs.zosam, {}),
        "ZO-SAM, bfloat16": (zs.zosam, {}),
        "ZO-SAM, every 5": (zs.zosam, {"every": 5}),
        "guided ZO-SAM": (zs.zosam, guided),
        "guided ZO-SAM, m=2": (zs.zosam, guided | {"num_directions": 2}),
        "guided ZO-SAM, quarter batch": (zs.zosam, guided),
        "guided ZO-SAM, every 5": (zs.zosam, guided | {"every": 5}),
        "ZO-SAM, zeroth-order descent": (zs.zosam, {"descent": "zeroth_order"}),
        "ZO-SGD": (zs.zeroth_order, {}),
    }
    return table


# Methods whose steps differ: so many make one measurement, by their mean.
PERIODS = {
    "LookSAM, k=5": 5,
    "AE-SAM": 5,
    "ZO-SAM, every 5": 5,
    "guided ZO-SAM, every 5": 5,
}

# What the look uphill is evaluated on, where it is not the whole batch in float32.
PROBES = {
    "ZO-SAM, quarter batch": (0.25, jnp.float32),
    "guided ZO-SAM, quarter batch": (0.25, jnp.float32),
    "ZO-SAM, bfloat16": (1.0, jnp.bfloat16),
}


def make_steps(
    args: argparse.Namespace, only: Sequence[str] | None = None
) -> dict[str, Step]:
    """Compiles every step that is compared, each with its own state."""
    shape, batch = (32, 32, 3), args.batch
    networks = {
        dtype: models.create(args.model, num_classes=10, width=args.width, dtype=dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    params, model_state = models.initialize(
        networks[jnp.float32], jax.random.key(0), shape
    )
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32)
    labels = jnp.asarray(rng.integers(10, size=batch), jnp.int32)

    def loss(
        params: Any,
        model_state: Any,
        examples: Any = None,
        mean: bool = True,
        dtype: Any = jnp.float32,
    ) -> Any:
        x, y = images, labels
        if examples is not None:
            x, y = x[examples], y[examples]
        logits, changed = networks[dtype].apply(
            {"params": params, **model_state},
            x.astype(dtype),
            train=True,
            mutable=list(model_state),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), y
        )
        return (losses.mean() if mean else losses), dict(changed)

    sgd = optax.sgd(0.1, momentum=0.9)
    rigl = zs.sparsity.rigl(SPARSITY, 100_000, interval=INTERVAL)

    def train(tx: Any, by_example: bool, probe: Any) -> Callable[[Any], Any]:
        def step(state: Any) -> Any:
            params, model_state, opt_state = state

            def value_fn(p: Any, examples: Any = None) -> Any:
                return loss(p, model_state, examples, mean=not by_example)

            extra = {}
            if probe is not None:
                share, dtype = probe
                few = jnp.arange(round(share * batch))
                extra["ascent_value_fn"] = lambda p: loss(
                    p, model_state, few, dtype=dtype
                )
            updates, opt_state = tx.update(
                None, opt_state, params, value_fn=value_fn, **extra
            )
            estimate = zs.estimate(opt_state)
            return optax.apply_updates(params, updates), estimate.aux, opt_state

        return step

    steps = {}

    def add(name: str, tx: Any, by_example: bool = False, probe: Any = None) -> None:
        if only is None or name in only:
            state = (params, model_state, tx.init(params))
            held = _bytes(state[2]) - _bytes((sgd.init(params), model_state))
            steps[name] = compile_step(train(tx, by_example, probe), state)._replace(
                state_copies=max(held, 0) / _bytes(params)
            )
            print(f"compiled {name}: {steps[name].compile_seconds:.0f} s", flush=True)

    forward = lambda state: loss(*state)[0]  # noqa: E731
    steps["loss only"] = compile_step(forward, (params, model_state))
    for name, (make, options) in methods().items():
        gradient = make(has_aux=True, aux_like=model_state, **options)
        add(name, optax.chain(gradient, sgd), gradient.by_example, PROBES.get(name))
        if name in ("SGD", "ZO-SAM"):
            add(f"{name} + RigL", zs.sparsify(sgd, rigl, gradient=gradient))
    return steps


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def compile_step(step: Callable[[Any], Any], state: Any) -> Step:
    """Compiles a step ahead of time."""
    start = time.perf_counter()
    compiled = jax.jit(step).lower(state).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
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
    """Seconds, and (forward, backward) passes, of each step in each round.

    Two rounds go before that do not count.

    The order within a round is drawn anew each time: a step that comes after one of
    another memory demand is slower.
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


def page_faults(steps: dict[str, Step]) -> dict[str, int]:
    """Pages that the system hands out in one call of each step.

    On a CPU a step's temporaries are new memory in every call, touched for the first
    time; so this share of a step's time does not grow with what it computes.
    """
    faults = {}
    for name, step in steps.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        jax.block_until_ready(step.run(step.state))
        faults[name] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults


def topology_cost(model: Any, rounds: int) -> dict[str, float]:
    """Milliseconds of the sparse machinery alone, gradients given.

    Of a plain SGD update, of `sparsify`'s on an ordinary step, and of one that changes
    the topology: differences that drown in the noise of a whole training step.
    """
    params, _ = models.initialize(model, jax.random.key(0), (32, 32, 3))
    grads = zs.tree.normal_like(jax.random.key(1), params)
    sgd = optax.sgd(0.1, momentum=0.9)
    tx = zs.sparsify(sgd, zs.sparsity.rigl(SPARSITY, 100_000, interval=INTERVAL))

    def apply(tx: Any) -> Any:
        def update(grads: Any, state: Any, params: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(update)

    state = tx.init(params)
    cases = {
        "sgd": (apply(sgd), sgd.init(params)),
        "ordinary": (apply(tx), state),
        "changing": (apply(tx), state._replace(step=jnp.int32(INTERVAL))),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(3 * rounds + 2):
        for name, (update, start_state) in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(update(grads, start_state, params))
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(x) for name, x in seconds.items()}


def summarize(
    steps: dict[str, Step],
    seconds: dict[str, list[float]],
    passes: dict[str, list[tuple[float, float]]],
    batch: int,
) -> list[dict[str, Any]]:
    """One row a step; shares are medians of the ratios within a round."""
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
    """The figures that the design promises."""
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
    """Prints the table."""
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
    console.print("share: of SGD's throughput. copies: of the parameters, remembered.")
    for name, value in targets.items():
        console.print(f"{name}: {value:.4f}", highlight=False)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    of_images = [name for name in models.names() if models.kind(name) == "image"]
    parser.add_argument("--model", default="resnet32", choices=of_images)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--only", help="steps, separated by ';' (SGD, ZO-SAM and these)"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/...")
    args = parser.parse_args()

    model = models.create(args.model, num_classes=10, width=args.width)
    steps = make_steps(args, args.only and [*args.only.split(";"), "SGD", "ZO-SAM"])
    seconds, passes = measure(steps, args.rounds)
    faults = page_faults(steps)
    cost = topology_cost(model, args.rounds)
    rows = summarize(steps, seconds, passes, args.batch)
    promised = targets(seconds, rows, cost)
    device = jax.devices()[0].device_kind
    title = (
        f"{args.model}, width {args.width:g}, batch {args.batch}, 32x32x3, float32, "
        f"on {device}: medians of {args.rounds} interleaved rounds"
    )
    show(rows, promised, title)
    name = f"throughput-{args.model}-{jax.default_backend()}.json"
    record.write(
        args.out or Path("benchmarks/results") / name,
        {
            "settings": {k: v for k, v in vars(args).items() if k != "out"}
            | {"sparsity": SPARSITY, "interval": INTERVAL, "seed": 0},
            "targets": promised,
            "update_milliseconds": cost,
            "page_faults": faults,
            "steps": rows,
        },
    )


if __name__ == "__main__":
    main()
