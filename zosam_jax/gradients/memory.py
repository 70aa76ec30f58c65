"""Running means of gradients in float32, which several methods keep."""

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Params, PyTree, Scalar


def zeros(params: Params) -> PyTree:
    """Returns zeros in the shapes of the parameters, float32."""
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), params)


def wide(values: PyTree) -> PyTree:
    """Returns the tree in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), values)


def average(old: PyTree, decay: Scalar, new: PyTree) -> PyTree:
    """Returns `decay * old + (1 - decay) * new` in the dtypes of `old`.

    Args:
      old: Pytree of float arrays, the running mean.
      decay: Weight of `old`, in [0, 1].
      new: Tree like `old`.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.gradients import memory
      >>> print(memory.average({"w": jnp.ones(2)}, 0.75, {"w": jnp.zeros(2)})["w"])
      [0.75 0.75]
    """
    return tree.mix(decay, old, 1 - decay, new)
