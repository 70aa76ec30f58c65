"""SET: drop the smallest weights, grow at random."""

from typing import Unpack

from zosam_jax._options import passes_options_to
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import Options, dynamic


@passes_options_to(dynamic)
def set_(
    sparsity: float,
    total_steps: int,
    *,
    by_sign: bool = False,
    **options: Unpack[Options],
) -> SparseMethod:
    """SET (arXiv:1707.04780): drops the smallest |w|, grows at random.

    The defaults are the form that the literature compares with, from RigL's paper: one
    magnitude threshold a layer and a drop fraction annealed by a cosine. The original
    is `set_(..., by_sign=True, drop_fraction=optax.constant_schedule(0.3), budget="er",
    stop_fraction=1.0)` with an interval of one epoch.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      total_steps: Optimizer steps of the whole training.
      by_sign: Drop the smallest positive and the largest negative weights, the same
        fraction of each.
      **options: As in `dynamic`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: As in `dynamic`.
    """
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=scores.random,
        by_sign=by_sign,
        **options,
    )._replace(name="set_")
