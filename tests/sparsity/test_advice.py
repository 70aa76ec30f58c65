"""What users get wrong in naming a method is answered with what they meant."""

import warnings

import jax.numpy as jnp
import pytest

import zosam_jax as zs

CONSTRUCTORS = {
    "rigl": lambda s: zs.sparsity.rigl(s, 1000),
    "set_": lambda s: zs.sparsity.set_(s, 1000),
    "itop": lambda s: zs.sparsity.itop(s, 1000),
    "svite": lambda s: zs.sparsity.svite(s, 1000),
    "mest": lambda s: zs.sparsity.mest(s, 1000),
    "dsr": lambda s: zs.sparsity.dsr(s, 1000),
    "gmp": lambda s: zs.sparsity.gmp(s, 1000),
    "safe": lambda s: zs.sparsity.safe(s, 1000),
    "ste": zs.sparsity.ste,
    "static": zs.sparsity.static,
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_percentage_is_answered_with_the_fraction(name):
    with pytest.raises(ValueError, match=r"sparsity=90 .*a fraction: 90 % is 0\.9"):
        CONSTRUCTORS[name](90)
    with pytest.raises(ValueError, match=r"sparsity=1\.0 must be .* < 1\.$"):
        CONSTRUCTORS[name](1.0)


def test_other_fractions_in_per_cent_and_numbers_that_are_none():
    with pytest.raises(ValueError, match=r"drop_fraction=30 .*30 % is 0\.3"):
        zs.sparsity.rigl(0.5, 1000, drop_fraction=30)
    with pytest.raises(ValueError, match=r"decay=-1 must be a finite number >= 0\.$"):
        zs.sparsity.ste(0.5, decay=-1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rigl", {"droop_fraction": 0.3}, "Did you mean 'drop_fraction'"),
        ("rigl", {"by_sign": True}, "Known: .*'interval'"),
        ("set_", {"bysign": True}, "Did you mean 'by_sign'"),
        ("itop", {"growth": None}, "Did you mean 'grow'"),
        ("svite", {"intervall": 3}, "Did you mean 'interval'"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest_and_with_its_method(
    name, options, message
):
    with pytest.raises(TypeError, match=rf"zs\.sparsity\.{name}\(\) .*{message}"):
        getattr(zs.sparsity, name)(0.5, 1000, **options)


@pytest.mark.parametrize("name", ["rigl", "set_", "mest", "dsr", "gmp"])
def test_an_unknown_budget_is_named_with_the_nearest(name):
    with pytest.raises(ValueError, match=r"budget='unifrom' .*Did you mean 'uniform'"):
        getattr(zs.sparsity, name)(0.5, 1000, budget="unifrom")


def test_a_training_too_short_for_one_change_is_said_to_be_static():
    """Of RigL's default interval, 100 steps see no change; of DSR's, 800 see one."""
    with pytest.warns(UserWarning, match="never change: .* step 100, .* step 75"):
        zs.sparsity.rigl(0.9, 100)
    with pytest.warns(UserWarning, match=r"interval, 20 steps .* interval=12 or less"):
        zs.sparsity.dsr(0.9, 100, interval=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zs.sparsity.rigl(0.9, 100, interval=74)
        zs.sparsity.dsr(0.9, 100, interval=12)
        # Deliberately static.
        zs.sparsity.rigl(0.9, 100, stop_fraction=0.0)
        zs.sparsity.itop(0.9, 10)
        zs.sparsity.svite(0.9, 10)
        zs.sparsity.mest(0.9, 10)
        zs.sparsity.gmp(0.9, 10)


@pytest.mark.parametrize("total", [100, 333, 1000])
@pytest.mark.parametrize("interval", [7, 20, 30, 90])
def test_dsr_warns_exactly_where_no_step_fires(total, interval):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = zs.sparsity.dsr(0.9, total, interval=interval)
    assert method.fires is not None
    assert bool(jnp.any(method.fires(jnp.arange(total)))) != bool(caught)
