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
from typing import TypedDict, Unpack

import jax

from zosam_jax import _check
from zosam_jax.sparsity import schedules, scores
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
    drop: scores.Score,
    grow: scores.Score,
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
      drop: Score whose lowest live weights are dropped.
      grow: Score whose highest weights, of those not kept, are grown.
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
        drop=drop,
        grow=grow,
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        seed=seed,
        by_sign=by_sign,
    )


def rigl(sparsity: float, total_steps: int, **options: Unpack[Options]) -> SparseMethod:
    """RigL (arXiv:1911.11134): drop the smallest |w|, grow the largest |dL/dw|.

    The gradient is the one that trains the weights: with `gradient=zs.zosam(...)` it is
    taken at the perturbed parameters.

    Args:
      sparsity: As in `dynamic`.
      total_steps: As in `dynamic`.
      **options: `interval=100, drop_fraction=0.3, stop_fraction=0.75, budget="erk",
        dense=(), seed=0`, as in `dynamic`.
    """
    _check_options("rigl", options)
    return dynamic(
        sparsity, total_steps, drop=scores.magnitude, grow=scores.gradient, **options
    )


def set_(
    sparsity: float,
    total_steps: int,
    *,
    by_sign: bool = False,
    **options: Unpack[Options],
) -> SparseMethod:
    """SET (arXiv:1707.04780): drop the smallest |w|, grow at random.

    By default in the form that the literature compares (RigL's): one magnitude
    threshold a layer and the cosine-annealed fraction. The original is
    `set_(..., by_sign=True, drop_fraction=optax.constant_schedule(0.3), budget="er",
    stop_fraction=1.0)` with an interval of an epoch.

    Args:
      sparsity: As in `dynamic`.
      total_steps: As in `dynamic`.
      by_sign: Drop the smallest positive and the largest negative weights, the same
        fraction of each.
      **options: As in `rigl`.
    """
    _check_options("set_", options, "by_sign")
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=scores.random,
        by_sign=by_sign,
        **options,
    )


def itop(
    sparsity: float,
    total_steps: int,
    *,
    grow: scores.Score = scores.gradient,
    **options: Unpack[Options],
) -> SparseMethod:
    """In-time over-parameterization (ITOP, arXiv:2102.02887): few, large, late changes.

    RigL (or SET, with `grow=scores.random`) whose weights have time to train before
    they are judged, and that explores until the end: the fraction falls from 0.5 to
    0.005 by a cosine over the whole training. What share of all weights was live at
    some time is `exploration(state)`, with `sparsify(..., track_exploration=True)`.

    Args:
      sparsity: As in `dynamic`.
      total_steps: As in `dynamic`.
      grow: `scores.gradient` or `scores.random`.
      **options: As in `rigl`. `interval` is by default such that there are 24 changes,
        or 65 with random growth: 4000 and 1500 steps in the paper's 97,750.
    """
    _check_options("itop", options, "grow")
    _check.whole("total_steps", total_steps)
    usual: Options = {
        "interval": max(1, total_steps // (65 if grow is scores.random else 24)),
        "drop_fraction": schedules.cosine(0.5, total_steps, 0.005),
        "stop_fraction": 1.0,
    }
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=grow,
        **{**usual, **options},
    )


def svite(
    sparsity: float, total_steps: int, **options: Unpack[Options]
) -> SparseMethod:
    """SViTE (arXiv:2106.04533), unstructured: RigL for vision transformers.

    The fraction falls from 0.5 to 0.005 by a cosine over the whole training, and the
    changes end at 80 % of it. Attention heads and MLP units are pruned by `units`.

    Args:
      sparsity: As in `dynamic`.
      total_steps: As in `dynamic`.
      **options: As in `rigl`. `interval` is by default `total_steps // 75`: 20,000
        steps in the paper's 600 epochs of DeiT-Tiny.
    """
    _check_options("svite", options)
    _check.whole("total_steps", total_steps)
    usual: Options = {
        "interval": max(1, total_steps // 75),
        "drop_fraction": schedules.cosine(0.5, total_steps, 0.005),
        "stop_fraction": 0.8,
    }
    return rigl(sparsity, total_steps, **{**usual, **options})


def _check_options(name: str, options: Options, *own: str) -> None:
    known = [*own, *Options.__annotations__]
    _check.options(f"zs.sparsity.{name}", options, known)
