r"""Arithmetic with a separate exponent for every array, for SynFlow.

SynFlow's R is about the product of the layers' gains, 1e60 for a deep network, which
float32 cannot hold. So the result of every product is kept as :math:`m \, 2^e`, with
the largest :math:`|m|` between 1/2 and 1 and one integer e for the whole array.
Multiplication by a power of two is exact. Linear operations pass e on, products add the
exponents of their operands, and sums use the largest exponent of their terms (a term
that is 2^252 times smaller becomes 0). The result is :math:`R = m_R 2^{e_R}`. Every e
is a constant in differentiation, hence

.. math:: \frac{1}{m_R} \frac{\partial m_R}{\partial \theta}
    = \frac{1}{R} \frac{\partial R}{\partial \theta},

and the cotangent of an array is about its share of the flow, divided by m. So neither
the forward nor the backward pass leaves float32, whatever the depth, and the ranking
equals the ranking by R.

This is exact for functions that commute with a positive factor. Other functions (`exp`,
`tanh`, a division by activations) conserve no flow; they raise an error.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# The exponent of an array of zeros.
_NOTHING = -(2**20)

_PRODUCTS = {"dot_general", "conv_general_dilated"}
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
# If all operands have one exponent, the result has the same.
_LINEAR = {
    *("add", "sub", "add_any", "max", "min", "neg", "abs", "select_n", "concatenate"),
    *("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev"),
    *("slice", "dynamic_slice", "dynamic_update_slice", "gather", "pad", "split"),
    *("stack", "unstack"),
    *("convert_element_type", "reduce_precision", "copy", "copy_p", "device_put"),
    *("sharding_constraint", "optimization_barrier", "name", "pvary"),
    *("reduce_sum", "reduce_max", "reduce_min", "cumsum", "sort"),
    *("reduce_window_sum", "reduce_window_max", "reduce_window_min"),
}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "is_finite", "argmax", "argmin"}
# Functions that do not commute with a positive factor.
_NO_FLOW = {
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc"),
    *("sin", "cos", "tan", "atan", "sinh", "cosh", "asinh", "sqrt", "rsqrt", "cbrt"),
    *("pow", "sign", "round", "floor", "ceil", "clamp", "rem", "atan2"),
}


class _Scaled(NamedTuple):
    """`mantissa * 2**exponent`, the exponent an int32 scalar."""

    mantissa: jax.Array
    exponent: jax.Array


def mantissa_and_exponent(
    function: Callable[[list[jax.Array]], jax.Array], theta: list[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns m and e of the scalar `function(theta) = m * 2**e`; e has no derivative.

    Loops (`scan`, `while`), `cond` and callbacks run in plain float32.

    Args:
      function: `theta -> scalar`.
      theta: Arrays.

    Raises:
      ValueError: The function applies an operation without a flow to activations.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.methods.scaled_arithmetic import mantissa_and_exponent
      >>> big = [jnp.array([[2.0**60]])]
      >>> m, e = mantissa_and_exponent(lambda t: (t[0] @ t[0] @ t[0])[0, 0], big)
      >>> print(m, e)  # 2^180 = 0.5 * 2^181
      0.5 181
    """
    closed = jax.make_jaxpr(function)(theta)
    (found,) = _run(closed.jaxpr, closed.consts, jax.tree.leaves(theta))
    return _normal(found)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        outputs = _equation(eqn, [read(x) for x in eqn.invars])
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _equation(eqn: Any, inputs: list[Any]) -> list[Any]:
    name, kinds = eqn.primitive.name, [isinstance(x, _Scaled) for x in inputs]
    if name in _CALLS:
        body = next(filter(None, map(_body, eqn.params.values())))
        if [e.primitive.name in _PRODUCTS for e in body[0].eqns] != [True]:
            return _run(*body, inputs)
        # A single product with a custom derivative: the call is bound as a whole.
        name = body[0].eqns[0].primitive.name
    # Of products the result is made normal anew, since here magnitudes multiply.
    if name in _PRODUCTS or (name == "mul" and all(kinds)):
        (product,) = _bind(eqn, [_mantissa(x) for x in inputs])
        exponents = [x.exponent for x in inputs if isinstance(x, _Scaled)]
        return [_normal(_Scaled(product, sum(exponents, start=jnp.int32(0))))]
    # Weights, masks and constants alone are plain numbers until a product takes them.
    if not any(kinds):
        return _bind(eqn, inputs)
    if name in ("mul", "div") and not (name == "div" and kinds[1]):
        (scaled,) = (x for x in inputs if isinstance(x, _Scaled))
        found = _bind(eqn, [_mantissa(x) for x in inputs])
        return [_Scaled(found[0], scaled.exponent)]
    if name in ("integer_pow", "square") and eqn.params.get("y", 2) > 0:
        found = _bind(eqn, [inputs[0].mantissa])
        return [_Scaled(found[0], eqn.params.get("y", 2) * inputs[0].exponent)]
    # min(x, 6) does not scale with x. (max(x, 0) does, and any other constant of a max
    # is aligned like a term of a sum.)
    saturates = name == "min" and not all(kinds)
    if name in _NO_FLOW or name in ("div", "integer_pow") or saturates:
        raise ValueError(
            f"SynFlow's value_fn applies `{name}` to activations, which does not grow "
            "in proportion to them: no flow is conserved through it. It is for "
            "networks of positively homogeneous functions (ReLU, leaky ReLU, pooling, "
            "BatchNorm in evaluation mode). Use another criterion, such as 'snip'."
        )
    if name in _LINEAR | _COMPARISONS:
        values, exponent = _aligned(inputs)
        return [
            _Scaled(x, exponent) if _is_float(x) and name in _LINEAR else x
            for x in _bind(eqn, values)
        ]
    return _bind(eqn, [_plain(x) for x in inputs])


