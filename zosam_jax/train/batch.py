"""The batches of training: order of the examples, augmentation and targets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._streams import AUGMENT, ORDER
from zosam_jax._types import PyTree
from zosam_jax.data import IGNORED, Dataset, augment
from zosam_jax.train.experiment import Experiment


class Batch(NamedTuple):
    """A batch as the model takes it.

    Attributes:
      inputs: Normalised images `[N, H, W, C]`, or tokens `[N, T]`.
      targets: Classes, int32 `[N]` (`[N, T]` for tokens), or their probabilities,
        float32 `[N, K]` (`[N, T, K]`). Of several classes, 1 or 0 for each, or values:
        float32 `[N, K]`. Of label maps, int32 `[N, H, W]`, or float32 `[N, H, W, K]`.
      taught: The teacher's classes, int32 `[N]` (`[N, T]`), or None.
    """

    inputs: jax.Array
    targets: jax.Array
    taught: jax.Array | None = None


def epoch_order(experiment: Experiment, epoch: jax.Array) -> jax.Array:
    """Returns a permutation of the training examples for an epoch, int32 `[num_train]`.

    Args:
      experiment: The experiment; gives the seed.
      epoch: Number of the epoch, from 0. int32.
    """
    key = experiment.key(ORDER, epoch)
    return jax.random.permutation(key, experiment.facts.num_train)


def gather(
    experiment: Experiment,
    step: jax.Array,
    order: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the raw examples and labels of a step, taken from the whole set.

    Args:
      experiment: The experiment.
      step: The step. int32.
      order: `epoch_order` of its epoch.
      images: All training examples, `[num_train, ...]`.
      labels: Their labels.
    """
    size = experiment.batch_size
    start = step % experiment.steps_per_epoch * size
    chosen = experiment.split(jax.lax.dynamic_slice(order, (start,), (size,)))
    return experiment.split((images[chosen], labels[chosen]))


def class_balanced(
    experiment: Experiment, order: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the first `experiment.score_images` examples of each class in an order.

    Args:
      experiment: The experiment; its data set has as many in each class.
      order: `epoch_order` of an epoch.
      images: All training examples, `[N, ...]`.
      labels: Their classes, int32 `[N]`.

    Returns:
      Raw examples `[score_images * classes, ...]`, class by class, and their labels.
    """
    assert isinstance(experiment.dataset, Dataset)
    sizes = np.bincount(experiment.dataset.train_labels)
    starts = np.cumsum(sizes) - sizes
    places = starts[:, None] + np.arange(experiment.score_images)[None]
    by_class = order[jnp.argsort(labels[order], stable=True)]
    chosen = by_class[places.reshape(-1)]
    return images[chosen], labels[chosen]


def scored(
    experiment: Experiment, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets of the examples by which masks are chosen.

    Args:
      experiment: The experiment.
      images: The raw examples: those of `class_balanced`, which stay as they are, or
        the first batch, which is augmented as in the training.
      labels: Their labels.
    """
    if experiment.score_images:
        return normalized(experiment, images), labels
    batch = prepare(experiment, jnp.zeros((), jnp.int32), images, labels)
    return batch.inputs, batch.targets


def prepare(
    experiment: Experiment,
    step: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    teacher: PyTree = None,
) -> Batch:
    """Returns the batch of raw examples: augmented, normalised, with its targets.

    The augmentation depends on the seed and the step alone.

    Args:
      experiment: The experiment.
      step: The step. int32.
      images: uint8 `[N, H, W, C]`, or tokens `[N, T]`.
      labels: int32 `[N]`, or `[N, T]`.
      teacher: The teacher's variables, or None.
    """
    labels = as_targets(labels)
    targets = labels
    if experiment.augmentation is not None:
        key = experiment.key(AUGMENT, step)
        images, targets = experiment.augmentation(key, images, labels)
    inputs = normalized(experiment, images)
    if experiment.facts.kind == "image":
        inputs = experiment.split(inputs)
    return Batch(
        inputs, _smooth(experiment, targets), _taught(experiment, inputs, teacher)
    )


def as_targets(labels: jax.Array) -> jax.Array:
    """Returns labels as a loss takes them: those of several classes as 1 and 0."""
    types = {"bool": jnp.float32, "uint8": jnp.int32}
    return labels.astype(types.get(labels.dtype.name, labels.dtype))


def normalized(experiment: Experiment, images: jax.Array) -> jax.Array:
    """Returns raw examples as the model takes them; tokens stay as they are."""
    facts = experiment.facts
    if facts.kind == "text":
        return images
    return augment.normalize(images, facts.mean, facts.std, experiment.dtype)


def _smooth(experiment: Experiment, targets: jax.Array) -> jax.Array:
    factor = experiment.label_smoothing
    if not factor:
        return targets
    smooth = augment.smooth_labels(targets, factor, experiment.facts.num_classes)
    if experiment.facts.task == "segmentation":
        # Pixels that are ignored have no class to begin with.
        return jnp.where((targets != IGNORED)[..., None], smooth, 0)
    return smooth


def _taught(
    experiment: Experiment, inputs: jax.Array, teacher: PyTree
) -> jax.Array | None:
    """Returns the teacher's classes for the augmented inputs of the model."""
    if experiment.teacher is None or teacher is None:
        return None
    variables = experiment.gathered(teacher)
    logits = experiment.teacher.model.apply(variables, inputs, train=False)
    return jnp.argmax(logits, -1)
