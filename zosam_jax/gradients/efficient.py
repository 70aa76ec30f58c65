"""Methods that save a part of SAM's price, or of its perturbation."""

from typing import Unpack

import jax

from zosam_jax import _check
from zosam_jax._types import Radius, Scalar
from zosam_jax.gradients import ascents, combinations, descents, geometries, ssam_masks
from zosam_jax.gradients.composition import Row
from zosam_jax.gradients.shared_options import Options, fixed, method
from zosam_jax.gradients.sharpness_aware import pure, transform
from zosam_jax.gradients.transformation import GradientEstimator


@method
def esam(
    rho: Radius = 0.05,
    *,
    beta: Scalar = 0.6,
    gamma: float = 0.5,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""ESAM: perturbs part of the weights, descends on the sharpest part of the batch.

    .. math::
      \epsilon = \frac{\rho}{\beta} \, b \odot \frac{\nabla L}{|\nabla L|},
      \; b_i \sim \text{Bernoulli}(\beta), \qquad
      g = \nabla \frac{1}{|S|} \sum_{n \in S} \ell_n(w + \epsilon)

    with S the share gamma of the batch whose loss the perturbation raised most. Du et
    al. (arXiv:2110.03141). beta = gamma = 1 is SAM. The choice of S is not free: the
    step costs 2 + gamma forward and 1 + gamma backward passes, and under `jit` the
    frozen weights save nothing.

    Args:
      rho: Radius, or a schedule.
      beta: Share of the weights that are perturbed, in (0, 1].
      gamma: Share of the examples in the second pass, in (0, 1]. Below 1, `value_fn` is
        called `value_fn(params, examples=indices)` and returns the losses of those
        examples, [n] (all of them with `examples=None`).

    Returns:
      As `sam`.
    """
    _check.number("beta", beta, above=0, most=1)
    if _check.is_traced(gamma) or isinstance(gamma, jax.Array):
        raise ValueError(
            "gamma sets a shape and must be known before tracing; inside "
            'optax.inject_hyperparams, name it in static_args=("gamma",).'
        )
    _check.number("gamma", gamma, above=0, most=1)
    selects = gamma < 1
    ascent = ascents.gradient_of_examples() if selects else ascents.gradient()
    if isinstance(beta, jax.Array) or beta < 1:
        ascent = ascents.partly(beta, ascent)
    descent = descents.backprop
    if selects:
        descent = descents.backprop_on_sharpest(gamma)
    row = Row(ascent, descent=descent, by_example=selects, direction_only=not selects)
    return transform("esam", row, rho, options)


@method
def looksam(
    rho: Radius = 0.05,
    *,
    every: int | jax.Array = 5,
    alpha: Scalar = 0.7,
    layerwise: bool = False,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""LookSAM: SAM every k-th step, its orthogonal part used again in between.

    .. math::
      g_v = g_p - \langle g_p, \hat g \rangle \hat g \;\text{(every k-th step)}, \qquad
      g_t + \alpha |g_t| \, g_v / |g_v| \;\text{(in between)}

    Liu et al. (arXiv:2203.02714, algorithm 1). k = 1 is SAM. 1 + 1/k passes of each
    kind; remembers g_v: one copy of the parameters.

    Args:
      rho: Radius, or a schedule.
      every: k, estimates from one SAM step to the next; the first is one.
      alpha: Length of the reused part, over that of the gradient.
      layerwise: Perturb, decompose and reuse leaf by leaf, the radius in proportion to
        |w_l| as in `sam(layerwise=True)`; after Look-LayerSAM of the same paper.

    Returns:
      As `sam`.
    """
    _check.whole("every", every)
    _check.number("alpha", alpha, least=0)
    row = Row(
        ascents.gradient(),
        geometries.l2(layerwise),
        combination=combinations.reused(every, alpha, layerwise),
        direction_only=False,
    )
    return transform("looksam", row, rho, options)


@method
def aesam(
    rho: Radius = 0.05,
    *,
    total_steps: int | jax.Array,
    lambda_1: Scalar = -1.0,
    lambda_2: Scalar = 1.0,
    delta: Scalar = 0.9,
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""AE-SAM: SAM where the gradient is large for its time, plain steps elsewhere.

    .. math::
      \mu_t &= \delta \mu_{t-1} + (1 - \delta) |g_t|^2, \quad
      \sigma_t^2 = \delta \sigma_{t-1}^2 + (1 - \delta) (|g_t|^2 - \mu_t)^2 \\
      &\text{SAM where}\; |g_t|^2 \ge \mu_t + c_t \sigma_t, \qquad
      c_t = \tfrac{t}{T} \lambda_1 + (1 - \tfrac{t}{T}) \lambda_2

    Jiang et al. (ICLR 2023, "An adaptive policy to employ SAM"). 1 + p passes of each
    kind where a share p of the steps is SAM's; remembers two numbers.

    Args:
      rho: Radius, or a schedule.
      total_steps: T, optimizer steps of the whole training.
      lambda_1: Threshold at the end, in standard deviations. Low: SAM throughout.
      lambda_2: Threshold at the start.
      delta: Decay of the statistics, in [0, 1).

    Returns:
      As `sam`.
    """
    _check.whole("total_steps", total_steps)
    _check.number("delta", delta, least=0, below=1)
    combination = combinations.adaptive(delta, (lambda_1, lambda_2), total_steps)
    row = Row(ascents.gradient(), combination=combination, direction_only=False)
    return transform("aesam", row, rho, options)


@method
def ssam(
    rho: Radius = 0.05,
    *,
    sparsity: Scalar = 0.5,
    mask: str = "fisher",
    interval: int | jax.Array = 100,
    num_examples: int = 16,
    total_steps: int | jax.Array | None = None,
    drop_fraction: Scalar = 0.5,
    grow: str = "random",
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""SSAM: SAM that perturbs only the coordinates which matter.

    .. math::
      \epsilon = \rho \, m \odot \nabla L / |\nabla L|

    with m a mask of its own beside that of sparse training, whose weights all train.
    Mi et al. (arXiv:2210.05177). SSAM-F ranks by the diagonal of the Fisher matrix, the
    sum of the squared gradients of N examples; SSAM-D starts at random, drops what has
    the smallest gradient and grows others, a share that decays by a cosine. The norm is
    that of the whole gradient, as in the authors' code; `norm_over="mask"` here counts
    the weights that sparse training left. sparsity = 0 is SAM. Remembers m: one bit a
    weight.

    Args:
      rho: Radius, or a schedule.
      sparsity: Share of the live weights that are not perturbed, in [0, 1).
      mask: "fisher" or "dynamic".
      interval: Estimates from one change of m to the next; the first is one.
      num_examples: N, from the front of the batch; each costs a backward pass. With
        "fisher", `value_fn` is called `value_fn(params, examples=indices)` and returns
        the losses of those examples, [n] (all of them with `examples=None`).
      total_steps: Of the whole training; "dynamic" needs it.
      drop_fraction: Share of m that the first change of "dynamic" replaces.
      grow: What "dynamic" grows by: "random" or "gradient".

    Returns:
      As `sam`.
    """
    _check.number("sparsity", sparsity, least=0, below=1)
    _check.one_of("mask", mask, ("fisher", "dynamic"))
    _check.whole("interval", interval)
    fixed("num_examples", num_examples)
    _check.number("drop_fraction", drop_fraction, least=0, most=1)
    _check.one_of("grow", grow, ("random", "gradient"))
    if mask == "fisher":
        change = ssam_masks.by_fisher(num_examples)
    else:
        if total_steps is None:
            raise ValueError('zs.ssam(mask="dynamic") needs total_steps=.')
        _check.whole("total_steps", total_steps)
        change = ssam_masks.by_replacement(total_steps, drop_fraction, grow)
    ascent = ssam_masks.masked_gradient(interval, sparsity, change)
    row = Row(ascent, by_example=mask == "fisher")
    return transform("ssam", row, rho, options)


esam_gradient = pure(esam)
looksam_gradient = pure(looksam)
aesam_gradient = pure(aesam)
ssam_gradient = pure(ssam)
