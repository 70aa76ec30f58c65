"""GSAM, surrogate gap guided SAM (arXiv:2203.08065)."""

from typing import Unpack

import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Grads,
    Key,
    Memory,
    Params,
    Radius,
    Scalar,
    Schedule,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients import ascents
from zosam_jax.gradients.combinations import orthogonal
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.pieces import Combination, GradientLook, Point, Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def gsam(
    rho: Radius = 0.05,
    *,
    alpha: Scalar = 0.4,
    minimize_perturbed: bool = True,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""GSAM: lowers the surrogate gap L(w + eps) - L(w) and the perturbed loss.

    .. math::
      g = g_p - \alpha \, (\nabla L - \langle \nabla L, \hat g_p \rangle \hat g_p),
      \qquad g_p = \nabla L(w + \epsilon), \; \hat g_p = g_p / |g_p|

    Zhuang et al. (arXiv:2203.08065, algorithm 1). alpha = 0 is SAM. The paper ties rho
    to the learning rate: `rho=zs.tied_radius(learning_rate, ...)`.

    Args:
      rho: Radius, or a schedule.
      alpha: Weight of the orthogonal part, >= 0; the papers use 0.4 and 0.6.
      minimize_perturbed: False takes the gradient at w and adds the part of g_p that
        is orthogonal to it, an option of the authors' code.

    Returns:
      As `sam`.
    """
    _check.number("alpha", alpha, least=0)
    _check.flags(minimize_perturbed=minimize_perturbed)
    row = Row(ascents.gradient(), combination=surrogate_gap(alpha, minimize_perturbed))
    return sharpness_aware("gsam", row, rho, **options)


@pure_form(gsam)
def gsam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    alpha: Scalar = 0.4,
    minimize_perturbed: bool = True,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns GSAM's gradient as a pure function; see `gsam`."""
    ...


def surrogate_gap(alpha: Scalar, minimize_perturbed: bool) -> Combination[GradientLook]:
    """Returns one gradient minus the part of the other that is orthogonal to it."""

    def blend(
        point: Point, look: GradientLook, grad: Grads, memory: Memory
    ) -> tuple[Grads, Memory]:
        # Averaged before the decomposition, which is not linear in the two gradients.
        clean, grad = look.estimate.grad, point.devices.mean(grad)
        if minimize_perturbed:
            # The step goes up along this part. To first order that raises the loss at w
            # and leaves the perturbed loss unchanged, so the gap between them shrinks.
            apart = orthogonal(clean, grad, point.masks)
            return tree.add_scaled(grad, -alpha, apart), memory
        # Down along this part: the perturbed loss falls, the loss at w does not change.
        apart = orthogonal(grad, clean, point.masks)
        return tree.add_scaled(clean, alpha, apart), memory

    return Combination(blend, GradientLook)


def tied_radius(
    learning_rate: Schedule,
    rho_max: float,
    rho_min: float,
    lr_max: float,
    lr_min: float = 0.0,
) -> Schedule:
    r"""Returns GSAM's radius as a schedule that is tied to the learning rate.

    .. math::
      \rho_t = \rho_{\min} + (\rho_{\max} - \rho_{\min})
               \frac{\eta_t - \eta_{\min}}{\eta_{\max} - \eta_{\min}}

    Where the learning rate is below `lr_min`, as in a warm-up from 0, the radius is
    `rho_min`.

    Args:
      learning_rate: Schedule of the learning rate, eta.
      rho_max: Radius at `lr_max`.
      rho_min: Radius at `lr_min`.
      lr_max: Largest learning rate.
      lr_min: Learning rate at the end of the schedule.

    Returns:
      A schedule for `rho=` of any method (arXiv:2203.08065).

    Example:
      >>> import optax, zosam_jax as zs
      >>> rate = optax.linear_schedule(0.1, 0.0, 100)
      >>> radius = zs.tied_radius(rate, rho_max=0.6, rho_min=0.1, lr_max=0.1)
      >>> print(f"{float(radius(50)):.2f}")
      0.35
    """
    if not callable(learning_rate):
        raise TypeError(
            "learning_rate must be a schedule, as optax.cosine_decay_schedule(0.1, n)."
        )
    _check.callable_as("learning_rate", learning_rate, "(step) -> learning rate")
    if not lr_max > lr_min:
        raise ValueError(f"lr_max={lr_max} must be larger than lr_min={lr_min}.")
    if not rho_max >= rho_min:
        raise ValueError(f"rho_max={rho_max} must not be less than rho_min={rho_min}.")
    slope = (rho_max - rho_min) / (lr_max - lr_min)
    return lambda step: jnp.maximum(
        rho_min + slope * (learning_rate(step) - lr_min), rho_min
    )
