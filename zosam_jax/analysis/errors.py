"""The errors of a network: classes for others, labels, residuals of values, pixels."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import Params, PyTree

Logits = Callable[[Params, Any], Any]
"""`(params, batch) -> logits`, `[..., k]`."""


class Errors(NamedTuple):
    """The answers of a classifier on labelled examples.

    Attributes:
      labels: The class of each example, int32 `[n]`.
      predictions: The most probable class of each, int32 `[n]`; of equal ones the
        first.
      probabilities: The probability of that class, from 0 to 1, float32 `[n]`.
      confusion: Numbers of examples, int64 `[k, k]`: `confusion[i, j]` are of class i,
        taken for class j.
    """

    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    confusion: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the examples whose class is predicted, from 0 to 1."""
        return float(np.mean(self.labels == self.predictions))

    @property
    def by_class(self) -> np.ndarray:
        """The accuracy on each class, `[k]`; NaN for a class without examples."""
        counts = self.confusion.sum(axis=1)
        right = np.diagonal(self.confusion)
        return np.where(counts > 0, right / np.maximum(counts, 1), np.nan)


class LabelErrors(NamedTuple):
    r"""The answers of a network on examples that have any of several labels.

    With the numbers of examples that have label k and are predicted to
    (:math:`\mathrm{TP}_k`), that have it and are not (:math:`\mathrm{FN}_k`), and that
    are predicted to and have not (:math:`\mathrm{FP}_k`):

    .. math::
      \mathrm{precision}_k = \frac{\mathrm{TP}_k}{\mathrm{TP}_k + \mathrm{FP}_k}, \quad
      \mathrm{recall}_k = \frac{\mathrm{TP}_k}{\mathrm{TP}_k + \mathrm{FN}_k}, \quad
      F_{1,k} = \frac{2 \mathrm{TP}_k}{2 \mathrm{TP}_k + \mathrm{FP}_k + \mathrm{FN}_k}

    .. math::
      \mathrm{AP}_k = \sum_t (R_t - R_{t-1}) P_t

    where :math:`P_t` and :math:`R_t` are precision and recall if the examples whose
    probability is at least the t-th highest are predicted to have the label. A figure
    without examples that define it is NaN: precision without a prediction, recall and
    average precision without an example, F1 without either.

    Attributes:
      labels: Which labels each example has, bool `[n, k]`.
      predictions: Which it is predicted to have: those with a logit above 0, bool
        `[n, k]`.
      probabilities: The probability of each label, from 0 to 1, float32 `[n, k]`.
    """

    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of right labels, over all examples and labels, from 0 to 1."""
        return float(np.mean(self.labels == self.predictions))

    @property
    def precision(self) -> np.ndarray:
        """Share of the predictions of each label that are right, `[k]`."""
        return _ratio(self._right, self.predictions.sum(0))

    @property
    def recall(self) -> np.ndarray:
        """Share of the examples with each label that are found, `[k]`."""
        return _ratio(self._right, self.labels.sum(0))

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall of each label, `[k]`."""
        return _ratio(2 * self._right, self.labels.sum(0) + self.predictions.sum(0))

    @property
    def average_precision(self) -> np.ndarray:
        """Average precision of each label, `[k]`."""
        pairs = zip(self.labels.T, self.probabilities.T, strict=True)
        return np.array([_average_precision(*pair) for pair in pairs])

    @property
    def _right(self) -> np.ndarray:
        return (self.labels & self.predictions).sum(0)


