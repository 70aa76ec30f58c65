"""AE-SAM, an adaptive policy to employ SAM (ICLR 2023)."""

from typing import Unpack

import jax
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
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients import ascents
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.pieces import GradientLook, Intermittent, Point, Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def aesam(
    rho: Radius = 0.05,
    *,
    total_steps: int | jax.Array,
    lambda_1: Scalar = -1.0,
    lambda_2: Scalar = 1.0,
    delta: Scalar = 0.9,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""AE-SAM: a SAM step if the gradient norm is unusually large, else a plain step.

    .. math::
      \mu_t &= \delta \mu_{t-1} + (1 - \delta) |g_t|^2, \quad
      \sigma_t^2 = \delta \sigma_{t-1}^2 + (1 - \delta) (|g_t|^2 - \mu_t)^2 \\
      &\text{SAM where}\; |g_t|^2 \ge \mu_t + c_t \sigma_t, \qquad
      c_t = \tfrac{t}{T} \lambda_1 + (1 - \tfrac{t}{T}) \lambda_2

    Jiang et al. (ICLR 2023, "An adaptive policy to employ SAM"). It takes 1 + p
    passes of each kind, where p is the fraction of SAM steps, and keeps two numbers.

    Args:
      rho: Radius, or a schedule.
      total_steps: T, optimizer steps of the whole training.
      lambda_1: Threshold at the end, in standard deviations. Low: SAM throughout.
      lambda_2: Threshold at the start, in standard deviations.
      delta: Decay of the statistics, in [0, 1).

    Returns:
      As `sam`.
    """
    _check.whole("total_steps", total_steps)
    for name, value in (("lambda_1", lambda_1), ("lambda_2", lambda_2)):
        _check.number(name, value)
    _check.number("delta", delta, least=0, below=1)
    combination = adaptive(delta, (lambda_1, lambda_2), total_steps)
    row = Row(ascents.gradient(), combination=combination)
    return sharpness_aware("aesam", row, rho, **options)


@pure_form(aesam)
def aesam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    total_steps: int | jax.Array,
    lambda_1: Scalar = -1.0,
    lambda_2: Scalar = 1.0,
    delta: Scalar = 0.9,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns AE-SAM's gradient as a pure function; see `aesam`."""
    ...


def adaptive(
    delta: Scalar, lambdas: tuple[Scalar, Scalar], total_steps: Scalar
) -> Intermittent:
    """Returns SAM's gradient where the squared norm exceeds its running statistics.

    Args:
      delta: Decay of the running mean and variance of the squared norm, in [0, 1).
      lambdas: Numbers of standard deviations in the threshold: at the last step, and
        at the first; linear in between.
      total_steps: Optimizer steps of the training.
    """

    def init(params: Params) -> Memory:
        del params
        return tuple(jnp.zeros((), jnp.float32) for _ in range(3))

    def due(
        point: Point, look: GradientLook, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        mean, variance, unit = memory
        norm = tree.norm(tree.mask(look.estimate.grad, point.masks))
        # The variance is of fourth powers, which leave float32 beyond 1e9. So norms are
        # relative to the first one. All devices must take the same branch, so they
        # share the statistic.
        first = tree.magnitude(point.devices.pool(norm))
        unit = jnp.where(unit > 0, unit, first).astype(jnp.float32)
        relative = norm.astype(jnp.float32) / unit
        square = point.devices.pool(jnp.square(relative))
        # The mean first: the paper's variance is about the mean of this step.
        mean = delta * mean + (1 - delta) * square
        variance = delta * variance + (1 - delta) * jnp.square(square - mean)
        done = point.step / total_steps
        # From lambda_2 down to lambda_1: few SAM steps at first and many at the end,
        # where the minimum is chosen.
        c = done * lambdas[0] + (1 - done) * lambdas[1]
        return square >= mean + c * jnp.sqrt(variance), (mean, variance, unit)

    def reuse(point: Point, look: GradientLook, memory: Memory) -> Grads:
        del point, memory
        return look.estimate.grad

    return Intermittent(init=init, due=due, reuse=reuse)
