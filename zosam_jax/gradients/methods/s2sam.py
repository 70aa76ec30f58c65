"""S2-SAM, single-step SAM (NeurIPS 2024)."""

from typing import Unpack

from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Grads,
    Key,
    Memory,
    Params,
    Radius,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.memory import wide, zeros
from zosam_jax.gradients.pieces import Ascent, Look, Point, Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def s2sam(rho: Radius = 0.05, **options: Unpack[SharedOptions]) -> GradientEstimator:
    r"""S2-SAM: perturbs along the gradient of the previous step.

    .. math::
      \epsilon_t = \rho \, g_{t-1} / |g_{t-1}|, \qquad g_t = \nabla L(w + \epsilon_t)

    Ji et al. ("A single-step, sharpness-aware minimization is all you need to achieve
    efficient and accurate sparse training", NeurIPS 2024). The first step is not
    perturbed. It takes one pass of each kind and keeps one copy of the parameters.
    `value` is the loss at w + eps.

    Args:
      rho: Radius, or a schedule.

    Returns:
      As `sam`.
    """
    return sharpness_aware("s2sam", Row(previous()), rho, **options)


@pure_form(s2sam)
def s2sam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns S2-SAM's gradient as a pure function; see `s2sam`."""
    ...


def previous() -> Ascent[Look]:
    """Returns the ascent along the gradient that the previous step returned."""

    def look(point: Point, memory: Memory) -> Look:
        del point
        return Look(memory, memory=memory)

    def learn(point: Point, memory: Memory, grad: Grads) -> Memory:
        del point, memory
        return wide(grad)

    return Ascent(look, Look, zeros, learn)
