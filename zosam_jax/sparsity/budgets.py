"""Budgets: how many weights each sparse layer keeps.

A budget of the user is a name or a function that gives each layer a density. `resolve`
turns it into an object with exact integer counts, which selects the weights that stay:
`PerLayer`, where every layer keeps its own count, or `Global`, where all layers share
one ranking. (The N:M patterns of `patterns` have the same methods.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from zosam_jax import _check, tree
from zosam_jax._types import Params, Shape, StackRule
from zosam_jax.selection import select, select_globally
from zosam_jax.sparsity.leaves import DenseRule as DenseRule
from zosam_jax.sparsity.leaves import SparseLeaves
from zosam_jax.sparsity.leaves import first_layer as first_layer
from zosam_jax.sparsity.leaves import last_layer as last_layer
from zosam_jax.sparsity.leaves import sparse_leaves as sparse_leaves

Budget = Callable[[Mapping[str, Shape], float], Mapping[str, float]]
"""`({path: shape}, sparsity) -> {path: density}` over the sparse layers.

The layers of a stack are `path/0`, `path/1`, and so on, as those of a list are."""


def uniform(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
    """Returns the same density, `1 - sparsity`, for every layer.

    Args:
      shapes: `{path: shape}` of the sparse leaves.
      sparsity: Fraction of pruned weights over all of them, in [0, 1].

    Example:
      >>> from zosam_jax.sparsity import budgets
      >>> budgets.uniform({"square": (10, 10), "tall": (100, 10)}, 0.75)
      {'square': 0.25, 'tall': 0.25}
    """
    return dict.fromkeys(shapes, 1.0 - sparsity)


def erk(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
    r"""Returns Erdos-Renyi-Kernel densities (RigL, arXiv:1911.11134, section 3.1).

    .. math:: d_l = \min(1, \epsilon p_l), \quad
       p_l = \frac{\sum_k n_{l,k}}{\prod_k n_{l,k}}

    The :math:`n_{l,k}` are the lengths of the axes of layer l, and epsilon is chosen
    to reach the total sparsity. A layer without entries has density 1.

    Example:
      >>> from zosam_jax.sparsity import budgets
      >>> found = budgets.erk({"square": (10, 10), "tall": (100, 10)}, 0.8)
      >>> {path: round(density, 3) for path, density in found.items()}
      {'square': 0.338, 'tall': 0.186}

    Raises:
      ValueError: `sparsity` is not in [0, 1].
    """
    return _scaled(shapes, sparsity, lambda shape: sum(shape) / math.prod(shape))


def er(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
    r"""Returns Erdos-Renyi densities (SET, arXiv:1707.04780), without kernel sizes.

    .. math:: d_l = \min(1, \epsilon p_l), \quad
       p_l = \frac{n_{in} + n_{out}}{n_{in} n_{out}}

    :math:`n_{in}` and :math:`n_{out}` are the last two axes, as in Flax and Haiku. For
    kernels with two axes it equals `erk`.

    Raises:
      ValueError: `sparsity` is not in [0, 1].

    Example:
      >>> from zosam_jax.sparsity import budgets
      >>> found = budgets.er({"conv": (3, 3, 10, 10), "head": (10, 10)}, 0.9)
      >>> {path: round(density, 3) for path, density in found.items()}
      {'conv': 0.1, 'head': 0.1}
    """
    return _scaled(
        shapes, sparsity, lambda shape: sum(shape[-2:]) / math.prod(shape[-2:])
    )


def _scaled(
    shapes: Mapping[str, Shape], sparsity: float, weight: Callable[[Shape], float]
) -> dict[str, float]:
    """Returns `min(1, epsilon * weight)`, with the epsilon that gives the total.

    While a density would exceed 1, the layers of the largest weight become dense, and
    epsilon is solved again for the others. Epsilon stays positive: a density exceeds 1
    only if the budget that is left is larger than the layer.
    """
    _check.number("sparsity", sparsity, least=0, most=1, traced=False)
    # All layers of the largest weight become dense together. One at a time would give
    # layers of equal shape different densities.
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


def _rule(argument: str, budget: str | Budget, more: Sequence[str] = ()) -> Budget:
    """Returns the budget with a name; a function is returned unchanged.

    Args:
      argument: The argument's name, for the error.
      budget: A name in `BUDGETS`, or a function.
      more: Further names that the argument takes.
    """
    if callable(budget):
        signature = "(shapes, sparsity) -> densities"
        _check.callable_as(argument, budget, signature)
        return budget
    _check.one_of(argument, budget, [*BUDGETS, *more])
    return BUDGETS[budget]


def fused(
    names: Sequence[str] = ("query/kernel", "key/kernel", "value/kernel"),
    rest: str | Budget = "erk",
) -> Budget:
    """Returns a budget that takes kernels of one input for one kernel.

    ERK gives three kernels of shape (D, D) other densities than one of shape (D, 3 D),
    as PyTorch's DeiT has it for query, key and value. Here the leaves of each group
    count as one kernel, joined along the last axis. They get its density and, together,
    its number of weights.

    Args:
      names: Ends of the paths of a group. Leaves with these ends and the same path
        before them are a group.
      rest: "erk", "er", "uniform" or a budget, for the groups and the other leaves.

    Returns:
      A budget. It raises `ValueError` if there is no group, or if the leaves of one
      differ in more than the last axis.

    Raises:
      ValueError: `names` are fewer than two, or `rest` is unknown.

    Example:
      >>> from zosam_jax.sparsity import budgets
      >>> apart = {"q": (10, 10), "k": (10, 10), "mlp": (10, 40)}
      >>> joint = {"qk": (10, 20), "mlp": (10, 40)}
      >>> {p: round(d, 4) for p, d in budgets.erk(joint, 0.8).items()}
      {'qk': 0.225, 'mlp': 0.1875}
      >>> found = budgets.fused(("q", "k"))(apart, 0.8)
      >>> {p: round(d, 4) for p, d in found.items()}
      {'q': 0.23, 'k': 0.22, 'mlp': 0.1875}
    """
    if isinstance(names, str) or len(set(names)) < 2:
        raise ValueError(f"fused: names={names!r} must be two or more ends of paths.")
    rule, ends = _rule("rest", rest), tuple(names)

    def budget(shapes: Mapping[str, Shape], sparsity: float) -> dict[str, float]:
        groups = _groups(shapes, ends)
        owners = {path: name for name, group in groups.items() for path in group}
        kernels = {name: _joined(group, shapes) for name, group in groups.items()}
        joint = {
            owners.get(path, path): kernels.get(owners.get(path, ""), shape)
            for path, shape in shapes.items()
        }
        densities = rule(joint, sparsity)
        _check_densities(densities, joint)
        # Whole numbers here, so that each group keeps what its one kernel would.
        whole = exact_counts(joint, densities, sparsity)
        for name, group in groups.items():
            own = {path: shapes[path] for path in group}
            density = whole.pop(name) / math.prod(joint[name])
            whole |= exact_counts(own, dict.fromkeys(own, density), 1.0 - density)
        return {path: whole[path] / max(math.prod(shapes[path]), 1) for path in shapes}

    return budget


def _groups(
    shapes: Mapping[str, Shape], ends: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns the paths of each complete group, by a name that no leaf has."""
    first = ends[0]
    starts = [
        path.removesuffix(first)
        for path in shapes
        if path == first or path.endswith(f"/{first}")
    ]
    groups = {
        f"{start}{'+'.join(ends)}": tuple(start + end for end in ends)
        for start in starts
        if all(start + end in shapes for end in ends)
    }
    if not groups:
        raise ValueError(
            f"a budget of fused kernels finds no sparse leaves that end in "
            f"{', '.join(ends)} and agree before. The sparse leaves are: "
            f"{', '.join(shapes)}."
        )
    return groups


