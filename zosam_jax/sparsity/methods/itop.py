"""ITOP: few, large and late changes of the topology."""

from typing import Unpack

from zosam_jax import _check
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import Options, check_options, dynamic


def itop(
    sparsity: float,
    total_steps: int,
    *,
    grow: str | scores.Score = scores.gradient,
    **options: Unpack[Options],
) -> SparseMethod:
    """In-time over-parameterization (ITOP, arXiv:2102.02887): few, large, late changes.

    RigL (or SET, with `grow=scores.random`) whose weights have time to train before
    they are judged, and that explores until the end: the fraction falls from 0.5 to
    0.005 by a cosine over the whole training. What share of all weights was live at
    some time is `exploration(state)`, with `sparsify(..., track_exploration=True)`.

    Args:
      sparsity: As in `dynamic`.
      total_steps: As in `dynamic`.
      grow: `scores.gradient` or `scores.random`, or their names.
      **options: As in `rigl`. `interval` is by default such that there are 24 changes,
        or 65 with random growth: 4000 and 1500 steps in the paper's 97,750.
    """
    check_options("itop", options, "grow")
    _check.whole("total_steps", total_steps)
    grow = scores.named("grow", grow)
    usual: Options = {
        "interval": max(1, total_steps // (65 if grow is scores.random else 24)),
        "drop_fraction": schedules.cosine(0.5, total_steps, 0.005),
        "stop_fraction": 1.0,
    }
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=grow,
        **{**usual, **options},
    )
