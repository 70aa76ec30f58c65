"""Pytree algebra, in which the estimators and the sparse methods are written.

A mask tree has the structure of the parameters: a boolean array where a leaf is
sparse, a scalar `True` where it is dense. `masks=None` stands for "all dense".
"""

import math
from typing import Any

import jax
import jax.numpy as jnp


def size(tree: Any) -> int:
    """Number of entries of all leaves together."""
    return sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(tree))


def paths(tree: Any) -> list[str]:
    """The key path of every leaf, its parts joined by `/`, in flattening order."""
    with_paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for path, _ in with_paths
    ]


def is_dense(mask: Any) -> bool:
    """Whether a leaf of a mask tree marks a dense leaf: its shape says so."""
    return jnp.ndim(mask) == 0


def mask(tree: Any, masks: Any | None) -> Any:
    """The tree with exact zeros where its mask is False; dense leaves untouched."""
    if masks is None:
        return tree
    return jax.tree.map(
        lambda m, x: x if is_dense(m) else jnp.where(m, x, jnp.zeros_like(x)),
        masks,
        tree,
    )


def add_scaled(x: Any, scale: Any, y: Any) -> Any:
    """`x + scale * y` in float32 or wider, rounded once to the dtypes of `x`."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = _wide(jnp.asarray(a).dtype)
        return (a.astype(wide) + jnp.asarray(scale, wide) * b.astype(wide)).astype(
            jnp.asarray(a).dtype
        )

    return jax.tree.map(leaf, x, y)


def norm(tree: Any) -> jax.Array:
    """The L2 norm over all leaves together, scalar, float32 or wider.

    The largest entry is divided out first, so that the result neither overflows nor
    vanishes as long as it is itself representable.
    """
    _, largest, relative = _relative_norm(tree)
    return largest * relative


def normalize(tree: Any) -> tuple[Any, jax.Array]:
    """`(x / |x|, |x|)`, with zeros for the first where |x| is 0 or not finite."""
    scaled, largest, relative = _relative_norm(tree)
    length = largest * relative
    usable = jnp.isfinite(length) & (length > 0)
    unit = jax.tree.map(lambda x: jnp.where(usable, x / relative, 0), scaled)
    return unit, length


def _relative_norm(tree: Any) -> tuple[Any, jax.Array, jax.Array]:
    wide = [x.astype(_wide(x.dtype)) for x in jax.tree.leaves(tree)]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in wide]))
    divisor = jnp.where(largest > 0, largest, 1)
    scaled = [x / divisor for x in wide]
    relative = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in scaled))
    return jax.tree.unflatten(jax.tree.structure(tree), scaled), largest, relative


def normal_like(key: jax.Array, tree: Any) -> Any:
    """Independent standard normal entries in the shapes of `tree`, float32.

    The layout of the draw is fixed: one vector of `size(tree)` entries from one key,
    cut into the leaves in flattening order. It depends neither on masks, dtypes nor
    sharding, and it compiles several times faster than one draw a leaf.
    """
    return _cut(jax.random.normal(key, (size(tree),), jnp.float32), tree)


def uniform_like(key: jax.Array, tree: Any) -> Any:
    """Independent entries uniform in [0, 1), laid out as in `normal_like`."""
    return _cut(jax.random.uniform(key, (size(tree),), jnp.float32), tree)


def _cut(flat: jax.Array, tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    pieces, start = [], 0
    for leaf in leaves:
        stop = start + math.prod(jnp.shape(leaf))
        piece = jax.lax.slice_in_dim(flat, start, stop)
        pieces.append(piece.reshape(jnp.shape(leaf)))
        start = stop
    return jax.tree.unflatten(treedef, pieces)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
