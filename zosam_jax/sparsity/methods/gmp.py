"""Gradual magnitude pruning: from a dense network to a sparse one, along a cubic."""

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._options import checks_arguments
from zosam_jax._types import Masks, Params, PyTree, StackRule
from zosam_jax.sparsity import budgets, schedules, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.leaves import LeafRule
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.prune_and_grow import Census, prune_and_grow


@checks_arguments
def gmp(
    sparsity: float,
    total_steps: int,
    *,
    score: str | scores.Score = scores.magnitude,
    interval: int = 100,
    start_fraction: float = 0.2,
    stop_fraction: float = 0.75,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    stacked: StackRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""Gradual magnitude pruning (Zhu and Gupta, arXiv:1710.01878).

    The network starts dense. Every `interval` steps, from :math:`t_0` to :math:`t_0 + n
    \Delta t`, the lowest scores of each layer are pruned up to the sparsity

    .. math:: s_t = s \left(1 - \left(1 - \frac{t - t_0}{n \Delta t}\right)^3\right)

    where s is the layer's final sparsity under the budget. Pruned weights stay pruned.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together at the end,
        in [0, 1).
      total_steps: Optimizer steps of the whole training.
      score: Score whose lowest weights are pruned: a name or a function, as in
        `dynamic`.
      interval: Steps between two prunings.
      start_fraction: The first pruning is at step `start_fraction * total_steps`,
        rounded up.
      stop_fraction: The last pruning, which reaches the sparsity exactly, is not after
        step `stop_fraction * total_steps`. If there is time for one pruning only, it
        prunes everything.
      budget: Sparsity distribution, as in `dynamic`, or "global": one threshold for all
        sparse leaves, each of which keeps at least one weight.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`.
      seed: Seed of a random score, as in `dynamic`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met.
    """
    chosen = budgets.resolve(budget, sparsity, across=True)
    schedules.check_steps(total_steps, interval)
    _check.number("start_fraction", start_fraction, least=0, below=1)
    _check.number("stop_fraction", stop_fraction, least=start_fraction, most=1)
    steps = schedules.cubic_steps(total_steps, interval, start_fraction, stop_fraction)
    progress = schedules.cubic(steps)

    rule = LeafRule(dense, stacked)

    def all_live(params: Params) -> Masks:
        leaves = rule.sparse(params)
        return leaves.masks(leaves.all_live())

    def quota(census: Census) -> tuple[jax.Array, jax.Array, PyTree]:
        done = progress(census.step)
        surplus = census.sizes - census.memory.target
        # The pruned number is rounded, and not the kept one, so that the last step can
        # be exact: there `surplus` itself is taken.
        pruned = jnp.round(done * surplus.astype(jnp.float32)).astype(jnp.int32)
        # float32 may round a large product up.
        pruned = jnp.where(done < 1, jnp.minimum(pruned, surplus), surplus)
        kept = census.sizes - pruned
        return kept, kept, census.memory.rule

    return prune_and_grow(
        all_live,
        schedules.periodic(interval, steps[-1] + 1, steps[0]),
        quota,
        drop=scores.named("score", score),
        stacked=stacked,
        target=lambda params: chosen.counts(rule.sparse(params)),
        across=chosen.across,
        seed=seed,
        dense_gradient_every=None,
        mean_pruned=_mean_pruned(steps, total_steps),
    )._replace(name="gmp")


def _mean_pruned(steps: list[int], total: int) -> float:
    """Returns pruned / finally pruned weights, averaged over the training."""
    # Each share holds from its pruning to the next one, the last to the end.
    ends = [*steps[1:], total]
    shares = [
        1 - (1 - (s - steps[0]) / max(steps[-1] - steps[0], 1)) ** 3 for s in steps
    ]
    # Of one pruning alone the formula gives 0, and it prunes everything.
    shares[-1] = 1.0
    return (
        sum(
            share * (end - s) for share, s, end in zip(shares, steps, ends, strict=True)
        )
        / total
    )
