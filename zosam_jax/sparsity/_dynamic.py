r"""Dynamic sparse training: drop some weights, grow as many, every few steps.

A method is a row: which score drops, which grows. Every `interval` steps each sparse
layer of :math:`n` live weights drops the :math:`\lfloor \alpha_t n \rfloor` that score
lowest and grows as many of those that are not kept (a weight just dropped is among
them, and if chosen stays as it was), with

.. math:: \alpha_t = \frac{\alpha}{2} \left(1 + \cos \frac{\pi t}{T_{end}}\right)

(RigL, arXiv:1911.11134, section 3). Grown weights start at zero, and the optimizer's
step follows in the same update, on the new topology. RigL's pseudo-code leaves that
step out; taking it keeps learning-rate schedules at the number of steps they count.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, tree
from zosam_jax.sparsity import scores
from zosam_jax.sparsity._masks import from_leaves, initial_masks
from zosam_jax.sparsity._method import SparseMethod
from zosam_jax.sparsity.budgets import BUDGETS, Budget, DenseRule

# Keeps these keys apart from those of `zosam`, fold_in(key(seed), step), at one seed.
_GROWTH = np.uint32(0xFFFFFFFF)


def dynamic(
    sparsity: float,
    total_steps: int,
    *,
    drop: scores.Score,
    grow: scores.Score,
    interval: int = 100,
    drop_fraction: float = 0.3,
    stop_fraction: float = 0.75,
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
      drop_fraction: alpha, the fraction of live weights dropped at first, in [0, 1].
      stop_fraction: The last change is before step `stop_fraction * total_steps`.
      budget: "erk", "uniform", or a function as in `budgets`.
      dense: Leaves that stay dense; see `sparse_leaves`.
      seed: Of the first mask and of random scores; those of step t come from
        `split(fold_in(fold_in(key(seed), 2**32 - 1), t))`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met.
    """
    _check.number("sparsity", sparsity, least=0, below=1)
    _check.whole("total_steps", total_steps)
    _check.whole("interval", interval)
    _check.number("drop_fraction", drop_fraction, least=0, most=1)
    _check.number("stop_fraction", stop_fraction, least=0, most=1)
    if not callable(budget):
        _check.one_of("budget", budget, BUDGETS)
    stop = stop_fraction * total_steps

    def init(params: Any) -> Any:
        ranking = scores.random(params, None, jax.random.key(seed))
        return initial_masks(params, ranking, sparsity, budget, dense)

    def fires(step: jax.Array) -> jax.Array:
        return (step > 0) & (step % interval == 0) & (step < stop)

    def change(masks: Any, params: Any, grads: Any, step: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), _GROWTH)
        drop_key, grow_key = jax.random.split(jax.random.fold_in(key, step))
        alpha = drop_fraction / 2 * (1 + jnp.cos(jnp.pi * step / stop))
        live = {
            i: m for i, m in enumerate(jax.tree.leaves(masks)) if not tree.is_dense(m)
        }
        total = [jnp.sum(m, dtype=jnp.int32) for m in live.values()]
        # float32 may round a large n up.
        dropped = [
            jnp.minimum(jnp.floor(alpha * n).astype(jnp.int32), n) for n in total
        ]

        def leaves(ranking: Any) -> list[jax.Array]:
            flat = jax.tree.leaves(ranking)
            return [flat[i] for i in live]

        kept = scores.select(
            leaves(drop(params, grads, drop_key)),
            list(live.values()),
            [n - d for n, d in zip(total, dropped, strict=True)],
        )
        grown = scores.select(
            leaves(grow(params, grads, grow_key)), [~k for k in kept], dropped
        )
        new = [k | g for k, g in zip(kept, grown, strict=True)]
        return from_leaves(masks, dict(zip(live, new, strict=True)))

    return SparseMethod(init, fires, change)


def rigl(
    sparsity: float,
    total_steps: int,
    *,
    interval: int = 100,
    drop_fraction: float = 0.3,
    stop_fraction: float = 0.75,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    """RigL (arXiv:1911.11134): drop the smallest |w|, grow the largest |dL/dw|.

    The gradient is the one that trains the weights: with `gradient=zs.zosam(...)` it is
    taken at the perturbed parameters. Arguments as in `dynamic`.
    """
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=scores.gradient,
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        budget=budget,
        dense=dense,
        seed=seed,
    )


def set_(
    sparsity: float,
    total_steps: int,
    *,
    interval: int = 100,
    drop_fraction: float = 0.3,
    stop_fraction: float = 0.75,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    """SET (arXiv:1707.04780): drop the smallest |w|, grow at random.

    In the form that the literature compares (RigL's): one magnitude threshold a layer
    and the cosine-annealed fraction, where the original drops the smallest positive and
    the largest negative weights at a constant fraction. Arguments as in `dynamic`.
    """
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=scores.random,
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        budget=budget,
        dense=dense,
        seed=seed,
    )
