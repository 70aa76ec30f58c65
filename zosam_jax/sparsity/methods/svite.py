"""SViTE: RigL with the schedule for vision transformers."""

from typing import Unpack

from zosam_jax._options import passes_options_to
from zosam_jax.sparsity import schedules, scores
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.dynamic import StartOptions, dynamic


@passes_options_to(dynamic)
def svite(
    sparsity: float,
    total_steps: int,
    *,
    interval: int | None = None,
    drop_fraction: float | schedules.Fraction | None = None,
    stop_fraction: float = 0.8,
    **options: Unpack[StartOptions],
) -> SparseMethod:
    """SViTE (arXiv:2106.04533), unstructured: RigL for vision transformers.

    The structured variant, which prunes attention heads and MLP units, is `units`. The
    authors' networks have one kernel for query, key and value: `budget="erk_fused"`
    gives three kernels the density of that one. Each of the three then keeps its own
    number of weights, where the one kernel may move weights between them.

    Args:
      sparsity: Fraction of pruned weights over the sparse leaves together, in [0, 1).
      total_steps: Optimizer steps of the whole training.
      interval: Steps between two changes of topology. None: `total_steps // 75` (20,000
        steps in the paper's 600 epochs of DeiT-Tiny).
      drop_fraction: As in `dynamic`. None: from 0.5 to 0.005 by a cosine over the whole
        training.
      stop_fraction: All changes are before step `stop_fraction * total_steps`.
      **options: As in `dynamic`.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: As in `dynamic`.
    """
    schedules.check_steps(total_steps, 1 if interval is None else interval)
    if interval is None:
        interval = max(1, total_steps // 75)
    if drop_fraction is None:
        drop_fraction = schedules.cosine(0.5, total_steps, 0.005)
    return dynamic(
        sparsity,
        total_steps,
        drop=scores.magnitude,
        grow=scores.gradient,
        interval=interval,
        drop_fraction=drop_fraction,
        stop_fraction=stop_fraction,
        **options,
    )._replace(name="svite")
