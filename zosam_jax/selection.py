r"""Exact selection of the highest scores by search of a threshold, without a sort.

With :math:`c(t)` the number of candidates whose score is at least :math:`t`, the
:math:`k` highest are those above the largest :math:`t` for which :math:`c(t) \ge k`.
:math:`c` is a sum over entries, so it shards: each device counts its own part, and what
travels is a few integers.

The floats are numbered in their order by integer keys; a bracket `low < high` of keys
holds :math:`c(low) \ge k > c(high)`. Each read of the scores counts them against
`PIVOTS` keys at once: some where linear interpolation between the counts at the ends
puts the threshold, spread by its standard error, some at equal distances. It ends when
:math:`c(low) = k`, whatever the exact key, or when the bracket holds one key. Then
entries of that key tie, and the same search over the index finds how many of them to
take. A set of more than `SAMPLED` entries is first bracketed from a sample of about
1/256 of its entries. A poor bracket or interpolation costs reads, never exactness.

Cost of a large array without a tie at the threshold: about 3 reads, and one that
writes the result. With the :math:`n` entries, the sample leaves a bracket of
:math:`O(\sqrt n)` of them, the next read :math:`O(n^{1/4} / \mathrm{PIVOTS})`. The keys
at equal distances shrink any bracket 4 times, so no scores cost more than 16 reads, and
ties no more than 16 others.

Scores are compared as float32. NaN is the lowest, a tie with -infinity; -0, 0 and the
denormals, which XLA flushes on a CPU, tie.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PIVOTS = 16
SAMPLED = 2**16
_SAMPLE = (2**12, 2**18)  # least and most entries of a sample
_EQUAL = 3  # pivots at equal distances
_PAIRWISE = 32  # groups of at most this size are ranked pair by pair

# Trailing zeros of the dtype's numbers in float32.
_SHIFT = {"bfloat16": 16, "float16": 13, "float32": 0}
_UNKNOWN = np.int32(2**31 - 1)


def select(
    scores: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    counts: Sequence[jax.typing.ArrayLike],
) -> list[jax.Array]:
    """The `counts[i]` highest scoring candidates of every array i, exactly.

    Ties go to the lower index, NaN scores lowest. Counts may be traced.

    Args:
      scores: Float arrays of fewer than 2^31 entries; compared as float32.
      candidates: Boolean arrays of the same shapes.
      counts: How many to choose of each. All candidates, where there are no more.

    Returns:
      Boolean arrays: True where chosen.
    """
    sets = [[pair] for pair in zip(scores, candidates, strict=True)]
    return [chosen for (chosen,) in _select(sets, counts)[0]]


def select_across(
    scores: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    count: jax.typing.ArrayLike,
) -> list[jax.Array]:
    """The `count` highest scoring candidates of all arrays together, exactly.

    As `select` of the arrays laid end to end, without laying them so: ties go to the
    earlier array, then to the lower index.

    Args:
      scores: Float arrays of fewer than 2^31 entries together; compared as float32.
      candidates: Boolean arrays of the same shapes.
      count: How many to choose, scalar; may be traced.

    Returns:
      Boolean arrays: True where chosen.
    """
    return _select([list(zip(scores, candidates, strict=True))], [count])[0][0]


def select_along(
    scores: jax.Array,
    candidates: jax.Array,
    counts: jax.typing.ArrayLike,
    axes: Sequence[int],
) -> jax.Array:
    """The highest scoring candidates of every group of entries, exactly.

    The entries along `axes`, the other indices fixed, are a group. Ties go to the lower
    index, in row-major order over `axes` as they lie in the array; NaN scores lowest.

    Args:
      scores: Float array; compared as float32.
      candidates: Boolean array of the same shape.
      counts: How many to choose of each group; may be traced. An integer, or an integer
        array that broadcasts to the shape of `scores` with `axes` of size 1.
      axes: The axes along which a group extends.

    Returns:
      Boolean array of the shape of `scores`: True where chosen.
    """
    axes = tuple(sorted(axis % scores.ndim for axis in axes))
    size = math.prod(scores.shape[axis] for axis in axes)
    kept = tuple(1 if i in axes else n for i, n in enumerate(scores.shape))
    targets = jnp.broadcast_to(jnp.asarray(counts, jnp.int32), kept)
    if scores.size == 0:
        return jnp.zeros(scores.shape, bool)
    if size <= _PAIRWISE:
        return _by_rank(scores, candidates, targets, axes)
    group = _Group([_Part(scores, candidates, axes)], targets)
    (bracket,), _ = _search([group.at_least], [_wide(group)], [targets])
    (chosen,) = _finish([group], [bracket])[0]
    return chosen[0]


class _Part:
    """An array of scores; its groups extend along `axes`, all axes by default."""

    def __init__(
        self,
        scores: jax.Array,
        candidates: jax.Array,
        axes: tuple[int, ...] | None = None,
        start: int = 0,
    ):
        known = scores.dtype.name in _SHIFT
        self.scores = scores if known else scores.astype(jnp.float32)
        self.candidates = candidates
        self.whole = axes is None
        self.axes = tuple(range(scores.ndim)) if axes is None else axes
        self.start = start
        self.size = math.prod(scores.shape[axis] for axis in self.axes)

    def values(self) -> jax.Array:
        x = self.scores.astype(jnp.float32)
        return jnp.where(jnp.isnan(x), -jnp.inf, x)

    def index(self) -> jax.Array:
        """Of an entry in its group, row-major, from `start`, uint32."""
        shape, step = self.scores.shape, 1
        index = jnp.full((), self.start, jnp.uint32)
        for axis in reversed(self.axes):
            place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
            index, step = index + jnp.uint32(step) * place, step * shape[axis]
        return index

    def total(self, flags: Sequence[jax.Array]) -> jax.Array:
        """How often each flag is True in each group, int32, along a new first axis."""
        counted = jax.lax.reduce(
            tuple(flag.astype(jnp.int32) for flag in flags),
            (jnp.int32(0),) * len(flags),
            lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
            self.axes,
        )
        counted = jnp.stack(counted)
        if self.whole:
            return counted
        return jnp.expand_dims(counted, tuple(axis + 1 for axis in self.axes))


class _Group:
    """Arrays that share a threshold, or groups of one array that have one each."""

    def __init__(self, parts: Sequence[_Part], target: jax.Array):
        self.parts, self.target = parts, target
        self.size = sum(part.size for part in parts)
        self.entries = sum(part.scores.size for part in parts)
        names = [part.scores.dtype.name for part in parts]
        self.shift = min((_SHIFT[name] for name in names), default=0)
        self.zero = (0x7F000000 >> self.shift) + 1
        self.top = 2 * self.zero + 1

    def value(self, key: jax.Array) -> jax.Array:
        """The least float32 of a key: -inf has key 0, 0 `zero`, NaN `top`."""
        zero = jnp.uint32(self.zero)
        distance = jnp.where(key < zero, zero - key, key - zero)
        bits = jnp.uint32(0x00800000) + ((distance - 1) << self.shift)
        # Zero shares its key with the denormals, of which this is the lowest.
        bits = jnp.where(distance == 0, jnp.uint32(0x007FFFFF), bits)
        bits = jnp.where(key > zero, bits, bits | jnp.uint32(0x80000000))
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    def at_least(self, pivots: jax.Array) -> jax.Array:
        """How many candidates have at least the keys."""
        least = self.value(pivots)

        def count(part: _Part) -> jax.Array:
            x = part.values()
            return part.total([(x >= v) & part.candidates for v in least])

        return sum(map(count, self.parts), jnp.int32(0))

    def before(self, ends: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
        """How many candidates with keys in [low, high) lie before the indices."""
        first, last = self.value(low), self.value(high)

        def count(part: _Part) -> jax.Array:
            x, index = part.values(), part.index()
            tied = part.candidates & (x >= first) & ~(x >= last)
            return part.total([tied & (index < end) for end in ends])

        return sum(map(count, self.parts), jnp.int32(0))

    def chosen(
        self, low: jax.Array, high: jax.Array, end: jax.Array
    ) -> list[jax.Array]:
        """Candidates of at least `high`, and of at least `low` before index `end`."""
        first, last = self.value(low), self.value(high)

        def choose(part: _Part) -> jax.Array:
            x = part.values()
            tied = (x >= first) & (part.index() < end)
            return part.candidates & ((x >= last) | tied)

        return list(map(choose, self.parts))


class _Bracket(NamedTuple):
    """Keys uint32, counts int32: at_low of `low` >= target > at_high of `high`."""

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array


_Count = Callable[[jax.Array], jax.Array]


def _wide(group: _Group) -> _Bracket:
    top = jnp.full(group.target.shape, group.top, jnp.uint32)
    low = jnp.where(group.target > 0, jnp.uint32(0), top)
    return _Bracket(
        low,
        top,
        jnp.full(group.target.shape, _UNKNOWN),
        jnp.zeros(group.target.shape, jnp.int32),
    )


def _search(
    counts: Sequence[_Count],
    brackets: Sequence[_Bracket],
    targets: Sequence[jax.Array],
    pivots: Sequence[jax.Array] | None = None,
) -> tuple[list[_Bracket], jax.Array]:
    """The brackets narrowed until each is settled, and the reads that took, int32.

    `counts[i]` maps keys (K, ...) to counts that fall as the keys rise.
    """
    if pivots is None:
        pivots = list(map(_pivots, brackets, targets))

    def unsettled(bracket: _Bracket, target: jax.Array) -> jax.Array:
        many = bracket.high - bracket.low > 1
        return jnp.any(many & (bracket.at_low != target))

    def running(carry: tuple) -> jax.Array:
        flags = list(map(unsettled, carry[0], targets))
        return jnp.any(jnp.stack(flags))

    def narrow(carry: tuple) -> tuple:
        brackets, pivots, reads = carry
        brackets = [
            _narrow(bracket, pivot, count(pivot), target)
            for count, bracket, pivot, target in zip(
                counts, brackets, pivots, targets, strict=True
            )
        ]
        return brackets, list(map(_pivots, brackets, targets)), reads + 1

    carry = list(brackets), list(pivots), jnp.int32(0)
    brackets, _, reads = jax.lax.while_loop(running, narrow, carry)
    return brackets, reads


def _narrow(
    bracket: _Bracket, pivots: jax.Array, counts: jax.Array, target: jax.Array
) -> _Bracket:
    enough = counts >= target
    low, high = bracket.low, bracket.high
    return _Bracket(
        jnp.maximum(low, jnp.max(jnp.where(enough, pivots, 0), 0)),
        jnp.minimum(high, jnp.min(jnp.where(enough, high, pivots), 0)),
        jnp.minimum(bracket.at_low, jnp.min(jnp.where(enough, counts, _UNKNOWN), 0)),
        jnp.maximum(bracket.at_high, jnp.max(jnp.where(enough, 0, counts), 0)),
    )


def _quantiles(number: int) -> list[float]:
    """Of the standard normal distribution, at equal steps of probability."""
    normal = NormalDist()
    return [normal.inv_cdf((i + 0.5) / number) for i in range(number)]


_ERRORS = np.array([-3.5, *_quantiles(PIVOTS - _EQUAL - 2), 3.5], np.float32)
_SHARES = np.arange(1, _EQUAL + 1, dtype=np.float32) / (_EQUAL + 1)
_FIRST = 0.5 + np.array(_quantiles(PIVOTS - 5), np.float32) / 8


def _pivots(bracket: _Bracket, target: jax.Array) -> jax.Array:
    """Keys to count at, inside the bracket."""
    ones = (1,) * target.ndim
    inside = (bracket.at_low - bracket.at_high).astype(jnp.float32)
    below = (bracket.at_low - target).astype(jnp.float32)
    # Where the threshold is expected among `inside` entries spread evenly.
    place = (below + 0.5) / (inside + 1)
    error = jnp.sqrt(jnp.maximum(place * (1 - place), 0) / (inside + 2))
    guess = place + error * _ERRORS.reshape(-1, *ones)
    even = (np.arange(len(_ERRORS), dtype=np.float32) + 0.5) / len(_ERRORS)
    known = bracket.at_low != _UNKNOWN
    guess = jnp.where(known, jnp.clip(guess, 0, 1), even.reshape(-1, *ones))
    shares = jnp.broadcast_to(_SHARES.reshape(-1, *ones), (_EQUAL, *target.shape))
    shares = jnp.concatenate([shares, guess])
    keys = _between(bracket.low, bracket.high, shares)
    # A settled bracket may have no key inside: any pivot of it will do.
    return jnp.clip(keys, bracket.low + 1, jnp.maximum(bracket.high, 1) - 1)


def _between(low: jax.Array, high: jax.Array, share: jax.Array) -> jax.Array:
    width = high - low
    step = (share * width.astype(jnp.float32)).astype(jnp.uint32)
    return low + jnp.minimum(step, width)


def _select(
    sets: Sequence[Sequence[tuple[jax.Array, jax.Array]]],
    counts: Sequence[jax.typing.ArrayLike],
) -> tuple[list[list[jax.Array]], jax.Array]:
    """The choice from each set of `(scores, candidates)`, and the reads, int32.

    The reads are those that count in sets large enough to be sampled, for thresholds
    and for ties, the most that a set takes.
    """
    groups = []
    for pairs, count in zip(sets, counts, strict=True):
        parts, start = [], 0
        for scores, candidates in pairs:
            parts.append(_Part(scores, candidates, start=start))
            start += scores.size
        groups.append(_Group(parts, jnp.asarray(count, jnp.int32)))
    large = [i for i, group in enumerate(groups) if group.entries > SAMPLED]
    small = [i for i, group in enumerate(groups) if 0 < group.entries <= SAMPLED]
    samples = [_sample(groups[i]) for i in large]
    first = [groups[i] for i in small] + samples
    brackets = {}
    reads = jnp.int32(0)
    if first:
        found, _ = _search(
            [group.at_least for group in first],
            [_wide(group) for group in first],
            [group.target for group in first],
        )
        brackets.update(zip(small, found, strict=False))
        if large:
            found, reads = _search(
                [groups[i].at_least for i in large],
                [_wide(groups[i]) for i in large],
                [groups[i].target for i in large],
                [
                    _around(groups[i], bracket.low)
                    for i, bracket in zip(large, found[len(small) :], strict=True)
                ],
            )
            brackets.update(zip(large, found, strict=True))
    order = sorted(brackets)
    chosen, more = _finish([groups[i] for i in order], [brackets[i] for i in order])
    by_set = dict(zip(order, chosen, strict=True))
    nothing = [[jnp.zeros(s.shape, bool) for s, _ in pairs] for pairs in sets]
    return [by_set.get(i, nothing[i]) for i in range(len(sets))], reads + more


def _sample(group: _Group) -> _Group:
    """A sample, searched for two keys: few of the threshold's errors lie outside."""
    least, most = _SAMPLE
    wanted = min(max(2 ** round(math.log2(group.size / 256)), least), most)
    scores, candidates = [], []
    for part in group.parts:
        index = _spread(round(wanted * part.size / group.size), part.scores.shape)
        scores.append(part.scores[index].astype(jnp.float32))
        candidates.append(part.candidates[index])
    flat, flags = jnp.concatenate(scores)[None], jnp.concatenate(candidates)[None]
    share = group.target.astype(jnp.float32) / group.size
    middle = share * flat.size
    margin = 4 * jnp.sqrt(jnp.maximum(middle * (1 - share), 0)) + 2
    ends = jnp.stack([jnp.ceil(middle + margin), jnp.floor(middle - margin)])
    target = jnp.clip(ends, 0, flat.size).astype(jnp.int32)[:, None]
    sample = _Group([_Part(flat, flags, (1,))], target)
    sample.shift, sample.zero, sample.top = group.shift, group.zero, group.top
    return sample


