"""The examples of a run: its data set, held-out images, label noise, augmentation."""

import dataclasses

import numpy as np

from zosam_jax import data
from zosam_jax.data import augment
from zosam_jax.data.augment import Augmentation
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.dataset_facts import DatasetFacts

Data = data.Dataset | data.Streamed
Images = tuple[np.ndarray, np.ndarray]


def labelled_images(config: TrainConfig, field: str, dataset: Data) -> data.Dataset:
    """Returns the data set; raises `ValueError` unless it is labelled images in memory.

    Args:
      config: The configuration.
      field: The field that needs them.
      dataset: The data set.
    """
    if not isinstance(dataset, data.Dataset) or dataset.train_labels.ndim > 1:
        is_one = dataset.task == "classification"
        form = "in memory" if is_one else "of one class each"
        raise ValueError(
            f"{field}={getattr(config, field):g} needs labelled images {form}, which "
            f"{config.dataset} are not."
        )
    return dataset


def hold_out(config: TrainConfig, dataset: Data) -> tuple[Data, Images | None]:
    """Returns the set without its validation images, and those.

    Every class gives the same fraction, evenly spaced over the set, so that the images
    are the same for every seed. Images of other tasks, and pieces of a text, are one
    class.
    """
    if not config.validation:
        return dataset, None
    if not isinstance(dataset, data.Dataset):
        dataset = labelled_images(config, "validation", dataset)
    labels = dataset.train_labels
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
    held = np.zeros(len(labels), bool)
    for label in range(dataset.num_classes):
        members = np.flatnonzero(classes == label)
        count = round(config.validation * len(members))
        held[members[np.arange(count) * len(members) // max(count, 1)]] = True
    if not held.any():
        raise ValueError(
            f"validation={config.validation:g} holds out no image of any class."
        )
    if dataset.task == "regression" and not data.label_variance(labels[held]):
        raise ValueError(
            f"validation={config.validation:g} holds out {held.sum()} examples of "
            "equal values, which have no R². Hold out more."
        )
    left = int((~held).sum())
    if left < config.batch_size:
        raise ValueError(
            f"validation={config.validation:g} leaves {left} training images, fewer "
            f"than batch_size={config.batch_size}."
        )
    images = dataset.train_images
    rest = dataclasses.replace(
        dataset, train_images=images[~held], train_labels=labels[~held]
    )
    return rest, (images[held], labels[held])


def normalized(config: TrainConfig, dataset: Data) -> Data:
    """Returns the set with the channel statistics of the configuration."""
    if config.normalization == "dataset":
        return dataset
    mean, std = data.STATISTICS[config.normalization]
    if dataset.kind != "image" or len(dataset.mean) != len(mean):
        count = len(dataset.mean)
        plural = "s" * (count != 1)
        held = "text" if dataset.kind == "text" else f"{count} channel{plural}"
        raise ValueError(
            f"normalization={config.normalization!r} is for images of {len(mean)} "
            f"channels, and {config.dataset} has {held}. Say dataset."
        )
    return dataclasses.replace(dataset, mean=mean, std=std)


def with_label_noise(
    config: TrainConfig, dataset: Data
) -> tuple[Data, np.ndarray | None]:
    """Returns the set with errors in its training labels, and the clean labels."""
    if not config.label_noise:
        return dataset, None
    dataset = labelled_images(config, "label_noise", dataset)
    clean = dataset.train_labels
    noisy = data.label_noise.symmetric(
        clean, dataset.num_classes, config.label_noise, config.seed
    )
    return dataclasses.replace(dataset, train_labels=noisy), clean


def with_augmentation(
    config: TrainConfig, dataset: Data, facts: DatasetFacts
) -> tuple[Data, Augmentation | None]:
    """Returns the augmentation of a configuration, or the set's own; None for text.

    Streamed images are cropped on the host, where they are large. So the data set,
    which is returned too, takes over `resized_crop`.
    """
    if dataset.kind == "text":
        if config.augment:
            raise ValueError(
                f"augment={list(config.augment)}: {config.dataset} is text, and these "
                "are operations on images. Leave it out."
            )
        return dataset, None
    made = augment.make(
        config.augment,
        num_classes=dataset.num_classes,
        crop_padding=dataset.crop_padding,
        flip=dataset.flip,
        mean=facts.mean,
        std=facts.std,
        image_size=dataset.image_shape[0],
        of_maps=dataset.task == "segmentation",
    )
    operations = dict(made.operations)
    side = min(dataset.image_shape[:2])
    for name in ("crop", "cutout"):
        if operations.get(name, 0) > side:
            raise ValueError(
                f"augment: {name}={operations[name]:g} is more than the {side} pixels "
                "of an image, of which nothing may be left."
            )
    if config.augment is not None and isinstance(dataset, data.Streamed):
        least_area = operations.pop("resized_crop", None)
        dataset = dataclasses.replace(dataset, least_area=least_area)
        made = dataclasses.replace(made, operations=tuple(operations.items()))
    return dataset, made
