"""CGE, coordinate-wise gradient estimation: a difference for every live weight."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from zosam_jax import _check, tree
from zosam_jax._types import Estimate, Info, Masks, Params, Step, ValueFn
from zosam_jax.estimators.losses import difference_step, scalar_loss


def cge(
    value_fn: ValueFn,
    params: Params,
    *,
    delta: Step = "auto",
    two_sided: bool = True,
    masks: Masks | None = None,
    has_aux: bool = False,
) -> Estimate:
    r"""Returns the coordinate-wise estimate: exact, at d times the cost.

    .. math::
      \hat g = \sum_{i \in M}
        \frac{L(w + \delta e_i) - L(w - \delta e_i)}{2 \delta} \, e_i

    over the d live coordinates (one-sided: forward differences), as in DeepZero
    (arXiv:2310.02025). A reference for small models: 2d (d + 1) forward passes.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays, w.
      delta: Step of the finite difference, > 0; "auto": see `difference_step`.
      two_sided: Central differences; else forward differences.
      masks: Mask tree; only live coordinates are evaluated.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Returns:
      `Estimate`: `grad` float32, zero off the mask; `value` and `aux` of one pass at w.

    Example:
      >>> import jax, numpy as np, zosam_jax as zs
      >>> estimate = lambda w: zs.estimators.cge(lambda w: w @ w, w, delta=0.125)
      >>> seen = jax.jit(estimate)(np.array([1.0, -2.0], np.float32))
      >>> print(seen.grad, seen.info.forward_evaluations)
      [ 2. -4.] 5.0
    """
    _check.trainable(params)
    loss = scalar_loss(value_fn, has_aux)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), params)
    delta = difference_step(delta, loss, params)
    support, unravel = ravel_pytree(tree.mask(ones, masks))
    count = jnp.sum(support, dtype=jnp.int32)
    # Under `jit` a shape cannot depend on the mask. The list is padded, and the loop
    # stops after `count` entries.
    (indices,) = jnp.nonzero(support, size=support.size, fill_value=0)
    clean, aux = loss(params)

    def step(k: jax.Array, grad: jax.Array) -> jax.Array:
        unit = unravel(jnp.zeros_like(support).at[indices[k]].set(1.0))
        up = loss(tree.add_scaled(params, delta, unit))[0]
        if two_sided:
            down = loss(tree.add_scaled(params, -delta, unit))[0]
            slope = (up - down) / (2 * delta)
        else:
            slope = (up - clean) / delta
        return grad.at[indices[k]].set(slope.astype(jnp.float32))

    # In the type of the loss, which differs between the devices inside shard_map.
    start = jnp.where(True, jnp.zeros_like(support), clean.astype(support.dtype))
    grad = jax.lax.fori_loop(0, count, step, start)
    evaluations = (2 if two_sided else 1) * count + 1
    info = Info.zeros()._replace(forward_evaluations=evaluations.astype(jnp.float32))
    return Estimate(clean, unravel(grad), aux, info)
