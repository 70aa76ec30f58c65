"""How the devices of a mesh axis share one step, inside `jax.shard_map`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax._types import Estimate, PyTree


def _same(values: PyTree) -> PyTree:
    return values


class Devices(NamedTuple):
    """How values are shared between devices; one device shares nothing.

    Attributes:
      mean: Averages over the devices where they share one ascent (`sync_ascent`).
      pool: Always averages over the devices: for statistics, and for decisions that
        must be the same on all devices.
      vary: Gives values the type of values that differ between devices. Both branches
        of a `lax.cond` must have one type.
      axis: Name of the mesh axis; None for one device.
    """

    mean: Callable[[PyTree], PyTree] = _same
    pool: Callable[[PyTree], PyTree] = _same
    vary: Callable[[PyTree], PyTree] = _same
    axis: str | None = None

    def vary_data(self, memory: PyTree) -> PyTree:
        """Returns the memory, its floats and masks in the type that varies.

        Counts keep their type: they choose the branch, which all devices share.
        """
        return jax.tree.map(lambda x: self.vary(x) if _is_data(x) else x, memory)

    def average(self, estimate: Estimate) -> Estimate:
        """Returns the mean over the devices; integers in aux are added up."""
        if self.axis is None:
            return estimate
        # Integers in aux are counts, such as correct answers: the batch has their sum.
        aux = _mean_over(self.axis, estimate.aux, total=True)
        return _mean_over(self.axis, estimate._replace(aux=None))._replace(aux=aux)


def on_axis(axis: str | None, sync_ascent: bool) -> Devices:
    """Returns how the devices of a mesh axis share a step; see `Devices`."""
    if axis is None:
        return Devices()
    pool = functools.partial(_mean_over, axis)
    return Devices(
        mean=pool if sync_ascent else _same,
        pool=pool,
        vary=functools.partial(_vary, axis),
        axis=axis,
    )


def _is_data(x: jax.Array) -> bool:
    """Whether values depend on the batch, as floats and masks do, unlike counts."""
    return jnp.issubdtype(x.dtype, jnp.floating) or x.dtype == jnp.bool_


def _vary(axis: str, values: PyTree) -> PyTree:
    """The same values, in the type of values that differ between the devices.

    Without it, shard_map sums the gradient of a replicated parameter over the devices,
    and no device has its own direction.
    """
    # The index of the device varies by type. Times 0 it changes the type, not the
    # value.
    nothing = 0 * jax.lax.axis_index(axis)

    def leaf(x: jax.Array) -> jax.Array:
        return jnp.where(nothing == 0, x, jnp.zeros_like(x))

    return jax.tree.map(leaf, values)


def _mean_over(axis: str, values: PyTree, *, total: bool = False) -> PyTree:
    """Floats: the mean. Others: the maximum, or, with `total`, the sum of integers."""

    def leaf(x: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jax.lax.pmean(x, axis)
        if total and jnp.issubdtype(x.dtype, jnp.integer):
            return jax.lax.psum(x, axis)
        return jax.lax.pmax(x.astype(jnp.int32), axis).astype(x.dtype)

    return jax.tree.map(leaf, values)
