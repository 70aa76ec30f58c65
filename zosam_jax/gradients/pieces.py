"""What the pieces of a sharpness-aware method hand to each other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax._types import Estimate
from zosam_jax.estimators import Loss, backprop


class Point(NamedTuple):
    """Where a gradient is wanted, and the losses to find it by.

    Attributes:
      params: w, zero off the masks.
      step: Optimizer step, for schedules. int32.
      masks: Mask tree of the live coordinates, or None for all: what is pruned has no
        part in any norm or inner product.
      support: Mask tree of those among them that may be perturbed, or None for all.
      ascent: The loss that a method looks uphill by.
      descent: The loss whose gradient it returns.
      losses: `(params, which pass, examples) -> (losses [n], aux)`, or None.
      examples: Indices of the examples that this point has; None for all.
      random: The key of the directions, as a function so that a method without any
        needs none.
      mean: Mean over the devices, where they share one ascent.
      pool: Mean over the devices in any case: of statistics, and what they decide.
      vary: Gives a value the type of one that differs between devices, where each has
        its own part of the batch: both branches of a `lax.cond` must be of one type.
    """

    params: Any
    step: jax.Array
    masks: Any | None
    support: Any | None
    ascent: Loss
    descent: Loss
    losses: Callable[..., Any] | None
    examples: jax.Array | None
    random: Callable[[], jax.Array]
    mean: Callable[[Any], Any]
    pool: Callable[[Any], Any]
    vary: Callable[[Any], Any]


class Look(NamedTuple):
    """What was seen uphill.

    Attributes:
      direction: The ascent direction over all weights, before any restriction.
      memory: What the ascent carries on.
      clean: The loss and exact gradient at w, from a backward pass; None without one.
      value: The loss at w. None where the loss was not evaluated.
      aux: Of the first pass made.
      forward: Forward evaluations, in batches.
      backward: Backward passes beside that of `clean`, likewise.
      seen: False where value and aux were not evaluated in this step.
      factor: Multiplies the perturbation, entry by entry; None for 1.
      losses: Those of the examples at w, where the ascent made them.
    """

    direction: Any
    memory: Any = ()
    clean: Estimate | None = None
    value: jax.Array | None = None
    aux: Any = None
    forward: Any = 0.0
    backward: Any = 0.0
    seen: Any = True
    factor: Any | None = None
    losses: jax.Array | None = None


class Ascent(NamedTuple):
    """Where a method looks uphill.

    Attributes:
      look: `(point, memory) -> Look`.
      init: `params -> memory`.
      learn: `(point, memory, gradient at the perturbed point) -> memory`.
    """

    look: Callable[[Point, Any], Look]
    init: Callable[[Any], Any] = lambda _: ()
    learn: Callable[[Point, Any, Any], Any] = lambda _, memory, __: memory


Geometry = Callable[[Any, Any, Any | None], tuple[Any, jax.Array]]
"""`(direction, params, support) -> (unit, norm)`: the perturbation is `rho * unit`."""

Descent = Callable[[Point, Look, Any], Estimate]
"""`(point, look, perturbed params) -> Estimate`: the second pass."""


class Combination(NamedTuple):
    """What becomes of the gradient at the perturbed point.

    Attributes:
      blend: `(point, look, gradient, memory) -> (gradient, memory)`.
      init: `params -> memory`.
      due: `(point, look, memory) -> (bool scalar, memory)`: whether this step has a
        second pass; None where every step has.
      reuse: `(point, look, memory) -> gradient` of a step without one.
    """

    blend: Callable[[Point, Look, Any, Any], tuple[Any, Any]]
    init: Callable[[Any], Any] = lambda _: ()
    due: Callable[[Point, Look, Any], tuple[jax.Array, Any]] | None = None
    reuse: Callable[[Point, Look, Any], Any] | None = None


def exact(loss: Loss, params: Any) -> Estimate:
    """One forward and one backward pass."""
    return backprop(loss, params, has_aux=True)


def zeros(params: Any) -> Any:
    """Zeros in the shapes of the parameters, float32: the memory of a mean."""
    return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), params)


def wide(x: Any) -> Any:
    """The tree in float32."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), x)


def average(old: Any, decay: Any, new: Any) -> Any:
    """`decay * old + (1 - decay) * new` in the dtypes of `old`."""
    return tree.mix(decay, old, 1 - decay, new)