def _spread(number: int, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Indices of `number` entries evenly spread: an additive recurrence by axis."""
    # The root of x^(d+1) = x + 1, whose powers are the steps (Roberts' R_d sequence).
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (len(shape) + 1))
    i = jax.lax.iota(jnp.uint32, number)
    index = []
    for axis, size in enumerate(shape):
        step = int(root ** -(axis + 1) * 2**32) | 1
        place = (i * jnp.uint32(step) >> 8).astype(jnp.float32) * jnp.float32(2**-24)
        index.append(jnp.minimum((place * size).astype(jnp.int32), size - 1))
    return tuple(index)


def _around(group: _Group, keys: jax.Array) -> jax.Array:
    """The first pivots, from two keys between which a sample puts the threshold."""
    low, high = keys.reshape(2)
    top = jnp.uint32(group.top)
    # Each with its successor: an array of few distinct values is settled at once.
    ends = jnp.stack([jnp.zeros_like(low), low, low + 1, high, high + 1])
    return jnp.concatenate([jnp.minimum(ends, top), _between(low, high, _FIRST)])


def _finish(
    groups: Sequence[_Group], brackets: Sequence[_Bracket]
) -> tuple[list[list[jax.Array]], jax.Array]:
    """The choices that settled brackets make, ties cut by the index, and the reads."""
    if not groups:
        return [], jnp.int32(0)

    def ties(group: _Group, bracket: _Bracket) -> tuple[_Count, _Bracket]:
        # The key of an index falls as it rises, as the counts do with keys.
        def count(keys: jax.Array) -> jax.Array:
            ends = jnp.uint32(group.size) - keys
            return bracket.at_high + group.before(ends, bracket.low, bracket.high)

        target = group.target
        one = bracket.high - bracket.low == 1
        straddle = one & (bracket.at_low > target)
        zero = jnp.zeros(target.shape, jnp.uint32)
        at_low = jnp.where(straddle, bracket.at_low, target)
        high = jnp.full(target.shape, group.size, jnp.uint32)
        return count, _Bracket(zero, high, at_low, bracket.at_high)

    counts, starts = zip(*map(ties, groups, brackets), strict=True)
    found, reads = _search(counts, starts, [group.target for group in groups])
    return [
        group.chosen(bracket.low, bracket.high, jnp.uint32(group.size) - cut.low)
        for group, bracket, cut in zip(groups, brackets, found, strict=True)
    ], reads


def _by_rank(
    scores: jax.Array,
    candidates: jax.Array,
    targets: jax.Array,
    axes: tuple[int, ...],
) -> jax.Array:
    """Of small groups, those entries that fewer than the target come before."""
    x = _Part(scores, candidates).values()
    index = _Part(scores, candidates, axes).index()
    ahead = jnp.zeros(scores.shape, jnp.int32)
    shape = tuple(scores.shape[axis] for axis in axes)
    for i, place in enumerate(np.ndindex(shape)):
        cut = [slice(None)] * scores.ndim
        for axis, j in zip(axes, place, strict=True):
            cut[axis] = slice(j, j + 1)
        other, counted = x[tuple(cut)], candidates[tuple(cut)]
        wins = (other > x) | ((other == x) & (jnp.uint32(i) < index))
        ahead += (counted & wins).astype(jnp.int32)
    return candidates & (ahead < targets)
