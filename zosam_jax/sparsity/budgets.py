"""Budgets: which leaves are sparse, and how many weights each of them keeps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree

Shape = tuple[int, ...]
Budget = Callable[[Mapping[str, Shape], float], Mapping[str, float]]
"""`({path: shape}, sparsity) -> {path: density}` over the sparsified leaves."""


def uniform(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
    """Every layer the same density, `1 - sparsity`."""
    return dict.fromkeys(shapes, 1.0 - sparsity)


def erk(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
    r"""Erdos-Renyi-Kernel densities (RigL, arXiv:1911.11134, section 3.1).

    .. math:: d_l = \epsilon \, \frac{\sum_k n_{l,k}}{\prod_k n_{l,k}}

    over the axes :math:`n_{l,k}` of layer l, epsilon solved for the total. A layer
    whose density would exceed 1 is made dense, and epsilon is solved again for the
    others.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    raw = {path: sum(shape) / math.prod(shape) for path, shape in shapes.items()}
    budget = (1.0 - sparsity) * sum(sizes.values())
    full: set[str] = set()
    while True:
        rest = [path for path in shapes if path not in full]
        if not rest:
            return dict.fromkeys(shapes, 1.0)
        left = budget - sum(sizes[path] for path in full)
        epsilon = left / sum(raw[path] * sizes[path] for path in rest)
        over = {path for path in rest if epsilon * raw[path] > 1.0}
        if not over:
            return {p: 1.0 if p in full else epsilon * raw[p] for p in shapes}
        top = max(raw[path] for path in over)
        full |= {path for path in over if raw[path] == top}


BUDGETS: dict[str, Budget] = {"erk": erk, "uniform": uniform}


DenseRule = str | Sequence[str] | Callable[[str, Shape], bool]
"""Glob patterns on paths, or `(path, shape) -> bool`: leaves that stay dense."""


def sparse_leaves(params: Any, dense: DenseRule = ()) -> dict[str, int]:
    """Flattened index by path of the leaves that are sparsified.

    Leaves with fewer than two axes (biases, norms) are dense by rule.

    Args:
      params: Pytree of arrays.
      dense: Leaves that are dense besides: glob patterns on `/`-joined key paths, as
        `"head/*"` or `"*/embedding"`, or a function of path and shape.

    Raises:
      ValueError: A pattern matches no leaf, or no leaf is left.
    """
    paths = tree.paths(params)
    if len(set(paths)) < len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"Two leaves of params have one path: {', '.join(twice)}.")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
    if callable(dense):
        kept = {p for p, s in zip(paths, shapes, strict=True) if dense(p, s)}
    else:
        kept = tree.matching("dense", dense or (), paths)
    sparse = {
        path: index
        for index, (path, shape) in enumerate(zip(paths, shapes, strict=True))
        if len(shape) >= 2 and math.prod(shape) > 0 and path not in kept
    }
    if not sparse:
        raise ValueError(
            "No leaf of params is left to sparsify: it needs at least two axes and "
            f"must not match dense={dense!r}. The leaves are: {', '.join(paths)}."
        )
    return sparse


def counts(
    params: Any, sparsity: float, budget: str | Budget, dense: DenseRule = ()
) -> dict[int, int]:
    """Weights that each sparse leaf keeps, by its flattened index.

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      budget: "erk", "uniform", or a function like them.
      dense: See `sparse_leaves`.

    Returns:
      `{index: count}`; the counts add up to `N - round(sparsity * N)`.

    Raises:
      ValueError: The budget cannot be met.
    """
    sparse = sparse_leaves(params, dense)
    leaves = jax.tree.leaves(params)
    shapes = {path: jnp.shape(leaves[i]) for path, i in sparse.items()}
    rule = BUDGETS[budget] if isinstance(budget, str) else budget
    densities = rule(shapes, sparsity)
    _check_densities(densities, shapes)
    exact = exact_counts(shapes, densities, sparsity)
    return {sparse[path]: count for path, count in exact.items()}


def _check_densities(
    densities: Mapping[str, float], shapes: Mapping[str, Shape]
) -> None:
    if set(densities) != set(shapes):
        differing = sorted(set(densities) ^ set(shapes))
        raise ValueError(
            "a budget gives a density for every sparse leaf and for no other; it "
            f"differs at {', '.join(differing)}."
        )
    for path, density in densities.items():
        _check.number(f"the budget's density of {path}", density, least=0, most=1)


def exact_counts(
    shapes: Mapping[str, Shape], densities: Mapping[str, float], sparsity: float
) -> dict[str, int]:
    """Whole numbers of weights, near the densities, whose total is exact.

    Largest remainders: every layer is rounded down, and the weights that are left go to
    the layers that lost the largest fraction, ties to the earlier layer.

    Args:
      shapes: Shape of every sparsified leaf by path.
      densities: Fraction of weights that each keeps.
      sparsity: The total keeps `N - round(sparsity * N)` of its N weights.

    Returns:
      Weights kept by path, at least 1 and at most the layer's size.

    Raises:
      ValueError: The total is too small for one weight in every layer.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    total = sum(sizes.values()) - round(sparsity * sum(sizes.values()))
    if total < len(shapes):
        raise ValueError(
            f"sparsity={sparsity} keeps {total} of {sum(sizes.values())} weights, but "
            f"{len(shapes)} layers need at least one each. Lower the sparsity, or keep "
            "small layers dense with dense=(...)."
        )
    ideal = {path: densities[path] * sizes[path] for path in shapes}
    if abs(sum(ideal.values()) - total) > len(shapes):
        raise ValueError(
            f"the budget's densities keep {sum(ideal.values()):.0f} weights; "
            f"sparsity={sparsity} keeps {total} of {sum(sizes.values())}."
        )
    counts = {p: min(max(int(ideal[p]), 1), sizes[p]) for p in shapes}
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        open_paths = [p for p in shapes if 1 <= counts[p] + step <= sizes[p]]
        nearest = sorted(open_paths, key=lambda p: step * (counts[p] - ideal[p]))
        for path in nearest[: abs(missing)]:
            counts[path] += step
    return counts