class ValueErrors(NamedTuple):
    r"""The predictions of a network of real values, and their residuals.

    .. math::
      \mathrm{RMSE}_k = \sqrt{\tfrac{1}{n} \sum_i (f_{ik} - y_{ik})^2}, \quad
      \mathrm{MAE}_k = \tfrac{1}{n} \sum_i |f_{ik} - y_{ik}|, \quad
      R^2_k = 1 - \frac{\sum_i (f_{ik} - y_{ik})^2}{\sum_i (y_{ik} - \bar y_k)^2}

    Attributes:
      labels: The true values y, float32 `[n, k]`.
      predictions: The predictions f, float32 `[n, k]`.
    """

    labels: np.ndarray
    predictions: np.ndarray

    @property
    def residuals(self) -> np.ndarray:
        """Predictions minus true values, float64 `[n, k]`."""
        return self.predictions.astype(np.float64) - self.labels

    @property
    def rmse(self) -> np.ndarray:
        """Root mean square of the residuals of each value, `[k]`."""
        return np.sqrt(np.mean(self.residuals**2, 0))

    @property
    def mae(self) -> np.ndarray:
        """Mean size of the residuals of each value, `[k]`."""
        return np.mean(np.abs(self.residuals), 0)

    @property
    def r2(self) -> np.ndarray:
        """R² of each value, `[k]`; NaN where all true values are equal."""
        return 1 - _ratio(np.sum(self.residuals**2, 0), self._squares)

    @property
    def total_r2(self) -> float:
        """R² of all values together: both sums are over the values too."""
        return float(1 - _ratio(np.sum(self.residuals**2), np.sum(self._squares)))

    @property
    def _squares(self) -> np.ndarray:
        wide = self.labels.astype(np.float64)
        return np.sum((wide - wide.mean(0)) ** 2, 0)


class SegmentationErrors(NamedTuple):
    r"""The answers of a network that gives every pixel a class.

    With the confusion matrix C of all pixels that count, :math:`C_{ij}` of which have
    class i and are taken for class j:

    .. math::
      \mathrm{IoU}_k = \frac{C_{kk}}{\sum_j C_{kj} + \sum_i C_{ik} - C_{kk}}, \quad
      \mathrm{precision}_k = \frac{C_{kk}}{\sum_i C_{ik}}, \quad
      \mathrm{recall}_k = \frac{C_{kk}}{\sum_j C_{kj}}

    A figure without pixels that define it is NaN.

    Attributes:
      right: Number of right pixels of each example, int64 `[n]`.
      pixels: Number of its pixels that count, int64 `[n]`.
      confusion: Numbers of pixels, int64 `[k, k]`.
    """

    right: np.ndarray
    pixels: np.ndarray
    confusion: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, `[k]`."""
        return _ratio(self._diagonal, self.confusion.sum(0) + self._left)

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the classes that are there or predicted, from 0 to 1."""
        return float(np.nanmean(self.iou))

    @property
    def pixel_accuracy(self) -> float:
        """Share of right pixels, from 0 to 1."""
        return float(self._diagonal.sum() / self.confusion.sum())

    @property
    def precision(self) -> np.ndarray:
        """Share of the pixels predicted to have each class that are right, `[k]`."""
        return _ratio(self._diagonal, self.confusion.sum(0))

    @property
    def recall(self) -> np.ndarray:
        """Share of the pixels of each class that are found, `[k]`."""
        return _ratio(self._diagonal, self.confusion.sum(1))

    @property
    def _diagonal(self) -> np.ndarray:
        return np.diagonal(self.confusion)

    @property
    def _left(self) -> np.ndarray:
        return self.confusion.sum(1) - self._diagonal


def classification_errors(
    logits_fn: Logits, params: Params, batches: Iterable[tuple[PyTree, Any]]
) -> Errors:
    r"""Returns the most probable classes, and which are taken for which.

    .. math::
      \hat y = \arg\max_j z_j(x), \qquad
      p = \mathrm{softmax}(z(x))_{\hat y}, \qquad
      C_{ij} = |\{x : y = i, \hat y = j\}|

    One program is compiled.

    Args:
      logits_fn: `(params, batch) -> z`, of shape `[..., k]`.
      params: The parameters.
      batches: Pairs of a batch and its labels, integers of shape `[...]`. All have one
        shape; label -1 is for examples that fill up a batch and do not count.

    Raises:
      ValueError: There is no batch, no example counts, or a label is no class.

    Example:
      >>> import jax.numpy as jnp, numpy as np, zosam_jax as zs
      >>> found = zs.analysis.classification_errors(
      ...     lambda w, x: x * w, 2.0, [(jnp.eye(2), np.array([0, 0]))]
      ... )
      >>> print(found.confusion.tolist(), found.by_class)
      [[1, 1], [0, 0]] [0.5 nan]
    """
    found: list[tuple[np.ndarray, ...]] = []
    classes = 0
    for batch, labels in batches:
        classes = jax.eval_shape(logits_fn, params, batch).shape[-1]
        answers = _answers(logits_fn, params, batch)
        flat = np.asarray(labels, np.int32).reshape(-1)
        counts = flat >= 0
        found.append((flat[counts], *(np.asarray(x)[counts] for x in answers)))
    labels, predictions, probabilities = _joined(found)
    if not labels.size:
        raise ValueError("no label is a class: all are below 0.")
    if labels.max() >= classes:
        raise ValueError(f"label {labels.max()} is no class of {classes} logits.")
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    return Errors(labels, predictions, probabilities, confusion)


