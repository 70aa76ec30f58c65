"""Values on the devices of a mesh axis, inside `jax.shard_map`."""

from typing import Any

import jax
import jax.numpy as jnp


def identity(x: Any) -> Any:
    """The value itself."""
    return x


def is_data(x: jax.Array) -> bool:
    """Whether it comes from the batch: floats and masks do, counts and keys do not."""
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


def mean_over(axis: str, values: Any, *, total: bool = False) -> Any:
    """Floats averaged over the devices; of the rest the largest, or integers' total."""

    def leaf(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.lax.pmean(x, axis)
        if total and jnp.issubdtype(x.dtype, jnp.integer):
            return jax.lax.psum(x, axis)
        return jax.lax.pmax(x.astype(jnp.int32), axis).astype(x.dtype)

    return jax.tree.map(leaf, values)
