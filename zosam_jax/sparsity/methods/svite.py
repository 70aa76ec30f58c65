"""SViTE: the schedule of RigL for vision transformers."""

from typing import Unpack

from zosam_jax import _check
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import Options, check_options, dynamic


def svite(
    sparsity: float, total_steps: int, **options: Unpack[Options]
) -> SparseMethod:
    """SViTE (arXiv:2106.04533), unstructured: RigL for vision transformers.

    The fraction falls from 0.5 to 0.005 by a cosine over the whole training, and the
    changes end at 80 % of it. Attention heads and MLP units are pruned by `units`.

    Args:
      sparsity: As in `dynamic`.
      total_steps: As in `dynamic`.
      **options: As in `rigl`. `interval` is by default `total_steps // 75`: 20,000
        steps in the paper's 600 epochs of DeiT-Tiny.
    """
    check_options("svite", options)
    _check.whole("total_steps", total_steps)
    usual: Options = {
        "interval": max(1, total_steps // 75),
        "drop_fraction": schedules.cosine(0.5, total_steps, 0.005),
        "stop_fraction": 0.8,
    }
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=scores.gradient,
        **{**usual, **options},
    )
