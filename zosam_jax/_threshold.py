"""The search for thresholds: keys of floats, brackets, and counts above a key.

The algorithm is described in `selection`, which builds the pools and reads the results.
"""

import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PIVOTS = 16
_ROW = 512  # Rows of at least this many entries are added up on their own.
_EQUAL = 3  # Number of equally spaced pivots.
_UNKNOWN = np.int32(2**31 - 1)


class Bracket(NamedTuple):
    """Two keys between which a threshold lies, and the counts at both.

    Attributes:
      low: Key whose count is at least the target, uint32.
      high: Key whose count is below the target, uint32.
      at_low: Count at `low`, int32.
      at_high: Count at `high`, int32.
    """

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array


def search(
    count: Callable[[jax.Array, jax.Array], jax.Array],
    ends: Callable[[jax.Array], jax.Array],
    bracket: Bracket,
    target: jax.Array,
    pivots: jax.Array | None = None,
) -> tuple[Bracket, jax.Array]:
    """Returns the bracket, narrowed until it is settled, and the reads, int32.

    A bracket is settled if its keys are neighbours or if the count at `low` is the
    target. K keys are counted in every read.

    Args:
      count: `(ends, active) -> counts`, [K, ...]; counts fall as the keys rise. Where
        `active` is False, they may be anything.
      ends: `keys -> ends`, the arguments of `count` for keys [K, ...].
      bracket: The first bracket, [...].
      target: The count that is searched for, int32 [...].
      pivots: The keys of the first read, [K, ...]; by default chosen as in every read.
    """

    def unsettled(bracket: Bracket) -> jax.Array:
        # Equal counts settle it too: any key between two scores selects the same
        # entries, so the exact score of the k-th entry is never needed.
        return (bracket.high - bracket.low > 1) & (bracket.at_low != target)

    def narrow(carry: tuple) -> tuple:
        bracket, pivots, at, reads = carry
        active = unsettled(bracket)
        counts = count(at, active)
        # Counts fall as keys rise. So the highest pivot that reaches the target is the
        # new low end, and the lowest pivot that misses it is the new high end.
        enough = active & (counts >= target)
        less = active & (counts < target)
        low, high, at_low, at_high = bracket
        bracket = Bracket(
            jnp.maximum(low, jnp.max(jnp.where(enough, pivots, 0), 0)),
            jnp.minimum(high, jnp.min(jnp.where(less, pivots, high), 0)),
            jnp.minimum(at_low, jnp.min(jnp.where(enough, counts, at_low), 0)),
            jnp.maximum(at_high, jnp.max(jnp.where(less, counts, 0), 0)),
        )
        pivots = _pivots(bracket, target)
        # Made here, and carried: else XLA computes them again for every entry.
        return bracket, pivots, ends(pivots), reads + 1

    if pivots is None:
        pivots = _pivots(bracket, target)
    bracket, _, _, reads = jax.lax.while_loop(
        lambda carry: jnp.any(unsettled(carry[0])),
        narrow,
        (bracket, pivots, ends(pivots), jnp.int32(0)),
    )
    return bracket, reads


def _quantiles(number: int) -> list[float]:
    """Returns quantiles of the standard normal at equal steps of probability."""
    normal = NormalDist()
    return [normal.inv_cdf((i + 0.5) / number) for i in range(number)]


# Quantiles make it equally likely for the threshold to lie between any two pivots. The
# outer two, 3.5 standard errors out, close the bracket on both sides.
_ERRORS = np.array([-3.5, *_quantiles(PIVOTS - _EQUAL - 2), 3.5], np.float32)
_EVEN = (np.arange(len(_ERRORS), dtype=np.float32) + 0.5) / len(_ERRORS)
_SHARES = np.arange(1, _EQUAL + 1, dtype=np.float32) / (_EQUAL + 1)
# The bracket of a sample is 8 standard errors wide, with the threshold near its middle.
_FIRST = 0.5 + np.array(_quantiles(PIVOTS - 5), np.float32) / 8
_HALVES = np.float32(2.0) ** -np.arange(1, PIVOTS - 4, dtype=np.float32)


def _pivots(bracket: Bracket, target: jax.Array) -> jax.Array:
    """Returns the keys of the next read, inside the bracket, [K, ...]."""
    low, high, at_low, at_high = bracket
    column = (-1,) + (1,) * target.ndim
    inside = (at_low - at_high).astype(jnp.float32)
    # If the `inside` entries were spread evenly over the bracket, the threshold would
    # be an order statistic: beta distributed, with this mean and standard error.
    place = ((at_low - target).astype(jnp.float32) + 0.5) / (inside + 1)
    error = jnp.sqrt(jnp.maximum(place * (1 - place), 0) / (inside + 2))
    guess = jnp.clip(place + error * _ERRORS.reshape(column), 0, 1)
    # Without a count at the low end there is nothing to interpolate.
    guess = jnp.where(at_low == _UNKNOWN, _EVEN.reshape(column), guess)
    shares = jnp.broadcast_to(_SHARES.reshape(column), (_EQUAL, *target.shape))
    # Interpolation usually settles the search in few reads. The equally spaced pivots
    # bound the number of reads if the scores are spread unevenly.
    keys = _between(low, high, jnp.concatenate([shares, guess]))
    # A pivot at an end would read a count that is known.
    return jnp.clip(keys, low + 1, jnp.maximum(high, 1) - 1)


