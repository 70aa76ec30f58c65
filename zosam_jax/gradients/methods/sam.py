"""SAM, sharpness-aware minimization (arXiv:2010.01412)."""

from typing import Unpack

from zosam_jax._options import passes_options_to
from zosam_jax._types import Estimate, Key, Params, Radius, SharedOptions, ValueFn
from zosam_jax.gradients import ascents, geometries
from zosam_jax.gradients.constructor import (
    PureOptions,
    pure_form,
    sharpness_aware,
    static_count,
)
from zosam_jax.gradients.pieces import Row
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def sam(
    rho: Radius = 0.05,
    *,
    steps: int = 1,
    layerwise: bool = False,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""SAM: the gradient at the point of highest loss nearby, to first order.

    .. math::
      \epsilon = \rho \, \nabla L(w) / |\nabla L(w)|, \qquad g = \nabla L(w + \epsilon)

    Foret et al., "Sharpness-aware minimization" (arXiv:2010.01412, algorithm 1). Two
    forward and two backward passes; `value` is L(w), exactly. Put weight decay into
    the optimizer behind it; to let it affect the perturbation too, as in the paper's
    code, put it into `value_fn`.

    Args:
      rho: Radius of the perturbation, >= 0, or a schedule of it over optimizer steps.
      steps: Ascent steps. Each moves by `rho / steps` along the gradient at the current
        point, which takes a backward pass.
      layerwise: Perturb every leaf l in proportion to its weights, by
        `rho (|w_l| / |w|) g_l / |g_l|`. The radius is rho at most.

    Returns:
      An Optax transformation, to chain in front of an optimizer or to give `sparsify`
      as `gradient=`: `tx.update(None, state, params, value_fn=...)`. Its attribute
      `gradient` is the same method as a pure function, like `sam_gradient`.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(zs.sam(rho=0.5), optax.sgd(0.5))
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(None, tx.init(w), w, value_fn=lambda w: w @ w)
      >>> print(updates)
      [-3.3 -4.4]
    """
    static_count("steps", steps)
    row = Row(ascents.gradient(steps), geometries.l2(layerwise))
    return sharpness_aware("sam", row, rho, **options)


@pure_form(sam)
def sam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    steps: int = 1,
    layerwise: bool = False,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns SAM's gradient as a pure function; see `sam`.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> w = jnp.array([3.0, 4.0])
      >>> print(zs.sam_gradient(lambda w: w @ w, w, None, 0.5).grad)
      [6.6 8.8]
    """
    ...
