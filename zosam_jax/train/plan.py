"""What is checked before anything is compiled or written."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from zosam_jax import _check, data, models
from zosam_jax.runs import folder, metrics
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.train import option_strings
from zosam_jax.train.batch import transform
from zosam_jax.train.programs import Programs
from zosam_jax.train.task import Task

# What to say of a data set of a kind that the model does not take.
_MISFIT = {
    "text": "{0.dataset} is text, and model={0.model!r} is for images. Say --model "
    "tinylm, or start from --preset tinylm.",
    "image": "{0.dataset} are images, and model={0.model!r} is for text. Say --model "
    "resnet20, or --dataset pydoc.",
}


def plan(
    config: TrainConfig,
    dataset: data.Dataset | data.Streamed | None = None,
    model: Any = None,
) -> Programs:
    """Checks a configuration against its data, model and devices; compiles nothing.

    Raises:
      RunError: They do not fit together.
    """
    try:
        task = make_task(config, dataset, model)
        if config.teacher is not None:
            teacher = _teacher(config, task.dataset)
            task = dataclasses.replace(task, teacher=teacher)
        return Programs(task)
    except ValueError as error:
        raise RunError(str(error)) from error


def make_task(
    config: TrainConfig,
    dataset: data.Dataset | data.Streamed | None = None,
    model: Any = None,
) -> Task:
    """Returns what a run computes with, but its teacher; unlike `plan`, traces nothing.

    Raises:
      RunError: The configuration, its data, model and devices do not fit together.
    """
    if config.tensorboard:
        metrics.check_tensorboard()
    mesh = jax.make_mesh(
        (jax.local_device_count(),),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.local_devices(),
    )
    try:
        if model is None:
            _check.one_of("model", config.model, models.names())
        chosen, validation = _hold_out(config, dataset or _load(config))
        if model is None and models.kind(config.model) != chosen.kind:
            raise ValueError(_MISFIT[chosen.kind].format(config))
        _check_batch(config, chosen.num_train, mesh.size)
        _check_augment(config, chosen)
        if model is None:
            model = create_model(config, chosen)
        other = config.probe_dtype not in ("same", config.dtype)
        if other and not hasattr(model, "dtype"):
            raise ValueError(
                f"probe_dtype={config.probe_dtype!r} needs a model with a field dtype; "
                f"{type(model).__name__} has none."
            )
        _check_heads(config, model)
        task = Task(config, chosen, model, mesh, validation)
        if not task.optimizer_steps:
            raise ValueError(
                f"accumulate_steps={config.accumulate_steps} is more than the "
                f"{task.total_steps} batches of the run, which would not make a step."
            )
        return task
    except ValueError as error:
        raise RunError(str(error)) from error


def create_model(config: TrainConfig, dataset: data.Dataset | data.Streamed) -> Any:
    """Returns the network that a configuration names.

    Raises:
      ValueError: An option is unknown or out of range, or the examples do not fit.
    """
    options = option_strings.parse("model_options", config.model_options)
    return models.create(
        config.model,
        num_classes=dataset.num_classes,
        width=config.width,
        image_size=dataset.image_shape[0],
        dtype=config.dtype,
        **options,
    )


def _load(config: TrainConfig) -> data.Dataset | data.Streamed:
    size = config.image_size
    found = data.load(config.dataset, config.data_dir, image_size=size)
    if size is not None and isinstance(found, data.Dataset):
        raise ValueError(
            f"image_size={size}: the images of {config.dataset} are used as they are. "
            "Leave it out."
        )
    return found


def _hold_out(config: TrainConfig, dataset: Any) -> tuple[Any, Any]:
    """Returns a set without the share that `validation` names, and that share.

    It is the same share of every class, spread evenly over the set: the same in every
    run, whatever its seed.
    """
    if not config.validation:
        return dataset, None
    if not isinstance(dataset, data.Dataset) or dataset.train_labels.ndim > 1:
        raise ValueError(
            f"validation={config.validation:g} needs labelled images in memory, which "
            f"{config.dataset} are not."
        )
    labels = dataset.train_labels
    held = np.zeros(len(labels), bool)
    for label in range(dataset.num_classes):
        members = np.flatnonzero(labels == label)
        count = round(config.validation * len(members))
        held[members[np.arange(count) * len(members) // max(count, 1)]] = True
    if not held.any():
        raise ValueError(
            f"validation={config.validation:g} holds out no image of any class."
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


def _teacher(config: TrainConfig, dataset: Any) -> tuple[Any, Any]:
    """Returns the teacher's network and its variables."""
    # It makes the task of that run by this module.
    from zosam_jax.train import trained

    assert config.teacher is not None
    stored = folder.read_config(Path(config.teacher).expanduser())["config"]
    if stored["dataset"] != config.dataset:
        raise ValueError(
            f"teacher={config.teacher!r} was trained on {stored['dataset']}, not on "
            f"{config.dataset}."
        )
    found = trained.load(config.teacher, dataset=dataset)
    return found.task.model, found.variables


def _check_augment(config: TrainConfig, dataset: Any) -> None:
    """Raises unless the augmentation can be made, and is one of these examples."""
    if dataset.kind == "image":
        operations = dict(transform(config, dataset).operations)
        side = min(dataset.image_shape[:2])
        if operations.get("crop", 0) > side:
            raise ValueError(
                f"augment: crop={operations['crop']:g} is more than the {side} pixels "
                "of an image, of which nothing may be left."
            )
        if "resized_crop" in operations and isinstance(dataset, data.Streamed):
            raise ValueError(
                f"augment: the images of {config.dataset} are random resized crops "
                "already. Leave resized_crop out."
            )
    elif config.augment:
        raise ValueError(
            f"augment={list(config.augment)}: {config.dataset} is text, and these are "
            "operations on images. Leave it out."
        )


def _check_heads(config: TrainConfig, model: Any) -> None:
    """Raises unless a second head has a teacher."""
    if getattr(model, "distillation", False) and config.teacher is None:
        raise ValueError(
            "model_options: distillation=True adds a head that learns from a teacher. "
            "Say --teacher RUN, the folder of a finished run."
        )


def _check_batch(config: TrainConfig, images: int, devices: int) -> None:
    size = config.batch_size
    if size > images:
        raise ValueError(
            f"batch_size={size} is more than the {images} training images. "
            f"Use batch_size={images} or less."
        )
    if size % devices:
        raise ValueError(
            f"batch_size={size} must be a multiple of the {devices} local devices; "
            f"{max(size // devices, 1) * devices} would do."
        )
