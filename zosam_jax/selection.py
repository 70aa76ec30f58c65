r"""Exact selection of the highest scores by a search for the threshold, without a sort.

Let :math:`c(t)` be the number of candidates whose score is at least :math:`t`. The
:math:`k` highest scores are those at or above the largest :math:`t` with
:math:`c(t) \ge k`. Since :math:`c` is a sum over entries, it shards: each device counts
its own entries, and only a few integers are exchanged.

Floats are mapped to integer keys in the order of the floats. A bracket `low < high` of
keys holds :math:`c(low) \ge k > c(high)`. Each read of the scores counts them against
`PIVOTS` keys at once. Some pivots lie where linear interpolation between the counts at
the ends expects the threshold, spread by its standard error; some are equally spaced.
The search ends when :math:`c(low) = k`, whatever the exact key, or when `low` and
`high` are neighbours. In the second case the entries of one key tie, and the same
search over the index finds how many of them to take. For a set of more than `SAMPLED`
entries, a sample of about 1/256 of the entries, at most 2^16, gives the first bracket.
A poor bracket or interpolation costs reads, never exactness.

Cost of a large set of :math:`n` entries without a tie at the threshold: about 3 reads,
and one that writes the result. After the first read, whose pivots come from the sample,
about a thousandth of the entries is left in the bracket; after the second, about the
square root of those. A tie at the threshold takes one or two reads more; with 10^8
float32 scores it is common. The equally spaced pivots shrink any bracket 4 times, so
the threshold takes at most 18 reads, and ties at most 17 more. Smaller sets are copied
side by side and searched in one loop; if they are sharded, they are gathered.

Scores are compared as float32. NaN is lowest and ties with -infinity. -0, 0 and the
denormals, which XLA flushes to 0 on a CPU, tie.
"""

import functools
import itertools
import math
import typing
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._programs import unstack
from zosam_jax._threshold import Part, Pool, Slot, around

SAMPLED = 2**16
_SAMPLE = (2**12, 2**16)  # Bounds of the size of a sample.
_PAIRWISE = 32  # Groups up to this size are ranked pair by pair.

# Trailing zero bits of the dtype's numbers in float32.
_SHIFT = {"bfloat16": 16, "float16": 13, "float32": 0}
_Pair = tuple[jax.Array, jax.Array]
_F = TypeVar("_F", bound=Callable[..., object])


def _promotes(function: _F) -> _F:
    """Returns the function with JAX's default promotion, whatever the user has set.

    The search mixes int32 counts, uint32 keys and float32 shares, of sets and pivots.
    It calls no function of the user.
    """

    @functools.wraps(function)
    def promoting(*args: object, **kwargs: object) -> object:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return typing.cast(_F, promoting)


@_promotes
def select(
    scores: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    counts: Sequence[jax.typing.ArrayLike],
) -> list[jax.Array]:
    """Returns the `counts[i]` highest scoring candidates of every array i, exactly.

    Ties go to the lower index; NaN scores lowest.

    Args:
      scores: Float arrays of fewer than 2^31 entries; compared as float32.
      candidates: Boolean arrays of the same shapes.
      counts: How many to choose of each; may be traced. If there are fewer candidates,
        all of them are chosen.

    Returns:
      Boolean arrays: True where chosen.

    Example:
      >>> import jax, numpy as np
      >>> from zosam_jax.selection import select
      >>> highest = jax.jit(lambda x: select([x], [x > 0], [2])[0])
      >>> print(highest(np.array([3.0, 1.0, 2.0])))
      [ True False  True]
    """
    sets = [[pair] for pair in zip(scores, candidates, strict=True)]
    return [chosen for (chosen,) in _select(sets, counts)[0]]


