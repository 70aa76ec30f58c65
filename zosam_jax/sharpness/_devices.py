"""Values on the devices of a mesh axis, inside `jax.shard_map`."""

from typing import Any

import jax
import jax.numpy as jnp


def identity(x: Any) -> Any:
    return x


def is_local(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == jnp.bool_


def vary(axis: str, values: Any) -> Any:
    """The same values, in the type of values that differ between the devices.

    Without it, shard_map's gradient of a replicated parameter is summed over the
    devices at once, and none has a direction of its own.
    """
    nothing = 0 * jax.lax.axis_index(axis)

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.where(nothing == 0, x, jnp.zeros_like(x))

    return jax.tree.map(leaf, values)


def mean_over(axis: str, values: Any) -> Any:
    """Float leaves averaged over the devices; of the others, the largest."""

    def leaf(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.lax.pmean(x, axis)
        return jax.lax.pmax(x.astype(jnp.int32), axis).astype(x.dtype)

    return jax.tree.map(leaf, values)
