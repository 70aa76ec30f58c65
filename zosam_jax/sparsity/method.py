"""The interface between `sparsify` and a sparse-training method."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from zosam_jax._types import Grads, Masks, Memory, Params, StackRule


class Topology(NamedTuple):
    """The live weights, and what the method needs to change them.

    Attributes:
      masks: Mask tree.
      memory: Pytree of arrays that the method carries along: exact integer targets,
        thresholds.
    """

    masks: Masks
    memory: Memory = ()


class FinalUnits(NamedTuple):
    """The units that a method removes for good while its masks still change.

    A network without them is trained on by `of`. Shapes of parameters are enough.

    Attributes:
      masks: `(topology, params) -> masks`, all weights that are live or may become so.
      cut: `(memory, params) -> memory`, the method's memory for a network of which
        these units are cut. `params` are those of the smaller network.
      of: `params -> method`, the method for such a network. `params` are those that
        the training began with: all numbers follow from them.
    """

    masks: Callable[[Topology, Params], Masks]
    cut: Callable[[Memory, Params], Memory]
    of: "Callable[[Params], SparseMethod]"


class SparseMethod(NamedTuple):
    """A sparse-training method: pure functions, and facts for a report.

    Attributes:
      init: `params -> Topology`, the first topology.
      fires: `step -> bool scalar`, whether the topology changes in this optimizer step
        (int32, from 0). None, like `change`, if it never does.
      change: `(topology, params, grads, step) -> Topology`. `grads` is the gradient
        with respect to every weight, including the pruned ones.
      after_step: Whether the topology changes after the optimizer's step, by the
        weights that it left, and not before it.
      penalty: `(topology, params, step) -> tree`, what is added to the gradient; None
        for nothing.
      straight_through: False: pruned weights are zero. True: they are trained by the
        gradient at the masked weights (STE).
      keeps_pruned: Whether pruned weights keep their values, under the mask, and come
        back with them. They do not move.
      dense_gradient_every: Steps between two uses of the gradient of pruned weights;
        None if the method never uses it.
      mean_pruned: The number of pruned weights, divided by the final number and
        averaged over the training. 1 if the sparsity is constant.
      begin: `(params, masks) -> Topology`, the first topology with given masks, NumPy
        arrays perhaps; None if the method has to choose its first masks itself. See
        `start_from`.
      final_units: The units that are gone for good before the last change; None if any
        unit may come back until then.
      name: The constructor's name, for the record of a run.
      stacked: Leaves that are stacks of layers, as in `dynamic`.
      call: The call that made it, for `print`; "" for a method of your own.
    """

    init: Callable[[Params], Topology]
    fires: Callable[[jax.Array], jax.Array] | None = None
    change: Callable[[Topology, Params, Grads, jax.Array], Topology] | None = None
    after_step: bool = False
    penalty: Callable[[Topology, Params, jax.Array], Grads] | None = None
    straight_through: bool = False
    keeps_pruned: bool = False
    dense_gradient_every: int | None = None
    mean_pruned: float = 1.0
    begin: Callable[[Params, Masks], Topology] | None = None
    final_units: FinalUnits | None = None
    name: str = ""
    stacked: StackRule = ()
    call: str = ""

    @property
    def pruned_in_params(self) -> bool:
        """Whether pruned weights in `params` are not zero; then they are masked."""
        return self.straight_through or self.keeps_pruned

    def called_as(self, call: str) -> "SparseMethod":
        """Returns the method with another call, for `print`."""
        return self._replace(call=call)

    def __repr__(self) -> str:
        """Returns the call that made it, without options that equal their defaults."""
        if self.call:
            return self.call
        masks = "fixed masks" if self.change is None else "changing masks"
        return f"<{self.name or 'unnamed'}: sparse method with {masks}>"
