r"""SRigL: the same number of weights into every neuron, and neurons ablated.

A matrix whose rows have equally many non-zeros is a dense array of values and one of
indices, which a plain loop multiplies fast; a neuron without inputs is a row less.
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax.selection import select, select_along
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.budgets import (
    Budget,
    DenseRule,
    Shape,
    counts,
    sparse_leaves,
)
from zosam_jax.sparsity.mask_trees import from_leaves
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.patterns import Axis, axis_of
from zosam_jax.sparsity.prune_and_grow import Proposal, check, exchange


def srigl(
    sparsity: float,
    total_steps: int,
    *,
    gamma: float = 0.3,
    last: DenseRule = (),
    interval: int = 100,
    drop_fraction: float | Callable[[jax.Array], jax.Array] = 0.3,
    stop_fraction: float = 0.75,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    axis: Axis = -1,
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""SRigL (arXiv:2305.02299): RigL with constant fan-in and neuron ablation.

    A neuron is one index of a kernel's output axis; all other axes are its fan-in. At a
    change a layer with n live weights and fan-in k

    1. keeps the :math:`n - \lfloor \alpha_t n \rfloor` largest |w| of the layer;
    2. calls salient what is kept, and the :math:`\lfloor \alpha_t n \rfloor` weights of
       the layer with the largest |dL/dw|, live or not;
    3. ablates every neuron with fewer than :math:`\max(1, \lfloor \gamma k \rfloor)`
       salient weights;
    4. gives each of the a others :math:`k' = \lfloor N / a \rfloor` weights, N the
       layer's number under the budget: its largest |w| of those kept, then the largest
       |dL/dw| of the rest.

    Neurons are judged anew at every change, those ablated before too: one comes back
    as soon as the gradients of its weights make enough of them salient.

    Where fewer neurons pass than :math:`\lceil N / \text{dense fan-in} \rceil`, which
    can hold N weights, so many stay, those with the most salient weights. (The public
    code keeps arbitrary weights of a neuron with more than k'; here it is the largest.)

    The count of a layer is :math:`a k' \le N`, with :math:`N - a k' < a`. N is in the
    state, so that rounding never adds up: `state.memory.target` and, of now,
    `state.memory.live`, an integer for each sparse leaf.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1),
        before the fan-ins are rounded down.
      total_steps: Optimizer steps of the whole training.
      gamma: Share of the fan-in that must be salient, in [0, 1]. The paper has 0.3 for
        convolutional networks, 0.95 for vision transformers; 0 ablates only neurons
        without a salient weight.
      last: Leaves whose neurons are never ablated, in the form of `dense`: name the
        layer of the logits here.
      interval: As in `dynamic`.
      drop_fraction: As in `dynamic`.
      stop_fraction: As in `dynamic`.
      budget: As in `dynamic`.
      dense: Leaves that stay dense; see `sparse_leaves`.
      axis: The axis of the neurons, the outputs of the layer, as an index or
        `(path, shape) -> index`: -1 in the layout of Flax and Haiku, `(..., in, out)`;
        0 in Equinox's, `(out, in, ...)`.
      seed: As in `dynamic`; of the first masks, in which every neuron has its fan-in
        at random. A layer with more neurons than weights starts with some ablated.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met, or
        a leaf of `last` with fewer weights than neurons.
    """
    check(sparsity, total_steps, interval, budget)
    _check.number("gamma", gamma, least=0, most=1)

    def target(params: Any) -> list[int]:
        return list(counts(params, sparsity, budget, dense).values())

    def first(params: Any) -> Any:
        leaves = jax.tree.leaves(params)
        drawn = jax.tree.leaves(scores.random(params, None, jax.random.key(seed)))
        kept = counts(params, sparsity, budget, dense)
        _check_names(last, params)
        masks = {}
        for path, index in sparse_leaves(params, dense).items():
            shape = jnp.shape(leaves[index])
            place = axis_of(axis, path, shape)
            neurons = shape[place]
            if kept[index] < neurons and _names(last, path, shape):
                raise ValueError(
                    f"{path} keeps {kept[index]} weights, fewer than its {neurons} "
                    "neurons, and last= says that none is ablated. Lower the "
                    "sparsity, or keep it dense with dense=(...)."
                )
            masks[index] = _at_random(drawn[index], kept[index], place)
        return from_leaves(params, masks)

    def arrange(proposal: Proposal) -> Sequence[jax.Array]:
        shapes = [mask.shape for mask in proposal.masks]
        axes = [
            axis_of(axis, path, shape)
            for path, shape in zip(proposal.paths, shapes, strict=True)
        ]
        everything = [jnp.ones(shape, bool) for shape in shapes]
        pulled = select(proposal.growing, everything, list(proposal.grown))
        salient = [k | p for k, p in zip(proposal.kept, pulled, strict=True)]
        active = _active(proposal, salient, axes, gamma)
        for i, path in enumerate(proposal.paths):
            if _names(last, path, shapes[i]):
                active[i] = jnp.ones(active[i].shape, bool)
        return _with_fan_ins(proposal, active, axes)

    return exchange(
        first,
        total_steps,
        drop=scores.magnitude,
        grow=scores.gradient,
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        seed=seed,
        target=target,
        arrange=arrange,
    )


