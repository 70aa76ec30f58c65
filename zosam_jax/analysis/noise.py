"""Noise of gradients: over batches, and of zeroth-order estimates."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Grads, Key, Masks, OptState, Params, PyTree, Step
from zosam_jax.analysis.objective import (
    BatchLoss,
    Objective,
    batch_loss,
    restricted,
)
from zosam_jax.estimators import difference_step, rge
from zosam_jax.gradients.methods.backprop import backprop
from zosam_jax.gradients.transformation import GradientEstimator


class GradientNoise(NamedTuple):
    """How gradients of batches differ at the same parameters.

    Attributes:
      variance: Variance over batches, summed over live weights: tr C with the
        covariance C of a batch's gradient.
      signal: |E g|^2, the squared norm of the expected gradient, without the bias that
        the variance adds. It can be negative where the noise hides it.
      ratio: signal / variance, the signal-to-noise ratio of a batch.
      successive_cosine: Mean cosine between the gradients of successive batches.
      cosine: Mean cosine to the exact gradient of the mean loss.
      norm: Mean norm of a batch's gradient.
      exact_norm: Norm of the exact gradient of the mean loss.
      batches: Number of batches.
    """

    variance: float
    signal: float
    ratio: float
    successive_cosine: float
    cosine: float
    norm: float
    exact_norm: float
    batches: int


class ZerothOrderError(NamedTuple):
    """The error of a zeroth-order estimate, with what theory expects.

    Attributes:
      num_directions: m.
      delta: Step of the finite difference.
      dimension: Number of live weights, d.
      bias: |E g^ - g| / |g|, without the bias that sampling adds; 0 where it is below
        the sampling error.
      variance: E|g^ - E g^|^2 / |g|^2.
      cosine: Mean cosine of g^ and the exact gradient g.
      cosine_error: Its standard error.
      expected_variance: (d + 1) / m, for exact slopes along normal directions.
      expected_cosine: See `expected_cosine`.
    """

    num_directions: int
    delta: float
    dimension: int
    bias: float
    variance: float
    cosine: float
    cosine_error: float
    expected_variance: float
    expected_cosine: float


class _Moments:
    """Running mean and sum of squared deviations of vectors (Welford)."""

    def __init__(self, size: int):
        self.count, self.mean, self.squares = 0, np.zeros(size), 0.0

    def add(self, vector: np.ndarray) -> None:
        self.count += 1
        step = vector - self.mean
        self.mean = self.mean + step / self.count
        self.squares += float(np.vdot(step, vector - self.mean))

    @property
    def variance(self) -> float:
        """The unbiased variance, summed over coordinates."""
        return self.squares / (self.count - 1)

    def excess(self, center: np.ndarray | float = 0.0) -> float:
        """|E x - center|^2, without what the sampling of the mean adds to it."""
        rest = self.mean - center
        return float(np.vdot(rest, rest)) - self.variance / self.count


def gradient_noise(
    value_fn: BatchLoss,
    params: Params,
    batches: Iterable[PyTree],
    *,
    estimator: GradientEstimator | None = None,
    step: int = 0,
    masks: Masks | None = None,
) -> GradientNoise:
    r"""Returns how the gradients of batches differ, for any gradient of the library.

    .. math::
      \mathrm{tr}\,C = \frac{1}{B-1} \sum_b |g_b - \bar g|^2, \qquad
      |\mathbb{E} g|^2 \approx |\bar g|^2 - \frac{\mathrm{tr}\,C}{B}, \qquad
      \text{ratio} = \frac{|\mathbb{E} g|^2}{\mathrm{tr}\,C}

    The parameters stay where they are. Batch size / ratio is the simple noise scale of
    McCandlish et al. (2018, arXiv:1812.06162). The estimator goes from batch to batch
    with its memory and its step count, as in training.

    Args:
      value_fn: `(params, batch) -> loss`, a scalar. An estimator with `by_example`
        also asks for the losses of single examples, `examples=indices`, or None: all.
      params: Pytree of floating point arrays, w.
      batches: At least two batches of one shape, such as those of an epoch.
      estimator: A gradient, such as `zs.zosam(rho=0.05)`. Default: `zs.backprop()`.
      step: Number of optimizer steps made so far, for schedules and `when`.
      masks: Mask tree: gradients are those of the live weights. None: of all weights.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> def loss(w, x):
      ...     return jnp.sum((w - x) ** 2) / 2
      >>> w, batches = jnp.zeros(1), [jnp.array([1.0]), jnp.array([3.0])]
      >>> noise = zs.analysis.gradient_noise(loss, w, batches)
      >>> print(noise.variance, noise.signal, noise.successive_cosine)
      2.0 3.0 1.0
    """
    estimator = backprop() if estimator is None else estimator
    _check_estimator(estimator)
    objective = Objective(value_fn, params, masks, batches)
    if len(objective.batches) < 2:
        raise ValueError("gradient_noise needs at least two batches.")
    exact = objective.gradient().astype(np.float64)
    state, moments = estimator.init(objective.params), _Moments(objective.size)
    norms, cosines, successive, last = [], [], [], None
    for number, batch in enumerate(objective.batches):
        on = objective.params, objective.masks, objective.live, step + number
        grad, state = _estimate(estimator, value_fn, *on, state, batch)
        vector = np.asarray(grad, np.float64)
        moments.add(vector)
        norms.append(np.linalg.norm(vector))
        cosines.append(_cosine(vector, exact))
        successive += [] if last is None else [_cosine(last, vector)]
        last = vector
    signal, variance = moments.excess(), moments.variance
    return GradientNoise(
        variance=variance,
        signal=signal,
        ratio=signal / variance if variance else math.inf,
        successive_cosine=float(np.mean(successive)),
        cosine=float(np.mean(cosines)),
        norm=float(np.mean(norms)),
        exact_norm=float(np.linalg.norm(exact)),
        batches=len(objective.batches),
    )


def _check_estimator(estimator: object) -> None:
    if not isinstance(estimator, GradientEstimator):
        raise TypeError(
            "estimator must be a gradient of the library, such as zs.zosam(rho=0.05); "
            f"got {type(estimator).__name__}."
        )
    if estimator.decoupled:
        raise ValueError(
            f"zs.{estimator.name} with decouple=True has two gradients; analyse it "
            "without."
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _estimate(
    estimator: GradientEstimator,
    value_fn: BatchLoss,
    params: Params,
    masks: Masks | None,
    live: jax.Array | None,
    step: int,
    state: OptState,
    batch: PyTree,
) -> tuple[jax.Array, OptState]:
    def loss(p: Params, **by_example: jax.Array) -> jax.Array:
        return value_fn(p, *batch, **by_example)

    # There is no incoming gradient, which Optax's types do not know.
    incoming: Grads = None
    grad, state = estimator.update(
        incoming,
        state,
        params,
        value_fn=loss,
        masks=masks,
        optimizer_step=jnp.asarray(step, jnp.int32),
    )
    return restricted(grad, live), state


def zeroth_order_error(
    value_fn: BatchLoss,
    params: Params,
    key: Key,
    *,
    num_directions: Sequence[int] = (1, 4, 16),
    deltas: Sequence[Step] = ("auto",),
    samples: int = 50,
    distribution: str = "gaussian",
    masks: Masks | None = None,
    batches: Iterable[PyTree] | None = None,
) -> list[ZerothOrderError]:
    r"""Returns bias, variance and cosine of the random gradient estimate.

    For every step and number of directions, `samples` independent estimates
    :math:`\hat g` of `zs.estimators.rge` are compared with the exact gradient. The bias
    is the mean of :math:`\hat g - \hat g_0`, where :math:`\hat g_0` has the exact
    slopes along the same directions and the mean :math:`g`: this hides less of the bias
    in the variance, which is :math:`(d + 1) / m` times :math:`|g|^2`.

    Args:
      value_fn: `(params, batch) -> loss`, a scalar; `params -> loss` without batches.
      params: Pytree of floating point arrays, w.
      key: One PRNG key.
      num_directions: Values of m.
      deltas: Steps of the finite difference; "auto": see `zs.estimators.rge`.
      samples: Number of estimates, at least 2. Each has 2m losses over all batches.
      distribution: Distribution of the directions, as in `zs.estimators.rge`. The
        expected figures are those of "gaussian"; the cosine also of "sphere".
      masks: Mask tree: directions lie on it, and d counts its live weights.
      batches: Batches of one shape; the loss is its mean over them.

    Returns:
      A row for each step and number of directions.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> w, key = jnp.arange(8.0), jax.random.key(0)
      >>> (row,) = zs.analysis.zeroth_order_error(
      ...     lambda w: w @ w, w, key, num_directions=(4,)
      ... )
      >>> print(round(row.expected_cosine, 2), row.expected_variance, row.dimension)
      0.58 2.25 8
    """
    _check.whole("samples", samples, least=2)
    for m in num_directions:
        _check.whole("num_directions", m)
    objective = Objective(value_fn, params, masks, batches)
    exact = objective.gradient()
    if not np.any(exact):
        raise ValueError("the gradient is zero, so that no error is relative to it.")
    rows = []
    for delta in deltas:
        step = difference_step(
            delta, lambda p: batch_loss(value_fn, objective.batches[0])(p), params
        )
        for m in num_directions:
            draws = (jax.random.fold_in(key, i) for i in range(samples))
            rows.append(_error(objective, exact, draws, m, float(step), distribution))
    return rows


def _error(
    objective: Objective,
    exact: np.ndarray,
    keys: Iterable[Key],
    m: int,
    delta: float,
    distribution: str,
) -> ZerothOrderError:
    d, uphill = objective.size, objective.tree(exact)
    whole, offset = _Moments(d), _Moments(d)
    cosines, wide = [], exact.astype(np.float64)
    square = float(np.vdot(wide, wide))
    for key in keys:
        on = (objective.params, objective.masks, objective.live, key, m, delta)
        vectors = [
            np.asarray(_rge(objective.value_fn, distribution, *on, batch))
            for batch in objective.batches
        ]
        vector = np.asarray(np.mean(vectors, 0, dtype=np.float64))
        along = np.asarray(_rge(tree.vdot, distribution, *on, (uphill,)))
        whole.add(vector)
        offset.add(vector - along)
        cosines.append(_cosine(vector, wide))
    return ZerothOrderError(
        num_directions=m,
        delta=delta,
        dimension=d,
        bias=math.sqrt(max(offset.excess(), 0.0) / square),
        variance=whole.variance / square,
        cosine=float(np.mean(cosines)),
        cosine_error=float(np.std(cosines, ddof=1) / math.sqrt(len(cosines))),
        expected_variance=(d + 1) / m,
        expected_cosine=expected_cosine(m, d),
    )


# The number of directions and the step are traced: one program serves all of them.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _rge(
    value_fn: BatchLoss,
    distribution: str,
    params: Params,
    masks: Masks | None,
    live: jax.Array | None,
    key: Key,
    m: int,
    delta: float,
    batch: PyTree,
) -> jax.Array:
    estimate, _ = rge(
        batch_loss(value_fn, batch),
        params,
        key,
        num_directions=m,
        delta=delta,
        distribution=distribution,
        masks=masks,
    )
    return restricted(estimate.grad, live)


def expected_cosine(num_directions: int, dimension: int) -> float:
    r"""Returns the mean cosine of the random gradient estimate and the gradient.

    .. math::
      \mathbb{E} \cos = \frac{\Gamma(\frac{m+1}{2}) \, \Gamma(\frac{m+d-1}{2})}
      {\Gamma(\frac{m}{2}) \, \Gamma(\frac{m+d}{2})}
      \;\approx\; \sqrt{\tfrac{2}{\pi d}} \ (m = 1), \quad
      \sqrt{\tfrac{m}{m + d}} \ (m \gg 1)

    for exact slopes along m normal directions in d dimensions: :math:`\cos^2` has the
    distribution :math:`\mathrm{Beta}(\frac{m}{2}, \frac{d-1}{2})`.

    Args:
      num_directions: m.
      dimension: Number of live weights, d.

    Example:
      >>> import zosam_jax as zs
      >>> print(f"{zs.analysis.expected_cosine(1, 10_000):.5f}")
      0.00798
    """
    m, d = num_directions, dimension
    _check.whole("num_directions", m)
    _check.whole("dimension", d)
    terms = (m + 1) / 2, (m + d - 1) / 2, m / 2, (m + d) / 2
    a, b, c, e = map(math.lgamma, terms)
    return math.exp(a + b - c - e)


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.vdot(x, y)) / lengths if lengths else 0.0
