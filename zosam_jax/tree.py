"""Pytree algebra, in which the estimators and the sparse methods are written.

A mask tree has the structure of the parameters: a boolean array where a leaf is
sparse, a scalar `True` where it is dense. `masks=None` stands for "all dense".
"""

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _check


def size(tree: Any) -> int:
    """Number of entries of all leaves together."""
    return sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(tree))


def paths(tree: Any) -> list[str]:
    """The key path of every leaf, its parts joined by `/`, in flattening order."""
    return [
        jax.tree_util.keystr(_own(path), simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _own(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The path without the `.value` that NNX variables add."""
    is_variable = path and path[-1] == jax.tree_util.GetAttrKey("value")
    return path[:-1] if is_variable else path


def matching(
    argument: str, patterns: str | Sequence[str], paths: Sequence[str]
) -> set[str]:
    """The paths that match one of the glob patterns, as `"head/*"`.

    Raises:
      ValueError: A pattern matches none; the message names the argument.
    """
    found = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = fnmatch.filter(paths, pattern)
        hits += [path for path in paths if path == pattern]
        if not hits:
            _check.one_of(argument, pattern, paths)
        found.update(hits)
    return found


def is_dense(mask: Any) -> bool:
    """Whether a leaf of a mask tree marks a dense leaf: its shape says so."""
    return jnp.ndim(mask) == 0


def mask(tree: Any, masks: Any | None) -> Any:
    """The tree with exact zeros where its mask is False; dense leaves untouched."""
    if masks is None:
        return tree
    return jax.tree.map(
        lambda m, x: (
            x if is_dense(m) and jnp.ndim(x) else jnp.where(m, x, jnp.zeros_like(x))
        ),
        masks,
        tree,
    )


def live_count(params: Any, masks: Any | None) -> jax.Array:
    """Returns the number of weights on the mask, float32 scalar."""
    if masks is None:
        return jnp.asarray(size(params), jnp.float32)
    counts = [
        jnp.float32(x.size) if is_dense(m) and x.ndim else jnp.sum(m, dtype=jnp.float32)
        for m, x in zip(jax.tree.leaves(masks), jax.tree.leaves(params), strict=True)
    ]
    return jnp.sum(jnp.stack(counts))


@jax.custom_jvp
def either(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """`jnp.where(mask, x, y)` of equal floats, bit by bit.

    XLA:CPU turns a select between what it has yet to compute into a branch an entry,
    which is no vector code: an optimizer's update took twice as long.
    """
    if x.dtype != y.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.where(mask, x, y)
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    a, b = (jax.lax.bitcast_convert_type(v, bits) for v in (x, y))
    ones = jnp.zeros((), bits) - mask.astype(bits)
    return jax.lax.bitcast_convert_type((a & ones) | (b & ~ones), x.dtype)


@either.defjvp
def _either_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    mask, x, y = primals
    return either(mask, x, y), jnp.where(mask, *tangents[1:])


def check_masks(masks: Any, params: Any) -> None:
    """Raises `ValueError`, naming the leaf, unless the masks fit the parameters."""
    given, wanted = jax.tree.structure(masks), jax.tree.structure(params)
    if given != wanted:
        extra = sorted(set(paths(masks)) ^ set(paths(params)))
        where = ", ".join(extra[:6]) or "the types of their nodes"
        more = f" and {len(extra) - 6} more" if len(extra) > 6 else ""
        raise ValueError(
            f"masks must have the structure of params; they differ at {where}{more}. "
            "Mark a dense leaf with a scalar True. (Those of an optimizer's state are "
            "zs.sparsity.masks(state). Flax NNX: pass states through nnx.as_pure "
            "first. Equinox: params are eqx.filter(model, eqx.is_inexact_array).)"
        )
    for path, m, x in zip(
        paths(params), jax.tree.leaves(masks), jax.tree.leaves(params), strict=True
    ):
        if jnp.result_type(m) != jnp.bool_:
            raise ValueError(
                f"masks: {path} has dtype {jnp.result_type(m)}; masks are boolean."
            )
        if is_dense(m) and not _check.is_traced(m) and not m:
            raise ValueError(
                f"masks: {path} is a scalar False. A scalar marks a dense leaf and is "
                "True; to prune a whole leaf, give it an array of False."
            )
        if not is_dense(m) and jnp.shape(m) != jnp.shape(x):
            raise ValueError(
                f"masks: {path} has shape {jnp.shape(m)}, the parameter "
                f"{jnp.shape(x)}; give that shape, or a scalar True for a dense leaf."
            )


def add_scaled(x: Any, scale: Any, y: Any) -> Any:
    """`x + scale * y` in float32 or wider, rounded once to the dtypes of `x`."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        a = jnp.asarray(a)
        wide = _wide(a.dtype)
        moved = a.astype(wide) + jnp.asarray(scale, wide) * jnp.asarray(b, wide)
        return moved.astype(a.dtype)

    return jax.tree.map(leaf, x, y)


def mix(a: Any, x: Any, b: Any, y: Any) -> Any:
    """`a * x + b * y` in float32 or wider, rounded once to the dtypes of `x`."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        wide = _wide(x.dtype)
        total = jnp.asarray(a, wide) * x.astype(wide)
        return (total + jnp.asarray(b, wide) * y.astype(wide)).astype(x.dtype)

    return jax.tree.map(leaf, x, y)


def subtract(x: Any, y: Any) -> Any:
    """`x - y` in float32 or wider."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = _wide(jnp.result_type(a, b))
        return jnp.asarray(a, wide) - jnp.asarray(b, wide)

    return jax.tree.map(leaf, x, y)


def norm(tree: Any) -> jax.Array:
    """The L2 norm over all leaves together, scalar, float32 or wider."""
    wide = [jnp.asarray(x, _wide(jnp.result_type(x))) for x in jax.tree.leaves(tree)]
    leaves = jnp.asarray([jnp.sqrt(jnp.sum(jnp.square(x))) for x in wide])
    return jnp.sqrt(_sum_over_leaves(leaves, leaves))


def vdot(x: Any, y: Any) -> jax.Array:
    """The inner product over all leaves together, scalar, float32 or wider."""
    products = [
        jnp.sum(a.astype(_wide(a.dtype)) * b.astype(_wide(b.dtype)))
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    ]
    leaves = jnp.asarray(products)
    return _sum_over_leaves(leaves, jnp.ones_like(leaves))


def _sum_over_leaves(x: jax.Array, y: jax.Array) -> jax.Array:
    # A plain sum would be fused into every use of the result, once for each leaf:
    # minutes of compilation. A dot product is not.
    return jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)


def all_finite(tree: Any) -> jax.Array:
    """Whether no floating point entry is infinite or NaN, bool scalar."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    if not floats:
        return jnp.asarray(True)
    flags = jnp.asarray([jnp.all(jnp.isfinite(x)) for x in floats], jnp.float32)
    return _sum_over_leaves(flags, jnp.ones_like(flags)) == len(floats)


def cosine(x: Any, y: Any) -> jax.Array:
    """The cosine of the angle between two trees; 0 where one of them is 0."""
    lengths = norm(x) * norm(y)
    return jnp.where(lengths > 0, vdot(x, y) / jnp.where(lengths > 0, lengths, 1), 0)


def where(condition: Any, x: Any, y: Any) -> Any:
    """`x` where the scalar condition holds, else `y`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def normalize(tree: Any) -> tuple[Any, jax.Array]:
    """`(x / |x|, |x|)`, with zeros for the first where |x| is 0 or not finite."""
    length = norm(tree)
    usable = jnp.isfinite(length) & (length > 0)
    factor = 1 / jnp.where(usable, length, 1)
    unit = jax.tree.map(
        lambda x: jnp.where(usable, factor * x.astype(_wide(x.dtype)), 0), tree
    )
    return unit, length


def normal_like(key: jax.Array, tree: Any) -> Any:
    """Independent standard normal entries in the shapes of `tree`, float32.

    The layout of the draw is fixed: one vector of `size(tree)` entries, an eighth of it
    from each of `split(key, 8)`, cut into the leaves in flattening order. It depends
    neither on masks, dtypes nor sharding.
    """
    return _cut(jax.random.normal, key, tree)


def uniform_like(key: jax.Array, tree: Any) -> Any:
    """Independent entries uniform in [0, 1), laid out as in `normal_like`."""
    return _cut(jax.random.uniform, key, tree)


def rademacher_like(key: jax.Array, tree: Any) -> Any:
    """Independent entries +1 or -1, laid out as in `normal_like`."""
    return _cut(jax.random.rademacher, key, tree)


def _cut(draw: Callable[..., jax.Array], key: jax.Array, tree: Any) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    part = -(-size(tree) // 8)
    # One draw a leaf compiles slowly, and so does one draw that XLA repeats inside each
    # leaf's kernel: what a loop makes, it does not repeat.
    parts = jax.lax.map(
        lambda k: draw(k, (part,), jnp.float32), jax.random.split(key, 8)
    )
    flat, pieces, start = parts.reshape(-1), [], 0
    for leaf in leaves:
        stop = start + math.prod(jnp.shape(leaf))
        piece = jax.lax.slice_in_dim(flat, start, stop)
        pieces.append(piece.reshape(jnp.shape(leaf)))
        start = stop
    return jax.tree.unflatten(treedef, pieces)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)