def _active(
    proposal: Proposal, salient: Sequence[jax.Array], axes: Sequence[int], gamma: float
) -> list[jax.Array]:
    """The neurons that are not ablated, with the other axes of a leaf of size 1."""
    numbers, passing, least = [], [], []
    for i, axis in enumerate(axes):
        mask, others = proposal.masks[i], _others(salient[i].ndim, axis)
        # The fan-in of now: ablated neurons have none.
        fan_in = jnp.max(jnp.sum(mask, others, dtype=jnp.int32))
        needed = jnp.maximum(jnp.floor(gamma * fan_in).astype(jnp.int32), 1)
        number = jnp.sum(salient[i], others, keepdims=True, dtype=jnp.int32)
        numbers.append(number.astype(jnp.float32))
        passing.append(number >= needed)
        full = mask.size // mask.shape[axis]
        least.append(-(-proposal.memory.target[i] // full))
    everyone = [jnp.ones(number.shape, bool) for number in numbers]
    most_salient = select(numbers, everyone, least)
    return [
        jnp.where(jnp.sum(p) >= least[i], p, most_salient[i])
        for i, p in enumerate(passing)
    ]


def _with_fan_ins(
    proposal: Proposal, active: Sequence[jax.Array], axes: Sequence[int]
) -> list[jax.Array]:
    """The masks in which the active neurons have equally many weights, others none."""
    alike: dict[Any, list[int]] = {}
    for i, mask in enumerate(proposal.masks):
        alike.setdefault((mask.shape, axes[i]), []).append(i)
    new: dict[int, jax.Array] = {}
    for (shape, axis), members in alike.items():
        # Leaves of one shape together: a search each would take long to compile.
        ranked, candidates, fan_ins = [], [], []
        for i in members:
            kept = proposal.kept[i]
            ranked.append(_kept_first(kept, proposal.dropping[i], proposal.growing[i]))
            candidates.append(jnp.broadcast_to(active[i], shape))
            number = jnp.sum(active[i], keepdims=True, dtype=jnp.int32)
            fan_ins.append(proposal.memory.target[i] // number)
        chosen = select_along(
            jnp.stack(ranked),
            jnp.stack(candidates),
            jnp.stack(fan_ins),
            tuple(1 + other for other in _others(len(shape), axis)),
        )
        new.update(zip(members, chosen, strict=True))
    return [new[i] for i in range(len(new))]


def _kept_first(kept: jax.Array, dropping: jax.Array, growing: jax.Array) -> jax.Array:
    """One score for both: what is kept, by |w|, and below it the rest, by |dL/dw|.

    The bits of floats that are not negative have their order. So those of |w| are
    raised by one exponent, above zero, and those of |dL/dw| counted down from
    infinity's are a negative number that rises with it. Exact below 2^127.
    """
    infinity, sign = jnp.uint32(0x7F800000), jnp.uint32(1 << 31)
    raised = jnp.minimum(_bits(dropping) + jnp.uint32(1 << 23), infinity)
    lowered = (infinity - _bits(growing)) | sign
    bits = jnp.where(kept, raised, lowered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _bits(x: jax.Array) -> jax.Array:
    """Those of |x|, with 0 for NaN and denormals, which XLA takes for 0 on a CPU."""
    x = jnp.abs(x.astype(jnp.float32))
    x = jnp.where(x >= jnp.finfo(jnp.float32).tiny, x, 0)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _at_random(drawn: jax.Array, total: int, axis: int) -> jax.Array:
    """A mask of constant fan-in from random numbers."""
    others = _others(drawn.ndim, axis)
    neurons = min(total, drawn.shape[axis])
    best = jnp.max(drawn, others, keepdims=True)
    active = select_along(best, jnp.ones(best.shape, bool), neurons, (axis,))
    candidates = jnp.broadcast_to(active, drawn.shape)
    return select_along(drawn, candidates, total // neurons, others)


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if i != axis)


def _names(rule: Any, path: str, shape: Shape) -> bool:
    """Whether a rule in the form of `DenseRule` names the leaf."""
    return any(
        part(path, shape)
        if callable(part)
        else path == part or fnmatch.fnmatch(path, part)
        for part in _parts(rule)
    )


def _check_names(rule: Any, params: Any) -> None:
    """Raises `ValueError` where a pattern of `last` names no leaf."""
    patterns = [part for part in _parts(rule) if not callable(part)]
    tree.matching("last", patterns, tree.paths(params))


def _parts(rule: Any) -> Sequence[Any]:
    return [rule] if isinstance(rule, str) or callable(rule) else list(rule)
