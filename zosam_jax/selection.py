"""The exact selection of the highest scores."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def select(
    scores: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    counts: Sequence[jax.typing.ArrayLike],
) -> list[jax.Array]:
    """The `counts[i]` highest scoring candidates of every array i, exactly.

    Ties go to the lower index, NaN scores lowest. Nothing is sorted: the 32 bits of the
    threshold are found one by one, for all arrays in the same loop, by counting. So
    counts may be traced, and an array of any size costs 32 reads.

    Args:
      scores: Float arrays; compared as float32.
      candidates: Boolean arrays of the same shapes.
      counts: How many to choose of each; no more than it has candidates.

    Returns:
      Boolean arrays: True where chosen.
    """
    ranks = [
        jnp.where(c, _ordered_bits(s), jnp.uint32(0))
        for s, c in zip(scores, candidates, strict=True)
    ]
    counts = [jnp.asarray(k, jnp.int32) for k in counts]

    def set_bit(i: jax.Array, thresholds: list[jax.Array]) -> list[jax.Array]:
        bit = jnp.uint32(1) << jnp.asarray(31 - i, jnp.uint32)
        return [
            jnp.where(jnp.sum(r >= (t | bit), dtype=jnp.int32) >= k, t | bit, t)
            for r, t, k in zip(ranks, thresholds, counts, strict=True)
        ]

    start = [jnp.uint32(0)] * len(ranks)
    thresholds = jax.lax.fori_loop(0, 32, set_bit, start)
    return [
        (r > t) | _first(r == t, k - jnp.sum(r > t, dtype=jnp.int32))
        for r, t, k in zip(ranks, thresholds, counts, strict=True)
    ]


def _first(flags: jax.Array, count: jax.Array) -> jax.Array:
    """The first `count` True entries, in row-major order."""
    order = jnp.cumsum(flags.reshape(-1), dtype=jnp.int32).reshape(flags.shape)
    return flags & (order <= count)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """uint32 in the order of the floats, at least 1; NaN lowest, -0 equal to 0."""
    x = jnp.where(jnp.isnan(x), -jnp.inf, x.astype(jnp.float32))
    x = jnp.where(x == 0, jnp.float32(0), x)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def select_across(
    scores: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    count: jax.typing.ArrayLike,
) -> list[jax.Array]:
    """The `count` highest scoring candidates of all arrays together."""
    flat = jnp.concatenate([s.reshape(-1).astype(jnp.float32) for s in scores])
    open_ = jnp.concatenate([m.reshape(-1) for m in candidates])
    (chosen,) = select([flat], [open_], [count])
    out, start = [], 0
    for s in scores:
        out.append(chosen[start : start + s.size].reshape(s.shape))
        start += s.size
    return out