@_promotes
def select_across(
    scores: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    count: jax.typing.ArrayLike,
) -> list[jax.Array]:
    """Returns the `count` highest scoring candidates of all arrays together, exactly.

    It equals `select` on the concatenated arrays, without a copy of them: ties go to
    the earlier array, then to the lower index.

    Args:
      scores: Float arrays of fewer than 2^31 entries together; compared as float32.
      candidates: Boolean arrays of the same shapes.
      count: How many to choose, scalar; may be traced.

    Returns:
      Boolean arrays: True where chosen.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax import selection
      >>> scores = [jnp.array([9.0, 8.0]), jnp.array([1.0])]
      >>> every = [jnp.array([True, True]), jnp.array([True])]
      >>> print(*selection.select_across(scores, every, 2))
      [ True  True] [False]
    """
    return _select([list(zip(scores, candidates, strict=True))], [count])[0][0]


@_promotes
def select_globally(
    scores: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    count: jax.typing.ArrayLike,
) -> list[jax.Array]:
    """Returns what `select_across` does, but with the best candidate of every array.

    Args:
      scores: Float arrays of fewer than 2^31 entries together; compared as float32.
      candidates: Boolean arrays of the same shapes.
      count: How many to choose, scalar, at least the number of arrays; may be traced.

    Returns:
      Boolean arrays: True where chosen.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax import selection
      >>> scores = [jnp.array([9.0, 8.0]), jnp.array([1.0])]
      >>> every = [jnp.array([True, True]), jnp.array([True])]
      >>> print(*selection.select_globally(scores, every, 2))
      [ True False] [ True]
    """
    # With an infinite score, the best candidate of each array is among the chosen ones.
    raised = [_best_first(x, c) for x, c in zip(scores, candidates, strict=True)]
    return select_across(raised, candidates, count)


def _best_first(score: jax.Array, candidates: jax.Array) -> jax.Array:
    """Returns the scores, with infinity for the best candidate."""
    wide = jnp.where(candidates, score.astype(jnp.float32), -jnp.inf)
    wide = jnp.where(jnp.isnan(wide), -jnp.inf, wide)
    # Not argmax: it flattens the array, and so gathers a sharded one.
    index = sum(
        jax.lax.broadcasted_iota(jnp.uint32, wide.shape, axis)
        * jnp.uint32(math.prod(wide.shape[axis + 1 :]))
        for axis in range(wide.ndim)
    )
    best = candidates & (wide == jnp.max(wide, initial=-jnp.inf, where=candidates))
    first = jnp.min(index, initial=np.uint32(0xFFFFFFFF), where=best)
    return jnp.where(best & (index == first), jnp.inf, wide)


@_promotes
def select_along(
    scores: jax.Array,
    candidates: jax.Array,
    counts: jax.typing.ArrayLike,
    axes: Sequence[int],
) -> jax.Array:
    """Returns the highest scoring candidates of every group of entries, exactly.

    The entries along `axes`, with the other indices fixed, are a group. Ties go to the
    lower index in row-major order over `axes`; NaN scores lowest.

    Args:
      scores: Float array; compared as float32.
      candidates: Boolean array of the same shape.
      counts: How many to choose of each group; may be traced. An integer, or an integer
        array that broadcasts to the shape of `scores` with `axes` of size 1.
      axes: The axes along which a group extends.

    Returns:
      Boolean array of the shape of `scores`: True where chosen.

    Example:
      >>> import jax, numpy as np
      >>> from zosam_jax.selection import select_along
      >>> best_of_row = jax.jit(lambda x: select_along(x, x > 0, 1, axes=[1]))
      >>> print(best_of_row(np.array([[3.0, 1.0], [4.0, 5.0]])))
      [[ True False]
       [False  True]]
    """
    axes = tuple(sorted(axis % scores.ndim for axis in axes))
    return _select_along(scores, candidates, counts, axes)


