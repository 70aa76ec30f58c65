"""ASAM, adaptive SAM (arXiv:2102.11600)."""

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Key,
    Masks,
    Params,
    Radius,
    Scalar,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients import ascents
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.pieces import Geometry, Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def asam(
    rho: Radius = 0.5,
    *,
    eta: Scalar = 0.01,
    unscaled: str | Sequence[str] | None = None,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""ASAM: SAM in a geometry that is invariant to the scale of the weights.

    .. math::
      \epsilon = \rho \, T^2 \nabla L / |T \nabla L|, \qquad T = |w| + \eta

    Kwon et al. (arXiv:2102.11600), with the element-wise operator. In their code
    :math:`T = |w| + \eta` on parameters with "weight" in their names, the scales of
    norms and embeddings included, and T = 1 on all others: biases, and class tokens and
    position embeddings. Names differ in JAX. So T is 1 for biases alone by default, and
    `unscaled=("*bias", "*token", "*position*")` adds the others of a transformer.
    `eta=0, unscaled=()` gives the form of other public implementations, which needs a
    different rho.

    Args:
      rho: Radius in the scaled geometry, about ten times SAM's, or a schedule.
      eta: Added to |w|, so that weights near 0 are perturbed too. >= 0.
      unscaled: Patterns of the leaves with T = 1. Default: paths that end in "bias".

    Returns:
      As `sam`.
    """
    _check.number("eta", eta, least=0)
    row = Row(ascents.gradient(), scaled(eta, unscaled))
    return sharpness_aware("asam", row, rho, **options)


@pure_form(asam)
def asam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.5,
    *,
    eta: Scalar = 0.01,
    unscaled: str | Sequence[str] | None = None,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns ASAM's gradient as a pure function; see `asam`."""
    ...


def scaled(eta: Scalar, unscaled: str | Sequence[str] | None) -> Geometry:
    """Returns `T^2 d / |T d|`, `T = |w| + eta`, or 1 on `unscaled` (None: biases)."""

    def unit(
        direction: Params, params: Params, support: Masks | None
    ) -> tuple[Params, jax.Array]:
        del support
        paths = tree.paths(params)
        left_out = {path for path in paths if path.endswith("bias")}
        if unscaled is not None:
            left_out = tree.matching("unscaled", unscaled, paths)
        scales = jax.tree.unflatten(
            jax.tree.structure(params),
            [
                1.0 if path in left_out else jnp.abs(w.astype(jnp.float32)) + eta
                for path, w in zip(paths, jax.tree.leaves(params), strict=True)
            ],
        )
        # The loss is maximal over |eps / T| = rho at eps = rho T^2 d / |T d|. T d is
        # normalised first and scaled by T once more.
        once = jax.tree.map(lambda t, d: t * d.astype(jnp.float32), scales, direction)
        unit, norm = tree.normalize(once)
        return jax.tree.map(lambda t, x: t * x, scales, unit), norm

    return Geometry(unit)
