"""N:M sparsity whose masks change while the network trains."""

from collections.abc import Sequence

import jax

from zosam_jax._options import checks_arguments
from zosam_jax._types import StackRule
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.initial_masks import at_random
from zosam_jax.sparsity.leaves import DenseRule, LeafRule
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.patterns import Axis, best_of_groups, pattern_of
from zosam_jax.sparsity.prune_and_grow import Proposal, exchange


@checks_arguments
def nm(
    n: int,
    m: int,
    total_steps: int,
    *,
    interval: int = 100,
    drop_fraction: float | schedules.Fraction = 0.3,
    stop_fraction: float = 0.75,
    axis: Axis = -2,
    dense: DenseRule = (),
    stacked: StackRule = (),
    seed: jax.typing.ArrayLike = 0,
) -> SparseMethod:
    r"""RigL within N:M groups: n of every m consecutive weights are always live.

    A change drops the :math:`\lfloor \alpha_t k \rfloor` smallest |w| of a layer's k
    live weights, wherever they are. Then every group grows what it misses by the
    largest |dL/dw|. A weight that was just dropped may grow at once, so a group that
    lost weights with large gradients keeps its pattern. The first masks are random.

    Fixed N:M masks of a trained network are `static(pattern=(n, m),
    criterion="magnitude")`; masks that are chosen anew from dense weights in every step
    are `ste(pattern=(n, m), decay=2e-4)`.

    Args:
      n: Live weights of every group.
      m: Weights of a group. It divides the size of `axis` of every sparse layer.
      total_steps: Optimizer steps of the whole training.
      interval: As in `dynamic`.
      drop_fraction: As in `dynamic`.
      stop_fraction: As in `dynamic`.
      axis: Axis along which the groups lie, the inputs of the layer, as an index or
        `(path, shape of one layer) -> index`: -2 for kernels `(..., in, out)` of Flax
        and Haiku; 1 for Equinox's, `(out, in, ...)`.
      dense: Leaves that stay dense, as in `dynamic`.
      stacked: Leaves that are stacks of layers, as in `dynamic`.
      seed: As in `dynamic`.

    Returns:
      A method for `sparsify`. The sparsity of its sparse leaves is `1 - n / m`.

    Raises:
      ValueError: An argument is out of range; at init, a leaf that groups of m do not
        divide.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> method = zs.sparsity.nm(2, 4, total_steps=1000)
      >>> kernel = method.init({"kernel": jnp.ones((8, 2))}).masks["kernel"]
      >>> print(kernel.reshape(2, 4, 2).sum(axis=1))
      [[2 2]
       [2 2]]
    """
    pattern = pattern_of((n, m), axis)

    def arrange(proposal: Proposal) -> Sequence[jax.Array]:
        return [
            kept | best_of_groups(pattern, path, score, ~kept, kept)
            for path, score, kept in zip(
                proposal.leaves.paths, proposal.growing, proposal.kept, strict=True
            )
        ]

    return exchange(
        at_random(pattern, LeafRule(dense, stacked), seed),
        total_steps,
        drop=scores.magnitude,
        grow=scores.gradient,
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        seed=seed,
        stacked=stacked,
        arrange=arrange,
    )._replace(name="nm")
