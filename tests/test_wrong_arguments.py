"""Functions of a wrong arity, and what is no flag, are refused where they are given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zosam_jax as zs
from zosam_jax import sparsity

PARAMS = {"body": {"kernel": jnp.ones((8, 8))}, "head": {"kernel": jnp.ones((8, 4))}}
RATE = optax.linear_schedule(0.1, 0.0, 10)


def none():
    return 0.0


def two(a, b):
    return 0.0


def loss(params):
    return jnp.sum(params["head"]["kernel"])


FUNCTIONS = {
    "rho": lambda f: zs.sam(rho=f),
    "when": lambda f: zs.sam(when=f),
    "predicate": lambda f: zs.when(zs.sam(), f),
    "probability": lambda f: zs.randomly(zs.sam(), f),
    "learning_rate": lambda f: zs.tied_radius(f, 0.2, 0.1, 0.1),
    "budget": lambda f: sparsity.rigl(0.5, 1000, budget=f),
    "rest": lambda f: sparsity.budgets.by_path({"head/*": 0.5}, rest=f),
    "dense": lambda f: sparsity.rigl(0.5, 1000, dense=f).init(PARAMS),
    "stacked": lambda f: sparsity.rigl(0.5, 1000, stacked=f).init(PARAMS),
    "axis": lambda f: sparsity.nm(2, 4, 1000, axis=f).init(PARAMS),
    "criterion": lambda f: sparsity.static(0.5, criterion=f),
    "drop": lambda f: sparsity.dynamic(0.5, 1000, drop=f, grow="random"),
    "grow": lambda f: sparsity.dynamic(0.5, 1000, drop="magnitude", grow=f),
    "drop_fraction": lambda f: sparsity.rigl(0.5, 1000, drop_fraction=f),
}


@pytest.mark.parametrize("argument", FUNCTIONS)
def test_a_function_of_another_arity_is_refused(argument):
    message = rf"{argument}=none must be a function \(.*; it takes \(\)\."
    with pytest.raises(TypeError, match=message):
        FUNCTIONS[argument](none)


@pytest.mark.parametrize(
    ("value_fn", "taken"),
    [(none, r"\(\)"), (two, r"\(a, b\)"), (lambda p, *, batch: 0.0, ".*batch")],
)
def test_a_loss_of_more_than_the_parameters_is_refused(value_fn, taken):
    for call in (zs.sam_gradient, zs.zosam_gradient, zs.zeroth_order_gradient):
        with pytest.raises(TypeError, match=f"lambda p: .*; it takes {taken}"):
            call(value_fn, PARAMS, jax.random.key(0))


def test_functions_that_fit_are_taken():
    """Also with defaults, of more arguments, in JAX's and in Python's wrappers."""
    for rho in (
        lambda step, scale=0.1: scale * step,
        lambda *steps: 0.1,
        functools.partial(two, 1),
        jax.jit(RATE),
        np.sqrt,
    ):
        assert zs.sam(rho=rho).rho is rho
    for value_fn in (
        jax.jit(loss),
        functools.partial(lambda batch, p: loss(p), None),
        lambda params, key=None, **rest: loss(params),
    ):
        jax.eval_shape(functools.partial(zs.sam_gradient, value_fn), PARAMS)


FLAGS = {
    "has_aux": [zs.sam, zs.backprop, zs.zeroth_order, zs.zosam],
    "fresh_keys": [zs.sam],
    "sync_ascent": [zs.sam],
    "layerwise": [zs.sam, zs.looksam, zs.zosam],
    "two_sided": [zs.zosam, zs.zeroth_order],
    "decouple": [zs.wsam],
    "minimize_perturbed": [zs.gsam],
    "plus": [zs.cram],
    "sparse_gradient": [zs.cram],
    "by_sign": [functools.partial(sparsity.set_, 0.5, 1000)],
    "soft": [functools.partial(sparsity.mest, 0.5, 1000)],
    "packed": [
        functools.partial(zs.sparsify, optax.sgd(0.1), sparsity.rigl(0.5, 1000))
    ],
    "per_layer": [functools.partial(sparsity.prune_ticket, PARAMS, PARAMS, 0.5)],
}
FLAGS["track_exploration"] = FLAGS["packed"]


@pytest.mark.parametrize("flag", FLAGS)
def test_what_is_no_flag_is_refused(flag):
    for make in FLAGS[flag]:
        for value in (jnp.array(True), np.ones(2, bool)):
            with pytest.raises(TypeError, match=f"{flag}, an array, must be True or F"):
                make(**{flag: value})
        with pytest.raises(TypeError, match=f"{flag}='no' must be True or False"):
            make(**{flag: "no"})


def test_a_flag_of_numpy_is_taken():
    assert zs.sam(layerwise=np.True_, has_aux=np.False_)
