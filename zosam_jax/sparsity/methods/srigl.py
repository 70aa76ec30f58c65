r"""SRigL: the same number of weights into every neuron, and ablated neurons.

If all rows of a matrix have the same number of non-zeros, it is a dense array of values
and one of indices, which a plain loop multiplies fast. A neuron without inputs is one
row less.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import checks_arguments
from zosam_jax._types import Masks, Params, Shape, StackRule
from zosam_jax.selection import select, select_along
from zosam_jax.sparsity import budgets, schedules, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.initial_masks import mask_key
from zosam_jax.sparsity.leaves import LeafRule, SparseLeaves, check_rule, named
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.patterns import Axis, axis_of
from zosam_jax.sparsity.prune_and_grow import Proposal, exchange


@checks_arguments
def srigl(
    sparsity: float,
    total_steps: int,
    *,
    gamma: float = 0.3,
    last: DenseRule = (),
    interval: int = 100,
    drop_fraction: float | schedules.Fraction = 0.3,
    stop_fraction: float = 0.75,
    budget: str | Budget = "erk",
    dense: DenseRule = (),
    stacked: StackRule = (),
    axis: Axis = -1,
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""SRigL (arXiv:2305.02299): RigL with constant fan-in and neuron ablation.

    A neuron is one index of a kernel's output axis; the other axes are its fan-in. At a
    change, a layer with n live weights and fan-in k

    1. keeps the :math:`n - \lfloor \alpha_t n \rfloor` largest |w| of the layer;
    2. counts as salient the kept weights, and the :math:`\lfloor \alpha_t n \rfloor`
       weights of the layer with the largest |dL/dw|, live or not;
    3. ablates every neuron with fewer than :math:`\max(1, \lfloor \gamma k \rfloor)`
       salient weights;
    4. gives each of the a other neurons :math:`k' = \lfloor N / a \rfloor` weights,
       where N is the layer's number under the budget: first the largest |w| of its kept
       weights, then the largest |dL/dw| of the rest.

    Every change judges all neurons anew, including ablated ones: a neuron comes back as
    soon as the gradients of its weights make enough of them salient.

    At least :math:`\lceil N / \text{dense fan-in} \rceil` neurons, which can hold N
    weights, are not ablated: those with the most salient weights. (Of a neuron with
    more than k' kept weights, the public code keeps arbitrary ones; here the largest.)

    The count of a layer is :math:`a k' \le N`, with :math:`N - a k' < a`. N is in the
    state, so that rounding errors never add up: `state.memory.target` is N and
    `state.memory.live` the present count, one integer for each sparse layer.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1),
        before the fan-ins are rounded down.
      total_steps: Optimizer steps of the whole training.
      gamma: Fraction of the fan-in that must be salient, in [0, 1]. The paper uses 0.3
        for convolutional networks and 0.95 for vision transformers. 0 ablates only
        neurons without a salient weight.
      last: Leaves whose neurons are never ablated, in the form of `dense`. Name the
        layer of the logits here.
      interval: As in `dynamic`.
      drop_fraction: As in `dynamic`.
      stop_fraction: As in `dynamic`.
      budget: As in `dynamic`.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`.
      axis: Axis of the neurons, the outputs of the layer, as an index or `(path, shape
        of one layer) -> index`: -1 for kernels `(..., in, out)` of Flax and Haiku; 0
        for Equinox's, `(out, in, ...)`.
      seed: As in `dynamic`; also of the first masks, in which every neuron has random
        inputs. A layer with more neurons than weights starts with ablated neurons.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met, or
        a leaf of `last` with fewer weights than neurons.
    """
    chosen = budgets.resolve(budget, sparsity)
    schedules.check_steps(total_steps, interval)
    _check.number("gamma", gamma, least=0, most=1)

    rule = LeafRule(dense, stacked)

    def target(params: Params) -> list[int]:
        return chosen.counts(rule.sparse(params))

    def first(params: Params) -> Masks:
        leaves = rule.sparse(params)
        check_rule("last", last, tree.paths(params))
        key = mask_key(seed)
        drawn = scores.of_layers(scores.random, params, None, key, leaves.of)
        counts, axes = chosen.counts(leaves), _axes(axis, leaves)
        _check_last(last, leaves, counts, axes)
        return leaves.masks(
            [_at_random(*x) for x in zip(drawn, counts, axes, strict=True)]
        )

    def arrange(proposal: Proposal) -> Sequence[jax.Array]:
        leaves = proposal.leaves
        axes = _axes(axis, leaves)
        # Live or not: a neuron whose live weights have large gradients is salient too.
        pulled = select(proposal.growing, leaves.all_live(), list(proposal.grown))
        salient = [k | p for k, p in zip(proposal.kept, pulled, strict=True)]
        active = _active(proposal, salient, axes, gamma)
        for i, (path, shape) in enumerate(
            zip(leaves.paths, leaves.shapes, strict=True)
        ):
            if named(last, path, shape):
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
        stacked=stacked,
        target=target,
        arrange=arrange,
    )._replace(name="srigl")


