"""Optimizers without any backward pass: zeroth-order gradients in Optax chains."""

import inspect
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, Unpack

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check
from zosam_jax._types import Estimate, Scalar, Schedule, ValueFn
from zosam_jax.estimators import DISTRIBUTIONS, check_chunks, rge
from zosam_jax.gradients.transformation import GradientEstimator, as_transformation

F = TypeVar("F", bound=Callable[..., Any])


class Directions(TypedDict, total=False):
    """Options of `zeroth_order`, which the optimizers pass on."""

    delta: Scalar
    num_directions: int
    distribution: str
    two_sided: bool
    chunk_size: int | None
    has_aux: bool
    aux_like: Any | None
    seed: Scalar


def zeroth_order(
    *,
    delta: Scalar = 1e-3,
    num_directions: int = 1,
    distribution: str = "gaussian",
    two_sided: bool = True,
    chunk_size: int | None = None,
    has_aux: bool = False,
    aux_like: Any | None = None,
    seed: Scalar = 0,
) -> GradientEstimator:
    r"""The gradient by random gradient estimation, as a transformation like `backprop`.

    .. math::
      \hat g = \frac{1}{m} \sum_{i=1}^m
               \frac{L(w + \delta u_i) - L(w - \delta u_i)}{2 \delta} \, u_i

    Nesterov and Spokoiny (2017). Its error is about :math:`\sqrt{d/m}` times the
    gradient over d live weights: learning rates must be smaller by as much. Nothing is
    remembered: directions come from `fold_in(key(seed), t)`. In `sparsify` the estimate
    is zero off the mask, so grow rules that read the gradient have nothing to read.

    Args:
      delta: Step of the finite difference, > 0.
      num_directions: m; 2m forward passes (one-sided m + 1).
      distribution: "gaussian", "sphere" or "rademacher".
      two_sided: Central or forward differences.
      chunk_size: None, or directions evaluated in one `jax.vmap`.
      has_aux: Whether `value_fn` returns `(loss, aux)`.
      aux_like: An example of aux; see `sam`.
      seed: Integer.

    Returns:
      A transformation: `tx.update(None, state, params, value_fn=...)`.
    """
    _check.number("delta", delta, above=0)
    _check.one_of("distribution", distribution, DISTRIBUTIONS)
    check_chunks(num_directions, chunk_size)

    def gradient(
        value_fn: ValueFn,
        params: Any,
        *,
        key: jax.Array,
        masks: Any | None = None,
        **rest: Any,
    ) -> Estimate:
        del rest
        seen, _ = rge(
            value_fn,
            params,
            key,
            delta=delta,
            num_directions=num_directions,
            distribution=distribution,
            two_sided=two_sided,
            chunk_size=chunk_size,
            masks=masks,
            has_aux=has_aux,
        )
        grad = jax.tree.map(
            lambda g, w: g.astype(jnp.result_type(w)), seen.grad, params
        )
        info = seen.info._replace(descent_value=seen.value)
        return seen._replace(grad=grad, info=info)

    return as_transformation(
        "zeroth_order",
        gradient,
        has_aux=has_aux,
        aux_like=aux_like,
        seed=seed,
        dense=False,
    )


def _with_directions(make: F) -> F:
    """Writes the options of `zeroth_order` into an optimizer's signature."""
    own = inspect.signature(make)
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shared = inspect.signature(zeroth_order).parameters.values()
    signature = own.replace(parameters=[*kept, *shared])
    # optax.inject_hyperparams reads it, and cannot pass on what it does not name.
    vars(make)["__signature__"] = signature
    return make


@_with_directions
def zo_sgd(
    learning_rate: Scalar | Schedule,
    *,
    momentum: float | None = None,
    weight_decay: Scalar = 0.0,
    **options: Unpack[Directions],
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-SGD: `w <- w - eta (g + lambda w)` with a zeroth-order g.

    With one direction and no momentum it is MeZO (arXiv:2305.17333, algorithm 1): two
    forward passes, and a state that holds no copy of the parameters.

    Args:
      learning_rate: eta, or a schedule; MeZO's are 1e-7 to 1e-5.
      momentum: None, or a decay, which costs a copy of the parameters.
      weight_decay: lambda.
      **options: `delta, num_directions, distribution, two_sided, chunk_size, has_aux,
        aux_like, seed`, as in `zeroth_order`.

    Returns:
      An optimizer: `tx.update(None, state, params, value_fn=...)`.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = zs.zo_sgd(0.1)
      >>> w = jnp.array([1.0, -2.0])
      >>> state = tx.init(w)
      >>> for _ in range(60):
      ...     updates, state = tx.update(None, state, w, value_fn=lambda w: w @ w)
      ...     w = optax.apply_updates(w, updates)
      >>> print(bool(w @ w < 0.1))
      True
    """
    return optax.chain(
        zeroth_order(**options),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum),
    )


@_with_directions
def zo_signsgd(
    learning_rate: Scalar | Schedule, **options: Unpack[Directions]
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-signSGD: `w <- w - eta sign(g)` with a zeroth-order g.

    Liu et al. (ICLR 2019, "signSGD via zeroth-order oracle"): the sign of the estimate,
    entry by entry; entries off the mask stay 0.

    Args:
      learning_rate: eta, or a schedule.
      **options: `delta, num_directions, distribution, two_sided, chunk_size, has_aux,
        aux_like, seed`, as in `zeroth_order`.

    Returns:
      An optimizer: `tx.update(None, state, params, value_fn=...)`.
    """
    return optax.chain(
        zeroth_order(**options),
        optax.scale_by_sign(),
        optax.scale_by_learning_rate(learning_rate),
    )


@_with_directions
def zo_adam(
    learning_rate: Scalar | Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Scalar = 0.0,
    **options: Unpack[Directions],
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-Adam: AdamW on a zeroth-order gradient; two copies of the parameters.

    After ZO-AdaMM (Chen et al., arXiv:1910.06513), with Adam's own second moment.

    Args:
      learning_rate: eta, or a schedule.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: Decoupled.
      **options: `delta, num_directions, distribution, two_sided, chunk_size, has_aux,
        aux_like, seed`, as in `zeroth_order`.

    Returns:
      An optimizer: `tx.update(None, state, params, value_fn=...)`.
    """
    return optax.chain(
        zeroth_order(**options),
        optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
    )
