"""The forward pass of one example, and what it costs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import Params, PyTree
from zosam_jax.sparsity.reports.flops import products
from zosam_jax.train.batch import normalized
from zosam_jax.train.experiment import Experiment, ModelState


def of_example(
    experiment: Experiment, model_state: ModelState
) -> Callable[[Params], PyTree]:
    """Returns `params -> outputs` for one example.

    Args:
      experiment: The experiment, with the model.
      model_state: Its other collections.
    """
    example, _ = experiment.example

    def forward(params: Params) -> PyTree:
        raw = jnp.zeros((1, *example.shape), example.dtype)
        variables = {"params": params, **model_state}
        inputs = normalized(experiment, raw)
        return experiment.model.apply(variables, inputs, train=False)

    return forward


def macs(experiment: Experiment) -> int:
    """Returns the multiply-adds of a forward pass of one example, pruned ones too."""
    params, state = experiment.shapes
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    counted = products(of_example(experiment, state), params)
    return sum(counted.macs) + counted.other
