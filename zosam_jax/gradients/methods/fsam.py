"""F-SAM, friendly SAM (arXiv:2403.12350)."""

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
def fsam(
    rho: Radius = 0.05,
    *,
    sigma: Scalar = 1.0,
    decay: Scalar = 0.9,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""F-SAM (friendly): perturbs along the noise of the batch, not the full gradient.

    .. math::
      d_t = g_t - \sigma m_{t-1}, \quad m_t = \lambda m_{t-1} + (1 - \lambda) g_t,
      \quad \epsilon = \rho \, d_t / |d_t|

    with :math:`m_1 = d_1 = g_1`. Li et al. (arXiv:2403.12350), with the mean of the
    last step, as in the authors' code. sigma = 0 is SAM. It keeps m, one copy of the
    parameters.

    Args:
      rho: Radius, or a schedule.
      sigma: Fraction of the mean gradient that is subtracted.
      decay: lambda in [0, 1).

    Returns:
      As `sam`.
    """
    _check.number("decay", decay, least=0, below=1)
    _check.number("sigma", sigma)
    return sharpness_aware("fsam", Row(friendly(sigma, decay)), rho, **options)


@pure_form(fsam)
def fsam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    sigma: Scalar = 1.0,
    decay: Scalar = 0.9,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns F-SAM's gradient as a pure function; see `fsam`."""
    ...


def friendly(sigma: Scalar, decay: Scalar) -> Ascent[GradientLook]:
    """Returns the ascent along `g_t - sigma m_{t-1}`, with the running mean m."""

    def look(point: Point, memory: Memory) -> GradientLook:
        mean, started = memory
        clean = exact_gradient(point.losses.ascent, point.params)
        g = wide(clean.grad)
        # The first step has no mean yet: it perturbs along g, and the mean starts at g.
        direction = tree.where(started, tree.add_scaled(g, -sigma, mean), g)
        mean = tree.where(started, average(mean, decay, g), g)
        memory = mean, jnp.ones_like(started)
        return GradientLook(direction, clean, memory=memory)

    def init(params: Params) -> Memory:
        return zeros(params), jnp.zeros((), bool)

    return Ascent(look, GradientLook, init)
