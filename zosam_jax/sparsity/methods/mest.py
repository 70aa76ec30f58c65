"""MEST: elastic mutation, whose bounds tighten in stages (arXiv:2110.14032)."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.mask_trees import initial_masks
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.prune_and_grow import Census, check, prune_and_grow

Stages = Sequence[tuple[float, float, float]]
"""`(until, prune_to, grow_to)`: fraction of training, and two sparsities."""


def mest(
    sparsity: float,
    total_steps: int,
    *,
    soft: bool = False,
    stages: Stages | None = None,
    gradient_weight: float = 0.0,
    interval: int | None = None,
    budget: str | Budget = "uniform",
    dense: DenseRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""MEST (arXiv:2110.14032): elastic mutation (EM), or with a soft bound (EM&S).

    A change prunes every layer to the sparsity `prune_to` by the lowest
    :math:`|w| + \lambda |dL/dw|`, and grows it at random to `grow_to`, not more. The
    first change is at step 0, the first mask that of the largest initial weights. In
    EM the net trains at `sparsity` and mutates less from stage to stage; in EM&S it
    trains denser, and ends at `sparsity`. After the last stage, whose end is a change
    in any case, nothing grows.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, at the end.
      total_steps: Optimizer steps of the whole training.
      soft: EM&S instead of EM.
      stages: `(until, prune_to, grow_to)` in order: up to `until * total_steps`. Over
        the sparse leaves together; a layer of another sparsity has its live weights
        scaled for the first, its pruned ones for the second. Default, at 90 % the
        released recipe: EM `(0.5625, s + 0.2 d, s), (0.75, s + 0.1 d, s)` with the
        density d = 1 - s; EM&S `(0.625, s, s - 0.05), (0.8125, s, s - 0.025)`. Then
        `(1, s, s)`.
      gradient_weight: lambda. The released code has 0.
      interval: Steps between changes. Default: `total_steps // 32`, five of the
        recipe's 160 epochs.
      budget: As in `dynamic`.
      dense: As in `dynamic`.
      seed: Of the growth, as in `dynamic`.

    Raises:
      ValueError: An argument is out of range; stages that grow beyond what they prune,
        or are out of order.
    """
    if interval is None:
        _check.whole("total_steps", total_steps)
        interval = max(1, total_steps // 32)
    check(sparsity, total_steps, interval, budget)
    _check.number("gradient_weight", gradient_weight, least=0)
    rows = [*(_usual(sparsity, soft) if stages is None else stages)]
    _check_stages(rows, sparsity)
    # The last change is in time, whatever the interval.
    last = [min(until * total_steps, total_steps - 1) for until, _, _ in rows]
    ends = jnp.asarray(last, jnp.float32)
    regular = schedules.periodic(interval, total_steps, start=0)
    final_change = math.ceil(last[-1]) if rows else 0
    cut = jnp.asarray([1 - (1 - low) / (1 - sparsity) for _, low, _ in rows] + [0.0])
    relaxed = [1 - high / sparsity if sparsity else 0.0 for _, _, high in rows]
    freed = jnp.asarray([*relaxed, 0.0])

    def first(params: Any) -> Any:
        return initial_masks(
            params, jax.tree.map(jnp.abs, params), sparsity, budget, dense
        )

    def quota(census: Census) -> tuple[jax.Array, jax.Array, Any]:
        stage = jnp.sum(census.step >= ends)
        final = census.memory.target
        # What goes, not what stays, is rounded: float32 holds no large leaf's count.
        kept = final - jnp.round(cut[stage] * final).astype(jnp.int32)
        extra = jnp.round(freed[stage] * (census.sizes - final)).astype(jnp.int32)
        # Below what is live already there is nothing to keep.
        kept = jnp.minimum(jnp.maximum(jnp.minimum(kept, final), 1), census.memory.live)
        return kept, jnp.minimum(final + extra, census.sizes), census.memory.rule

    def drop(params: Any, grads: Any, key: jax.Array) -> Any:
        del key

        def leaf(w: jax.Array, g: jax.Array) -> jax.Array:
            size = jnp.abs(w.astype(jnp.float32))
            return size + gradient_weight * jnp.abs(g.astype(jnp.float32))

        return jax.tree.map(leaf, params, grads)

    return prune_and_grow(
        first,
        lambda step: regular(step) | (step == final_change),
        quota,
        drop=drop if gradient_weight else scores.magnitude,
        grow=scores.random,
        seed=seed,
        mean_pruned=_mean_pruned(rows, sparsity),
    )


def _usual(sparsity: float, soft: bool) -> Stages:
    density = 1 - sparsity
    if soft:
        return (
            (0.625, sparsity, max(sparsity - 0.05, 0.0)),
            (0.8125, sparsity, max(sparsity - 0.025, 0.0)),
        )
    return (
        (0.5625, sparsity + 0.2 * density, sparsity),
        (0.75, sparsity + 0.1 * density, sparsity),
    )


def _check_stages(stages: Stages, sparsity: float) -> None:
    before = 0.0
    for number, (until, prune_to, grow_to) in enumerate(stages):
        name = f"stages[{number}]"
        _check.number(f"{name}: until", until, least=before, most=1)
        _check.number(f"{name}: prune_to", prune_to, least=sparsity, below=1)
        _check.number(f"{name}: grow_to", grow_to, least=0, most=sparsity)
        before = until


def _mean_pruned(stages: Stages, sparsity: float) -> float:
    """The average over training of the pruned share of the finally pruned weights."""
    if not sparsity:
        return 1.0
    total, before = 0.0, 0.0
    for until, _, grow_to in stages:
        total += (until - before) * grow_to / sparsity
        before = until
    return total + 1 - before
