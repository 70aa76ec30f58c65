"""What `sparsify` asks of a sparse-training method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Topology(NamedTuple):
    """Which weights are live, and what the method needs to know to change that.

    Attributes:
      masks: Mask tree.
      memory: Pytree of arrays of the method's own: exact integer targets, thresholds.
    """

    masks: Any
    memory: Any = ()


class SparseMethod(NamedTuple):
    """A sparse-training method: three pure functions, and what a report asks of it.

    Attributes:
      init: `params -> Topology`, the first one.
      fires: `step -> bool scalar`, whether the topology changes in this optimizer step
        (int32, from 0); None, as `change`, where it never does.
      change: `(topology, params, grads, step) -> Topology`. `grads` is the gradient
        with respect to every weight, pruned ones too.
      straight_through: None: pruned weights are zero. A number: pruned weights are
        trained by the gradient at the masked ones (STE), plus this number times
        themselves (SR-STE), and the topology is chosen anew after the step.
      dense_gradient_every: Steps between two uses of the gradient of pruned weights;
        None where the method never looks at it.
      mean_pruned: The share of the finally pruned weights that is pruned, averaged over
        the training: 1 where the sparsity is that of the end all along.
    """

    init: Callable[[Any], Topology]
    fires: Callable[[jax.Array], jax.Array] | None = None
    change: Callable[[Topology, Any, Any, jax.Array], Topology] | None = None
    straight_through: float | None = None
    dense_gradient_every: int | None = None
    mean_pruned: float = 1.0