def _joined(group: Sequence[str], shapes: Mapping[str, Shape]) -> Shape:
    """Returns the shape of the leaves of a group, joined along the last axis."""
    front = shapes[group[0]][:-1]
    if any(shapes[path][:-1] != front for path in group):
        found = ", ".join(f"{path} {shapes[path]}" for path in group)
        raise ValueError(f"fused: these differ in more than the last axis: {found}.")
    return (*front, sum(shapes[path][-1] for path in group))


BUDGETS: dict[str, Budget] = {
    "erk": erk,
    "er": er,
    "uniform": uniform,
    "erk_fused": fused(rest=erk),
}
"""The budgets by name."""


def by_path(patterns: Mapping[str, float], rest: str | Budget = "erk") -> Budget:
    """Returns a budget in which you choose the sparsity of some layers.

    The other layers are pruned more or less, so that the method's sparsity holds for
    all sparse leaves together.

    Args:
      patterns: The sparsity of each chosen layer, `{pattern: sparsity}`: glob patterns
        on `/`-joined key paths and sparsities in [0, 1), as `{"head/*": 0.5}`. The
        first pattern that matches a layer counts. The layers of a stack have the paths
        `path/0`, `path/1`, and so on.
      rest: How the pruned weights are distributed over the other layers: "erk",
        "erk_fused", "er", "uniform", or a budget.

    Returns:
      A budget. When a method uses it, it raises `ValueError` if a pattern matches no
      sparse leaf, or if no sparsity of the other layers in [0, 1) gives the total.

    Raises:
      ValueError: A sparsity is out of range, or `rest` is unknown.
      TypeError: `patterns` is no mapping.

    Example:
      >>> from zosam_jax.sparsity import budgets
      >>> budget = budgets.by_path({"head/*": 0.5})
      >>> shapes = {"body/kernel": (30, 10), "head/kernel": (10, 10)}
      >>> densities = budget(shapes, 0.8)
      >>> {path: round(density, 6) for path, density in densities.items()}
      {'body/kernel': 0.1, 'head/kernel': 0.5}
    """
    if not isinstance(patterns, Mapping):
        raise TypeError(
            f"by_path({patterns!r}) must be a mapping of patterns to sparsities, such "
            'as by_path({"head/*": 0.5}).'
        )
    for pattern, sparsity in patterns.items():
        _check.number(f"by_path's sparsity of {pattern}", sparsity, least=0, below=1)
    rule = _rule("rest", rest)
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
        # Whole numbers here, so that later rounding takes nothing from fixed layers.
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


