"""Straight-through training of all weights; the forward pass uses the largest."""

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import checks_arguments
from zosam_jax._types import Grads, Params, StackRule
from zosam_jax.sparsity import budgets
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.initial_masks import MaskBudget
from zosam_jax.sparsity.leaves import (
    LeafRule,
    SparseLeaves,
    live_counts,
    warn_of_biases,
)
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.patterns import Axis, pattern_of
from zosam_jax.sparsity.prune_and_grow import Memory


@checks_arguments
def ste(
    sparsity: float | None = None,
    *,
    decay: float = 0.0,
    interval: int = 1,
    budget: str | Budget | None = None,
    dense: DenseRule = (),
    stacked: StackRule = (),
    pattern: tuple[int, int] | None = None,
    axis: Axis = -2,
) -> SparseMethod:
    r"""Straight-through estimator: trains all weights, and computes with the largest.

    The loss is evaluated at :math:`m \odot w`, where m is the mask of the largest |w|.
    Its gradient there updates every weight, live or not (arXiv:1308.3432), so that the
    mask changes in every step. SR-STE adds :math:`\lambda (1 - m) \odot w` to the
    gradient, which keeps the mask from flickering (arXiv:2102.04010, equation 7).

    `params` hold the dense weights. Train and evaluate at `apply_masks(params,
    masks(state))`; `sparsify(..., gradient=...)` does that itself. A loop that does
    neither trains the dense network, and `sparsify`, which is given the gradient only,
    cannot detect it. Weight decay of the optimizer shrinks pruned weights too.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      decay: lambda; 2e-4 in the paper.
      interval: Steps between two choices of the mask.
      budget: Sparsity distribution, as in `dynamic`, or "global"; "erk" by default.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`.
      pattern: `(n, m)`: the mask has the n largest |w| of every m, as in `static`, and
        `sparsity` is `1 - n / m`. SR-STE's setting is `ste(pattern=(2, 4),
        decay=2e-4)`.
      axis: Axis of the groups of `pattern`, as in `static`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; at init, a budget that cannot be met or a
        leaf that the groups do not divide.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> print(zs.sparsity.ste(0.5, decay=2e-4).init(params).masks["kernel"])
      [[ True False]
       [False  True]]
    """
    chosen: MaskBudget
    if pattern is not None:
        chosen = pattern_of(pattern, axis, sparsity, budget)
    elif sparsity is not None:
        usual = "erk" if budget is None else budget
        chosen = budgets.resolve(usual, sparsity, across=True)
    else:
        raise ValueError("ste needs sparsity=, or pattern=, as (2, 4).")
    _check.whole("interval", interval)
    _check.number("decay", decay, least=0)

    def init(params: Params) -> Topology:
        leaves = LeafRule(dense, stacked).sparse(params)
        warn_of_biases(leaves)
        live = jnp.asarray(chosen.counts(leaves), jnp.int32)
        # A copy: a donated state may not hold an array twice.
        empty = Topology(leaves.masks(leaves.all_live()), Memory(live, live + 0))
        return change(empty, params, None, jnp.int32(0))

    def change(
        topology: Topology, params: Params, grads: Grads | None, step: jax.Array
    ) -> Topology:
        del grads, step
        leaves, memory = SparseLeaves.of_masks(topology.masks, stacked), topology.memory
        ranked = [jnp.abs(x) for x in leaves.of(params)]
        masks = chosen.select(leaves, ranked, memory.target)
        if chosen.across:
            memory = memory._replace(live=live_counts(masks))
        return Topology(leaves.masks(masks), memory)

    def shrink(topology: Topology, params: Params, step: jax.Array) -> Grads:
        del step
        pruned = tree.subtract(params, tree.mask(params, topology.masks))
        return jax.tree.map(lambda x: decay * x, pruned)

    return SparseMethod(
        init,
        lambda step: (step + 1) % interval == 0,
        change,
        after_step=True,
        penalty=shrink if decay else None,
        straight_through=True,
        dense_gradient_every=1,
        stacked=stacked,
    )._replace(name="ste")
