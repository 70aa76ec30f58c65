"""LookSAM (arXiv:2203.02714)."""

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Grads,
    Key,
    Masks,
    Memory,
    Params,
    Radius,
    Scalar,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients import ascents, geometries
from zosam_jax.gradients.combinations import orthogonal
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.memory import wide, zeros
from zosam_jax.gradients.pieces import GradientLook, Intermittent, Point, Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def looksam(
    rho: Radius = 0.05,
    *,
    every: int | jax.Array = 5,
    alpha: Scalar = 0.7,
    layerwise: bool = False,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""LookSAM: a SAM step every k steps; its orthogonal part is reused in between.

    .. math::
      g_v = g_p - \langle g_p, \hat g \rangle \hat g \;\text{(every k-th step)}, \qquad
      g_t + \alpha |g_t| \, g_v / |g_v| \;\text{(in between)}

    Liu et al. (arXiv:2203.02714, algorithm 1). k = 1 is SAM. It takes 1 + 1/k passes
    of each kind and keeps g_v, one copy of the parameters.

    Args:
      rho: Radius, or a schedule.
      every: k, the interval of SAM steps, in estimates. The first estimate is one.
      alpha: Norm of the reused part, relative to the norm of the gradient.
      layerwise: Perturb, decompose and reuse leaf by leaf (Look-LayerSAM, same paper).
        The radius of a leaf is rho |w_l| / |w|, as in `sam(layerwise=True)`. The paper
        scales a layer by |w_l| too, as LARS does. The constant is a choice of this
        library and not the paper's: rho is the norm of the whole perturbation, as in
        `sam`. So a rho of the paper has to be tuned again.

    Returns:
      As `sam`.
    """
    _check.whole("every", every)
    _check.number("alpha", alpha, least=0)
    row = Row(
        ascents.gradient(),
        geometries.l2(layerwise),
        combination=reused(every, alpha, layerwise),
    )
    return sharpness_aware("looksam", row, rho, **options)


@pure_form(looksam)
def looksam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    every: int | jax.Array = 5,
    alpha: Scalar = 0.7,
    layerwise: bool = False,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns LookSAM's gradient as a pure function; see `looksam`."""
    ...


def reused(every: Scalar, alpha: Scalar, layerwise: bool) -> Intermittent:
    """Returns SAM's gradient every k steps; reuses its orthogonal part in between.

    Args:
      every: k, the interval of steps with a second pass, in estimates.
      alpha: Norm of the reused part, relative to the norm of the gradient.
      layerwise: Whether to decompose leaf by leaf.
    """

    def init(params: Params) -> Memory:
        return jnp.zeros((), jnp.int32), zeros(params)

    def due(
        point: Point, look: GradientLook, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        del point, look
        count, vertical = memory
        return count % every == 0, (count + 1, vertical)

    def by_leaf(
        function: Callable[..., Grads], masks: Masks | None, *trees: Grads
    ) -> Grads:
        """The function applied to whole trees, or leaf by leaf with `layerwise`."""
        if not layerwise:
            return function(*trees, masks)
        if masks is None:
            # `tree.map` has to pass a mask for each leaf; True means dense.
            masks = jax.tree.map(lambda _: True, trees[0])
        return jax.tree.map(function, *trees, masks)

    def blend(
        point: Point, look: GradientLook, grad: Grads, memory: Memory
    ) -> tuple[Grads, Memory]:
        # Both averaged over the devices before they are decomposed: a projection is not
        # linear in the pair, so the mean of projections is another one.
        clean, grad = wide(look.estimate.grad), point.devices.mean(grad)
        vertical = by_leaf(_vertical, point.masks, wide(grad), clean)
        return grad, (memory[0], vertical)

    def lengthened(clean: Grads, vertical: Grads, masks: Masks | None) -> Grads:
        length = tree.norm(tree.mask(vertical, masks))
        # The orthogonal part changes slowly, but its length follows the gradient. So
        # its direction is reused and its length is that of the present gradient.
        ratio = tree.norm(tree.mask(clean, masks)) / jnp.where(length > 0, length, 1)
        return tree.add_scaled(clean, alpha * ratio, vertical)

    def reuse(point: Point, look: GradientLook, memory: Memory) -> Grads:
        return by_leaf(lengthened, point.masks, look.estimate.grad, memory[1])

    return Intermittent(blend=blend, init=init, due=due, reuse=reuse)


def _vertical(x: Grads, y: Grads, masks: Masks | None) -> Grads:
    """The part of x orthogonal to y; 0 if it is only a rounding error, as at rho = 0.

    The part is scaled up to the norm of the gradient; a rounding error must not be.
    """
    rest = orthogonal(x, y, masks)
    there = tree.norm(tree.mask(rest, masks)) > 1e-5 * tree.norm(tree.mask(x, masks))
    return tree.where(there, rest, zeros(rest))
