"""VaSSO, variance-suppressed SAM (arXiv:2309.15639)."""

from typing import Unpack

import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Key,
    Memory,
    Params,
    Radius,
    Scalar,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.memory import average, wide, zeros
from zosam_jax.gradients.pieces import (
    Ascent,
    GradientLook,
    Point,
    Row,
    exact_gradient,
)
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def vasso(
    rho: Radius = 0.05,
    *,
    theta: Scalar = 0.9,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""VaSSO: SAM along a running mean of the gradients, which is less noisy.

    .. math::
      d_t = (1 - \theta) d_{t-1} + \theta g_t, \quad \epsilon = \rho \, d_t / |d_t|

    with :math:`d_1 = g_1`, as in the authors' code. Li and Giannakis
    (arXiv:2309.15639). theta = 1 is SAM. It keeps d, one copy of the parameters.

    Args:
      rho: Radius, or a schedule.
      theta: Weight of the current gradient, in (0, 1].

    Returns:
      As `sam`.
    """
    _check.number("theta", theta, above=0, most=1)
    return sharpness_aware("vasso", Row(averaged(theta)), rho, **options)


@pure_form(vasso)
def vasso_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    theta: Scalar = 0.9,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns VaSSO's gradient as a pure function; see `vasso`."""
    ...


def averaged(theta: Scalar) -> Ascent[GradientLook]:
    """Returns the ascent along `d_t = (1 - theta) d_{t-1} + theta g_t`, `d_1 = g_1`."""

    def look(point: Point, memory: Memory) -> GradientLook:
        mean, started = memory
        clean = exact_gradient(point.losses.ascent, point.params)
        g = wide(clean.grad)
        mean = tree.where(started, average(mean, 1 - theta, g), g)
        return GradientLook(mean, clean, memory=(mean, jnp.ones_like(started)))

    def init(params: Params) -> Memory:
        return zeros(params), jnp.zeros((), bool)

    return Ascent(look, GradientLook, init)
