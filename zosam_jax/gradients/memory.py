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
    """Returns `decay * old + (1 - decay) * new` in the dtypes of `old`."""
    return tree.mix(decay, old, 1 - decay, new)
