r"""The closed forms of `benchmarks.convergence`: problems, theory, fits, intervals.

The convex problem, with minimum 0 at w = 0 and the curvatures h_i there, is

.. math::
  f(w) = \sum_i h_i \, (e^{w_i} - w_i - 1), \qquad \nabla f(w)_i = h_i (e^{w_i} - 1)

What holds for every method here, since :math:`|\epsilon| \le \rho`: if f is L-smooth
and mu-strongly convex, gradients are exact and :math:`\eta \le 1/L`, then

.. math::
  |w_{t+1} - w^*| \le (1 - \eta\mu) \, |w_t - w^*| + \eta L \rho

because :math:`|\nabla f(w + \epsilon) - \nabla f(w)| \le L \rho`. The rate is linear,
and the distance ends below :math:`L \rho / \mu`. The paper of ZO-SAM has no proof.

The mean-field theory below is sharper and no proof. Let c be the mean cosine between
the perturbation and the gradient of the batch, G that gradient's norm and N the
perturbation's part across it. To first order a step contracts coordinate i by
:math:`\eta h_i \kappa_i` with :math:`\kappa_i = 1 + \rho c h_i / G`. So ZO-SAM is, in
the mean, SAM at the radius :math:`c \rho`, and its N is noise.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

LEAST_CURVATURE, SHIFT = 0.25, -0.8
LEAST_DAMPING = 0.05
"""Of a step of the mean-field theory, which beyond a step of 2 / curvature has none."""


def curvatures(dim: int) -> np.ndarray:
    """Returns h, from 1/4 to 1 in equal ratios, `[dim]`."""
    return np.geomspace(LEAST_CURVATURE, 1.0, dim).astype(np.float32)


def bowl(w: jax.Array, h: jax.Array) -> jax.Array:
    """Returns f(w) of the convex problem.

    Args:
      w: `[d]`.
      h: Its curvatures at the minimum, `[d]`.
    """
    # Where the difference would be rounding, the first terms of the series.
    series = w**2 / 2 * (1 + w / 3 * (1 + w / 4))
    return jnp.sum(h * jnp.where(abs(w) < 0.01, series, jnp.expm1(w) - w))


def bowl_gradient(w: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Returns the gradient of `bowl`, `[d]`."""
    return h * np.expm1(w)


def batch_bowl(
    w: jax.Array, h: jax.Array, added: jax.Array, moved: jax.Array, deviation: jax.Array
) -> jax.Array:
    r"""Returns the loss of a batch; its mean is `bowl` but for a constant.

    .. math::
      f_B(w) = \sum_i h_i \, (e^{w_i - x_i - s^2/2} - w_i - 1) + z^T w

    Args:
      w: `[d]`.
      h: Curvatures.
      added: z, noise of the gradient alone.
      moved: x, normal noise of the data, which moves the minimum of the batch: where
        its gradient is large, so is its curvature.
      deviation: s, the standard deviation of x.
    """
    shifted = w - moved - deviation**2 / 2
    return jnp.sum(h * (jnp.expm1(shifted) - w)) + jnp.vdot(added, w)


def stretch(x: jax.Array) -> jax.Array:
    """Returns the coordinate in which the two wells are alike: -1 and 1."""
    return x + SHIFT * (jnp.sqrt(1 + x**2) - 1)


def wells(w: jax.Array) -> jax.Array:
    r"""Returns a function with a sharp and a flat minimum, both of value 0.

    .. math::
      f(w) = \frac{(y^2 - 1)^2}{4 (1 + y^2)} + \frac12 \sum_{i > 1} w_i^2, \qquad
      y = w_1 - 0.8 \, (\sqrt{1 + w_1^2} - 1)

    The minima are where y is -1 and 1, with the curvature :math:`(dy/dw_1)^2` along
    w_1. Between them, at w_1 = 0, is a barrier of height 1/4.

    Args:
      w: `[d]`.
    """
    y = stretch(w[0])
    return (y**2 - 1) ** 2 / (4 * (1 + y**2)) + jnp.sum(w[1:] ** 2) / 2


class Minimum(NamedTuple):
    """A minimum of `wells`.

    Attributes:
      place: w_1; the other coordinates are 0.
      curvature: Second derivative along w_1.
    """

    place: float
    curvature: float


def minima() -> tuple[Minimum, Minimum]:
    """Returns the sharp and the flat minimum of `wells`."""
    found = []
    for y in (-1.0, 1.0):
        # x - b = -a sqrt(1 + x^2), squared: (1 - a^2) x^2 - 2 b x + b^2 - a^2 = 0.
        a, b = SHIFT, y + SHIFT
        spread = math.sqrt(b * b - (1 - a * a) * (b * b - a * a))
        roots = ((b + sign * spread) / (1 - a * a) for sign in (-1, 1))
        x = min(roots, key=lambda x: abs(x + a * math.sqrt(1 + x * x) - b))
        found.append(Minimum(x, (1 + a * x / math.sqrt(1 + x * x)) ** 2))
    return found[0], found[1]


def alignment(directions: int, dim: int) -> float:
    """Returns the mean cosine of ZO-SAM's perturbation to the gradient of its batch.

    Exact for one direction, else for `directions` far below `dim`: the ratio of the
    means of two chi distributions.

    >>> round(alignment(1, 100), 4)  # sqrt(2 / (pi d)) is 0.0798
    0.08

    Args:
      directions: m.
      dim: d.
    """
    return _mean_chi(directions) / _mean_chi(dim)


