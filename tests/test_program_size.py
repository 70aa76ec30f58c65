"""The size of a training step's program, by the number of leaves.

Compile times are no test: they depend on the machine. The text that is handed to XLA
does not, and it is cheap, since nothing is compiled.
"""

import jax
import jax.numpy as jnp
import pytest

import zosam_jax as zs
from benchmarks import compile_time
from zosam_jax import _programs


def operations(name, leaves):
    """Operations of the step, those of called functions and branches once each."""
    text = compile_time.lowered(compile_time.STEPS[name][1](), leaves).as_text()
    return text.count(" = ")


@pytest.mark.parametrize(
    ("name", "most"),
    [("SAM", 120), ("ZO-SAM", 135), ("guided ZO-SAM", 400), ("RWP", 160), ("RigL", 70)],
)
def test_a_step_grows_linearly_with_the_leaves(name, most):
    few, more, many = (operations(name, n) for n in (8, 16, 32))
    assert many - more <= 2.1 * (more - few)
    assert many - more <= most * 16


def text(function, *args):
    return jax.jit(function).lower(*args).as_text()


def test_leaves_of_one_length_share_the_program_of_their_draw():
    key = jax.random.key(0)

    def programs(shapes):
        draw = lambda key: zs.tree.normal_like(key, [jnp.zeros(s) for s in shapes])  # noqa: E731
        return text(draw, key).count("erf_inv")

    assert programs([(3,)] * 9) == programs([(3,), (40, 25)]) == programs([(3,)])
    large = (300, 300)
    assert programs([large] * 9 + [(3,)]) == programs([large, (3,)])


def test_what_is_unstacked_has_its_values():
    stacked = jnp.arange(12).reshape(4, 3)
    for x, y in zip(_programs.unstack(stacked), stacked, strict=True):
        assert (x == y).all()
    (only,) = _programs.unstack(stacked[:1])
    assert (only == stacked[0]).all()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("shape", [(3,), (2, 2), (257, 257)])
def test_entries_that_are_not_finite_are_found_wherever_they_are(shape, bad):
    """Small arrays are looked at together, large ones one by one, integers not."""
    good = [jnp.zeros(s, d) for s in ((3,), (2, 2), (257, 257)) for d in "fe"]
    good += [jnp.arange(4), jnp.array(True)]
    assert _programs.finite(good)
    assert _programs.finite([jnp.arange(4)])
    for dtype in "fe":
        other = jnp.zeros(shape, dtype).at[(-1,) * len(shape)].set(bad)
        assert not _programs.finite([*good, other])


def test_a_constant_is_computed_in_a_loop_that_stays():
    """XLA removes loops of one turn, and barriers; an index has to be unknown."""
    scaled = jax.jit(lambda x: _programs.once(jnp.float32(2)) * x)
    assert " while(" in scaled.lower(jnp.ones(3)).compile().as_text()


def test_once_has_a_derivative():
    slope = jax.grad(lambda x: _programs.once(x**2))(3.0)
    assert slope == 6
    assert jax.jvp(_programs.once, (3.0,), (2.0,)) == (3.0, 2.0)
