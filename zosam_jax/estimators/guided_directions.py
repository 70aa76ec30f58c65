"""Gradient estimation in a small subspace, such as the span of past gradients."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._programs import once
from zosam_jax._types import (
    Estimate,
    Info,
    Key,
    Masks,
    Params,
    PyTree,
    Scalar,
    Step,
    ValueFn,
)
from zosam_jax.estimators.losses import difference_step, scalar_loss


def guided(
    value_fn: ValueFn | Sequence[ValueFn],
    params: Params,
    key: Key,
    guides: PyTree,
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
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`. Or k of
        them, losses of disjoint parts of a batch: each c_j is then measured on its own
        part, all of them in one call (`num_directions` = k) of 2 passes.
      params: Pytree of floating point arrays, w.
      key: One PRNG key, for r.
      guides: k trees like the parameters, stacked: a tree like them, of float32 leaves
        `[k, ...]`. One that is zero on the mask, or within 0.003 of the span of those
        before it, is replaced by r.
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
    parts = value_fn if isinstance(value_fn, Sequence) else [value_fn]
    if len(parts) > 1 and not len(parts) == len(slopes) == num_directions:
        raise ValueError(
            f"{len(parts)} losses measure {len(parts)} slopes: give as many guides and "
            f"num_directions={len(parts)}; got {len(slopes)} and {num_directions}."
        )
    losses = [scalar_loss(part, has_aux) for part in parts]
    basis, known = orthonormal(guides, key, exploration, params, masks)
    delta = difference_step(delta, losses[0], params)
    # A unit vector has entries of about 1 / sqrt(d). The factor makes them as long as
    # those of a random direction in `rge`, so that one delta suits both.
    step = delta * jnp.sqrt(tree.live_count(params, masks))
    value, aux = jnp.zeros((), jnp.float32), None
    for turn in range(num_directions):
        # The turn goes round, so every slope is measured anew within ceil(k / m) calls.
        j = (count * num_directions + turn) % len(slopes)
        loss = losses[turn % len(losses)]
        q = jax.tree.map(lambda x, j=j: x[j], basis)
        up, seen = loss(tree.add_scaled(params, step, q))
        down, _ = loss(tree.add_scaled(params, -step, q))
        slopes = slopes.at[j].set(((up - down) / (2 * step)).astype(slopes.dtype))
        value = value + (up + down) / (2 * num_directions)
        aux = seen if turn == 0 else aux
    grad = _combine(slopes, basis)
    # The slope along a random axis says nothing about the axis of the next call.
    slopes = jnp.where(known, slopes, 0)
    info = Info.zeros()._replace(
        forward_evaluations=jnp.asarray(2 * num_directions / len(parts), jnp.float32)
    )
    return Estimate(value, grad, aux, info), slopes


def orthonormal(
    guides: PyTree,
    key: Key,
    exploration: Scalar,
    params: Params,
    masks: Masks | None,
) -> tuple[PyTree, jax.Array]:
    """Returns the axes, orthonormal on the mask and explored, and which are guides.

    Args:
      guides: Tree of float32 leaves `[k, ...]`, as for `guided`.
      key: One PRNG key, for the random axes.
      exploration: Fraction of a random axis in each guide, in [0, 1].
      params: Pytree of arrays, for the shapes.
      masks: Mask tree; None for all weights.

    Returns:
      `(axes, known)`: a tree like `guides`, and bool `[k]`, False where a random axis
      replaces a guide.
    """
    _check.key(key)
    first = jax.tree.leaves(guides)[0]
    k = len(first)
    # In `jax.shard_map` the carry of a loop, and the branches of a condition, vary over
    # the devices in one way: here, as the guides and as the key do.
    never = (jax.random.uniform(key) < 0) & (jnp.sum(first[:0]) < 0)
    axes = jax.tree.map(lambda x: jnp.where(never, jnp.concatenate([x, x]), 0), guides)
    explores = not (isinstance(exploration, float | int) and exploration == 0)

    def add(
        carry: tuple[PyTree, jax.Array], j: jax.Array
    ) -> tuple[tuple[PyTree, jax.Array], jax.Array]:
        axes, replaces = carry
        # Without exploration a random axis has nothing to do but to replace a guide.
        axes, is_new = jax.lax.cond(
            (j < k) | replaces | explores,
            lambda: _with_axis(axes, j, _vector(guides, key, params, j, never), masks),
            lambda: (axes, never),
        )
        return (axes, replaces | ((j < k) & ~is_new)), is_new

    places = jnp.arange(2 * k, dtype=jnp.uint32)
    (axes, _), are_new = jax.lax.scan(add, (axes, never), places)
    known, drawn = are_new[:k], are_new[k:]
    share = jnp.where(known, exploration, 1.0)
    # Without a random axis (there are too few weights), the guide alone.
    share = jnp.where(drawn, share, 0.0)

    def mixed(x: jax.Array) -> jax.Array:
        # The squares of the weights add up to 1 and the axes are orthonormal, so the
        # mixtures are orthonormal too.
        part = share.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.sqrt(1 - part) * x[:k] + jnp.sqrt(part) * x[k:]

    return jax.tree.map(mixed, axes), known


def _vector(
    guides: PyTree, key: Key, params: Params, j: jax.Array, never: jax.Array
) -> Params:
    """The guide of this number, and behind all guides one that is drawn."""
    k = len(jax.tree.leaves(guides)[0])

    def guide() -> Params:
        return jax.tree.map(lambda x: jnp.where(never, 0, x[j % k]), guides)

    def drawn() -> Params:
        found = tree.normal_like(jax.random.fold_in(key, j - k), params)
        return jax.tree.map(lambda x: jnp.where(never, 0, x), found)

    return jax.lax.cond(j < k, guide, drawn)


def aged(slopes: jax.Array, old: PyTree, new: PyTree, masks: Masks | None) -> jax.Array:
    """Returns slopes times the cosine of each guide with what it has become.

    A slope along the old guide is that times as large along the new one, as far as the
    gradient is along the old one.

    Args:
      slopes: float32 `[k]`.
      old: The guides along which they were measured, a tree of leaves `[k, ...]`.
      new: The guides of the next call.
      masks: Mask tree; None for all weights.
    """

    def cosine(a: Params, b: Params) -> jax.Array:
        return tree.cosine(tree.mask(a, masks), tree.mask(b, masks))

    return slopes * jax.vmap(cosine)(old, new)


def _with_axis(
    axes: PyTree, j: jax.Array, vector: Params, masks: Masks | None
) -> tuple[PyTree, jax.Array]:
    """The axes with the vector, orthogonal to all others, as axis j; is it one?"""
    # Of length 1 at first, so that no product below leaves float32.
    rest = tree.normalize(tree.mask(vector, masks))[0]
    # Rounding errors of the first projection are gone after a second one.
    for _ in range(2):
        rest = tree.subtract(rest, _combine(_along(axes, rest), axes))
    length = tree.root(tree.dot(rest, rest))
    # Rounding leaves some 1e-7 of a vector that others span: that is no direction.
    is_new = length > 3e-3
    scale = jnp.where(is_new, 1 / jnp.where(is_new, length, 1), 0)

    def put(axes: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(axes, scale * x, j, 0)

    return jax.tree.map(put, axes, rest), is_new


def _along(axes: PyTree, x: Params) -> jax.Array:
    """The inner products of x with the axes, `[axes]`."""
    pairs = zip(jax.tree.leaves(axes), jax.tree.leaves(x), strict=True)
    # Not `tensordot`: XLA:CPU compiles a kernel for each, which takes long.
    dots = [jnp.sum(a * b, tuple(range(1, a.ndim))) for a, b in pairs]
    return once(jnp.sum(jnp.stack(dots), 0))


def _combine(coefficients: jax.Array, axes: PyTree) -> Params:
    """The sum of the axes times their coefficients."""
    scalars = list(coefficients)

    def leaf(x: jax.Array) -> jax.Array:
        # Written out: XLA:CPU is very slow at reductions over the first axis.
        parts = (c * x[i] for i, c in enumerate(scalars))
        return functools.reduce(jnp.add, parts)

    return jax.tree.map(leaf, axes)
