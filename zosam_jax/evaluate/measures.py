"""What is measured on an image set beside loss and score, by the task of the labels.

Sums are over images, so that those of two batches add up. Calibration has a meaning
where outputs are probabilities: of classes, of labels, and of the classes of pixels.
Values have none.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import PyTree
from zosam_jax.data import IGNORED
from zosam_jax.evaluate import calibration
from zosam_jax.evaluate.calibration import Bins
from zosam_jax.runs.files import JSON
from zosam_jax.train import scores


class Measure(NamedTuple):
    """What is measured for a task.

    Attributes:
      none: `classes -> sums` over no images; classes is the number of outputs.
      sums: `(outputs, labels, counts) -> sums` of a batch. `counts`, bool `[N]`, says
        which of its images count.
      figures: `(sums, images) -> entries` of the result on an image set.
    """

    none: Callable[[int], PyTree]
    sums: Callable[[jax.Array, jax.Array, jax.Array], PyTree]
    figures: Callable[[PyTree, int], JSON]


class _OfLabels(NamedTuple):
    """Sums for each label: bins `[K, B]`, and squared errors `[K]`."""

    bins: Bins
    squares: jax.Array


class _OfPixels(NamedTuple):
    """Sums over pixels: bins, and the numbers of `scores.overlaps`."""

    bins: Bins
    overlaps: jax.Array


def _pixel_sums(outputs: jax.Array, labels: jax.Array, counts: jax.Array) -> _OfPixels:
    weights = counts[:, None, None] & (labels != IGNORED)
    found = calibration.bins(
        outputs.reshape(-1, outputs.shape[-1]), labels.ravel(), weights.ravel()
    )
    parts = scores.overlaps(outputs, labels) * counts[:, None, None]
    return _OfPixels(found, jnp.sum(parts, 0))


def _no_pixels(classes: int) -> _OfPixels:
    none = jnp.zeros((3, classes), jnp.int32)
    return _OfPixels(_no_bins(calibration.NUM_BINS), none)


def _label_sums(outputs: jax.Array, labels: jax.Array, counts: jax.Array) -> _OfLabels:
    error = jnp.square(jax.nn.sigmoid(outputs) - labels) * counts[:, None]
    return _OfLabels(calibration.label_bins(outputs, labels, counts), jnp.sum(error, 0))


def _no_labels(classes: int) -> _OfLabels:
    return _OfLabels(_no_bins(classes, calibration.NUM_BINS), jnp.zeros(classes))


def _no_bins(*shape: int) -> Bins:
    return Bins(*[jnp.zeros(shape)] * len(Bins._fields))


def _of_classes(bins: Bins, images: int) -> JSON:
    del images
    return {"ece": calibration.error(bins), "bins": _listed(bins)}


def _of_labels(sums: _OfLabels, images: int) -> JSON:
    by_label = [calibration.error(Bins(*row)) for row in zip(*sums.bins, strict=True)]
    brier = np.asarray(sums.squares, np.float64) / images
    pooled = Bins(*(np.sum(x, 0) for x in sums.bins))
    return {
        "ece": float(np.mean(by_label)),
        "brier": float(np.mean(brier)),
        "by_label": {"ece": by_label, "brier": brier.tolist()},
        "bins": _listed(pooled),
    }


def _of_pixels(sums: _OfPixels, images: int) -> JSON:
    each = scores.iou(sums.overlaps).tolist()
    return {
        **_of_classes(sums.bins, images),
        "by_class": {"iou": [None if math.isnan(x) else x for x in each]},
    }


def _listed(bins: Bins) -> JSON:
    return {
        name: np.asarray(value, np.float64).tolist()
        for name, value in bins._asdict().items()
    }


def _nothing(*about: object) -> tuple[()]:
    del about
    return ()


MEASURES = {
    "classification": Measure(
        lambda _: _no_bins(calibration.NUM_BINS), calibration.bins, _of_classes
    ),
    "multilabel": Measure(_no_labels, _label_sums, _of_labels),
    "segmentation": Measure(_no_pixels, _pixel_sums, _of_pixels),
    "regression": Measure(_nothing, _nothing, lambda *_: {}),
}
"""By task."""
