"""Every method against its NumPy replica: 1,000 steps on one device and on four."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mlir_contexts
import numpy as np
import optax
import pytest
import sparse_replicas as replicas
from devices import flags
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from marks import quick
from sparse_replicas import SEED, SHAPES, SPARSE, STEPS

import zosam_jax as zs

DEVICES = 4
FAST = {"xla_backend_optimization_level": 0}
# Three quarters of all weights, and nearly all of one layer.
FULLER = {"a": 66, "b": 48, "c": 60}


class Case(NamedTuple):
    """A method, and its replica as `live counts -> rule`, run by `train`."""

    method: zs.sparsity.SparseMethod
    rule: Callable[..., Any]
    first: Callable[..., Any] = replicas.random_start
    decay: float | None = None
    live: dict | None = None
    train: Callable[..., Any] = replicas.train

    def counts(self):
        """Whole at a uniform budget."""
        uniform = {k: round(n * (1 - 0.75)) for k, n in replicas.SIZES.items()}
        return self.live or uniform


def cases():
    common = {"budget": "uniform", "seed": SEED}
    every_20 = {"interval": 20, **common}
    admm = {"strength": 0.5, "interval": 20, "stop_fraction": 0.8005}
    admm["budget"] = "uniform"
    make = zs.sparsity
    cosine, every = replicas.cosine, replicas.every
    grow, at_random = replicas.by_gradient, replicas.randomly
    usual = cosine(0.3, 0, 750), every(20, 750)
    whole = cosine(0.5, 0.005, STEPS)
    em = ((0.5625, 0.80, 0.75), (0.75, 0.775, 0.75))
    soft = ((0.625, 0.75, 0.70), (0.8125, 0.75, 0.725))
    largest = replicas.largest_start

    def dynamic(*arguments, **options):
        return lambda _: replicas.drop_and_grow(*arguments, **options)

    def mest(*arguments):
        return lambda _: replicas.mest(0.75, *arguments)

    def uneven(shapes, sparsity):
        return {k: FULLER[k] / replicas.SIZES[k] for k in shapes}

    def gmp(**options):
        return lambda live: replicas.gmp(live, 20, 200, 740, **options)

    return {
        "set": Case(make.set_(0.75, STEPS, **every_20), dynamic(*usual, at_random)),
        "set-by-sign": Case(
            make.set_(
                0.75,
                STEPS,
                by_sign=True,
                drop_fraction=optax.constant_schedule(0.3),
                stop_fraction=1.0,
                **every_20,
            ),
            dynamic(
                lambda _: np.float32(0.3), every(20, STEPS), at_random, by_sign=True
            ),
        ),
        "rigl": Case(make.rigl(0.75, STEPS, **every_20), dynamic(*usual, grow)),
        "itop": Case(
            make.itop(0.75, STEPS, **common), dynamic(whole, every(41, STEPS), grow)
        ),
        "itop-random": Case(
            make.itop(0.75, STEPS, grow=make.scores.random, **common),
            dynamic(whole, every(15, STEPS), at_random),
        ),
        "svite": Case(
            make.svite(0.75, STEPS, **common), dynamic(whole, every(13, 800), grow)
        ),
        "mest": Case(make.mest(0.75, STEPS, seed=SEED), mest(em, 31), largest),
        "mest-soft": Case(
            make.mest(0.75, STEPS, soft=True, seed=SEED), mest(soft, 31), largest
        ),
        "mest-gradient": Case(
            make.mest(0.75, STEPS, gradient_weight=0.3, interval=20, seed=SEED),
            mest(em, 20, 0.3),
            largest,
        ),
        "dsr": Case(
            make.dsr(0.75, STEPS, threshold=0.02, **every_20),
            lambda _: replicas.dsr(20, 0.1, 0.02, 0.95),
        ),
        # Half of three quarters drop, so a quarter regrows, and layers fill up.
        "dsr-full": Case(
            make.dsr(
                0.25,
                STEPS,
                drop_fraction=0.5,
                threshold=0.05,
                **(every_20 | {"budget": uneven}),
            ),
            lambda _: replicas.dsr(20, 0.5, 0.05, 0.95),
            live=FULLER,
        ),
        "gmp": Case(
            make.gmp(0.75, STEPS, **every_20), gmp(), first=replicas.dense_start
        ),
        "gmp-global": Case(
            make.gmp(0.75, STEPS, **(every_20 | {"budget": "global"})),
            gmp(across=True),
            first=replicas.dense_start,
        ),
        "safe": Case(
            make.safe(0.75, STEPS, **(admm | {"stop_fraction": 1.0})),
            lambda live: lambda w: replicas.largest(w, live),
            first=replicas.dense_start,
            train=functools.partial(replicas.train_safe, end=STEPS),
        ),
        "safe-global": Case(
            make.safe(0.75, STEPS, **(admm | {"budget": "global"})),
            lambda live: lambda w: replicas.largest_of_all(w, sum(live.values())),
            first=replicas.dense_start,
            train=functools.partial(replicas.train_safe, end=801),
        ),
        "ste": Case(
            make.ste(0.75, budget="uniform"),
            replicas.straight_through,
            first=largest,
            decay=0.0,
        ),
        "sr-ste": Case(
            make.ste(0.75, decay=0.05, budget="uniform"),
            replicas.straight_through,
            first=largest,
            decay=0.05,
        ),
    }


CASES = cases()
LAYOUTS = {
    # Parameters over one axis of the mesh, by their first or their last axis, and the
    # examples over the other; or every parameter everywhere, the examples over both.
    "both": ({"a": P("model"), "c": P(None, "model")}, P("data")),
    "examples": ({}, P(("data", "model"))),
}
# All mechanisms, but not all schedules of each: a method that is not here shares its
# program, and differs in when it changes its masks. Parameters that are everywhere are
# the simpler layout; one gradient that ranks and one that passes straight through.
ON_FOUR = [
    *((name, "both") for name in ("set-by-sign", "rigl", "mest-soft", "mest-gradient")),
    *((name, "both") for name in ("dsr-full", "gmp-global", "safe-global", "sr-ste")),
    *((name, "examples") for name in ("mest-gradient", "ste")),
]
# Users' programs are optimised: one of a fixed count and one of a total.
OPTIMISED = ("rigl", "dsr-full")


# They choose their masks anew in every step, which on four devices costs ten times as
# much as the rest, and no schedule tells the later steps from the earlier ones.
FEWER = {"ste": 200, "sr-ste": 200}


def place(layout, values):
    """The start and the examples, laid out on the devices that there are."""
    if layout is None:
        return values
    auto = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=auto)
    specs, examples = LAYOUTS[layout]
    params, targets = values
    return (
        {
            k: jax.device_put(x, NamedSharding(mesh, specs.get(k, P())))
            for k, x in params.items()
        },
        jax.device_put(targets, NamedSharding(mesh, examples)),
    )


def run(name, layout=None, options=None, steps=STEPS):
    """Masks and weights of every step, on the first axis, of the sparse leaves."""
    tx = zs.sparsify(optax.sgd(0.05, momentum=0.9), CASES[name].method)
    params, targets = place(
        layout, jax.tree.map(jnp.asarray, (replicas.start(), replicas.targets()))
    )
    straight = CASES[name].decay is not None

    def loss(p, targets, step):
        squares = (jnp.mean((p[k] - targets[k]) ** 2, 0).sum() for k in p)
        return replicas.stiffness(step.astype(jnp.float32)) / 2 * sum(squares)

    @functools.partial(jax.jit, compiler_options=options)
    def train(params, targets):
        state = tx.init(params)
        if not straight:
            params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))

        def step(carry, _):
            params, state = carry
            masks = zs.sparsity.masks(state)
            at = zs.sparsity.apply_masks(params, masks) if straight else params
            grads = jax.grad(loss)(at, targets, state.step)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            masks = zs.sparsity.masks(state)
            return (params, state), ({k: masks[k] for k in SPARSE}, params)

        return jax.lax.scan(step, (params, state), None, length=steps)[1]

    return jax.tree.map(np.asarray, train(params, targets))


@functools.cache
def expected(name):
    """Masks and weights of every step, of the replica; and the rule, with its notes."""
    case = CASES[name]
    live = case.counts()
    rule = case.rule(live)
    masks = {k: [] for k in SPARSE}
    weights = {k: [] for k in SHAPES}
    decay = {} if case.decay is None else {"decay": case.decay}
    for _, w, m in case.train(case.first(live), rule, **decay):
        for k in SPARSE:
            masks[k].append(m[k])
        for k in SHAPES:
            weights[k].append(w[k].copy())
    return {k: np.stack(v) for k, v in masks.items()}, weights, rule


def check(name, masks, weights):
    wanted_masks, wanted, _ = expected(name)
    for k in SPARSE:
        differ = np.any(
            masks[k] != wanted_masks[k][: len(masks[k])],
            axis=tuple(range(1, masks[k].ndim)),
        )
        assert not differ.any(), f"{k}: masks differ from step {np.argmax(differ)} on"
    for k in SHAPES:
        # Some ulps of weights of the order of one, which the quadratic contracts.
        first = wanted[k][: len(weights[k])]
        np.testing.assert_allclose(weights[k], first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", quick(CASES, "rigl"))
def test_a_thousand_steps_equal_the_numpy_replica(name):
    # The rest as four devices run them: it compiles in half the time.
    masks, weights = run(name, options=None if name in OPTIMISED else FAST)
    assert len(masks["a"]) == STEPS
    check(name, masks, weights)
    changes = {
        k: np.any(np.diff(m, axis=0).reshape(STEPS - 1, -1), 1)
        for k, m in masks.items()
    }
    # SAFE prunes once.
    at_least = 1 if name.startswith("safe") else 10
    assert all(c.sum() >= at_least for c in changes.values())
    if name == "dsr-full":
        seen = expected(name)[2].seen
        assert any(seen.full)
        assert any(seen.regrown)
    if CASES[name].decay is None:
        for k in SPARSE:
            assert np.all(weights[k][~masks[k]] == 0)


def report(folder):
    """Runs `ON_FOUR`, for a process with four devices."""
    mlir_contexts.share()
    for name, layout in ON_FOUR:
        masks, weights = run(name, layout, FAST, FEWER.get(name, STEPS))
        arrays = {f"mask {k}": np.packbits(m, axis=0) for k, m in masks.items()}
        np.savez(Path(folder) / f"{name} {layout}.npz", **arrays, **weights)
    print(jax.device_count())  # noqa: T201


@pytest.fixture(scope="module")
def on_four(tmp_path_factory):
    """The folder of what four devices found, by name and layout."""
    folder = tmp_path_factory.mktemp("four")
    here = Path(__file__).parent
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, test_sparse_replicas as t; t.report(sys.argv[1])",
            str(folder),
        ],
        env=os.environ
        | {
            "XLA_FLAGS": flags(DEVICES),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(here), str(here.parent), os.getenv("PYTHONPATH")])
            ),
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == [str(DEVICES)]
    return folder


@pytest.mark.parametrize(("name", "layout"), ON_FOUR)
def test_a_thousand_steps_on_four_devices_equal_the_numpy_replica(
    name, layout, on_four
):
    with np.load(on_four / f"{name} {layout}.npz") as found:
        masks = {
            k: np.unpackbits(found[f"mask {k}"], axis=0).astype(bool) for k in SPARSE
        }
        check(name, masks, {k: found[k] for k in SHAPES})
