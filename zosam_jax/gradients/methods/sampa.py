"""SAMPa, SAM parallelized (arXiv:2410.10683)."""

from typing import Unpack, cast

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
from zosam_jax.gradients import combinations
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.memory import wide, zeros
from zosam_jax.gradients.pieces import (
    Ascent,
    GradientLook,
    Point,
    Row,
    exact_gradient,
)
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def sampa(
    rho: Radius = 0.1,
    *,
    learning_rate: Radius,
    weight: Scalar = 0.2,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""SAMPa: SAM along the gradient at a guess of the weights, made a step before.

    .. math::
      \epsilon_t = \rho \, \nabla L(y_t) / |\nabla L(y_t)|, \qquad
      y_{t+1} = w_t - \eta_t \nabla L(y_t), \qquad
      g_t = (1 - \lambda) \nabla L(w_t + \epsilon_t) + \lambda \nabla L(y_{t+1})

    with :math:`y_0 = w_0`, and no perturbation in the first step. Xie et al.
    (arXiv:2410.10683). Both gradients of a step are at points that the previous step
    made known, so that neither waits for the other. The authors compute them on two
    devices. Here every device computes both, one after another: several devices share
    the batch of both, which takes as long where half a batch fills a device. It takes
    two passes of each kind and keeps one copy of the parameters.

    The authors take :math:`\nabla L(y_{t+1})` on the next batch, so that each
    perturbation is of the batch that it perturbs: give the loss on that batch as
    `ascent_value_fn`. With one batch for both, as in `zosam train`, the perturbation
    comes from the batch before. :math:`y_{t+1}` is one step of plain SGD, as in the
    paper; their code adds momentum and weight decay to it. `value` is the loss at y.

    Args:
      rho: Radius, or a schedule.
      learning_rate: eta, the learning rate of the optimizer behind it, or its schedule
        over optimizer steps.
      weight: lambda in [0, 1], the weight of the gradient at y.

    Returns:
      As `sam`.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> made = zs.sampa(0.5, learning_rate=0.1)
      >>> loss, w = lambda w: w @ w, jnp.array([3.0, 4.0])
      >>> first = made.gradient(loss, w)
      >>> print(made.gradient(loss, w, memory=first.memory).grad.round(2))
      [6.24 8.32]
    """
    _check.number("weight", weight, least=0, most=1)
    if not callable(learning_rate):
        _check.number("learning_rate", learning_rate, least=0)
    row = Row(
        ahead(learning_rate),
        combination=combinations.mixed(1 - weight, same_loss=False),
    )
    return sharpness_aware("sampa", row, rho, **options)


@pure_form(sampa)
def sampa_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.1,
    *,
    learning_rate: Radius,
    weight: Scalar = 0.2,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns SAMPa's gradient as a pure function; see `sampa`."""
    ...


def ahead(learning_rate: Radius) -> Ascent[GradientLook]:
    """Returns the ascent along the last gradient at y, with the next one beside it."""

    def look(point: Point, memory: Memory) -> GradientLook:
        rate = learning_rate
        if callable(rate):
            rate = cast("Scalar", rate(point.step))
        y = tree.add_scaled(point.params, -rate, tree.mask(memory, point.masks))
        there = exact_gradient(point.losses.ascent, y)
        return GradientLook(memory, there, memory=wide(there.grad))

    return Ascent(look, GradientLook, zeros)
