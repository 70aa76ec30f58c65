"""Masks that are chosen once, at initialisation, and kept."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._types import ValueFn
from zosam_jax.estimators import scalar_loss
from zosam_jax.sparsity import scores
from zosam_jax.sparsity._masks import initial_masks
from zosam_jax.sparsity._method import SparseMethod, Topology
from zosam_jax.sparsity.budgets import BUDGETS, Budget, DenseRule

CRITERIA: dict[str, tuple[scores.Score, str]] = {
    "random": (scores.random, "erk"),
    "magnitude": (scores.magnitude, "erk"),
    "snip": (scores.saliency, "global"),
}
"""Score and default budget by name."""


def static(
    sparsity: float | None = None,
    criterion: str | scores.Score = "random",
    *,
    value_fn: ValueFn | None = None,
    budget: str | Budget | None = None,
    dense: DenseRule = (),
    seed: jax.typing.ArrayLike = 0,
    masks: Any | None = None,
) -> SparseMethod:
    """A fixed mask, from a criterion at `init` or given.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      criterion: "random"; "magnitude", the largest |w|; "snip", the largest
        |w dL/dw| (arXiv:1810.02340), measured on the weights that will be trained; or
        a score `(params, grads, key) -> tree`.
      value_fn: `params -> loss`, or `(loss, aux)`, on a batch, for criteria that need
        the gradient.
      budget: "erk", "uniform", a function as in `budgets`, or "global", which ranks all
        sparse leaves together. Default: "erk", for "snip" "global" as in its paper.
      dense: Leaves that stay dense; see `sparse_leaves`.
      seed: Of the random criterion.
      masks: A mask tree to use as it is, instead of all the above.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range; "snip" without `value_fn`; at init, masks
        that do not fit the parameters or a budget that cannot be met.
    """
    if masks is not None:
        return SparseMethod(lambda params: Topology(_fitting(masks, params)))
    _check.number("sparsity", sparsity, least=0, below=1)
    target = cast(float, sparsity)
    if not callable(criterion):
        _check.one_of("criterion", criterion, CRITERIA)
    score, usual = (criterion, "erk") if callable(criterion) else CRITERIA[criterion]
    budget = usual if budget is None else budget
    if not callable(budget):
        _check.one_of("budget", budget, [*BUDGETS, "global"])
    if criterion == "snip" and value_fn is None:
        raise ValueError(
            'static(criterion="snip") needs value_fn: the loss of one batch, such as '
            "value_fn=lambda p: loss(p, batch)."
        )

    def init(params: Any) -> Topology:
        grads = None
        if value_fn is not None:
            grads = jax.grad(_loss_alone(value_fn))(params)
        ranking = score(params, grads, jax.random.key(seed))
        return Topology(initial_masks(params, ranking, target, budget, dense))

    return SparseMethod(init)


def _loss_alone(value_fn: ValueFn) -> ValueFn:
    """The loss of a `value_fn` of either form."""

    def loss(params: Any) -> jax.Array:
        result = value_fn(params)
        value = result[0] if isinstance(result, tuple) else result
        return scalar_loss(lambda _: value, False)(params)[0]

    return loss


def _fitting(masks: Any, params: Any) -> Any:
    tree.check_masks(masks, params)
    # Copies: the caller keeps his own when the state is donated.
    return jax.tree.map(lambda m: jnp.array(m, copy=True), masks)
