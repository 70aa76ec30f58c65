"""SAM and the methods that differ from it in direction, geometry or combination."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import optax

from zosam_jax import _check
from zosam_jax._types import Decoupled, Radius, Scalar, Schedule
from zosam_jax.gradients import ascents, combinations, geometries
from zosam_jax.gradients.composition import Row
from zosam_jax.gradients.shared_options import Options, fixed, method
from zosam_jax.gradients.sharpness_aware import pure, transform
from zosam_jax.gradients.transformation import GradientEstimator


@method
def sam(
    rho: Radius = 0.05,
    *,
    steps: int = 1,
    layerwise: bool = False,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""SAM: the gradient at the highest point nearby, to first order.

    .. math::
      \epsilon = \rho \, \nabla L(w) / |\nabla L(w)|, \qquad g = \nabla L(w + \epsilon)

    Foret et al., "Sharpness-aware minimization" (arXiv:2010.01412, algorithm 1). Two
    forward and two backward passes; `value` is L(w), exactly. Weight decay belongs into
    the optimizer behind it; where it should tilt the perturbation, as in the paper's
    code, put it into `value_fn`.

    Args:
      rho: Radius of the perturbation, >= 0, or a schedule of it over optimizer steps.
      steps: Ascent steps, each of `rho / steps` along the gradient where it stands, and
        each with a backward pass of its own.
      layerwise: Perturb every leaf l in proportion to its weights, by
        `rho (|w_l| / |w|) g_l / |g_l|`. The radius is rho at most.

    Returns:
      An Optax transformation, to chain in front of an optimizer or to give `sparsify`
      as `gradient=`: `tx.update(None, state, params, value_fn=...)`. Its attribute
      `gradient`, and `sam_gradient`, are the same as a pure function.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(zs.sam(rho=0.5), optax.sgd(0.5))
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(None, tx.init(w), w, value_fn=lambda w: w @ w)
      >>> print(updates)
      [-3.3 -4.4]
    """
    fixed("steps", steps)
    row = Row(ascents.gradient(), geometries.l2(layerwise), steps=steps)
    return transform("sam", row, rho, options)