def _between(low: jax.Array, high: jax.Array, share: jax.Array) -> jax.Array:
    """Returns the key at a fraction of the bracket."""
    width = high - low
    step = (share * width.astype(jnp.float32)).astype(jnp.uint32)
    return low + jnp.minimum(step, width)


def around(low: jax.Array, high: jax.Array, top: np.ndarray) -> jax.Array:
    """Returns the first pivots, around the bracket from a sample, [K, sets].

    Args:
      low: Lower keys of the brackets, uint32 [sets].
      high: Upper keys, uint32 [sets].
      top: Keys above all scores, uint32 [sets].
    """
    # Each end with its successor: if an array has few distinct values, one read settles
    # it.
    ends = jnp.stack([jnp.zeros_like(low), low, low + 1, high, high + 1])
    # If the sample bounds one side only, the pivots close in on that side
    # geometrically.
    shares = jnp.where(low == 0, 1 - _HALVES[:, None], _FIRST[:, None])
    shares = jnp.where(high == top, _HALVES[:, None], shares)
    return jnp.concatenate([jnp.minimum(ends, top), _between(low, high, shares)])


class Part(NamedTuple):
    """An array of scores; the entries along `axes` share a threshold.

    Attributes:
      scores: Float array.
      candidates: Boolean array of the same shape.
      axes: Axes of the entries that share a threshold.
      start: Index of the first entry among those that share the threshold.
    """

    scores: jax.Array
    candidates: jax.Array
    axes: tuple[int, ...]
    start: int = 0

    def values(self) -> jax.Array:
        """Returns the scores in float32, with -infinity for NaN."""
        x = self.scores.astype(jnp.float32)
        return jnp.where(jnp.isnan(x), -jnp.inf, x)

    def place(self) -> jax.Array:
        """Returns each entry's index among those that share the threshold, uint32."""
        shape, step = self.scores.shape, 1
        index = jnp.full((), self.start, jnp.uint32)
        for axis in reversed(self.axes):
            place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            index, step = index + jnp.uint32(step) * place, step * shape[axis]
        return index


class Slot(NamedTuple):
    """Arrays that are read together.

    Attributes:
      parts: The arrays.
      where: Their place on the first axis of all thresholds.
      shape: Shape in which their thresholds broadcast against the scores.
    """

    parts: list[Part]
    where: slice
    shape: tuple[int, ...]


_Test = Callable[..., list[jax.Array]]