class PerLayer(NamedTuple):
    """The budget in which every leaf keeps its own number of weights.

    Attributes:
      sparsity: Fraction of pruned weights over the sparse leaves together.
      densities: Function that gives every leaf its density.
    """

    sparsity: float
    densities: Budget

    across = False

    def counts(self, leaves: SparseLeaves) -> list[int]:
        """Returns the number of weights that each leaf keeps.

        Raises:
          ValueError: The budget cannot be met.
        """
        shapes = dict(zip(leaves.names, leaves.shapes, strict=True))
        densities = self.densities(shapes, self.sparsity)
        _check_densities(densities, shapes)
        exact = exact_counts(shapes, densities, self.sparsity)
        return [exact[name] for name in leaves.names]

    def by_ranking(self, numbers: Sequence[int]) -> list[int]:
        """Returns the number of each ranking: one ranking for each leaf."""
        return list(numbers)

    def select(
        self,
        leaves: SparseLeaves,
        scores: Sequence[jax.Array],
        counts: Sequence[jax.typing.ArrayLike] | jax.Array | None = None,
        candidates: Sequence[jax.Array] | None = None,
    ) -> list[jax.Array]:
        """Returns masks of the highest scores of each leaf, ties to the lower index.

        Args:
          leaves: The sparse leaves.
          scores: Scores of each leaf.
          counts: How many to select of each, `[layers]`; by default `self.counts`.
          candidates: Masks of what may be selected; by default everything.
        """
        counts = self.counts(leaves) if counts is None else counts
        candidates = leaves.all_live() if candidates is None else candidates
        return select(scores, candidates, list(counts))


class Global(NamedTuple):
    """The budget in which all leaves share one ranking.

    The best weight of every leaf is kept, whatever the others score.

    Attributes:
      sparsity: Fraction of pruned weights over the sparse leaves together.
    """

    sparsity: float

    across = True

    def counts(self, leaves: SparseLeaves) -> list[int]:
        """Returns counts of the leaves; only their sum has a meaning.

        Raises:
          ValueError: The budget keeps less than one weight for each leaf, or there are
            more than 2**31 - 1 weights.
        """
        advice = 'Give each leaf a budget of its own: budget="erk".'
        what = "a global budget ranks all sparse leaves together: params"
        _check.countable(what, sum(leaves.sizes), advice)
        return PerLayer(self.sparsity, uniform).counts(leaves)

    def by_ranking(self, numbers: Sequence[int]) -> list[int]:
        """Returns the number of the one ranking: the sum over the leaves."""
        return [sum(numbers)]

    def select(
        self,
        leaves: SparseLeaves,
        scores: Sequence[jax.Array],
        counts: Sequence[jax.typing.ArrayLike] | jax.Array | None = None,
        candidates: Sequence[jax.Array] | None = None,
    ) -> list[jax.Array]:
        """Returns masks of the highest scores of all leaves, ties to the earlier.

        Args:
          leaves: The sparse leaves.
          scores: Scores of each leaf.
          counts: Numbers whose sum is how many to select; by default `self.counts`.
          candidates: Masks of what may be selected; by default everything.
        """
        counts = self.counts(leaves) if counts is None else counts
        candidates = leaves.all_live() if candidates is None else candidates
        return select_globally(scores, candidates, _total(counts))


