r"""Chase: unstructured dynamic sparsity under which channels are removed for good.

The mask of a kernel is the product of a mask of units, which only shrinks, and of a
mask of weights, which is pruned and grown within the units that are left.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import _check
from zosam_jax._options import checks_arguments
from zosam_jax._types import Grads, Masks, Params, Shape, StackRule, Units
from zosam_jax.selection import select, select_across, select_globally
from zosam_jax.sparsity import budgets, schedules
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.initial_masks import MaskBudget, at_random
from zosam_jax.sparsity.leaves import (
    LeafRule,
    SparseLeaves,
    live_counts,
    warn_of_biases,
)
from zosam_jax.sparsity.mask_trees import both
from zosam_jax.sparsity.method import FinalUnits, SparseMethod, Topology
from zosam_jax.sparsity.prune_and_grow import Memory
from zosam_jax.sparsity.unit_layers import (
    Side,
    UnitLayer,
    UnitMasks,
    by_unit,
    check_groups,
    layers_of_units,
)


@checks_arguments
def chase(
    sparsity: float,
    total_steps: int,
    groups: Mapping[str, Units],
    *,
    unit_sparsity: float = 0.4,
    unit_score: str = "umm",
    unit_floor: float = 0.2,
    unit_interval: int | None = None,
    unit_stop_fraction: float = 0.8125,
    interval: int | None = None,
    extra: float = 0.05,
    extra_fraction: float = 0.8125,
    drop_fraction: float | schedules.Fraction | None = None,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    stacked: StackRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""Chase (arXiv:2305.19454): dynamic sparsity that removes channels for good.

    Of the N weights of the sparse leaves, :math:`n = (1 - s) N`, rounded, are live at
    first, at random under the budget. A change of the weights at step t ranks all
    layers together:

    * before step :math:`T_e` = `extra_fraction * total_steps` it keeps the n largest
      |w| and grows the largest :math:`|\partial L / \partial w|`, up to

      .. math:: n + \frac{\epsilon}{2} \left(1 + \cos \frac{\pi t}{T_e}\right) N

      weights, rounded: a soft budget;
    * from then on it drops the :math:`\lfloor \alpha_t n \rfloor` smallest of them and
      grows up to n.

    Each sparse leaf keeps at least its largest live weight. Grown weights start at
    zero, and a weight that was just dropped may grow at once.

    Besides, units are removed: channels of convolutions, also hidden units and heads.
    Of the U units of all groups,

    .. math:: c_t = U s_u \left(1 - \left(1 - \frac{t}{T_u}\right)^3\right)

    rounded, are gone after a removal at step t, where :math:`T_u` is the step of the
    last one. Those of the lowest score go, of all layers together. A layer of C units
    keeps :math:`\lfloor C (1 - s_u) \beta \rfloor` of them, and at least one; the other
    layers give what it cannot. The score is, by `unit_score`,

    * "umm": the mean |w| over the live incoming weights of the unit, 0 without one;
    * "mean": the mean over all of them, as in the scripts of the authors.

    The mask of a kernel is the product of both. The incoming and outgoing weights of a
    unit that is gone never grow again, and the others become denser: their number stays
    n, unless less weights than that are left. A leaf that `dense` names loses its units
    too. `state.memory.rule` has the live units of each layer, and `compact` cuts the
    others out exactly.

    It differs from the authors' code in this: counts are exact, and ties go to the
    lower index, where that code draws with a generator of its own; the last removal
    reaches :math:`s_u` exactly; the moments of weights that drop start anew in any
    optimizer. The authors keep the best of the last epochs by a validation set and then
    estimate the statistics of batch normalization anew, as
    `zosam_jax.models.reestimate_batch_stats` does.

    Args:
      sparsity: s, the fraction of pruned weights over the sparse leaves together, in
        [0, 1).
      total_steps: Optimizer steps of the whole training.
      groups: Kinds of units by name; for the library's models,
        `zosam_jax.models.unit_groups(name)`. Each has an incoming kernel.
      unit_sparsity: :math:`s_u`, the fraction of units that are removed, in [0, 1). The
        paper takes 0.3 and 0.4 for ImageNet. 0 is Chase without its channels.
      unit_score: "umm" or "mean".
      unit_floor: :math:`\beta`, in [0, 1]; 0.2 or 0.5 in the scripts of the authors.
      unit_interval: Steps between two removals. None: as `interval`. The first is half
        an `interval` before step `unit_interval`.
      unit_stop_fraction: The last removal is not after step `unit_stop_fraction *
        total_steps`; 130 of 160 epochs. If there is time for one only, it removes all.
      interval: Steps between two changes of the weights, the first at step `interval`.
        None: `total_steps // 72`, 1,000 steps of the paper's 160 epochs of CIFAR.
      extra: :math:`\epsilon`.
      extra_fraction: See above; 130 of 160 epochs.
      drop_fraction: :math:`\alpha`, as in `dynamic`. None: from 0.5 to 0.005 by a
        cosine over the whole training.
      budget: Sparsity distribution of the first masks, as in `dynamic`.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`. Each layer has units
        of its own; the leaves of a group are stacked alike.
      seed: As in `dynamic`, of the first masks.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met, a
        group that matches no leaf or has no incoming kernel, or fewer units to keep
        than layers.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"in": jnp.ones((6, 8)), "out": jnp.ones((8, 4))}
      >>> hidden = zs.sparsity.Units("out", incoming=("in",))
      >>> method = zs.sparsity.chase(0.5, 1000, {"hidden": hidden}, unit_sparsity=0.25)
      >>> topology = method.change(method.init(params), params, params, 819)
      >>> print(topology.memory.rule[0].sum(), topology.memory.live.sum())
      6 40
    """
    interval, unit_interval = _intervals(total_steps, interval, unit_interval)
    shares = {"extra": extra, "extra_fraction": extra_fraction}
    _check_shares(
        **shares, unit_floor=unit_floor, unit_stop_fraction=unit_stop_fraction
    )
    if drop_fraction is None:
        drop_fraction = schedules.cosine(0.5, total_steps, 0.005)
    fires, fraction = schedules.dropping(total_steps, interval, drop_fraction, 1.0)
    stop = extra_fraction * total_steps
    first = max(1, unit_interval - interval // 2)
    steps = schedules.multiples(total_steps, unit_interval, unit_stop_fraction, first)
    rule, chosen = LeafRule(dense, stacked), budgets.resolve(budget, sparsity)
    removal = _Removal(groups, stacked, unit_sparsity, unit_score, unit_floor, steps)
    removal.check()
    removes = schedules.periodic(unit_interval, steps[-1] + 1, steps[0])
    soft = schedules.cosine(extra, stop)
    weights = _Weights(rule, chosen, soft, stop, fraction)
    method = _Chase(at_random(chosen, rule, seed), weights, removal, fires)
    usual = SparseMethod(
        method.init,
        lambda step: fires(step) | removes(step),
        dense_gradient_every=interval,
        name="chase",
        stacked=stacked,
    )
    return method.of(usual, None)


def _intervals(total: int, interval: int | None, units: int | None) -> tuple[int, int]:
    """Returns `interval` and `unit_interval` of `chase`, or their defaults.

    Raises:
      ValueError: One of the three numbers is out of range.
    """
    _check.whole("total_steps", total)
    interval = max(1, total // 72) if interval is None else interval
    units = interval if units is None else units
    schedules.check_steps(total, interval)
    _check.whole("unit_interval", units)
    return interval, units


def _check_shares(**values: float) -> None:
    """Raises `ValueError` unless all numbers are in [0, 1]."""
    for name, value in values.items():
        _check.number(name, value, least=0, most=1, traced=False)


class _Chase(NamedTuple):
    """The first masks, the changes of weights and of units, and when weights change."""

    first: Callable[[Params], Masks]
    weights: "_Weights"
    removal: "_Removal"
    fires: schedules.Fires

    def of(self, usual: SparseMethod, whole: Params | None) -> SparseMethod:
        """Returns the method, for a network of which removed units may be cut.

        Args:
          usual: Its other parts.
          whole: The parameters before the cut; None: nothing is cut.
        """
        bound = self._replace(
            weights=self.weights._replace(whole=whole),
            removal=self.removal._replace(whole=whole),
        )
        final = FinalUnits(
            lambda topology, params: self.removal.masks(params, topology.memory.rule),
            self.removal.cut,
            lambda params: self.of(usual, params),
        )
        return usual._replace(change=bound.change, final_units=final)

    def init(self, params: Params) -> Topology:
        masks = self.first(params)
        warn_of_biases(SparseLeaves.of_masks(masks, self.removal.stacked))
        self.weights.check(params)
        live = self.removal.first(params)
        return self._topology(masks, self.removal.masks(params, live), live)

    def change(
        self, topology: Topology, params: Params, grads: Grads, step: jax.Array
    ) -> Topology:
        memory = topology.memory
        live = self.removal.change(params, topology.masks, memory.rule, step)
        within = self.removal.masks(params, live)
        # A step may have a removal and no change of the weights.
        masks = jax.lax.cond(
            self.fires(step),
            self.weights.change,
            lambda masks, *_: masks,
            *(both(topology.masks, within), within, params, grads, step),
        )
        return self._topology(masks, within, live, memory.target)

    def _topology(
        self,
        masks: Masks,
        within: Masks,
        live: Sequence[jax.Array],
        target: jax.Array | None = None,
    ) -> Topology:
        masks = both(masks, within)
        leaves = SparseLeaves.of_masks(masks, self.removal.stacked)
        number = live_counts(leaves.of(masks))
        # A copy: a donated state may not hold an array twice.
        target = number + 0 if target is None else target
        return Topology(masks, Memory(target, number, tuple(live)))


class _Weights(NamedTuple):
    """The global exchange of weights under a soft budget.

    Attributes:
      rule: Which leaves are sparse.
      budget: Their number of weights.
      extra: The fraction of weights beyond it, a schedule.
      stop: The step from which on as many weights drop as grow.
      fraction: The fraction that drops then, a schedule.
      whole: The parameters before units were cut, if they were.
    """

    rule: LeafRule
    budget: MaskBudget
    extra: schedules.Fraction
    stop: float
    fraction: schedules.Fraction
    whole: Params | None = None

    def check(self, params: Params) -> None:
        """Raises `ValueError` if there are more weights than a program ranks."""
        budgets.Global(self.budget.sparsity).counts(self.rule.sparse(params))

    def change(
        self, masks: Masks, within: Masks, params: Params, grads: Grads, step: jax.Array
    ) -> Masks:
        """Returns the masks after a change.

        Args:
          masks: Mask tree.
          within: Mask tree of the units that are left.
          params: The parameters, w.
          grads: The gradient.
          step: The optimizer step.
        """
        whole = self.rule.sparse(params if self.whole is None else self.whole)
        places = [leaf.place for leaf in whole.leaves]
        leaves = SparseLeaves.at(params, places, self.rule.stacked)
        live = leaves.of(masks)
        sizes, slopes = ([jnp.abs(x) for x in leaves.of(t)] for t in (params, grads))
        # One entry a layer of which the total matters; a tree of masks has more leaves
        # if units of a dense leaf are removed.
        number = sum(self.budget.counts(whole))
        explores = schedules.before(step, self.stop)
        share = jnp.clip(self.fraction(step), 0, 1) * jnp.float32(number)
        dropped = jnp.where(explores, 0, jnp.floor(share).astype(jnp.int32))
        least = jnp.minimum(jnp.sum(live_counts(live)), number) - dropped
        kept = select_globally(sizes, live, jnp.maximum(least, len(live)))
        more = jnp.round(self.extra(step) * sum(whole.sizes)).astype(jnp.int32)
        total = number + jnp.where(explores, more, 0)
        allowed = [
            jnp.broadcast_to(m, shape) & ~k
            for m, k, shape in zip(leaves.of(within), kept, leaves.shapes, strict=True)
        ]
        grown = select_across(slopes, allowed, total - jnp.sum(live_counts(kept)))
        return leaves.put(masks, [k | g for k, g in zip(kept, grown, strict=True)])


class _Removal(NamedTuple):
    """The removal of units.

    Attributes:
      groups: As in `chase`, like the next four.
      steps: The steps of the removals.
      whole: The parameters before units were cut, if they were.
    """

    groups: Mapping[str, Units]
    stacked: StackRule
    sparsity: float
    score: str
    floor: float
    steps: Sequence[int]
    whole: Params | None = None

    def check(self) -> None:
        """Raises `ValueError` if an argument is out of range."""
        check_groups(self.groups)
        _check.number("unit_sparsity", self.sparsity, least=0, below=1, traced=False)
        _check.one_of("unit_score", self.score, ("umm", "mean"))

    def first(self, params: Params) -> list[jax.Array]:
        """Returns which units of each layer are live at first: all.

        Raises:
          ValueError: A layer has no incoming kernel, or the layers keep more units than
            there are to be.
        """
        layers = layers_of_units(params, self.groups, self.stacked)
        shapes = SparseLeaves.every(params, self.stacked).shapes
        for layer in layers:
            if not any(len(shapes[side.place]) > 1 for side in layer.incoming):
                raise ValueError(
                    f"{layer.group}: chase ranks units by their incoming weights, and "
                    f"none of those that {layer.outgoing.path} reads are named "
                    "(incoming= of zs.sparsity.Units)."
                )
        final, needed = self._final(layers), sum(self._floors(layers))
        if final < needed:
            raise ValueError(
                f"unit_sparsity={self.sparsity} keeps {final} units, but "
                f"{len(layers)} layers need {needed}. Lower it, or unit_floor."
            )
        return [jnp.ones(layer.units, bool) for layer in layers]

    def change(
        self,
        params: Params,
        masks: Masks,
        live: Sequence[jax.Array],
        step: jax.Array,
    ) -> list[jax.Array]:
        """Returns the units that are live after the removals up to a step.

        Args:
          params: The parameters, w.
          masks: Mask tree.
          live: Which units of each layer are live.
          step: The optimizer step.
        """
        layers = layers_of_units(params, self.groups, self.stacked)
        every = SparseLeaves.every(params, self.stacked)
        leaves, held = every.of(params), every.of(masks)
        before = params if self.whole is None else self.whole
        shapes = SparseLeaves.every(before, self.stacked).shapes
        first = layers_of_units(before, self.groups, self.stacked)
        scores = [
            self._score(layer, leaves, held, _fan_in(all_, shapes))
            for layer, all_ in zip(layers, first, strict=True)
        ]
        safe = select(scores, live, self._floors(first))
        ranked = [jnp.where(m, jnp.inf, x) for m, x in zip(safe, scores, strict=True)]
        return select_across(ranked, live, self._left(first, step))

    def cut(self, memory: Memory, params: Params) -> Memory:
        """Returns the memory for a network whose layers have their live units alone.

        Args:
          memory: The memory.
          params: The parameters of that network.
        """
        layers = layers_of_units(params, self.groups, self.stacked)
        rule = [
            # A layer that was not cut has all its units.
            live if live.size == layer.units else jnp.ones(layer.units, bool)
            for live, layer in zip(memory.rule, layers, strict=True)
        ]
        return memory._replace(rule=tuple(rule))

    def masks(self, params: Params, live: Sequence[jax.Array]) -> Masks:
        """Returns the mask tree of live units, over all kernels around them."""
        layers = layers_of_units(params, self.groups, self.stacked)
        shapes = SparseLeaves.every(params, self.stacked).shapes

        def kernels(layer: UnitLayer) -> list[Side]:
            made = [s for s in layer.incoming if len(shapes[s.place]) > 1]
            return [*made, *layer.readers]

        masked = UnitMasks.of(params, layers, self.stacked, kernels)
        return masked.leaves.masks(masked.product(live))

    def _score(
        self,
        layer: UnitLayer,
        leaves: Sequence[jax.Array],
        held: Sequence[jax.Array],
        fan_in: int,
    ) -> jax.Array:
        """Returns the mean |w| of the incoming weights of each unit, float32."""
        total = jnp.zeros(layer.units, jnp.float32)
        number = total
        for side in layer.incoming:
            w = jnp.abs(leaves[side.place]).astype(jnp.float32)
            if w.ndim > 1:
                mask = jnp.broadcast_to(held[side.place], w.shape)
                total += by_unit(jnp.where(mask, w, 0), side, layer.units)
                number += by_unit(mask, side, layer.units)
        if self.score == "mean":
            return total / fan_in
        return total / jnp.maximum(number, 1)

    def _final(self, layers: Sequence[UnitLayer]) -> int:
        total = sum(layer.units for layer in layers)
        return total - round(self.sparsity * total)

    def _floors(self, layers: Sequence[UnitLayer]) -> list[int]:
        share = (1 - self.sparsity) * self.floor
        # 0.29 * 100 is 28.999999999999996.
        return [max(1, int(round(share * layer.units, 6))) for layer in layers]

    def _left(self, layers: Sequence[UnitLayer], step: jax.Array) -> jax.Array:
        """Returns the number of units after the last removal that is due."""
        total = sum(layer.units for layer in layers)
        first, last = self.steps[0], self.steps[-1]
        every = self.steps[1] - first if len(self.steps) > 1 else 1
        # Of the removal, and not of the step: one that a gradient with NaN prevented is
        # made up for.
        due = jnp.minimum(first + (step - first) // every * every, last)
        rest = 1 - due.astype(jnp.float32) / max(last, 1)
        gone = self.sparsity * total * (1 - rest**3)
        gone = jnp.where(step < first, 0, jnp.round(gone)).astype(jnp.int32)
        return total - jnp.where(step < last, gone, total - self._final(layers))


def _fan_in(layer: UnitLayer, shapes: Sequence[Shape]) -> int:
    """Returns the number of incoming weights of a unit, those of kernels."""
    kernels = {side.place for side in layer.incoming if len(shapes[side.place]) > 1}
    return sum(math.prod(shapes[place]) for place in kernels) // layer.units
