r"""Dynamic sparse training: every few steps drop some weights and grow as many.

Every `interval` steps each sparse layer drops the :math:`\lfloor \alpha_t n \rfloor`
lowest scores of its :math:`n` live weights and grows as many of the weights that are
not kept. A weight that was just dropped is among these; if it is chosen, it stays as it
was. For RigL

.. math:: \alpha_t = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{T_{end}}\right)

(arXiv:1911.11134, section 3). Grown weights start at zero. The optimizer's step follows
in the same update, on the new topology. RigL's pseudo-code omits that step; it is taken
here so that learning-rate schedules see the number of steps they expect.
"""

from typing import TypedDict

import jax

from zosam_jax import _check
from zosam_jax._options import checks_arguments
from zosam_jax._types import StackRule
from zosam_jax.sparsity import budgets, schedules, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.initial_masks import at_random
from zosam_jax.sparsity.leaves import LeafRule
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.prune_and_grow import exchange


class Options(TypedDict, total=False):
    """The options of `dynamic` that `rigl` and `set_` pass on."""

    interval: int
    drop_fraction: float | schedules.Fraction
    stop_fraction: float
    budget: str | Budget
    dense: DenseRule
    stacked: StackRule
    seed: jax.typing.ArrayLike


class StartOptions(TypedDict, total=False):
    """The options of `dynamic` that methods with their own schedule pass on."""

    budget: str | Budget
    dense: DenseRule
    stacked: StackRule
    seed: jax.typing.ArrayLike


@checks_arguments
def dynamic(
    sparsity: float,
    total_steps: int,
    *,
    drop: str | scores.Score,
    grow: str | scores.Score,
    interval: int = 100,
    drop_fraction: float | schedules.Fraction = 0.3,
    stop_fraction: float = 0.75,
    by_sign: bool = False,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    stacked: StackRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    """Drops by one score and grows by another, from a random mask.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      total_steps: Optimizer steps of the whole training.
      drop: Score whose lowest live weights are dropped: "magnitude", "gradient",
        "saliency", "random", or a function as in `scores`.
      grow: Score whose highest weights are grown, of those not kept: a name as for
        `drop`, or a function.
      interval: Steps between two changes of topology. The first change is at step
        `interval`.
      drop_fraction: alpha, the fraction of live weights that a change drops, in [0, 1],
        at step 0; a cosine anneals it to 0. Or a schedule, `step -> fraction`, such as
        `optax.constant_schedule(0.3)`.
      stop_fraction: All changes are before step `stop_fraction * total_steps`.
      by_sign: Drop the same fraction of the positive and of the negative weights.
      budget: Sparsity distribution: "erk", "erk_fused" (query, key and value as one
        kernel), "er", "uniform", or a function as in `budgets`.
      dense: Leaves that stay dense: glob patterns on paths, as `"head/*"`, functions
        `(path, shape of one layer) -> bool`, or a sequence of both.
      stacked: Leaves that stack layers along leading axes, as `nn.scan` and experts
        make them: patterns for one axis, as `"layers/*"`; functions `(path, shape) ->
        number of axes`; a sequence of both; or a mapping from patterns to numbers, of
        which the first match counts: `{"layers/experts/*": 2, "layers/*": 1}`. Each
        layer is then treated as a leaf of its own would be: budgets, drops and growth
        are by layer, and `[layers, n]` biases stay dense.
      seed: Seed of the first mask and of random scores; the keys of step t come from
        `split(fold_in(fold_in(key(seed), 2**32 - 1), t))`. It may be traced.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met.

    Warns:
      UserWarning: The training is too short for one change, so that the mask is static.

    Example:
      >>> import zosam_jax as zs
      >>> method = zs.sparsity.dynamic(0.9, 1000, drop="magnitude", grow="saliency")
      >>> method.dense_gradient_every
      100
    """
    _check.flags(by_sign=by_sign)
    chosen = budgets.resolve(budget, sparsity)
    return exchange(
        at_random(chosen, LeafRule(dense, stacked), seed),
        total_steps,
        drop=scores.named("drop", drop),
        grow=scores.named("grow", grow),
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        seed=seed,
        stacked=stacked,
        by_sign=by_sign,
    )._replace(name="dynamic")
