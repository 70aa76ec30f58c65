r"""Lottery tickets: iterative magnitude pruning, and when a ticket may be drawn early.

A network is trained, its smallest weights are pruned, what survives is set back and
trained again, over and over (arXiv:1803.03635; rewinding to an early step instead of
step 0: arXiv:1912.05671; of the learning rate alone: arXiv:2003.02389). These functions
choose the masks; `zosam lottery` runs the rounds.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, tree
from zosam_jax.selection import select, select_across


def ticket_sparsities(sparsity: float, rounds: int) -> tuple[float, ...]:
    r"""The sparsities of the rounds of iterative magnitude pruning.

    Every round prunes the same fraction of the weights that are left,

    .. math:: p = 1 - (1 - s)^{1/n}, \qquad s_j = 1 - (1 - s)^{j/n}

    so that round n ends at s, not near it: p = 0.2, the usual choice, is 10.3 rounds
    from 0.9. Of N weights round j keeps `N - round(s_j * N)`.

    Args:
      sparsity: s, the fraction of pruned weights after the last round, in [0, 1).
      rounds: n, how often weights are pruned.

    Returns:
      `(0, s_1, ..., s)`, n + 1 numbers that never fall. The first is the dense round.

    Raises:
      ValueError: An argument is out of range.

    Example:
      >>> import zosam_jax as zs
      >>> [round(s, 3) for s in zs.sparsity.ticket_sparsities(0.875, 3)]
      [0.0, 0.5, 0.75, 0.875]
    """
    _check.number("sparsity", sparsity, least=0, below=1)
    _check.whole("rounds", rounds)
    rate = math.log1p(-sparsity) / rounds
    between = (min(-math.expm1(j * rate), sparsity) for j in range(1, rounds))
    return (0.0, *between, float(sparsity))


def prune_ticket(
    params: Any, masks: Any, sparsity: float, *, per_layer: bool = False
) -> Any:
    """The masks of the next round: the largest trained weights stay.

    Of the N weights of the sparse leaves together, exactly `N - round(sparsity * N)`
    stay: those of the largest |w| among the live ones, ties to the lower index. A
    pruned weight is never live again, so that a sparsity below the present one changes
    nothing. As in the papers, a layer may lose all its weights; `per_layer` prevents
    that.

    Args:
      params: Pytree of arrays: the weights at the end of the round.
      masks: Mask tree of the round. Arrays of True stand for a dense network, scalars
        for leaves that stay dense in all rounds.
      sparsity: Fraction of pruned weights in the next round, in [0, 1); see
        `ticket_sparsities`.
      per_layer: Whether every layer keeps the same fraction, at least one weight,
        instead of one threshold for all layers. The total is then that of the layers.

    Returns:
      A mask tree like `masks`.

    Raises:
      ValueError: The sparsity is out of range, the masks do not fit the parameters, or
        there is no sparse leaf.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> trained = {"kernel": jnp.array([[3.0, -1], [0.5, 2]]), "bias": jnp.ones(2)}
      >>> masks = {"kernel": jnp.ones((2, 2), bool), "bias": True}
      >>> print(zs.sparsity.prune_ticket(trained, masks, 0.5)["kernel"])
      [[ True False]
       [False  True]]
    """
    _check.number("sparsity", sparsity, least=0, below=1)
    tree.check_masks(masks, params)
    leaves, treedef = jax.tree.flatten(masks)
    sparse = [i for i, m in enumerate(leaves) if not tree.is_dense(m)]
    if not sparse:
        raise ValueError("masks has no sparse leaf: there is nothing to prune.")
    weights = jax.tree.leaves(params)
    ranking = [jnp.abs(weights[i]) for i in sparse]
    live = [jnp.asarray(leaves[i]) for i in sparse]
    sizes = [m.size for m in live]
    if per_layer:
        # At least one of a leaf, and none of an empty one.
        wanted = [max(n - round(sparsity * n), min(n, 1)) for n in sizes]
        counts = [
            jnp.minimum(k, jnp.sum(m, dtype=jnp.int32))
            for k, m in zip(wanted, live, strict=True)
        ]
        kept = select(ranking, live, counts)
    else:
        total = sum(sizes) - round(sparsity * sum(sizes))
        kept = select_across(ranking, live, _at_most(total, live))
    chosen = dict(zip(sparse, kept, strict=True))
    return jax.tree.unflatten(
        treedef, [chosen.get(i, jnp.asarray(m)) for i, m in enumerate(leaves)]
    )


def _at_most(count: int, candidates: Sequence[jax.Array]) -> jax.Array:
    """`count`, or how many candidates there are."""
    present = sum(jnp.sum(m, dtype=jnp.int32) for m in candidates)
    return jnp.minimum(count, jnp.asarray(present, jnp.int32))


_NONE = np.iinfo(np.int32).max


class EarlyBirdState(NamedTuple):
    """What `early_bird` remembers; its shapes never change.

    Attributes:
      masks: The masks of the last epoch; all False before the first.
      changed: In how many entries the masks of two consecutive epochs differ, for the
        last epochs, oldest first; the largest int32 where there were not as many yet.
        int32 `[window]`.
      epochs: Masks seen so far. int32.
      found: Whether the ticket is found. bool scalar.
    """

    masks: Any
    changed: jax.Array
    epochs: jax.Array
    found: jax.Array


class EarlyBird(NamedTuple):
    """A stopping rule as two pure functions, both of which may be jitted.

    Attributes:
      init: `masks -> EarlyBirdState`; only the shapes of the mask tree are read.
      update: `(state, masks) -> EarlyBirdState`, called at the end of every epoch.
    """

    init: Callable[[Any], EarlyBirdState]
    update: Callable[[EarlyBirdState, Any], EarlyBirdState]


def early_bird(*, window: int = 5, tolerance: float = 0.1) -> EarlyBird:
    r"""Early-bird tickets (arXiv:1909.11957): train no longer than the mask changes.

    At the end of every epoch the mask is drawn that pruning then would give. With M
    entries in its sparse leaves, its distance to that of the epoch before is

    .. math:: d_e = \frac{1}{M} \sum_i |m_{e,i} - m_{e-1,i}|

    The ticket is found when the last `window` distances are all below `tolerance`. The
    paper prunes channels by the scale of their BatchNorm; here any mask tree may be
    given, as `prune_ticket(params, masks, sparsity)`, weights by magnitude.

    Two masks of one sparsity s differ by at most 2 min(s, 1 - s): at s = 0.95 a
    tolerance of 0.1 is met by any two masks, so choose a smaller one there.

    Args:
      window: Distances that must be below the tolerance, so that the ticket is found
        after `window + 1` epochs at the earliest.
      tolerance: The bound, in (0, 1]. Compared in whole entries, `tolerance * M` in
        Python's arithmetic, so that compilation does not decide.

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

    def init(masks: Any) -> EarlyBirdState:
        _entries(masks)
        return EarlyBirdState(
            # An array for each leaf: a donated state may not hold one twice.
            masks=jax.tree.map(lambda m: jnp.zeros(jnp.shape(m), bool), masks),
            changed=jnp.full(window, _NONE, jnp.int32),
            epochs=jnp.zeros((), jnp.int32),
            found=jnp.asarray(False),
        )

    def update(state: EarlyBirdState, masks: Any) -> EarlyBirdState:
        pairs = zip(jax.tree.leaves(masks), jax.tree.leaves(state.masks), strict=True)
        newest = sum(
            jnp.sum(new != old, dtype=jnp.int32)
            for new, old in pairs
            if not tree.is_dense(new)
        )
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


def _entries(masks: Any) -> int:
    sparse = [m for m in jax.tree.leaves(masks) if not tree.is_dense(m)]
    if not tree.size(sparse):
        raise ValueError("masks has no sparse leaf: there is no distance to measure.")
    return tree.size(sparse)
