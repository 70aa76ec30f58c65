"""What a run computes with: all that is fixed before it starts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zosam_jax import models
from zosam_jax.data import Dataset, Streamed
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import optimizer


@dataclasses.dataclass(frozen=True)
class Task:
    """A configuration with its data, model and devices.

    Attributes:
      config: The configuration.
      dataset: Its examples stay in host memory here; steps take them as arguments.
      model: A Linen module called with `(images, train=...)`.
      mesh: Local devices along one axis, "data".
      validation: Images and labels held out of the training set, or None.
      teacher: `(model, variables)` of the network that is distilled, or None.
    """

    config: TrainConfig
    dataset: Dataset | Streamed
    model: Any
    mesh: jax.sharding.Mesh
    validation: tuple[np.ndarray, np.ndarray] | None = None
    teacher: tuple[Any, Any] | None = None

    @property
    def streams(self) -> bool:
        """Whether the training set is read batch by batch."""
        return isinstance(self.dataset, Streamed)

    @property
    def example(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of an example and of its label."""
        if isinstance(self.dataset, Streamed):
            image = jax.ShapeDtypeStruct(self.dataset.image_shape, np.uint8)
            return image, jax.ShapeDtypeStruct((), np.int32)
        images, labels = self.dataset.train_images, self.dataset.train_labels
        return (
            jax.ShapeDtypeStruct(images.shape[1:], images.dtype),
            jax.ShapeDtypeStruct(labels.shape[1:], labels.dtype),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training set."""
        return self.dataset.num_train // self.config.batch_size

    @property
    def total_steps(self) -> int:
        """Batches of the whole run; each is a step."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def optimizer_steps(self) -> int:
        """Steps of the optimizer: one for every `accumulate_steps` batches."""
        return self.total_steps // self.config.accumulate_steps

    @property
    def dtype(self) -> Any:
        """Type that the model computes in."""
        return jnp.dtype(self.config.dtype)

    def key(self, stream: np.uint32, count: Any = 0) -> jax.Array:
        """Returns the key of a stream of random numbers at a count."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), stream)
        return jax.random.fold_in(key, count)

    def replicated(self) -> NamedSharding:
        """Returns the sharding of all but the batch."""
        return NamedSharding(self.mesh, PartitionSpec())

    def over_devices(self) -> NamedSharding:
        """Returns the sharding of a batch."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def split(self, batch: Any) -> Any:
        """Lays the first axis of every array over the devices."""
        return jax.lax.with_sharding_constraint(batch, self.over_devices())

    def optimizer(self, aux_like: Any, value_fn: Any) -> Any:
        """Returns the optimizer; see `zosam_jax.train.optimizer.make`."""
        own: tuple[str, ...] = ()
        if self.config.model in models.names():
            own = models.dense_paths(self.config.model)
        return optimizer.make(
            self.config,
            self.optimizer_steps,
            dense=(*own, *self.config.dense),
            embeddings=own,
            aux_like=aux_like,
            value_fn=value_fn,
        )
