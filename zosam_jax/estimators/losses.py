"""The loss in the one form that the estimators evaluate, and its exact gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax._types import Estimate, Info, ValueFn

Loss = Callable[[Any], tuple[jax.Array, Any]]
"""`params -> (loss, aux)`: a float32 (or wider) scalar, and None without aux."""


def backprop(value_fn: ValueFn, params: Any, *, has_aux: bool = False) -> Estimate:
    """The exact gradient: one backward pass at the parameters themselves.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Returns:
      An `Estimate`; `value`, `grad` and `aux` all come from the one pass.
    """
    loss = scalar_loss(value_fn, has_aux)
    (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(params)
    info = Info.zeros()._replace(
        descent_value=value, backward_evaluations=jnp.asarray(1, jnp.float32)
    )
    return Estimate(value, grad, aux, info)


def scalar_loss(value_fn: ValueFn, has_aux: bool) -> Loss:
    """`params -> (loss, aux)` from either form of `value_fn`, the loss checked.

    Args:
      value_fn: The user's function.
      has_aux: Which of the two forms it has.

    Returns:
      A function whose loss is a float32 (or wider) scalar and whose aux is None
      without `has_aux`.

    Raises:
      TypeError: `value_fn` is no function, or it returns the other form.
      ValueError: The loss is not a scalar.
    """
    check_function(value_fn)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        result = value_fn(params)
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "has_aux=True, so value_fn must return a pair (loss, aux); it returned "
                f"{type(result).__name__}."
            )
        value, aux = result if has_aux else (result, None)
        if value is None or isinstance(value, tuple | list | dict):
            raise TypeError(
                f"value_fn returned a {type(value).__name__}, not a scalar loss. If it "
                "returns (loss, aux), say has_aux=True."
            )
        value = jnp.asarray(value)
        if value.shape != ():
            raise ValueError(
                f"value_fn must return a scalar loss; its shape is {value.shape}. "
                "Take the mean over the batch."
            )
        return value.astype(jnp.promote_types(value.dtype, jnp.float32)), aux

    return loss


def check_function(value_fn: Any) -> None:
    """Raises `TypeError` unless the loss is a function."""
    if not callable(value_fn):
        raise TypeError(
            "value_fn must be a function from the parameters to the loss, such as "
            f"lambda p: loss(p, batch); got {type(value_fn).__name__}."
        )
