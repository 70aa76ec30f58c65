r"""Criteria of pruning at initialisation: from parameters and losses to a mask tree.

GraSP keeps the weights without which the gradient flow :math:`g^T g` would shrink most:
to first order, removing weight i changes it by :math:`-2 \theta_i (H g)_i`. Those with
the largest :math:`\theta_i (H g)_i` stay, sign and all (arXiv:2002.07376, equation 8).

SynFlow looks at no data. With every parameter replaced by its absolute value and ones
for input, R is the sum of the outputs, and weight i scores
:math:`|\theta_i| \, \partial R / \partial |\theta_i|`, the flow through it. Pruning is
iterative: a layer that thins out carries the same flow on fewer weights, which so score
higher in the next round (arXiv:2006.05467, algorithm 1).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check
from zosam_jax._types import ValueFn
from zosam_jax.estimators import scalar_loss
from zosam_jax.selection import select
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.budgets import Budget, DenseRule, counts, sparse_leaves
from zosam_jax.sparsity.mask_trees import (
    from_leaves,
    global_total,
    initial_masks,
    select_globally,
)
from zosam_jax.sparsity.methods.flow import mantissa_and_exponent
from zosam_jax.sparsity.patterns import Pattern


class Request(NamedTuple):
    """What a criterion is asked for; the fields are arguments of `static`."""

    losses: Sequence[ValueFn]
    sparsity: float
    budget: str | Budget | Pattern
    dense: DenseRule
    key: jax.Array
    rounds: int


Criterion = Callable[[Any, Request], Any]
"""`(params, request) -> masks`."""


def by_score(score: scores.Score) -> Criterion:
    """The criterion that keeps the highest scores; its gradient is the losses' mean."""

    def choose(params: Any, request: Request) -> Any:
        grads = None
        if request.losses:
            grads = _mean(jax.grad(_alone(f))(params) for f in request.losses)
        return _highest(params, score(params, grads, request.key), request)

    return choose


def grasp(params: Any, request: Request) -> Any:
    """The criterion that keeps the largest theta * Hg."""
    return _highest(params, grasp_scores(params, request), request)


def grasp_scores(params: Any, request: Request) -> Any:
    """GraSP's theta * (H g) at the sparse leaves, 0 at dense ones.

    g and H are those of the sparse leaves alone: the flow counted is the one through
    weights that may be pruned, in float32 or wider. Batches pass one after another.
    """
    indices, theta, rebuild = _sparse_part(params, request.dense)

    def gradient(loss: ValueFn) -> Callable[[list[jax.Array]], list[jax.Array]]:
        return jax.grad(lambda t: _alone(loss)(rebuild(t)))

    g = _mean(gradient(f)(theta) for f in request.losses)
    hg = _mean(jax.jvp(gradient(f), (theta,), (g,))[1] for f in request.losses)
    leaves = [jnp.zeros(())] * jax.tree.structure(params).num_leaves
    for i, t, h in zip(indices, theta, hg, strict=True):
        leaves[i] = t * h
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def synflow(params: Any, request: Request) -> Any:
    """The criterion that prunes by flow, in rounds of exponentially falling density.

    Round k of n leaves the density d^(k/n); what is pruned stays so. The counts are
    whole numbers known beforehand, so that `init` may be traced.
    """
    magnitudes = jax.tree.map(_magnitude, params)
    indices, theta, rebuild = _sparse_part(magnitudes, request.dense)

    def value(t: list[jax.Array]) -> jax.Array:
        return _mean(_alone(f)(rebuild(t)) for f in request.losses)

    keep = _schedule(params, indices, request)

    def prune(k: jax.Array, carry: Any) -> Any:
        masks, flows = carry
        live = [jnp.where(m, t, 0) for m, t in zip(masks, theta, strict=True)]
        flow, ranked = shares_of_flow(value, live)
        return keep(ranked, masks, k), flows.at[k].set(flow)

    start = [jnp.ones(t.shape, bool) for t in theta], jnp.zeros(request.rounds)
    masks, flows = jax.lax.fori_loop(0, request.rounds, prune, start)
    _check_flows(flows)
    return from_leaves(params, dict(zip(indices, masks, strict=True)))


