"""N:M sparsity: of every M consecutive weights along an axis, N are live.

Hardware that skips the zeros of a product (2:4 on NVIDIA's Ampere and later) needs the
groups along the axis that the product sums over, the inputs. That is axis -2 of Flax's
and Haiku's kernels `(..., in, out)`, and axis 1 of Equinox's `(out, in, ...)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax.selection import select_along
from zosam_jax.sparsity.budgets import DenseRule, Shape, sparse_leaves

Axis = int | Callable[[str, Shape], int]
"""An axis of every sparse leaf, or `(path, shape) -> axis`."""


class Pattern(NamedTuple):
    """`n` of every `m` consecutive weights along `axis` are live."""

    n: int
    m: int
    axis: Axis

    @property
    def sparsity(self) -> float:
        """The fraction of pruned weights."""
        return 1 - self.n / self.m


def pattern_of(
    pair: tuple[int, int], axis: Axis, sparsity: float | None, budget: Any
) -> Pattern:
    """The pattern that a method's arguments say.

    Raises:
      ValueError: It is no pair `1 <= n <= m`, or `sparsity` or `budget` contradict it.
    """
    try:
        n, m = pair
    except (TypeError, ValueError):
        raise ValueError(f"pattern={pair!r} must be (n, m), as (2, 4).") from None
    _check.whole("n", n)
    _check.whole("m", m)
    if n > m:
        raise ValueError(f"n={n} of m={m}: more weights live than there are.")
    pattern = Pattern(n, m, axis)
    if sparsity is not None and abs(sparsity - pattern.sparsity) > 1e-6:
        raise ValueError(
            f"pattern={(n, m)} has sparsity {pattern.sparsity:g}, not {sparsity!r}. "
            "Leave sparsity out."
        )
    if budget is not None:
        raise ValueError(
            f"budget={budget!r} and pattern={(n, m)} exclude each other: every layer "
            "has the pattern's sparsity. Leave budget out."
        )
    return pattern


def axis_of(axis: Axis, path: str, shape: Shape) -> int:
    """The axis of a leaf, not negative.

    Raises:
      ValueError: The leaf has no such axis.
    """
    index = axis(path, shape) if callable(axis) else axis
    if not -len(shape) <= index < len(shape):
        raise ValueError(f"axis={index} is out of range for {path} of shape {shape}.")
    return index % len(shape)


def check_fits(pattern: Pattern, params: Any, dense: DenseRule) -> None:
    """Raises `ValueError`, naming them, if leaves are no whole number of groups."""
    leaves = jax.tree.leaves(params)
    wrong = []
    for path, index in sparse_leaves(params, dense).items():
        shape = jnp.shape(leaves[index])
        axis = axis_of(pattern.axis, path, shape)
        if shape[axis] % pattern.m:
            wrong.append(f"{path} of shape {shape} along axis {axis}")
    if wrong:
        first = wrong[0].split(" of shape ")[0]
        raise ValueError(
            f"groups of {pattern.m} weights do not divide {', '.join(wrong)}. Keep "
            f"such leaves dense, as dense=({first!r},), or say another axis."
        )


def best_of_groups(
    pattern: Pattern,
    path: str,
    score: jax.Array,
    candidates: jax.Array | None = None,
    taken: jax.Array | None = None,
) -> jax.Array:
    """The highest scoring candidates of every group, ties to the lower index.

    Args:
      pattern: The groups; `n` are chosen of each, less what `taken` has there.
      path: The leaf's, for a pattern whose axis depends on it.
      score: The leaf's scores.
      candidates: Which may be chosen; all by default.
      taken: Entries that are live already, and no candidates; none by default.

    Returns:
      Boolean array: True where chosen.
    """
    axis = axis_of(pattern.axis, path, score.shape)
    shape = (*score.shape[:axis], -1, pattern.m, *score.shape[axis + 1 :])
    if candidates is None:
        candidates = jnp.ones(score.shape, bool)
    counts: Any = pattern.n
    if taken is not None:
        there = jnp.sum(taken.reshape(shape), axis + 1, keepdims=True, dtype=jnp.int32)
        counts = pattern.n - there
    chosen = select_along(
        score.reshape(shape), candidates.reshape(shape), counts, (axis + 1,)
    )
    return chosen.reshape(score.shape)


def best_of_leaves(
    pattern: Pattern, params: Any, ranking: Any, dense: DenseRule
) -> dict[int, jax.Array]:
    """The masks with the `n` best of every group, by flattened index of the leaf.

    Args:
      pattern: The groups.
      params: Pytree of arrays.
      ranking: Scores, a tree like `params`.
      dense: See `sparse_leaves`.

    Raises:
      ValueError: Leaves are no whole number of groups.
    """
    check_fits(pattern, params, dense)
    ranked = [jnp.asarray(x) for x in jax.tree.leaves(ranking)]
    return {
        index: best_of_groups(pattern, path, ranked[index])
        for path, index in sparse_leaves(params, dense).items()
    }
