"""Thresholds by search: keys of floats, brackets, and counts of what lies above.

The algorithm is described in `selection`, which builds pools and reads their answers.
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
_ROW = 512  # least entries that are added up as a row
_EQUAL = 3  # pivots at equal distances
_UNKNOWN = np.int32(2**31 - 1)


class Bracket(NamedTuple):
    """Keys uint32, counts int32: at_low of `low` >= target > at_high of `high`."""

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
    """The bracket narrowed until it is settled, and the reads that took, int32.

    `ends` maps keys (K, ...) to what `count` maps to counts, which fall as the keys
    rise. Where the second argument of `count` is False, it may return anything.
    """

    def unsettled(bracket: Bracket) -> jax.Array:
        return (bracket.high - bracket.low > 1) & (bracket.at_low != target)

    def narrow(carry: tuple) -> tuple:
        bracket, pivots, at, reads = carry
        active = unsettled(bracket)
        counts = count(at, active)
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
        # Ends made by the loop before are not made again for every entry.
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
    """Of the standard normal distribution, at equal steps of probability."""
    normal = NormalDist()
    return [normal.inv_cdf((i + 0.5) / number) for i in range(number)]


_ERRORS = np.array([-3.5, *_quantiles(PIVOTS - _EQUAL - 2), 3.5], np.float32)
_EVEN = (np.arange(len(_ERRORS), dtype=np.float32) + 0.5) / len(_ERRORS)
_SHARES = np.arange(1, _EQUAL + 1, dtype=np.float32) / (_EQUAL + 1)
# A sample puts the threshold within 4 standard errors of the middle.
_FIRST = 0.5 + np.array(_quantiles(PIVOTS - 5), np.float32) / 8
_HALVES = np.float32(2.0) ** -np.arange(1, PIVOTS - 4, dtype=np.float32)


def _pivots(bracket: Bracket, target: jax.Array) -> jax.Array:
    """Keys to count at, inside the bracket, (K, ...)."""
    low, high, at_low, at_high = bracket
    column = (-1,) + (1,) * target.ndim
    inside = (at_low - at_high).astype(jnp.float32)
    # Where the threshold is expected among `inside` entries spread evenly.
    place = ((at_low - target).astype(jnp.float32) + 0.5) / (inside + 1)
    error = jnp.sqrt(jnp.maximum(place * (1 - place), 0) / (inside + 2))
    guess = jnp.clip(place + error * _ERRORS.reshape(column), 0, 1)
    guess = jnp.where(at_low == _UNKNOWN, _EVEN.reshape(column), guess)
    shares = jnp.broadcast_to(_SHARES.reshape(column), (_EQUAL, *target.shape))
    keys = _between(low, high, jnp.concatenate([shares, guess]))
    return jnp.clip(keys, low + 1, jnp.maximum(high, 1) - 1)


def _between(low: jax.Array, high: jax.Array, share: jax.Array) -> jax.Array:
    width = high - low
    step = (share * width.astype(jnp.float32)).astype(jnp.uint32)
    return low + jnp.minimum(step, width)


def around(low: jax.Array, high: jax.Array, top: np.ndarray) -> jax.Array:
    """The first pivots, where a sample puts the threshold between two keys, (K, L)."""
    # Each with its successor: an array of few distinct values is settled at once.
    ends = jnp.stack([jnp.zeros_like(low), low, low + 1, high, high + 1])
    shares = jnp.where(low == 0, 1 - _HALVES[:, None], _FIRST[:, None])
    shares = jnp.where(high == top, _HALVES[:, None], shares)
    return jnp.concatenate([jnp.minimum(ends, top), _between(low, high, shares)])


class Part(NamedTuple):
    """An array of scores; the entries along `axes` share a threshold."""

    scores: jax.Array
    candidates: jax.Array
    axes: tuple[int, ...]
    start: int = 0  # index of its first entry among those that share the threshold

    def values(self) -> jax.Array:
        x = self.scores.astype(jnp.float32)
        return jnp.where(jnp.isnan(x), -jnp.inf, x)

    def place(self) -> jax.Array:
        """Of an entry among those that share the threshold, row-major, uint32."""
        shape, step = self.scores.shape, 1
        index = jnp.full((), self.start, jnp.uint32)
        for axis in reversed(self.axes):
            place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            index, step = index + jnp.uint32(step) * place, step * shape[axis]
        return index


class Slot(NamedTuple):
    """Arrays read together, and their place on the first axis of all thresholds."""

    parts: list[Part]
    where: slice
    shape: tuple[int, ...]  # of their thresholds, to broadcast against the scores


_Test = Callable[..., list[jax.Array]]


class Pool:
    """Sets of entries with a threshold each: `target` highest of every one.

    `shift` and `size` (entries of a set) broadcast to the shape of `target`.
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
        # In `jax.shard_map` a loop keeps the types it starts with, so they are those
        # of values that differ between the devices from the start.
        for part in (part for slot in slots for part in slot.parts):
            if part.scores.size:
                target = target + _nothing(part.scores) + _nothing(part.candidates)
        self.slots, self.target, self.skips = slots, target, skips
        self.shift = np.asarray(shift, np.uint32)
        self.size = np.asarray(size, np.uint32)
        self.zero = (np.uint32(0x7F000000) >> self.shift) + np.uint32(1)
        self.top = np.uint32(2) * self.zero + np.uint32(1)

    def value(self, key: jax.Array) -> jax.Array:
        """The least float32 of a key: -inf has key 0, 0 `zero`, and `top` is NaN."""
        distance = jnp.where(key < self.zero, self.zero - key, key - self.zero)
        bits = jnp.uint32(0x00800000) + ((distance - 1) << self.shift)
        # Zero shares its key with the denormals, of which this is the lowest.
        bits = jnp.where(distance == 0, jnp.uint32(0x007FFFFF), bits)
        bits = jnp.where(key > self.zero, bits, bits | jnp.uint32(0x80000000))
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def at_least(self, ends: jax.Array, active: jax.Array) -> jax.Array:
        """How many candidates of each set have at least the scores, (K, ...)."""

        def test(part: Part, ends: jax.Array) -> list[jax.Array]:
            x = part.values()
            return [(x >= end) & part.candidates for end in ends]

        return self._tally(test, active, ends)

    def before(
        self, ends: jax.Array, active: jax.Array, low: jax.Array, high: jax.Array
    ) -> jax.Array:
        """How many candidates with scores in [low, high) lie before the indices."""

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
                here = jnp.any(active[slot.where])
                unread = jnp.broadcast_to(0 * here.astype(jnp.int32), shape)
                blocks.append(jax.lax.cond(here, read, lambda x=unread: x))
            else:
                blocks.append(read())
        return jnp.concatenate(blocks, 1)

    def narrowed(self, pivots: jax.Array | None = None) -> tuple[Bracket, jax.Array]:
        """The settled brackets of the thresholds, and the reads, int32."""
        zero = 0 * self.target
        top = jnp.asarray(self.top) + zero.astype(jnp.uint32)
        bracket = Bracket(
            jnp.where(self.target > 0, jnp.uint32(0), top),
            top,
            _UNKNOWN + zero,
            zero,
        )
        return search(self.at_least, self.value, bracket, self.target, pivots)

    def chosen(
        self, bracket: Bracket
    ) -> tuple[list[tuple[Slot, list[jax.Array]]], jax.Array]:
        """The choices by slot, ties cut by the index, and the reads for that."""
        low, high = bracket.low, bracket.high
        size = jnp.asarray(self.size) + 0 * low

        all_of, some_of = self.value(high), self.value(low)

        # The key of an index falls as it rises, so that counts fall as keys rise.
        def count(ends: jax.Array, active: jax.Array) -> jax.Array:
            return bracket.at_high + self.before(ends, active, some_of, all_of)

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
    """0, in the type of what depends on an array."""
    return 0 * (x[(0,) * x.ndim] > 0).astype(jnp.int32)


def _total(flags: Sequence[jax.Array], axes: tuple[int, ...]) -> jax.Array:
    """How often each flag is True along the axes, int32, stacked."""
    counts, shape = tuple(flag.astype(jnp.int32) for flag in flags), flags[0].shape
    cut = len(shape)
    while cut > 1 and math.prod(shape[cut:]) < _ROW:
        cut -= 1
    # XLA:CPU adds rows on all cores, a whole array on one. But what lies along a row on
    # several devices would travel for every row, instead of once.
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
