"""Descents: the pass at the perturbed point, whose gradient a method returns."""

from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _streams, estimators
from zosam_jax.gradients.pieces import Descent, Look, Point, exact


def backprop(point: Point, look: Look, params: Any) -> Any:
    """The exact gradient at the perturbed point: the second pass of all but a few."""
    del look
    return exact(point.descent, params)


def backprop_on_sharpest(gamma: float) -> Descent:
    """ESAM's data selection: the share gamma whose loss rose most."""

    def descent(point: Point, look: Look, params: Any) -> Any:
        assert point.losses is not None
        assert look.losses is not None
        losses_of = point.losses
        count = max(1, round(gamma * look.losses.size))
        moved, _ = losses_of(params, "descent", point.examples)
        _, chosen = jax.lax.top_k(moved - look.losses, count)
        if point.examples is not None:
            chosen = point.examples[chosen]

        def loss(params: Any) -> tuple[jax.Array, Any]:
            losses, aux = losses_of(params, "descent", chosen)
            return jnp.mean(losses), aux

        seen = exact(loss, params)
        share = jnp.float32(count / look.losses.size)
        info = seen.info._replace(
            descent_value=jnp.mean(moved),
            forward_evaluations=jnp.ones((), jnp.float32),
            backward_evaluations=share,
        )
        return seen._replace(value=jnp.mean(moved), info=info)

    return descent


def zeroth_order(**options: Any) -> Descent:
    """No backward pass at all: random gradient estimation at the perturbed point."""

    def descent(point: Point, look: Look, params: Any) -> Any:
        del look
        # Directions of their own, not those that led uphill.
        key = jax.random.fold_in(point.random(), _streams.DESCENT)
        seen, _ = estimators.rge(
            point.descent, params, key, masks=point.masks, has_aux=True, **options
        )
        grad = jax.tree.map(lambda g, w: g.astype(w.dtype), seen.grad, params)
        info = seen.info._replace(descent_value=seen.value)
        return seen._replace(grad=grad, info=info)

    return descent
