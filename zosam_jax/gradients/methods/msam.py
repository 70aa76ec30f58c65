"""MSAM, momentum-SAM (arXiv:2401.12033)."""

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
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.memory import zeros
from zosam_jax.gradients.pieces import Ascent, Look, Point, Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def msam(
    rho: Radius = 0.3,
    *,
    momentum: Scalar = 0.9,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""MSAM: perturbs against the momentum, in the direction of the next step.

    .. math::
      v_t = m \odot (\mu v_{t-1} + g_t), \qquad
      \epsilon_{t+1} = -\rho \, v_t / |v_t|

    Becker et al. ("Momentum-SAM", arXiv:2401.12033). v is a momentum buffer
    separate from the optimizer's, of gradients before clipping or decay. In sparse
    training, m is the mask after the step: v is 0 for a dropped weight and starts at
    the gradient for a grown one, as the momentum of the optimizer does. Inside
    `sparsify(accumulate_steps=k)`, v follows every micro-batch.

    Between steps the weights stay unperturbed. It takes one pass of each kind and keeps
    one copy of the parameters. `value` is the loss at w + eps.

    Args:
      rho: Radius, or a schedule.
      momentum: mu in [0, 1), equal to the momentum of the optimizer behind it.

    Returns:
      As `sam`.
    """
    _check.number("momentum", momentum, least=0, below=1)
    return sharpness_aware("msam", Row(against_momentum(momentum)), rho, **options)


@pure_form(msam)
def msam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.3,
    *,
    momentum: Scalar = 0.9,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns MSAM's gradient as a pure function; see `msam`."""
    ...


def against_momentum(decay: Scalar) -> Ascent[Look]:
    """Returns the ascent along `-v`, with `v_t = mask (decay v_{t-1} + g_t)`."""

    def masked(point: Point, memory: Memory) -> Memory:
        # The masks may have changed after the last step. Masking v now, with the dense
        # gradient in it, is what the optimizer did: it cleared the moments of dropped
        # and grown weights, and then added the gradient on the new masks.
        return tree.mask(memory, point.masks)

    def look(point: Point, memory: Memory) -> Look:
        # SGD steps along -v, so the perturbation is ahead on its path. Before the first
        # step v is 0, and the gradient is taken at w.
        v = masked(point, memory)
        return Look(jax.tree.map(jnp.negative, v), memory=memory)

    def learn(point: Point, memory: Memory, grad: Grads) -> Memory:
        return tree.mix(decay, masked(point, memory), 1.0, grad)

    return Ascent(look, Look, zeros, learn)
