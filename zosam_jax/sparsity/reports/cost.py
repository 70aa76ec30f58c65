"""The cost of a network in four numbers, one of them measured."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax import _check
from zosam_jax._types import Params
from zosam_jax.sparsity.reports.flops import products
from zosam_jax.sparsity.reports.table import short


class Cost(NamedTuple):
    """What a network costs. `print` shows one line.

    Attributes:
      parameters: Number of parameters, pruned ones too.
      macs: Multiply-adds of one call of its forward pass.
      bytes: Size of the parameters in memory.
      milliseconds: Measured time of one call, compiled: the median of several.
    """

    parameters: int
    macs: int
    bytes: int
    milliseconds: float

    def __str__(self) -> str:
        """Returns the line."""
        size = f"{short(self.bytes)}B" if self.bytes >= 1000 else f"{self.bytes} B"
        return (
            f"{self.parameters:,} parameters, {short(self.macs)} MACs, {size}, "
            f"{self.milliseconds:.3g} ms"
        )


def cost(
    forward: Callable[[Params], object], params: Params, *, repeats: int = 20
) -> Cost:
    """Returns the cost of a network, to be compared before and after `compact`.

    Masks do not count: a pruned weight is multiplied like any other. The time is that
    of this machine at this moment. Measure both networks one after the other, more than
    once.

    Args:
      forward: `params -> outputs`, on examples of your choice. It is compiled, and run
        `repeats` times after two runs that do not count.
      params: Pytree of arrays.
      repeats: Number of measured runs.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> found = zs.sparsity.cost(lambda w: jnp.ones((5, 4)) @ w, jnp.ones((4, 3)))
      >>> found.parameters, found.macs, found.bytes
      (12, 60, 48)
      >>> str(found).split(", ")[:2]
      ['12 parameters', '60 MACs']
    """
    _check.whole("repeats", repeats)
    counted = products(forward, params)
    leaves = [np.asarray(x) for x in jax.tree.leaves(params)]
    run = jax.jit(forward)
    params = jax.device_put(params)
    times = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(run(params))
        times.append(1000 * (time.perf_counter() - began))
    return Cost(
        sum(x.size for x in leaves),
        sum(counted.macs) + counted.other,
        sum(x.nbytes for x in leaves),
        statistics.median(times[2:]),
    )
