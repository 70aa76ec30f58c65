"""Methods with one backward pass: the direction is remembered, or it is noise."""

from typing import Unpack

from zosam_jax import _check
from zosam_jax._types import Radius, Scalar
from zosam_jax.gradients import ascents, combinations, geometries
from zosam_jax.gradients.composition import Row
from zosam_jax.gradients.shared_options import Options, method
from zosam_jax.gradients.sharpness_aware import pure, transform
from zosam_jax.gradients.transformation import GradientEstimator


@method
def s2sam(rho: Radius = 0.05, **options: Unpack[Options]) -> GradientEstimator:
    r"""S2-SAM: perturbs along the gradient of the step before.

    .. math::
      \epsilon_t = \rho \, g_{t-1} / |g_{t-1}|, \qquad g_t = \nabla L(w + \epsilon_t)

    Ji et al. ("A single-step, sharpness-aware minimization is all you need to achieve
    efficient and accurate sparse training", NeurIPS 2024). The first step is not
    perturbed. One pass; remembers a copy of the parameters. `value` is the loss at
    w + eps.

    Args:
      rho: Radius, or a schedule.

    Returns:
      As `sam`.
    """
    row = Row(ascents.previous(), aux_from="descent", looks=False)
    return transform("s2sam", row, rho, options)


@method
def msam(
    rho: Radius = 0.3,
    *,
    momentum: Scalar = 0.9,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""MSAM: perturbs against the momentum, towards where the optimizer is going.

    .. math::
      v_t = \mu v_{t-1} + g_t, \qquad \epsilon_{t+1} = -\rho \, v_t / |v_t|

    Becker et al. ("Momentum-SAM", arXiv:2401.12033). v is kept here, of the gradients
    before any clipping or decay; the weights stay unperturbed between the steps. One
    pass; remembers a copy of the parameters. `value` is the loss at w + eps.

    Args:
      rho: Radius, or a schedule.
      momentum: mu in [0, 1); that of the optimizer behind it.

    Returns:
      As `sam`.
    """
    _check.number("momentum", momentum, least=0, below=1)
    row = Row(ascents.momentum(momentum), aux_from="descent", looks=False)
    return transform("msam", row, rho, options)


@method
def rwp(rho: Radius = 0.01, **options: Unpack[Options]) -> GradientEstimator:
    r"""RWP: random weight perturbation, scaled by the norm of every filter.

    .. math::
      \epsilon_f \sim N(0, (\rho |w_f|)^2 I), \qquad g = \nabla L(w + \epsilon)

    Li et al. (arXiv:2211.13489). A filter is what makes one output: the index on the
    last axis of a kernel; a leaf with fewer than two axes is one. One pass, nothing
    remembered. The control for every method that claims to know the way up. `value` is
    the loss at w + eps.

    Args:
      rho: gamma of the paper, noise relative to the filter's norm, or a schedule.

    Returns:
      As `sam`.
    """
    row = Row(ascents.noise(), geometries.as_it_is, aux_from="descent", looks=False)
    return transform("rwp", row, rho, options)


@method
def mrwp(
    rho: Radius = 0.01,
    *,
    alpha: Scalar = 0.5,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""mRWP: mixes the gradients with and without random perturbation.

    .. math::
      g = (1 - \alpha) \nabla L_1(w) + \alpha \nabla L_2(w + \epsilon)

    with `rwp`'s noise. Li et al. (arXiv:2211.13489) take two batches: give
    the first as `ascent_value_fn`. Two passes of each kind, neither of which waits for
    the other.

    Args:
      rho: Noise relative to the filter's norm, or a schedule.
      alpha: Share of the perturbed gradient, in [0, 1].

    Returns:
      As `sam`.
    """
    _check.number("alpha", alpha, least=0, most=1)
    row = Row(
        ascents.noise(clean=True),
        geometries.as_it_is,
        combination=combinations.mixed(alpha),
    )
    return transform("mrwp", row, rho, options)


@method
def arwp(
    rho: Radius = 0.01,
    *,
    eta: Scalar = 1.0,
    beta: Scalar = 0.9,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""ARWP: random weight perturbation, less where gradients have been large.

    .. math::
      \epsilon_f \sim N\big(0, (\rho |w_f|)^2 / (1 + \eta F_f) \, I\big), \qquad
      F_f \leftarrow \beta F_f + |g_f|^2

    Li et al. (arXiv:2404.00357). One pass; remembers one number a filter.

    Args:
      rho: Noise relative to the filter's norm, or a schedule.
      eta: Weight of the accumulated squares, >= 0. 0 is `rwp`.
      beta: Their decay, in [0, 1).

    Returns:
      As `sam`.
    """
    _check.number("eta", eta, least=0)
    _check.number("beta", beta, least=0, below=1)
    ascent = ascents.adaptive_noise(eta, beta)
    row = Row(ascent, geometries.as_it_is, aux_from="descent", looks=False)
    return transform("arwp", row, rho, options)


s2sam_gradient = pure(s2sam)
msam_gradient = pure(msam)
rwp_gradient = pure(rwp)
mrwp_gradient = pure(mrwp)
arwp_gradient = pure(arwp)
