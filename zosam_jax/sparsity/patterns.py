"""N:M sparsity: of every M consecutive weights along an axis, N are live.

Hardware that skips the zeros of a product (2:4 on NVIDIA's Ampere and later) needs the
groups along the axis that the product sums over, the inputs. That is axis -2 of the
kernels of Flax and Haiku, `(..., in, out)`, and axis 1 of Equinox's, `(out, in, ...)`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check
from zosam_jax._types import Shape
from zosam_jax.selection import select_along
from zosam_jax.sparsity.leaves import SparseLeaves

Axis = int | Callable[[str, Shape], int]
"""An axis of every sparse layer, or `(path, shape of the layer) -> axis`."""


class Pattern(NamedTuple):
    """The budget in which `n` of every `m` consecutive weights along `axis` are live.

    Attributes:
      n: Live weights of each group.
      m: Weights of each group.
      axis: The axis along which the groups lie.
    """

    n: int
    m: int
    axis: Axis

    across = False

    @property
    def sparsity(self) -> float:
        """The fraction of pruned weights."""
        return 1 - self.n / self.m

    def counts(self, leaves: SparseLeaves) -> list[int]:
        """Returns the number of weights that each leaf keeps.

        Raises:
          ValueError: A leaf is not a whole number of groups; all such are named.
        """
        wrong: dict[str, str] = {}
        for path, shape in zip(leaves.paths, leaves.shapes, strict=True):
            axis = axis_of(self.axis, path, shape)
            if shape[axis] % self.m:
                wrong[path] = f"{path} of shape {shape} along axis {axis}"
        if wrong:
            first, listed = next(iter(wrong)), ", ".join(wrong.values())
            raise ValueError(
                f"groups of {self.m} weights do not divide {listed}. Keep "
                f"such leaves dense, as dense=({first!r},), or say another axis."
            )
        return [size // self.m * self.n for size in leaves.sizes]

    def by_ranking(self, numbers: Sequence[int]) -> list[int]:
        """Returns numbers of the leaves unchanged."""
        return list(numbers)

    def select(
        self,
        leaves: SparseLeaves,
        scores: Sequence[jax.Array],
        counts: Sequence[jax.typing.ArrayLike] | jax.Array | None = None,
        candidates: Sequence[jax.Array] | None = None,
    ) -> list[jax.Array]:
        """Returns masks of the `n` highest scores of every group.

        Args:
          leaves: The sparse leaves.
          scores: Scores of each leaf.
          counts: Not used: the pattern fixes them. If None, the leaves are checked.
          candidates: Masks of what may be selected; by default everything.
        """
        if counts is None:
            self.counts(leaves)
        candidates = leaves.all_live() if candidates is None else candidates
        return [
            best_of_groups(self, path, score, allowed)
            for path, score, allowed in zip(
                leaves.paths, scores, candidates, strict=True
            )
        ]


def pattern_of(
    pair: tuple[int, int],
    axis: Axis,
    sparsity: float | None = None,
    budget: object | None = None,
) -> Pattern:
    """Returns the pattern that a method's arguments stand for.

    Args:
      pair: `(n, m)`.
      axis: The axis along which the groups lie.
      sparsity: The sparsity that was given beside it, if any.
      budget: The budget that was given beside it, if any.

    Raises:
      ValueError: `pair` is no `(n, m)` with `1 <= n <= m`, or `sparsity` or `budget`
        contradicts it.
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
    """Returns the axis of a leaf as an index from 0.

    Args:
      axis: The axis, or a function of path and shape.
      path: Key path of the leaf.
      shape: Shape of the leaf.

    Raises:
      ValueError: The leaf has no such axis.
      TypeError: It is no whole number.

    Example:
      >>> from zosam_jax.sparsity.patterns import axis_of
      >>> axis_of(-2, "kernel", (3, 3, 16, 32))
      2
    """
    if callable(axis):
        _check.callable_as("axis", axis, "(path, shape) -> axis")
    index = axis(path, shape) if callable(axis) else axis
    if not isinstance(index, int | np.integer) or isinstance(index, bool):
        raise TypeError(
            f"axis={index!r} must be a whole number, or a function (path, shape) -> "
            f"number; the leaf is {path}."
        )
    if not -len(shape) <= index < len(shape):
        raise ValueError(f"axis={index} is out of range for {path} of shape {shape}.")
    return index % len(shape)


def best_of_groups(
    pattern: Pattern,
    path: str,
    score: jax.Array,
    candidates: jax.Array,
    taken: jax.Array | None = None,
) -> jax.Array:
    """Returns the highest scoring candidates of every group, ties to the lower index.

    Args:
      pattern: The groups. Each gets `n` weights, less those that `taken` has in it.
      path: Key path of the leaf, for a pattern whose axis depends on it.
      score: Scores of the leaf.
      candidates: Mask of what may be selected.
      taken: Mask of what is live already and no candidate; by default nothing.

    Returns:
      Boolean array in the shape of the leaf: True where selected.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.patterns import Pattern, best_of_groups
      >>> score = jnp.array([3.0, 1.0, 2.0, 4.0])
      >>> print(best_of_groups(Pattern(1, 2, 0), "w", score, score > 0))
      [ True False False  True]
    """
    axis = axis_of(pattern.axis, path, score.shape)
    shape = (*score.shape[:axis], -1, pattern.m, *score.shape[axis + 1 :])
    # A group that kept more than n cannot be: masks before the change obey the pattern.
    counts: jax.typing.ArrayLike = pattern.n
    if taken is not None:
        there = jnp.sum(taken.reshape(shape), axis + 1, keepdims=True, dtype=jnp.int32)
        counts = pattern.n - there
    chosen = select_along(
        score.reshape(shape), candidates.reshape(shape), counts, (axis + 1,)
    )
    return chosen.reshape(score.shape)
