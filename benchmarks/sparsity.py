"""Measures the time and memory that sparse training adds to a dense update.

    python -m benchmarks.sparsity
    python -m benchmarks.sparsity --sizes 1 25 --rounds 5
    python -m benchmarks.sparsity --quick

Every round times each method, a read of the weights, and SGD with momentum, in random
order. Ratios are taken within a round; quote their medians. Gradients are given, so
that only the update is timed; the training step of ResNet-50 is timed once for scale.
Each method at each size runs in its own process and appends one line to a log, so that
the same command resumes. A process that runs out of time or memory leaves no line and
is tried again. The methods are those of `zosam_jax.sparsity.registry`.
"""

import argparse
import inspect
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import zosam_jax as zs
from benchmarks import command_line, record, resnet50, tables
from zosam_jax import models
from zosam_jax.selection import select, select_across
from zosam_jax.sparsity.registry import METHODS

SPARSITY, STEPS, INTERVAL, SEED = 0.9, 100_000, 100, 0
# The first change from this step on is timed; GMP has reached half its sparsity.
FROM = 30_000
RESNET_BATCH, RESNET_STEPS = 32, 3
PACKED = ("static", "RigL")  # also measured with packed masks
SELECTION, RESNET = "selection", "ResNet-50 step"


DEFAULTS = {
    "sparsity": SPARSITY,
    "total_steps": STEPS,
    "interval": INTERVAL,
    "seed": SEED,
}


class Method(NamedTuple):
    """A sparse method to measure.

    Attributes:
      name: Its name in the registry.
      options: Arguments of its constructor beside those in `DEFAULTS`.
      interval: Steps between changes of the topology; None for no changes.
    """

    name: str
    options: Mapping[str, Any] = {}
    interval: int | None = INTERVAL

    def make(self) -> zs.sparsity.SparseMethod:
        """Returns the method, with those of `DEFAULTS` that its constructor takes."""
        row = METHODS[self.name]
        known = inspect.signature(row.make).parameters
        others = any(p.kind == p.VAR_KEYWORD for p in known.values())
        defaults = {k: v for k, v in DEFAULTS.items() if others or k in known}
        return row.make(**{**defaults, **row.fixed, **self.options})


# These cost as much as "static" in training, or need arguments that depend on a model.
LEFT_OUT = ("magnitude", "snip", "grasp", "synflow", "ticket", "units", "chex")
LEFT_OUT += ("chase", "dynamic")


def _too_few(_: str, shape: tuple[int, ...]) -> bool:
    return len(shape) < 2 or shape[-2] % 4 != 0


# Settings under the labels that the results have.
SETTINGS = {
    "static": Method("random", interval=None),
    "SET": Method("set"),
    "SET, by sign": Method("set", {"by_sign": True}),
    "MEST, EM": Method("mest"),
    "GMP": Method("gmp"),
    "GMP, global": Method("gmp", {"budget": "global"}),
    "SRigL": Method("srigl", {"last": ()}),
    "2:4": Method("nm", {"n": 2, "m": 4, "dense": _too_few}),
    "STE": Method("ste"),
    "STE, every step": Method("ste", {"interval": 1}, 1),
}


def measured() -> dict[str, Method]:
    """Returns every method that is measured, by its label."""
    known = {method.name for method in SETTINGS.values()} | set(LEFT_OUT)
    plain = {row.label: Method(n) for n, row in METHODS.items() if n not in known}
    return SETTINGS | plain


def shapes(size: str) -> Any:
    """Returns a tree of shapes: a real network's, or one matrix and its bias."""
    if size == "1":
        model = models.create("resnet32", num_classes=10, width=1.5)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        init = lambda key, x: model.init(key, x, train=False)  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0), image)["params"]
    if size == "25":
        return resnet50.variables()["params"]
    if size == "100-one":
        tree: Any = {"kernel": (10_000, 10_000), "bias": (10_000,)}
    else:
        # Fourteen transformer blocks of width 768.
        maps = {"qkv": (768, 2304), "out": (768, 768)}
        maps |= {"up": (768, 3072), "down": (3072, 768)}
        block = {k: {"kernel": s, "bias": s[1:]} for k, s in maps.items()}
        block |= {k: {"scale": (768,), "bias": (768,)} for k in ("norm1", "norm2")}
        tree = {f"block{i}": block for i in range(14)}
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


