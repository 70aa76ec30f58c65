"""The score of a task: what is summed over examples, and the figures of these sums."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from zosam_jax._calls import of_value
from zosam_jax.data import IGNORED
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError

if TYPE_CHECKING:
    from zosam_jax.train.experiment import Experiment


def is_correct(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns whether the top-1 prediction is the target's most likely class, bool."""
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jnp.argmax(targets, -1)
    return jnp.argmax(logits, -1) == targets


def parts(
    experiment: "Experiment", outputs: jax.Array, targets: jax.Array
) -> jax.Array:
    r"""Returns the parts of the score of each example, of the labels' shape.

    Whether the largest output is right; of several classes, whether the sign of each
    output is; of values, the parts of :math:`R^2 = 1 - \sum (y - f)^2 / (N V)`, with V
    the variance of the training labels, summed over the values. Their mean is the
    score. Of label maps, `[N, 3, K]`, see `overlaps`.

    Args:
      experiment: The experiment.
      outputs: Outputs of the model.
      targets: As in `batch.Batch`.

    Raises:
      RunError: Outputs and labels have other shapes.
    """
    task = experiment.facts.task
    if task == "classification":
        return is_correct(outputs, targets)
    if task == "segmentation":
        return overlaps(outputs, targets)
    if outputs.shape != targets.shape:
        raise RunError(
            f"the outputs are {of_value(outputs)} and the labels {of_value(targets)}: "
            "the model must have one output for each of class_names."
        )
    if task == "multilabel":
        return (outputs > 0) == (targets > 0.5)
    error = jnp.square(outputs.astype(jnp.float32) - targets)
    return 1 - error * (targets.shape[-1] / experiment.label_variance)


def overlaps(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns numbers of pixels of each example and class: right, predicted, labelled.

    Pixels that are ignored do not count.

    Args:
      logits: `[N, H, W, K]`.
      targets: As in `loss.pixel_cross_entropy`.

    Returns:
      int32 `[N, 3, K]`. Their sums are the diagonal, the columns and the rows of the
      confusion matrix.

    Raises:
      RunError: The model has no logits of these pixels.
    """
    is_hard = jnp.issubdtype(targets.dtype, jnp.integer)
    pixels = targets.shape if is_hard else targets.shape[:-1]
    if logits.shape[:-1] != pixels:
        raise RunError(
            f"the outputs are {of_value(logits)} and the labels {of_value(targets)}: "
            "the model must have an output for each of class_names at every pixel."
        )
    if not is_hard:
        targets = jnp.where(targets.any(-1), jnp.argmax(targets, -1), IGNORED)
    classes = jnp.arange(logits.shape[-1])
    labelled = targets[..., None] == classes
    counts = labelled.any(-1, keepdims=True)
    predicted = (jnp.argmax(logits, -1)[..., None] == classes) & counts
    each = labelled & predicted, predicted, labelled
    return jnp.stack([jnp.sum(x, (1, 2), jnp.int32) for x in each], axis=1)


def no_sums(facts: DatasetFacts, dtype: DTypeLike) -> jax.Array:
    """Returns the sums over no examples: zero, or `[3, K]` of label maps."""
    of_maps = facts.task == "segmentation"
    return jnp.zeros((3, facts.num_classes) if of_maps else (), dtype)


def summed(
    facts: DatasetFacts,
    found: jax.Array,
    dtype: DTypeLike,
    counts: jax.Array | None = None,
) -> jax.Array:
    """Returns the sums of `parts` over the examples, as `no_sums` has them.

    Args:
      facts: The facts of the data set.
      found: The parts, `[N, ...]`.
      dtype: Type of the sums.
      counts: Which of the examples count, bool `[N]`. Default: all.
    """
    if counts is not None:
        is_counted = counts.reshape(-1, *(1,) * (found.ndim - 1))
        found = jnp.where(is_counted, found, jnp.zeros_like(found))
    return jnp.sum(found, 0 if facts.task == "segmentation" else None, dtype=dtype)


def figures(
    experiment: "Experiment",
    sums: jax.Array | np.ndarray,
    count: float,
    variance: float | None = None,
) -> dict[str, float]:
    """Returns the score as "accuracy", and of label maps the pixel accuracy.

    Args:
      experiment: The experiment.
      sums: The sums of parts.
      count: Number of the parts that a mean is over.
      variance: Variance of the labels of the examples, for the R² of a regression.
        Default: that of the training labels.
    """
    if experiment.facts.task == "segmentation":
        return {"accuracy": mean_iou(sums), "pixel_accuracy": pixel_accuracy(sums)}
    mean = float(sums) / count
    if variance is not None:
        mean = 1 - (1 - mean) * experiment.label_variance / variance
    return {"accuracy": mean}


def iou(sums: jax.Array | np.ndarray) -> np.ndarray:
    r"""Returns the intersection over union of each class, float64 `[K]`.

    .. math::
      \mathrm{IoU}_k = \frac{I_k}{P_k + L_k - I_k}

    with the numbers of pixels of class k that are right, predicted and labelled. NaN
    for a class that no pixel has or is predicted to have.

    Args:
      sums: Sums of `overlaps`, `[3, K]`.

    >>> iou(np.array([[2, 0, 0], [3, 1, 0], [4, 0, 0]]))
    array([0.4, 0. , nan])
    """
    right, predicted, labelled = np.asarray(sums, np.float64)
    union = predicted + labelled - right
    return np.where(union > 0, right / np.where(union > 0, union, 1), np.nan)


def mean_iou(sums: jax.Array | np.ndarray) -> float:
    """Returns the mean of `iou` over the classes that are there; 0 if none is."""
    found = iou(sums)
    known = found[~np.isnan(found)]
    return float(np.mean(known)) if known.size else 0.0


def pixel_accuracy(sums: jax.Array | np.ndarray) -> float:
    """Returns the share of right pixels among those that count; 0 if none does."""
    right, _, labelled = np.asarray(sums, np.float64).sum(1)
    return float(right / labelled) if labelled else 0.0
