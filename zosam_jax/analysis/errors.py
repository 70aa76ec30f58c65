"""Which classes a network takes for which."""

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
    """The answers of a network on labelled examples.

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
    if not found:
        raise ValueError("batches is empty: there are no answers.")
    labels, predictions, probabilities = map(np.concatenate, zip(*found, strict=True))
    if not labels.size:
        raise ValueError("no label is a class: all are below 0.")
    if labels.max() >= classes:
        raise ValueError(f"label {labels.max()} is no class of {classes} logits.")
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    return Errors(labels, predictions, probabilities, confusion)


@functools.partial(jax.jit, static_argnums=0)
def _answers(
    logits_fn: Logits, params: Params, batch: PyTree
) -> tuple[jax.Array, jax.Array]:
    """The most probable classes, and their probabilities."""
    logits = jnp.asarray(logits_fn(params, batch), jnp.float32)
    flat = logits.reshape(-1, logits.shape[-1])
    best = jnp.argmax(flat, axis=-1).astype(jnp.int32)
    return best, jnp.max(jax.nn.softmax(flat, axis=-1), axis=-1)