def _bind(eqn: Any, values: list[Any]) -> list[Any]:
    found = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(found) if eqn.primitive.multiple_results else [found]


def _body(value: Any) -> tuple[Any, Sequence[Any]] | None:
    """Returns the jaxpr and constants in a parameter of an equation; None if none."""
    if isinstance(value, core.ClosedJaxpr):
        return value.jaxpr, value.consts
    return (value, ()) if isinstance(value, core.Jaxpr) else None


def _normal(x: Any) -> _Scaled:
    """Returns the same value with its largest mantissa in [1/2, 1)."""
    value, exponent = x if isinstance(x, _Scaled) else (jnp.asarray(x), jnp.int32(0))
    # The exponent is a constant in differentiation, or its derivative would be added.
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(value), initial=0))
    usable = (top > 0) & jnp.isfinite(top)
    # The exponent of a float32 is in bits 23 to 30, with an offset of 127.
    bits = jax.lax.bitcast_convert_type(top.astype(jnp.float32), jnp.int32)
    power = jnp.where(usable, (bits >> 23) - 126, 0)
    exponent = jnp.where(usable, exponent + power, _NOTHING)
    return _Scaled(_times_power(value, -power), exponent)


def _aligned(inputs: Sequence[Any]) -> tuple[list[Any], jax.Array]:
    """Returns mantissas for the largest exponent, and this; integers are unchanged."""
    parts = [
        _normal(x) if not isinstance(x, _Scaled) and _is_float(x) else x for x in inputs
    ]
    # To the largest, so that alignment underflows at worst and never overflows.
    exponents = [x.exponent for x in parts if isinstance(x, _Scaled)]
    largest = jnp.max(jnp.stack(exponents))
    return [
        _times_power(x.mantissa, x.exponent - largest) if isinstance(x, _Scaled) else x
        for x in parts
    ], largest


def _plain(x: Any) -> Any:
    return _times_power(*x) if isinstance(x, _Scaled) else x


def _mantissa(x: Any) -> Any:
    return x.mantissa if isinstance(x, _Scaled) else x


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _times_power(x: jax.Array, power: jax.Array) -> jax.Array:
    """Returns `x * 2**power`, exact unless the result under- or overflows."""
    most = min(252, -2 * int(np.asarray(jnp.finfo(x.dtype).minexp)))
    power = jnp.clip(power, -most, most)
    # In two factors: 2**power itself may be beyond the dtype.
    half = power // 2
    for part in (half, power - half):
        bits = (part.astype(jnp.int32) + 127) << 23
        x = x * jax.lax.bitcast_convert_type(bits, jnp.float32).astype(x.dtype)
    return x
