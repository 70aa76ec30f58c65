"""Times SAM of this library, of Optax and of PyTorch side by side, in one run.

    python -m benchmarks.others --torch-python ../torch/bin/python

A step of SAM takes two gradients of one batch. `optax.contrib.sam` runs in both of its
modes: opaque, where one update asks for the second gradient, and transparent, where a
step is two updates. PyTorch has no SAM; its step is written out in
`benchmarks.others_torch`, eager and with `torch.compile`. It runs in another process,
with the interpreter that is named, since it may not be installed beside JAX. All begin
with the same weights and images, and must have the same losses in the first steps.

Then all steps are timed once in each round, in random order; only one of the two
processes works at a time. A measurement is the mean of some calls, after one that is
not timed. The table shows the fastest round of each step: PyTorch's threads wait for
each other so often that other work on the machine slows them tenfold, and JAX less.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import zosam_jax as zs
from benchmarks import command_line, record, throughput
from benchmarks.rounding import significant

RHO, RATE, MOMENTUM, BATCH = 0.05, 0.01, 0.9, 128
NETWORKS = {"mlp": 1.0, "resnet20": 0.5}
"""Width of each network."""

OURS, PLAIN = "SAM, zosam_jax", "SGD, Optax"
CHECKED, TOLERANCE = 3, 1e-3
"""Steps whose losses must agree, and how well: summations differ in their order."""

LEAST_SECONDS = 0.2  # that a measurement takes, or one call
Call = Callable[[int], tuple[list[float], float]]
"""Takes so many steps; returns the loss before each, and the seconds of all."""


def jax_steps(problem: throughput.Problem) -> dict[str, Call]:
    """Returns the steps in JAX by their names.

    Args:
      problem: The network and the images.
    """
    sgd = optax.sgd(RATE, momentum=MOMENTUM)
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))

    def ours() -> Call:
        gradient = zs.sam(RHO, has_aux=True, aux_like=problem.model_state)
        tx: Any = optax.chain(gradient, sgd)

        def step(state: Any) -> Any:
            params, model_state, opt_state = state

            def value_fn(p: Any) -> Any:
                return problem.loss(p, model_state)

            updates, opt_state = tx.update(None, opt_state, params, value_fn=value_fn)
            params = optax.apply_updates(params, updates)
            found = zs.estimate(opt_state)
            return found.value, (params, found.aux, opt_state)

        return _call(step, problem, tx)

    def with_optax(tx: Any, opaque: bool, calls: int = 1) -> Call:
        def step(state: Any) -> Any:
            params, model_state, opt_state = state

            def loss(p: Any, _: int = 0) -> Any:
                return problem.loss(p, model_state)

            (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
            second = jax.grad(lambda p, i: loss(p, i)[0])
            given = {"grad_fn": second} if opaque else {}
            updates, opt_state = tx.update(grads, opt_state, params, **given)
            return value, (optax.apply_updates(params, updates), aux, opt_state)

        return _call(step, problem, tx, calls)

    def theirs(opaque: bool) -> Any:
        return optax.contrib.sam(sgd, ascent, sync_period=2, opaque_mode=opaque)

    return {
        PLAIN: with_optax(sgd, opaque=False),
        OURS: ours(),
        "SAM, optax.contrib, opaque": with_optax(theirs(True), opaque=True),
        "SAM, optax.contrib, two updates": with_optax(theirs(False), False, calls=2),
    }


def _call(
    step: Callable[[Any], Any], problem: throughput.Problem, tx: Any, calls: int = 1
) -> Call:
    """Returns a compiled step that takes its own state further.

    Args:
      step: `state -> (loss, state)`.
      problem: Where the state begins.
      tx: The optimizer.
      calls: Calls that make a step; the loss is that of the first.
    """
    state = (problem.params, problem.model_state, tx.init(problem.params))
    # Copies: the state is donated, and others begin with the same weights.
    held = [jax.tree.map(jnp.copy, state)]
    program = jax.jit(step, donate_argnums=0).lower(held[0]).compile()

    def call(count: int) -> tuple[list[float], float]:
        losses = []
        start = time.perf_counter()
        for _ in range(count):
            value, held[0] = program(held[0])
            losses.append(value)
            for _ in range(calls - 1):
                _, held[0] = program(held[0])
            # As a loop that shows its loss, and as PyTorch does.
            value.block_until_ready()
        jax.block_until_ready(held)
        seconds = time.perf_counter() - start
        return [float(x) for x in losses], seconds

    return call


@contextlib.contextmanager
def torch_steps(
    python: str, network: str, problem: throughput.Problem, threads: int
) -> Iterator[tuple[dict[str, Call], list[str]]]:
    """Yields the steps of a process with PyTorch, and a list that gets its version.

    Args:
      python: An interpreter that has PyTorch.
      network: A key of `NETWORKS`.
      problem: The network and the images.
      threads: Threads that PyTorch may use.
    """
    flat = network == "mlp"
    images = np.asarray(problem.images)
    arrays = {
        "images": images.reshape(len(images), -1) if flat else images,
        "labels": np.asarray(problem.labels),
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        {"params": problem.params, **problem.model_state}
    ):
        arrays["/".join(key.key for key in path)] = np.asarray(leaf)
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place, "weights.npz")
        np.savez(archive, allow_pickle=False, **arrays)
        program = Path(__file__).with_name("others_torch.py")
        words = [str(archive), network, str(RHO), str(RATE), str(MOMENTUM)]
        process = subprocess.Popen(
            [python, "-P", str(program), *words, str(threads)],
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        versions: list[str] = []

        def asking(step: str) -> Call:
            def call(count: int) -> tuple[list[float], float]:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    print(json.dumps([step, count]), file=process.stdin, flush=True)
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"{python} does not run {step}; see above.")
                answer = json.loads(line)
                versions[:] = [answer["torch"]]
                return answer["losses"], answer["seconds"]

            return call

        try:
            yield (
                {
                    f"{name}, PyTorch, {kind}": asking(f"{name}, {kind}")
                    for kind in ("eager", "compiled")
                    for name in ("SGD", "SAM")
                },
                versions,
            )
        finally:
            process.kill()
            process.communicate()


def checked(steps: Mapping[str, Call]) -> dict[str, list[float]]:
    """Returns the losses of the first steps.

    Args:
      steps: The steps.

    Raises:
      SystemExit: Those of two implementations of a method differ.
    """
    losses = {name: call(CHECKED)[0] for name, call in steps.items()}
    for name, own in losses.items():
        expected = losses[OURS if name.startswith("SAM") else PLAIN]
        if not np.allclose(own, expected, rtol=TOLERANCE):
            raise SystemExit(f"{name} has the losses {own}, not {expected}.")
    return losses


def measure(steps: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of a step in each round.

    Args:
      steps: The steps, all of which have run.
      rounds: Number of rounds.
    """
    rng = np.random.default_rng(0)
    counts = {}
    for name, call in steps.items():
        counts[name] = max(1, round(LEAST_SECONDS / call(1)[1]))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in rng.permutation(list(steps)):
            steps[name](1)
            seconds[name].append(steps[name](counts[name])[1] / counts[name])
    return seconds


