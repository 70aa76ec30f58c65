"""The moments of an Optax state start anew where the topology changes."""

from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Masks, OptState, StackRule
from zosam_jax.sparsity.leaves import stack_axes

KeyPath = jax.tree_util.KeyPath
_ByPath = dict[tuple[Any, ...], jax.Array]

# What optimizers call a mean of squared gradients: Adam and its kin, AMSGrad, Adagrad,
# Adafactor without factors, Adadelta, MADGRAD, Prodigy.
SECOND_MOMENTS = frozenset(
    ("nu", "nu_max", "sum_of_squares", "v", "e_g", "grad_sum_sq", "exp_avg_sq")
)


def reset_moments(state: OptState, fresh: OptState, changed: Masks) -> OptState:
    """Returns an Optax state with fresh entries for dropped and grown weights.

    A leaf of the state belongs to the parameter whose key path its own path ends in; of
    several such parameters, to the one with the longest path. It is reset if its shape,
    or its trailing axes, are the parameter's. So moments are found inside any wrapper,
    for any optimizer. Statistics that several weights share (the row and column means
    of Adafactor) have another shape and are kept. Leaves without such a path
    (`optax.flatten`) are kept too.

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
    by_path = _by_path(changed)

    def leaf(path: KeyPath, old: jax.Array, new: jax.Array) -> jax.Array:
        _, mask = _owner(by_path, path)
        if mask is None or tree.is_dense(mask):
            return old
        belongs = old.shape[old.ndim - mask.ndim :] == mask.shape
        # Trailing axes: L-BFGS stacks several gradients in front of them.
        return jnp.where(_in_front(mask, old.ndim), new, old) if belongs else old

    return jax.tree_util.tree_map_with_path(leaf, state, fresh)


def mean_second_moments(
    state: OptState, before: Masks, after: Masks, stacked: StackRule = ()
) -> OptState:
    r"""Returns a state in which grown weights have the second moment of their layer.

    The second moment of every grown weight becomes the mean over the weights of its
    layer that were live and still are. Without such weights it stays as it is. First
    moments are not changed.

    Under Adam a weight that starts with moments of 0 at step t moves by

    .. math:: \eta \frac{1 - \beta_1^k}{1 - \beta_1^t}
              \sqrt{\frac{1 - \beta_2^t}{1 - \beta_2^k}}

    in its k-th step, for a constant gradient: the correction of the bias counts t
    steps, and not k. With betas of 0.9 and 0.999 and a large t that is 3 to 6.5
    learning rates in each of the first 40 steps. With the mean it is about the step of
    the other weights of the layer.

    Args:
      state: State of the optimizer after `reset_moments`.
      before: Mask tree before the change.
      after: Mask tree after it.
      stacked: Leaves that are stacks of layers, as in `dynamic`.

    Returns:
      A state of the same structure, shapes and dtypes. Second moments are the leaves
      that optimizers call `nu`, `nu_max`, `sum_of_squares`, `v`, `e_g`, `grad_sum_sq`
      or `exp_avg_sq`, in the shape of a sparse leaf.
    """
    old, new = _by_path(before), _by_path(after)
    axes = {
        owner: stack_axes(stacked, path, jnp.shape(mask))
        for (owner, mask), path in zip(new.items(), tree.paths(after), strict=True)
        if not tree.is_dense(mask)
    }

    def leaf(path: KeyPath, x: jax.Array) -> jax.Array:
        length, mask = _owner(new, path)
        name = getattr(path[-length - 1], "name", "") if len(path) > length else ""
        if mask is None or mask.shape != x.shape or name not in SECOND_MOMENTS:
            return x
        owner = tuple(path[len(path) - length :])
        live = old[owner]
        # The mean is over weights that were live before: those that just grew have
        # moments of 0 and would pull it down.
        kept, grown = live & mask, mask & ~live
        within = tuple(range(axes[owner], mask.ndim))
        count = jnp.sum(kept, within, dtype=jnp.float32, keepdims=True)
        wide = x.astype(tree.wide_dtype(x.dtype))
        total = jnp.sum(jnp.where(kept, wide, 0), within, keepdims=True)
        mean = total / jnp.maximum(count, 1).astype(wide.dtype)
        return jnp.where(grown & (count > 0), mean.astype(x.dtype), x)

    return jax.tree_util.tree_map_with_path(leaf, state)


def _by_path(masks: Masks) -> _ByPath:
    return {
        tuple(path): mask
        for path, mask in jax.tree_util.tree_flatten_with_path(masks)[0]
    }


def _owner(by_path: _ByPath, path: KeyPath) -> tuple[int, jax.Array | None]:
    """Returns the length of the owner's path, and its mask; None without an owner."""
    # The longest first, and over dense leaves too: of `kernel` and a dense
    # `head/kernel`, a moment at `mu/head/kernel` belongs to the second.
    for start in range(len(path) + 1):
        mask = by_path.get(tuple(path[start:]))
        if mask is not None:
            return len(path) - start, mask
    return 0, None


def _in_front(mask: jax.Array, ndim: int) -> jax.Array:
    """Returns the mask with axes of length 1 in front, `ndim` in all."""
    return mask.reshape((1,) * (ndim - mask.ndim) + mask.shape)
