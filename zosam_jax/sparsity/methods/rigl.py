"""RigL: drop the smallest weights, grow those with the largest gradient."""

from typing import Unpack

from zosam_jax._options import passes_options_to
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import Options, dynamic


@passes_options_to(dynamic)
def rigl(sparsity: float, total_steps: int, **options: Unpack[Options]) -> SparseMethod:
    """RigL (arXiv:1911.11134): drops the smallest |w|, grows the largest |dL/dw|.

    The gradient is the one that trains the weights: with `gradient=zs.zosam(...)` it is
    taken at the perturbed parameters.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      total_steps: Optimizer steps of the whole training.
      **options: As in `dynamic`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: As in `dynamic`.

    Example:
      >>> import optax, zosam_jax as zs
      >>> method = zs.sparsity.rigl(sparsity=0.9, total_steps=10_000, interval=200)
      >>> tx = zs.sparsify(optax.sgd(0.1, momentum=0.9), method)
    """
    return dynamic(
        sparsity, total_steps, drop=scores.magnitude, grow=scores.gradient, **options
    )._replace(name="rigl")
