"""N:M sparsity whose masks change while the network trains."""

from collections.abc import Callable, Sequence

import jax

from zosam_jax.sparsity import scores
from zosam_jax.sparsity.budgets import DenseRule
from zosam_jax.sparsity.mask_trees import at_random
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.patterns import Axis, best_of_groups, pattern_of
from zosam_jax.sparsity.prune_and_grow import Proposal, exchange


def nm(
    n: int,
    m: int,
    total_steps: int,
    *,
    interval: int = 100,
    drop_fraction: float | Callable[[jax.Array], jax.Array] = 0.3,
    stop_fraction: float = 0.75,
    axis: Axis = -2,
    dense: DenseRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""RigL within N:M groups: n of every m consecutive weights are live, always.

    A change drops the :math:`\lfloor \alpha_t k \rfloor` smallest |w| of a layer's k
    live weights, wherever they lie, and then every group grows what it misses by the
    largest |dL/dw|. A weight just dropped may grow at once: a group that lost little
    against its gradients keeps its pattern. The first masks are random.

    Fixed N:M masks, from a trained network, are `static(pattern=(n, m),
    criterion="magnitude")`; masks chosen anew from dense weights in every step are
    `ste(pattern=(n, m), decay=2e-4)`.

    Args:
      n: Live weights of every group.
      m: Weights of a group. It divides the size of `axis` of every sparse leaf.
      total_steps: Optimizer steps of the whole training.
      interval: As in `dynamic`.
      drop_fraction: As in `dynamic`.
      stop_fraction: As in `dynamic`.
      axis: The axis that the groups lie along, the inputs of the layer, as an index or
        `(path, shape) -> index`: -2 in the layout of Flax and Haiku, `(..., in, out)`;
        1 in Equinox's, `(out, in, ...)`.
      dense: Leaves that stay dense; see `sparse_leaves`.
      seed: As in `dynamic`.

    Returns:
      A method for `sparsify`. The sparsity of its sparse leaves is `1 - n / m`.

    Raises:
      ValueError: An argument is out of range; at init, a leaf that groups of m do not
        divide.
    """
    pattern = pattern_of((n, m), axis, None, None)

    def arrange(proposal: Proposal) -> Sequence[jax.Array]:
        return [
            kept | best_of_groups(pattern, path, score, ~kept, kept)
            for path, score, kept in zip(
                proposal.paths, proposal.growing, proposal.kept, strict=True
            )
        ]

    return exchange(
        at_random(pattern.sparsity, pattern, dense, seed),
        total_steps,
        drop=scores.magnitude,
        grow=scores.gradient,
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        seed=seed,
        arrange=arrange,
    )