SIZES = ("1", "25", "100", "100-one")


class Case(NamedTuple):
    """A program to time, and the compiler's figures of it."""

    call: Callable[[], Any]
    facts: dict[str, Any]


def compiled(function: Callable[..., Any], *args: Any, donate: Any = ()) -> Any:
    """Returns the compiled program, and its bytes and seconds of compilation."""
    start = time.perf_counter()
    program = jax.jit(function, donate_argnums=donate).lower(*args).compile()
    seconds = time.perf_counter() - start
    found, names = program.memory_analysis(), ("argument", "output", "alias", "temp")
    facts = {name: getattr(found, f"{name}_size_in_bytes") for name in names}
    return program, facts | {"compile_seconds": round(seconds, 2)}


class Bench:
    """Weights of one size, and the cases to time on them."""

    def __init__(self, size: str):
        like = shapes(size)
        # JAX's own generator would take longer than the measurements.
        rng = np.random.default_rng(SEED)
        draw = lambda s: jnp.asarray(rng.standard_normal(s.shape, np.float32))  # noqa: E731
        self.params, self.grads = jax.tree.map(draw, like), jax.tree.map(draw, like)
        self.sgd = optax.sgd(1e-6, momentum=0.9)
        self.base = self._reads() | {
            "dense": self._update(self.sgd, self.params, self.sgd.init(self.params))()
        }

    def _reads(self) -> dict[str, Case]:
        def read(tree: Any) -> Any:
            return sum(jnp.sum(x) for x in jax.tree.leaves(tree))

        def write(tree: Any) -> Any:
            return jax.tree.map(lambda x: x * jnp.float32(-1), tree)

        read_program, read_bytes = compiled(read, self.params)
        write_program, write_bytes = compiled(write, self.params, donate=0)
        held = [jax.tree.map(jnp.copy, self.grads)]

        def rewrite() -> Any:
            held[0] = write_program(held[0])
            return held[0]

        return {
            "read": Case(lambda: read_program(self.params), read_bytes),
            "read and write": Case(rewrite, write_bytes),
        }

    def _update(self, tx: Any, params: Any, state: Any) -> Callable[..., Case]:
        """Returns `step -> Case` of an update applied in place, as in training."""

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        # The program donates its arguments, and these may share arrays.
        held = [jax.tree.map(jnp.copy, x) for x in (params, state)]
        program, memory = compiled(update, *held, self.grads, donate=(0, 1))

        def case(step: int | None = None) -> Case:
            def call() -> Any:
                if step is not None:
                    held[1] = held[1]._replace(step=jnp.int32(step))
                held[:] = program(*held, self.grads)
                return held

            return Case(call, memory)

        return case

    def selections(self) -> dict[str, Case]:
        """Returns the cases that select the largest 30 % of all weights."""
        leaves = [jnp.abs(x) for x in jax.tree.leaves(self.params) if x.ndim > 1]
        every = [jnp.ones(x.shape, bool) for x in leaves]
        counts = [jnp.int32(0.3 * x.size) for x in leaves]
        args = leaves, every, counts
        each, each_bytes = compiled(select, *args)
        across, across_bytes = compiled(
            lambda s, c, k: select_across(s, c, sum(k)), *args
        )
        return {
            "select": Case(lambda: each(*args), each_bytes),
            "select across": Case(lambda: across(*args), across_bytes),
        }

    def method(self, method: Any, interval: int | None, pack: bool) -> dict[str, Case]:
        """Returns a change of the topology, and updates with and without one.

        Args:
          method: The sparse method.
          interval: Steps between its changes; None for no changes.
          pack: Whether to measure packed masks too.
        """
        cases = {}
        first: Any = jax.jit(method.init)(self.params)
        steps = {"ordinary": FROM + 1}
        if interval is not None:
            fires = jax.jit(method.fires)
            steps["changing"] = next(
                s for s in range(FROM, STEPS) if bool(fires(jnp.int32(s)))
            )
            if interval == 1:
                del steps["ordinary"]
            step = jnp.int32(steps["changing"])
            args = first, self.params, self.grads, step
            change, memory = compiled(method.change, *args)
            cases["change"] = Case(lambda: change(*args), memory)
        # `init` is expensive and the same in every case.
        known = method._replace(init=lambda _: first)
        params = self.params
        if not method.straight_through:
            params = zs.sparsity.apply_masks(params, first.masks)
        for packed in (False, True) if pack else (False,):
            tx = zs.sparsify(self.sgd, known, packed=packed)
            state: Any = tx.init(self.params)
            case = self._update(tx, params, state)
            for name, step in steps.items():
                found = case(step)
                found.facts["masks"] = _bytes(state.masks)
                cases[name + (", packed" if packed else "")] = found
        return cases


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def measure(cases: dict[str, Case], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each case in each round, after a round of warm-up."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name in rng.permutation(list(cases)):
            start = time.perf_counter()
            jax.block_until_ready(cases[name].call())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, unit: str) -> float:
    """Returns the median over the rounds of the ratio of two cases.

    Args:
      seconds: Times of each case.
      name: The case in the numerator.
      unit: The case in the denominator.
    """
    pairs = zip(seconds[name], seconds[unit], strict=True)
    return statistics.median(a / b for a, b in pairs)


