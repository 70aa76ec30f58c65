"""The loss of several batches, for criteria at initialization."""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Grads, Params, PyTree, ValueFn
from zosam_jax.estimators import scalar_loss
from zosam_jax.sparsity.leaves import SparseLeaves


def loss_of(value_fn: ValueFn) -> Callable[[Params], jax.Array]:
    """Returns the loss of a `value_fn`, without aux.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)`.
    """

    def loss(params: Params) -> jax.Array:
        result = value_fn(params)
        value = result[0] if isinstance(result, tuple) else result
        return scalar_loss(lambda _: value, False)(params)[0]

    return loss


def mean_gradient(losses: Sequence[ValueFn], params: Params) -> Grads | None:
    """Returns the mean gradient of the losses, float32 or wider; None without losses.

    Args:
      losses: One function for each batch.
      params: Pytree of arrays.
    """
    if not losses:
        return None
    return mean(jax.grad(loss_of(f))(params) for f in losses)


def mean(trees: Iterable[PyTree]) -> PyTree:
    """Returns the mean of equal trees, float32 or wider.

    The trees are made and added one after another, so that two are held at a time.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.methods.batch_losses import mean
      >>> print(mean(jnp.float32(x) for x in (1, 2, 6)))
      3.0
    """
    total, number = None, 0
    for x in trees:
        wide = jax.tree.map(widened, x)
        total = wide if total is None else jax.tree.map(jnp.add, total, wide)
        number += 1
    return jax.tree.map(lambda x: x / number, total)


def sparse_part(
    params: Params, leaves: SparseLeaves
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Params]]:
    """Returns the sparse leaves, and the function from sparse leaves to parameters.

    Floating point leaves are float32 or wider in both.

    Args:
      params: Pytree of arrays.
      leaves: Its sparse leaves.
    """
    wide = jax.tree.map(widened, params)
    return leaves.of(wide), lambda theta: leaves.put(wide, theta)


def widened(x: jax.typing.ArrayLike) -> jax.Array:
    """Returns the array in float32 or wider; integers are returned as they are."""
    x = jnp.asarray(x)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(tree.wide_dtype(x.dtype)) if floating else x
