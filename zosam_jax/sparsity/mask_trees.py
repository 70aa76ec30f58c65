"""Mask trees: making and applying them, landing updates, resetting what changes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax import _check, tree
from zosam_jax.selection import select, select_across
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.budgets import Budget, DenseRule, counts, sparse_leaves
from zosam_jax.sparsity.packing import unpack
from zosam_jax.sparsity.patterns import Pattern, best_of_leaves


def apply_masks(params: Any, masks: Any) -> Any:
    """The parameters with exact zeros where their mask is False.

    Args:
      params: Pytree of arrays.
      masks: Mask tree in the structure of `params`: a boolean array of the leaf's
        shape, or a scalar `True` for a dense leaf. Or a packed one.

    Returns:
      A tree like `params`, dtypes kept.

    Raises:
      ValueError: The masks do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"kernel": jnp.array([[1.0, 2.0]]), "bias": jnp.array([3.0])}
      >>> masks = {"kernel": jnp.array([[True, False]]), "bias": True}
      >>> print(zs.sparsity.apply_masks(params, masks)["kernel"])
      [[1. 0.]]
    """
    masks = filled(unpack(masks), params)
    tree.check_masks(masks, params)
    return tree.mask(params, masks)


def filled(masks: Any, params: Any) -> Any:
    """The mask tree with dense leaves where `masks` leaves some to other optimizers."""
    if not any(map(_is_hidden, jax.tree.leaves(masks, is_leaf=_is_hidden))):
        return masks
    return jax.tree.map(
        lambda m, x: jax.tree.map(lambda _: True, x) if _is_hidden(m) else m,
        masks,
        params,
        is_leaf=_is_hidden,
    )


def sparsity_of(masks: Any, params: Any | None = None) -> jax.Array:
    """The fraction of pruned weights, float32 scalar.

    Args:
      masks: Mask tree, or a packed one.
      params: None counts the sparse leaves alone, which is what `sparsity=` of a method
        means. With the parameters given, all of them count, dense leaves too.

    Returns:
      Pruned entries / entries; 0 where there is no sparse leaf.
    """
    sparse = [m for m in jax.tree.leaves(unpack(masks)) if not tree.is_dense(m)]
    pruned = sum((jnp.sum(~m, dtype=jnp.int32) for m in sparse), jnp.int32(0))
    counted = tree.size(sparse if params is None else params)
    return pruned.astype(jnp.float32) / max(counted, 1)


def initial_masks(
    params: Any,
    ranking: Any,
    sparsity: float,
    budget: str | Budget | Pattern,
    dense: DenseRule,
) -> Any:
    """The mask tree of the highest scores under a budget, ties to the lower index.

    A "global" budget ranks all sparse leaves together, but for the best weight of each
    leaf, which it keeps. A pattern ranks the weights of each of its groups.
    """
    ranked = [jnp.asarray(x) for x in jax.tree.leaves(ranking)]
    _check_scores(ranked)
    if isinstance(budget, Pattern):
        return from_leaves(params, best_of_leaves(budget, params, ranking, dense))
    if budget != "global":
        kept = counts(params, sparsity, budget, dense)
        chosen = select(
            [ranked[i] for i in kept],
            [jnp.ones(ranked[i].shape, bool) for i in kept],
            list(kept.values()),
        )
        return from_leaves(params, dict(zip(kept, chosen, strict=True)))
    indices = list(sparse_leaves(params, dense).values())
    total = global_total([ranked[i].size for i in indices], sparsity)
    chosen = select_globally(
        [ranked[i] for i in indices],
        [jnp.ones(ranked[i].shape, bool) for i in indices],
        total,
    )
    return from_leaves(params, dict(zip(indices, chosen, strict=True)))


def at_random(
    sparsity: float,
    budget: str | Budget | Pattern,
    dense: DenseRule,
    seed: jax.typing.ArrayLike,
) -> Callable[[Any], Any]:
    """`params -> masks`: random under a budget or in a pattern, from `key(seed)`."""

    def first(params: Any) -> Any:
        ranking = scores.random(params, None, jax.random.key(seed))
        return initial_masks(params, ranking, sparsity, budget, dense)

    return first


def global_total(sizes: Sequence[int], sparsity: float) -> int:
    """Weights that a "global" budget keeps of leaves of these sizes, all together.

    Raises:
      ValueError: That is less than one a leaf.
    """
    total = sum(sizes) - round(sparsity * sum(sizes))
    if total < len(sizes):
        raise ValueError(
            f"sparsity={sparsity} keeps {total} of {sum(sizes)} weights, but "
            f"{len(sizes)} layers need at least one each. Lower the sparsity."
        )
    return total


def select_globally(
    ranked: Sequence[jax.Array],
    candidates: Sequence[jax.Array],
    total: jax.typing.ArrayLike,
) -> list[jax.Array]:
    """Masks of the `total` best candidates of all arrays, the best of each included."""
    raised = [_best_first(x, c) for x, c in zip(ranked, candidates, strict=True)]
    return select_across(raised, candidates, total)


def _best_first(score: jax.Array, candidates: jax.Array) -> jax.Array:
    """The scores, that of the best candidate raised above those of other leaves."""
    wide = jnp.where(candidates, score.astype(jnp.float32), -jnp.inf)
    wide = jnp.where(jnp.isnan(wide), -jnp.inf, wide)
    # Not argmax, which flattens, and so gathers a sharded leaf.
    index = sum(
        jax.lax.broadcasted_iota(jnp.uint32, wide.shape, axis)
        * jnp.uint32(math.prod(wide.shape[axis + 1 :]))
        for axis in range(wide.ndim)
    )
    best = candidates & (wide == jnp.max(wide, initial=-jnp.inf, where=candidates))
    first = jnp.min(index, initial=np.uint32(0xFFFFFFFF), where=best)
    return jnp.where(best & (index == first), jnp.inf, wide)


def _check_scores(ranked: list[jax.Array]) -> None:
    # Under jit the answer is traced even where the scores are constants.
    finite = [jnp.all(jnp.isfinite(x)) for x in ranked]
    if not all(_check.is_traced(x) or bool(x) for x in finite):
        raise ValueError(
            "the scores of the initial mask are not finite: the loss or the parameters "
            "that they were computed from hold NaN or infinity."
        )


def from_leaves(params: Any, leaves: dict[int, jax.Array]) -> Any:
    """A mask tree from the masks of the sparse leaves, by their flattened index."""
    treedef = jax.tree.structure(params)
    # An array for each dense leaf: a donated state may not hold one twice.
    return jax.tree.unflatten(
        treedef,
        [leaves.get(i, jnp.asarray(True)) for i in range(treedef.num_leaves)],
    )


def restricted(grads: Any, masks: Any) -> Any:
    """The gradient with exact zeros where a mask is False."""

    def leaf(m: jax.Array, g: jax.Array) -> jax.Array:
        return g if tree.is_dense(m) else tree.either(m, g, jnp.zeros_like(g))

    return jax.tree.map(leaf, masks, grads)


def landing(updates: Any, params: Any, masks: Any) -> Any:
    """Updates after which `params + updates` is exactly 0 where a mask is False."""

    def leaf(m: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
        return u if tree.is_dense(m) else tree.either(m, u, -p)

    return jax.tree.map(leaf, masks, updates, params)


def reset_moments(state: Any, fresh: Any, changed: Any) -> Any:
    """An Optax state with fresh entries where a weight was dropped or grown.

    A state leaf belongs to a parameter when its key path ends in the parameter's and
    its shape, or its trailing axes, are the parameter's; so moments are found through
    any wrapper, without knowing the optimizer. Statistics that weights share
    (Adafactor's row and column means) have another shape and stay, and so do those to
    which no path leads (`optax.flatten`).

    Args:
      state: State of the inner optimizer.
      fresh: Its `init` at the parameters after the change. (Zero is not always right:
        schedule-free keeps a copy of the parameters.)
      changed: Tree like `params`: True at dropped and grown entries; scalars for dense
        leaves.

    Returns:
      A state of the same structure, shapes and dtypes.
    """
    by_path = {
        tuple(path): mask
        for path, mask in jax.tree_util.tree_flatten_with_path(changed)[0]
        if not tree.is_dense(mask)
    }

    def leaf(path: tuple[Any, ...], old: jax.Array, new: jax.Array) -> jax.Array:
        for start in range(len(path) + 1):
            mask = by_path.get(tuple(path[start:]))
            if mask is not None:
                belongs = old.shape[old.ndim - mask.ndim :] == mask.shape
                return jnp.where(mask, new, old) if belongs else old
        return old

    return jax.tree_util.tree_map_with_path(leaf, state, fresh)


def _is_hidden(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def all_live(params: Any, dense: DenseRule) -> Any:
    """Masks that prune nothing yet, in which the sparse leaves have arrays."""
    leaves = jax.tree.leaves(params)
    indices = sparse_leaves(params, dense).values()
    return from_leaves(params, {i: jnp.ones(leaves[i].shape, bool) for i in indices})


def targets(
    params: Any, sparsity: float, budget: str | Budget, dense: DenseRule
) -> list[int]:
    """Final live weights of each sparse leaf. Of a "global" budget only their sum."""
    shared = "uniform" if budget == "global" else budget
    return list(counts(params, sparsity, shared, dense).values())
