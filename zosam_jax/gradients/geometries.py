"""Geometries that several methods share; `Geometry()` itself is the L2 ball."""

import jax

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params
from zosam_jax.gradients.pieces import Geometry


def l2(layerwise: bool = False) -> Geometry:
    """Returns `d / |d|`, or layer-wise `(|w_l| / |w|) d_l / |d_l|`, also of norm 1."""
    _check.flags(layerwise=layerwise)
    return Geometry(_layerwise) if layerwise else Geometry()


def as_it_is() -> Geometry:
    """Returns the geometry that multiplies the unscaled direction by rho."""
    return Geometry(_as_it_is, normalizes=False)


def _layerwise(
    direction: Params, params: Params, support: Masks | None
) -> tuple[Params, jax.Array]:
    # The norms of the normalised weights are the ratios |w_l| / |w|; their squares add
    # up to 1.
    weights, _ = tree.normalize(tree.mask(params, support))
    unit = jax.tree.map(
        lambda d, w: tree.norm(w) * tree.normalize(d)[0], direction, weights
    )
    return unit, tree.norm(direction)


def _as_it_is(
    direction: Params, params: Params, support: Masks | None
) -> tuple[Params, jax.Array]:
    del params, support
    return direction, tree.norm(direction)
