r"""The mechanism behind the methods that change their topology.

A change at step t keeps, of every sparse leaf l, the :math:`k_l` live weights that the
drop score ranks highest, and grows, of all that are not kept, the :math:`n_l - k_l`
that the grow score ranks highest. A method is a row: two scores, a schedule, and a
quota, which says how many weights are kept and how many are live afterwards.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import _check, _streams, tree
from zosam_jax.selection import select
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.budgets import BUDGETS, Budget
from zosam_jax.sparsity.mask_trees import from_leaves, select_globally
from zosam_jax.sparsity.method import SparseMethod, Topology


class Memory(NamedTuple):
    """What a method remembers, beside the masks.

    Attributes:
      target: Live weights of each sparse leaf at the end, int32, in flattening order.
      live: Those of now.
      rule: What the quota remembers.
    """

    target: jax.Array
    live: jax.Array
    rule: Any = ()


class Census(NamedTuple):
    """What a quota may know when the topology is about to change.

    Attributes:
      step: The optimizer step, int32.
      sizes: Weights of each sparse leaf, int32.
      memory: The counts until now.
      ranked: The drop scores of each sparse leaf.
      masks: The masks of each.
    """

    step: jax.Array
    sizes: jax.Array
    memory: Memory
    ranked: Sequence[jax.Array]
    masks: Sequence[jax.Array]


Quota = Callable[[Census], tuple[jax.Array, jax.Array, Any]]
"""`census -> (kept, live, rule)`: live weights that stay, live ones after growth, both
int32 a sparse leaf, and the new `Memory.rule`."""


class Proposal(NamedTuple):
    """What an arrangement may know; sequences have one entry a sparse leaf.

    Attributes:
      paths: Key paths.
      masks: The masks until now.
      kept: The live weights that the drop score keeps.
      dropping: The drop scores.
      growing: The grow scores.
      grown: How many weights the quota would grow, int32.
      memory: The counts until now.
    """

    paths: Sequence[str]
    masks: Sequence[jax.Array]
    kept: Sequence[jax.Array]
    dropping: Sequence[jax.Array]
    growing: Sequence[jax.Array]
    grown: jax.Array
    memory: Memory


Arrangement = Callable[[Proposal], Sequence[jax.Array]]
"""`proposal -> masks`: growth within a structure, instead of anywhere in the leaf."""


def prune_and_grow(
    first: Callable[[Any], Any],
    fires: Callable[[jax.Array], jax.Array],
    quota: Quota,
    *,
    drop: scores.Score,
    grow: scores.Score | None = None,
    target: Callable[[Any], Sequence[int]] | None = None,
    rule: Any = (),
    by_sign: bool = False,
    across: bool = False,
    regrow: bool = True,
    arrange: Arrangement | None = None,
    seed: jax.typing.ArrayLike = 0,
    dense_gradient_every: int | None = None,
    mean_pruned: float = 1.0,
) -> SparseMethod:
    """A method from its parts.

    Args:
      first: `params -> masks`.
      fires: See `SparseMethod`.
      quota: How many are kept and live.
      drop: What scores lowest is dropped; where the gradient is not finite, the
        smallest |w|.
      grow: What scores highest is grown. None: nothing is.
      target: `params -> counts`, final live weights of each sparse leaf; None: those of
        the first masks.
      rule: What the quota remembers at first.
      by_sign: Drop the same share of the positive and of the negative weights.
      across: Keep `sum(kept)` weights of all leaves together, and at least one of each,
        instead of `kept` of each.
      regrow: Whether a weight just dropped may grow at once. False: only where the
        others do not suffice.
      arrange: Makes the new masks from what is kept; the live counts are theirs then.
        None: what scores highest anywhere in the leaf is grown.
      seed: The keys of step t come from `split(fold_in(fold_in(key(seed), 2**32 - 1),
        t))`: the first for `drop`, the second for `grow`.
      dense_gradient_every: See `SparseMethod`.
      mean_pruned: See `SparseMethod`.
    """

    def init(params: Any) -> Topology:
        masks = first(params)
        live = jnp.stack(
            [jnp.sum(m, dtype=jnp.int32) for m in sparse_masks(masks).values()]
        )
        # Copies: a donated state may not hold an array twice, and takes along those of
        # the rule, which belong to the method.
        final = live + 0 if target is None else jnp.asarray(target(params), jnp.int32)
        return Topology(masks, Memory(final, live, jax.tree.map(jnp.array, rule)))

    def change(topology: Topology, params: Any, grads: Any, step: Any) -> Topology:
        stream = jax.random.fold_in(jax.random.key(seed), _streams.SPARSE)
        drop_key, grow_key = jax.random.split(jax.random.fold_in(stream, step))
        old = sparse_masks(topology.masks)
        masks = list(old.values())

        def ranked(score: scores.Score, key: jax.Array) -> list[jax.Array]:
            leaves = jax.tree.leaves(score(params, grads, key))
            return [leaves[i] for i in old]

        dropping = ranked(drop, drop_key)
        if drop not in (scores.magnitude, scores.random):
            # A schedule of pruning cannot wait for a gradient without NaN.
            sound = tree.all_finite(grads)
            magnitudes = ranked(scores.magnitude, drop_key)
            dropping = [
                jnp.where(sound, s, w)
                for s, w in zip(dropping, magnitudes, strict=True)
            ]
        sizes = jnp.asarray([m.size for m in masks], jnp.int32)
        memory: Memory = topology.memory
        kept_counts, live, own = quota(Census(step, sizes, memory, dropping, masks))
        if across:
            kept = select_globally(dropping, masks, jnp.sum(kept_counts))
            live = jnp.stack([jnp.sum(k, dtype=jnp.int32) for k in kept])
        elif by_sign:
            weights = [jax.tree.leaves(params)[i] for i in old]
            kept = _kept_by_sign(dropping, masks, weights, kept_counts)
        else:
            kept = select(dropping, masks, list(kept_counts))
        new = kept
        if grow is not None:
            growing = ranked(grow, grow_key)
            if not regrow:
                growing = [
                    jnp.where(m, -jnp.inf, s)
                    for m, s in zip(masks, growing, strict=True)
                ]
            counts = live - kept_counts
            if arrange is None:
                grown = select(growing, [~k for k in kept], list(counts))
                new = [k | g for k, g in zip(kept, grown, strict=True)]
            else:
                paths = [path for i, path in enumerate(tree.paths(params)) if i in old]
                new = arrange(
                    Proposal(paths, masks, kept, dropping, growing, counts, memory)
                )
                live = jnp.stack([jnp.sum(m, dtype=jnp.int32) for m in new])
        return Topology(
            from_leaves(topology.masks, dict(zip(old, new, strict=True))),
            Memory(memory.target, live, own),
        )

    return SparseMethod(
        init,
        fires,
        change,
        dense_gradient_every=dense_gradient_every,
        mean_pruned=mean_pruned,
    )


def exchange(
    first: Callable[[Any], Any],
    total_steps: int,
    *,
    drop: scores.Score,
    grow: scores.Score,
    interval: int,
    drop_fraction: float | Callable[[jax.Array], jax.Array],
    stop_fraction: float,
    seed: jax.typing.ArrayLike,
    target: Callable[[Any], Sequence[int]] | None = None,
    by_sign: bool = False,
    arrange: Arrangement | None = None,
) -> SparseMethod:
    """Every `interval` steps a fraction of each leaf's live weights for as many others.

    The arguments are those of `dynamic` and of `prune_and_grow`.

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
        target=target,
        by_sign=by_sign,
        arrange=arrange,
        seed=seed,
        dense_gradient_every=None if grow is scores.random else interval,
    )


