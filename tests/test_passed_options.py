"""Options that are passed on: what signatures, docstrings and errors say."""

import inspect
import subprocess
import sys
from typing import TypedDict, Unpack

import jax
import optax
import pytest

from zosam_jax._options import passes_options_to
from zosam_jax.gradients import registry as gradients
from zosam_jax.sparsity import registry as sparse_methods


class Options(TypedDict, total=False):
    size: int
    rate: float | jax.Array


def base(scale, *, own=1.0, rate: float | jax.Array = 0.5, size: int = 3):
    """Scales a gradient.

    Args:
      scale: Its factor.
      own: Not passed on.
      rate: Another factor,
        on a second line.
      size: Its size.

    Returns:
      A transformation.
    """
    return optax.scale(scale * rate * size * own)


@passes_options_to(base)
def row(scale: float | jax.Array = 2.0, **options: Unpack[Options]):
    """A row of `base`.

    Args:
      scale: The factor.

    Returns:
      As `base`.
    """
    return base(scale, **options)


def test_the_signature_names_every_option_with_its_default():
    parameters = inspect.signature(row).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "scale": 2.0,
        "rate": 0.5,
        "size": 3,
    }
    assert parameters["size"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_docstring_describes_every_option_once():
    doc = inspect.getdoc(row)
    assert doc is not None
    assert "scale: The factor.\n  rate: Another factor,\n    on a second line." in doc
    assert doc.count("size: Its size.\n\nReturns:") == 1
    assert "Not passed on" not in doc


def test_unknown_and_missing_options_are_named():
    with pytest.raises(
        TypeError, match=r"^row\(\) got an unexpected.*'rat'. Did you mean 'rate'"
    ):
        row(rat=1)  # pyright: ignore[reportCallIssue]

    @passes_options_to(base)
    def needs(scale, **options: Unpack[Options]):
        """Needs a scale."""

    with pytest.raises(TypeError, match=r"^needs: missing.*'scale'"):
        needs(size=2)  # pyright: ignore[reportCallIssue]


METHODS = [*gradients.METHODS.values(), *sparse_methods.METHODS.values()]
CONSTRUCTORS = dict.fromkeys(
    [*(row.make for row in METHODS), *(m.gradient for m in gradients.METHODS.values())]
)


@pytest.mark.parametrize("make", CONSTRUCTORS, ids=lambda make: make.__name__)
def test_every_constructor_has_the_same_errors(make):
    with pytest.raises(TypeError, match=r"^zs\..*unexpected.*'nonsense'.*Known: "):
        make(nonsense=1)
    for name, parameter in inspect.signature(make).parameters.items():
        if parameter.default is parameter.empty:
            # The entry of the docstring says what the argument is.
            said = rf"^zs\..*missing a required .*'{name}'\. {name}: \S"
            with pytest.raises(TypeError, match=said):
                make()
            return


def test_numbers_that_must_be_known_are_not_traced():
    tx = optax.inject_hyperparams(row)(rate=optax.constant_schedule(2.0))
    assert set(tx.init({}).hyperparams) == {"scale", "rate"}
    updates, _ = tx.update(1.0, tx.init({}), {})
    assert float(updates) == 2 * 2 * 3


def test_options_that_the_target_does_not_take_are_refused():
    class Unknown(TypedDict, total=False):
        sizes: int

    class Other(TypedDict, total=False):
        size: float

    with pytest.raises(TypeError, match=r"'sizes', which is no keyword-only"):

        @passes_options_to(base)
        def wrong(**options: Unpack[Unknown]):
            """Wrong."""

    with pytest.raises(TypeError, match=r"as <class 'float'>; base\(\) takes"):

        @passes_options_to(base)
        def odd(**options: Unpack[Other]):
            """Odd."""


def test_the_package_imports_without_docstrings():
    subprocess.run([sys.executable, "-OO", "-c", "import zosam_jax"], check=True)
