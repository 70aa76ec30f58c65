"""Calibration of a classifier: whether its confidences are its accuracies.

    bins = calibration.bins(logits, labels)             # sums over 15 bins
    calibration.error(bins)                             # the ECE

All are pure functions of arrays. `Bins` are sums: those of two batches
together are `jax.tree.map(jnp.add, a, b)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_BINS = 15


class Bins(NamedTuple):
    """Sums over the predictions whose confidence lies in each bin.

    The bins are of equal width: bin b of B is `(b / B, (b + 1) / B]`.

    Attributes:
      predictions: How many there are. float32 `[B]`.
      confidence: Sum of their confidences. float32 `[B]`.
      correct: How many of them are right. float32 `[B]`.
    """

    predictions: jax.Array | np.ndarray
    confidence: jax.Array | np.ndarray
    correct: jax.Array | np.ndarray


def bins(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    num_bins: int = NUM_BINS,
) -> Bins:
    """Returns the sums over bins of confidence (Guo et al. 2017, arXiv:1706.04599).

    The confidence of a prediction is the softmax of its class, the largest one.

    Args:
      logits: `[N, K]`, any floating type; float32 in the computation.
      labels: True classes, integers `[N]`.
      weights: How often each counts, `[N]`; 0 leaves one out. Default: 1.
      num_bins: B >= 1.
    """
    logits = logits.astype(jnp.float32)
    confidence = jnp.exp(logits.max(-1) - jax.nn.logsumexp(logits, -1))
    index = jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1
    weights = jnp.ones(labels.shape) if weights is None else weights
    ones = jax.nn.one_hot(jnp.clip(index, 0, num_bins - 1), num_bins)
    ones = ones * weights.astype(jnp.float32)[:, None]
    correct = (logits.argmax(-1) == labels).astype(jnp.float32)
    return Bins(
        jnp.sum(ones, 0),
        jnp.sum(ones * confidence[:, None], 0),
        jnp.sum(ones * correct[:, None], 0),
    )


def error(bins: Bins) -> float:
    """Returns the expected calibration error, from 0 to 1; 0 where nothing is counted.

    `sum_b n_b / N |accuracy_b - confidence_b|`, with the means over bin b.

    Args:
      bins: Sums, as `bins` gives them.
    """
    count, confidence, correct = (np.asarray(x, np.float64) for x in bins)
    return float(np.abs(correct - confidence).sum() / max(count.sum(), 1))


def reliability(bins: Bins) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what a reliability diagram shows, by bin.

    Args:
      bins: Sums, as `bins` gives them.

    Returns:
      The share of the predictions, and the means of their confidence and accuracy (NaN
      where a bin is empty). float64 `[B]` each.
    """
    count, confidence, correct = (np.asarray(x, np.float64) for x in bins)
    some = np.where(count > 0, count, np.nan)
    share = count / max(count.sum(), 1)
    return share, confidence / some, correct / some