def _as_many(fraction: Callable[[jax.Array], jax.Array]) -> Quota:
    """The quota that drops the fraction of a leaf's live weights and grows as many."""

    def quota(census: Census) -> tuple[jax.Array, jax.Array, Any]:
        live = census.memory.live
        # float32 may round a large product up, and a schedule may leave [0, 1].
        share = jnp.clip(fraction(census.step), 0, 1)
        dropped = jnp.minimum(jnp.floor(share * live).astype(jnp.int32), live)
        return live - dropped, live, census.memory.rule

    return quota


def check(
    sparsity: float,
    total_steps: int,
    interval: int,
    budget: str | Budget,
    others: tuple[str, ...] = (),
) -> None:
    """Raises `ValueError` for what no method with a schedule takes."""
    _check.number("sparsity", sparsity, least=0, below=1)
    _check.whole("total_steps", total_steps)
    _check.whole("interval", interval)
    if not callable(budget):
        _check.one_of("budget", budget, [*BUDGETS, *others])


def sparse_masks(masks: Any) -> dict[int, jax.Array]:
    """The masks of the sparse leaves, by flattened index."""
    return {i: m for i, m in enumerate(jax.tree.leaves(masks)) if not tree.is_dense(m)}


def _kept_by_sign(
    ranked: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    kept: jax.Array,
) -> list[jax.Array]:
    """Keeps of the positive (zero, NaN) weights and of the negative ones their shares.

    The share of the negative ones is rounded down, and the rest are positive, but for
    what one sign does not have.
    """
    # NaN is neither, and has to be counted too.
    positive = [m & ~(w < 0) for m, w in zip(masks, weights, strict=True)]
    negative = [m & (w < 0) for m, w in zip(masks, weights, strict=True)]
    plus = jnp.stack([jnp.sum(p, dtype=jnp.int32) for p in positive])
    minus = jnp.stack([jnp.sum(n, dtype=jnp.int32) for n in negative])
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
    below = jnp.floor(share * minus).astype(jnp.int32)
    # float32 may round a large product up, beyond what there is or what is kept.
    return jnp.clip(below, kept - plus, jnp.minimum(kept, minus))
