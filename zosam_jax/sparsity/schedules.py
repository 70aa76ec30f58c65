"""When a topology changes, and by how much."""

import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zosam_jax import _check

Fires = Callable[[jax.Array], jax.Array]
"""`step -> bool scalar`, whether the topology changes in this step."""

Fraction = Callable[[jax.Array], jax.Array]
"""`step -> fraction`."""


def periodic(interval: int, stop: float, start: int | None = None) -> Fires:
    """Returns a schedule that fires every `interval` steps.

    Args:
      interval: Steps between two changes.
      stop: All changes are before this step.
      start: Step of the first change; by default `interval`.

    Example:
      >>> from zosam_jax.sparsity import schedules
      >>> fires = schedules.periodic(10, stop=25)
      >>> [step for step in range(40) if fires(step)]
      [10, 20]
    """
    first = interval if start is None else start
    return lambda step: (
        (step >= first) & ((step - first) % interval == 0) & before(step, stop)
    )


def before(step: jax.typing.ArrayLike, stop: float) -> jax.Array:
    """Returns whether a step is before a fraction of the training, in steps."""
    return _time(step) < stop


def _time(step: jax.typing.ArrayLike) -> jax.Array:
    # Explicitly, for users who forbid the promotion of int32 by a float.
    return jnp.asarray(step).astype(jnp.float32)


def cosine(peak: float, steps: float, end: float = 0.0) -> Fraction:
    r"""Returns :math:`e + \frac{p - e}{2} (1 + \cos \frac{\pi t}{T})`, with e after T.

    Args:
      peak: p, the value at step 0.
      steps: T.
      end: e, the value at step T and after.

    Example:
      >>> from zosam_jax.sparsity import schedules
      >>> print(f"{schedules.cosine(0.3, 100)(50):.2f}")
      0.15
    """

    def schedule(step: jax.Array) -> jax.Array:
        angle = jnp.pi * jnp.minimum(_time(step) / max(steps, 1), 1)
        return end + (peak - end) / 2 * (1 + jnp.cos(angle))

    return schedule


def cubic_steps(total: int, interval: int, start: float, stop: float) -> list[int]:
    """Returns the steps in which gradual pruning prunes.

    Args:
      total: Steps of the training.
      interval: Steps between two prunings.
      start: The first is at `start * total`, rounded up.
      stop: The last is not after `stop * total`.

    Example:
      >>> from zosam_jax.sparsity import schedules
      >>> schedules.cubic_steps(100, 20, start=0.2, stop=0.75)
      [20, 40, 60]
    """
    # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 is 28.999999999999996.
    begin, end = round(start * total, 6), round(stop * total, 6)
    first = min(math.ceil(begin), total - 1)
    last = max(first, min(math.floor(end), total - 1))
    return list(range(first, last + 1, interval))


def multiples(
    total: int, interval: int, stop: float, first: int | None = None
) -> list[int]:
    """Returns the steps of changes whose last one reaches a target: at least one step.

    Args:
      total: Steps of the training.
      interval: Steps between two changes.
      stop: The last is not after `stop * total`. If there is none up to there, the one
        step is there, rounded down.
      first: Step of the first change; by default `interval`.

    Example:
      >>> from zosam_jax.sparsity import schedules
      >>> schedules.multiples(100, 20, 0.75), schedules.multiples(100, 80, 0.75)
      ([20, 40, 60], [75])
    """
    # 0.29 * 100 is 28.999999999999996.
    last = min(math.floor(round(stop * total, 6)), total - 1)
    start = interval if first is None else first
    return list(range(start, last + 1, interval)) or [last]


def cubic(steps: list[int]) -> Fraction:
    """Returns `1 - (1 - t)^3`, with t from 0 at the first step to 1 at the last.

    It is 1 if there is one step only.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity import schedules
      >>> print(schedules.cubic([20, 40, 60])(jnp.array([20, 40, 60])))
      [0.    0.875 1.   ]
    """
    first, last = steps[0], steps[-1]

    def schedule(step: jax.Array) -> jax.Array:
        done = jnp.float32(1)
        if last > first:
            done = _time(step - first) / (last - first)
        return 1 - (1 - jnp.clip(done, 0, 1)) ** 3

    return schedule


def dropping(
    total_steps: int,
    interval: int,
    drop_fraction: float | Fraction,
    stop_fraction: float,
) -> tuple[Fires, Fraction]:
    """Returns when the topology changes, and the fraction dropped then.

    Args:
      total_steps: Optimizer steps of the whole training.
      interval: Steps between two changes.
      drop_fraction: The first fraction, annealed to 0 by a cosine; or a schedule.
      stop_fraction: All changes are before step `stop_fraction * total_steps`.

    Raises:
      ValueError: An argument is out of range.
    """
    check_steps(total_steps, interval)
    _check.number("stop_fraction", stop_fraction, least=0, most=1)
    stop = stop_fraction * total_steps
    fraction = drop_fraction
    if callable(fraction):
        _check.callable_as("drop_fraction", fraction, "(step) -> fraction")
    else:
        _check.number("drop_fraction", fraction, least=0, most=1)
        fraction = cosine(fraction, stop)
    warn_if_static(interval, stop)
    return periodic(interval, stop), fraction


def check_steps(total_steps: int, interval: int) -> None:
    """Raises `ValueError` unless both are integers of at least 1."""
    _check.whole("total_steps", total_steps)
    _check.whole("interval", interval)


def warn_if_static(first: float, stop: float) -> None:
    """Warns if the topology never changes.

    Args:
      first: Step of the first change.
      stop: All changes are before this step; 0 if none is wanted.
    """
    if not (_check.is_traced(first) or _check.is_traced(stop)) and 0 < stop <= first:
        warnings.warn(
            "the topology will never change: the first change would be in step "
            f"{first:g}, and the last is before step {stop:g}, stop_fraction * "
            "total_steps. Take a smaller interval=.",
            stacklevel=_check.outside(),
        )
