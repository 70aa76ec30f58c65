"""Pytree algebra for the estimators and the sparse methods.

A mask tree has the structure of the parameters: a boolean array for a sparse leaf, a
scalar `True` for a dense one. `masks=None` means that all leaves are dense.
"""

import fnmatch
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._check import paths as paths
from zosam_jax._programs import Sampler, draw, once
from zosam_jax._types import Key, Masks, Params, PyTree, Scalar

Node = TypeVar("Node")


def size(tree: PyTree) -> int:
    """Returns the number of entries of all leaves."""
    return sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(tree))


def nodes(tree: PyTree, kind: type[Node]) -> list[Node]:
    """Returns the nodes of a class in a tree, such as the states of one transformation.

    Args:
      tree: Any pytree, such as an Optax state.
      kind: The class. Nodes inside a node of this class are not searched.
    """
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [x for x in found if isinstance(x, kind)]


def matching(
    argument: str, patterns: str | Sequence[str], paths: Sequence[str]
) -> set[str]:
    """Returns the paths that match one of the patterns.

    Args:
      argument: The argument's name, for the error.
      patterns: Glob patterns, as `"head/*"`, or whole paths.
      paths: The paths to choose from.

    Raises:
      ValueError: A pattern matches no path.
      TypeError: `patterns` are no texts.
    """
    found = set()
    for pattern in _check.patterns(argument, patterns):
        hits = fnmatch.filter(paths, pattern)
        hits += [path for path in paths if path == pattern]
        if not hits:
            _check.one_of(argument, pattern, paths, fault="matches no leaf")
        found.update(hits)
    return found


def is_dense(mask: jax.typing.ArrayLike) -> bool:
    """Returns whether a leaf of a mask tree marks a dense leaf: it is a scalar."""
    return jnp.ndim(mask) == 0


def mask(tree: PyTree, masks: Masks | None) -> PyTree:
    """Returns the tree with exact zeros where its mask is False.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> w, live = jnp.array([1.0, 2.0]), jnp.array([True, False])
      >>> print(zs.tree.mask({"w": w}, {"w": live})["w"])
      [1. 0.]
    """
    if masks is None:
        return tree

    def masked(m: jax.Array, x: jax.Array) -> jax.Array:
        if is_dense(m) and jnp.ndim(x):
            return x
        # A scalar: outside of jit, zeros of every shape would be programs of their own.
        # One of Python, which takes the dtype and the sharding of the leaf.
        is_flag = jnp.issubdtype(jnp.result_type(x), jnp.bool_)
        return jnp.where(m, x, False if is_flag else 0)

    return jax.tree.map(masked, masks, tree)


def live_count(params: Params, masks: Masks | None) -> jax.Array:
    """Returns the number of weights on the mask, float32 scalar.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> masks = {"kernel": jnp.eye(2, dtype=bool), "bias": jnp.array(True)}
      >>> print(zs.tree.live_count(params, masks))
      4.0
    """
    if masks is None:
        return jnp.asarray(size(params), jnp.float32)
    counts = [
        jnp.float32(x.size) if is_dense(m) and x.ndim else jnp.sum(m, dtype=jnp.float32)
        for m, x in zip(jax.tree.leaves(masks), jax.tree.leaves(params), strict=True)
    ]
    return once(jnp.sum(jnp.stack(counts)))


@jax.custom_jvp
def either(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns `jnp.where(mask, x, y)`, for floats of one dtype by their bits.

    If `x` and `y` are computed in the same kernel, XLA:CPU turns a select into a branch
    for every entry, which is not vectorized. An optimizer's update took twice as long.

    Args:
      mask: Boolean array.
      x: Array of the same shape, taken where the mask is True.
      y: Array like `x`, taken elsewhere.
    """
    if x.dtype != y.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.where(mask, x, y)
    bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    a, b = (jax.lax.bitcast_convert_type(v, bits) for v in (x, y))
    # 0 - 1 wraps to all ones in unsigned arithmetic: one word keeps or clears all bits.
    ones = jnp.zeros((), bits) - mask.astype(bits)
    return jax.lax.bitcast_convert_type((a & ones) | (b & ~ones), x.dtype)


@either.defjvp
def _either_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    mask, x, y = primals
    return either(mask, x, y), jnp.where(mask, *tangents[1:])


def check_masks(masks: Masks, params: Params) -> None:
    """Raises `ValueError` unless the masks fit the parameters, and names the leaf."""
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


def add_scaled(x: PyTree, scale: Scalar, y: PyTree) -> PyTree:
    """Returns `x + scale * y`, in float32 or wider, rounded once to the dtypes of `x`.

    Args:
      x: Pytree of arrays.
      scale: Scalar.
      y: Tree like `x`.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> x, y = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([2.0, 4.0])}
      >>> print(zs.tree.add_scaled(x, 0.5, y)["w"])
      [2. 4.]
    """

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        a = jnp.asarray(a)
        wide = wide_dtype(a.dtype)
        moved = a.astype(wide) + jnp.asarray(scale, wide) * jnp.asarray(b, wide)
        return moved.astype(a.dtype)

    return jax.tree.map(leaf, x, y)


def mix(a: Scalar, x: PyTree, b: Scalar, y: PyTree) -> PyTree:
    """Returns `a * x + b * y`, in float32 or wider, rounded once to the dtypes of `x`.

    Args:
      a: Scalar.
      x: Pytree of arrays.
      b: Scalar.
      y: Tree like `x`.
    """

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        wide = wide_dtype(x.dtype)
        total = jnp.asarray(a, wide) * x.astype(wide)
        return (total + jnp.asarray(b, wide) * y.astype(wide)).astype(x.dtype)

    return jax.tree.map(leaf, x, y)


def subtract(x: PyTree, y: PyTree) -> PyTree:
    """Returns `x - y` in float32 or wider."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = wide_dtype(jnp.result_type(a, b))
        return jnp.asarray(a, wide) - jnp.asarray(b, wide)

    return jax.tree.map(leaf, x, y)


