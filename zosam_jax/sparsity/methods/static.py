"""Masks that are chosen once, at initialization, and kept."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import checks_arguments
from zosam_jax._types import Key, Masks, Params, StackRule, ValueFn
from zosam_jax.estimators import check_function
from zosam_jax.sparsity import budgets, scores
from zosam_jax.sparsity.budgets import Budget, DenseRule
from zosam_jax.sparsity.initial_masks import (
    MaskBudget,
    highest,
    mask_key,
    random_masks,
)
from zosam_jax.sparsity.leaves import LeafRule, SparseLeaves, warn_of_biases
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.methods.grasp import grasp_scores
from zosam_jax.sparsity.methods.snip import snip_scores
from zosam_jax.sparsity.methods.synflow import synflow_masks
from zosam_jax.sparsity.patterns import Axis, pattern_of


class _Request(NamedTuple):
    """The arguments of `static` that a criterion gets."""

    losses: Sequence[ValueFn]
    budget: MaskBudget
    rule: LeafRule
    key: Key
    rounds: int


_Criterion = Callable[[Params, _Request], Masks]


class _Row(NamedTuple):
    """A criterion by name.

    Attributes:
      criterion: `(params, request) -> masks`.
      budget: Its default budget.
      needs: The `value_fn` that it needs, in words.
      rounds: How often it prunes by default; None for once.
    """

    criterion: _Criterion
    budget: str
    needs: str | None = None
    rounds: int | None = None


def _by_score(score: scores.Score) -> _Criterion:
    def choose(params: Params, request: _Request) -> Masks:
        if score is scores.random:
            return random_masks(params, request.key, request.budget, request.rule)
        ranking = snip_scores(params, request.losses, request.key, score)
        return highest(params, ranking, request.budget, request.rule)

    return choose


def _grasp(params: Params, request: _Request) -> Masks:
    ranking = grasp_scores(params, request.losses, request.rule)
    return highest(params, ranking, request.budget, request.rule)


def _synflow(params: Params, request: _Request) -> Masks:
    return synflow_masks(
        params, request.losses, request.budget, request.rule, request.rounds
    )


_LOSS = "the loss of one batch, such as value_fn=lambda p: loss(p, batch)"
_FLOW = (
    "the sum of the outputs for an input of ones, such as "
    "value_fn=lambda p: jnp.sum(model.apply(p, ones))"
)

CRITERIA: dict[str, _Row] = {
    "random": _Row(_by_score(scores.random), "erk"),
    "magnitude": _Row(_by_score(scores.magnitude), "erk"),
    "snip": _Row(_by_score(scores.saliency), "global", _LOSS),
    "grasp": _Row(_grasp, "global", _LOSS),
    "synflow": _Row(_synflow, "global", _FLOW, 100),
}
"""The criteria by name."""


@checks_arguments
def static(
    sparsity: float | None = None,
    criterion: str | scores.Score = "random",
    *,
    value_fn: ValueFn | Sequence[ValueFn] | None = None,
    budget: str | Budget | None = None,
    dense: DenseRule = (),
    stacked: StackRule = (),
    rounds: int | None = None,
    seed: jax.typing.ArrayLike = 0,
    masks: Masks | None = None,
    pattern: tuple[int, int] | None = None,
    axis: Axis = -2,
) -> SparseMethod:
    r"""A fixed mask, chosen by a criterion at `init`, or given.

    With the weights :math:`\theta`, the loss L, its gradient g and its Hessian H, the
    criteria keep the weights with the highest

    * "random": uniform random number;
    * "magnitude": :math:`|\theta|`;
    * "snip": :math:`|\theta g|` (arXiv:1810.02340), at the weights that are trained;
    * "grasp": :math:`\theta (H g)`, with its sign (arXiv:2002.07376). g and H are
      taken over the sparse leaves alone, as in the authors' code. That code divides
      the logits by 200 and takes ten images of each class; here `value_fn` does both;
    * "synflow": :math:`|\theta| \, \partial R / \partial |\theta|`
      (arXiv:2006.05467), where R is `value_fn` at the absolute values of all
      parameters. It is scored anew and pruned `rounds` times, to the density
      :math:`d^{k / rounds}` after round k. It needs no data: `value_fn` is
      `lambda p: jnp.sum(model.apply(p, ones))` for one image of ones, with BatchNorm in
      evaluation mode. R may be 1e200: only the activations of each layer have to fit
      float32. The network's functions must be positively homogeneous (ReLU, pooling);
      through others no flow is conserved.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      criterion: A name from above; or a score `(params, grads, key) -> tree`. The
        weights with the highest scores are kept.
      value_fn: For the criteria that need it: `params -> loss`, or `(loss, aux)`, on
        one batch; or a sequence of such functions, one for each batch, whose mean is L.
        For "grasp" and "synflow" it is called at float32 parameters. For "grasp" it is
        differentiated twice, in forward mode over reverse mode.
      budget: Sparsity distribution: "erk", "erk_fused", "er", "uniform", a function as
        in `budgets`, or "global", which ranks all sparse leaves together. Default:
        "global" for "snip", "grasp" and "synflow", as in their papers; otherwise "erk".
        With "synflow" and a budget other than "global", the density of every layer
        falls to its own d.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`.
      rounds: Rounds of "synflow", 100 by default. The other criteria prune once.
      seed: Seed of the random criterion.
      masks: A mask tree to use unchanged; of the arguments above, only `stacked`
        counts, for a report.
      pattern: `(n, m)`, as `(2, 4)`: the n best of every m consecutive weights along
        `axis`. `sparsity` is then `1 - n / m` and may be left out, and there is no
        budget. `static(pattern=(2, 4), criterion="magnitude")` at a trained network,
        followed by fine-tuning, is NVIDIA's recipe for 2:4 sparsity (arXiv:2104.08378).
      axis: Axis along which the groups lie, the inputs of the layer, as an index or
        `(path, shape) -> index`: -2 for kernels `(..., in, out)` of Flax and Haiku; 1
        for Equinox's, `(out, in, ...)`.

    Returns:
      A method for `sparsify`. Its `init` may be traced; then scores that are not finite
      and an R that is not positive are not detected.

    Raises:
      ValueError: An argument is out of range; a criterion without the `value_fn` that
        it needs; at init, masks that do not fit the parameters, a budget that cannot be
        met, scores that are not finite, an R that is not positive, or a network without
        a flow (softmax, GELU, LayerNorm).

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> method = zs.sparsity.static(0.5, "magnitude")
      >>> print(method.init(params).masks["kernel"])
      [[ True False]
       [False  True]]
    """
    if masks is not None:
        return _made(lambda params: _given(params, masks), stacked)
    _check.whole("seed", seed, least=0)
    row = _row(criterion)
    chosen: MaskBudget
    if pattern is not None:
        chosen = pattern_of(pattern, axis, sparsity, budget)
    else:
        _check.number("sparsity", sparsity, least=0, below=1, traced=False)
        assert sparsity is not None
        usual = row.budget if budget is None else budget
        chosen = budgets.resolve(usual, sparsity, across=True)
    rounds = _rounds(rounds, criterion, row, pattern)
    losses = _functions(value_fn)
    _check_needs(criterion, row, losses)

    def init(params: Params) -> Topology:
        key = mask_key(seed)
        rule = LeafRule(dense, stacked)
        request = _Request(losses, chosen, rule, key, rounds)
        found = row.criterion(params, request)
        warn_of_biases(SparseLeaves.of_masks(found, stacked))
        return Topology(found)

    # A pattern and a criterion of the loss leave no choice to the caller.
    is_free = pattern is None and not row.needs
    return _made(init, stacked, _given if is_free else None)


def _made(
    init: Callable[[Params], Topology],
    stacked: StackRule,
    begin: Callable[[Params, Masks], Topology] | None = None,
) -> SparseMethod:
    return SparseMethod(init, begin=begin, name="static", stacked=stacked)


def _given(params: Params, masks: Masks) -> Topology:
    return Topology(_fitting(masks, params))


def _row(criterion: str | scores.Score) -> _Row:
    if callable(criterion):
        _check.callable_as("criterion", criterion, scores.SIGNATURE)
        return _Row(_by_score(criterion), "erk")
    _check.one_of("criterion", criterion, CRITERIA)
    return CRITERIA[criterion]


def _rounds(
    rounds: int | None,
    criterion: str | scores.Score,
    row: _Row,
    pattern: tuple[int, int] | None,
) -> int:
    """Returns the number of rounds.

    Raises:
      ValueError: The criterion prunes once and `rounds` was given, or it prunes in
        rounds and a pattern was given.
    """
    if rounds is None:
        rounds = row.rounds or 1
    elif row.rounds is None:
        known = ", ".join(repr(name) for name, r in CRITERIA.items() if r.rounds)
        raise ValueError(
            f"rounds={rounds!r}: the criterion {criterion!r} prunes once. Leave rounds "
            f"out; it is for {known}."
        )
    _check.whole("rounds", rounds)
    if pattern is not None and row.rounds:
        raise ValueError(
            f"the criterion {criterion!r} prunes in rounds to a growing sparsity; a "
            "pattern has one. Use another criterion, or leave pattern out."
        )
    return rounds


def _check_needs(
    criterion: str | scores.Score, row: _Row, losses: Sequence[ValueFn]
) -> None:
    """Raises `ValueError` for a criterion without the `value_fn` that it needs."""
    if row.needs and not losses:
        raise ValueError(f"the criterion {criterion!r} needs value_fn: {row.needs}.")


def _functions(value_fn: ValueFn | Sequence[ValueFn] | None) -> list[ValueFn]:
    if value_fn is None:
        return []
    functions = list(value_fn) if isinstance(value_fn, Sequence) else [value_fn]
    for function in functions:
        check_function(function)
    return functions


def _fitting(masks: Masks, params: Params) -> Masks:
    tree.check_masks(masks, params)
    # Copies: the caller keeps the given ones when the state is donated.
    return jax.tree.map(lambda m: jnp.array(m, copy=True), masks)
