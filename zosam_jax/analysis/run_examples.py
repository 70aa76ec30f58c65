"""The examples of a run on which it is analysed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import PyTree
from zosam_jax.data import IGNORED, Streamed
from zosam_jax.runs.errors import RunError
from zosam_jax.train.batch import as_targets, normalized
from zosam_jax.train.experiment import Experiment


class Shown(NamedTuple):
    """Test images whose features are shown.

    Attributes:
      images: As they are stored, uint8 `[n, H, W, C]`.
      inputs: As the network takes them.
      labels: Their classes, `[n]`; or 1 and 0 for each label, or values, `[n, K]`; or
        label maps, `[n, H, W]`, with -1 for pixels that are ignored.
    """

    images: np.ndarray
    inputs: jax.Array
    labels: np.ndarray


def drawn(
    experiment: Experiment, split: str, images: int, size: int, seed: int
) -> list[tuple[jax.Array, jax.Array]]:
    """Returns `(inputs, labels)` of each batch; all batches have one size.

    Args:
      experiment: Has the data set.
      split: "train" or "test".
      images: Number of examples; what does not fill a batch is left out.
      size: Examples of a batch.
      seed: Seed of the draw. Of a stream, the first images are taken.

    Raises:
      RunError: There are not so many, or a stream is asked for its training images.
    """
    dataset = experiment.dataset
    assert dataset is not None
    train = split == "train"
    if isinstance(dataset, Streamed) and train:
        raise RunError("a streamed data set is analysed on split=test alone.")
    total = dataset.num_train if train else dataset.num_test
    if images > total:
        raise RunError(
            f"images={images} is more than the {total} examples of split={split}."
        )
    count = images // size * size
    if isinstance(dataset, Streamed):
        found = dataset.evaluation_batches(size)
        try:
            pairs = [next(found)[:2] for _ in range(count // size)]
        finally:
            found.close()
    else:
        examples = dataset.train_images if train else dataset.test_images
        labels = dataset.train_labels if train else dataset.test_labels
        order = np.random.default_rng(seed).permutation(total)[:count]
        pairs = [(examples[i], labels[i]) for i in order.reshape(-1, size)]
    return [
        (normalized(experiment, jnp.asarray(x)), as_targets(jnp.asarray(y)))
        for x, y in pairs
    ]


def tests(
    experiment: Experiment, size: int, state: PyTree
) -> Iterator[tuple[PyTree, np.ndarray]]:
    """Yields `((inputs, labels, state), labels)` of all test examples.

    Args:
      experiment: Has the data set.
      size: Examples of a batch. The last is filled up with zeros, and with labels -1,
        or NaN in place of values.
      state: BatchNorm statistics.
    """
    for raw, labels in _in_order(experiment, size):
        inputs = normalized(experiment, jnp.asarray(raw))
        yield (inputs, jnp.asarray(labels), state), labels


def shown(experiment: Experiment, examples: Sequence[int]) -> Shown | None:
    """Returns the test images of these numbers; None where examples are no images.

    Args:
      experiment: Has the data set.
      examples: Numbers of test examples, from 0.

    Raises:
      RunError: There is no such example.
    """
    if experiment.facts.kind != "image" or not examples:
        return None
    dataset = experiment.dataset
    assert dataset is not None
    if max(examples) >= dataset.num_test:
        raise RunError(
            f"examples={max(examples)}: the {dataset.num_test} test images are "
            f"numbered from 0 to {dataset.num_test - 1}."
        )
    found = {}
    for number, (raw, labels) in enumerate(_in_order(experiment, 1)):
        if number > max(examples):
            break
        found[number] = raw[0], labels[0]
    images, labels = (np.stack(x) for x in zip(*map(found.get, examples), strict=True))
    return Shown(images, normalized(experiment, jnp.asarray(images)), labels)


def _in_order(
    experiment: Experiment, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields `(raw examples, labels)` of the test examples, in batches of one size."""
    dataset = experiment.dataset
    assert dataset is not None
    if isinstance(dataset, Streamed):
        for raw, labels, count in dataset.evaluation_batches(size):
            yield raw, np.where(np.arange(size) < count, labels, -1)
        return
    for start in range(0, dataset.num_test, size):
        raw = dataset.test_images[start : start + size]
        labels = dataset.test_labels[start : start + size]
        if labels.dtype == np.bool_:
            # True and False leave no room for what does not count.
            labels = labels.astype(np.int8)
        if dataset.task == "segmentation":
            labels = np.where(labels == IGNORED, -1, labels.astype(np.int32))
        no_label = np.nan if dataset.task == "regression" else -1
        yield _filled(raw, size, 0), _filled(labels, size, no_label)


def _filled(rows: np.ndarray, size: int, value: float) -> np.ndarray:
    missing = [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(rows, missing, constant_values=value)
