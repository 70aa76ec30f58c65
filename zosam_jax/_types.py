"""The vocabulary that the modules share: what an estimate of a gradient holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ValueFn = Callable[[Any], Any]
"""`params -> loss`, or `params -> (loss, aux)` where `has_aux=True` is said."""

Schedule = Callable[[jax.Array], jax.Array | float]
"""`step count (int32 scalar) -> value`, as Optax has them."""


class Info(NamedTuple):
    """What may be looked at beside a gradient. Free under `jit` where unused.

    Attributes:
      perturbation_norm: |eps|, the distance at which the gradient was taken, as the
        parameters' dtype represents it.
      direction_norm: Norm of the ascent direction before it was normalised.
      descent_value: The loss at the perturbed parameters.
      unperturbed: 1 where there was no direction to perturb along (it was zero or not
        finite), so that the plain gradient was returned; else 0. int32.
      forward_evaluations: Loss evaluations without a backward pass. int32.
      backward_evaluations: Backward passes (each with its forward pass). int32.
    """

    perturbation_norm: jax.Array
    direction_norm: jax.Array
    descent_value: jax.Array
    unperturbed: jax.Array
    forward_evaluations: jax.Array
    backward_evaluations: jax.Array

    @staticmethod
    def zeros() -> "Info":
        """The `Info` of no evaluation at all."""
        # An array each: a donated state may not hold one twice.
        floats = (jnp.zeros((), jnp.float32) for _ in range(3))
        integers = (jnp.zeros((), jnp.int32) for _ in range(3))
        return Info(*floats, *integers)


class Estimate(NamedTuple):
    """An estimate of a gradient, and what came with it.

    Attributes:
      value: The loss at the unperturbed parameters; the estimator's documentation says
        whether it is exact.
      grad: The gradient, in the structure and dtypes of the parameters.
      aux: What `value_fn` returned beside the loss, in the pass that the estimator's
        documentation names; None without `has_aux`.
      info: See `Info`.
    """

    value: jax.Array
    grad: Any
    aux: Any
    info: Info
