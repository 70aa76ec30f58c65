"""Says in words what a gradient of the registry still lacks."""

import functools
import inspect

import pytest
from family import METHODS as FAMILY
from replica_cases import CASES

import zosam_jax as zs
from benchmarks import house
from zosam_jax.gradients.registry import METHODS

FILES = house.read(house.ROOT)
# The plain gradient is what all replicas and reductions compare with.
REFERENCE = "backprop"


def constructors(made):
    return {x.func.__name__ for x in made if isinstance(x, functools.partial)}


def lacks(name):
    """What a row of the registry lacks, in words."""
    method = METHODS[name]
    if getattr(zs, name, None) is not method.make:
        yield f"zosam_jax/__init__.py does not export {name}"
    if getattr(zs, f"{name}_gradient", None) is not method.gradient:
        yield f"zosam_jax/__init__.py does not export {name}_gradient"
    if not method.label or not method.when.endswith("."):
        yield "the registry does not say when to choose it"
    if method.paper.startswith("arXiv") and method.paper not in (
        inspect.getdoc(method.make) or ""
    ):
        yield f"its docstring does not name {method.paper}"
    if name == REFERENCE:
        return
    if name not in constructors(row.make for row in FAMILY.values()):
        yield "tests/gradients/family.py has no row of it"
    if name not in constructors(case.tx for case in CASES.values()):
        yield "tests/gradients/replica_cases.py has no replica of it"


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_is_complete(name):
    found = list(lacks(name))
    assert not found, f"{name}: " + "; ".join(found)


@pytest.mark.parametrize("name", METHODS)
def test_both_forms_have_one_signature(name):
    """`(value_fn, params, key, rho, *, own options, call, shared options)`."""
    method = METHODS[name]
    made = inspect.signature(method.make).parameters
    pure = inspect.signature(method.gradient).parameters
    assert list(pure)[:3] == ["value_fn", "params", "key"]
    assert {"masks", "memory", "step", "ascent_value_fn"} <= set(pure)
    for option, parameter in made.items():
        if name in ("backprop", "zeroth_order") and option in ("aux_like", "seed"):
            continue  # Of the transformation's state and keys alone.
        assert pure[option] == parameter


def test_defaults_are_the_real_ones():
    assert inspect.signature(zs.esam).parameters["gamma"].default == 0.5
    assert inspect.signature(zs.zosam).parameters["every"].default == 1
    assert inspect.signature(zs.sam).parameters["microbatches"].default == 1


def test_each_file_of_a_method_is_in_the_registry():
    """A forgotten row would leave a method out of tables, command line and tests."""
    files = {
        name.rpartition(".")[2]
        for name in FILES
        if name.startswith("zosam_jax.gradients.methods.")
    }
    homes = {m.make.__module__.rpartition(".")[2] for m in METHODS.values()}
    assert files == homes
