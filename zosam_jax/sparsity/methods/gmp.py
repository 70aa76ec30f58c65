"""Gradual magnitude pruning: from a dense network to a sparse one, along a cubic."""

from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.mask_trees import all_live, targets
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.prune_and_grow import Census, check, prune_and_grow


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
      score: What scores lowest is pruned: a name or a function, as in `dynamic`.
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
        lambda params: all_live(params, dense),
        schedules.periodic(interval, steps[-1] + 1, steps[0]),
        quota,
        drop=scores.named("score", score),
        target=lambda params: targets(params, sparsity, budget, dense),
        across=across,
        seed=seed,
        dense_gradient_every=None,
        mean_pruned=_mean_pruned(steps, total_steps),
    )


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
