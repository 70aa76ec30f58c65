"""Straight-through training: all weights train, the network sees the largest."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax.selection import select
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.mask_trees import (
    all_live,
    from_leaves,
    select_globally,
    targets,
)
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.patterns import Axis, best_of_groups, check_fits, pattern_of
from zosam_jax.sparsity.prune_and_grow import (
    Memory,
    check,
    sparse_masks,
)


def ste(
    sparsity: float | None = None,
    *,
    decay: float = 0.0,
    interval: int = 1,
    budget: str | Budget | None = None,
    dense: DenseRule = (),
    pattern: tuple[int, int] | None = None,
    axis: Axis = -2,
) -> SparseMethod:
    r"""Straight-through estimator: all weights train, the network sees the largest.

    The loss is evaluated at :math:`m \odot w`, m the mask of the largest |w|, and its
    gradient there moves every w, live or not (arXiv:1308.3432). So the mask is chosen
    anew in every step. SR-STE adds :math:`\lambda (1 - m) \odot w` to the gradient,
    which keeps the mask from flickering (arXiv:2102.04010, equation 7).

    `params` hold the dense weights: train and evaluate at `apply_masks(params,
    masks(state))`, which `gradient=` of `sparsify` does by itself. A loop that forgets
    it trains the dense network, and `sparsify`, which sees only the gradient, cannot
    tell. Weight decay of the optimizer shrinks the pruned weights too.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      decay: lambda; the paper's is 2e-4.
      interval: Steps between choices of the mask.
      budget: As in `dynamic`, or "global"; "erk" by default.
      dense: As in `dynamic`.
      pattern: `(n, m)`: the mask is that of the n largest |w| of every m, as in
        `static`, and `sparsity` is `1 - n / m`. The setting of SR-STE is `ste(pattern=
        (2, 4), decay=2e-4)`.
      axis: The axis of the groups of `pattern`, as in `static`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met or a
        leaf that the groups do not divide.
    """
    if sparsity is None and pattern is None:
        raise ValueError("ste needs sparsity=, or pattern=, as (2, 4).")
    groups = None if pattern is None else pattern_of(pattern, axis, sparsity, budget)
    target = cast(float, sparsity if groups is None else groups.sparsity)
    budget = "erk" if budget is None else budget
    check(target, 1, interval, budget, ("global",))
    _check.number("decay", decay, least=0)

    def init(params: Any) -> Topology:
        masks = all_live(params, dense)
        if groups is None:
            live = targets(params, target, budget, dense)
        else:
            check_fits(groups, params, dense)
            sizes = [m.size for m in sparse_masks(masks).values()]
            live = [size // groups.m * groups.n for size in sizes]
        live = jnp.asarray(live, jnp.int32)
        empty = Topology(masks, Memory(live, live + 0))
        return change(empty, params, None, jnp.int32(0))

    def change(topology: Topology, params: Any, grads: Any, step: Any) -> Topology:
        del grads, step
        leaves = jax.tree.leaves(params)
        sparse = sparse_masks(topology.masks)
        ranked = [jnp.abs(leaves[i]) for i in sparse]
        every = [jnp.ones(m.shape, bool) for m in sparse.values()]
        memory = topology.memory
        if groups is not None:
            paths = tree.paths(params)
            chosen = [
                best_of_groups(groups, paths[i], score)
                for i, score in zip(sparse, ranked, strict=True)
            ]
        elif budget == "global":
            chosen = select_globally(ranked, every, jnp.sum(memory.target))
            live = jnp.stack([jnp.sum(m, dtype=jnp.int32) for m in chosen])
            memory = memory._replace(live=live)
        else:
            chosen = select(ranked, every, list(memory.target))
        masks = from_leaves(topology.masks, dict(zip(sparse, chosen, strict=True)))
        return Topology(masks, memory)

    return SparseMethod(
        init,
        lambda step: (step + 1) % interval == 0,
        change,
        straight_through=decay,
        dense_gradient_every=1,
    )
