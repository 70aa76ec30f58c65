"""RigL: grow the weights with the largest gradient."""

from typing import Unpack

from zosam_jax.sparsity import scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import Options, check_options, dynamic


def rigl(sparsity: float, total_steps: int, **options: Unpack[Options]) -> SparseMethod:
    """RigL (arXiv:1911.11134): drop the smallest |w|, grow the largest |dL/dw|.

    The gradient is the one that trains the weights: with `gradient=zs.zosam(...)` it is
    taken at the perturbed parameters.

    Args:
      sparsity: As in `dynamic`.
      total_steps: As in `dynamic`.
      **options: `interval=100, drop_fraction=0.3, stop_fraction=0.75, budget="erk",
        dense=(), seed=0`, as in `dynamic`.
    """
    check_options("rigl", options)
    return dynamic(
        sparsity, total_steps, drop=scores.magnitude, grow=scores.gradient, **options
    )
