"""Gradient estimation in a small subspace, such as the span of past gradients."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from zosam_jax import _check, tree
from zosam_jax._types import (
    Estimate,
    Info,
    Key,
    Masks,
    Params,
    Scalar,
    Step,
    ValueFn,
)
from zosam_jax.estimators.losses import difference_step, scalar_loss


def guided(
    value_fn: ValueFn,
    params: Params,
    key: Key,
    guides: jax.Array,
    slopes: jax.Array,
    count: int | jax.Array,
    *,
    delta: Step = "auto",
    num_directions: int = 1,
    exploration: Scalar = 0.0,
    masks: Masks | None = None,
    has_aux: bool = False,
) -> tuple[Estimate, jax.Array]:
    r"""Returns the gradient's projection on a subspace, measured axis by axis.

    .. math::
      \hat g = \sum_{j=1}^{k} c_j q_j, \qquad
      c_j = \frac{L(w + h q_j) - L(w - h q_j)}{2 h}, \quad h = \delta \sqrt d

    :math:`q_1 \dots q_k` are the guides made orthonormal on the mask, in the order
    given, each mixed with a random unit vector orthogonal to all of them,
    :math:`\sqrt{1 - a}\,q + \sqrt{a}\,r`, with the exploration a. Guided evolution
    strategies (arXiv:1806.10230) search with that mixture; here the subspace is so
    small that it is measured axis by axis. A call measures `num_directions` of the c,
    in turn, and keeps the last measurement of the others. They change slowly, so k axes
    cost no more passes than one; `aged` fits them to guides that turn.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays, w.
      key: One PRNG key, for r.
      guides: float32 `[k, size]`: k trees like the parameters, each as one vector, as
        `jax.flatten_util.ravel_pytree` lays it out. One that is zero on the mask, or
        within 0.003 of the span of those before it, is replaced by r.
      slopes: The c of the last call, float32 `[k]`; zeros before the first.
      count: Number of calls so far, which decides whose turn it is.
      delta: Step of the finite difference per coordinate: the probes lie
        `delta * sqrt(d)` from w, as in `rge`. "auto": see `difference_step`.
      num_directions: m <= k, the number of slopes measured in this call, or 0.
      exploration: a in [0, 1].
      masks: Mask tree.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Returns:
      `(estimate, slopes)`: `grad` float32, zero off the mask; `value` and `aux` as
      in `rge`; the slopes for the next call, 0 along a replaced guide.
    """
    _check.trainable(params)
    loss = scalar_loss(value_fn, has_aux)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    unravel = ravel_pytree(wide)[1]
    basis, known = orthonormal(guides, key, exploration, wide, masks)
    delta = difference_step(delta, loss, params)
    # A unit vector has entries of about 1 / sqrt(d). The factor makes them as long as
    # those of a random direction in `rge`, so that one delta suits both.
    step = delta * jnp.sqrt(tree.live_count(params, masks))
    value, aux = jnp.zeros((), jnp.float32), None
    for turn in range(num_directions):
        # The turn goes round, so every slope is measured anew within ceil(k / m) calls.
        j = (count * num_directions + turn) % len(guides)
        q = unravel(basis[j])
        up, seen = loss(tree.add_scaled(params, step, q))
        down, _ = loss(tree.add_scaled(params, -step, q))
        slopes = slopes.at[j].set(((up - down) / (2 * step)).astype(slopes.dtype))
        value = value + (up + down) / (2 * num_directions)
        aux = seen if turn == 0 else aux
    grad = unravel(jnp.tensordot(slopes, basis, 1, precision="highest"))
    # The slope along a random axis says nothing about the axis of the next call.
    slopes = jnp.where(known, slopes, 0)
    info = Info.zeros()._replace(
        forward_evaluations=jnp.asarray(2.0 * num_directions, jnp.float32)
    )
    return Estimate(value, grad, aux, info), slopes


def orthonormal(
    guides: jax.Array,
    key: Key,
    exploration: Scalar,
    params: Params,
    masks: Masks | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the axes, orthonormal on the mask and explored, and which are guides.

    Args:
      guides: float32 `[k, size]`, as for `guided`.
      key: One PRNG key, for the random axes.
      exploration: Fraction of a random axis in each guide, in [0, 1].
      params: Pytree of float32 arrays, for the shapes.
      masks: Mask tree; None for all weights.

    Returns:
      `(axes, known)`: float32 `[k, size]`, and bool `[k]`, False where a random axis
      replaces a guide.
    """
    _check.key(key)
    k = len(guides)
    random = [tree.normal_like(jax.random.fold_in(key, j), params) for j in range(k)]
    vectors = [*guides, *(ravel_pytree(u)[0] for u in random)]
    support = _live(params, masks)
    axes: list[jax.Array] = []
    new: list[jax.Array] = []
    for vector in vectors:
        rest = _unit(support * vector, 0.0)[0]
        # Modified Gram-Schmidt: each projection uses the remainder, not the first
        # vector, which keeps rounding errors from adding up.
        for axis in axes:
            rest = rest - _dot(axis, rest) * axis
        # Rounding leaves some 1e-7 of a vector that others span: that is no direction.
        rest, is_new = _unit(rest, 3e-3)
        axes.append(rest)
        new.append(is_new)
    basis = []
    for j in range(k):
        share = jnp.where(new[j], exploration, 1.0)
        # Without a random axis (there are too few weights), the guide alone.
        share = jnp.where(new[k + j], share, 0.0)
        # The squares of the weights add up to 1 and the axes are orthonormal, so the
        # mixtures are orthonormal too.
        basis.append(jnp.sqrt(1 - share) * axes[j] + jnp.sqrt(share) * axes[k + j])
    return jnp.stack(basis), jnp.stack(new[:k])


def aged(
    slopes: jax.Array,
    old: jax.Array,
    new: jax.Array,
    params: Params,
    masks: Masks | None,
) -> jax.Array:
    """Returns slopes times the cosine of each guide with what it has become.

    A slope along the old guide is that times as large along the new one, as far as the
    gradient is along the old one.

    Args:
      slopes: float32 `[k]`.
      old: The guides along which they were measured, float32 `[k, size]`.
      new: The guides of the next call.
      params: Pytree of arrays, for the shapes.
      masks: Mask tree; None for all weights.
    """
    live = _live(params, masks)
    turned = [tree.cosine(live * a, live * b) for a, b in zip(old, new, strict=True)]
    return slopes * jnp.stack(turned)


def _live(params: Params, masks: Masks | None) -> jax.Array:
    """1 for a live weight and 0 for a pruned one, as one vector."""
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), params)
    return ravel_pytree(tree.mask(ones, masks))[0]


def _unit(x: jax.Array, least: float) -> tuple[jax.Array, jax.Array]:
    """X at length 1 and True; zeros and False if its length is at most `least`."""
    scale = tree.magnitude(x)
    x = x / scale
    length = tree.root(_dot(x, x))
    usable = scale * length > least
    return x * jnp.where(usable, 1 / jnp.where(usable, length, 1), 0), usable


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)
