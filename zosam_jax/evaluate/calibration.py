"""Calibration: how well the probabilities of a network predict how often it is right.

    bins = calibration.bins(logits, labels)             # sums over 15 bins
    calibration.error(bins)                             # the ECE

Of a classifier, the probability is that of the predicted class; of examples with any of
several labels, that of a label, and a prediction is right if the example has it.

All functions are pure functions of arrays. `Bins` are sums, so the bins of two batches
add up: `jax.tree.map(jnp.add, a, b)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_BINS = 15


class Bins(NamedTuple):
    """Sums over the predictions in each bin of confidence.

    The bins have equal widths: bin b of B is `(b / B, (b + 1) / B]`.

    Attributes:
      predictions: Number of predictions. float32 `[B]`, like the others; `[K, B]` of K
        labels.
      confidence: Sum of their confidences.
      correct: Number of correct predictions.
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

    The confidence of a prediction is its softmax probability, the largest of all
    classes.

    Args:
      logits: `[N, K]`, of any floating type. The computation is in float32.
      labels: True classes, integers `[N]`.
      weights: Weight of each prediction in the sums, `[N]`. Default: 1.
      num_bins: Number of bins B, at least 1.

    >>> import numpy as np
    >>> logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8]]))
    >>> found = bins(logits, np.array([0, 0]), num_bins=2)
    >>> found.predictions.tolist(), found.correct.tolist()
    ([0.0, 2.0], [0.0, 1.0])
    """
    logits = jnp.asarray(logits, jnp.float32)
    # The largest logit minus the log-sum is at most 0, so exp cannot overflow.
    confidence = jnp.exp(logits.max(-1) - jax.nn.logsumexp(logits, -1))
    return _sums(confidence, logits.argmax(-1) == labels, weights, num_bins)


def label_bins(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    num_bins: int = NUM_BINS,
) -> Bins:
    """Returns the sums over bins of the probability of each label, `[K, B]`.

    The probability is the sigmoid of the logit, and "correct" are the examples that
    have the label: the reliability of a binary forecast.

    Args:
      logits: `[N, K]`, of any floating type. The computation is in float32.
      labels: 1 where an example has a label, else 0, `[N, K]`.
      weights: Weight of each example in the sums, `[N]`. Default: 1.
      num_bins: Number of bins B, at least 1.

    >>> import numpy as np
    >>> found = label_bins(np.array([[2.0], [-2.0]]), np.array([[1], [1]]), num_bins=2)
    >>> found.predictions.tolist(), found.correct.tolist()
    ([[1.0, 1.0]], [[1.0, 1.0]])
    """
    shares = jax.nn.sigmoid(jnp.asarray(logits, jnp.float32))
    return _sums(shares, labels, weights, num_bins)


def _sums(
    confidence: jax.Array, correct: jax.Array, weights: jax.Array | None, num_bins: int
) -> Bins:
    """Returns the sums over the first axis."""
    # Bins are open on the left, so that a confidence of 1 lies in the last one.
    index = jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1
    # A bin's sum is over the predictions whose row of `ones` has a 1 in its column.
    ones = jax.nn.one_hot(jnp.clip(index, 0, num_bins - 1), num_bins)
    if weights is not None:
        weights = jnp.asarray(weights, jnp.float32)
        ones = ones * weights.reshape(-1, *(1,) * (ones.ndim - 1))
    right = jnp.asarray(correct, jnp.float32)
    return Bins(
        jnp.sum(ones, 0),
        jnp.sum(ones * confidence[..., None], 0),
        jnp.sum(ones * right[..., None], 0),
    )


def error(bins: Bins) -> float:
    """Returns the expected calibration error (ECE), from 0 to 1.

    The ECE is `sum_b n_b / N |accuracy_b - confidence_b|`, where accuracy and
    confidence are the means over bin b. It is 0 if there are no predictions.

    >>> error(Bins(np.array([2.0]), np.array([1.7]), np.array([1.0])))
    0.35
    """
    count, confidence, correct = (np.asarray(x, np.float64) for x in bins)
    return float(np.abs(correct - confidence).sum() / max(count.sum(), 1))


def reliability(bins: Bins) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the data of a reliability diagram.

    Returns:
      Three float64 arrays `[B]`: the fraction of all predictions, the mean confidence
      and the accuracy of each bin. The last two are NaN for an empty bin.

    >>> share, confidence, accuracy = reliability(Bins(*np.array([[4], [3], [2]])))
    >>> share.item(), confidence.item(), accuracy.item()
    (1.0, 0.75, 0.5)
    """
    count, confidence, correct = (np.asarray(x, np.float64) for x in bins)
    nonzero = np.where(count > 0, count, np.nan)
    share = count / max(count.sum(), 1)
    return share, confidence / nonzero, correct / nonzero
