"""Masks that are chosen once, at initialisation, and kept."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._types import ValueFn
from zosam_jax.estimators import check_function
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.budgets import BUDGETS, Budget, DenseRule
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.methods.criteria import (
    Criterion,
    Request,
    by_score,
    grasp,
    synflow,
)
from zosam_jax.sparsity.patterns import Axis, pattern_of


class _Row(NamedTuple):
    """A criterion by name.

    Attributes:
      criterion: The function.
      budget: Its default budget.
      needs: Which `value_fn` it needs.
      rounds: How often it prunes by default; None where it prunes once.
    """

    criterion: Criterion
    budget: str
    needs: str | None = None
    rounds: int | None = None


_LOSS = "the loss of one batch, such as value_fn=lambda p: loss(p, batch)"
_FLOW = (
    "the sum of the outputs for an input of ones, such as "
    "value_fn=lambda p: jnp.sum(model.apply(p, ones))"
)

CRITERIA: dict[str, _Row] = {
    "random": _Row(by_score(scores.random), "erk"),
    "magnitude": _Row(by_score(scores.magnitude), "erk"),
    "snip": _Row(by_score(scores.saliency), "global", _LOSS),
    "grasp": _Row(grasp, "global", _LOSS),
    "synflow": _Row(synflow, "global", _FLOW, 100),
}


def static(
    sparsity: float | None = None,
    criterion: str | scores.Score = "random",
    *,
    value_fn: ValueFn | Sequence[ValueFn] | None = None,
    budget: str | Budget | None = None,
    dense: DenseRule = (),
    rounds: int | None = None,
    seed: jax.typing.ArrayLike = 0,
    masks: Any | None = None,
    pattern: tuple[int, int] | None = None,
    axis: Axis = -2,
) -> SparseMethod:
    r"""A fixed mask, from a criterion at `init` or given.

    With :math:`\theta` the weights, L the loss, g its gradient and H its Hessian, the
    criteria keep the weights with the highest

    * "random": uniform random number;
    * "magnitude": :math:`|\theta|`;
    * "snip": :math:`|\theta g|` (arXiv:1810.02340), on the weights that are trained;
    * "grasp": :math:`\theta (H g)`, with its sign (arXiv:2002.07376). g and H are those
      of the sparse leaves alone, as in the authors' code. That code also divides the
      logits by 200; that is for `value_fn` to do;
    * "synflow": :math:`|\theta| \, \partial R / \partial |\theta|`
      (arXiv:2006.05467), where R is `value_fn` at the absolute values of all
      parameters. `rounds` times it is scored anew and pruned, to the density
      :math:`d^{k / rounds}` after round k. No data: `value_fn` is
      `lambda p: jnp.sum(model.apply(p, ones))`, for one image of ones, with the running
      statistics of any BatchNorm (eval mode). Of layers, not of R, float32 holds the
      numbers: R may be 1e200. The network's functions must be positively homogeneous
      (ReLU, pooling), or no flow is conserved.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      criterion: A name from above; or a score `(params, grads, key) -> tree`, of which
        the highest are kept.
      value_fn: `params -> loss`, or `(loss, aux)`, on a batch, for criteria that need
        it; or a sequence of such functions, one for each batch, whose mean is L. For
        "grasp" and "synflow" it is called at parameters in float32; for "grasp" it is
        differentiated twice, in forward mode over reverse mode.
      budget: "erk", "er", "uniform", a function as in `budgets`, or "global", which
        ranks all sparse leaves together. Default: "global" for "snip", "grasp" and
        "synflow", as in their papers, else "erk". For "synflow" with another budget,
        every layer's density falls to its own d.
      dense: Leaves that stay dense; see `sparse_leaves`.
      rounds: Rounds of "synflow", 100 by default. The other criteria prune once.
      seed: Of the random criterion.
      masks: A mask tree to use as it is, instead of all the above.
      pattern: `(n, m)`, as `(2, 4)`: the n best of every m consecutive weights along
        `axis`, whatever the others score; `sparsity` is then `1 - n / m` and may be
        left out, and there is no budget. `static(pattern=(2, 4),
        criterion="magnitude")` at a trained network, then fine-tuning, is NVIDIA's
        recipe for 2:4 sparsity (arXiv:2104.08378).
      axis: The axis that the groups lie along, the inputs of the layer, as an index or
        `(path, shape) -> index`: -2 in the layout of Flax and Haiku, `(..., in, out)`;
        1 in Equinox's, `(out, in, ...)`.

    Returns:
      A method for `sparsify`. Its `init` may be traced; scores that are not finite,
      and an R that is not positive, are then not noticed.

    Raises:
      ValueError: An argument is out of range; a criterion without the `value_fn` that
        it needs; at init, masks that do not fit the parameters, a budget that cannot be
        met, scores that are not finite, an R that is not positive, or a network without
        a flow (softmax, GELU, LayerNorm).
    """
    if masks is not None:
        return SparseMethod(lambda params: Topology(_fitting(masks, params)))
    groups = None if pattern is None else pattern_of(pattern, axis, sparsity, budget)
    sparsity = sparsity if groups is None else groups.sparsity
    _check.number("sparsity", sparsity, least=0, below=1)
    if callable(criterion):
        row = _Row(by_score(criterion), "erk")
    else:
        _check.one_of("criterion", criterion, CRITERIA)
        row = CRITERIA[criterion]
    if rounds is None:
        rounds = row.rounds or 1
    elif row.rounds is None:
        known = ", ".join(repr(name) for name, r in CRITERIA.items() if r.rounds)
        raise ValueError(
            f"static(rounds={rounds!r}): the criterion {criterion!r} prunes once. "
            f"Leave rounds out; it is for {known}."
        )
    _check.whole("rounds", rounds)
    if groups is not None and row.rounds:
        raise ValueError(
            f'static(criterion="{criterion}") prunes in rounds to a growing sparsity; '
            "a pattern has one. Use another criterion, or leave pattern out."
        )
    budget = row.budget if budget is None else budget
    if not callable(budget):
        _check.one_of("budget", budget, [*BUDGETS, "global"])
    losses = _functions(value_fn)
    if row.needs and not losses:
        raise ValueError(
            f'static(criterion="{criterion}") needs value_fn: {row.needs}.'
        )

    def init(params: Any) -> Topology:
        request = Request(
            losses,
            cast(float, sparsity),
            groups or budget,
            dense,
            jax.random.key(seed),
            rounds,
        )
        return Topology(row.criterion(params, request))

    return SparseMethod(init)


def _functions(value_fn: ValueFn | Sequence[ValueFn] | None) -> list[ValueFn]:
    if value_fn is None:
        return []
    functions = list(value_fn) if isinstance(value_fn, Sequence) else [value_fn]
    for function in functions:
        check_function(function)
    return functions


def _fitting(masks: Any, params: Any) -> Any:
    tree.check_masks(masks, params)
    # Copies: the caller keeps his own when the state is donated.
    return jax.tree.map(lambda m: jnp.array(m, copy=True), masks)
