"""From a dense network to a sparse one while it trains: gradual pruning, and STE."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax.selection import select
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule, counts, sparse_leaves
from zosam_jax.sparsity.mask_trees import from_leaves, select_globally
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.patterns import Axis, best_of_groups, check_fits, pattern_of
from zosam_jax.sparsity.prune_and_grow import (
    Census,
    Memory,
    check,
    prune_and_grow,
    sparse_masks,
)


def gmp(
    sparsity: float,
    total_steps: int,
    *,
    score: scores.Score = scores.magnitude,
    interval: int = 100,
    start_fraction: float = 0.2,
    stop_fraction: float = 0.75,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""Gradual magnitude pruning (Zhu and Gupta, arXiv:1710.01878).

    Starts dense. Every `interval` steps, from :math:`t_0` to :math:`t_0 + n \Delta t`,
    the lowest scores are pruned up to the sparsity

    .. math:: s_t = s \left(1 - \left(1 - \frac{t - t_0}{n \Delta t}\right)^3\right)

    of each layer, s its own under the budget. What is pruned stays pruned.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, at the end.
      total_steps: Optimizer steps of the whole training.
      score: What scores lowest is pruned.
      interval: Steps between prunings.
      start_fraction: The first is at step `start_fraction * total_steps`, rounded up.
      stop_fraction: The last, which reaches the sparsity exactly, is within
        `stop_fraction * total_steps`. If there is time for one only, it prunes all.
      budget: As in `dynamic`, or "global": one threshold over all sparse leaves, each
        of which keeps at least one weight.
      dense: As in `dynamic`.
      seed: Of a random score, as in `dynamic`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met.
    """
    check(sparsity, total_steps, interval, budget, ("global",))
    _check.number("start_fraction", start_fraction, least=0, below=1)
    _check.number("stop_fraction", stop_fraction, least=start_fraction, most=1)
    steps = schedules.cubic_steps(total_steps, interval, start_fraction, stop_fraction)
    progress = schedules.cubic(steps)
    across = budget == "global"

    def quota(census: Census) -> tuple[jax.Array, jax.Array, Any]:
        done = progress(census.step)
        surplus = census.sizes - census.memory.target
        pruned = jnp.round(done * surplus).astype(jnp.int32)
        # float32 may round a large product up.
        pruned = jnp.where(done < 1, jnp.minimum(pruned, surplus), surplus)
        kept = census.sizes - pruned
        return kept, kept, census.memory.rule

    return prune_and_grow(
        lambda params: _all_live(params, dense),
        schedules.periodic(interval, steps[-1] + 1, steps[0]),
        quota,
        drop=score,
        target=lambda params: _targets(params, sparsity, budget, dense),
        across=across,
        seed=seed,
        dense_gradient_every=None,
        mean_pruned=_mean_pruned(steps, total_steps),
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
        masks = _all_live(params, dense)
        if groups is None:
            live = _targets(params, target, budget, dense)
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


def _all_live(params: Any, dense: DenseRule) -> Any:
    """Masks that prune nothing yet, in which the sparse leaves have arrays."""
    leaves = jax.tree.leaves(params)
    indices = sparse_leaves(params, dense).values()
    return from_leaves(params, {i: jnp.ones(leaves[i].shape, bool) for i in indices})


def _targets(
    params: Any, sparsity: float, budget: str | Budget, dense: DenseRule
) -> list[int]:
    """Final live weights of each sparse leaf. Of a "global" budget only their sum."""
    shared = "uniform" if budget == "global" else budget
    return list(counts(params, sparsity, shared, dense).values())


def _mean_pruned(steps: list[int], total: int) -> float:
    """The average over training of the pruned share of the finally pruned weights."""
    ends = [*steps[1:], total]
    shares = [
        1 - (1 - (s - steps[0]) / max(steps[-1] - steps[0], 1)) ** 3 for s in steps
    ]
    shares[-1] = 1.0
    return (
        sum(
            share * (end - s) for share, s, end in zip(shares, steps, ends, strict=True)
        )
        / total
    )
