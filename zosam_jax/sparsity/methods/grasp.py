r"""GraSP: keep the weights that carry the gradient flow (arXiv:2002.07376).

The gradient flow is :math:`g^T g`. Without weight i it changes, to first order, by
:math:`-2 \theta_i (H g)_i`. The weights with the largest :math:`\theta_i (H g)_i` stay,
with regard to the sign (equation 8).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from zosam_jax._types import Params, PyTree, ValueFn
from zosam_jax.sparsity.leaves import LeafRule
from zosam_jax.sparsity.methods.batch_losses import loss_of, mean, sparse_part


def grasp_scores(params: Params, losses: Sequence[ValueFn], rule: LeafRule) -> PyTree:
    """Returns theta * (H g) for the sparse leaves, and 0 for dense ones.

    g and H are taken over the sparse leaves alone, in float32 or wider: what counts is
    the flow through weights that may be pruned. Batches pass one after another.

    Args:
      params: Pytree of arrays.
      losses: One function `params -> loss` for each batch.
      rule: Which leaves are sparse.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.leaves import LeafRule
      >>> from zosam_jax.sparsity.methods.grasp import grasp_scores
      >>> w = jnp.array([[1.0, 2.0]])  # For L = w^2 / 2, H = 1 and g = w.
      >>> print(grasp_scores(w, [lambda w: 0.5 * jnp.sum(w**2)], LeafRule()))
      [[1. 4.]]
    """
    leaves = rule.sparse(params)
    theta, rebuild = sparse_part(params, leaves)

    def gradient(loss: ValueFn) -> Callable[[list[jax.Array]], list[jax.Array]]:
        return jax.grad(lambda t: loss_of(loss)(rebuild(t)))

    g = mean(gradient(f)(theta) for f in losses)
    # Forward over reverse: the Hessian times g costs about two gradients.
    hg = mean(jax.jvp(gradient(f), (theta,), (g,))[1] for f in losses)
    zeros = jax.tree.map(lambda _: jnp.zeros(()), params)
    return leaves.put(zeros, [t * h for t, h in zip(theta, hg, strict=True)])
