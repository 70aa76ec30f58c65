r"""ZO-SAM (arXiv:2603.13115): sharpness-aware gradients with one backward pass.

SAM (arXiv:2010.01412) perturbs the weights :math:`w` along the gradient, by a distance
:math:`\rho`, and takes the gradient at the perturbed point. That costs two backward
passes. ZO-SAM estimates the perturbation with forward passes alone:

.. math::
  \hat g &= \frac{1}{m} \sum_{i=1}^m
            \frac{L(w + \delta u_i) - L(w - \delta u_i)}{2 \delta} \, u_i,
            \qquad u_i \sim N(0, I) \\
  \epsilon &= \rho \, \hat g / |\hat g| \\
  g &= \nabla L(w + \epsilon)

With m = 1 the estimate is a multiple of u, so :math:`\epsilon = \pm \rho \, u / |u|`:
the probes decide only the sign, and delta and the scale of the loss cancel. The cosine
of the perturbation to the gradient is about :math:`\sqrt{2 / (\pi d)}` over d live
weights, 0.004 for ResNet-32 at 90 % sparsity: the perturbation is a random direction
with the sign that raises the loss.

`zs.zosam` and `zs.zosam_gradient` run this function. For options beyond it (other
directions, some leaves only, microbatches), they build the same steps from the pieces
of `zs.gradients`. A test checks that both give the same bits.
"""

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Estimate, Key, Masks, Params, Scalar, Step, ValueFn
from zosam_jax.estimators import rge, scalar_loss


def published_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key,
    *,
    rho: Scalar = 0.05,
    delta: Step = "auto",
    num_directions: int = 1,
    two_sided: bool = True,
    chunk_size: int | None = None,
    masks: Masks | None = None,
    has_aux: bool = False,
    aux_from: str = "descent",
    norm_over: str = "mask",
) -> Estimate:
    """Returns ZO-SAM's gradient: no state, no optimizer, no checks of arguments.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`. All passes
        of a step call this one function: one batch, one dropout key.
      params: Pytree of floating point arrays, w; zero where the masks are False.
      key: One PRNG key, which draws the directions and nothing else.
      rho: Radius of the perturbation, >= 0. 0 gives the plain gradient.
      delta: Step of the finite difference, > 0; "auto": see `difference_step`. At
        m = 1 it matters only for the sign.
      num_directions: m, the number of directions.
      two_sided: Central differences, 2m forward passes; else m + 1.
      chunk_size: None evaluates one probe after another. k evaluates the probes of k
        directions in one `jax.vmap`; on a CPU that is slower for convolutions.
      masks: Mask tree. Directions lie on it: a pruned weight is 0 in every pass.
      has_aux: Whether `value_fn` returns `(loss, aux)`.
      aux_from: The pass that supplies aux: "descent", at w + eps, or "ascent", the
        first probe at w + delta u (one-sided: at w). The probe lies about
        `delta * sqrt(d)` from w, which is usually further than rho.
      norm_over: "mask": the norm of g counts live weights, so that |eps| = rho. "all":
        it counts every weight, as for a dense g, and |eps| < rho.

    Returns:
      `Estimate`: `value` is the mean of the two-sided probes, L(w) + O(delta^2), or
      L(w) itself when one-sided; `grad` is the gradient at w + eps with respect to all
      weights, pruned ones too (RigL grows by it). A zero or non-finite direction gives
      the plain gradient and L(w), and `info.unperturbed` is 1.

      In bfloat16, w + eps rounds to w where eps is below 1/256 of a weight, and much
      of a small perturbation is lost: `info.perturbation_norm` is what remains. Keep
      the parameters in float32, and compute in bfloat16 inside `value_fn`.
    """
    loss = scalar_loss(value_fn, has_aux)

    # g: the zeroth-order estimate of the gradient, from forward passes only.
    ascent, dense = rge(
        loss,
        params,
        key,
        delta=delta,
        num_directions=num_directions,
        two_sided=two_sided,
        chunk_size=chunk_size,
        masks=masks,
    )
    # eps = rho * g / |g|
    unit, norm = tree.normalize(ascent.grad)
    usable = jnp.isfinite(norm) & (norm > 0)
    radius = rho if norm_over == "mask" else rho * norm / tree.norm(dense)
    # A zero or NaN direction leaves w unperturbed: the step is one of the plain
    # gradient.
    radius = jnp.where(usable, radius, 0.0)
    perturbed = tree.add_scaled(params, radius, unit)

    # The gradient at w + eps: the only backward pass.
    (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(perturbed)

    epsilon = tree.subtract(perturbed, params)
    length, cosine = tree.length_and_cosine(epsilon, tree.mask(grad, masks))
    info = ascent.info._replace(
        perturbation_norm=length,
        direction_norm=norm,
        cosine=cosine,
        descent_value=value,
        unperturbed=1 - usable.astype(jnp.int32),
        backward_evaluations=jnp.asarray(1, jnp.float32),
    )
    return Estimate(
        value=jnp.where(usable, ascent.value, value),
        grad=grad,
        aux=aux if aux_from == "descent" else ascent.aux,
        info=info,
    )
