"""The resolved objects and numbers of a training run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding

from zosam_jax._types import Key, Params, PyTree, Schedule, Seed, ValueFn
from zosam_jax.data import Dataset, Streamed
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.files import JSON
from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.train import sharding

if TYPE_CHECKING:
    from zosam_jax.data.augment import Augmentation

Model = Any
"""A Linen module, called with `(inputs, train=...)`."""

ModelState = dict[str, PyTree]
"""The collections of a model other than its parameters, as `{"batch_stats": ...}`."""

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""`(outputs, labels) -> losses`: one for each example, `[N]`."""

Score = Callable[[Loss, Model, ModelState, jax.Array, jax.Array, Key], ValueFn]
"""`(loss, model, model_state, inputs, targets, dropout_key) -> (params -> scalar)`."""


class Criterion(NamedTuple):
    """How a criterion at initialisation (SNIP, GraSP, SynFlow) chooses the masks.

    Attributes:
      score: Makes the function whose derivatives rank the weights.
      optimizer: Returns the whole optimizer for such a function. Only its `init` is
        called: it chooses the masks.
    """

    score: Score
    optimizer: Callable[[ValueFn], optax.GradientTransformationExtraArgs]


OptimizerOf = Callable[
    [SparseMethod | None, GradientEstimator], optax.GradientTransformationExtraArgs
]
"""Makes the whole optimizer of a sparse method and a gradient."""


class Optimization(NamedTuple):
    """The fields of `Experiment` that make its optimizer.

    Attributes:
      gradient: See `Experiment`.
      method: See `Experiment`.
      criterion: See `Experiment`.
      optimizer: See `Experiment`.
      optimizer_of: See `Experiment`.
      learning_rate: See `Experiment`.
    """

    gradient: GradientEstimator
    method: SparseMethod | None
    criterion: Criterion | None
    optimizer: optax.GradientTransformationExtraArgs
    optimizer_of: OptimizerOf
    learning_rate: Schedule | None


