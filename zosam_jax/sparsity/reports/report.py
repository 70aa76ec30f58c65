"""Reports on a mask tree: densities, FLOPs, exploration, collapsed layers."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, Shape, StackRule, Units
from zosam_jax.sparsity.leaves import Leaf, SparseLeaves
from zosam_jax.sparsity.mask_trees import filled
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.reports.findings import LeafReport, SparsityReport
from zosam_jax.sparsity.reports.flops import KernelAxes, Products, products
from zosam_jax.sparsity.unread_units import removable


def report(
    params: Params,
    masks: Masks,
    *,
    forward: Callable[[Params], object] | None = None,
    examples: int = 1,
    method: SparseMethod | None = None,
    dense_gradient_every: int | None = None,
    mean_pruned: float | None = None,
    passes: tuple[float, float] = (0, 1),
    explored: Masks | None = None,
    groups: Mapping[str, Units] | None = None,
    stacked: StackRule | None = None,
) -> SparsityReport:
    r"""Returns a report on masks: densities, FLOPs, exploration, collapsed layers.

    FLOPs are counted as in RigL (arXiv:1911.11134, appendix): two for each multiply-add
    of the products of `forward`, times the density of the leaf in the product. Products
    are dense layers, convolutions and attention; biases, norms and activations are not
    counted. Let :math:`f_D` and :math:`f_S` be the forward passes of the dense and of
    the sparse network, and let a backward pass cost two forward passes. A step with F
    forward passes and B passes forward and backward costs

    .. math:: (F + 3B)\, f_S + \begin{cases}
        0 & \text{no gradient of pruned weights} \\
        (f_D - f_S) / (\Delta T + 1) & \text{every } \Delta T \text{ steps} \\
        f_D - f_S & \text{in every step}
        \end{cases}

    on average, where the dense gradient is used never, every :math:`\Delta T` steps, or
    in every step. That is :math:`3 f_S` for static masks, SET, DSR and MEST;
    :math:`(3 f_S \Delta T + 2 f_S + f_D) / (\Delta T + 1)` for RigL (the paper counts
    its update steps on top of the :math:`\Delta T` between them); and :math:`2 f_S +
    f_D` for STE. If the sparsity changes (`gmp`, `mest(soft=True)`), :math:`f_S` is at
    the mean density of each layer, which is computed from its final density. So give
    the masks of the end of the training: masks of a denser stage give too much. The
    cost of a criterion at initialization is not included.

    Args:
      params: Pytree of arrays or of `jax.ShapeDtypeStruct`; only shapes are read.
      masks: Mask tree in the structure of `params`, as from `zs.sparsity.masks(state)`.
      forward: `params -> anything`, the forward pass on `examples` examples, as
        `lambda p: model.apply(p, x)`. It is traced, never run. A product belongs to a
        leaf if one of its operands is the leaf, perhaps reshaped, transposed, sliced,
        cast, masked or scaled. Other products count in full. The body of a `scan`
        counts as often as it runs, the body of a `while` once, and of a `cond` the most
        expensive branch. None: no FLOPs.
      examples: FLOPs are divided by it. 1: FLOPs of one call of `forward`.
      method: Gives the next two arguments and `stacked` if they are left out.
      dense_gradient_every: Steps between gradients of all weights; None: never.
      mean_pruned: Pruned / finally pruned weights, averaged over the training; 1 by
        default.
      passes: `(F, B)` of one step of the gradient estimator: backpropagation (0, 1),
        SAM (0, 2), ZO-SAM (2, 1); the `info` of an estimate counts them. The dense
        gradient is added once.
      explored: Boolean tree like `masks`, the union of all masks so far.
      groups: As in `units`, or what the method `cuts` of a model returns. Weights and
        biases that only feed units that nothing reads have no effect, and count as
        pruned, masked or not; see `removable`. None: only masked weights count as
        pruned.
      stacked: Leaves that are stacks of layers, as in `dynamic`. Each layer has a row
        of its own, with an equal share of the products of its leaf.

    Returns:
      A `SparsityReport`, to be used as `print(found)`, `found.as_dict()` or
      `found.plot("sparsity.png")`. Its warnings name sparse leaves without live
      weights, leaves with fewer live weights than outputs, and leaves in which at least
      half of the inputs or outputs are dead (an input without a live outgoing weight,
      an output without a live incoming one). The table counts dead inputs and outputs.
      Which axes are inputs and outputs follows from the products of `forward`. For a
      leaf in no product the last axis is the outputs and the one before it the inputs,
      as in Flax and Haiku.

    Raises:
      ValueError: Masks do not fit the parameters, `explored` lacks a live weight, or a
        number is out of range.
      TypeError: `method` is not a sparse method.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
      >>> masks = {"kernel": jnp.arange(8).reshape(4, 2) % 4 == 0, "bias": True}
      >>> x = jnp.ones((1, 4))
      >>> found = zs.sparsity.report(
      ...     params, masks, forward=lambda p: x @ p["kernel"] + p["bias"]
      ... )
      >>> found.sparsity, found.sparsity_all, found.inference_sparse
      (0.75, 0.6, 4.0)
      >>> print(found.rows[1].outputs, found.rows[1].inputs)  # units, dead units
      (2, 1) (4, 2)
    """
    if method is not None and not isinstance(method, SparseMethod):
        raise TypeError(
            "method must come from zs.sparsity, as zs.sparsity.rigl(sparsity=0.9, ...) "
            f"does; got {type(method).__name__}."
        )
    if dense_gradient_every is None:
        dense_gradient_every = getattr(method, "dense_gradient_every", None)
    pruned = getattr(method, "mean_pruned", 1.0) if mean_pruned is None else mean_pruned
    if dense_gradient_every is not None:
        _check.whole("dense_gradient_every", dense_gradient_every)
    _check.number("mean_pruned", pruned, least=0)
    _check.whole("examples", examples)
    for name, count in zip(("passes[0]", "passes[1]"), passes, strict=True):
        _check.number(name, count, least=0)
    masks = filled(masks, params)
    tree.check_masks(masks, params)
    if explored is not None:
        explored = filled(explored, params)
        tree.check_masks(explored, params)

    counted = None if forward is None else products(forward, params)
    if stacked is None:
        stacked = () if method is None else method.stacked
    leaves = SparseLeaves.every(params, stacked).leaves
    seen = [None] * len(leaves) if explored is None else jax.tree.leaves(explored)
    idle = {} if groups is None else removable(params, masks, groups, stacked)
    rows = tuple(
        row
        for leaf, mask, union in zip(leaves, jax.tree.leaves(masks), seen, strict=True)
        for row in _rows(leaf, mask, union, _cost(leaf, counted, examples), idle)
    )
    warnings = [f"{row.path}: {row.warning}" for row in rows if row.warning]
    if counted is not None:
        warnings += [
            f"{row.path}: sparse, but no product of `forward` is with it; its FLOPs "
            "count as 0"
            for row in rows
            if row.sparse and not row.flops_dense
        ]
        warnings += counted.notes
    return SparsityReport(
        rows=rows,
        flops_other=None if counted is None else 2 * counted.other / examples,
        passes=(passes[0], passes[1]),
        dense_gradient_every=dense_gradient_every,
        mean_pruned=float(pruned),
        warnings=tuple(warnings),
        removable=None if groups is None else sum(idle.values()),
    )


class _Cost(NamedTuple):
    """The products of a layer, as in `LeafReport`, and its axes; None if not known."""

    flops: float | None = None
    place: int | None = None
    units: KernelAxes | None = None


def _cost(leaf: Leaf, counted: Products | None, examples: int) -> _Cost:
    """Returns the cost of one layer of a leaf: an equal share of the leaf's."""
    if counted is None:
        return _Cost()
    flops = 2 * counted.macs[leaf.place] / examples / len(leaf.indices)
    place = None
    if leaf.place in counted.order:
        place = counted.order.index(leaf.place)
    units = counted.units.get(leaf.place)
    if units is not None:
        inner = [tuple(i - leaf.axes for i in x if i >= leaf.axes) for x in units]
        units = KernelAxes(*inner)
    return _Cost(flops, place, units)