def _mean_chi(degrees: int) -> float:
    log = scipy.special.gammaln([(degrees + 1) / 2, degrees / 2])
    return math.sqrt(2) * math.exp(log[0] - log[1])


class Setting(NamedTuple):
    """A convex problem and a method on it, for the theory.

    Attributes:
      dim: d.
      rho: Radius.
      cosine: c, of the perturbation to the gradient of the batch.
      added: Norm of the noise of the gradient, in the mean.
      moved: The same of the noise of the data.
    """

    dim: int
    rho: float
    cosine: float
    added: float = 0.0
    moved: float = 0.0


class Spread(NamedTuple):
    """Where a coordinate is, in the mean over time: `[d]` each.

    Attributes:
      bias: Its mean.
      variance: Its variance.
    """

    bias: np.ndarray
    variance: np.ndarray

    def excess(self) -> float:
        """Returns the mean of f to second order."""
        h = curvatures(len(self.bias)).astype(float)
        return float(np.sum(h * (self.variance + self.bias**2)) / 2)


def stationary(setting: Setting, rate: float) -> Spread:
    """Returns where the iterates stay at a constant learning rate.

    Args:
      setting: Problem and method.
      rate: Learning rate.
    """
    if _is_bouncing(setting):
        return _bounce(setting, rate)

    def spread(kappa: np.ndarray, h: np.ndarray, power: np.ndarray) -> np.ndarray:
        step = rate * h * kappa
        return rate**2 * power / (step * np.maximum(2 - step, LEAST_DAMPING))

    return _solved(setting, spread)


def decaying(setting: Setting, time: float, factor: float) -> Spread:
    """Returns where the iterates are at a learning rate of `factor / time`.

    Args:
      setting: Problem and method.
      time: Number of steps, many.
      factor: Above 1 / (2 mu).
    """

    def spread(kappa: np.ndarray, h: np.ndarray, power: np.ndarray) -> np.ndarray:
        return factor**2 * power / (2 * factor * h * kappa - 1) / time

    if _is_bouncing(setting):
        return _bounce(setting, factor / time)
    return _solved(setting, spread)


def _is_bouncing(setting: Setting) -> bool:
    return setting.cosine == 1 and not (setting.added or setting.moved)


def _bounce(setting: Setting, rate: float) -> Spread:
    """SAM without noise: from side to side along the sharpest direction."""
    h = curvatures(setting.dim).astype(float)
    amplitude = rate * h[-1] * setting.rho / (2 - rate * h[-1])
    return Spread(0 * h, np.where(h == h[-1], amplitude**2, 0.0))


Steps = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _solved(setting: Setting, spread: Steps) -> Spread:
    """The fixed point of the mean-field equations.

    Args:
      setting: Problem and method.
      spread: `(kappa, h, power of the noise) -> variance`.
    """
    d, rho, c, added, moved = setting
    h = curvatures(d).astype(float)
    v = math.expm1(moved**2 / d)
    variance = np.full(d, 1e-6)
    bias = np.zeros(d)
    for _ in range(100):
        norm = math.sqrt(added**2 + np.sum(h**2 * (v + variance)))
        pull = rho * c * h / norm
        kappa = 1 + pull
        own = (added**2 / d + h**2 * v) * kappa**2
        power = own + h**2 * rho**2 * (1 - c**2) / d
        new = spread(kappa, h, power)
        variance = np.sqrt(variance * new)  # damped, for a root that repels
        bias = -(rho**2 / (2 * d) + pull * v) / kappa
    return Spread(bias, variance)


def slope(
    times: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray
) -> float:
    """Returns the exponent of a power law, by least squares of logarithms.

    >>> round(slope([1, 10, 100], [5.0, 0.5, 0.05]), 6)
    -1.0

    Args:
      times: Positive.
      values: Positive, as many.
    """
    return float(np.polyfit(np.log(times), np.log(values), 1)[0])


def binned(
    values: Sequence[float] | np.ndarray, first: int = 1, bins: int = 24
) -> tuple[list[float], list[float]]:
    """Returns times and means of a curve in intervals of equal ratios.

    >>> binned([4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], bins=3)
    ([1.0, 2.45, 5.66], [4.0, 2.0, 1.0])

    Args:
      values: At the times 1, 2, ...
      first: Where the first interval begins.
      bins: Number of intervals, at most.
    """
    edges = np.geomspace(first, len(values), bins + 1).round().astype(int)
    edges = np.unique(np.append(edges[:-1], len(values) + 1))
    pairs = list(itertools.pairwise(edges.tolist()))
    times = [round(math.sqrt(a * (b - 1)), 2) for a, b in pairs]
    return times, [float(np.mean(values[a - 1 : b - 1])) for a, b in pairs]


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share by Wilson's score.

    >>> [round(x, 3) for x in wilson(0, 32)]
    [0.0, 0.107]

    Args:
      hits: Number of hits.
      trials: Number of trials, at least 1.
    """
    z = float(scipy.stats.norm.ppf(0.975))
    share, more = hits / trials, z * z / trials
    center = (share + more / 2) / (1 + more)
    half = z / (1 + more) * math.sqrt(share * (1 - share) / trials + more / trials / 4)
    return max(0.0, center - half), min(1.0, center + half)
