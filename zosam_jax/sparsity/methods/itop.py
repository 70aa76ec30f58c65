"""ITOP: few, large and late changes of the topology."""

from typing import Unpack

from zosam_jax._options import passes_options_to
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import StartOptions, dynamic


@passes_options_to(dynamic)
def itop(
    sparsity: float,
    total_steps: int,
    *,
    grow: str | scores.Score = scores.gradient,
    interval: int | None = None,
    drop_fraction: float | schedules.Fraction | None = None,
    stop_fraction: float = 1.0,
    **options: Unpack[StartOptions],
) -> SparseMethod:
    """In-time over-parameterization (ITOP, arXiv:2102.02887): few, large, late changes.

    RigL, or SET with `grow="random"`, with long intervals, so that weights are trained
    before they are judged, and with changes until the end of the training. The fraction
    of all weights that was ever live is `exploration(state)`, with `sparsify(...,
    track_exploration=True)`.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      total_steps: Optimizer steps of the whole training.
      grow: "gradient" or "random", or a function as in `scores`.
      interval: Steps between two changes of topology. None: such that there are 24
        changes, or 65 with random growth (4000 and 1500 of the paper's 97,750 steps).
      drop_fraction: As in `dynamic`. None: from 0.5 to 0.005 by a cosine over the whole
        training.
      stop_fraction: All changes are before step `stop_fraction * total_steps`.
      **options: As in `dynamic`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: As in `dynamic`.
    """
    grow = scores.named("grow", grow)
    schedules.check_steps(total_steps, 1 if interval is None else interval)
    if interval is None:
        interval = max(1, total_steps // (65 if grow is scores.random else 24))
    if drop_fraction is None:
        drop_fraction = schedules.cosine(0.5, total_steps, 0.005)
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=grow,
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        **options,
    )._replace(name="itop")
