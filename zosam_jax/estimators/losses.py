"""The form in which the estimators evaluate the loss, and its exact gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._types import Aux, Estimate, Info, Params, Scalar, Step, ValueFn


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss in the form that the estimators evaluate.

    Attributes:
      function: `params -> (loss, aux)`: a float32 (or wider) scalar, and None without
        aux.
      computed: `params -> loss` in the dtype in which the user's function computes it;
        None for that of `function`.
    """

    function: Callable[[Params], tuple[jax.Array, Aux]]
    computed: Callable[[Params], jax.Array] | None = None

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

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> found = zs.estimators.backprop(lambda w: w @ w, jnp.array([3.0, 4.0]))
      >>> print(found.value, found.grad)
      25.0 [6. 8.]
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
    _check.flags(has_aux=has_aux)

    def computed(params: Params) -> tuple[jax.Array, Aux]:
        value, aux = split_aux(value_fn(params), has_aux)
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
        return value, aux

    def loss(params: Params) -> tuple[jax.Array, Aux]:
        value, aux = computed(params)
        return in_float32(value), aux

    return Loss(loss, lambda params: computed(params)[0])


def in_float32(losses: jax.Array) -> jax.Array:
    """Returns losses in float32 or wider."""
    # Finite differences subtract nearly equal losses, so they need float32.
    wide = losses.dtype == jnp.float64
    return losses.astype(jnp.float64 if wide else jnp.float32)


def split_aux(result: Any, has_aux: bool) -> tuple[Any, Aux]:
    """Returns what `value_fn` returned as loss, or losses, and aux.

    Raises:
      TypeError: With `has_aux`, it is no pair.
    """
    if not has_aux:
        return result, None
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "has_aux=True, so value_fn must return a pair (loss, aux); it returned "
            f"{type(result).__name__}."
        )
    return result


def check_step(delta: Step | None) -> None:
    """Raises `ValueError` unless delta is "auto", None or a number above 0."""
    if isinstance(delta, str):
        _check.one_of("delta", delta, ("auto",))
    elif delta is not None:
        _check.number("delta", delta, above=0)


@overload
def difference_step(
    delta: None, value_fn: ValueFn, params: Params, *, has_aux: bool = False
) -> None: ...
@overload
def difference_step(
    delta: Step, value_fn: ValueFn, params: Params, *, has_aux: bool = False
) -> Scalar: ...
def difference_step(
    delta: Step | None, value_fn: ValueFn, params: Params, *, has_aux: bool = False
) -> Scalar | None:
    r"""Returns the step of a finite difference, in units of a random direction's entry.

    .. math::
      \delta = 10^{-3} \, (\varepsilon / \varepsilon_{32})^{1/3}

    with the coarsest resolution :math:`\varepsilon` of the loss and the parameters, at
    least that of float32: 0.001 in float32, 0.02 in float16, 0.04 in bfloat16. The
    error of a central difference, :math:`\delta^2 + \varepsilon / \delta` up to
    constants, is least where delta grows like the cube root of the resolution. A loss
    that is computed in bfloat16 and then converted counts as float32: give it a number.

    Args:
      delta: "auto", or the step itself (None: an exact derivative), which is returned.
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> for dtype in (jnp.float32, jnp.bfloat16):
      ...     w = jnp.ones(2, dtype)
      ...     delta = zs.estimators.difference_step("auto", lambda w: w @ w, w)
      ...     print(f"{delta:.3f}")
      0.001
      0.040
    """
    if not isinstance(delta, str):
        return delta
    loss = scalar_loss(value_fn, has_aux)
    function = loss.computed or (lambda params: loss(params)[0])
    results = [*jax.tree.leaves(params), jax.eval_shape(function, params)]
    coarsest = max(float(jnp.finfo(jnp.result_type(x)).eps) for x in results)
    ratio = coarsest / float(jnp.finfo(jnp.float32).eps)
    return 1e-3 * max(1.0, ratio) ** (1 / 3)


def check_function(value_fn: object) -> None:
    """Raises `TypeError` unless the loss is a function of the parameters.

    It may take `key=` and `examples=` too. They are given by name, where options ask
    for them.
    """
    wanted = (
        "value_fn must be a function from the parameters to the loss, such as "
        "lambda p: loss(p, batch)"
    )
    if not callable(value_fn):
        raise TypeError(f"{wanted}; got {type(value_fn).__name__}.")
    taken = _check.signature_of(value_fn)
    if taken is None:
        return
    named = {n: None for n in list(taken.parameters)[1:] if n in ("key", "examples")}
    try:
        taken.bind(None, **named)
    except TypeError:
        raise TypeError(f"{wanted}; it takes {taken}.") from None
