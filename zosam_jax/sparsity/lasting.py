"""What no later step of a method can bring back, so that it can be cut out."""

from typing import NamedTuple

import jax
import numpy as np

from zosam_jax._types import Masks, Params
from zosam_jax.sparsity.method import SparseMethod, Topology


class Lasting(NamedTuple):
    """What is known of all later masks.

    Attributes:
      masks: Mask tree of the weights that are live or may become so.
      is_fixed: Whether the masks do not change any more.
    """

    masks: Masks
    is_fixed: bool


def last_change(method: SparseMethod, total_steps: int) -> int | None:
    """Returns the last step that changes the masks; None if none does.

    Args:
      method: The sparse method.
      total_steps: Optimizer steps of the whole training.

    >>> from zosam_jax.sparsity.methods.rigl import rigl
    >>> last_change(rigl(0.9, 1000, interval=100, stop_fraction=0.75), 1000)
    700
    """
    if method.fires is None:
        return None
    fires = jax.jit(jax.vmap(method.fires))
    for stop in range(total_steps, 0, -4096):
        steps = np.arange(max(0, stop - 4096), stop, dtype=np.int32)
        found = np.flatnonzero(fires(steps))
        if len(found):
            return int(steps[found[-1]])
    return None


def lasting(
    method: SparseMethod, topology: Topology, params: Params, *, is_fixed: bool
) -> Lasting | None:
    """Returns what is known of all later masks; None if any weight may come back.

    A straight-through method trains pruned weights too, so that it has none to spare.

    Args:
      method: The sparse method.
      topology: Its topology.
      params: The parameters, or their shapes.
      is_fixed: Whether the last change is over.

    >>> from zosam_jax.sparsity.methods.static import static
    >>> method, params = static(0.5, "magnitude"), {"w": np.eye(2, dtype=np.float32)}
    >>> print(lasting(method, method.init(params), params, is_fixed=True).masks["w"])
    [[ True False]
     [False  True]]
    """
    if method.straight_through:
        return None
    if is_fixed:
        return Lasting(topology.masks, True)
    if method.final_units is None:
        return None
    return Lasting(method.final_units.masks(topology, params), False)


def after_cut(method: SparseMethod, whole: Params, *, is_fixed: bool) -> SparseMethod:
    """Returns the method for a network whose units without a future were cut out.

    Its `init` is that of the whole network: a training goes on from a state.

    Args:
      method: The sparse method.
      whole: The parameters that the training began with, or their shapes.
      is_fixed: Whether the masks do not change any more.
    """
    if is_fixed:
        return method._replace(fires=None, change=None, final_units=None)
    assert method.final_units is not None
    return method.final_units.of(whole)


def cut_topology(method: SparseMethod, topology: Topology, params: Params) -> Topology:
    """Returns a topology whose masks were cut already, with its memory cut too.

    Args:
      method: The sparse method, before the cut or after.
      topology: Its topology, or shapes.
      params: The parameters of the smaller network, or their shapes.
    """
    if method.final_units is None:
        return topology
    return topology._replace(memory=method.final_units.cut(topology.memory, params))