def row(bench: Bench, name: str, rounds: int) -> dict[str, Any]:
    """Returns the measurements of a method at a size.

    Args:
      bench: The weights.
      name: Label of the method.
      rounds: Number of rounds.
    """
    methods = measured()
    if name == SELECTION:
        interval, own = None, bench.selections()
    else:
        interval = methods[name].interval
        own = bench.method(methods[name].make(), interval, name in PACKED)
    cases = bench.base | own
    seconds = measure(cases, rounds)
    found: dict[str, Any] = {
        "milliseconds": {k: 1e3 * statistics.median(v) for k, v in seconds.items()},
        "reads": {k: ratio(seconds, k, "read") for k in seconds if k != "read"},
        "of_dense": {k: ratio(seconds, k, "dense") for k in own},
        "programs": {k: case.facts for k, case in cases.items()},
        "parameters": zs.tree.size(bench.params),
        "leaves": len(jax.tree.leaves(bench.params)),
        "interval": interval,
        "seconds": seconds,
    }
    if name != SELECTION:
        found["average"] = {
            kind or "unpacked": average(seconds, interval, kind)
            for kind in ("", ", packed")
            if f"ordinary{kind}" in own or f"changing{kind}" in own
        }
    return found


def average(seconds: dict[str, list[float]], interval: int | None, kind: str) -> float:
    """Returns the mean extra milliseconds of a step over the dense update.

    Args:
      seconds: Times of each case.
      interval: Steps between changes; None for no changes.
      kind: Suffix of the cases: "" or ", packed".
    """
    share = 1 / interval if interval else 0.0
    ordinary = seconds["changing" + kind if interval == 1 else "ordinary" + kind]
    changing = seconds["changing" + kind] if interval else ordinary
    return 1e3 * statistics.median(
        (1 - share) * o + share * c - d
        for o, c, d in zip(ordinary, changing, seconds["dense"], strict=True)
    )


