"""The form in which the estimators evaluate the loss, and its exact gradient."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._types import Aux, Estimate, Info, Params, ValueFn


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss in the form that the estimators evaluate.

    Attributes:
      function: `params -> (loss, aux)`: a float32 (or wider) scalar, and None without
        aux.
    """

    function: Callable[[Params], tuple[jax.Array, Aux]]

    def __call__(self, params: Params) -> tuple[jax.Array, Aux]:
        """Returns `(loss, aux)` at the parameters."""
        return self.function(params)


def backprop(value_fn: ValueFn, params: Params, *, has_aux: bool = False) -> Estimate:
    """Returns the exact gradient: one forward and one backward pass at the parameters.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Returns:
      An `Estimate`; `value`, `grad` and `aux` all come from the one pass.
    """
    _check.trainable(params)
    loss = scalar_loss(value_fn, has_aux)
    (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(params)
    info = Info.zeros()._replace(
        descent_value=value, backward_evaluations=jnp.asarray(1, jnp.float32)
    )
    return Estimate(value, grad, aux, info)


def scalar_loss(value_fn: ValueFn, has_aux: bool) -> Loss:
    """Returns the loss in the form that the estimators evaluate, with checks.

    Args:
      value_fn: The user's function. A `Loss` is returned unchanged.
      has_aux: Whether it returns `(loss, aux)`.

    Raises:
      TypeError: `value_fn` is no function; when it is called, it returns another form
        than `has_aux` says.
      ValueError: When it is called, the loss is not a scalar.
    """
    if isinstance(value_fn, Loss):
        return value_fn
    check_function(value_fn)

    def loss(params: Params) -> tuple[jax.Array, Aux]:
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
        # Finite differences subtract nearly equal losses, so they need float32.
        return value.astype(jnp.promote_types(value.dtype, jnp.float32)), aux

    return Loss(loss)


def check_function(value_fn: object) -> None:
    """Raises `TypeError` unless the loss is a function."""
    if not callable(value_fn):
        raise TypeError(
            "value_fn must be a function from the parameters to the loss, such as "
            f"lambda p: loss(p, batch); got {type(value_fn).__name__}."
        )
