r"""Lottery tickets: iterative magnitude pruning, and early-bird tickets.

A network is trained, its smallest weights are pruned, the other weights are rewound and
trained again, in several rounds (arXiv:1803.03635; rewinding to an early step instead
of step 0: arXiv:1912.05671; rewinding of the learning rate only: arXiv:2003.02389).
These functions choose the masks; `zosam lottery` runs the rounds.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, StackRule
from zosam_jax.selection import select, select_across
from zosam_jax.sparsity.leaves import SparseLeaves, check_sizes


def ticket_sparsities(sparsity: float, rounds: int) -> tuple[float, ...]:
    r"""Returns the sparsities of the rounds of iterative magnitude pruning.

    Every round prunes the same fraction of the remaining weights,

    .. math:: p = 1 - (1 - s)^{1/n}, \qquad s_j = 1 - (1 - s)^{j/n}

    so that the sparsity after round n is exactly s. (With p = 0.2, the usual choice,
    0.9 would be reached after 10.3 rounds.) Of N weights round j keeps `N - round(s_j *
    N)`.

    Args:
      sparsity: s, the fraction of pruned weights after the last round, in [0, 1).
      rounds: n, the number of prunings.

    Returns:
      `(0, s_1, ..., s)`, n + 1 non-decreasing numbers. The first is the dense round.

    Raises:
      ValueError: An argument is out of range.

    Example:
      >>> import zosam_jax as zs
      >>> [round(s, 3) for s in zs.sparsity.ticket_sparsities(0.875, 3)]
      [0.0, 0.5, 0.75, 0.875]
    """
    _check.number("sparsity", sparsity, least=0, below=1, traced=False)
    _check.whole("rounds", rounds)
    # log1p and expm1 keep small sparsities; the last is returned as it was given.
    rate = math.log1p(-sparsity) / rounds
    between = (min(-math.expm1(j * rate), sparsity) for j in range(1, rounds))
    return (0.0, *between, float(sparsity))


def prune_ticket(
    params: Params,
    masks: Masks,
    sparsity: float,
    *,
    per_layer: bool = False,
    stacked: StackRule = (),
) -> Masks:
    """Returns the masks of the next round: the largest trained weights stay.

    Of the N weights of the sparse leaves, exactly `N - round(sparsity * N)` stay: the
    largest |w| of the live ones, ties to the lower index. Pruned weights stay pruned,
    so a sparsity below the present one changes nothing. As in the papers, a layer may
    lose all its weights; `per_layer` prevents that.

    Args:
      params: Pytree of arrays: the weights at the end of the round.
      masks: Mask tree of the round. Give arrays of True for a network that is not yet
        pruned, and a scalar True for a leaf that stays dense in all rounds.
      sparsity: Fraction of pruned weights in the next round, in [0, 1); see
        `ticket_sparsities`.
      per_layer: Whether every layer keeps the same fraction, and at least one weight,
        instead of one threshold for all layers. The counts are then rounded by layer.
      stacked: Leaves that are stacks of layers, as in `dynamic`, for `per_layer`.

    Returns:
      A mask tree like `masks`.

    Raises:
      ValueError: The sparsity is out of range, the masks do not fit the parameters,
        there is no sparse leaf, or more than 2**31 - 1 weights share one ranking.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> trained = {"kernel": jnp.array([[3.0, -1], [0.5, 2]]), "bias": jnp.ones(2)}
      >>> masks = {"kernel": jnp.ones((2, 2), bool), "bias": True}
      >>> print(zs.sparsity.prune_ticket(trained, masks, 0.5)["kernel"])
      [[ True False]
       [False  True]]
    """
    _check.number("sparsity", sparsity, least=0, below=1, traced=False)
    _check.flags(per_layer=per_layer)
    tree.check_masks(masks, params)
    leaves = SparseLeaves.of_masks(masks, stacked)
    if not leaves.leaves:
        raise ValueError("masks has no sparse leaf: there is nothing to prune.")
    check_sizes(leaves)
    if not per_layer:
        advice = "Say per_layer=True."
        _check.countable("the ranking of all layers", sum(leaves.sizes), advice)
    ranking = [jnp.abs(x) for x in leaves.of(params)]
    live = [jnp.asarray(m) for m in leaves.of(masks)]
    sizes = leaves.sizes
    if per_layer:
        # At least one weight of a layer, unless it is empty.
        wanted = [max(n - round(sparsity * n), min(n, 1)) for n in sizes]
        counts = [
            jnp.minimum(k, jnp.sum(m, dtype=jnp.int32))
            for k, m in zip(wanted, live, strict=True)
        ]
        kept = select(ranking, live, counts)
    else:
        total = sum(sizes) - round(sparsity * sum(sizes))
        kept = select_across(ranking, live, _at_most(total, live))
    return leaves.put(jax.tree.map(jnp.asarray, masks), kept)


def _at_most(count: int, candidates: Sequence[jax.Array]) -> jax.Array:
    """Returns `count`, or the number of candidates if that is smaller."""
    present = sum(jnp.sum(m, dtype=jnp.int32) for m in candidates)
    return jnp.minimum(count, jnp.asarray(present, jnp.int32))


_NONE = np.iinfo(np.int32).max


class EarlyBirdState(NamedTuple):
    """State of `early_bird`; its shapes never change.

    Attributes:
      masks: The masks of the last epoch; all False before the first.
      changed: Number of entries in which the masks of consecutive epochs differ, oldest
        first; the largest int32 for epochs that are yet to come. int32 `[window]`.
      epochs: Number of masks seen so far, int32.
      found: Whether the ticket is found, bool scalar.
    """

    masks: Masks
    changed: jax.Array
    epochs: jax.Array
    found: jax.Array


class EarlyBird(NamedTuple):
    """A stopping rule: two pure functions that may be jitted.

    Attributes:
      init: `masks -> EarlyBirdState`; only the shapes of the masks are read.
      update: `(state, masks) -> EarlyBirdState`, to be called after every epoch.
    """

    init: Callable[[Masks], EarlyBirdState]
    update: Callable[[EarlyBirdState, Masks], EarlyBirdState]


def early_bird(*, window: int = 5, tolerance: float = 0.1) -> EarlyBird:
    r"""Returns the rule of early-bird tickets: stop when the mask no longer changes.

    From arXiv:1909.11957. After every epoch, compute the mask that pruning would give
    at that point. With M entries in its sparse leaves, its distance to the mask of the
    previous epoch is

    .. math:: d_e = \frac{1}{M} \sum_i |m_{e,i} - m_{e-1,i}|

    The ticket is found when the last `window` distances are all below `tolerance`. The
    paper prunes channels by the scale of their BatchNorm. Any mask tree will do here,
    such as `prune_ticket(params, masks, sparsity)`, which prunes weights by magnitude.

    These are the words of the paper: the last five distances of consecutive epochs are
    all smaller than a threshold. The authors' code keeps five masks instead and
    compares the newest with the four before it, and a distance equal to the threshold
    meets it. It also sees the mask of the untrained network. So it may stop two epochs
    earlier, but a mask that drifts slowly passes here and not there.

    Two masks of the same sparsity s differ by at most 2 min(s, 1 - s). At s = 0.95 any
    two masks meet a tolerance of 0.1, so choose a smaller one.

    Args:
      window: Number of distances that must be below the tolerance. The ticket is found
        after `window + 1` epochs at the earliest.
      tolerance: The bound, in (0, 1]. The number of differing entries is compared with
        `tolerance * M`, which Python computes, so that compilation cannot change it.

    Returns:
      An `EarlyBird`.

    Raises:
      ValueError: An argument is out of range; on init, there is no sparse leaf.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> rule = zs.sparsity.early_bird(window=2)
      >>> mask = jnp.array([[True, False, True, False]])
      >>> state = rule.init(mask)
      >>> for epoch in range(3):
      ...     state = rule.update(state, mask)
      >>> print(state.found, state.changed)
      True [0 0]
    """
    _check.whole("window", window)
    _check.number("tolerance", tolerance, above=0, most=1)

    def init(masks: Masks) -> EarlyBirdState:
        _entries(masks)
        return EarlyBirdState(
            # An array for each leaf: a donated state may not hold one twice.
            masks=jax.tree.map(lambda m: jnp.zeros(jnp.shape(m), bool), masks),
            changed=jnp.full(window, _NONE, jnp.int32),
            epochs=jnp.zeros((), jnp.int32),
            found=jnp.asarray(False),
        )

    def update(state: EarlyBirdState, masks: Masks) -> EarlyBirdState:
        pairs = zip(jax.tree.leaves(masks), jax.tree.leaves(state.masks), strict=True)
        newest = sum(
            jnp.sum(new != old, dtype=jnp.int32)
            for new, old in pairs
            if not tree.is_dense(new)
        )
        # The first epoch has no mask before it. Its distance never meets a tolerance.
        newest = jnp.where(state.epochs == 0, _NONE, newest)
        changed = jnp.append(state.changed[1:], newest)
        bound = math.ceil(tolerance * _entries(masks))
        return EarlyBirdState(
            masks=jax.tree.map(lambda m: jnp.array(m, copy=True), masks),
            changed=changed,
            epochs=state.epochs + 1,
            found=jnp.all(changed < bound),
        )

    return EarlyBird(init, update)


def _entries(masks: Masks) -> int:
    """Returns the number of entries of the sparse leaves, at least 1."""
    sparse = [m for m in jax.tree.leaves(masks) if not tree.is_dense(m)]
    size = tree.size(sparse)
    if not size:
        raise ValueError("masks has no sparse leaf: there is no distance to measure.")
    advice = "Give early_bird the masks of some leaves."
    _check.countable("the sparse part of masks", size, advice)
    return size
