"""Mask trees: applied to parameters, gradients and updates."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check, tree
from zosam_jax._types import Grads, Masks, Params
from zosam_jax.sparsity.packing import PackedMasks, unpack


def apply_masks(params: Params, masks: Masks | PackedMasks) -> Params:
    """Returns the parameters with exact zeros where their mask is False.

    Args:
      params: Pytree of arrays.
      masks: Mask tree in the structure of `params`: a boolean array of the leaf's
        shape, or a scalar `True` for a dense leaf. It may be packed.

    Returns:
      A tree like `params`, with the same dtypes.

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


def filled(masks: Masks, params: Params) -> Masks:
    """Returns the mask tree with `optax.MaskedNode()` replaced by dense leaves.

    `optax.multi_transform` leaves such nodes for the leaves of other optimizers.

    Args:
      masks: Mask tree, perhaps with such nodes.
      params: Pytree of arrays.
    """
    if not any(map(_is_hidden, jax.tree.leaves(masks, is_leaf=_is_hidden))):
        return masks
    return jax.tree.map(
        lambda m, x: jax.tree.map(lambda _: True, x) if _is_hidden(m) else m,
        masks,
        params,
        is_leaf=_is_hidden,
    )


def both(a: Masks, b: Masks) -> Masks:
    """Returns the product of two mask trees: what is live in both.

    Args:
      a: Mask tree.
      b: Mask tree of the same structure. A leaf is dense if it is dense in both.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.mask_trees import both
      >>> units, weights = jnp.array([[True], [False]]), jnp.eye(2, dtype=bool)
      >>> found = both({"w": jnp.broadcast_to(units, (2, 2))}, {"w": weights})
      >>> print(found["w"].sum())
      1
    """
    return jax.tree.map(jnp.logical_and, a, b)


def sparsity_of(masks: Masks | PackedMasks, params: Params | None = None) -> jax.Array:
    """Returns the fraction of pruned weights, float32 scalar.

    Args:
      masks: Mask tree; it may be packed.
      params: If None, only the sparse leaves count, as for the `sparsity=` of a method.
        If the parameters are given, dense leaves count too.

    Returns:
      Pruned weights / weights; 0 if there is no sparse leaf.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> masks = {"kernel": jnp.array([[True, False]]), "bias": True}
      >>> print(zs.sparsity.sparsity_of(masks))
      0.5
    """
    sparse = [m for m in jax.tree.leaves(unpack(masks)) if not tree.is_dense(m)]
    counted = tree.size(sparse if params is None else params)
    # A Python float: the number may be beyond int32.
    return _pruned(sparse) / float(max(counted, 1))


def _pruned(masks: Sequence[jax.Array]) -> jax.Array:
    """Returns the number of pruned weights, float32; exact up to 2**31 - 1 weights."""
    if tree.size(masks) <= _check.LARGEST_COUNT:
        count = sum((jnp.sum(~m, dtype=jnp.int32) for m in masks), jnp.int32(0))
        return count.astype(jnp.float32)
    rows = [jnp.sum(~m, axis=-1, dtype=jnp.int32) for m in masks]
    return jnp.sum(jnp.stack([jnp.sum(r.astype(jnp.float32)) for r in rows]))


def restricted(grads: Grads, masks: Masks) -> Grads:
    """Returns the gradient with exact zeros where a mask is False."""
    # Not `tree.mask`: it takes scalars too, and `either` compiles to faster code.

    def leaf(m: jax.Array, g: jax.Array) -> jax.Array:
        return g if tree.is_dense(m) else tree.either(m, g, jnp.zeros_like(g))

    return jax.tree.map(leaf, masks, grads)


def landing(updates: Grads, params: Params, masks: Masks) -> Grads:
    """Returns updates with which `params + updates` is 0 where a mask is False.

    Args:
      updates: Pytree of arrays, of the optimizer.
      params: Tree like `updates`.
      masks: Mask tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.mask_trees import landing
      >>> w, live = jnp.array([1.0, 2.0]), jnp.array([True, False])
      >>> print(w + landing(jnp.array([0.5, 0.5]), w, live))
      [1.5 0. ]
    """
    # -p is exact, and p + (-p) is 0 in every dtype. `(p + u) * m - p` would round.

    def leaf(m: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
        return u if tree.is_dense(m) else tree.either(m, u, -p)

    return jax.tree.map(leaf, masks, updates, params)


def _is_hidden(x: object) -> bool:
    return isinstance(x, optax.MaskedNode)
