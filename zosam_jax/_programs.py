"""Programs that grow little with the number of leaves.

XLA compiles every kernel that differs from the others, and takes most of its time for
them. A program that treats the leaves one by one has kernels for every leaf, so four
habits keep it small.

1. Leaves of equal length share a loop. `draw` fills the leaves that have one length in
   one `lax.map`; the selection of the highest scores searches small ones in one loop.
2. Kernels that differ in nothing but their buffers are compiled once, so that twelve
   equal blocks cost as much as one. A constant index into a stack makes a kernel of its
   own; `unstack` takes the indices from a buffer.
3. A scalar that all leaves use is computed once. XLA repeats a cheap scalar in each
   kernel that uses it. If it is a sum over leaves, then the program grows with the
   square of their number; `once` prevents that.
4. Small leaves are laid end to end before one operation looks at all of them, as
   `finite` does; an accelerator launches one kernel then, not many.

Nothing here lays leaves end to end, except for small ones: a leaf of more than `SMALL`
entries keeps its shape, and with it its sharding.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

TINY, SMALL = 2**10, 2**16
"""Leaves of at most `SMALL` entries are drawn by length, `TINY` or a power of two."""

Numbers = TypeVar("Numbers")
Shape = tuple[int, ...]
Sampler = Callable[..., jax.Array]
"""`(key, shape, dtype) -> draws`, such as `jax.random.normal`."""


@jax.jit
def once(values: Numbers) -> Numbers:
    """Returns the values, which XLA computes once and then keeps in a buffer.

    Args:
      values: Pytree of numbers or truth values; best of scalars.
    """
    # XLA takes nothing out of a loop that changes it, and removes a loop of one turn.
    # It may drop `optimization_barrier` before it makes kernels.
    other = jax.tree.map(lambda x: ~x if x.dtype == bool else -x, values)
    return jax.lax.fori_loop(0, 2, lambda *_: values, other)


def unstack(stacked: jax.Array) -> list[jax.Array]:
    """Returns the arrays that are stacked along the first axis.

    Args:
      stacked: Array of one axis or more.
    """
    if len(stacked) == 1:
        return [stacked[0]]
    return [
        jax.lax.dynamic_index_in_dim(stacked, i, keepdims=False)
        for i in _unknown(len(stacked))
    ]


@functools.partial(jax.jit, static_argnums=0)
def _unknown(number: int) -> tuple[jax.Array, ...]:
    """Returns 0, 1, ... as values that XLA does not know."""
    return once(tuple(jnp.uint32(i) for i in range(number)))


def finite(arrays: Sequence[jax.Array]) -> jax.Array:
    """Returns whether all entries of float arrays are finite, bool scalar.

    It equals `tree.all_finite`, but looks at small arrays together: for a change of
    masks, which is rare, and not for every step, since sharded ones have to meet.

    Args:
      arrays: Of any dtypes; those of no float dtype do not count.
    """
    floats = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    large = [x for x in floats if x.size > SMALL]
    small: dict[Any, list[jax.Array]] = {}
    for x in floats:
        if x.size <= SMALL:
            small.setdefault(x.dtype, []).append(x.reshape(-1))
    looked_at = [*large, *map(jnp.concatenate, small.values())]
    flags = [jnp.all(jnp.isfinite(x)) for x in looked_at]
    return once(jnp.all(jnp.stack(flags))) if flags else jnp.asarray(True)


def draw(
    sampler: Sampler,
    key: jax.Array,
    shapes: Sequence[Shape],
    members: Sequence[int] | None = None,
) -> list[jax.Array]:
    """Returns independent draws, float32, one array for each shape.

    Array i has the key `fold_in(key, i)`. With more than `SMALL` entries it is
    `sampler(key, shape)`; else it is the front of a vector whose length is a power of
    two, at least `TINY`. So it depends on nothing but its index and its shape, and a
    large one is computed where it lies.

    Args:
      sampler: `(key, shape, dtype) -> draws`.
      key: One PRNG key.
      shapes: The shapes.
      members: Indices of the arrays that are wanted, in this order. None: all.
    """
    wanted = range(len(shapes)) if members is None else members
    groups: dict[Shape, list[int]] = {}
    for i in wanted:
        groups.setdefault(_drawn(shapes[i]), []).append(i)
    order = [i for group in groups.values() for i in group]
    # One program for all keys, in the order of the groups.
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys, start = fold(key, jnp.asarray(order, jnp.uint32)), 0
    drawn: dict[int, jax.Array] = {}
    for whole, group in groups.items():
        stop = start + len(group)
        rows = _rows(sampler, keys[start:stop], whole)
        start = stop
        for i, row in zip(group, rows, strict=True):
            size = math.prod(shapes[i])
            drawn[i] = row if whole == shapes[i] else row[:size].reshape(shapes[i])
    return [drawn[i] for i in wanted]


def _rows(sampler: Sampler, keys: jax.Array, shape: Shape) -> list[jax.Array]:
    """Returns a draw for each key, in one loop if there are several."""
    if len(keys) == 1:
        return [sampler(keys[0], shape, jnp.float32)]
    return unstack(jax.lax.map(lambda key: sampler(key, shape, jnp.float32), keys))


def parts(shapes: Sequence[Shape]) -> list[list[int]]:
    """Returns the indices of arrays in parts: each large one alone, all small together.

    Args:
      shapes: The shapes.
    """
    small = [i for i, shape in enumerate(shapes) if math.prod(shape) <= SMALL]
    large = [[i] for i, shape in enumerate(shapes) if math.prod(shape) > SMALL]
    return ([small] if small else []) + large


def zero_after(x: jax.Array) -> jax.Array:
    """Returns 0, uint32, which XLA knows only once it has computed a number.

    Args:
      x: Float scalar. Of a NaN, the result is 1.
    """
    # XLA may drop `optimization_barrier` before it decides what to compute first.
    return jnp.isnan(x).astype(jnp.uint32)


def _drawn(shape: Shape) -> Shape:
    """Returns the shape in which an array is drawn."""
    size = math.prod(shape)
    return tuple(shape) if size > SMALL else (max(TINY, 1 << (size - 1).bit_length()),)