def resnet_step() -> dict[str, Any]:
    """Returns the milliseconds of a training step of ResNet-50 at 224x224 pixels."""
    like = resnet50.variables()
    rng = np.random.default_rng(SEED)
    variables = jax.tree.map(
        lambda s: jnp.asarray(0.02 * rng.standard_normal(s.shape, np.float32)), like
    )
    momentum = optax.sgd(0.1, momentum=0.9).init(variables["params"])
    size = (RESNET_BATCH, 224, 224, 3)
    images = jnp.asarray(rng.standard_normal(size, np.float32))
    labels = jnp.asarray(rng.integers(1000, size=RESNET_BATCH))
    times = []
    for _ in range(RESNET_STEPS + 1):
        start = time.perf_counter()
        variables, momentum, loss = resnet50.train_step(
            variables, momentum, images, labels
        )
        jax.block_until_ready(loss)
        times.append(1e3 * (time.perf_counter() - start))
        print(f"ResNet-50 step: {times[-1]:.0f} ms", flush=True)
    return {
        "milliseconds": {"step": statistics.median(times[1:])},
        "batch": RESNET_BATCH,
        "times": times[1:],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the tables."""
    for title, lines in tables.sparsity_rows(rows).items():
        table = Table(title=title)
        for column in lines[0]:
            table.add_column(column, justify="right" if table.columns else "left")
        for line in lines[1:]:
            table.add_row(*line)
        Console(width=120).print(table)


def apart(size: str, name: str, args: argparse.Namespace) -> None:
    """Measures one method in its own process and prints the outcome.

    Args:
      size: Key of `SIZES`.
      name: Label of the method.
      args: The command line.
    """
    command = [sys.executable, "-m", "benchmarks.sparsity", "--one", size, name]
    command += ["--rounds", str(args.rounds), "--log", str(args.log)]
    start = time.perf_counter()
    try:
        code = subprocess.run(command, timeout=args.timeout, check=False).returncode
    except subprocess.TimeoutExpired:
        code = "out of time"
    seconds = time.perf_counter() - start
    outcome = "measured" if code == 0 else f"failed ({code})"
    print(f"{outcome}: {size}, {name}, {seconds:.0f} s", flush=True)


def log_settings(rounds: int) -> dict[str, Any]:
    """Returns what all lines of a log have in common."""
    return {"sparsity": SPARSITY, "rounds": rounds, "jax": jax.__version__}


def merged(log: record.Log) -> dict[str, Any]:
    """Returns the lines of a log, and the processes that wrote them, each once."""
    rows, processes = log.rows(), []
    for found in rows:
        found.pop("settings")
        if (own := found.pop("environment")) not in processes:
            processes.append(own)
        found["process"] = processes.index(own)
    settings = {"steps": STEPS, "interval": INTERVAL, "step": FROM, "seed": SEED}
    return {"settings": log.settings | settings, "processes": processes, "rows": rows}


def main() -> None:
    """Measures what the log lacks, prints the tables and writes the results."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="SIZE",
        default=SIZES,
        choices=SIZES,
        help=command_line.listed("millions of weights", SIZES),
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="LABEL", help="labels of methods; default: all"
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=9, help="rounds of measurements"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="1 M weights, three methods, in a separate file",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=1800,
        help="limit of a process",
    )
    parser.add_argument(
        "--log",
        metavar="FILE",
        type=Path,
        default=Path("runs/sparsity.jsonl"),
        help="log of the measurements",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=tables.RESULTS / tables.SPARSITY,
        help="result file",
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.methods, args.rounds = ["1"], [SELECTION, "SET", "RigL"], 3
        args.log, args.out = (Path("runs/sparsity-quick") / n for n in ("l", "o.json"))

    log = record.Log(args.log, log_settings(args.rounds))
    if args.one:
        size, name = args.one
        found = resnet_step() if name == RESNET else row(Bench(size), name, args.rounds)
        fields = {"size": size, "method": name, "environment": record.environment()}
        log.append(fields | found)
        return
    # An exception makes subprocess.run end its child; a plain SIGTERM does not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    done = {(r["size"], r["method"]) for r in log.rows()}
    for size in args.sizes:
        for name in (*([RESNET] if size == "25" else []), SELECTION, *measured()):
            if (size, name) not in done and name in (args.methods or (name,)):
                apart(size, name, args)
    found = merged(log)
    show(found["rows"])
    record.write(args.out, found)


if __name__ == "__main__":
    main()
