r"""SynFlow: prune by the flow through each weight, without data (arXiv:2006.05467).

Let R be the sum of the outputs for an input of ones, with every parameter replaced by
its absolute value. Weight i scores :math:`|\theta_i| \, \partial R / \partial
|\theta_i|`, the flow through it. Pruning is iterative (algorithm 1): a layer with fewer
weights carries the same flow on fewer of them, so that they score higher in the next
round. This keeps layers from collapsing.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check
from zosam_jax._types import Masks, Params, ValueFn
from zosam_jax.sparsity.initial_masks import MaskBudget
from zosam_jax.sparsity.leaves import LeafRule, SparseLeaves
from zosam_jax.sparsity.methods.batch_losses import loss_of, mean, sparse_part
from zosam_jax.sparsity.methods.scaled_arithmetic import mantissa_and_exponent

_Prune = Callable[[list[jax.Array], list[jax.Array], jax.Array], list[jax.Array]]


def synflow_masks(
    params: Params,
    losses: Sequence[ValueFn],
    budget: MaskBudget,
    rule: LeafRule,
    rounds: int,
) -> Masks:
    """Returns masks pruned by flow, in rounds of exponentially falling density.

    Round k of n leaves the density d^(k/n), and pruned weights stay pruned. The counts
    do not depend on the data, so the function may be traced.

    Args:
      params: Pytree of arrays.
      losses: Functions `params -> R`, which are averaged.
      budget: How many weights each leaf keeps.
      rule: Which leaves are sparse, and which are stacks.
      rounds: n.

    Raises:
      ValueError: R is not positive, or the network has no flow.
    """
    magnitudes = jax.tree.map(_magnitude, params)
    leaves = rule.sparse(params)
    theta, rebuild = sparse_part(magnitudes, leaves)

    def value(t: list[jax.Array]) -> jax.Array:
        return mean(loss_of(f)(rebuild(t)) for f in losses)

    keep = _schedule(leaves, budget, rounds)

    def prune(
        k: jax.Array, carry: tuple[list[jax.Array], jax.Array]
    ) -> tuple[list[jax.Array], jax.Array]:
        masks, flows = carry
        live = [jnp.where(m, t, 0) for m, t in zip(masks, theta, strict=True)]
        flow, ranked = shares_of_flow(value, live)
        return keep(ranked, masks, k), flows.at[k].set(flow)

    # A loop, so that the network is compiled once and not once for each round.
    start = leaves.all_live(), jnp.zeros(rounds)
    masks, flows = jax.lax.fori_loop(0, rounds, prune, start)
    _check_flows(flows)
    return leaves.masks(masks)


def shares_of_flow(
    value: Callable[[list[jax.Array]], jax.Array], theta: list[jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """Returns log2(R), and `theta * dR/dtheta / R`, which has the order of the scores.

    R itself may be beyond float32; see `scaled_arithmetic`.

    Args:
      value: `theta -> R`.
      theta: The sparse leaves, not negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.methods.synflow import shares_of_flow
      >>> layers = [jnp.array([[1.0, 3.0]]), jnp.array([[1.0], [1.0]])]
      >>> _, shares = shares_of_flow(lambda t: (t[0] @ t[1]).sum(), layers)
      >>> print(shares[0])
      [[0.25 0.75]]
    """
    # R = m 2^e has the cotangent 1/m at m. It gives dR/dtheta / R, whatever e is.
    flow, pull_back, exponent = jax.vjp(
        lambda t: mantissa_and_exponent(value, t), theta, has_aux=True
    )
    (slopes,) = pull_back(1 / flow)
    shares = [t * s for t, s in zip(theta, slopes, strict=True)]
    return jnp.log2(flow) + exponent.astype(flow.dtype), shares


def _schedule(leaves: SparseLeaves, budget: MaskBudget, rounds: int) -> _Prune:
    """Returns `(scores, masks, round) -> masks` with the counts of every round."""
    falling = [
        _falling(size, count, rounds)
        for size, count in zip(
            budget.by_ranking(leaves.sizes),
            budget.by_ranking(budget.counts(leaves)),
            strict=True,
        )
    ]
    return lambda ranked, masks, k: budget.select(
        leaves, ranked, [counts[k] for counts in falling], masks
    )


def _falling(size: int, last: int, rounds: int) -> jax.Array:
    """Returns `size * (last/size)**(k/rounds)`, k = 1 to `rounds`, rounded to int32."""
    # Equal ratios from round to round, as in the paper: a large first cut would remove
    # a layer before its scores could rise.
    fraction = last / size
    # On the host in float64: float32 would lose whole weights of a large layer.
    falling = [round(size * fraction ** (k / rounds)) for k in range(1, rounds)]
    return jnp.asarray([*(max(n, last) for n in falling), last], jnp.int32)


def _check_flows(flows: jax.Array) -> None:
    """Raises `ValueError` unless R is positive in every round; `flows` is log2(R)."""
    # Under jit R is not known, and a network without flow gives masks by index.
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


def _magnitude(x: jax.typing.ArrayLike) -> jax.Array:
    x = jnp.asarray(x)
    return jnp.abs(x) if jnp.issubdtype(x.dtype, jnp.floating) else x
