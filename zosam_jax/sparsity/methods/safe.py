"""SAFE: dense weights pulled toward sparse ones, by ADMM (arXiv:2506.06866)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import checks_arguments
from zosam_jax._types import Grads, Masks, Params, StackRule
from zosam_jax.sparsity import budgets, schedules
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.initial_masks import MaskBudget
from zosam_jax.sparsity.leaves import (
    LeafRule,
    SparseLeaves,
    live_counts,
    warn_of_biases,
)
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.prune_and_grow import Memory


class Split(NamedTuple):
    """The last w + u, of which z has the kept entries and u has the others.

    Attributes:
      sums: w + u, a tree like the parameters, in float32 or wider; 0 for a dense leaf.
      kept: Mask tree of z.
    """

    sums: Params
    kept: Masks


@checks_arguments
def safe(
    sparsity: float,
    total_steps: int,
    *,
    strength: float = 1e-3,
    interval: int = 32,
    stop_fraction: float = 1.0,
    budget: str | Budget = "global",
    dense: DenseRule = (),
    stacked: StackRule = (),
) -> SparseMethod:
    r"""SAFE, sparsification with an augmented Lagrangian (arXiv:2506.06866).

    All weights w train until the last step. A penalty pulls them toward a sparse z,
    with the scaled dual variable u: the optimizer steps along

    .. math:: g + \lambda_t (w - z + u), \quad
       \lambda_t = \frac{\lambda}{2} \left(1 - \cos \frac{\pi t}{T}\right)

    Every `interval` steps, after the optimizer's step, :math:`z = P(w + u)`, and then
    :math:`u \leftarrow w + u - z`; P keeps the largest entries and sets the
    others to 0. At the start, u is 0 and z is P(w). After step T the weights are P(w),
    and the mask is fixed.

    The gradient g is the given one. The paper takes SAM's, with `rho` 0.1; that is
    `sparsify(optimizer, safe(...), gradient=zs.sam(0.1))`. With `backprop` it is ADMM
    with a rising penalty. Only sparse leaves are penalized. The state holds one float32
    copy of them and their masks twice. SAFE+, whose projection is weighted by second
    moments, is not here.

    The authors estimate BatchNorm's statistics anew after the projection. Here
    `zosam_jax.models.reestimate_batch_stats` does that; or let a few epochs follow, as
    with `stop_fraction=0.9`.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together at the end,
        in [0, 1).
      total_steps: Optimizer steps of the whole training.
      strength: :math:`\lambda`; 1e-3 in the authors' script for CIFAR-10, 1e-4 in their
        program.
      interval: Steps between two projections.
      stop_fraction: T is `stop_fraction * total_steps`, rounded up. The other steps
        train what is left. 1 in the paper: the last step ends with the projection.
      budget: Sparsity distribution, as in `dynamic`, or "global": one threshold for all
        sparse leaves, each of which keeps at least one weight.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met.
    """
    chosen = budgets.resolve(budget, sparsity, across=True)
    schedules.check_steps(total_steps, interval)
    _check.number("strength", strength, least=0)
    _check.number("stop_fraction", stop_fraction, above=0, most=1, traced=False)
    # 0.07 * 100 is 7.000000000000001.
    end = max(1, math.ceil(round(stop_fraction * total_steps, 6)))

    def init(params: Params) -> Topology:
        leaves = LeafRule(dense, stacked).sparse(params)
        warn_of_biases(leaves)
        target = jnp.asarray(chosen.counts(leaves), jnp.int32)
        masks = leaves.masks(leaves.all_live())
        sums = jax.tree.map(_wide, masks, params)
        kept = _projected(chosen, leaves, sums, target)
        sums = tree.mask(sums, kept)  # u is 0.
        # Copies: a donated state may not hold an array twice.
        live = jnp.asarray(leaves.sizes, jnp.int32) + 0
        return Topology(masks, Memory(target, live, Split(sums, kept)))

    return SparseMethod(
        init,
        lambda step: ((step + 1) % interval == 0) & (step < end) | (step == end - 1),
        _change(chosen, stacked, end),
        after_step=True,
        penalty=_penalty(strength, end),
        mean_pruned=(total_steps - end) / total_steps,
        name="safe",
        stacked=stacked,
    )


def _change(
    chosen: MaskBudget, stacked: StackRule, end: int
) -> Callable[[Topology, Params, Grads, jax.Array], Topology]:
    """Returns the update of z and u; in step `end - 1` the projection of w."""

    def change(
        topology: Topology, params: Params, grads: Grads, step: jax.Array
    ) -> Topology:
        del grads
        leaves, memory = SparseLeaves.of_masks(topology.masks, stacked), topology.memory
        is_last = step == end - 1

        def total(m: jax.Array, w: jax.Array, kept: jax.Array, s: jax.Array):
            # P(w) at the end, and not P(w + u).
            return _wide(m, w) + jnp.where(kept | is_last, 0, s)

        sums = jax.tree.map(total, topology.masks, params, *memory.rule[::-1])
        kept = _projected(chosen, leaves, sums, memory.target)
        masks = jax.tree.map(lambda k: k | ~is_last, kept)
        live = live_counts(leaves.of(masks))
        return Topology(masks, Memory(memory.target, live, Split(sums, kept)))

    return change


def _projected(
    budget: MaskBudget, leaves: SparseLeaves, sums: Params, target: jax.Array
) -> Masks:
    """Returns the mask tree of the largest entries."""
    ranked = [jnp.abs(x) for x in leaves.of(sums)]
    return leaves.masks(budget.select(leaves, ranked, target))


def _penalty(
    strength: float, end: int
) -> Callable[[Topology, Params, jax.Array], Grads]:
    """Returns the gradient of the penalty, which is 0 from step `end` on."""

    def penalty(topology: Topology, params: Params, step: jax.Array) -> Grads:
        angle = jnp.pi / 2 * step.astype(jnp.float32) / end
        scale = jnp.where(step < end, strength * jnp.sin(angle) ** 2, 0)

        def pull(m: jax.Array, w: jax.Array, kept: jax.Array, s: jax.Array):
            z_minus_u = jnp.where(kept, s, -s)
            return scale.astype(s.dtype) * (_wide(m, w) - z_minus_u)

        split = topology.memory.rule
        return jax.tree.map(pull, topology.masks, params, split.kept, split.sums)

    return penalty


def _wide(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a copy in float32 or wider; 0 for a dense leaf."""
    wide = tree.wide_dtype(jnp.result_type(x))
    return jnp.zeros((), wide) if tree.is_dense(mask) else jnp.array(x, wide)