# A sum that starts at 0 would add an operation to the compiled program.
def _total(counts: Sequence[jax.typing.ArrayLike] | jax.Array) -> jax.typing.ArrayLike:
    if isinstance(counts, jax.Array):
        return counts.sum()
    return counts[0] if len(counts) == 1 else sum(counts)


def resolve(
    budget: str | Budget, sparsity: float, *, across: bool = False
) -> PerLayer | Global:
    """Returns the budget object for a method's `budget` and `sparsity`.

    Args:
      budget: "erk", "er", "uniform", a function like them, or "global".
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      across: Whether the method takes "global".

    Raises:
      ValueError: The sparsity is out of range, or the name is unknown.
    """
    _check.number("sparsity", sparsity, least=0, below=1, traced=False)
    if across and budget == "global":
        return Global(sparsity)
    return PerLayer(sparsity, _rule("budget", budget, ["global"] if across else []))


def counts(
    params: Params,
    sparsity: float,
    budget: str | Budget,
    dense: DenseRule = (),
    stacked: StackRule = (),
) -> dict[str, int]:
    """Returns the number of weights that each sparse layer keeps, by path.

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      budget: "erk", "er", "uniform", or a function like them.
      dense: Leaves that stay dense; see `sparse_leaves`.
      stacked: Leaves that are stacks of layers; see `sparse_leaves`.

    Returns:
      `{path: count}`; the counts add up to `N - round(sparsity * N)` for N weights. The
      layers of a stack are `path/0`, `path/1`, and so on.

    Raises:
      ValueError: The budget cannot be met.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity import budgets
      >>> params = {"bias": jnp.zeros(4), "kernel": jnp.ones((5, 4))}
      >>> budgets.counts(params, 0.9, "uniform")
      {'kernel': 2}
    """
    leaves = sparse_leaves(params, dense, stacked)
    exact = resolve(budget, sparsity).counts(leaves)
    return dict(zip(leaves.names, exact, strict=True))


def _check_densities(
    densities: Mapping[str, float], shapes: Mapping[str, Shape]
) -> None:
    if not isinstance(densities, Mapping):
        raise TypeError(
            "a budget is a function (shapes, sparsity) -> {layer: density}; it gave "
            f"{densities!r}."
        )
    if set(densities) != set(shapes):
        differing = sorted(set(densities) ^ set(shapes))
        raise ValueError(
            "a budget gives a density for every sparse layer and for no other; it "
            f"differs at {', '.join(differing)}."
        )
    for path, density in densities.items():
        _check.number(f"the budget's density of {path}", density, least=0, most=1)


def exact_counts(
    shapes: Mapping[str, Shape], densities: Mapping[str, float], sparsity: float
) -> dict[str, int]:
    """Returns whole numbers of weights, near the densities, with the exact total.

    Largest remainders: every count is rounded down, and the weights that are left go to
    the layers that lost the largest fraction, ties to the earlier layer.

    Args:
      shapes: `{path: shape}` of the sparse leaves.
      densities: `{path: density}`, the fraction of weights that each keeps.
      sparsity: The total keeps `N - round(sparsity * N)` of its N weights.

    Returns:
      `{path: count}`: at least 1 (0 for a layer without entries), at most the size of
      the layer.

    Raises:
      ValueError: The total is too small for one weight in every layer.

    Example:
      >>> from zosam_jax.sparsity import budgets
      >>> shapes, densities = {"a": (7, 1), "b": (7, 1)}, {"a": 0.5, "b": 0.5}
      >>> budgets.exact_counts(shapes, densities, 0.5)
      {'a': 4, 'b': 3}
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
    # The bounds of 1 and of the size may move the total by more than one a layer.
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        open_paths = [p for p in shapes if 1 <= counts[p] + step <= sizes[p]]
        nearest = sorted(open_paths, key=lambda p: step * (counts[p] - ideal[p]))
        for path in nearest[: abs(missing)]:
            counts[path] += step
    return counts
