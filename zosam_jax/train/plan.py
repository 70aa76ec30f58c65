"""What is checked before anything is compiled or written."""

from typing import Any

import jax
from jax.sharding import AxisType

from zosam_jax import _check, data, models
from zosam_jax.train import metrics
from zosam_jax.train.config import TrainConfig
from zosam_jax.train.errors import RunError
from zosam_jax.train.programs import Programs
from zosam_jax.train.step import Task


def plan(
    config: TrainConfig, dataset: data.Dataset | None = None, model: Any = None
) -> Programs:
    """Checks a configuration against its data, model and devices; compiles nothing.

    Raises:
      RunError: They do not fit together.
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
        if dataset is None:
            _check.one_of("dataset", config.dataset, data.names())
            dataset = data.load(config.dataset, config.data_dir)
        _check_batch(config, len(dataset.train_labels), mesh.size)
        if model is None:
            model = models.create(
                config.model,
                num_classes=dataset.num_classes,
                width=config.width,
                image_size=dataset.image_shape[0],
                dtype=config.dtype,
            )
        other = config.probe_dtype not in ("same", config.dtype)
        if other and not hasattr(model, "dtype"):
            raise ValueError(
                f"probe_dtype={config.probe_dtype!r} needs a model with a field dtype; "
                f"{type(model).__name__} has none."
            )
        return Programs(Task(config, dataset, model, mesh))
    except ValueError as error:
        raise RunError(str(error)) from error


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
