"""CrAM, the compression-aware minimizer (arXiv:2207.14200)."""

from collections.abc import Callable, Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, _streams, tree
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Grads,
    Key,
    Masks,
    Memory,
    Params,
    Radius,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients.ascents import gradient
from zosam_jax.gradients.constructor import PureOptions, pure_form, sharpness_aware
from zosam_jax.gradients.geometries import as_it_is
from zosam_jax.gradients.pieces import (
    Combination,
    Descent,
    GradientLook,
    Point,
    Row,
)
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.selection import select_across


@passes_options_to(sharpness_aware)
def cram(
    rho: Radius = 0.05,
    *,
    sparsities: Sequence[float] = (0.5, 0.7, 0.9),
    plus: bool = True,
    sparse_gradient: bool = True,
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""CrAM: the gradient at perturbed and then compressed weights.

    .. math::
      m = C_s(w + \rho \nabla L(w)), \quad
      g = \nabla L(w) + m \odot \nabla L\big(m \odot (w + \rho \nabla L(w))\big)

    where :math:`C_s(v)` is the mask without the fraction s of the smallest |v|. Peste
    et al. (arXiv:2207.14200): a network trained so can be pruned once, without more
    training. The direction is not normalised, so rho is a step, not a radius. In each
    step s is drawn from `sparsities`. The smallest |v| are those over all live weights
    of kernels together, leaves of two axes or more, without what `include` and
    `exclude` leave out. It takes two passes of each kind.

    g is a sum of two gradients, as published: about twice as long as that of SGD. If
    the direction is zero or not finite, the second gradient is that at
    :math:`C_s(w) \odot w`. In `info`, eps is the whole way from w to the compressed
    weights. The N:M patterns of the paper are not included.

    Args:
      rho: Step along the gradient, or a schedule of it.
      sparsities: The values of s, each in [0, 1), equally likely.
      plus: CrAM+, as above. False: without the first term, as in CrAM.
      sparse_gradient: Whether m multiplies the second gradient. False: CrAM's gradient,
        without the m in front of it, trains compressed weights straight through.

    Returns:
      As `sam`.

    Raises:
      ValueError: A value is out of range; in a step, no leaf has two axes.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> w = {"kernel": jnp.array([[3.0, 1.0]])}
      >>> gradient = zs.cram(rho=0.5, sparsities=[0.5])
      >>> loss = lambda w: jnp.sum(w["kernel"] ** 2)
      >>> print(gradient.gradient(loss, w, step=0).grad["kernel"])
      [[18.  2.]]
    """
    _check.flags(plus=plus, sparse_gradient=sparse_gradient)
    shares = tuple(float(share) for share in np.atleast_1d(sparsities))
    if not shares:
        raise ValueError("sparsities must have at least one value.")
    for share in shares:
        _check.number("sparsities", share, least=0, below=1, traced=False)
    descent = Descent(
        dense=plus or not sparse_gradient,
        compress=largest_weights(shares),
        compressed_gradient=sparse_gradient,
    )
    combination = Combination(_added, GradientLook) if plus else Combination()
    row = Row(gradient(), as_it_is(), descent, combination)
    return sharpness_aware("cram", row, rho, **options)


@pure_form(cram)
def cram_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    sparsities: Sequence[float] = (0.5, 0.7, 0.9),
    plus: bool = True,
    sparse_gradient: bool = True,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns CrAM's gradient as a pure function; see `cram`."""
    ...


def largest_weights(shares: Sequence[float]) -> Callable[[Point, Params], Masks]:
    """Returns the compression that leaves out a share of the kernels' smallest weights.

    Args:
      shares: The fractions to leave out, one of which is drawn in a step.
    """

    def compress(point: Point, params: Params) -> Masks:
        share = jnp.float32(shares[0])
        if len(shares) > 1:
            key = jax.random.fold_in(point.random(), _streams.COMPRESSION)
            # int32: the default depends on whether 64 bits are enabled, the draw too.
            index = jax.random.randint(key, (), 0, len(shares), jnp.int32)
            share = jnp.asarray(shares, jnp.float32)[index]
        return _largest(params, point.support, share)

    return compress


def _largest(params: Params, support: Masks | None, share: jax.Array) -> Masks:
    """The mask without a share of the kernels' smallest live weights."""
    live = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    flags, treedef = jax.tree.flatten(tree.mask(live, support))
    weights = jax.tree.leaves(params)
    kernels = [i for i, x in enumerate(weights) if x.ndim > 1]
    advice = "Take another gradient, such as zs.sam."
    if not kernels:
        raise ValueError(
            "zs.cram compresses kernels, leaves of two axes or more, and params has "
            f"none. {advice}"
        )
    size = sum(weights[i].size for i in kernels)
    _check.countable("zs.cram ranks all kernels together: params", size, advice)
    among = [flags[i] for i in kernels]
    total = jnp.sum(jnp.stack([jnp.sum(flag, dtype=jnp.int32) for flag in among]))
    left_out = jnp.round(share * total.astype(jnp.float32)).astype(jnp.int32)
    chosen = select_across(
        [jnp.abs(weights[i]) for i in kernels], among, total - left_out
    )
    mask = [jnp.ones(x.shape, bool) for x in weights]
    for i, flag, largest in zip(kernels, among, chosen, strict=True):
        # What may not be perturbed stays as it is.
        mask[i] = largest | ~flag
    return treedef.unflatten(mask)


def _added(
    point: Point, look: GradientLook, grad: Grads, memory: Memory
) -> tuple[Grads, Memory]:
    del point
    return tree.add_scaled(look.estimate.grad, 1.0, grad), memory