class Pool:
    """Sets of entries with one threshold each, for the `target` highest of each set.

    Args:
      slots: The arrays.
      target: How many to choose of each set, int32 [sets, ...].
      shift: Trailing zero bits of the scores, which shorten the keys; broadcasts.
      size: Entries of a set; broadcasts.
      skips: Whether sets whose threshold is settled are not read again.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        target: jax.Array,
        shift: np.ndarray,
        size: np.ndarray,
        *,
        skips: bool = False,
    ):
        # In `jax.shard_map` the carry of a loop has to vary over the devices from the
        # start if it does so later; adding 0 times an entry makes it vary.
        for part in (part for slot in slots for part in slot.parts):
            if part.scores.size:
                target = target + _nothing(part.scores) + _nothing(part.candidates)
        self.slots, self.target, self.skips = slots, target, skips
        self.shift = np.asarray(shift, np.uint32)
        self.size = np.asarray(size, np.uint32)
        self.zero = (np.uint32(0x7F000000) >> self.shift) + np.uint32(1)
        self.top = np.uint32(2) * self.zero + np.uint32(1)

    def value(self, key: jax.Array) -> jax.Array:
        """Returns the lowest float32 of a key: -inf for 0, 0 for `zero`, NaN for `top`.

        The bits of a non-negative float, read as an integer, have the order of the
        floats. So a key is the distance from zero in units of `2**shift` of these bits,
        upwards for positive floats, downwards for negative ones.
        """
        distance = jnp.where(key < self.zero, self.zero - key, key - self.zero)
        bits = jnp.uint32(0x00800000) + ((distance - 1) << self.shift)
        # Zero and the denormals have one key; this is the lowest of them.
        bits = jnp.where(distance == 0, jnp.uint32(0x007FFFFF), bits)
        bits = jnp.where(key > self.zero, bits, bits | jnp.uint32(0x80000000))
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def at_least(self, ends: jax.Array, active: jax.Array) -> jax.Array:
        """Returns how many candidates of each set score at least `ends`, [K, ...]."""

        def test(part: Part, ends: jax.Array) -> list[jax.Array]:
            x = part.values()
            return [(x >= end) & part.candidates for end in ends]

        return self._tally(test, active, ends)

    def before(
        self, ends: jax.Array, active: jax.Array, low: jax.Array, high: jax.Array
    ) -> jax.Array:
        """Returns how many candidates with scores in [low, high) lie before indices.

        Args:
          ends: The indices, uint32 [K, sets, ...].
          active: Sets whose count is needed, bool [sets, ...].
          low: Inclusive lower scores, float32 [sets, ...].
          high: Exclusive upper scores, float32 [sets, ...].

        Returns:
          Counts, int32 [K, sets, ...].
        """

        def test(
            part: Part, ends: jax.Array, low: jax.Array, high: jax.Array
        ) -> list[jax.Array]:
            x, index = part.values(), part.place()
            tied = part.candidates & (x >= low[0]) & ~(x >= high[0])
            return [tied & (index < end) for end in ends]

        return self._tally(test, active, ends, low[None], high[None])

    def _tally(self, test: _Test, active: jax.Array, *keys: jax.Array) -> jax.Array:
        blocks = []
        for slot in self.slots:
            own = [k[:, slot.where].reshape(k.shape[0], *slot.shape) for k in keys]
            shape = keys[0][:, slot.where].shape

            def read(slot: Slot = slot, own: list = own, shape: tuple = shape):
                counts = [_total(test(part, *own), part.axes) for part in slot.parts]
                return functools.reduce(jnp.add, counts).reshape(shape)

            if self.skips:
                # `lax.cond` saves the read of an array whose threshold is settled. Its
                # branches must have one type in `jax.shard_map`, so the counts of the
                # unread branch depend on `here`.
                here = jnp.any(active[slot.where])
                unread = jnp.broadcast_to(0 * here.astype(jnp.int32), shape)
                blocks.append(jax.lax.cond(here, read, lambda x=unread: x))
            else:
                blocks.append(read())
        return jnp.concatenate(blocks, 1)

    def narrowed(self, pivots: jax.Array | None = None) -> tuple[Bracket, jax.Array]:
        """Returns the settled brackets of the thresholds, and the reads, int32."""
        zero = 0 * self.target
        top = jnp.asarray(self.top) + zero.astype(jnp.uint32)
        bracket = Bracket(
            # A target of 0 starts settled, with no entry above the threshold. The count
            # at key 0 is unknown because it would cost a read.
            jnp.where(self.target > 0, jnp.uint32(0), top),
            top,
            _UNKNOWN + zero,
            zero,
        )
        return search(self.at_least, self.value, bracket, self.target, pivots)

    def chosen(
        self, bracket: Bracket
    ) -> tuple[list[tuple[Slot, list[jax.Array]]], jax.Array]:
        """Returns the choices by slot, with ties cut by the index, and the reads."""
        low, high = bracket.low, bracket.high
        size = jnp.asarray(self.size) + 0 * low

        all_of, some_of = self.value(high), self.value(low)

        # Entries above the bracket are chosen whatever their index, so they count from
        # the start.
        # `search` wants counts that fall as keys rise, so key = size - index.
        def count(ends: jax.Array, active: jax.Array) -> jax.Array:
            return bracket.at_high + self.before(ends, active, some_of, all_of)

        # Entries tie at the threshold only if the keys are neighbours and the count at
        # `low` exceeds the target. All other searches start settled, without a cut.
        straddle = (high - low == 1) & (bracket.at_low > self.target)
        at_low = jnp.where(straddle, bracket.at_low, self.target)
        start = Bracket(0 * low, size, at_low, bracket.at_high)
        cut, reads = search(count, lambda keys: size - keys, start, self.target)
        end = size - cut.low

        def choose(slot: Slot, part: Part) -> jax.Array:
            first, last, stop = (
                a[slot.where].reshape(slot.shape) for a in (some_of, all_of, end)
            )
            x = part.values()
            tied = (x >= first) & (part.place() < stop)
            return part.candidates & ((x >= last) | tied)

        return [
            (slot, [choose(slot, part) for part in slot.parts]) for slot in self.slots
        ], reads


def _nothing(x: jax.Array) -> jax.Array:
    """Returns 0, as a value that depends on the array."""
    return 0 * (x[(0,) * x.ndim] > 0).astype(jnp.int32)


def _total(flags: Sequence[jax.Array], axes: tuple[int, ...]) -> jax.Array:
    """Returns how often each flag is True along the axes, int32, stacked."""
    counts, shape = tuple(flag.astype(jnp.int32) for flag in flags), flags[0].shape
    # As many of the last axes as make a row that is worth a core.
    cut = len(shape)
    while cut > 1 and math.prod(shape[cut:]) < _ROW:
        cut -= 1
    # XLA:CPU adds rows on all cores, but a whole array on one core. On several devices
    # rows that are sharded would be communicated one by one, so not there.
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    if alone and len(axes) == len(shape) and math.prod(shape[cut:]) >= _ROW:
        counts = _add(counts, axes[cut:])
        axes = axes[:cut]
    return jnp.stack(_add(counts, axes))


def _add(counts: tuple[jax.Array, ...], axes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    return jax.lax.reduce(
        counts,
        (jnp.int32(0),) * len(counts),
        lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
        axes,
    )
