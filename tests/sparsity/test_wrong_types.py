"""Options of the sparse methods with values of a wrong type."""

import jax.numpy as jnp
import pytest

from zosam_jax import sparsity

PARAMS = {"body": {"kernel": jnp.ones((8, 8))}, "head": {"kernel": jnp.ones((8, 4))}}
PATTERN = "must be a glob pattern on the paths"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense": 1}, f"dense=1 {PATTERN}"),
        ({"dense": ("head/*", 1)}, rf"dense=\('head/\*', 1\) {PATTERN}"),
        ({"dense": {"head/*": True}}, f"dense=.* {PATTERN}"),
        ({"stacked": 1}, f"stacked=1 {PATTERN}.* a mapping"),
        ({"stacked": [2]}, f"stacked=.* {PATTERN}"),
        ({"stacked": {1: 1}}, f"stacked=.* {PATTERN}"),
        ({"stacked": lambda path, shape: None}, "it returned None for body/kernel"),
        ({"budget": lambda shapes, sparsity: None}, "it gave None"),
    ],
)
def test_a_rule_of_a_wrong_type_is_named(options, message):
    with pytest.raises(TypeError, match=message):
        sparsity.rigl(0.5, 1000, **options).init(PARAMS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sparsity.budgets.by_path("head/*"), "by_path.* must be a mapping"),
        (lambda: sparsity.mest(0.5, 1000, stages=1), "stages=1 must be a sequence"),
        (lambda: sparsity.srigl(0.5, 1000, last=1).init(PARAMS), f"last=1 {PATTERN}"),
        (
            lambda: sparsity.nm(2, 4, 1000, axis=1.5).init(PARAMS),
            "axis=1.5 must be a whole number",
        ),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: sparsity.static(0.5, seed=seed),
        lambda seed: sparsity.set_(0.5, 1000, seed=seed),
        lambda seed: sparsity.units(0.5, 1000, {}, seed=seed),
        lambda seed: sparsity.gmp(0.5, 1000, seed=seed),
    ],
)
def test_a_seed_is_a_whole_number(make):
    with pytest.raises(ValueError, match=r"seed=1\.5 must be an integer >= 0"):
        make(1.5)


def test_a_stage_has_three_numbers():
    with pytest.raises(ValueError, match=r"stages\[0\]='x' must be \(until, "):
        sparsity.mest(0.5, 1000, stages=("x",))