def _axes(axis: Axis, leaves: SparseLeaves) -> list[int]:
    """Returns the axis of the neurons of each leaf."""
    return [
        axis_of(axis, path, shape)
        for path, shape in zip(leaves.paths, leaves.shapes, strict=True)
    ]


def _check_last(
    last: DenseRule, leaves: SparseLeaves, counts: Sequence[int], axes: Sequence[int]
) -> None:
    """Raises `ValueError` if a leaf of `last` has fewer weights than neurons."""
    for path, shape, count, axis in zip(
        leaves.paths, leaves.shapes, counts, axes, strict=True
    ):
        if count < shape[axis] and named(last, path, shape):
            raise ValueError(
                f"{path} keeps {count} weights, fewer than its {shape[axis]} "
                "neurons, and last= says that none is ablated. Lower the "
                "sparsity, or keep it dense with dense=(...)."
            )


def _active(
    proposal: Proposal, salient: Sequence[jax.Array], axes: Sequence[int], gamma: float
) -> list[jax.Array]:
    """Returns the neurons that are not ablated; the other axes have size 1."""
    numbers, passing, least = [], [], []
    for i, axis in enumerate(axes):
        mask, others = proposal.masks[i], _others(salient[i].ndim, axis)
        # The present fan-in is the largest: ablated neurons have none.
        fan_in = jnp.max(jnp.sum(mask, others, dtype=jnp.int32))
        needed = jnp.maximum(
            jnp.floor(gamma * fan_in.astype(jnp.float32)).astype(jnp.int32), 1
        )
        number = jnp.sum(salient[i], others, keepdims=True, dtype=jnp.int32)
        numbers.append(number.astype(jnp.float32))
        passing.append(number >= needed)
        # A neuron holds `full` weights at most, so fewer neurons than this could not
        # hold the layer's budget, however many weights each of them gets.
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
    """Returns masks with equally many weights in every active neuron."""
    alike: dict[tuple[Shape, int], list[int]] = {}
    for i, mask in enumerate(proposal.masks):
        alike.setdefault((mask.shape, axes[i]), []).append(i)
    new: dict[int, jax.Array] = {}
    for (shape, axis), members in alike.items():
        # Leaves of one shape together: a search for each would take long to compile.
        ranked, candidates, fan_ins = [], [], []
        for i in members:
            kept = proposal.kept[i]
            ranked.append(_kept_first(kept, proposal.dropping[i], proposal.growing[i]))
            candidates.append(jnp.broadcast_to(active[i], shape))
            number = jnp.sum(active[i], keepdims=True, dtype=jnp.int32)
            # From the target and not from the live count: what rounding took from one
            # change is given back in the next.
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
    """Returns one score: kept weights by |w|, and below them the others by |dL/dw|.

    The bits of non-negative floats, read as integers, have the order of the floats. The
    bits of |w| are raised by one exponent, so that the score of a kept weight is
    positive. The bits of |dL/dw| are subtracted from those of infinity, and the sign is
    set: a negative number that rises with |dL/dw|. Exact below 2^127.
    """
    # One search over one score instead of two, of which the second would depend on the
    # result of the first.
    infinity, sign = jnp.uint32(0x7F800000), jnp.uint32(1 << 31)
    raised = jnp.minimum(_bits(dropping) + jnp.uint32(1 << 23), infinity)
    lowered = (infinity - _bits(growing)) | sign
    bits = jnp.where(kept, raised, lowered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _bits(x: jax.Array) -> jax.Array:
    """Returns the bits of |x|; 0 for NaN, and for denormals, as XLA has it on a CPU."""
    x = jnp.abs(x.astype(jnp.float32))
    x = jnp.where(x >= jnp.finfo(jnp.float32).tiny, x, 0)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _at_random(drawn: jax.Array, total: int, axis: int) -> jax.Array:
    """Returns a mask of constant fan-in with `total` weights at most, from a draw."""
    others = _others(drawn.ndim, axis)
    # With fewer weights than neurons, a fan-in of 1 for some and 0 for the rest is the
    # only constant one.
    neurons = min(total, drawn.shape[axis])
    best = jnp.max(drawn, others, keepdims=True)
    active = select_along(best, jnp.ones(best.shape, bool), neurons, (axis,))
    candidates = jnp.broadcast_to(active, drawn.shape)
    return select_along(drawn, candidates, total // neurons, others)


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if i != axis)