def shares_of_flow(
    value: Callable[[list[jax.Array]], jax.Array], theta: list[jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """log2(R), and theta * dR/dtheta / R: the ranking of the scores; see `_flow`."""
    flow, pull_back, exponent = jax.vjp(
        lambda t: mantissa_and_exponent(value, t), theta, has_aux=True
    )
    (slopes,) = pull_back(1 / flow)
    shares = [t * s for t, s in zip(theta, slopes, strict=True)]
    return jnp.log2(flow) + exponent, shares


def _schedule(
    params: Any, indices: list[int], request: Request
) -> Callable[[list[jax.Array], list[jax.Array], jax.Array], list[jax.Array]]:
    """`(scores, masks, round) -> masks` with the counts of every round."""
    leaves = jax.tree.leaves(params)
    sizes = [jnp.size(leaves[i]) for i in indices]
    if request.budget == "global":
        total = global_total(sizes, request.sparsity)
        steps = _falling(sum(sizes), total, request.rounds)
        return lambda ranked, masks, k: select_globally(ranked, masks, steps[k])
    assert not isinstance(request.budget, Pattern)
    kept = counts(params, request.sparsity, request.budget, request.dense)
    by_leaf = [
        _falling(n, kept[i], request.rounds)
        for i, n in zip(indices, sizes, strict=True)
    ]
    return lambda ranked, masks, k: select(
        ranked, masks, [steps[k] for steps in by_leaf]
    )


def _falling(size: int, last: int, rounds: int) -> jax.Array:
    """`size * (last/size)**(k/rounds)` for k = 1 to `rounds`, rounded, int32."""
    fraction = last / size
    falling = [round(size * fraction ** (k / rounds)) for k in range(1, rounds)]
    return jnp.asarray([*(max(n, last) for n in falling), last], jnp.int32)


def _check_flows(flows: jax.Array) -> None:
    """Raises `ValueError` unless every round's R is positive; given is log2(R)."""
    if _check.is_traced(flows):
        return
    usable = np.isfinite(np.asarray(flows))
    if usable.all():
        return
    raise ValueError(
        f"SynFlow's value_fn gave no positive number in round {np.argmin(usable) + 1} "
        f"of {len(usable)}. It is to be the sum of the outputs for an input of ones, "
        "value_fn=lambda p: jnp.sum(model.apply(p, ones)): at absolute parameters a "
        "ReLU network's is positive, if they are finite."
    )


def _highest(params: Any, ranking: Any, request: Request) -> Any:
    return initial_masks(
        params, ranking, request.sparsity, request.budget, request.dense
    )


def _sparse_part(
    params: Any, dense: DenseRule
) -> tuple[list[int], list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """Indices and entries of the sparse leaves, and the function back to a tree.

    All floating point leaves are float32 or wider.
    """
    indices = list(sparse_leaves(params, dense).values())
    leaves, treedef = jax.tree.flatten(params)
    wide = [_wide(x) for x in leaves]

    def rebuild(theta: list[jax.Array]) -> Any:
        replaced = dict(zip(indices, theta, strict=True))
        return treedef.unflatten([replaced.get(i, x) for i, x in enumerate(wide)])

    return indices, [wide[i] for i in indices], rebuild


def _alone(value_fn: ValueFn) -> ValueFn:
    """The loss of a `value_fn` of either form."""

    def loss(params: Any) -> jax.Array:
        result = value_fn(params)
        value = result[0] if isinstance(result, tuple) else result
        return scalar_loss(lambda _: value, False)(params)[0]

    return loss


def _mean(trees: Iterable[Any]) -> Any:
    """The mean of equal trees, float32 or wider; one is held beside the sum."""
    total, number = None, 0
    for x in trees:
        wide = jax.tree.map(_wide, x)
        total = wide if total is None else jax.tree.map(jnp.add, total, wide)
        number += 1
    return jax.tree.map(lambda x: x / number, total)


def _magnitude(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return jnp.abs(x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _wide(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if floating else x
