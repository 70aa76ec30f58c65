"""What a step sees: examples in the seed's order, augmented, and their targets."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax._streams import AUGMENT, ORDER
from zosam_jax.data import augment
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train.task import Task


class Batch(NamedTuple):
    """A batch as the network takes it.

    Attributes:
      inputs: Normalised images `[N, H, W, C]`, or tokens `[N, T]`.
      targets: Classes, int32 `[N]` (`[N, T]` for tokens), or their probabilities,
        float32 `[N, K]` (`[N, T, K]`).
      taught: The teacher's classes, int32 `[N]` (`[N, T]`), or None.
    """

    inputs: jax.Array
    targets: jax.Array
    taught: jax.Array | None = None


def epoch_order(task: Task, epoch: jax.Array) -> jax.Array:
    """Returns the training examples' indices in the order of an epoch, from the seed.

    Args:
      task: The task.
      epoch: From 0. int32.
    """
    return jax.random.permutation(task.key(ORDER, epoch), task.dataset.num_train)


def gather(
    task: Task, step: jax.Array, order: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the raw examples and labels of a step, out of the whole set.

    Args:
      task: The task.
      step: The step. int32.
      order: `epoch_order` of its epoch.
      images: The training set.
      labels: Its labels.
    """
    size = task.config.batch_size
    start = step % task.steps_per_epoch * size
    chosen = task.split(jax.lax.dynamic_slice(order, (start,), (size,)))
    return task.split((images[chosen], labels[chosen]))


def prepare(
    task: Task, step: jax.Array, images: jax.Array, labels: jax.Array, teacher: Any
) -> Batch:
    """Returns raw examples augmented and normalised, and their targets.

    All that is random comes from the seed and the step.

    Args:
      task: The task.
      step: The step. int32.
      images: uint8 `[N, H, W, C]`, or tokens `[N, T]`.
      labels: int32 `[N]`, or `[N, T]`.
      teacher: The teacher's variables, or None.
    """
    config, data = task.config, task.dataset
    if data.kind == "text":
        return Batch(images, _smooth(task, labels), _taught(task, images, teacher))
    key = task.key(AUGMENT, step)
    images, targets = transform(config, data)(key, images, labels)
    inputs = task.split(normalized(task, images))
    return Batch(inputs, _smooth(task, targets), _taught(task, inputs, teacher))


def transform(config: TrainConfig, dataset: Any) -> augment.Augmentation:
    """Returns the augmentation that a configuration names, or the set's own.

    Raises:
      ValueError: A name is unknown, or a strength out of range.
    """
    return augment.make(
        config.augment,
        num_classes=dataset.num_classes,
        crop_padding=dataset.crop_padding,
        flip=dataset.flip,
        mean=dataset.mean,
        std=dataset.std,
        image_size=dataset.image_shape[0],
    )


def normalized(task: Task, images: jax.Array) -> jax.Array:
    """Returns examples as the network takes them."""
    data = task.dataset
    if data.kind == "text":
        return images
    return augment.normalize(images, data.mean, data.std, task.dtype)


def _smooth(task: Task, targets: jax.Array) -> jax.Array:
    if not task.config.label_smoothing:
        return targets
    classes, share = task.dataset.num_classes, task.config.label_smoothing
    return augment.smooth_labels(targets, share, classes)


def _taught(task: Task, inputs: jax.Array, teacher: Any) -> jax.Array | None:
    """The classes that the teacher sees in the very inputs that the network sees."""
    if task.teacher is None or teacher is None:
        return None
    logits = task.teacher[0].apply(teacher, inputs, train=False)
    return jnp.argmax(logits, -1)
