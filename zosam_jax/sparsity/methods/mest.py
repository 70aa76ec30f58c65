"""MEST: elastic mutation, whose bounds tighten in stages (arXiv:2110.14032)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._options import checks_arguments
from zosam_jax._types import Grads, Key, Masks, Params, PyTree, StackRule
from zosam_jax.sparsity import budgets, schedules, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.initial_masks import highest
from zosam_jax.sparsity.leaves import LeafRule
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.prune_and_grow import Census, prune_and_grow

Stages = Sequence[tuple[float, float, float]]
"""Rows `(until, prune_to, grow_to)`: a fraction of the training, two sparsities."""


@checks_arguments
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
    stacked: StackRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""MEST (arXiv:2110.14032): elastic mutation (EM), or with a soft bound (EM&S).

    A change prunes every layer to the sparsity `prune_to` by the lowest
    :math:`|w| + \lambda |dL/dw|`, and grows at random to the sparsity `grow_to`. The
    first masks keep the largest initial weights, and the first change is at step 0. EM
    trains at `sparsity` and exchanges fewer weights from stage to stage. EM&S trains
    denser and ends at `sparsity`. The last stage ends with a change, and nothing grows
    after it.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together at the end,
        in [0, 1).
      total_steps: Optimizer steps of the whole training.
      soft: EM&S instead of EM.
      stages: `(until, prune_to, grow_to)` in order: up to step `until * total_steps`.
        The sparsities are over the sparse leaves together. In a layer with another
        sparsity, the live weights are scaled for `prune_to` and the pruned weights for
        `grow_to`. Default, which at 90 % is the released recipe, with s for `sparsity`
        and d = 1 - s: EM `(0.5625, s + 0.2 d, s), (0.75, s + 0.1 d, s)`; EM&S
        `(0.625, s, s - 0.05), (0.8125, s, s - 0.025)`. Then `(1, s, s)`.
      gradient_weight: lambda; 0 in the released code.
      interval: Steps between two changes. None: `total_steps // 32`, five of the
        recipe's 160 epochs.
      budget: Sparsity distribution, as in `dynamic`.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`.
      seed: Seed of the growth, as in `dynamic`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; stages that grow beyond what they prune,
        or that are out of order.
    """
    chosen = budgets.resolve(budget, sparsity)
    schedules.check_steps(total_steps, 1 if interval is None else interval)
    if interval is None:
        interval = max(1, total_steps // 32)
    _check.number("gradient_weight", gradient_weight, least=0)
    _check.flags(soft=soft)
    if not isinstance(stages, tuple | list | None):
        raise TypeError(
            f"stages={stages!r} must be a sequence of (until, prune_to, grow_to)."
        )
    rows = [*(_usual(sparsity, soft) if stages is None else stages)]
    _check_stages(rows, sparsity)
    # The last change comes before the end, whatever the interval.
    last = [min(until * total_steps, total_steps - 1) for until, _, _ in rows]
    ends = jnp.asarray(last, jnp.float32)
    regular = schedules.periodic(interval, total_steps, start=0)
    final_change = math.ceil(last[-1]) if rows else 0
    # The stages speak of the whole network. A layer of its own density scales both.
    cut = jnp.asarray([1 - (1 - low) / (1 - sparsity) for _, low, _ in rows] + [0.0])
    relaxed = [1 - high / sparsity if sparsity else 0.0 for _, _, high in rows]
    freed = jnp.asarray([*relaxed, 0.0])

    def first(params: Params) -> Masks:
        ranking = jax.tree.map(jnp.abs, params)
        return highest(params, ranking, chosen, LeafRule(dense, stacked))

    def quota(census: Census) -> tuple[jax.Array, jax.Array, PyTree]:
        # The number of stages that have ended; the row after the last has no surplus.
        stage = jnp.sum(census.step.astype(jnp.float32) >= ends)
        final = census.memory.target
        # The pruned number is rounded, not the kept one: where nothing is pruned, the
        # count of a large leaf stays exact, which float32 could not hold.
        kept = final - jnp.round(cut[stage] * final.astype(jnp.float32)).astype(
            jnp.int32
        )
        pruned = (census.sizes - final).astype(jnp.float32)
        extra = jnp.round(freed[stage] * pruned).astype(jnp.int32)
        # No more than what is live can be kept.
        kept = jnp.minimum(jnp.maximum(jnp.minimum(kept, final), 1), census.memory.live)
        return kept, jnp.minimum(final + extra, census.sizes), census.memory.rule

    def drop(params: Params, grads: Grads | None, key: Key) -> PyTree:
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
        stacked=stacked,
        seed=seed,
        mean_pruned=_mean_pruned(rows, sparsity),
    )._replace(name="mest")


def _usual(sparsity: float, soft: bool) -> Stages:
    """Returns the stages of the released recipe, scaled to the sparsity."""
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
    for number, stage in enumerate(stages):
        name = f"stages[{number}]"
        if not isinstance(stage, tuple | list) or len(stage) != 3:
            raise ValueError(f"{name}={stage!r} must be (until, prune_to, grow_to).")
        until, prune_to, grow_to = stage
        _check.number(f"{name}: until", until, least=before, most=1)
        _check.number(f"{name}: prune_to", prune_to, least=sparsity, below=1)
        _check.number(f"{name}: grow_to", grow_to, least=0, most=sparsity)
        before = until


def _mean_pruned(stages: Stages, sparsity: float) -> float:
    """Returns pruned / finally pruned weights, averaged over the training."""
    if not sparsity:
        return 1.0
    total, before = 0.0, 0.0
    for until, _, grow_to in stages:
        total += (until - before) * grow_to / sparsity
        before = until
    return total + 1 - before