def segmentation_errors(
    logits_fn: Logits, params: Params, batches: Iterable[tuple[PyTree, Any]]
) -> SegmentationErrors:
    r"""Returns which classes of pixels are taken for which, over all examples.

    .. math::
      C_{ij} = |\{\text{pixels}: y = i, \arg\max_k z_k(x) = j\}|

    One program is compiled. The figures of a `SegmentationErrors` have their formulas
    there.

    Args:
      logits_fn: `(params, batch) -> z`, of shape `[n, h, w, k]`.
      params: The parameters.
      batches: Pairs of a batch and its labels, integers `[n, h, w]`. All have one
        shape; labels below 0 do not count, nor do examples at the end that have no
        others.

    Raises:
      ValueError: There is no batch, no pixel counts, or a label is no class.

    Example:
      >>> import jax.numpy as jnp, numpy as np, zosam_jax as zs
      >>> batch = jnp.eye(2).reshape(1, 1, 2, 2), np.array([[[0, 0]]])
      >>> found = zs.analysis.segmentation_errors(lambda w, x: x * w, 2.0, [batch])
      >>> print(found.confusion.tolist(), found.iou, found.mean_iou)
      [[1, 1], [0, 0]] [0.5 0. ] 0.25
    """
    found: list[tuple[np.ndarray, ...]] = []
    confusion = np.zeros((0, 0), np.int64)
    for batch, labels in batches:
        classes = jax.eval_shape(logits_fn, params, batch).shape[-1]
        labels = np.asarray(labels, np.int32)
        if labels.max() >= classes:
            raise ValueError(f"label {labels.max()} is no class of {classes} logits.")
        answers = np.asarray(_answers(logits_fn, params, batch)[0])
        answers = answers.reshape(labels.shape)
        counts = labels >= 0
        if not confusion.size:
            confusion = np.zeros((classes, classes), np.int64)
        np.add.at(confusion, (labels[counts], answers[counts]), 1)
        right, pixels = ((x & counts).sum((1, 2)) for x in (answers == labels, counts))
        found.append((right, pixels))
    right, pixels = _joined(found)
    if not pixels.any():
        raise ValueError("no label of a pixel is a class: all are below 0.")
    last = int(np.flatnonzero(pixels)[-1])
    return SegmentationErrors(right[: last + 1], pixels[: last + 1], confusion)


def label_errors(
    logits_fn: Logits, params: Params, batches: Iterable[tuple[PyTree, Any]]
) -> LabelErrors:
    r"""Returns the predicted labels of examples that have any of several.

    .. math::
      p_k = \sigma(z_k(x)), \qquad \hat y_k = [z_k(x) > 0]

    One program is compiled. The figures of a `LabelErrors` have their formulas there.

    Args:
      logits_fn: `(params, batch) -> z`, of shape `[n, k]`.
      params: The parameters.
      batches: Pairs of a batch and its labels, 1 and 0 or bool, `[n, k]`. All have one
        shape; rows of -1 are for examples that fill up a batch and do not count.

    Raises:
      ValueError: There is no batch, no example counts, or the shapes differ.

    Example:
      >>> import jax.numpy as jnp, numpy as np, zosam_jax as zs
      >>> has = np.array([[1, 0], [1, 1], [0, 1]])
      >>> found = zs.analysis.label_errors(
      ...     lambda w, x: x * w, 2.0, [(jnp.array([[3, -1], [-2, 1], [-1, 2]]), has)]
      ... )
      >>> print(found.precision, found.recall, found.f1.round(2))
      [1. 1.] [0.5 1. ] [0.67 1.  ]
    """
    found: list[tuple[np.ndarray, ...]] = []
    for batch, labels in batches:
        rows = np.asarray(labels).astype(np.int8)
        outputs = _outputs(logits_fn, params, batch, rows.shape)
        counts = rows[:, 0] >= 0
        shares = np.asarray(jax.nn.sigmoid(outputs))
        found.append((rows[counts] > 0, outputs[counts] > 0, shares[counts]))
    labels, predictions, probabilities = _joined(found)
    if not labels.size:
        raise ValueError("no row of labels counts: all are below 0.")
    return LabelErrors(labels, predictions, probabilities)


