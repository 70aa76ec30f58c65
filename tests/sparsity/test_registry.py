"""The table of sparse methods is complete: what a new one still lacks is said."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from test_conservation import METHODS as CONSERVED
from test_sparse_replicas import CASES as REPLICAS

import zosam_jax as zs
from tests.conformance import zoo
from zosam_jax.sparsity import methods, scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.registry import METHODS

TESTS = Path(__file__).parent
# Methods whose structure, or whose mask at the start, has tests of its own in this
# folder: replicas and exact counts both.
OF_THEIR_OWN = {
    "static": "test_initialization.py",
    "srigl": "test_structured_srigl.py",
    "nm": "test_structured_nm.py",
    "units": "test_structured_units.py",
    "chex": "test_structured_chex.py",
    "chase": "test_structured_chase.py",
    "dynamic": "test_dynamic.py",
}


def constructors():
    """The functions of `methods/` that return a method, by name."""
    found = {}
    for info in pkgutil.iter_modules(methods.__path__):
        module = importlib.import_module(f"{methods.__name__}.{info.name}")
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                returned = inspect.signature(value).return_annotation
                if returned is SparseMethod and not name.startswith("_"):
                    found[name] = value
    return found


def lacking(name, make):
    """What a constructor still lacks, in words."""
    short = name.removesuffix("_")
    missing = []
    if make not in [row.make for row in METHODS.values()]:
        missing.append("a row of METHODS in zosam_jax/sparsity/registry.py")
    if getattr(zs.sparsity, name, None) is not make:
        missing.append("an export in zosam_jax/sparsity/__init__.py")
    own = OF_THEIR_OWN.get(short)
    tested = own is not None and f"{name}(" in (TESTS / own).read_text()
    if not (tested or short in REPLICAS):
        missing.append("a replica in tests/sparsity/test_sparse_replicas.py")
    if not (tested or short in CONSERVED):
        missing.append("a row in tests/sparsity/test_conservation.py")
    if name not in zoo.METHODS:
        missing.append("a row of METHODS in tests/conformance/zoo.py")
    return missing


@pytest.mark.quick
@pytest.mark.parametrize("name", constructors())
def test_a_method_has_its_row_its_export_and_its_tests(name):
    missing = lacking(name, constructors()[name])
    assert not missing, f"{name} lacks {'; '.join(missing)}"


def test_what_is_missing_is_said():
    def novel(sparsity: float) -> SparseMethod:
        return zs.sparsity.static(sparsity)

    assert [text.split()[-1] for text in lacking("novel", novel)] == [
        "zosam_jax/sparsity/registry.py",
        "zosam_jax/sparsity/__init__.py",
        "tests/sparsity/test_sparse_replicas.py",
        "tests/sparsity/test_conservation.py",
        "tests/conformance/zoo.py",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_consistent(name):
    row = METHODS[name]
    arguments = inspect.signature(row.make).parameters
    assert set(row.fixed) <= set(arguments)
    assert row.scores_by in ("", "loss", "cooled loss", "flow")
    assert not row.scores_by or "value_fn" in arguments
    assert row.label
    assert row.prunes
    assert not row.paper or row.paper.startswith("arXiv:")
    labels = [other.label for other in METHODS.values()]
    assert labels.count(row.label) == 1


@pytest.mark.parametrize("grow", scores.SCORES)
@pytest.mark.parametrize("drop", scores.SCORES)
def test_dynamic_takes_any_score_by_name(drop, grow):
    make, params = METHODS["dynamic"].make, {"w": jnp.arange(1.0, 17).reshape(4, 4)}
    named = make(0.5, 100, drop=drop, grow=grow, interval=10)
    given = make(
        0.5, 100, drop=scores.SCORES[drop], grow=scores.SCORES[grow], interval=10
    )
    grads = {"w": params["w"].T - 7}
    after = []
    for method in (named, given):
        topology = method.init(params)
        assert method.change is not None
        after.append(method.change(topology, params, grads, jnp.int32(10)).masks["w"])
    assert jnp.array_equal(*after)
    assert named.dense_gradient_every == given.dense_gradient_every


def test_an_unknown_score_names_the_nearest():
    with pytest.raises(ValueError, match=r"grow='gradients'.*mean 'gradient'"):
        zs.sparsity.dynamic(0.5, 1000, drop="magnitude", grow="gradients")
    with pytest.raises(ValueError, match=r"score='size' is unknown.*'saliency'"):
        zs.sparsity.gmp(0.5, 1000, score="size")


def test_a_method_tells_its_name():
    for name, make in zoo.METHODS.items():
        assert make().name == name