def norm(tree: PyTree) -> jax.Array:
    """Returns the L2 norm over all leaves, scalar, float32 or wider.

    The squares of entries beyond 1e19 or below 1e-19 do not fit into float32, so the
    sums are of entries relative to `magnitude(tree)`. The derivative at 0 is 0.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> print(zs.tree.norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])}))
      5.0
    """
    unit = magnitude(tree)
    return unit * _norm(_divided(tree, unit))


def _norm(leaves: list[jax.Array]) -> jax.Array:
    """The norm of float32 or wider arrays whose squares fit into their dtype."""
    norms = root(_vector([jnp.sum(jnp.square(x)) for x in leaves]))
    return root(_sum_over_leaves(norms, norms))


def root(square: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0 instead of infinity."""
    # The derivative of the root is evaluated on both sides of a `where`.
    is_zero = square == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))


def magnitude(tree: PyTree) -> jax.Array:
    """Returns the power of two at or below the largest |entry| of all leaves.

    Division by it is exact, so results do not depend on the scale of the tree, not even
    in their last bit. It is 1 if all entries are 0 or if one is not finite.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> print(zs.tree.magnitude({"w": jnp.array([3.0, -5.0])}))
      4.0
    """
    wide = _divided(jax.lax.stop_gradient(tree), None)
    largest = jnp.max(_vector([jnp.max(jnp.abs(x)) for x in wide if x.size]))
    # Infinity has the bits of the exponent, and no others.
    bits = jnp.dtype(f"uint{8 * largest.dtype.itemsize}")
    exponent = jnp.asarray(jnp.inf, largest.dtype).view(bits)
    power = (largest.view(bits) & exponent).view(largest.dtype)
    # Beyond these bounds, 1 / power is not a normal number.
    info = jnp.finfo(largest.dtype)
    power = jnp.clip(power, info.tiny, 1 / info.tiny)
    return jnp.where((largest > 0) & jnp.isfinite(largest), power, 1)


def _divided(tree: PyTree, unit: jax.Array | None) -> list[jax.Array]:
    """The leaves, float32 or wider, divided by a power of two; None for 1."""
    # bfloat16 has 8 significant bits: a long sum in it stalls.
    wide = [
        jnp.asarray(x, wide_dtype(jnp.result_type(x))) for x in jax.tree.leaves(tree)
    ]
    if unit is None:
        return wide
    inverse = 1 / unit
    return [x * inverse.astype(x.dtype) for x in wide]


def _vector(scalars: list[jax.Array]) -> jax.Array:
    """The scalars of all leaves in one array of the widest dtype; never empty."""
    wide = any(x.dtype == jnp.float64 for x in scalars)
    dtype = jnp.float64 if wide else jnp.float32
    return jnp.asarray([x.astype(dtype) for x in scalars] or [0], dtype)


def vdot(x: PyTree, y: PyTree) -> jax.Array:
    """Returns the inner product over all leaves, scalar, float32 or wider.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> x = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])}
      >>> y = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([2.0])}
      >>> print(zs.tree.vdot(x, y))
      9.0
    """
    a, b = magnitude(x), magnitude(y)
    return a * (b * dot(_divided(x, a), _divided(y, b)))


def dot(x: PyTree, y: PyTree) -> jax.Array:
    """Returns the inner product of float32 or wider trees whose products fit in.

    It is a quicker `vdot` for trees of known scale, such as unit vectors.
    """
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    leaves = _vector([jnp.sum(a * b) for a, b in pairs])
    return once(_sum_over_leaves(leaves, jnp.ones_like(leaves)))


def coefficient(x: PyTree, y: PyTree) -> jax.Array:
    """Returns `<x, y> / <y, y>`, the coefficient of y in x, scalar; 0 if y is 0.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> x, y = {"w": jnp.array([2.0, 7.0])}, {"w": jnp.array([4.0, 0.0])}
      >>> print(zs.tree.coefficient(x, y))
      0.5
    """
    a, b = magnitude(x), magnitude(y)
    u, v = _divided(x, a), _divided(y, b)
    square = dot(v, v)
    # <x, y> scales as a b and <y, y> as b^2; their quotient as a / b.
    return a / b * (dot(u, v) / jnp.where(square > 0, square, 1))


def _sum_over_leaves(x: jax.Array, y: jax.Array) -> jax.Array:
    # XLA would fuse a plain sum into every use of the result, once for each leaf, which
    # takes minutes to compile. It does not fuse a dot product.
    return jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)


def all_finite(tree: PyTree) -> jax.Array:
    """Returns whether all floating point entries are finite, bool scalar."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    if not floats:
        return jnp.asarray(True)
    flags = jnp.asarray([jnp.all(jnp.isfinite(x)) for x in floats], jnp.float32)
    # A float32 sum of fewer than 2^24 ones is exact.
    return _sum_over_leaves(flags, flags) == len(floats)


