"""Images per second of a training step, as a share of SGD's.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --model resnet20 --batch 64 --rounds 5

All steps are compiled first, then timed in turn, round after round, so that what the
machine does besides falls on all of them alike. Ratios are taken within a round; their
medians are what to quote. Images are random; no data set is needed.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
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

RHO, SPARSITY, INTERVAL = 0.05, 0.9, 100


class Step(NamedTuple):
    """A compiled step, its arguments, and what the compiler said of it.

    Attributes:
      run: The compiled step.
      state: Its argument.
      compile_seconds: Tracing, lowering and compilation.
      temporary_bytes: Buffers that live during the step alone.
      peak_bytes: These, the arguments and the results.
      flops: XLA's count.
    """

    run: Any
    state: Any
    compile_seconds: float
    temporary_bytes: int
    peak_bytes: int
    flops: float


def sam(value_fn: Callable[[Any], Any], params: Any) -> Any:
    """SAM in its plainest form, for comparison: two backward passes."""
    (value, _), ascent = jax.value_and_grad(value_fn, has_aux=True)(params)
    unit, _ = zs.tree.normalize(ascent)
    perturbed = zs.tree.add_scaled(params, RHO, unit)
    (_, aux), grad = jax.value_and_grad(value_fn, has_aux=True)(perturbed)
    return value, aux, grad


def make_steps(model: Any, batch: int) -> dict[str, Step]:
    """Compiles every step that is compared, each with its own state."""
    shape = (32, 32, 3)
    params, model_state = models.initialize(model, jax.random.key(0), shape)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32)
    labels = jnp.asarray(rng.integers(10, size=batch), jnp.int32)

    def loss(params: Any, model_state: Any) -> Any:
        logits, changed = model.apply(
            {"params": params, **model_state},
            images,
            train=True,
            mutable=list(model_state),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), dict(changed)

    sgd = optax.sgd(0.1, momentum=0.9)
    rigl = zs.sparsity.rigl(SPARSITY, 100_000, interval=INTERVAL)
    gradients = {
        "SGD": zs.backprop(has_aux=True, aux_like=model_state),
        "ZO-SAM": zs.zosam(RHO, has_aux=True, aux_like=model_state),
        "ZO-SAM vmapped": zs.zosam(
            RHO, has_aux=True, aux_like=model_state, chunk_size=1
        ),
    }
    optimizers = {name: optax.chain(g, sgd) for name, g in gradients.items()}
    optimizers["SGD + RigL"] = zs.sparsify(sgd, rigl, gradient=gradients["SGD"])
    optimizers["ZO-SAM + RigL"] = zs.sparsify(sgd, rigl, gradient=gradients["ZO-SAM"])

    def train(tx: Any) -> Callable[[Any], Any]:
        def step(state: Any) -> Any:
            params, model_state, opt_state = state
            updates, opt_state = tx.update(
                None, opt_state, params, value_fn=lambda p: loss(p, model_state)
            )
            estimate = zs.estimate(opt_state)
            return optax.apply_updates(params, updates), estimate.aux, opt_state

        return step

    def sam_step(state: Any) -> Any:
        params, model_state, opt_state = state
        _, aux, grad = sam(lambda p: loss(p, model_state), params)
        updates, opt_state = sgd.update(grad, opt_state, params)
        return optax.apply_updates(params, updates), aux, opt_state

    def forward(state: Any) -> Any:
        return loss(*state)[0]

    steps = {"loss only": compile_step(forward, (params, model_state))}
    start = params, model_state, sgd.init(params)
    steps["SAM"] = compile_step(sam_step, start)
    for name, tx in optimizers.items():
        steps[name] = compile_step(train(tx), (params, model_state, tx.init(params)))
    return steps


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


def measure(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round, after two rounds that do not count.

    The order within a round is drawn anew each time: a step that comes after one of
    another memory demand is slower.
    """
    rng = np.random.default_rng(0)
    states = {name: step.state for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 2):
        for name in rng.permutation(list(steps)):
            start = time.perf_counter()
            result = jax.block_until_ready(steps[name].run(states[name]))
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
            if name != "loss only":
                states[name] = result
    return seconds


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
    steps: dict[str, Step], seconds: dict[str, list[float]], batch: int
) -> list[dict[str, Any]]:
    """One row a step; shares are medians of the ratios within a round."""
    sgd = seconds["SGD"]
    rows = []
    for name, step in steps.items():
        times = seconds[name]
        shares = [a / b for a, b in zip(sgd, times, strict=True)]
        rows.append(
            {
                "step": name,
                "seconds_median": statistics.median(times),
                "seconds_min": min(times),
                "images_per_second": batch / statistics.median(times),
                "share_of_sgd": statistics.median(shares),
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
    for column in ("images/s", "share", "FLOPs", "compile s", "temp MiB", "peak MiB"):
        table.add_column(column, justify="right")
    for row in sorted(rows, key=lambda row: row["seconds_median"]):
        table.add_row(
            row["step"],
            f"{row['images_per_second']:.1f}",
            f"{row['share_of_sgd']:.3f}",
            f"{row['flops_of_sgd']:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['temporary_mib']:.0f}",
            f"{row['peak_mib']:.0f}",
        )
    console = Console()
    console.print(table)
    console.print("share: of SGD's throughput. FLOPs: of SGD's.")
    for name, value in targets.items():
        console.print(f"{name}: {value:.4f}", highlight=False)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="resnet32", choices=models.names())
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/...")
    args = parser.parse_args()

    model = models.create(args.model, num_classes=10, width=args.width)
    steps = make_steps(model, args.batch)
    seconds = measure(steps, args.rounds)
    faults = page_faults(steps)
    cost = topology_cost(model, args.rounds)
    rows = summarize(steps, seconds, args.batch)
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
            | {"rho": RHO, "sparsity": SPARSITY, "interval": INTERVAL, "seed": 0},
            "targets": promised,
            "update_milliseconds": cost,
            "page_faults": faults,
            "steps": rows,
        },
    )


if __name__ == "__main__":
    main()
