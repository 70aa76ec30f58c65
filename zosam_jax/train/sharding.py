"""How the arrays of a run lie on its devices.

The mesh has two axes, "data" and "fsdp". A batch is split over both, so every device
has examples of its own. The state (parameters, masks, moments, averages, and what a
gradient remembers) is split over "fsdp" and repeated along "data": fully sharded data
parallelism, as in ZeRO-3 (arXiv:1910.02054) and PyTorch's FSDP (arXiv:2304.11277). With
"fsdp" of size 1, every device holds the whole state.

A leaf is split along the longest axis that the devices divide, so a parameter, its mask
and its moments are cut alike. Small leaves are whole everywhere. All arithmetic on the
parameters (directions, perturbations, scores, updates) is done on the parts. A pass of
the network gathers the parameters that it multiplies with, and its gradient leaves in
parts.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zosam_jax._types import PyTree, Shape

AXES = ("data", "fsdp")
SMALL = 2**12
"""A leaf with fewer entries is not split: to gather it costs more than to hold it."""


def mesh(fsdp: int = 1, *, of_all: bool) -> Mesh:
    """Returns the devices along two axes; those of a process are neighbours.

    >>> dict(mesh(of_all=True).shape)
    {'data': 1, 'fsdp': 1}

    Args:
      fsdp: Devices that share one copy of the state; -1: all of them.
      of_all: Whether to take the devices of all processes, or of this one.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if of_all else jax.local_devices()
    count = len(devices) if fsdp == -1 else fsdp
    if len(devices) % count:
        raise ValueError(
            f"fsdp={fsdp} must divide the number of devices, {len(devices)}. Say "
            "--fsdp -1 for all of them."
        )
    shape, types = (len(devices) // count, count), (AxisType.Auto,) * len(AXES)
    if jax.process_count() == 1 or not of_all:
        return jax.make_mesh(shape, AXES, types, devices=devices)
    # A host reads neighbouring rows of a batch.
    ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(ordered).reshape(shape), AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def of_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def of_state(mesh: Mesh, state: PyTree) -> PyTree:
    """Returns the sharding of each leaf of a state, or of a part of it.

    Args:
      mesh: The devices.
      state: Pytree of arrays, or of their shapes and types.
    """
    count = mesh.shape["fsdp"]
    return jax.tree.map(lambda x: NamedSharding(mesh, _spec(x.shape, count)), state)


def _spec(shape: Shape, count: int) -> PartitionSpec:
    """Returns how so many devices share an array.

    >>> list(_spec((3, 3, 64, 128), 4))
    [None, None, None, 'fsdp']
    """
    fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
    if count == 1 or math.prod(shape) < SMALL or not fitting:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, "fsdp")


def gathered(mesh: Mesh, params: PyTree) -> PyTree:
    """Returns parameters that are whole on every device, for a pass of the network.

    The constraints hold for cotangents too, in reverse: a gradient is summed over the
    devices, and each keeps its part.

    Args:
      mesh: The devices.
      params: Parameters in parts.
    """
    if mesh.shape["fsdp"] == 1:
        return params
    parts = jax.lax.with_sharding_constraint(params, of_state(mesh, params))
    return jax.lax.with_sharding_constraint(parts, replicated(mesh))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """Returns arrays that every process has whole, laid out on the devices.

    Args:
      tree: NumPy arrays, the same in all processes.
      shardings: The sharding of all of them, or a tree with that of each.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    # `device_put` would send every array to all processes to compare them.
    def leaf(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

    return jax.tree.map(leaf, tree, jax.tree.broadcast(shardings, tree))


def shares(mesh: Mesh, state: PyTree) -> str | None:
    """Returns a line about the part of a state that each device holds.

    Args:
      mesh: The devices.
      state: Pytree of arrays, or of their shapes and types.

    Returns:
      None if every device holds all.
    """
    count = mesh.shape["fsdp"]
    if count == 1:
        return None
    leaves, held, whole = jax.tree.leaves(state), 0.0, 0.0
    for x, to in zip(leaves, of_state(mesh, leaves), strict=True):
        whole += math.prod(x.shape) * x.dtype.itemsize / 2**20
        held += math.prod(to.shard_shape(x.shape)) * x.dtype.itemsize / 2**20
    return (
        f"{count} devices share a copy of the state: each holds {held:.4g} of "
        f"{whole:.4g} MiB"
    )