def rows(
    network: str, seconds: Mapping[str, list[float]], losses: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    """Returns the rows of the result file.

    Args:
      network: A key of `NETWORKS`.
      seconds: What `measure` returns.
      losses: What `checked` returns.
    """
    return [
        {"network": network, "step": name, "losses": losses[name], "seconds": own}
        for name, own in seconds.items()
    ]


def _own_sgd(name: str) -> str:
    """The step of SGD in the same framework."""
    return f"SGD{name[3:]}" if "PyTorch" in name else PLAIN


def lines(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the table of the fastest rounds, header first.

    Args:
      found: The rows of the result file.
    """
    networks = list(dict.fromkeys(row["network"] for row in found))
    header = ["step"]
    for network in networks:
        header += [f"{network}: ms", "time of ours", "time of its SGD"]
    table = [header]
    for step in dict.fromkeys(row["step"] for row in found):
        line = [step]
        for network in networks:
            fastest = {
                row["step"]: min(row["seconds"])
                for row in found
                if row["network"] == network
            }
            own = fastest[step]
            line += [significant(1e3 * own, 3), f"{own / fastest[OURS]:.2f}"]
            line.append(f"{own / fastest[_own_sgd(step)]:.2f}")
        table.append(line)
    return table


def main() -> None:
    """Measures, prints the table and writes the result file."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--torch-python",
        metavar="FILE",
        help="an interpreter that has PyTorch; default: none, and no PyTorch",
    )
    parser.add_argument(
        "--networks",
        metavar="NAME",
        nargs="+",
        choices=NETWORKS,
        default=list(NETWORKS),
        help=command_line.listed("networks", list(NETWORKS)),
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=15, help="rounds of measurements"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path(__file__).parent / "results" / "others-cpu.json",
        help="result file",
    )
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    found: list[dict[str, Any]] = []
    version: list[str] = []
    for network in args.networks:
        problem = throughput.Problem(network, NETWORKS[network], BATCH)
        steps = jax_steps(problem)
        with contextlib.ExitStack() as stack:
            if args.torch_python:
                running = torch_steps(args.torch_python, network, problem, threads)
                others, version = stack.enter_context(running)
                steps |= others
            losses = checked(steps)
            found += rows(network, measure(steps, args.rounds), losses)
        print(f"measured: {network}", flush=True)
    settings = {"batch": BATCH, "rho": RHO, "rate": RATE, "momentum": MOMENTUM}
    settings |= {"widths": NETWORKS, "rounds": args.rounds, "threads": threads}
    settings["torch"] = version[0] if version else "not run"
    record.write(args.out, {"settings": settings, "rows": found})
    table = Table(*lines(found)[0])
    for line in lines(found)[1:]:
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    main()
