"""Batches by which the statistics of batch normalization are estimated anew."""

import contextlib
from collections.abc import Generator, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import PyTree
from zosam_jax.data import Streamed
from zosam_jax.train.batch import epoch_order, prepare
from zosam_jax.train.experiment import Experiment


def batches_of(experiment: Experiment, examples: int | None) -> int:
    """Returns the number of batches of some training examples, rounded up.

    Args:
      experiment: The experiment.
      examples: Number of examples; None, and more than an epoch has: those of an epoch.
    """
    whole = experiment.steps_per_epoch
    return (
        whole if examples is None else min(whole, -(-examples // experiment.batch_size))
    )


def inputs(experiment: Experiment, batches: int) -> Iterator[jax.Array]:
    """Yields the inputs of the first batches of the training, augmented as there.

    Args:
      experiment: The experiment, with its data set.
      batches: Their number, of one epoch at most.
    """
    made = jax.jit(lambda step, *batch: prepare(experiment, step, *batch).inputs)
    with contextlib.closing(_raw(experiment, batches)) as found:
        for step, batch in enumerate(found):
            yield made(jnp.int32(step), *experiment.put(batch))


def _raw(experiment: Experiment, batches: int) -> Generator[PyTree, None, None]:
    """Yields the raw examples and labels of the first batches."""
    dataset = experiment.dataset
    assert dataset is not None
    size = experiment.batch_size
    if isinstance(dataset, Streamed):
        seed, workers = int(np.asarray(experiment.seed)), experiment.workers
        stream = dataset.batches(seed, size, workers=workers)
        with contextlib.closing(stream):
            for _ in range(batches):
                yield next(stream)
        return
    order = np.asarray(epoch_order(experiment, jnp.int32(0)))
    for start in range(0, batches * size, size):
        chosen = order[start : start + size]
        yield dataset.train_images[chosen], dataset.train_labels[chosen]
