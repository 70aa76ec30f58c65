"""Loss and accuracy on held-out examples, batch by batch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.data import Streamed
from zosam_jax.train.batch import normalized
from zosam_jax.train.objective import cross_entropy, right
from zosam_jax.train.task import Task

_LARGEST = 512


class EvalTotals(NamedTuple):
    """Sums over examples: loss (float32) and right predictions (int32)."""

    loss: jax.Array
    correct: jax.Array


def no_totals() -> EvalTotals:
    """Returns the sums over no examples."""
    return EvalTotals(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def batch_size(task: Task) -> int:
    """Returns the examples of a batch: at most 512, equally many on each device."""
    devices = task.mesh.size
    return -(-min(task.dataset.num_test, _LARGEST) // devices) * devices


def batches(task: Task, split: str) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields raw examples and labels of a held-out set, and how many of them count.

    All batches have the same size: the last is filled up.

    Args:
      task: The task.
      split: "test" or "validation".
    """
    size = batch_size(task)
    data = task.dataset
    if isinstance(data, Streamed):
        # Threads: processes would start anew for every evaluation.
        yield from data.evaluation_batches(size)
        return
    images, labels = data.test_images, data.test_labels
    if split == "validation":
        assert task.validation is not None
        images, labels = task.validation
    for start in range(0, len(labels), size):
        index = np.arange(start, start + size)
        count = int(np.sum(index < len(labels)))
        index = np.minimum(index, len(labels) - 1)
        yield images[index], labels[index], count


def add_batch(
    task: Task,
    params: Any,
    model_state: Any,
    images: jax.Array,
    labels: jax.Array,
    count: jax.Array,
    totals: EvalTotals,
) -> EvalTotals:
    """Returns the totals with a batch added.

    Args:
      task: The task.
      params: Of the network itself: zero where pruned.
      model_state: Its other collections.
      images: Raw examples.
      labels: Their classes, int32 `[N]`, or `[N, T]`.
      count: How many of them count, from the front.
      totals: Sums of the batches before.
    """
    logits = task.model.apply(
        {"params": params, **model_state}, normalized(task, images), train=False
    )
    counts = jnp.arange(len(labels)) < count
    losses = jnp.where(counts, cross_entropy(logits, labels), 0.0)
    hits = right(logits, labels) & counts.reshape(-1, *(1,) * (labels.ndim - 1))
    return EvalTotals(
        totals.loss + jnp.sum(losses), totals.correct + jnp.sum(hits, dtype=jnp.int32)
    )
