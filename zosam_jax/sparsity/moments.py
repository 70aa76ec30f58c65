"""The moments of an Optax state start anew where the topology changes."""

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Masks, OptState


def reset_moments(state: OptState, fresh: OptState, changed: Masks) -> OptState:
    """Returns an Optax state with fresh entries for dropped and grown weights.

    A leaf of the state belongs to a parameter if its key path ends in the parameter's
    path, and if its shape, or its trailing axes, are the parameter's. So moments are
    found inside any wrapper, for any optimizer. Statistics that several weights share
    (the row and column means of Adafactor) have another shape and are kept. Leaves
    without such a path (`optax.flatten`) are kept too.

    Args:
      state: State of the optimizer.
      fresh: The optimizer's `init` at the parameters after the change. (Zeros would not
        always do: schedule-free optimizers hold a copy of the parameters.)
      changed: Boolean tree like `params`: True for dropped and grown weights; a scalar
        for a dense leaf.

    Returns:
      A state of the same structure, shapes and dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.moments import reset_moments
      >>> state, fresh = {"w": jnp.array([[3.0, 4.0]])}, {"w": jnp.zeros((1, 2))}
      >>> print(reset_moments(state, fresh, {"w": jnp.array([[True, False]])})["w"])
      [[0. 4.]]
    """
    by_path = {
        tuple(path): mask
        for path, mask in jax.tree_util.tree_flatten_with_path(changed)[0]
        if not tree.is_dense(mask)
    }

    def leaf(path: jax.tree_util.KeyPath, old: jax.Array, new: jax.Array) -> jax.Array:
        # The longest suffix first: of the leaves `a` and `b/a` it finds the right one.
        for start in range(len(path) + 1):
            mask = by_path.get(tuple(path[start:]))
            if mask is not None:
                belongs = old.shape[old.ndim - mask.ndim :] == mask.shape
                return jnp.where(mask, new, old) if belongs else old
        return old

    return jax.tree_util.tree_map_with_path(leaf, state, fresh)
