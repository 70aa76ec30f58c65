"""The methods that are compared with their replicas, and the options of both."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import optax
import replicas
import zo_replicas

import zosam_jax as zs

STEPS, RATE = 50, 0.02
PROBLEM, OTHER = replicas.Problem(0), replicas.Problem(1)

# In float64 throughout, against float64: rounding, carried through fifty steps.
DOUBLE = 1e-10
# Random draws, memories, differences of the loss and ASAM's scale are float32 by
# design: 6e-8 of about 3, times the steps that it is carried through.
SINGLE = 2e-6


class Case(NamedTuple):
    """A method and its replica.

    Attributes:
      tx: The library's transformation.
      replica: The same, `(at, memory) -> (step, memory)`.
      tolerance: Of the parameters, absolute.
      optimizer: What follows it, if not SGD with momentum 0.9.
      whole: The replica's optimizer, where the transformation is one itself.
      by_example: Whether it wants the losses of single examples.
      uphill: The problem that it looks uphill by, where it is another one.
      steps: Number of steps.
    """

    tx: Callable
    replica: Callable
    tolerance: float = SINGLE
    optimizer: Callable = partial(optax.sgd, RATE, momentum=0.9)
    whole: Callable | None = None
    by_example: bool = False
    uphill: replicas.Problem | None = None
    steps: int = STEPS


def case(name: str, tolerance: float = SINGLE, more: dict | None = None, **options):
    """Where the library and the replica call the method and its options alike."""
    tx, replica = getattr(zs, name), getattr(replicas, name)
    tx, replica = partial(tx, **options), partial(replica, **options)
    return Case(tx, replica, tolerance, **(more or {}))


def zosam(mine: dict, theirs: dict, **more):
    """Its options are named otherwise in the replica."""
    theirs = {"delta": 1e-3, "number": 1} | theirs
    return Case(
        partial(zs.zosam, 0.3, **mine),
        partial(zo_replicas.zosam, rho=0.3, **theirs),
        **more,
    )


def rge(make, replica_options: dict, whole=None, **options):
    theirs = {"delta": 1e-3, "number": 1} | replica_options
    replica = partial(zo_replicas.zeroth_order, **theirs)
    return Case(partial(make, **options), replica, whole=whole)


def tied(at, memory):
    rate = 0.1 + (0.02 - 0.1) * at.t / STEPS
    rho = 0.1 + (0.4 - 0.1) * (rate - 0.02) / (0.1 - 0.02)
    return replicas.gsam(at, memory, rho=rho, alpha=0.6)


def tied_radius():
    rate = optax.linear_schedule(0.1, 0.02, STEPS)
    return zs.tied_radius(rate, rho_max=0.4, rho_min=0.1, lr_max=0.1, lr_min=0.02)


def ssam(grow):
    shared = {"rho": 0.3, "sparsity": 0.5, "mask": "dynamic", "interval": 20}
    # At these steps 3/4 and 1/4 of the first share are replaced: whole counts.
    return case("ssam", DOUBLE, **shared, total_steps=60, drop_fraction=0.5, grow=grow)


def guided(number, **more):
    # A small radius: of nearly parallel guides, float32 knows the second axis badly.
    options = {"guides": (0.0, 0.8), "exploration": 0.1} | more
    return Case(
        partial(zs.zosam, 0.05, directions="guided", num_directions=number, **options),
        partial(zo_replicas.guided, rho=0.05, delta=1e-3, number=number, **options),
    )


def guided_by_halves():
    options = {"guides": (0.0, 0.8), "exploration": 0.1, "disjoint": True}
    return Case(
        partial(zs.zosam, 0.05, directions="guided", **options),
        partial(zo_replicas.guided, rho=0.05, delta=1e-3, number=2, **options),
        by_example=True,
    )


def falling(step):
    return RATE * (1 - step / (2 * STEPS))


two = {"num_directions": 2}, {"number": 2}
layers = {"layerwise": True}
dense_norm = {"norm_over": "all"}
esam = {"rho": 0.3, "beta": 0.6}
wsam = {"rho": 0.3, "gamma": 0.7}
decoupled = {"optimizer": lambda: zs.decoupled(optax.sgd(RATE, momentum=0.9), RATE)}
looksam = {"rho": 0.3, "every": 3, "alpha": 0.7}
adapted = {"lambda_1": -1, "lambda_2": 1, "delta": 0.9}

CASES = {
    "sam": case("sam", DOUBLE, rho=0.3),
    "sam, 3 steps": case("sam", DOUBLE, rho=0.3, steps=3),
    "sam, layerwise": case("sam", DOUBLE, rho=0.3, **layers),
    "sam, norm over all": case("sam", DOUBLE, rho=0.3, **dense_norm),
    "sam, two batches": case("sam", DOUBLE, {"uphill": OTHER}, rho=0.3),
    "sampa": case(
        "sampa", more={"steps": 200}, rho=0.3, learning_rate=RATE, weight=0.2
    ),
    "sampa, two batches": case(
        "sampa", more={"uphill": OTHER}, rho=0.3, learning_rate=falling, weight=0.4
    ),
    "asam": case("asam", rho=0.5, eta=0.01),
    "asam, biases scaled": Case(
        partial(zs.asam, 0.4, eta=0.2, unscaled=()),
        partial(replicas.asam, rho=0.4, eta=0.2, biases_scaled=True),
    ),
    "gsam": case("gsam", DOUBLE, rho=0.3, alpha=0.6),
    "gsam, around w": case(
        "gsam", DOUBLE, rho=0.3, alpha=0.6, minimize_perturbed=False
    ),
    "gsam, tied radius": Case(lambda: zs.gsam(tied_radius(), alpha=0.6), tied),
    "fsam": case("fsam", rho=0.3, sigma=0.7, decay=0.8),
    "vasso": case("vasso", rho=0.3, theta=0.4),
    "wsam": case("wsam", DOUBLE, **wsam),
    "wsam, clipped": case("wsam", **wsam, max_norm=0.5),
    "wsam, decoupled": case("wsam", DOUBLE, decoupled, **wsam, decouple=True),
    "wsam, decoupled and clipped": case(
        "wsam", SINGLE, decoupled, **wsam, decouple=True, max_norm=0.5
    ),
    "esam": case("esam", DOUBLE, {"by_example": True}, **esam, gamma=0.5),
    "esam, all examples": case("esam", DOUBLE, **esam, gamma=1.0),
    "looksam": case("looksam", **looksam),
    "looksam, layerwise": case("looksam", **looksam, **layers),
    "aesam": case("aesam", DOUBLE, rho=0.3, total_steps=STEPS, **adapted),
    "ssam, fisher": case(
        "ssam",
        DOUBLE,
        {"by_example": True},
        rho=0.3,
        sparsity=0.5,
        mask="fisher",
        interval=20,
        num_examples=6,
    ),
    "ssam, random growth": ssam("random"),
    "ssam, gradient growth": ssam("gradient"),
    "cram": case(
        "cram", DOUBLE, {"steps": 200}, rho=0.05, sparsities=(0.25, 0.5, 0.75)
    ),
    "cram, alone": case(
        "cram",
        DOUBLE,
        {"steps": 200},
        rho=0.3,
        sparsities=(0.5,),
        plus=False,
        sparse_gradient=False,
    ),
    "s2sam": case("s2sam", rho=0.3),
    "msam": case("msam", rho=0.3, momentum=0.8),
    "rwp": case("rwp", rho=0.1),
    "mrwp": case("mrwp", rho=0.1, alpha=0.3),
    "mrwp, two batches": case("mrwp", more={"uphill": OTHER}, rho=0.1, alpha=0.3),
    "arwp": case("arwp", rho=0.3, eta=2.0, beta=0.8),
    "random_sign": Case(
        partial(zs.random_sign, 0.3), partial(zo_replicas.random_sign, rho=0.3)
    ),
    "zosam": zosam({}, {}),
    "zosam, m = 3": zosam({"num_directions": 3}, {"number": 3}),
    "zosam, sphere": zosam(
        {"num_directions": 3, "directions": "sphere"},
        {"number": 3, "distribution": "sphere"},
    ),
    "zosam, rademacher": zosam(
        {"num_directions": 3, "directions": "rademacher"},
        {"number": 3, "distribution": "rademacher"},
    ),
    "zosam, one-sided": zosam(*({"two_sided": False} | options for options in two)),
    "zosam, exact slopes": zosam(*({"delta": None} | options for options in two)),
    "zosam, every 3": zosam(*({"every": 3} | options for options in two)),
    "zosam, layerwise": zosam(*(layers | options for options in two)),
    "zosam, norm over all": zosam(*(dense_norm | options for options in two)),
    "zosam, two batches": zosam(*two, uphill=OTHER),
    "zosam, no backward pass": zosam(
        two[0] | {"descent": "zeroth_order"}, two[1] | {"second": 2**32 - 2}
    ),
    "zosam, coordinates": Case(
        partial(zs.zosam, 0.3, directions="coordinates"),
        partial(zo_replicas.coordinates, rho=0.3, delta=1e-3),
    ),
    "zosam, coordinates one-sided": Case(
        partial(zs.zosam, 0.3, directions="coordinates", two_sided=False),
        partial(zo_replicas.coordinates, rho=0.3, delta=1e-3, two_sided=False),
    ),
    "zosam, guided": guided(1),
    "zosam, guided by 2": guided(2),
    "zosam, guided by disjoint halves": guided_by_halves(),
    "zosam, guided without exploration": guided(1, exploration=0.0),
    **{
        f"zeroth_order, {kind}": rge(
            zs.zeroth_order,
            {"number": 2, "distribution": kind},
            num_directions=2,
            distribution=kind,
            whole=None,
        )
        for kind in ("gaussian", "sphere", "rademacher")
    },
    "zo_sgd": rge(
        zs.zo_sgd,
        {},
        lambda: replicas.Sgd(0.02, 0.5, 0.1),
        learning_rate=0.02,
        momentum=0.5,
        weight_decay=0.1,
    ),
    "zo_signsgd": rge(
        zs.zo_signsgd,
        {"two_sided": False},
        lambda: replicas.SignSgd(0.01),
        learning_rate=0.01,
        two_sided=False,
    ),
    "zo_adam": rge(
        zs.zo_adam,
        {},
        lambda: replicas.AdamW(0.05, 0.8, 0.95, 1e-3, 0.1),
        learning_rate=0.05,
        b1=0.8,
        b2=0.95,
        eps=1e-3,
        weight_decay=0.1,
    ),
}
