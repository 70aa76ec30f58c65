"""The plain gradient, with the interface of the sharpness-aware gradients."""

import functools
from typing import Any

from zosam_jax import _check, estimators
from zosam_jax._options import checks_arguments
from zosam_jax._types import (
    Estimate,
    Key,
    Masks,
    Memory,
    Params,
    PyTree,
    Scalar,
    ValueFn,
)
from zosam_jax.gradients.transformation import GradientEstimator, as_transformation


@checks_arguments
def backprop(
    *, has_aux: bool = False, aux_like: PyTree | None = None
) -> GradientEstimator:
    """Returns the plain gradient of `value_fn`, as a transformation like `zosam`.

    A training step can then call every gradient in the same way.
    `chain(backprop(), tx)` equals `tx` applied to `jax.grad(value_fn)(params)`.

    Args:
      has_aux: Whether `value_fn` returns `(loss, aux)`.
      aux_like: An example of aux; see `sam`.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(zs.backprop(), optax.sgd(0.5))
      >>> w = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(None, tx.init(w), w, value_fn=lambda w: jnp.sum(w**2))
      >>> print(updates)
      [-1.  2.]
    """
    _check.flags(has_aux=has_aux)

    def make(
        *,
        has_aux: bool = has_aux,
        aux_like: PyTree | None = aux_like,
        seed: Scalar = 0,
    ) -> GradientEstimator:
        def gradient(value_fn: ValueFn, params: Params, **rest: Any) -> Estimate:
            del rest
            return estimators.backprop(value_fn, params, has_aux=has_aux)

        return as_transformation(
            "backprop",
            gradient,
            has_aux=has_aux,
            aux_like=aux_like,
            seed=seed,
            make=functools.partial(make, has_aux=has_aux, aux_like=aux_like, seed=seed),
        )

    return make()


@checks_arguments
def backprop_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    *,
    masks: Masks | None = None,
    memory: Memory | None = None,
    step: Scalar | None = None,
    ascent_value_fn: ValueFn | None = None,
    has_aux: bool = False,
) -> Estimate:
    """Returns the plain gradient, with the arguments of the sharpness-aware ones.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays, w.
      key: Not used, like `masks`, `memory`, `step` and `ascent_value_fn`.
      masks: See `key`.
      memory: See `key`.
      step: See `key`.
      ascent_value_fn: See `key`.
      has_aux: Whether `value_fn` returns `(loss, aux)`.
    """
    del key, masks, memory, step, ascent_value_fn
    return estimators.backprop(value_fn, params, has_aux=has_aux)