class Teacher(NamedTuple):
    """A trained network whose predicted classes are distilled.

    Attributes:
      model: The network, called with `(inputs, train=False)`.
      variables: Its parameters and other collections.
    """

    model: Model
    variables: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a run computes with, made once from its configuration.

    Attributes:
      dataset: Training and test examples. A set in memory stays in host memory here.
        None in a run that was loaded without its data set.
      facts: What the network knows of its data set. They stay as they were when the run
        began.
      validation: Images and labels held out of the training set, or None.
      clean_labels: Training labels without the errors of `label_noise`, `[num_train]`;
        None if it is 0.
      augmentation: Augmentation of the training images; None for text.
      label_smoothing: Label-smoothing factor, in [0, 1).
      batch_size: Examples of one batch, over all devices together.
      workers: Processes that decode streamed images; 0: this one.
      model: Linen module, called with `(inputs, train=...)`.
      initialize: `key -> (params, model_state)`.
      loss: The loss of every example, for training, scores of masks and evaluation.
      label_variance: Variance of the training labels of a regression, summed over the
        values; 0 for other tasks.
      dtype: Data type of the model's inputs.
      teacher: The distilled network, or None.
      gradient: Gradient estimator. Its `value_fn` returns `(loss, aux)` with aux
        `(model_state, number of correct examples)`, or other sums of scores.
      probe_model: Model of the ascent step: `model`, or a copy of another data type.
      probe_trains: Whether the ascent step runs the model as in training: BatchNorm
        with statistics of the batch, and dropout.
      method: Sparse method; None trains all weights.
      criterion: How masks are chosen by a batch; None: without one.
      score_images: Clean training images of each class in that batch; 0: it is the
        first one of the training.
      optimizer: The whole optimizer: gradient, clipping, weight decay, update rule and
        masks. `update` takes `value_fn` and no incoming gradient.
      optimizer_of: Makes it of another method and gradient.
      learning_rate: Learning-rate schedule over optimizer steps; None if unknown, for
        an optimizer that the user made.
      optimization: Makes the six fields above of a seed, which may be traced.
      ema: Decay of the exponential moving average of the weights; 0: no average.
      accumulate_steps: Batches of one optimizer step.
      epochs: Passes over the training set.
      seed: Seed of all random numbers; see `with_seed`.
      mesh: The devices, of all processes of the run; see `zosam_jax.train.sharding`.
      scans: Whether many steps run in one compiled loop.
      labels: What the dataset, model, method, gradient and optimizer are called in
        messages, and a given loss.
      whole: The experiment that the run began with, if units were cut out since.
      network: What checkpoints say of the network then; see `narrowed`.
    """

    dataset: Dataset | Streamed | None
    facts: DatasetFacts
    validation: tuple[np.ndarray, np.ndarray] | None
    clean_labels: np.ndarray | None
    augmentation: "Augmentation | None"
    label_smoothing: float
    batch_size: int
    workers: int
    model: Model
    initialize: Callable[[Key], tuple[Params, ModelState]]
    loss: Loss
    label_variance: float
    dtype: np.dtype
    teacher: Teacher | None
    gradient: GradientEstimator
    probe_model: Model
    probe_trains: bool
    method: SparseMethod | None
    criterion: Criterion | None
    score_images: int
    optimizer: optax.GradientTransformationExtraArgs
    optimizer_of: OptimizerOf
    learning_rate: Schedule | None
    optimization: Callable[[Seed], Optimization]
    ema: float
    accumulate_steps: int
    epochs: int
    seed: Seed
    mesh: jax.sharding.Mesh
    scans: bool
    labels: Mapping[str, str]
    whole: "Experiment | None" = None
    network: JSON | None = None

    @property
    def shapes(self) -> tuple[Params, ModelState]:
        """Shapes of the parameters and of the model's other collections."""
        return jax.eval_shape(self.initialize, jax.random.key(0))

    @property
    def probes(self) -> bool:
        """Whether the ascent step uses a cheaper loss than the descent."""
        is_partial = self.gradient.option("ascent_fraction", 1.0) < 1
        return is_partial or self.probe_model is not self.model

    @property
    def holds_pruned(self) -> bool:
        """Whether the parameters hold pruned weights that are not zero."""
        return self.method is not None and self.method.pruned_in_params

    @property
    def streams(self) -> bool:
        """Whether training batches come from the host one by one."""
        return isinstance(self.dataset, Streamed)

    @property
    def host(self) -> tuple[int, int]:
        """The number of this process among those of the devices, and their number."""
        found = sorted({d.process_index for d in self.mesh.devices.flat})
        return found.index(jax.process_index()), len(found)

    @property
    def example(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shape and type of one example and of its label."""
        if not isinstance(self.dataset, Dataset):
            shape, facts = self.facts.image_shape, self.facts
            image = jax.ShapeDtypeStruct(shape, np.uint8)
            targets, dtype = () if facts.kind == "image" else shape, np.int32
            if facts.task == "segmentation":
                return image, jax.ShapeDtypeStruct(shape[:2], np.uint8)
            if facts.task != "classification":
                targets = (facts.num_classes,)
                dtype = np.bool_ if facts.task == "multilabel" else np.float32
            return image, jax.ShapeDtypeStruct(targets, dtype)
        images, labels = self.dataset.train_images, self.dataset.train_labels
        return (
            jax.ShapeDtypeStruct(images.shape[1:], images.dtype),
            jax.ShapeDtypeStruct(labels.shape[1:], labels.dtype),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training set."""
        return self.facts.num_train // self.batch_size

    @property
    def total_steps(self) -> int:
        """Batches of the whole run. A step trains on one batch."""
        return self.steps_per_epoch * self.epochs

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run: one per `accumulate_steps` batches."""
        return self.total_steps // self.accumulate_steps

    def with_seed(self, seed: Seed) -> "Experiment":
        """Returns the experiment with another seed, which may be traced.

        A program that is given its seed as an argument is the same for every seed.
        """
        parts = self.optimization(seed)
        return dataclasses.replace(self, seed=seed, **parts._asdict())

    def key(self, stream: np.uint32, count: jax.typing.ArrayLike = 0) -> Key:
        """Returns the PRNG key of a stream (see `zosam_jax._streams`) at a count."""
        key = jax.random.fold_in(jax.random.key(self.seed), stream)
        return jax.random.fold_in(key, count)

    def replicated(self) -> NamedSharding:
        """Returns the sharding of what every device has whole."""
        return sharding.replicated(self.mesh)

    def over_devices(self) -> NamedSharding:
        """Returns the sharding of a batch: its first axis over the devices."""
        return sharding.of_batch(self.mesh)

    def in_parts(self, state: PyTree) -> PyTree:
        """Returns the sharding of each leaf of a state, or of its shapes."""
        return sharding.of_state(self.mesh, state)

    def gathered(self, params: Params) -> Params:
        """Returns parameters for a pass of the network: whole on every device."""
        return sharding.gathered(self.mesh, params)

    def put(self, batch: PyTree) -> PyTree:
        """Returns a batch on the devices.

        Args:
          batch: NumPy arrays: the rows of the devices of this process.
        """
        return jax.make_array_from_process_local_data(self.over_devices(), batch)

    def split(self, batch: PyTree) -> PyTree:
        """Returns the batch with the first axis of every array over the devices."""
        return jax.lax.with_sharding_constraint(batch, self.over_devices())
