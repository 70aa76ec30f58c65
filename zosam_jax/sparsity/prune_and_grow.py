r"""The mechanism of the methods that change their topology.

A change at step t keeps, of every sparse layer l, the :math:`k_l` live weights with the
highest drop scores. Of all weights that are not kept it grows the :math:`n_l - k_l`
with the highest grow scores. A method is two scores, a schedule, and a quota, which
gives the two counts of every layer.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import _check, _streams, tree
from zosam_jax._programs import finite
from zosam_jax._types import Grads, Masks, Params, PyTree, StackRule
from zosam_jax.selection import select, select_globally
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.leaves import SparseLeaves, live_counts, warn_of_biases
from zosam_jax.sparsity.method import SparseMethod, Topology


class Memory(NamedTuple):
    """The memory of a method, besides the masks.

    Attributes:
      target: Number of live weights of each sparse layer at the end, int32
        `[layers]`. A stack has an entry for each of its layers.
      live: Current number of live weights, int32 `[layers]`.
      rule: The memory of the quota.
    """

    target: jax.Array
    live: jax.Array
    rule: PyTree = ()


class Census(NamedTuple):
    """The arguments of a quota, before a change of the topology.

    Attributes:
      step: The optimizer step, int32.
      sizes: Number of weights of each sparse layer, int32 `[layers]`.
      memory: The counts before the change.
      ranked: The drop scores of each sparse layer.
      masks: The mask of each sparse layer.
    """

    step: jax.Array
    sizes: jax.Array
    memory: Memory
    ranked: Sequence[jax.Array]
    masks: Sequence[jax.Array]


Quota = Callable[[Census], tuple[jax.Array, jax.Array, PyTree]]
"""`census -> (kept, live, rule)`: how many live weights of each layer stay, how many
are live after growth (both int32 `[layers]`), and the new `Memory.rule`."""


class Proposal(NamedTuple):
    """The arguments of an arrangement; sequences have one entry for each sparse layer.

    Attributes:
      leaves: The sparse leaves, by layer.
      masks: The masks before the change.
      kept: Masks of the live weights that the drop score keeps.
      dropping: The drop scores.
      growing: The grow scores.
      grown: How many weights the quota would grow, int32 `[layers]`.
      memory: The counts before the change.
    """

    leaves: SparseLeaves
    masks: Sequence[jax.Array]
    kept: Sequence[jax.Array]
    dropping: Sequence[jax.Array]
    growing: Sequence[jax.Array]
    grown: jax.Array
    memory: Memory


Arrangement = Callable[[Proposal], Sequence[jax.Array]]
"""`proposal -> masks`: growth within a structure, instead of anywhere in the layer."""


def prune_and_grow(
    first: Callable[[Params], Masks],
    fires: schedules.Fires,
    quota: Quota,
    *,
    drop: scores.Score,
    grow: scores.Score | None = None,
    stacked: StackRule = (),
    target: Callable[[Params], Sequence[int]] | None = None,
    rule: PyTree = (),
    by_sign: bool = False,
    across: bool = False,
    regrow: bool = True,
    arrange: Arrangement | None = None,
    seed: jax.typing.ArrayLike = 0,
    dense_gradient_every: int | None = None,
    mean_pruned: float = 1.0,
) -> SparseMethod:
    """Returns a method made from its parts.

    Args:
      first: `params -> masks`, the first masks.
      fires: See `SparseMethod`.
      quota: How many weights are kept and how many are live.
      drop: Score whose lowest live weights are dropped. While the gradient is not
        finite, the smallest |w| are dropped instead.
      grow: Score whose highest weights are grown. None: nothing grows.
      stacked: Leaves that are stacks of layers; see `sparse_leaves`.
      target: `params -> counts`, the final number of live weights of each sparse layer.
        None: the counts of the first masks.
      rule: What the quota carries along at first.
      by_sign: Drop the same fraction of the positive and of the negative weights.
      across: Keep `sum(kept)` weights of all layers together, and at least one of each,
        instead of `kept` of each.
      regrow: Whether a weight that was just dropped may grow at once. False: only where
        the others do not suffice.
      arrange: Makes the new masks of what is kept; the live counts follow from them.
        None: the highest scores grow, anywhere in the layer.
      seed: The keys of step t come from `split(fold_in(fold_in(key(seed), 2**32 - 1),
        t))`: the first is for `drop`, the second for `grow`.
      dense_gradient_every: See `SparseMethod`.
      mean_pruned: See `SparseMethod`.
    """
    _check.whole("seed", seed, least=0)

    def init(params: Params) -> Topology:
        return begin(params, first(params))

    def begin(params: Params, masks: Masks) -> Topology:
        masks = jax.tree.map(jnp.asarray, masks)
        leaves = SparseLeaves.of_masks(masks, stacked)
        warn_of_biases(leaves)
        live = live_counts(leaves.of(masks))
        # Copies: a donated state may not hold an array twice, and its arrays are
        # deleted, while `rule` belongs to the method.
        final = live + 0 if target is None else jnp.asarray(target(params), jnp.int32)
        return Topology(masks, Memory(final, live, jax.tree.map(jnp.array, rule)))

    def change(
        topology: Topology, params: Params, grads: Grads, step: jax.Array
    ) -> Topology:
        drop_key, grow_key = change_keys(seed, step)
        leaves = SparseLeaves.of_masks(topology.masks, stacked)
        masks, memory = leaves.of(topology.masks), topology.memory
        dropping = _drop_scores(drop, leaves, params, grads, drop_key)
        sizes = jnp.asarray(leaves.sizes, jnp.int32)
        kept_counts, live, own = quota(Census(step, sizes, memory, dropping, masks))
        # Ties go to the lower index in all three, so that devices never disagree.
        if across:
            kept = select_globally(dropping, masks, jnp.sum(kept_counts))
            live = live_counts(kept)
        elif by_sign:
            kept = _kept_by_sign(dropping, masks, leaves.of(params), kept_counts)
        else:
            kept = select(dropping, masks, list(kept_counts))
        new = kept
        if grow is not None:
            growing = scores.of_layers(grow, params, grads, grow_key, leaves.of)
            if not regrow:
                # Lowest, not excluded: the count must be met if there is no other.
                growing = [
                    jnp.where(m, -jnp.inf, s)
                    for m, s in zip(masks, growing, strict=True)
                ]
            counts = live - kept_counts
            if arrange is None:
                # All that is not kept, not all that was pruned: a dropped weight
                # competes with the others, as in RigL, and comes back unchanged if it
                # wins.
                grown = select(growing, [~k for k in kept], list(counts))
                new = [k | g for k, g in zip(kept, grown, strict=True)]
            else:
                new = arrange(
                    Proposal(leaves, masks, kept, dropping, growing, counts, memory)
                )
                live = live_counts(new)
        return Topology(leaves.masks(new), Memory(memory.target, live, own))

    return SparseMethod(
        init,
        fires,
        change,
        dense_gradient_every=dense_gradient_every,
        mean_pruned=mean_pruned,
        # Any masks will do if the counts follow from them, and growth has no structure.
        begin=begin if target is None and arrange is None else None,
        stacked=stacked,
    )


def change_keys(seed: jax.typing.ArrayLike, step: jax.Array) -> jax.Array:
    """Returns the keys of a change: those of the drop and of the grow scores.

    Args:
      seed: Integer.
      step: The optimizer step, int32.
    """
    stream = jax.random.fold_in(jax.random.key(seed), _streams.SPARSE)
    return jax.random.split(jax.random.fold_in(stream, step))


def _drop_scores(
    drop: scores.Score,
    leaves: SparseLeaves,
    params: Params,
    grads: Grads,
    key: jax.Array,
) -> list[jax.Array]:
    """Returns the drop scores; |w| if the gradient is not finite."""
    dropping = scores.of_layers(drop, params, grads, key, leaves.of)
    if drop in (scores.magnitude, scores.random):
        return dropping
    # A pruning schedule cannot wait for a finite gradient.
    sound = finite(jax.tree.leaves(grads))
    magnitudes = leaves.of(scores.magnitude(params, grads, key))
    return [
        # One dtype for both, wide enough for either.
        jnp.where(sound, _comparable(s), _comparable(w))
        if s.dtype != w.dtype
        else jnp.where(sound, s, w)
        for s, w in zip(dropping, magnitudes, strict=True)
    ]


def _comparable(score: jax.Array) -> jax.Array:
    return score.astype(tree.wide_dtype(score.dtype))


def exchange(
    first: Callable[[Params], Masks],
    total_steps: int,
    *,
    drop: scores.Score,
    grow: scores.Score,
    interval: int,
    drop_fraction: float | schedules.Fraction,
    stop_fraction: float,
    seed: jax.typing.ArrayLike,
    stacked: StackRule = (),
    target: Callable[[Params], Sequence[int]] | None = None,
    by_sign: bool = False,
    arrange: Arrangement | None = None,
) -> SparseMethod:
    """Returns a method that drops a fraction of each layer and grows as many weights.

    Args:
      first: See `prune_and_grow`.
      total_steps: Optimizer steps of the whole training.
      drop: See `prune_and_grow`.
      grow: See `prune_and_grow`.
      interval: Steps between two changes.
      drop_fraction: The fraction, annealed to 0 by a cosine; or a schedule of it.
      stop_fraction: All changes are before step `stop_fraction * total_steps`.
      seed: See `prune_and_grow`.
      stacked: See `prune_and_grow`.
      target: See `prune_and_grow`.
      by_sign: See `prune_and_grow`.
      arrange: See `prune_and_grow`.

    Raises:
      ValueError: An argument of the schedule is out of range.
    """
    fires, fraction = schedules.dropping(
        total_steps, interval, drop_fraction, stop_fraction
    )
    return prune_and_grow(
        first,
        fires,
        _as_many(fraction),
        drop=drop,
        grow=grow,
        stacked=stacked,
        target=target,
        by_sign=by_sign,
        arrange=arrange,
        seed=seed,
        dense_gradient_every=None if grow is scores.random else interval,
    )


def _as_many(fraction: schedules.Fraction) -> Quota:
    """Returns the quota that drops a fraction of each layer and grows as many."""

    def quota(census: Census) -> tuple[jax.Array, jax.Array, PyTree]:
        live = census.memory.live
        # float32 may round a large product up, and a schedule may leave [0, 1].
        share = jnp.clip(fraction(census.step), 0, 1)
        dropped = jnp.minimum(
            jnp.floor(share * live.astype(jnp.float32)).astype(jnp.int32), live
        )
        return live - dropped, live, census.memory.rule

    return quota


def _kept_by_sign(
    ranked: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    kept: jax.Array,
) -> list[jax.Array]:
    """Keeps the same fraction of the positive and of the negative weights.

    Zero and NaN count as positive. The number of negative weights is rounded down, and
    the rest are positive, unless one sign has too few.
    """
    # Not `w >= 0`: NaN has to be counted too.
    positive = [m & ~(w < 0) for m, w in zip(masks, weights, strict=True)]
    negative = [m & (w < 0) for m, w in zip(masks, weights, strict=True)]
    plus, minus = live_counts(positive), live_counts(negative)
    # SET drops the weights closest to zero on either side. By magnitude alone, a layer
    # with a positive mean would lose its negative weights first.
    below = _share_of_negative(kept, plus, minus)
    chosen = select(
        [*ranked, *ranked],
        [*positive, *negative],
        [*(kept - below), *below],
    )
    half = len(positive)
    return [p | n for p, n in zip(chosen[:half], chosen[half:], strict=True)]


def _share_of_negative(kept: jax.Array, plus: jax.Array, minus: jax.Array) -> jax.Array:
    share = kept / jnp.maximum(plus + minus, 1)
    below = jnp.floor(share * minus.astype(share.dtype)).astype(jnp.int32)
    # float32 may round a large product up, beyond what there is or what is kept.
    return jnp.clip(below, kept - plus, jnp.minimum(kept, minus))
