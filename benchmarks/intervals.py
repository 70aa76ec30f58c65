"""Intervals of means and of paired differences."""

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
    return interval([a - b for a, b in zip(first, second, strict=True)])
