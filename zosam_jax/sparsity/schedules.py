"""When a topology changes, and by how much."""

import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zosam_jax import _check

Fires = Callable[[jax.Array], jax.Array]


def periodic(interval: int, stop: float, start: int | None = None) -> Fires:
    """Every `interval` steps from `start` (default: `interval`) until before `stop`."""
    first = interval if start is None else start
    return lambda step: (
        (step >= first) & ((step - first) % interval == 0) & (step < stop)
    )


def cosine(
    peak: float, steps: float, end: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    r""":math:`e + \frac{p - e}{2} (1 + \cos \frac{\pi t}{T})`, and `end` after T."""

    def schedule(step: jax.Array) -> jax.Array:
        angle = jnp.pi * jnp.minimum(step / max(steps, 1), 1)
        return end + (peak - end) / 2 * (1 + jnp.cos(angle))

    return schedule


def cubic_steps(total: int, interval: int, start: float, stop: float) -> list[int]:
    """The steps of gradual pruning: first to last, the last within `stop * total`."""
    # 0.07 * 100 is 7.000000000000001, 0.29 * 100 is 28.999999999999996.
    begin, end = round(start * total, 6), round(stop * total, 6)
    first = min(math.ceil(begin), total - 1)
    last = max(first, min(math.floor(end), total - 1))
    return list(range(first, last + 1, interval))


def cubic(steps: list[int]) -> Callable[[jax.Array], jax.Array]:
    """`1 - (1 - t)^3`, t from 0 at the first to 1 at the last step (1 if one step)."""
    first, last = steps[0], steps[-1]

    def schedule(step: jax.Array) -> jax.Array:
        done = (step - first) / (last - first) if last > first else jnp.float32(1)
        return 1 - (1 - jnp.clip(done, 0, 1)) ** 3

    return schedule


def dropping(
    total_steps: int,
    interval: int,
    drop_fraction: float | Callable[[jax.Array], jax.Array],
    stop_fraction: float,
) -> tuple[Fires, Callable[[jax.Array], jax.Array]]:
    """When the topology changes, and the fraction dropped then; see `dynamic`.

    Raises:
      ValueError: An argument is out of range.
    """
    _check.whole("total_steps", total_steps)
    _check.whole("interval", interval)
    _check.number("stop_fraction", stop_fraction, least=0, most=1)
    stop = stop_fraction * total_steps
    fraction = drop_fraction
    if not callable(fraction):
        _check.number("drop_fraction", fraction, least=0, most=1)
        fraction = cosine(fraction, stop)
    warn_if_static(interval, stop)
    return periodic(interval, stop), fraction


def warn_if_static(first: float, stop: float) -> None:
    """Says so where the first change would not be before step `stop` (0: never)."""
    if not (_check.is_traced(first) or _check.is_traced(stop)) and 0 < stop <= first:
        warnings.warn(
            "the topology will never change: the first change would be in step "
            f"{first:g}, and the last is before step {stop:g}, stop_fraction * "
            "total_steps. Take a smaller interval=.",
            stacklevel=_check.outside(),
        )
