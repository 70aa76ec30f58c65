"""Geometries: from an ascent direction to a perturbation of radius rho."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Scalar
from zosam_jax.gradients.pieces import Geometry


def l2(layerwise: bool = False) -> Geometry:
    """`d / |d|`; layer-wise `(|w_l| / |w|) d_l / |d_l|`, whose norm is 1 as well."""
    if not layerwise:
        return lambda direction, *_: tree.normalize(direction)

    def geometry(direction: Any, params: Any, support: Any) -> tuple[Any, jax.Array]:
        weights, _ = tree.normalize(tree.mask(params, support))
        unit = jax.tree.map(
            lambda d, w: tree.norm(w) * tree.normalize(d)[0], direction, weights
        )
        return unit, tree.norm(direction)

    return geometry


def scaled(eta: Scalar, unscaled: str | Sequence[str] | None) -> Geometry:
    """ASAM's `T^2 d / |T d|`, `T = |w| + eta`, or 1 on `unscaled` (None: biases)."""

    def geometry(direction: Any, params: Any, support: Any) -> tuple[Any, jax.Array]:
        del support
        paths = tree.paths(params)
        left_out = {path for path in paths if path.endswith("bias")}
        if unscaled is not None:
            left_out = tree.matching("unscaled", unscaled, paths)
        scales = jax.tree.unflatten(
            jax.tree.structure(params),
            [
                1.0 if path in left_out else jnp.abs(w.astype(jnp.float32)) + eta
                for path, w in zip(paths, jax.tree.leaves(params), strict=True)
            ],
        )
        once = jax.tree.map(lambda t, d: t * d.astype(jnp.float32), scales, direction)
        unit, norm = tree.normalize(once)
        return jax.tree.map(lambda t, x: t * x, scales, unit), norm

    return geometry


def as_it_is(direction: Any, params: Any, support: Any) -> tuple[Any, jax.Array]:
    """The direction itself, unscaled: rho is its factor, not its radius."""
    del params, support
    return direction, tree.norm(direction)


def filter_norms(params: Any) -> Any:
    """|w_f| of every filter, broadcastable to the leaves.

    A filter is what makes one output: the entries of a leaf that share the index on the
    last axis, as in Flax kernels. A leaf with fewer than two axes is one filter.
    """

    def leaf(w: jax.Array) -> jax.Array:
        axes = tuple(range(w.ndim - 1)) if w.ndim > 1 else None
        squares = jnp.square(w.astype(jnp.float32))
        return jnp.sqrt(jnp.sum(squares, axis=axes, keepdims=True))

    return jax.tree.map(leaf, params)
