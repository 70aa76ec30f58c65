"""WSAM, weighted SAM (arXiv:2305.15817), and the optimizer of its decoupled form."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Decoupled,
    Estimate,
    Grads,
    Key,
    Memory,
    OptState,
    Params,
    Radius,
    Scalar,
    Schedule,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients import ascents
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.pieces import Combination, GradientLook, Point, Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def wsam(
    rho: Radius = 0.05,
    *,
    gamma: Scalar = 0.9,
    decouple: bool = False,
    max_norm: Scalar | None = None,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""WSAM: sharpness as a regulariser with an adjustable weight.

    .. math::
      g = (1 - a) \nabla L(w) + a \nabla L(w + \epsilon), \qquad a = \gamma/(1 - \gamma)

    Yue et al. (arXiv:2305.15817, algorithm 1). gamma = 1/2 is SAM, 0 plain training.
    The defaults of rho and gamma are those of the authors' code. Its default is
    `decouple=True`, which needs an optimizer of its own. Here it is False, so that any
    optimizer may follow. At gamma = 0.9 the coupled form takes -8 times the gradient at
    w and 9 times the other: choose a smaller gamma with momentum or Adam.

    Args:
      rho: Radius, or a schedule.
      gamma: Weight of sharpness in [0, 1).
      decouple: Give the optimizer only the gradient at w, and take a second step along
        `a (g_p - g)` with the plain learning rate (the paper's WSAM). The
        optimizer must then be `zs.decoupled(optimizer, learning_rate)`.
      max_norm: Largest global norm of each of the two gradients, > 0, as in the
        authors' code. None: no limit. With `decouple`, clipping in the optimizer
        reaches the gradient at w alone.

    Returns:
      As `sam`. With `decouple`, the gradient is a `Decoupled`.
    """
    _check.number("gamma", gamma, least=0, below=1)
    _check.flags(decouple=decouple)
    if max_norm is not None:
        _check.number("max_norm", max_norm, above=0)
    combination = weighted(gamma / (1 - gamma), decouple, max_norm)
    row = Row(ascents.gradient(), combination=combination)
    return sharpness_aware("wsam", row, rho, **options)


@pure_form(wsam)
def wsam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    gamma: Scalar = 0.9,
    decouple: bool = False,
    max_norm: Scalar | None = None,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns WSAM's gradient as a pure function; see `wsam`."""
    ...


def weighted(
    weight: Scalar, decouple: bool, max_norm: Scalar | None
) -> Combination[GradientLook]:
    """Returns `(1 - weight) g + weight g_p`, or g and `weight (g_p - g)` separately.

    Args:
      weight: Weight of the gradient at the perturbed point.
      decouple: Whether the parts stay separate.
      max_norm: Largest norm of g and of g_p, before they are combined.
    """

    def blend(
        point: Point, look: GradientLook, grad: Grads, memory: Memory
    ) -> tuple[Grads, Memory]:
        clean = look.estimate.grad
        if max_norm is not None:
            clean, grad = (
                _clipped(clean, max_norm, point),
                _clipped(grad, max_norm, point),
            )
        if decouple:
            return Decoupled(clean, tree.mix(weight, grad, -weight, clean)), memory
        return tree.mix(1 - weight, clean, weight, grad), memory

    return Combination(blend, GradientLook, decoupled=decouple)


def _clipped(grad: Grads, max_norm: Scalar, point: Point) -> Grads:
    """Returns the gradient, its norm over the live weights at most `max_norm`."""
    # The norm is that of the whole batch, also where every device has a part of it.
    grad = point.devices.pool(grad)
    norm = tree.norm(tree.mask(grad, point.masks))
    factor = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grad)


def decoupled(
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar | Schedule,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimizer that adds a step along WSAM's sharpness to its update.

    .. math::
      w \leftarrow w + \text{update}(\nabla L) - \eta \, a \, (g_p - \nabla L)

    Put it behind `zs.wsam(..., decouple=True)` in a chain, or make it the optimizer of
    `sparsify` with that `gradient=` (arXiv:2305.15817, algorithm 1).

    Args:
      optimizer: Steps along the gradient at w.
      learning_rate: eta, or a schedule of it.

    Returns:
      A transformation whose incoming updates are a `Decoupled`.

    Raises:
      TypeError: On update, the incoming updates are not a `Decoupled`.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(
      ...     zs.wsam(0.5, gamma=0.5, decouple=True), zs.decoupled(optax.sgd(0.5), 0.5)
      ... )
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(None, tx.init(w), w, value_fn=lambda w: w @ w)
      >>> print(updates)
      [-3.3 -4.4]
    """
    optimizer = optax.with_extra_args_support(optimizer)
    rate = optax.scale_by_learning_rate(learning_rate)

    def init(params: Params) -> tuple[OptState, OptState]:
        return optimizer.init(params), rate.init(params)

    def update(
        updates: Grads,
        state: OptState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Grads, OptState]:
        if not isinstance(updates, Decoupled):
            raise TypeError(
                "zs.decoupled needs the two parts of zs.wsam(..., decouple=True): put "
                "it directly behind zs.wsam in the chain, or use gradient= of sparsify."
            )
        # The optimizer sees the gradient at w alone, so the sharpness does not enter
        # its momentum or second moments.
        main, first = optimizer.update(updates.grad, state[0], params, **extra_args)
        beside, second = rate.update(updates.sharpness, state[1])
        total = jax.tree.map(lambda u, v: (u + v).astype(u.dtype), main, beside)
        return total, (first, second)

    return optax.GradientTransformationExtraArgs(init, update)
