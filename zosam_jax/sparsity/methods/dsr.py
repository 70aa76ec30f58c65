"""DSR: one threshold for all layers, and weights that move between layers."""

import math
import warnings

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._options import checks_arguments
from zosam_jax._types import Masks, Params, PyTree, StackRule
from zosam_jax.sparsity import budgets, schedules, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.initial_masks import at_random
from zosam_jax.sparsity.leaves import LeafRule
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.prune_and_grow import Census, prune_and_grow
from zosam_jax.sparsity.schedules import before

# `(fraction of the training, factor)`: from there on, the interval is this many times
# the first one.
_INTERVALS = ((0.0, 1), (0.125, 2), (0.4, 4), (0.7, 8))
# Bounds of the threshold. Without them dead weights would halve it in every change, and
# a quota out of reach would double it.
_THRESHOLDS = (1e-30, 1e30)


@checks_arguments
def dsr(
    sparsity: float,
    total_steps: int,
    *,
    interval: int = 100,
    drop_fraction: float = 0.1,
    threshold: float = 1e-3,
    stop_fraction: float = 0.95,
    budget: str | Budget = "uniform",
    dense: DenseRule = (),
    stacked: StackRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    """Dynamic sparse reparameterization (Mostafa and Wang, arXiv:1902.05967).

    A change drops every live weight with |w| < H, except the largest of each layer; H
    is one threshold for all layers. If less than 0.9 of the wanted number was dropped,
    H is doubled; if more than 1.1, H is halved: a set-point controller, without a sort.
    As many weights grow at random, shared among the layers in proportion to their
    remaining live weights. A weight that was just dropped grows only if there is no
    other. So the total is exact, and the layers' sparsities drift.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      total_steps: Optimizer steps of the whole training.
      interval: Steps between two changes at first; 2, 4 and 8 times as many from 1/8,
        0.4 and 0.7 of the training on, as for the paper's Wide ResNet (epochs 25, 80
        and 140 of 200).
      drop_fraction: Wanted fraction of the live weights that a change drops. (The
        paper's numbers are absolute: 20,000 weights, about 14 % of its Wide ResNet at
        90 %.)
      threshold: H at first.
      stop_fraction: All changes are before step `stop_fraction * total_steps`.
      budget: Sparsity distribution of the first, random mask, as in `dynamic`.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`.
      seed: As in `dynamic`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met.

    Warns:
      UserWarning: The training is too short for one change. Since the interval grows,
        it should be below an eighth of the training.
    """
    chosen = budgets.resolve(budget, sparsity)
    schedules.check_steps(total_steps, interval)
    _check.number("drop_fraction", drop_fraction, above=0, most=1)
    _check.number("threshold", threshold, above=0)
    _check.number("stop_fraction", stop_fraction, least=0, most=1)
    stop = stop_fraction * total_steps
    most = min(_INTERVALS[1][0] * total_steps, stop)
    if 0 < stop <= _first_change(total_steps, interval):
        warnings.warn(
            f"the topology will never change in these {total_steps} steps: DSR's "
            f"interval, {interval} steps at first, grows during the training and never "
            f"ends within it. Take interval={max(1, math.ceil(most) - 1)} or less.",
            stacklevel=_check.outside(),
        )

    def fires(step: jax.Array) -> jax.Array:
        times = jnp.int32(1)
        for share, factor in _INTERVALS[1:]:
            times = jnp.where(before(step, share * total_steps), times, factor)
        due = (step > 0) & (step % (interval * times) == 0)
        return due & before(step, stop_fraction * total_steps)

    def quota(census: Census) -> tuple[jax.Array, jax.Array, PyTree]:
        memory, limit = census.memory, census.memory.rule
        # A count against H instead of a sort: DSR's point was the cost of sorting.
        above = [
            jnp.sum(m & (s.astype(jnp.float32) >= limit), dtype=jnp.int32)
            for m, s in zip(census.masks, census.ranked, strict=True)
        ]
        kept = jnp.minimum(jnp.maximum(jnp.stack(above), 1), memory.live)
        dropped = jnp.sum(memory.live - kept)
        wanted = drop_fraction * jnp.sum(memory.live).astype(jnp.float32)
        dropped_share = dropped.astype(jnp.float32)
        # A dead band of 10 % on each side, and steps of 2: H settles near the wanted
        # number without the history that a finer controller would need.
        factor = jnp.where(
            dropped_share < 0.9 * wanted,
            2.0,
            jnp.where(dropped_share > 1.1 * wanted, 0.5, 1.0),
        )
        grown = share_out(dropped, kept, census.sizes - kept)
        # At 0 or infinity the threshold would never move again.
        return kept, kept + grown, jnp.clip(limit * factor, *_THRESHOLDS)

    rule = LeafRule(dense, stacked)
    first = at_random(chosen, rule, seed)

    def counted(params: Params) -> Masks:
        live = sum(chosen.counts(rule.sparse(params)))
        what = "dsr moves weights between leaves: the live part of params"
        _check.countable(what, live, "Take a higher sparsity.")
        return first(params)

    return prune_and_grow(
        counted,
        fires,
        quota,
        drop=scores.magnitude,
        grow=scores.random,
        stacked=stacked,
        rule=jnp.float32(threshold),
        regrow=False,
        seed=seed,
    )._replace(name="dsr")


def _first_change(total_steps: int, interval: int) -> int:
    """Returns the step of the first change; `total_steps` if there is none."""
    ends = [share for share, _ in _INTERVALS[1:]] + [1.0]
    for (share, factor), end in zip(_INTERVALS, ends, strict=True):
        every = interval * factor
        step = every * max(1, math.ceil(share * total_steps / every))
        if step < end * total_steps:
            return step
    return total_steps


def share_out(total: jax.Array, weights: jax.Array, room: jax.Array) -> jax.Array:
    """Returns whole numbers in proportion to `weights` that add up to `total`.

    A layer gets at most its `room`; what it has no room for goes to the others, in
    their proportion. What rounding leaves goes to the largest remainders, one each,
    ties to the earlier layer.

    Args:
      total: int32 scalar; if it exceeds `sum(room)`, `room` is returned.
      weights: int32 `[layers]`, not negative.
      room: int32 `[layers]`.

    Returns:
      int32 `[layers]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.methods.dsr import share_out
      >>> weights, room = jnp.array([1, 1, 2]), jnp.array([9, 9, 3])
      >>> print(share_out(jnp.int32(8), weights, room))
      [3 2 3]
    """

    def unfinished(given: jax.Array) -> jax.Array:
        return (jnp.sum(given) < total) & jnp.any(given < room)

    def hand_out(given: jax.Array) -> jax.Array:
        left = (total - jnp.sum(given)).astype(jnp.float32)
        is_open = given < room
        # A layer that kept nothing has weight 1, or it could never grow again.
        weight = jnp.where(is_open, jnp.maximum(weights, 1), 0)
        total_weight = jnp.sum(weight).astype(jnp.float32)
        ideal = left * weight.astype(jnp.float32) / total_weight
        # A little less, so that rounding in float32 never gives more than the total.
        # (The sum of `whole` is a sum of integers, and exact.)
        whole = ((1 - 2.0**-20) * ideal).astype(jnp.int32)
        # A share that is a whole number may fill its layer. Below 2**20 all errors
        # together are less than one weight, so taking it whole is safe.
        near = jnp.round(ideal)
        is_whole = (left < 2**20) & (jnp.abs(ideal - near) <= 2.0**-22 * ideal)
        whole = jnp.where(is_whole, near.astype(jnp.int32), whole)
        given = given + jnp.minimum(whole, room - given)
        is_open_still = given < room
        fraction = jnp.where(is_open_still, ideal - whole.astype(jnp.float32), -1.0)
        place = jnp.argsort(jnp.argsort(-fraction, stable=True), stable=True)
        one = is_open_still & (place < total - jnp.sum(given))
        # If a layer has just become full, its rest is shared out again first.
        one &= jnp.all(is_open_still == is_open)
        return given + one.astype(jnp.int32)

    return jax.lax.while_loop(unfinished, hand_out, jnp.zeros_like(room))
