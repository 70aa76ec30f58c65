"""Loss and accuracy on held-out examples, batch by batch."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import Params
from zosam_jax.data import Dataset, Streamed, label_variance
from zosam_jax.train import scores
from zosam_jax.train.batch import as_targets, normalized
from zosam_jax.train.experiment import Experiment, ModelState

_LARGEST = 512


class EvalTotals(NamedTuple):
    """Sums over examples.

    Attributes:
      loss: Of the losses. float32.
      correct: Of the scores: correct predictions, int32; the parts of R², float32; or
        numbers of pixels, int32 `[3, K]`, see `scores.overlaps`.
    """

    loss: jax.Array
    correct: jax.Array


def no_totals(experiment: Experiment) -> EvalTotals:
    """Returns the sums over no examples."""
    is_count = experiment.facts.task != "regression"
    dtype = jnp.int32 if is_count else jnp.float32
    return EvalTotals(
        jnp.zeros((), jnp.float32), scores.no_sums(experiment.facts, dtype)
    )


def batch_size(experiment: Experiment) -> int:
    """Returns the evaluation batch size: at most 512, a multiple of the devices."""
    assert experiment.dataset is not None
    devices = experiment.mesh.size
    return -(-min(experiment.dataset.num_test, _LARGEST) // devices) * devices


def batches(
    experiment: Experiment, split: str
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields raw examples, their labels and how many of the batch count.

    All batches have one size, `batch_size`. The last one is padded; its first examples
    count. Several processes share a batch: each has the rows of its devices.

    Args:
      experiment: The experiment.
      split: "test"; "validation"; "train", or "train_clean", the training images with
        the labels without `label_noise`. The latter three are sets in memory.
    """
    size = batch_size(experiment)
    dataset = experiment.dataset
    assert dataset is not None
    host, hosts = experiment.host
    if isinstance(dataset, Streamed):
        # Threads: processes would start anew for every evaluation.
        shares = dataset.evaluation_batches(size, host=host, hosts=hosts)
        for start, (images, labels, _) in zip(itertools.count(0, size), shares):
            yield images, labels, min(size, dataset.num_test - start)
        return
    images, labels = _examples(experiment, dataset, split)
    share = size // hosts
    for start in range(0, len(labels), size):
        index = np.arange(start + host * share, start + (host + 1) * share)
        index = np.minimum(index, len(labels) - 1)
        yield images[index], labels[index], min(size, len(labels) - start)


def _examples(
    experiment: Experiment, dataset: Dataset, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of a split."""
    if split == "test":
        return dataset.test_images, dataset.test_labels
    if split == "validation":
        assert experiment.validation is not None
        return experiment.validation
    if split == "train":
        return dataset.train_images, dataset.train_labels
    assert experiment.clean_labels is not None
    return dataset.train_images, experiment.clean_labels


def add_batch(
    experiment: Experiment,
    params: Params,
    model_state: ModelState,
    images: jax.Array,
    labels: jax.Array,
    count: jax.Array,
    totals: EvalTotals,
) -> EvalTotals:
    """Returns the totals with a batch added.

    Args:
      experiment: The experiment.
      params: Parameters of the network, zero where pruned.
      model_state: Its other collections.
      images: Raw examples, `[N, ...]`.
      labels: Their labels, `[N, ...]`.
      count: How many of them count, from the front. int32.
      totals: Sums of the batches before.
    """
    inputs, labels = normalized(experiment, images), as_targets(labels)
    variables = {"params": experiment.gathered(params), **model_state}
    logits = experiment.model.apply(variables, inputs, train=False)
    counts = jnp.arange(len(labels)) < count
    losses = jnp.where(counts, experiment.loss(logits, labels), 0.0)
    parts = scores.parts(experiment, logits, labels)
    dtype = totals.correct.dtype
    correct = scores.summed(experiment.facts, parts, dtype, counts)
    return EvalTotals(totals.loss + jnp.sum(losses), totals.correct + correct)


def figures(
    experiment: Experiment,
    split: str,
    totals: EvalTotals,
    examples: int,
    predictions: int,
) -> dict[str, float]:
    """Returns the mean loss as "loss", and the figures of the score.

    Args:
      experiment: The experiment.
      split: As in `batches`.
      totals: The sums over its examples, as NumPy arrays.
      examples: Number of them.
      predictions: Number of their labels.
    """
    variance = None
    if experiment.facts.task == "regression":
        assert isinstance(experiment.dataset, Dataset)
        variance = label_variance(_examples(experiment, experiment.dataset, split)[1])
    found = scores.figures(experiment, totals.correct, predictions, variance)
    return {"loss": float(totals.loss) / examples, **found}
