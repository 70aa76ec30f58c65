"""Every method against its formulas, written again in NumPy, step by step."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import replicas
from marks import quick
from replica_cases import CASES, PROBLEM, RATE, SINGLE

import zosam_jax as zs

LIVE = {
    "dense": np.ones(PROBLEM.size, bool),
    "masked": np.concatenate(  # The bias, and 8 of the 24 entries of the kernel.
        [np.ones(8, bool), np.random.default_rng(2).permutation(24) < 8]
    ),
}
LONGEST = max(case.steps for case in CASES.values())
# Programs this small compile longer than they run.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

ONE_OF_A_FAMILY = ("sam", "looksam", "msam", "zosam")
every_case = pytest.mark.parametrize(
    ("name", "mask"),
    quick(itertools.product(CASES, LIVE), *((n, "masked") for n in ONE_OF_A_FAMILY)),
)


def as_tree(vector):
    return {"bias": vector[:8], "kernel": vector[8:].reshape(3, 8)}


def as_vector(tree):
    return jnp.concatenate([tree["bias"], tree["kernel"].reshape(-1)])


def mask_tree(mask):
    if mask == "dense":
        return None
    return {"bias": jnp.asarray(True), "kernel": as_tree(LIVE[mask])["kernel"]}


def value_fn(problem, by_example):
    def losses(params, examples=None):
        x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
        if examples is not None:
            x, y = x[examples], y[examples]
        z = x @ params["kernel"] + params["bias"]
        own = jnp.sum(jnp.logaddexp(0, z) - y * z, 1)
        return own + jnp.sum(jnp.tanh(z), 1) ** 2 / 2

    return losses if by_example else lambda params: jnp.mean(losses(params))


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0, None))
def draw(kind, t, folds):
    key = jax.random.fold_in(jax.random.key(0), t)
    for fold in folds:
        key = jax.random.fold_in(key, fold)
    if kind == "key":
        return jax.random.key_data(key)
    if kind.startswith("below "):
        return jax.random.randint(key, (), 0, int(kind[6:]), jnp.int32)
    return as_vector(
        zs.tree.drawn_like(getattr(jax.random, kind), key, as_tree(PROBLEM.start))
    )


@cache
def drawn(kind, *folds):
    """`[steps, d]` random numbers, from the documented keys."""
    folds = [jnp.asarray(fold, jnp.uint32) for fold in folds]
    return np.asarray(draw(kind, jnp.arange(LONGEST), folds), np.float64)


def library(case, masks):
    """The trajectory, what the library says of every step, and its last memory."""
    tx = case.tx()
    if not case.whole:
        tx = optax.chain(tx, case.optimizer())
    f = value_fn(PROBLEM, case.by_example)
    uphill = case.uphill and value_fn(case.uphill, case.by_example)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(
            None, state, params, value_fn=f, masks=masks, ascent_value_fn=uphill
        )
        params = zs.tree.mask(optax.apply_updates(params, updates), masks)
        seen = zs.estimate(state)
        return (params, state), (as_vector(params), seen.value, seen.info)

    params = zs.tree.mask(as_tree(jnp.asarray(PROBLEM.start)), masks)
    train = jax.jit(
        lambda params: jax.lax.scan(step, (params, tx.init(params)), length=case.steps),
        compiler_options=FAST,
    )
    (_, state), (points, value, info) = jax.tree.map(np.asarray, train(params))
    return points, {"value": value, **info._asdict()}, jax.tree.leaves(state[0].memory)


@cache
def runs(name, mask):
    """The library's run and the replica's, both in float64."""
    case = CASES[name]
    with jax.enable_x64(True):
        ours = library(case, mask_tree(mask))
        theirs = replicas.train(
            PROBLEM,
            case.uphill or PROBLEM,
            LIVE[mask],
            case.steps,
            lambda t, *what: drawn(*what)[t],
            case.replica,
            case.whole() if case.whole else replicas.Sgd(RATE, 0.9),
        )
    return ours, theirs


@every_case
def test_the_trajectory_is_that_of_the_formulas(name, mask):
    (ours, _, _), (theirs, _, _) = runs(name, mask)
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.1
    tolerance = CASES[name].tolerance
    np.testing.assert_allclose(ours, theirs[1:], rtol=0, atol=tolerance)


@every_case
def test_the_memory_is_that_of_the_formulas(name, mask):
    (_, _, ours), (_, _, theirs) = runs(name, mask)
    ours, theirs = (
        np.concatenate([np.zeros(0), *(np.ravel(x).astype(np.float64) for x in memory)])
        for memory in (ours, theirs or [])
    )
    # Counters and masks agree exactly then, and gradients within the curvature, five
    # here at most, times what the parameters may differ by.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5 * SINGLE)


@every_case
def test_info_says_what_happened(name, mask):
    (_, ours, _), (_, steps, _) = runs(name, mask)
    norms = [np.linalg.norm(step.eps) for step in steps]
    there = [np.linalg.norm(step.there[LIVE[mask]]) for step in steps]
    products = [step.eps @ step.there for step in steps]
    theirs = {
        "value": [step.value for step in steps],
        "descent_value": [step.descent_value for step in steps],
        "perturbation_norm": norms,
        "direction_norm": [step.direction_norm for step in steps],
        "cosine": [
            p / (n * g) if n else 0.0
            for p, n, g in zip(products, norms, there, strict=True)
        ],
        "unperturbed": [step.unperturbed for step in steps],
        "forward_evaluations": [step.forward for step in steps],
        "backward_evaluations": [step.backward for step in steps],
    }
    # The state keeps them in float32, and they follow from gradients.
    tolerance = 1e-6 + 5 * CASES[name].tolerance
    for field, expected in theirs.items():
        np.testing.assert_allclose(
            ours[field], expected, rtol=1e-6, atol=tolerance, err_msg=field
        )