def value_errors(
    outputs_fn: Logits, params: Params, batches: Iterable[tuple[PyTree, Any]]
) -> ValueErrors:
    """Returns the predictions of real values beside the true ones.

    One program is compiled. The figures of a `ValueErrors` have their formulas there.

    Args:
      outputs_fn: `(params, batch) -> f`, of shape `[n, k]`.
      params: The parameters.
      batches: Pairs of a batch and its true values, floats `[n, k]`. All have one
        shape; rows of NaN are for examples that fill up a batch and do not count.

    Raises:
      ValueError: There is no batch, no example counts, or the shapes differ.

    Example:
      >>> import jax.numpy as jnp, numpy as np, zosam_jax as zs
      >>> batch = jnp.array([[1.0], [2.0]]), np.array([[1.0], [5.0]])
      >>> found = zs.analysis.value_errors(lambda w, x: x * w, 2.0, [batch])
      >>> print(found.mae, found.rmse, found.r2)
      [1.] [1.] [0.75]
    """
    found: list[tuple[np.ndarray, ...]] = []
    for batch, labels in batches:
        rows = np.asarray(labels, np.float32)
        outputs = _outputs(outputs_fn, params, batch, rows.shape)
        counts = ~np.isnan(rows[:, 0])
        found.append((rows[counts], outputs[counts]))
    labels, predictions = _joined(found)
    if not labels.size:
        raise ValueError("no row of values counts: all are NaN.")
    return ValueErrors(labels, predictions)


def _joined(found: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """The arrays of all batches."""
    if not found:
        raise ValueError("batches is empty: there are no answers.")
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _outputs(
    outputs_fn: Logits, params: Params, batch: PyTree, shape: tuple[int, ...]
) -> np.ndarray:
    """The outputs of a batch in float32, in the shape of its labels."""
    outputs = np.asarray(_in_float32(outputs_fn, params, batch))
    if outputs.shape != shape or len(shape) != 2:
        raise ValueError(
            f"the outputs are {list(outputs.shape)} and the labels {list(shape)}; both "
            "must be [n, k]."
        )
    return outputs


@functools.partial(jax.jit, static_argnums=0)
def _in_float32(outputs_fn: Logits, params: Params, batch: PyTree) -> jax.Array:
    return jnp.asarray(outputs_fn(params, batch), jnp.float32)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where the whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The average precision of one label; NaN without an example that has it."""
    if not labels.any():
        return float("nan")
    order = np.argsort(-probabilities, kind="stable")
    ranked, has = probabilities[order], labels[order]
    # Examples of one probability are predicted together: the last of them counts.
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    right = np.cumsum(has)[ends]
    precision, recall = right / (ends + 1), right / has.sum()
    return float(np.sum(np.diff(recall, prepend=0) * precision))


@functools.partial(jax.jit, static_argnums=0)
def _answers(
    logits_fn: Logits, params: Params, batch: PyTree
) -> tuple[jax.Array, jax.Array]:
    """The most probable classes, and their probabilities."""
    logits = jnp.asarray(logits_fn(params, batch), jnp.float32)
    flat = logits.reshape(-1, logits.shape[-1])
    best = jnp.argmax(flat, axis=-1).astype(jnp.int32)
    return best, jnp.max(jax.nn.softmax(flat, axis=-1), axis=-1)
