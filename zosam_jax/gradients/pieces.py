r"""The pieces of a sharpness-aware gradient, and the row that they make up.

.. math::
  \epsilon = \rho \cdot \text{geometry}(\text{ascent direction}), \qquad
  g = \text{combination}(\nabla L(w), \text{descent}(w + \epsilon))

An `Ascent` computes the ascent direction. It returns a look: the direction, and other
results of its passes. A `Geometry` scales the direction, a `Descent` takes the gradient
at the perturbed point, and a `Combination` may combine it with the results in the look.
Each piece states what it gives or needs; a `Row` of pieces that do not fit raises.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from zosam_jax import tree
from zosam_jax._types import (
    Aux,
    Estimate,
    Grads,
    Key,
    Masks,
    Memory,
    Params,
    Scalar,
)
from zosam_jax.estimators.losses import Loss, backprop
from zosam_jax.gradients.devices import Devices

Examples = jax.Array | np.ndarray
"""Indices of examples of a batch, `[n]`; a NumPy array if they are known beforehand."""


class Losses(NamedTuple):
    """The losses of one step.

    Attributes:
      ascent: `params -> (loss, aux)`, the loss of the ascent step.
      descent: `params -> (loss, aux)`, the loss whose gradient is returned. The same
        object as `ascent` if one function serves both.
      each: `(params, "ascent" or "descent", examples) -> (losses, aux)`, the losses of
        single examples, `[n]`. Only for pieces with `by_example=True`.
      ascent_parts: `k -> k losses` of the ascent, `params -> (loss, aux)`, on disjoint
        parts of the examples. Only for pieces with `by_example=True`.
      examples: Indices of the examples in this part of the batch, `[n]`; None for all.
      ascent_share: Fraction of these examples that `ascent` sees.
    """

    ascent: Loss
    descent: Loss
    each: Callable[[Params, str, Examples | None], tuple[jax.Array, Aux]]
    ascent_parts: Callable[[int], list[Loss]]
    examples: Examples | None = None
    ascent_share: float = 1.0


class Point(NamedTuple):
    """The point at which to take a gradient.

    Attributes:
      params: w, zero off the masks.
      losses: The losses of this step.
      optimizer_step: Returns the optimizer step; `step` calls it. It is a function,
        since a method that reads no step needs none.
      masks: Mask tree of the live weights, or None for all. Norms and
        inner products leave out pruned weights.
      support: Mask tree of the live weights that may be perturbed, or None for all.
      random: Returns the key of this step. It is a function, since a method without
        random draws needs no key.
      devices: How values are shared between devices.
    """

    params: Params
    losses: Losses
    optimizer_step: Callable[[], jax.Array]
    masks: Masks | None
    support: Masks | None
    random: Callable[[], Key]
    devices: Devices = Devices()

    @property
    def step(self) -> jax.Array:
        """Optimizer step, for schedules. int32 scalar.

        Raises:
          ValueError: The pure form was called without `step=`.
        """
        return self.optimizer_step()

    @property
    def is_plain(self) -> bool:
        """Whether one loss serves both passes, on one device, on all live weights."""
        one_loss = self.losses.ascent is self.losses.descent
        return one_loss and self.support is self.masks and self.devices.axis is None


@dataclasses.dataclass(frozen=True)
class Look:
    """The result of an ascent that gives only a direction.

    Attributes:
      direction: The ascent direction over all weights; pruned ones are masked later.
      memory: What the ascent carries to the next step.
      factor: Multiplies the perturbation, entry by entry; None for 1.
      backward: Backward passes that `estimate.info` does not count, in batches.
    """

    direction: Params
    memory: Memory = dataclasses.field(default=(), kw_only=True)
    factor: Params | None = dataclasses.field(default=None, kw_only=True)
    backward: Scalar = dataclasses.field(default=0.0, kw_only=True)
    gives: ClassVar[str] = "a direction alone"


@dataclasses.dataclass(frozen=True)
class OccasionalLook(Look):
    """A look with the loss at w in some steps only.

    Attributes:
      estimate: `value` is the loss at w if `due`; `info` counts the passes.
      due: Whether this step evaluated the loss, bool scalar.
    """

    estimate: Estimate
    due: jax.Array
    gives: ClassVar[str] = "the loss at w in some steps"


@dataclasses.dataclass(frozen=True)
class LossLook(Look):
    """A look with the loss at w in every step.

    Attributes:
      estimate: `value` is the loss at w, `aux` comes from the first pass, and `info`
        counts the passes.
    """

    estimate: Estimate
    gives: ClassVar[str] = "the loss at w"


@dataclasses.dataclass(frozen=True)
class GradientLook(LossLook):
    """A look with a backward pass at w: `estimate.grad` is the exact gradient there."""

    gives: ClassVar[str] = "the gradient at w"


@dataclasses.dataclass(frozen=True)
class ExampleLook(GradientLook):
    """A look that also gives the losses of the single examples at w.

    Attributes:
      losses: `[n]`.
    """

    losses: jax.Array
    gives: ClassVar[str] = "the gradient and the losses of the examples at w"


L = TypeVar("L", bound=Look)
L_co = TypeVar("L_co", bound=Look, covariant=True)
L_contra = TypeVar("L_contra", bound=Look, contravariant=True)


def _no_memory(params: Params) -> Memory:
    del params
    return ()


def _learn_nothing(point: Point, memory: Memory, grad: Grads) -> Memory:
    del point, grad
    return memory


@dataclasses.dataclass(frozen=True)
class Ascent(Generic[L_co]):
    """How a method computes its ascent direction.

    Attributes:
      look: `(point, memory) -> look`.
      gives: The class of its looks: `Look`, `OccasionalLook`, `LossLook`,
        `GradientLook` or `ExampleLook`.
      init: `params -> memory` before the first step.
      learn: `(point, memory, gradient at the perturbed point) -> memory`.
      steps: Ascent steps, of `rho / steps` each. Each calls `look`.
      by_example: Whether it calls `point.losses.each`.
      one_part: Why it cannot use parts of a batch (`microbatches`); "" if it can.
    """

    look: Callable[[Point, Memory], L_co]
    gives: type[L_co]
    init: Callable[[Params], Memory] = _no_memory
    learn: Callable[[Point, Memory, Grads], Memory] = _learn_nothing
    steps: int = 1
    by_example: bool = False
    one_part: str = ""


def _l2(
    direction: Params, params: Params, support: Masks | None
) -> tuple[Params, jax.Array]:
    del params, support
    return tree.normalize(direction)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """From an ascent direction to a perturbation. `Geometry()` is the L2 ball.

    Attributes:
      unit: `(direction, params, support) -> (unit, norm)`. The direction is zero off
        the support. The perturbation is `rho * unit`; a norm of 0, or one that is not
        finite, means that there is no direction.
      normalizes: Whether `unit` has length 1 in this geometry, so that rho is a radius.
    """

    unit: Callable[[Params, Params, Masks | None], tuple[Params, jax.Array]] = _l2
    normalizes: bool = True


def exact_gradient(loss: Loss, params: Params) -> Estimate:
    """Returns the estimate of one forward and one backward pass at `params`."""
    return backprop(loss, params)


def _backprop(point: Point, look: Look, params: Params) -> Estimate:
    del look
    return exact_gradient(point.losses.descent, params)


@dataclasses.dataclass(frozen=True)
class Descent(Generic[L_contra]):
    """The pass at the perturbed point. `Descent()` is one backward pass.

    Attributes:
      descend: `(point, look, perturbed params) -> Estimate`.
      needs: The class of looks that it reads.
      dense: Whether its gradient is also computed at pruned weights, as growth by the
        gradient needs.
      by_example: Whether it calls `point.losses.each`.
      compress: `(point, perturbed params) -> mask tree` of the weights that the pass
        sees; the others are 0 in it. None: all.
      compressed_gradient: Whether that mask multiplies the gradient too.
    """

    descend: Callable[[Point, L_contra, Params], Estimate] = _backprop
    needs: type[Look] = Look
    dense: bool = True
    by_example: bool = False
    compress: Callable[[Point, Params], Masks] | None = None
    compressed_gradient: bool = False


def _unchanged(
    point: Point, look: Look, grad: Grads, memory: Memory
) -> tuple[Grads, Memory]:
    del point, look
    return grad, memory


@dataclasses.dataclass(frozen=True)
class Combination(Generic[L_contra]):
    """Changes the gradient at the perturbed point. The default returns it unchanged.

    Attributes:
      blend: `(point, look, gradient, memory) -> (gradient, memory)`.
      needs: The class of looks that it reads.
      init: `params -> memory` before the first step.
      same_loss: Whether the look must use `value_fn`, the loss of the descent.
      decoupled: Whether it returns a `Decoupled`.
    """

    blend: Callable[[Point, L_contra, Grads, Memory], tuple[Grads, Memory]] = _unchanged
    needs: type[Look] = Look
    init: Callable[[Params], Memory] = _no_memory
    same_loss: bool = True
    decoupled: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intermittent(Combination[GradientLook]):
    """A combination that leaves out the second pass in some steps.

    Attributes:
      due: `(point, look, memory) -> (bool scalar, memory)`: whether this step has a
        second pass.
      reuse: `(point, look, memory) -> gradient` of a step without a second pass.
    """

    due: Callable[[Point, GradientLook, Memory], tuple[jax.Array, Memory]]
    reuse: Callable[[Point, GradientLook, Memory], Grads]
    needs: type[Look] = GradientLook


WrittenOut = Callable[[Point, Scalar, str, str], Estimate]
"""`(point, radius, norm_over, aux_from) -> Estimate`."""


@dataclasses.dataclass(frozen=True)
class Row(Generic[L]):
    """A sharpness-aware gradient: `sharpness_aware` makes a transformation of it.

    Attributes:
      ascent: The ascent direction.
      geometry: From the direction to the perturbation.
      descent: The pass at the perturbed point.
      combination: Changes its gradient.
      written_out: The same gradient written out by hand, used if `point.is_plain`.
        None: the pieces are used.

    Raises:
      TypeError: The ascent does not give what the descent or the combination needs.
    """

    ascent: Ascent[L]
    geometry: Geometry = dataclasses.field(default_factory=Geometry)
    descent: Descent[L] = dataclasses.field(default_factory=Descent)
    combination: Combination[L] = dataclasses.field(default_factory=Combination)
    written_out: WrittenOut | None = None

    def __post_init__(self):
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"Row({name}=...) must be of zs.gradients.{kind.__name__}; got "
                    f"{type(getattr(self, name)).__name__}."
                )
        readers = {"descent": self.descent, "combination": self.combination}
        for name, piece in readers.items():
            if not issubclass(self.ascent.gives, piece.needs):
                raise TypeError(
                    f"Row: its {name} needs {piece.needs.gives} "
                    f"({piece.needs.__name__}), and its ascent gives "
                    f"{self.ascent.gives.gives} ({self.ascent.gives.__name__})."
                )
        if self.ascent.steps > 1 and not issubclass(self.ascent.gives, GradientLook):
            raise TypeError(
                f"Row: an ascent of {self.ascent.steps} steps must give "
                f"{GradientLook.gives}, and it gives {self.ascent.gives.gives}."
            )

    def init(self, params: Params) -> Memory:
        """Returns the memory before the first step."""
        return self.ascent.init(params), self.combination.init(params)

    @property
    def by_example(self) -> bool:
        """Whether a piece needs the losses of single examples."""
        return self.ascent.by_example or self.descent.by_example

    @property
    def looks_at_every_step(self) -> bool:
        """Whether every step evaluates the loss before the perturbation."""
        return issubclass(self.ascent.gives, LossLook)

    @property
    def aux_from(self) -> str:
        """The default pass for aux: the first if it is at w, else the last."""
        return "ascent" if issubclass(self.ascent.gives, GradientLook) else "descent"

    @property
    def takes_another_loss(self) -> bool:
        """Whether the ascent step may use another loss than the descent."""
        kept = self.combination.needs is not Look and self.combination.same_loss
        return not kept and self.descent.needs is Look

    @property
    def direction_only(self) -> bool:
        """Whether the ascent evaluates the loss only to find a direction."""
        for_direction = self.combination.needs is Look and self.descent.needs is Look
        return for_direction and self.ascent.gives is not Look


_KINDS = {
    "ascent": Ascent,
    "geometry": Geometry,
    "descent": Descent,
    "combination": Combination,
}