def _rows(
    leaf: Leaf,
    mask: jax.typing.ArrayLike,
    union: jax.typing.ArrayLike | None,
    cost: _Cost,
    idle: Mapping[str, int],
) -> list[LeafReport]:
    """Returns the report on each layer of a leaf."""
    shape, mask = leaf.shape[leaf.axes :], _fetched(mask)
    seen = None if union is None else _fetched(union)

    def layer(x: Any, index: tuple[int, ...]) -> Any:
        return x if x is None or tree.is_dense(x) else x[index]

    return [
        _row(name, shape, layer(mask, i), layer(seen, i), cost, idle.get(name, 0))
        for name, i in zip(leaf.names, leaf.indices, strict=True)
    ]


def _row(
    path: str, shape: Shape, mask: Any, seen: Any, cost: _Cost, idle: int
) -> LeafReport:
    weights = math.prod(shape)
    if tree.is_dense(mask):
        live = weights - idle
        flops = cost.flops, _part(cost.flops, live, weights)
        return LeafReport(path, shape, weights, live, False, None, *flops, cost.place)
    ever_live, live = None, min(_count(mask), weights - idle)
    if seen is not None:
        if _count(mask & ~seen):
            raise ValueError(
                f"explored: {path} lacks live weights. Give the union of all masks, "
                "the present one too."
            )
        ever_live = weights if tree.is_dense(seen) else _count(seen)
    # Without `forward`, the convention of Flax and Haiku.
    units = cost.units or _usual_units(len(shape))
    return LeafReport(
        path,
        shape,
        weights,
        live,
        True,
        ever_live,
        cost.flops,
        _part(cost.flops, live, weights),
        cost.place,
        None if units is None else _unreached(mask, (*units.inputs, *units.window)),
        None if units is None else _unreached(mask, (*units.outputs, *units.window)),
    )


def _part(flops: float | None, live: int, weights: int) -> float | None:
    return None if flops is None else flops * live / weights if weights else 0.0


def _usual_units(axes: int) -> KernelAxes | None:
    if axes < 2:
        return None
    return KernelAxes((axes - 2,), (axes - 1,), tuple(range(axes - 2)))


def _fetched(mask: Any) -> Any:
    """Returns the mask on the host if possible: reductions there compile nothing."""
    addressable = getattr(mask, "is_fully_addressable", True)
    return np.asarray(mask) if addressable else mask


def _count(flags: Any) -> int:
    # The count of a row fits int32; the count of a whole leaf may not.
    return int(np.asarray(flags.sum(axis=-1, dtype=np.int32), np.int64).sum())


def _unreached(mask: Any, axes: tuple[int, ...]) -> tuple[int, int]:
    """Returns `(units, units without a live weight)`; all axes but `axes` are units."""
    reached = mask.any(axis=axes)
    return reached.size, int((~reached).sum())
