"""SET: grow weights at random."""

from typing import Unpack

from zosam_jax.sparsity import scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import Options, check_options, dynamic


def set_(
    sparsity: float,
    total_steps: int,
    *,
    by_sign: bool = False,
    **options: Unpack[Options],
) -> SparseMethod:
    """SET (arXiv:1707.04780): drop the smallest |w|, grow at random.

    By default in the form that the literature compares (RigL's): one magnitude
    threshold a layer and the cosine-annealed fraction. The original is
    `set_(..., by_sign=True, drop_fraction=optax.constant_schedule(0.3), budget="er",
    stop_fraction=1.0)` with an interval of an epoch.

    Args:
      sparsity: As in `dynamic`.
      total_steps: As in `dynamic`.
      by_sign: Drop the smallest positive and the largest negative weights, the same
        fraction of each.
      **options: As in `rigl`.
    """
    check_options("set_", options, "by_sign")
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=scores.random,
        by_sign=by_sign,
        **options,
    )
