"""How fast and where ZO-SAM converges on known problems, beside SAM and SGD.

    python -m benchmarks.convergence

1. A convex function that is steeper on one side of its minimum, in 10, 100 and 1000
   dimensions: at a constant learning rate, linear convergence to a floor; at one that
   falls like 1/t, a power of t. Without noise, with noise added to the gradient, and
   with noise of the data, which moves the minimum of every batch.
2. Two wells of equal depth, one sharp and one flat, in 2, 10 and 100 dimensions: in
   which of them the iterates end that begin in the sharp one, and in the flat one.

Every method is the library's gradient before plain SGD. Formulas and what they assume:
`benchmarks.convergence_theory`. The result file has the fitted slopes, floors and
shares with their intervals over seeds, and the theory's; the picture stands beside it.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zosam_jax as zs
from benchmarks import command_line, convergence_report, record
from benchmarks import convergence_theory as theory
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs import intervals

DIMS = (10, 100, 1000)
RADII = (0.03, 0.1, 0.3, 1.0)
RHO = 0.3
"""The radius in all dimensions; the others are tried in `RADII_DIM`."""
RADII_DIM = 10
STEPS = 2_000
RATE = 0.1
FACTOR, DELAY = 4.0, 8.0
"""The falling learning rate is FACTOR / (t + DELAY); FACTOR times mu is 1."""
NOISE = {"none": (0.0, 0.0), "gradient": (0.5, 0.0), "data": (0.0, 1.0)}
"""Norms of the noise added to the gradient, and of the noise of the data."""
LEAST = 1e-12
"""Values of f below this count as this."""
START = 2.0
"""Distance of the start from the minimum."""

WELL_DIMS = (2, 10, 100)
WELL_RADII = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
WELL_STEPS, WELL_RATE, WELL_NOISE = 600, 0.2, 0.05
STARTS = ("sharp", "flat")


class Contender(NamedTuple):
    """A method.

    Attributes:
      make: `(rho, seed) -> gradient`; both may be traced.
      cosine: Dimension -> the mean cosine of its perturbation to the gradient of the
        batch, as far as it is known.
      perturbed: Whether it has a radius.
    """

    make: Callable[..., GradientEstimator]
    cosine: Callable[[int], float] | None
    perturbed: bool = True


def _plain(rho: Any, seed: Any) -> GradientEstimator:
    del rho, seed
    return zs.backprop()


CONTENDERS = {
    "SGD": Contender(_plain, lambda _: 0.0, perturbed=False),
    "SAM": Contender(zs.sam, lambda _: 1.0),
    "ZO-SAM, m=1": Contender(zs.zosam, functools.partial(theory.alignment, 1)),
    "ZO-SAM, m=4": Contender(
        functools.partial(zs.zosam, num_directions=4),
        functools.partial(theory.alignment, 4),
    ),
    "guided ZO-SAM": Contender(functools.partial(zs.zosam, directions="guided"), None),
    "random sign": Contender(zs.random_sign, lambda _: 0.0),
}


class Lane(NamedTuple):
    """A descent: numbers that all descents of a program share the shape of.

    Attributes:
      seed: Seed of the start, of the noise and of the method's draws.
      rho: Radius.
      added: Deviation of the noise of each entry of the gradient.
      moved: Deviation of the noise of each coordinate of the data.
      rate: First learning rate.
      decay: It falls like `rate / (1 + decay t)`.
      start: First coordinate of the start, in the two wells.
    """

    seed: Any
    rho: Any
    added: Any = 0.0
    moved: Any = 0.0
    rate: Any = RATE
    decay: Any = 0.0
    start: Any = 0.0


def descend(
    contender: Contender,
    lanes: Sequence[Lane],
    dim: int,
    steps: int,
    begin: Callable[[Lane, jax.Array], jax.Array],
    batch_loss: Callable[..., jax.Array],
    seen: Callable[[jax.Array], jax.Array],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what was seen in every step, `[lanes, steps]`, and the mean iterates.

    These are over the second half of the steps, `[lanes, dim]`.

    Args:
      contender: The method.
      lanes: The descents.
      dim: Number of coordinates.
      steps: Number of steps.
      begin: `(lane, key) -> start`.
      batch_loss: `(w, added, moved, lane) -> loss of a batch`.
      seen: What is recorded of an iterate, a scalar.
    """

    def run(lane: Lane) -> tuple[jax.Array, jax.Array]:
        tx = contender.make(rho=lane.rho, seed=lane.seed)
        # Not the keys of the method's own draws.
        key = jax.random.fold_in(jax.random.key(lane.seed), 2**31)
        start = begin(lane, jax.random.fold_in(key, steps))

        def step(carry: Any, t: jax.Array) -> Any:
            w, state, total = carry
            noise = jax.random.normal(jax.random.fold_in(key, t), (2, dim))
            added, moved = lane.added * noise[0], lane.moved * noise[1]
            # The incoming gradient is not used.
            grad, state = tx.update(
                *(jnp.zeros(dim), state, w),
                value_fn=lambda w: batch_loss(w, added, moved, lane),
            )
            rate = lane.rate / (1 + lane.decay * t)
            w = jnp.asarray(optax.apply_updates(w, -rate * jnp.asarray(grad)))
            return (w, state, total + jnp.where(t >= steps // 2, w, 0.0)), seen(w)

        first = start, tx.init(start), jnp.zeros(dim)
        (_, _, total), values = jax.lax.scan(step, first, jnp.arange(steps))
        return values, total / (steps - steps // 2)

    stacked = Lane(*(jnp.asarray(x) for x in zip(*lanes, strict=True)))
    values, means = jax.jit(jax.vmap(run))(stacked)
    return np.asarray(values), np.asarray(means)


def _bowl(
    contender: Contender, lanes: Sequence[Lane], dim: int
) -> tuple[np.ndarray, np.ndarray]:
    h = jnp.asarray(theory.curvatures(dim))

    def begin(lane: Lane, key: jax.Array) -> jax.Array:
        del lane
        direction = jax.random.normal(key, (dim,))
        return START * direction / jnp.linalg.norm(direction)

    def loss(w: Any, added: Any, moved: Any, lane: Lane) -> jax.Array:
        return theory.batch_bowl(w, h, added, moved, lane.moved)

    def seen(w: jax.Array) -> jax.Array:
        return jnp.maximum(theory.bowl(w, h), LEAST)

    return descend(contender, lanes, dim, STEPS, begin, loss, seen)


def _wells(contender: Contender, lanes: Sequence[Lane], dim: int) -> np.ndarray:
    def begin(lane: Lane, key: jax.Array) -> jax.Array:
        del key
        return jnp.zeros(dim).at[0].set(lane.start)

    def loss(w: Any, added: Any, moved: Any, lane: Lane) -> jax.Array:
        del moved, lane
        return theory.wells(w) + jnp.vdot(added, w)

    return descend(
        *(contender, lanes, dim, WELL_STEPS, begin, loss), seen=lambda w: w[0]
    )[0]


class Case(NamedTuple):
    """Descents on the convex function that differ in their seed alone."""

    noise: str
    schedule: str
    rho: float


def cases(dim: int) -> list[Case]:
    """Returns the cases in a dimension."""
    radii = RADII if dim == RADII_DIM else (RHO,)
    found = itertools.product(NOISE, ("constant", "falling"), radii)
    return [Case(*each) for each in found]


def lane(case: Case, dim: int, seed: int) -> Lane:
    """Returns the descent of a case with a seed."""
    added, moved = (norm / np.sqrt(dim) for norm in NOISE[case.noise])
    rate, decay = (RATE, 0.0)
    if case.schedule == "falling":
        rate, decay = FACTOR / DELAY, 1 / DELAY
    return Lane(seed, case.rho, added, moved, rate, decay)


def bowl_rows(dim: int, seeds: int) -> list[dict[str, Any]]:
    """Returns a row for each method and case in a dimension.

    Args:
      dim: Number of coordinates.
      seeds: Number of seeds.
    """
    rows = []
    for name, contender in CONTENDERS.items():
        own = cases(dim)
        if not contender.perturbed:
            own = [case for case in own if case.rho == RHO]
        lanes = [lane(case, dim, seed) for case in own for seed in range(seeds)]
        values, means = _bowl(contender, lanes, dim)
        for i, case in enumerate(own):
            part = slice(i * seeds, (i + 1) * seeds)
            row = {"method": name, "dim": dim, **case._asdict()}
            row |= _figures(values[part], case)
            row |= _expected(contender, case, dim) | _drift(means[part], case, dim)
            curve = theory.binned(values[part].mean(0))[1]
            rows.append(row | {"curve": [float(f"{x:.4g}") for x in curve]})
    return rows


def _figures(values: np.ndarray, case: Case) -> dict[str, Any]:
    """What is fitted to the values of f, seed by seed: `[seeds, steps]`."""
    found = {"floor": _interval(values[:, -STEPS // 4 :].mean(1))}
    if case.schedule == "falling":
        exponents = [theory.slope(*theory.binned(v, STEPS // 20)) for v in values]
        return found | {"slope": _interval(exponents)}
    if case.noise == "none":
        return found | {"rate": _interval([_linear_rate(v) for v in values])}
    return found


def _linear_rate(values: np.ndarray) -> float:
    """The factor of f in a step, fitted until f is ten times its floor."""
    floor = max(10 * values[-STEPS // 4 :].mean(), 1e-9)
    count = max(int(np.argmax(values < floor)), 10)
    return float(np.exp(np.polyfit(np.arange(count), np.log(values[:count]), 1)[0]))


def _expected(contender: Contender, case: Case, dim: int) -> dict[str, Any]:
    """What the theory says of a case; {} of a method whose cosine is unknown."""
    if contender.cosine is None:
        return {}
    rho = case.rho if contender.perturbed else 0.0
    setting = theory.Setting(dim, rho, contender.cosine(dim), *NOISE[case.noise])
    if not (rho or setting.added or setting.moved):
        # The slowest coordinate is multiplied by 1 - FACTOR mu / t.
        slowest = -2 * FACTOR * theory.LEAST_CURVATURE
        falls = {"slope_theory": slowest} if case.schedule == "falling" else {}
        return {"floor_theory": 0.0, **falls}
    if case.schedule == "constant":
        return {"floor_theory": theory.stationary(setting, RATE).excess()}
    times = np.geomspace(STEPS / 20, STEPS, 6)
    values = [theory.decaying(setting, t, FACTOR).excess() for t in times]
    late = theory.decaying(setting, 7 * STEPS / 8, FACTOR).excess()
    return {"floor_theory": late, "slope_theory": theory.slope(times, values)}


def _drift(means: np.ndarray, case: Case, dim: int) -> dict[str, Any]:
    """The mean iterate along -h / |h|, where noise of the data drives it."""
    if case.noise != "data":
        return {}
    h = theory.curvatures(dim)
    return {"drift": [float(x) for x in -means @ h / np.linalg.norm(h)]}


def paired_bias(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns how far the noise of the data drives each method from the minimum.

    It is the mean iterate over the second half of the steps, along -h / |h|, minus that
    of the control with a random sign, seed by seed: both saw the same batches, and both
    are driven by the curvature of f, of order rho^2.

    Args:
      rows: Of `bowl_rows`.
    """
    found = []
    own = [row for row in rows if row["noise"] == "data" and row["rho"] == RHO]
    for row in (row for row in own if row["schedule"] == "falling"):
        (control,) = (
            other["drift"]
            for other in own
            if other["method"] == "random sign"
            and (other["dim"], other["schedule"]) == (row["dim"], row["schedule"])
        )
        contender = CONTENDERS[row["method"]]
        if not contender.perturbed or row["drift"] is control:
            continue
        bias = intervals.paired(row["drift"], control)
        line = {"method": row["method"], "dim": row["dim"], "bias": bias._asdict()}
        if contender.cosine is not None:
            line["theory"] = _drift_theory(contender.cosine(row["dim"]), row["dim"])
        found.append(line)
    return found


def _drift_theory(cosine: float, dim: int) -> float:
    """The bias of a method minus that of random directions, along -h / |h|."""
    own, control = (
        theory.decaying(
            theory.Setting(dim, RHO, c, *NOISE["data"]), 3 * STEPS / 4, FACTOR
        ).bias
        for c in (cosine, 0.0)
    )
    h = theory.curvatures(dim)
    return float((control - own) @ h / np.linalg.norm(h))


def well_rows(dim: int, seeds: int) -> list[dict[str, Any]]:
    """Returns how many seeds end in the flat well, by method, start and radius.

    Args:
      dim: Number of coordinates.
      seeds: Number of seeds.
    """
    places = dict(zip(STARTS, theory.minima(), strict=True))
    rows = []
    for name, contender in CONTENDERS.items():
        radii = WELL_RADII if contender.perturbed else (0.0,)
        own = list(itertools.product(STARTS, radii))
        lanes = [
            Lane(seed, rho, WELL_NOISE, 0.0, WELL_RATE, 0.0, places[start].place)
            for start, rho in own
            for seed in range(seeds)
        ]
        ends = _wells(contender, lanes, dim)[:, -1].reshape(len(own), seeds)
        for (start, rho), last in zip(own, ends, strict=True):
            hits, lost = int(np.sum(last > 0)), int(np.sum(~np.isfinite(last)))
            row = {"method": name, "dim": dim, "start": start, "rho": rho}
            row |= {"flat": hits, "seeds": seeds, "diverged": lost}
            rows.append(row | {"interval": theory.wilson(hits, seeds)})
    return rows


def _interval(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return intervals.interval([float(x) for x in values])._asdict()


def main() -> None:
    """Runs both parts, writes the result file and draws."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=8, help="seeds on the convex function"
    )
    parser.add_argument(
        "--well-seeds", metavar="N", type=int, default=32, help="seeds in the two wells"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("benchmarks/results/convergence.json"),
        help="result file",
    )
    args = parser.parse_args()
    if args.seeds < 2 or args.well_seeds < 1:
        parser.error(
            "--seeds must be at least 2, for intervals; --well-seeds at least 1"
        )
    rows, shares = [], []
    for dim in DIMS:
        print(f"the convex function in {dim} dimensions", flush=True)
        rows += bowl_rows(dim, args.seeds)
    for dim in WELL_DIMS:
        print(f"the two wells in {dim} dimensions", flush=True)
        shares += well_rows(dim, args.well_seeds)
    settings = {
        "rho": RHO,
        "radii_dim": RADII_DIM,
        "steps": STEPS,
        "rate": RATE,
        "falling": {"factor": FACTOR, "delay": DELAY},
        "noise": {name: list(norms) for name, norms in NOISE.items()},
        "start": START,
        "seeds": args.seeds,
        "wells": {
            "dims": list(WELL_DIMS),
            "least": WELL_RADII[0],
            "steps": WELL_STEPS,
            "rate": WELL_RATE,
            "noise": WELL_NOISE,
            "minima": [list(minimum) for minimum in theory.minima()],
        },
    }
    content = {"settings": settings, "bowl": rows, "bias": paired_bias(rows)}
    content["wells"] = shares
    record.write(args.out, content)
    convergence_report.draw(content, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
