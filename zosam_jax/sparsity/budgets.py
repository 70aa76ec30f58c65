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

    .. math:: d_l = \min(1, \epsilon p_l), \quad
       p_l = \frac{\sum_k n_{l,k}}{\prod_k n_{l,k}}

    over the axes :math:`n_{l,k}` of layer l, with the one epsilon that gives the total.
    A layer without entries has density 1.

    Raises:
      ValueError: `sparsity` is not in [0, 1].
    """
    return _scaled(shapes, sparsity, lambda shape: sum(shape) / math.prod(shape))


def er(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
    r"""Erdos-Renyi densities (SET, arXiv:1707.04780): `erk` of the channels alone.

    .. math:: d_l = \min(1, \epsilon p_l), \quad
       p_l = \frac{n_{in} + n_{out}}{n_{in} n_{out}}

    where the last two axes are :math:`n_{in}, n_{out}`, as in Flax and Haiku. For
    kernels with two axes it equals `erk`.

    Raises:
      ValueError: `sparsity` is not in [0, 1].
    """
    return _scaled(
        shapes, sparsity, lambda shape: sum(shape[-2:]) / math.prod(shape[-2:])
    )


def _scaled(
    shapes: Mapping[str, Shape], sparsity: float, weight: Callable[[Shape], float]
) -> dict[str, float]:
    """min(1, epsilon * weight), epsilon solved for the total.

    While some density would exceed 1, the layers of the largest weight become dense and
    epsilon is solved again for the others. Epsilon stays positive: a layer goes over
    only if the budget that is left is larger than the layer.
    """
    _check.number("sparsity", sparsity, least=0, most=1)
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    weights = {path: weight(shapes[path]) for path in shapes if sizes[path]}
    left = (1.0 - sparsity) * sum(sizes.values())
    densities = dict.fromkeys(shapes, 1.0)
    rest = set(weights)
    while rest:
        epsilon = left / sum(
            weights[path] * sizes[path] for path in shapes if path in rest
        )
        top = max(weights[path] for path in rest)
        if epsilon * top <= 1.0:
            return densities | {path: epsilon * weights[path] for path in rest}
        full = {path for path in rest if weights[path] == top}
        left -= sum(sizes[path] for path in full)
        rest -= full
    return densities


BUDGETS: dict[str, Budget] = {"erk": erk, "er": er, "uniform": uniform}


def by_path(patterns: Mapping[str, float], rest: str | Budget = "erk") -> Budget:
    """A budget that fixes the sparsity of some leaves, and shares out what is left.

    Args:
      patterns: `{pattern: sparsity in [0, 1)}`, glob patterns on `/`-joined key paths,
        as in `{"head/*": 0.5}`. Where several match, the first one counts.
      rest: "erk", "er", "uniform" or a budget, for the leaves that none matches. They
        get the sparsity at which the total is met.

    Returns:
      A budget. It raises `ValueError` where a pattern matches no sparse leaf, or where
      the other leaves cannot make up the total.

    Raises:
      ValueError: A sparsity is out of range, or `rest` unknown.

    Example:
      >>> from zosam_jax.sparsity import budgets
      >>> budget = budgets.by_path({"head/*": 0.5})
      >>> shapes = {"body/kernel": (30, 10), "head/kernel": (10, 10)}
      >>> densities = budget(shapes, 0.8)
      >>> {path: round(density, 6) for path, density in densities.items()}
      {'body/kernel': 0.1, 'head/kernel': 0.5}
    """
    for pattern, sparsity in patterns.items():
        _check.number(f"by_path's sparsity of {pattern}", sparsity, least=0, below=1)
    if not callable(rest):
        _check.one_of("rest", rest, BUDGETS)
    rule = rest if callable(rest) else BUDGETS[rest]
    patterns = dict(patterns)

    def budget(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
        fixed: dict[str, float] = {}
        for pattern, own in patterns.items():
            for path in tree.matching("by_path", pattern, list(shapes)):
                fixed.setdefault(path, own)
        free = {path: shape for path, shape in shapes.items() if path not in fixed}
        if not free:
            return {path: 1.0 - own for path, own in fixed.items()}
        sizes = {path: math.prod(shape) for path, shape in shapes.items()}
        # Whole weights: nothing is left that rounding would take from fixed layers.
        whole = {
            p: min(max(_kept(sizes[p], own), 1), sizes[p]) for p, own in fixed.items()
        }
        total, held = _kept(sum(sizes.values()), sparsity), sum(whole.values())
        room = sum(sizes[path] for path in free)
        if not len(free) <= total - held <= room:
            raise ValueError(
                f"by_path: sparsity={sparsity} keeps {total} weights, of which the "
                f"patterns keep {held}; the {len(free)} other leaves have to keep at "
                f"least {len(free)} and at most {room}."
            )
        remaining = 1.0 - (total - held) / room
        densities = rule(free, remaining)
        _check_densities(densities, free)
        whole |= exact_counts(free, densities, remaining)
        return {path: whole[path] / max(sizes[path], 1) for path in shapes}

    return budget


def _kept(size: int, sparsity: float) -> int:
    return size - round(sparsity * size)


Predicate = Callable[[str, Shape], bool]
"""`(path, shape) -> bool`."""

DenseRule = str | Predicate | Sequence[str | Predicate]
"""Leaves that stay dense: glob patterns on paths, functions of path and shape."""


def first_layer(inputs: int) -> Predicate:
    """For `dense=`: kernels of so many input channels, as the first layer's.

    They are read off the second-last axis, the layout of Flax and Haiku: `(..., in,
    out)`, dense layers and convolutions alike. Grouped and depthwise convolutions hold
    their channels a group there.

    Args:
      inputs: Channels of the network's input, 3 for colour images.
    """
    _check.whole("inputs", inputs)
    return lambda _, shape: len(shape) >= 2 and shape[-2] == inputs


def last_layer(outputs: int) -> Predicate:
    """For `dense=`: kernels of so many outputs, as the last layer's.

    They are read off the last axis, the layout of Flax and Haiku: `(..., in, out)`. A
    hidden layer of the same width matches too; name the last one by its path then.

    Args:
      outputs: Outputs of the network, such as the number of classes.
    """
    _check.whole("outputs", outputs)
    return lambda _, shape: len(shape) >= 2 and shape[-1] == outputs


def sparse_leaves(params: Any, dense: DenseRule = ()) -> dict[str, int]:
    """Flattened index by path of the leaves that are sparsified.

    Biases and norms are dense by rule: leaves with fewer than two axes, and those of
    more than two of which at most one is longer than 1 (a bias kept as `(out, 1, 1)`,
    a class token `(1, 1, d)`).

    Args:
      params: Pytree of arrays.
      dense: Leaves that are dense besides: a glob pattern on `/`-joined key paths, as
        `"head/*"` or `"*/embedding"`; a function `(path, shape) -> bool`, as
        `first_layer(3)`; or a sequence of both.

    Raises:
      ValueError: A pattern matches no leaf, or no leaf is left.
    """
    paths = tree.paths(params)
    if len(set(paths)) < len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"Two leaves of params have one path: {', '.join(twice)}.")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
    kept: set[str] = set()
    for rule in [dense] if isinstance(dense, str) or callable(dense) else dense or ():
        if callable(rule):
            kept |= {p for p, s in zip(paths, shapes, strict=True) if rule(p, s)}
        else:
            kept |= tree.matching("dense", rule, paths)
    sparse = {
        path: index
        for index, (path, shape) in enumerate(zip(paths, shapes, strict=True))
        if _is_kernel(shape) and math.prod(shape) > 0 and path not in kept
    }
    if not sparse:
        raise ValueError(
            "No leaf of params is left to sparsify: it needs at least two axes and "
            f"must not match dense={dense!r}. The leaves are: {', '.join(paths)}."
        )
    return sparse


def _is_kernel(shape: Shape) -> bool:
    return len(shape) == 2 or sum(n > 1 for n in shape) >= 2


def counts(
    params: Any, sparsity: float, budget: str | Budget, dense: DenseRule = ()
) -> dict[int, int]:
    """Weights that each sparse leaf keeps, by its flattened index.

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      budget: "erk", "er", "uniform", or a function like them.
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
      Weights kept by path, at least 1 (where there is one) and at most the layer's
      size.

    Raises:
      ValueError: The total is too small for one weight in every layer.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    total = _kept(sum(sizes.values()), sparsity)
    needed = sum(size > 0 for size in sizes.values())
    if total < needed:
        raise ValueError(
            f"sparsity={sparsity} keeps {total} of {sum(sizes.values())} weights, but "
            f"{needed} layers need at least one each. Lower the sparsity, or keep "
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
