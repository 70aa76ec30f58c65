"""Sharpness: how much the loss rises within a radius, at worst and on average."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from zosam_jax import _check
from zosam_jax._types import Key, Masks, Params, PyTree
from zosam_jax.analysis.hessian import generator
from zosam_jax.analysis.objective import BatchLoss, Objective


class WorstCaseSharpness(NamedTuple):
    """The largest rise of the loss that gradient ascent found within a radius.

    Attributes:
      one_step: Rise after one ascent step, SAM's estimate. It can be negative.
      best: Largest rise after any of the steps.
      rises: Rise after each step, `[steps]`, float64.
      value: The loss at the parameters.
    """

    one_step: float
    best: float
    rises: np.ndarray
    value: float


class AverageSharpness(NamedTuple):
    """The mean rise of the loss on a sphere.

    Attributes:
      mean: The mean rise.
      error: Its standard error.
      rises: Rise of each pair of opposite points, `[pairs]`, float64.
      value: The loss at the parameters.
    """

    mean: float
    error: float
    rises: np.ndarray
    value: float


def worst_case_sharpness(
    value_fn: BatchLoss,
    params: Params,
    *,
    rho: float = 0.05,
    steps: int = 10,
    adaptive: bool = False,
    masks: Masks | None = None,
    batches: Iterable[PyTree] | None = None,
) -> WorstCaseSharpness:
    r"""Returns how much the loss rises within a radius, by gradient ascent on the mask.

    .. math::
      \max_{|T^{-1} \epsilon| \le \rho} L(w + \epsilon) - L(w), \qquad
      \epsilon_{k+1} = \rho \, T \frac{T g_k}{|T g_k|}, \quad
      g_k = \nabla L(w + \epsilon_k), \quad \epsilon_0 = 0

    with T = I, or T = diag|w| if `adaptive`. The first step is that of SAM (Foret et
    al., 2021, arXiv:2010.01412), or of ASAM (Kwon et al., 2021, arXiv:2102.11600)
    without its constant. Each further step goes to the boundary along the gradient at
    the last point. On a convex loss no step lowers the rise (the conditional gradient
    method); elsewhere `best` is a lower bound of the maximum.

    Args:
      value_fn: `(params, batch) -> loss`, a scalar; `params -> loss` without batches.
      params: Pytree of floating point arrays, w.
      rho: Radius. The default is SAM's; an adaptive radius is relative to |w|, and ten
        times larger in ASAM's paper.
      steps: Number of ascent steps, each a gradient and a loss over all batches.
      adaptive: Whether the radius of each weight is relative to its size.
      masks: Mask tree: only live weights are moved. None: all weights.
      batches: Batches of one shape; the loss is its mean over them. With `[batch]`, it
        is the sharpness of a mini-batch; their mean is the m-sharpness.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> w = jnp.array([2.0, 0.0])
      >>> found = zs.analysis.worst_case_sharpness(lambda w: w @ w, w, rho=1.0)
      >>> print(round(found.one_step, 4))
      5.0
    """
    _check.whole("steps", steps)
    objective = Objective(value_fn, params, masks, batches)
    scale = _scale(objective, rho, adaptive)
    value, rises, step = objective.value(), [], None
    for _ in range(steps):
        uphill = scale * objective.gradient(step)
        step = rho * scale * _unit(uphill)
        rises.append(objective.value(step) - value)
    return WorstCaseSharpness(rises[0], float(np.max(rises)), np.array(rises), value)


def average_sharpness(
    value_fn: BatchLoss,
    params: Params,
    key: Key,
    *,
    rho: float = 0.05,
    pairs: int = 20,
    adaptive: bool = False,
    masks: Masks | None = None,
    batches: Iterable[PyTree] | None = None,
) -> AverageSharpness:
    r"""Returns the mean rise of the loss on the sphere of a radius, on the mask.

    .. math::
      \mathbb{E}_u \left[ L(w + \rho T u) - L(w) \right]
      = \frac{\rho^2}{2 d} \, \mathrm{tr}(T H T) + O(\rho^4)

    with u uniform on the unit sphere of the d live weights, and T = I, or T = diag|w|
    if `adaptive` (average-case sharpness: Andriushchenko et al., 2023,
    arXiv:2302.07011, with normal u of length about :math:`\sqrt d`). On the sphere it
    has the radius of `worst_case_sharpness`, so that the two can be compared. Opposite
    points are taken in pairs, which removes the slope from the estimate.

    Args:
      value_fn: `(params, batch) -> loss`, a scalar; `params -> loss` without batches.
      params: Pytree of floating point arrays, w.
      key: One PRNG key.
      rho: Radius. At a small one the rise is lost in the rounding of the loss.
      pairs: Number of pairs, two losses over all batches each; at least 2.
      adaptive: Whether the radius of each weight is relative to its size.
      masks: Mask tree: only live weights are moved. None: all weights.
      batches: Batches of one shape; the loss is its mean over them.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> w, key = jnp.array([2.0, 0.0]), jax.random.key(0)
      >>> found = zs.analysis.average_sharpness(lambda w: w @ w, w, key, rho=1.0)
      >>> print(round(found.mean, 4))
      1.0
    """
    _check.whole("pairs", pairs, least=2)
    objective, rng = Objective(value_fn, params, masks, batches), generator(key)
    scale = _scale(objective, rho, adaptive)
    value, rises = objective.value(), []
    for _ in range(pairs):
        unit = _unit(rng.standard_normal(objective.size).astype(objective.dtype))
        step = rho * scale * unit
        both = objective.value(step) + objective.value(-step)
        rises.append(both / 2 - value)
    error = float(np.std(rises, ddof=1) / np.sqrt(pairs))
    return AverageSharpness(float(np.mean(rises)), error, np.array(rises), value)


def _scale(objective: Objective, rho: float, adaptive: bool) -> np.ndarray:
    """The diagonal of T."""
    _check.number("rho", rho, above=0)
    if not adaptive:
        return np.ones(objective.size, objective.dtype)
    return np.abs(objective.vector(objective.params))


def _unit(vector: np.ndarray) -> np.ndarray:
    """A vector divided by its length; zeros stay zeros."""
    length = np.linalg.norm(vector.astype(np.float64))
    return vector / vector.dtype.type(length) if length > 0 else vector
