"""What `sparsify` asks of a sparse-training method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class SparseMethod(NamedTuple):
    """A sparse-training method: three pure functions.

    Attributes:
      init: `params -> masks`, the first mask tree.
      fires: `step -> bool scalar`, whether the topology changes before this optimizer
        step (int32, from 0); None, as `change`, where it never does.
      change: `(masks, params, grads, step) -> masks`, the new topology. `grads` is the
        gradient with respect to every weight, pruned ones too. Every leaf keeps its
        count of live weights.
    """

    init: Callable[[Any], Any]
    fires: Callable[[jax.Array], jax.Array] | None = None
    change: Callable[[Any, Any, Any, jax.Array], Any] | None = None