# Compiled once for each shape, outside of a compiled program too: JAX compiles a loop
# that runs on its own anew at each call.
@functools.partial(jax.jit, static_argnames="axes")
def _select_along(
    scores: jax.Array,
    candidates: jax.Array,
    counts: jax.typing.ArrayLike,
    axes: tuple[int, ...],
) -> jax.Array:
    size = math.prod(scores.shape[axis] for axis in axes)
    kept = tuple(1 if i in axes else n for i, n in enumerate(scores.shape))
    target = jnp.broadcast_to(jnp.asarray(counts, jnp.int32), kept)
    if scores.size == 0:
        return jnp.zeros(scores.shape, bool)
    part = Part(_known(scores), candidates, axes)
    if size <= _PAIRWISE:
        return _by_rank(part, target)
    slot = Slot([part], slice(None), kept)
    shift = np.full(kept, _SHIFT[part.scores.dtype.name])
    pool = Pool([slot], target, shift, np.full(kept, size))
    return pool.chosen(pool.narrowed()[0])[0][0][1][0]


def _known(scores: jax.Array) -> jax.Array:
    return scores if scores.dtype.name in _SHIFT else scores.astype(jnp.float32)


@jax.jit
def _select(
    sets: Sequence[Sequence[_Pair]], counts: Sequence[jax.typing.ArrayLike]
) -> tuple[list[list[jax.Array]], jax.Array]:
    """Returns the choice from each set of `(scores, candidates)`, and the reads, int32.

    Reads are counted for sets that are large enough to be sampled: the largest number
    that one set takes for its threshold, plus the largest number for ties.
    """
    sets = [[(_known(s), c) for s, c in pairs] for pairs in sets]
    targets = [jnp.asarray(count, jnp.int32) for count in counts]
    sizes = [sum(s.size for s, _ in pairs) for pairs in sets]
    shifts = [
        min((_SHIFT[s.dtype.name] for s, _ in pairs), default=0) for pairs in sets
    ]
    chosen = [[jnp.zeros(s.shape, bool) for s, _ in pairs] for pairs in sets]
    small = [i for i, size in enumerate(sizes) if 0 < size <= SAMPLED]
    if small:
        rows = [
            _flat([(s.reshape(-1), c.reshape(-1)) for s, c in sets[i]]) for i in small
        ]
        pool, order = _rows(
            rows, [targets[i] for i in small], [shifts[i] for i in small]
        )
        found = pool.chosen(pool.narrowed()[0])[0]
        flags = [flag for _, (rows,) in found for flag in unstack(rows)]
        for j, flat in zip(order, flags, strict=True):
            start = 0
            for n, (s, _) in enumerate(sets[small[j]]):
                part = jax.lax.slice_in_dim(flat, start, start + s.size)
                chosen[small[j]][n] = part.reshape(s.shape)
                start += s.size
    large = [i for i, size in enumerate(sizes) if size > SAMPLED]
    if not large:
        return chosen, jnp.int32(0)
    pool = Pool(
        [Slot(_parts(sets[i]), slice(j, j + 1), ()) for j, i in enumerate(large)],
        jnp.stack([targets[i] for i in large]),
        np.array([shifts[i] for i in large]),
        np.array([sizes[i] for i in large]),
        skips=True,
    )
    samples = [_sample(sets[i], targets[i]) for i in large]
    sampled, order = _rows(
        [row for row, _ in samples for _ in range(2)],
        [end for _, ends in samples for end in ends],
        [shifts[i] for i in large for _ in range(2)],
    )
    ends = sampled.narrowed()[0].low[np.argsort(order)]
    bracket, reads = pool.narrowed(around(ends[::2], ends[1::2], pool.top))
    picked, more = pool.chosen(bracket)
    for i, (_, flags) in zip(large, picked, strict=True):
        chosen[i] = flags
    return chosen, reads + more


def _parts(pairs: Sequence[_Pair]) -> list[Part]:
    starts = itertools.accumulate((s.size for s, _ in pairs), initial=0)
    return [
        Part(s, c, tuple(range(s.ndim)), start)
        for (s, c), start in zip(pairs, starts, strict=False)
    ]


def _flat(pairs: Sequence[_Pair]) -> _Pair:
    scores = jnp.concatenate([s.astype(jnp.float32) for s, _ in pairs])
    return scores, jnp.concatenate([c for _, c in pairs])