@method
def asam(
    rho: Radius = 0.5,
    *,
    eta: Scalar = 0.01,
    unscaled: str | Sequence[str] | None = None,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""ASAM: SAM in a geometry that does not see how the weights are scaled.

    .. math::
      \epsilon = \rho \, T^2 \nabla L / |T \nabla L|, \qquad T = |w| + \eta

    Kwon et al. (arXiv:2102.11600), with the element-wise operator. As in their code T
    is 1 for biases. With `eta=0, unscaled=()` it is the form of other
    public implementations, which wants another rho.

    Args:
      rho: Radius in the scaled geometry, about ten times SAM's, or a schedule.
      eta: Keeps weights near 0 from being left alone. >= 0.
      unscaled: Patterns of the leaves with T = 1. Default: paths that end in "bias".

    Returns:
      As `sam`.
    """
    _check.number("eta", eta, least=0)
    row = Row(ascents.gradient(), geometries.scaled(eta, unscaled))
    return transform("asam", row, rho, options)


@method
def gsam(
    rho: Radius = 0.05,
    *,
    alpha: Scalar = 0.4,
    minimize_perturbed: bool = True,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""GSAM: lowers the surrogate gap L(w + eps) - L(w) beside the perturbed loss.

    .. math::
      g = g_p - \alpha \, (\nabla L - \langle \nabla L, \hat g_p \rangle \hat g_p),
      \qquad g_p = \nabla L(w + \epsilon), \; \hat g_p = g_p / |g_p|

    Zhuang et al. (arXiv:2203.08065, algorithm 1). alpha = 0 is SAM. The paper ties rho
    to the learning rate: `rho=zs.tied_radius(learning_rate, ...)`.

    Args:
      rho: Radius, or a schedule.
      alpha: Weight of the orthogonal part, >= 0; the papers use 0.4 and 0.6.
      minimize_perturbed: False keeps the gradient at w instead and adds the part of
        g_p that is orthogonal to it, as the authors' code offers.

    Returns:
      As `sam`.
    """
    _check.number("alpha", alpha, least=0)
    combination = combinations.surrogate_gap(alpha, minimize_perturbed)
    row = Row(ascents.gradient(), combination=combination, direction_only=False)
    return transform("gsam", row, rho, options)


def tied_radius(
    learning_rate: Schedule,
    rho_max: float,
    rho_min: float,
    lr_max: float,
    lr_min: float = 0.0,
) -> Schedule:
    r"""GSAM's radius, tied to the learning rate.

    .. math::
      \rho_t = \rho_{\min} + (\rho_{\max} - \rho_{\min})
               \frac{\eta_t - \eta_{\min}}{\eta_{\max} - \eta_{\min}}

    Args:
      learning_rate: The learning rate's schedule, eta.
      rho_max: Radius at `lr_max`.
      rho_min: Radius at `lr_min`.
      lr_max: Largest learning rate.
      lr_min: Smallest learning rate.

    Returns:
      A schedule for `rho=` of any method (arXiv:2203.08065).

    Example:
      >>> import optax, zosam_jax as zs
      >>> rate = optax.linear_schedule(0.1, 0.0, 100)
      >>> radius = zs.tied_radius(rate, rho_max=0.6, rho_min=0.1, lr_max=0.1)
      >>> print(f"{float(radius(50)):.2f}")
      0.35
    """
    if not callable(learning_rate):
        raise TypeError(
            "learning_rate must be a schedule, as optax.cosine_decay_schedule(0.1, n)."
        )
    if not lr_max > lr_min:
        raise ValueError(f"lr_max={lr_max} must be larger than lr_min={lr_min}.")
    if not rho_max >= rho_min:
        raise ValueError(f"rho_max={rho_max} must not be less than rho_min={rho_min}.")
    slope = (rho_max - rho_min) / (lr_max - lr_min)
    return lambda step: rho_min + slope * (learning_rate(step) - lr_min)


@method
def fsam(
    rho: Radius = 0.05,
    *,
    sigma: Scalar = 1.0,
    decay: Scalar = 0.9,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""F-SAM (friendly): perturbs along the noise of the batch, not the full gradient.

    .. math::
      d_t = g_t - \sigma m_{t-1}, \quad m_t = \lambda m_{t-1} + (1 - \lambda) g_t,
      \quad \epsilon = \rho \, d_t / |d_t|

    with :math:`m_1 = d_1 = g_1`. Li et al. (arXiv:2403.12350), with the mean of the
    last step, as in the authors' code. sigma = 0 is SAM. Remembers m: one copy of the
    parameters.

    Args:
      rho: Radius, or a schedule.
      sigma: Share of the mean gradient that is taken out.
      decay: lambda in [0, 1).

    Returns:
      As `sam`.
    """
    _check.number("decay", decay, least=0, below=1)
    _check.number("sigma", sigma)
    return transform("fsam", Row(ascents.friendly(sigma, decay)), rho, options)


@method
def vasso(
    rho: Radius = 0.05,
    *,
    theta: Scalar = 0.9,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""VaSSO: SAM along a running mean of the gradients, which is less noisy.

    .. math::
      d_t = (1 - \theta) d_{t-1} + \theta g_t, \quad \epsilon = \rho \, d_t / |d_t|

    Li and Giannakis (arXiv:2309.15639). theta = 1 is SAM. Remembers d: one
    copy of the parameters.

    Args:
      rho: Radius, or a schedule.
      theta: Weight of the present gradient, in (0, 1].

    Returns:
      As `sam`.
    """
    _check.number("theta", theta, above=0, most=1)
    return transform("vasso", Row(ascents.averaged(theta)), rho, options)


@method
def wsam(
    rho: Radius = 0.05,
    *,
    gamma: Scalar = 0.9,
    decouple: bool = False,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""WSAM: sharpness as a regulariser of its own weight.

    .. math::
      g = (1 - a) \nabla L(w) + a \nabla L(w + \epsilon), \qquad a = \gamma/(1 - \gamma)

    Yue et al. (arXiv:2305.15817, algorithm 1). gamma = 1/2 is SAM, 0 plain training.

    Args:
      rho: Radius, or a schedule.
      gamma: Weight of sharpness in [0, 1).
      decouple: Give the optimizer the gradient at w alone, and step along
        `a (g_p - g)` beside it, with the plain learning rate (the paper's WSAM): the
        optimizer must be `zs.decoupled(optimizer, learning_rate)`.

    Returns:
      As `sam`. With `decouple`, the gradient is a `Decoupled`.
    """
    _check.number("gamma", gamma, least=0, below=1)
    combination = combinations.weighted(gamma, decouple)
    row = Row(ascents.gradient(), combination=combination, direction_only=False)
    return transform("wsam", row, rho, options, decouple)


def decoupled(
    optimizer: optax.GradientTransformation,
    learning_rate: Scalar | Schedule,
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer that steps along WSAM's sharpness beside its own update.

    .. math::
      w \leftarrow w + \text{update}(\nabla L) - \eta \, a \, (g_p - \nabla L)

    Behind `zs.wsam(..., decouple=True)` in a chain, or as the optimizer of `sparsify`
    with that `gradient=` (arXiv:2305.15817, algorithm 1).

    Args:
      optimizer: Steps along the gradient at w.
      learning_rate: eta, or a schedule of it.

    Returns:
      A transformation whose incoming updates are a `Decoupled`.

    Raises:
      TypeError: On update, if they are not.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(
      ...     zs.wsam(0.5, gamma=0.5, decouple=True), zs.decoupled(optax.sgd(0.5), 0.5)
      ... )
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(None, tx.init(w), w, value_fn=lambda w: w @ w)
      >>> print(updates)
      [-3.3 -4.4]
    """
    optimizer = optax.with_extra_args_support(optimizer)
    rate = optax.scale_by_learning_rate(learning_rate)

    def init(params: Any) -> tuple[Any, Any]:
        return optimizer.init(params), rate.init(params)

    def update(
        updates: Any, state: Any, params: Any | None = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if not isinstance(updates, Decoupled):
            raise TypeError(
                "zs.decoupled needs the two parts of zs.wsam(..., decouple=True): put "
                "it right behind that in the chain, or say gradient= of sparsify."
            )
        main, first = optimizer.update(updates.grad, state[0], params, **extra_args)
        beside, second = rate.update(updates.sharpness, state[1])
        total = jax.tree.map(lambda u, v: (u + v).astype(u.dtype), main, beside)
        return total, (first, second)

    return optax.GradientTransformationExtraArgs(init, update)


sam_gradient = pure(sam)
asam_gradient = pure(asam)
gsam_gradient = pure(gsam)
fsam_gradient = pure(fsam)
vasso_gradient = pure(vasso)
wsam_gradient = pure(wsam)
