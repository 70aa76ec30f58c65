"""SNIP: keep the connections that the loss is most sensitive to (arXiv:1810.02340)."""

from collections.abc import Sequence

import jax

from zosam_jax._types import Params, PyTree, ValueFn
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.methods.batch_losses import mean_gradient


def snip_scores(
    params: Params,
    losses: Sequence[ValueFn],
    key: jax.Array,
    score: scores.Score = scores.saliency,
) -> PyTree:
    """Returns |w g| for every weight; g is the mean gradient of the losses.

    Args:
      params: Pytree of arrays.
      losses: One function `params -> loss` for each batch.
      key: Used by random scores.
      score: The score to use instead of |w g|.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from zosam_jax.sparsity.methods.snip import snip_scores
      >>> w = jnp.array([[-1.0, 2.0]])
      >>> print(snip_scores(w, [lambda w: 3 * w.sum()], jax.random.key(0)))
      [[3. 6.]]
    """
    return score(params, mean_gradient(losses, params), key)