def _rows(
    sets: Sequence[_Pair], targets: Sequence[jax.Array], shifts: Sequence[int]
) -> tuple[Pool, list[int]]:
    """Returns a pool of vectors, padded to few lengths and stacked, and their order."""
    # Few lengths mean few slots, and so a program that compiles fast; powers of 4 pad a
    # set to four times its size at most.
    lengths = [4 ** math.ceil(math.log(s.size, 4) - 1e-9) for s, _ in sets]
    order = sorted(range(len(sets)), key=lambda i: lengths[i])
    slots, start = [], 0
    for length, group in itertools.groupby(order, key=lambda i: lengths[i]):
        # Side by side, not end to end: a device keeps its part of each set.
        padded = [[jnp.pad(x, (0, length - x.size)) for x in sets[i]] for i in group]
        scores, candidates = map(jnp.stack, zip(*padded, strict=True))
        stop = start + len(padded)
        part = Part(scores, candidates, (1,))
        slots.append(Slot([part], slice(start, stop), (stop - start, 1)))
        start = stop
    pool = Pool(
        slots,
        jnp.stack([targets[i] for i in order]),
        np.array([shifts[i] for i in order]),
        np.array([lengths[i] for i in order]),
    )
    return pool, order


def _sample(
    pairs: Sequence[_Pair], target: jax.Array
) -> tuple[_Pair, tuple[jax.Array, jax.Array]]:
    """Returns a sample of a set, and the ranks in it between which the threshold lies.

    Of n sampled entries, the number above the threshold is binomial with p = target /
    size. The ranks are 4 standard errors away from n p.
    """
    size = sum(s.size for s, _ in pairs)
    least, most = _SAMPLE
    wanted = min(max(4 ** round(math.log(size / 256, 4)), least), most)
    taken = []
    for scores, candidates in pairs:
        number = round(wanted * scores.size / size)
        if number and scores.ndim:
            index = _spread(number, scores.shape)
            taken.append((scores[index], candidates[index]))
    row = _flat(taken)
    share = target.astype(jnp.float32) / size
    middle = share * row[0].size
    margin = 4 * jnp.sqrt(jnp.maximum(middle * (1 - share), 0)) + 2
    ends = jnp.stack([jnp.ceil(middle + margin), jnp.floor(middle - margin)])
    # Rank 0 gives the top key, which leaves the upper side of the bracket open.
    ends = jnp.clip(ends, 0, row[0].size).astype(jnp.int32)
    return row, (ends[0], ends[1])


def _spread(number: int, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Returns indices of `number` entries, evenly spread: an additive recurrence."""
    # The steps are the inverse powers of the root of x^(d+1) = x + 1 (Roberts' R_d
    # sequence): in d dimensions it leaves no gaps, whatever the number of points.
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (len(shape) + 1))
    i = jax.lax.iota(jnp.uint32, number)
    index = []
    for axis, size in enumerate(shape):
        step = np.uint32(int(root ** -(axis + 1) * 2**32) | 1)
        place = (i * step >> 8).astype(jnp.float32) * jnp.float32(2**-24)
        index.append(jnp.minimum((place * size).astype(jnp.int32), size - 1))
    return tuple(index)


def _by_rank(part: Part, target: jax.Array) -> jax.Array:
    """Returns the choice from small groups: entries with fewer than `target` ahead."""
    x, candidates, index = part.values(), part.candidates, part.place()
    ahead = jnp.zeros(x.shape, jnp.int32)
    for i, place in enumerate(np.ndindex(*(x.shape[axis] for axis in part.axes))):
        cut = [slice(None)] * x.ndim
        for axis, j in zip(part.axes, place, strict=True):
            cut[axis] = slice(j, j + 1)
        other, counted = x[tuple(cut)], candidates[tuple(cut)]
        # A tie goes to the lower index, as in the search.
        wins = (other > x) | ((other == x) & (jnp.uint32(i) < index))
        ahead += (counted & wins).astype(jnp.int32)
    return candidates & (ahead < target)
