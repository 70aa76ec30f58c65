r"""Dynamic sparse training: drop some weights, grow as many, every few steps.

Every `interval` steps each sparse layer of :math:`n` live weights drops the
:math:`\lfloor \alpha_t n \rfloor` that score lowest and grows as many of those that are
not kept (a weight just dropped is among them, and if chosen stays as it was). For RigL

.. math:: \alpha_t = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{T_{end}}\right)

(arXiv:1911.11134, section 3). Grown weights start at zero, and the optimizer's step
follows in the same update, on the new topology. RigL's pseudo-code leaves that step
out; taking it keeps learning-rate schedules at the number of steps they count.
"""

from collections.abc import Callable
from typing import TypedDict

import jax

from zosam_jax import _check
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.mask_trees import at_random
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.prune_and_grow import check, exchange


class Options(TypedDict, total=False):
    """The options of `dynamic` that its rows take too."""

    interval: int
    drop_fraction: float | Callable[[jax.Array], jax.Array]
    stop_fraction: float
    budget: str | Budget
    dense: DenseRule
    seed: jax.typing.ArrayLike


def dynamic(
    sparsity: float,
    total_steps: int,
    *,
    drop: str | scores.Score,
    grow: str | scores.Score,
    interval: int = 100,
    drop_fraction: float | Callable[[jax.Array], jax.Array] = 0.3,
    stop_fraction: float = 0.75,
    by_sign: bool = False,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    """Drop by one score, grow by another, from a random mask.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      total_steps: Optimizer steps of the whole training.
      drop: Score whose lowest live weights are dropped: a name, "magnitude",
        "gradient", "saliency" or "random", or a function as in `scores`.
      grow: Score whose highest weights, of those not kept, are grown, likewise.
      interval: Steps between changes of topology; the first one is at step `interval`,
        if training is that long.
      drop_fraction: alpha, the fraction of live weights dropped at first, in [0, 1],
        annealed to 0 at the last change by a cosine; or a schedule, `step -> fraction`,
        such as `optax.constant_schedule(0.3)`.
      stop_fraction: The last change is before step `stop_fraction * total_steps`.
      by_sign: Drop the fraction of the positive and of the negative weights, each.
      budget: "erk", "er", "uniform", or a function as in `budgets`.
      dense: Leaves that stay dense; see `sparse_leaves`.
      seed: Of the first mask and of random scores; those of step t come from
        `split(fold_in(fold_in(key(seed), 2**32 - 1), t))`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met.

    Warns:
      UserWarning: The training is too short for one change. A trial run of a longer
        one goes on; what it trains is a static mask.
    """
    check(sparsity, total_steps, interval, budget)
    return exchange(
        at_random(sparsity, budget, dense, seed),
        total_steps,
        drop=scores.named("drop", drop),
        grow=scores.named("grow", grow),
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        seed=seed,
        by_sign=by_sign,
    )


def check_options(name: str, options: Options, *own: str) -> None:
    """Raises `TypeError`, naming the nearest, for an unknown option of a method."""
    known = [*own, *Options.__annotations__]
    _check.options(f"zs.sparsity.{name}", options, known)
