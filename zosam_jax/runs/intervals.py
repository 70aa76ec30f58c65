"""Means over seeds, their intervals, and paired differences, by Student's t."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import scipy.stats


class Interval(NamedTuple):
    """A mean with its 95 % interval, `mean - half_width` to `mean + half_width`."""

    mean: float
    half_width: float


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean of independent values with its interval by Student's t.

    Args:
      values: At least two.

    >>> found = interval([1.0, 2.0, 3.0])
    >>> found.mean, round(found.half_width, 4)
    (2.0, 2.4841)
    """
    count = len(values)
    quantile = float(scipy.stats.t.ppf(0.975, count - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return Interval(statistics.fmean(values), half)


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Returns the mean of `first - second`, pair by pair, with its interval.

    Args:
      first: A value for each seed.
      second: The values of another method for the same seeds, in the same order.
    """
    return interval(_differences(first, second))


def p_value(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of the paired t-test that the means are equal.

    None if all differences are the same: they have no deviation to compare to.

    Args:
      first: A value for each seed, at least two.
      second: The values of another method for the same seeds, in the same order.

    >>> round(p_value([1.0, 2.0, 3.0], [0.5, 1.0, 2.5]), 4)
    0.0572
    """
    found = _differences(first, second)
    error = statistics.stdev(found) / math.sqrt(len(found))
    # Differences of equal decimals differ by rounding.
    if error <= 1e-12 * max(map(abs, [*first, *second])):
        return None
    ratio = abs(statistics.fmean(found)) / error
    return 2 * float(scipy.stats.t.sf(ratio, len(found) - 1))


def _differences(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]