def cosine(x: PyTree, y: PyTree) -> jax.Array:
    """Returns the cosine of the angle between two trees; 0 if one of them is 0.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> x, y = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([3.0, 4.0])}
      >>> print(f"{zs.tree.cosine(x, y):.2f}")
      0.60
    """
    return length_and_cosine(x, y)[1]


def length_and_cosine(x: PyTree, y: PyTree) -> tuple[jax.Array, jax.Array]:
    """Returns `(norm(x), cosine(x, y))`, for which it reads x once."""
    unit = magnitude(x)
    u, v = _divided(x, unit), _divided(y, magnitude(y))
    length = _norm(u)
    lengths = length * _norm(v)
    # The inner `where` keeps 0 / 0 out of the quotient, and out of its derivative.
    quotient = dot(u, v) / jnp.where(lengths > 0, lengths, 1)
    cosine = jnp.where(lengths > 0, jnp.clip(quotient, -1, 1), 0)
    return unit * length, cosine


def where(condition: jax.typing.ArrayLike, x: PyTree, y: PyTree) -> PyTree:
    """Returns `x` if the condition holds, else `y`.

    Args:
      condition: Boolean scalar; may be traced.
      x: Pytree of arrays.
      y: Tree like `x`.
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)


def normalize(tree: PyTree) -> tuple[PyTree, jax.Array]:
    """Returns `(x / |x|, |x|)`; zeros for `x / |x|` if |x| is 0 or not finite.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> unit, length = zs.tree.normalize({"w": jnp.array([3.0, 4.0])})
      >>> print(unit["w"].round(3), length)
      [0.6 0.8] 5.0
    """
    leaves, treedef = jax.tree.flatten(tree)
    scale = magnitude(tree)
    relative = _divided(leaves, scale)
    length = _norm(relative)
    # A factor of 0 would not do: 0 times infinity is NaN.
    usable = jnp.isfinite(length) & (length > 0)
    factor = 1 / jnp.where(usable, length, 1)
    unit = [jnp.where(usable, factor.astype(x.dtype) * x, 0) for x in relative]
    return treedef.unflatten(unit), scale * length


def normal_like(key: Key, tree: PyTree) -> PyTree:
    """Returns independent standard normal entries, laid out as in `drawn_like`."""
    return drawn_like(jax.random.normal, key, tree)


def uniform_like(key: Key, tree: PyTree) -> PyTree:
    """Returns independent entries, uniform in [0, 1), laid out as in `drawn_like`."""
    return drawn_like(jax.random.uniform, key, tree)


def drawn_like(sampler: Sampler, key: Key, tree: PyTree) -> PyTree:
    """Returns independent draws in the shapes of `tree`, float32.

    Leaf i, in flattening order, is drawn from `fold_in(key, i)`, so that it depends on
    its index and its shape alone: not on the other leaves, nor on masks, dtypes or
    sharding. Up to 65,536 entries it is the front of a vector whose length is a power
    of two. A larger leaf is drawn in its shape, and so in its sharding.

    Args:
      sampler: `(key, shape, dtype) -> draws`, as `jax.random.normal`.
      key: One PRNG key.
      tree: Pytree of arrays.
    """
    _check.key(key)
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(draw(sampler, key, [jnp.shape(x) for x in leaves]))


def wide_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns float64 for float64, and float32 for every other dtype."""
    # `jnp.promote_types` refuses under `jax_numpy_dtype_promotion="strict"`.
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
