"""A run loaded from its folder, to be used: its network, and what it predicts."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from zosam_jax import _check, models, sparsity
from zosam_jax._streams import DROPOUT
from zosam_jax._types import Masks, Params, PyTree
from zosam_jax.runs import dataset_facts, paths
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError, explained
from zosam_jax.runs.files import JSON
from zosam_jax.train import (
    choices,
    exported,
    model_card,
    narrowed,
    network,
    prediction,
    program_file,
    reestimation,
    stored_run,
)
from zosam_jax.train.checkpoint import steps_in
from zosam_jax.train.experiment import Experiment, Loss, Model, ModelState
from zosam_jax.train.objects import (
    GivenData,
    GivenGradient,
    GivenMethod,
    GivenOptimizer,
    Objects,
)
from zosam_jax.train.prediction import BATCH_SIZE, Inputs, Prediction

Format = Literal["safetensors", "stablehlo", "onnx"]
"""Formats of exported files."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run, finished or not, with the weights of one of its checkpoints.

    Attributes:
      folder: Its folder, absolute; or the file that it was exported to.
      config: Its configuration.
      experiment: Its model, optimizer and devices, the facts of its data set, and, if
        asked for, the data set.
      params: The parameters of the checkpoint, as NumPy arrays, zero where pruned. The
        moving averages, if the run kept them.
      model_state: Its BatchNorm statistics, or {}.
      masks: Mask tree of the parameters; all leaves are dense in a dense run.
      summary: The contents of `summary.json`, or those of its figures that an exported
        file keeps; None if the run is unfinished, or the checkpoint is not the last.
      step: The step of the checkpoint.
      notes: How the data set differs from that of the training, and what was wrong with
        newer checkpoints, as sentences.
    """

    folder: Path
    config: TrainConfig
    experiment: Experiment
    params: Params
    model_state: ModelState
    masks: Masks
    summary: JSON | None
    step: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Returns the folder, the model and the step: weights are long."""
        model = type(self.model).__name__
        return f"<{self.folder}: {model} at step {self.step}>"

    @property
    def model(self) -> Model:
        """The Linen module: `model.apply(variables, inputs, train=False)`.

        Its inputs are normalized images, `(images / 255 - mean) / std` by
        `facts.mean` and `facts.std`, or tokens.
        """
        return self.experiment.model

    def history(self) -> Iterator["LoadedRun"]:
        """Yields the run at each of its checkpoints, oldest first.

        A run keeps as many as `TrainConfig.keep` says.

        Raises:
          RunError: A checkpoint is damaged; or this is a file, which has none, or a
            network that was cut.
        """
        if not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file, and has no checkpoints.")
        stored, whole = network.record(self.folder).run, self.experiment
        if whole.whole is not None:
            whole = whole.whole
        own = (self.experiment.network or {}).get("widths", {})
        usual = narrowed.with_widths(stored.config, own) if own else stored.config
        if self.config.model_options != usual.model_options:
            raise RunError(
                f"the network was cut, and the checkpoints in {self.folder} are those "
                "of the whole one. Load it again, without compact()."
            )
        for step in steps_in(self.folder / "checkpoints"):
            weights = stored_run.weights(stored, whole, step)
            config, experiment = stored.config, whole
            if weights.network is not None:
                experiment = narrowed.of(whole, weights.network)
                config = narrowed.with_widths(config, weights.network["widths"])
            yield dataclasses.replace(
                self,
                config=dataclasses.replace(
                    self.config, model_options=config.model_options
                ),
                experiment=experiment,
                params=weights.params,
                model_state=weights.model_state,
                masks=weights.masks,
                summary=_summary(stored, weights),
                step=weights.step,
            )

    @property
    def variables(self) -> PyTree:
        """The first argument of `model.apply`."""
        return {"params": self.params, **self.model_state}

    @property
    def num_parameters(self) -> int:
        """Number of parameters, pruned ones too."""
        return sum(np.size(x) for x in jax.tree.leaves(self.params))

    @property
    def facts(self) -> DatasetFacts:
        """Shape, normalization and resizing of the images, and names of the classes."""
        return self.experiment.facts

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return self.facts.class_names

    @functools.cached_property
    def _on_devices(self) -> PyTree:
        return jax.device_put(self.variables, self.experiment.replicated())

    @functools.cached_property
    def _classify(self) -> Callable[[PyTree, jax.Array], jax.Array]:
        return prediction.classify(self.experiment)

    @functools.cached_property
    def _segment(self) -> Callable[[PyTree, jax.Array], jax.Array]:
        return prediction.segment(self.experiment)

    def probabilities(
        self, inputs: Inputs, *, batch_size: int = BATCH_SIZE
    ) -> np.ndarray:
        """Returns the probability of every class for every example, float32 `[N, K]`.

        They sum to 1, unless an example may have several classes. The network of a
        regression gives its values, of `classes`, and that of a segmentation the
        probabilities of each pixel, `[N, H, W, K]`.

        Args:
          inputs: As in `predict`.
          batch_size: As in `predict`.

        Raises:
          ValueError: As `predict`.
          zosam_jax.data.DatasetError: As `predict`.
          RunError: As `predict`.
        """
        given = prediction.examples(self.facts, inputs)
        return self._probabilities(given, batch_size)

    def _probabilities(self, given: prediction.Examples, batch_size: int) -> np.ndarray:
        network = self.experiment, self._classify, self._on_devices
        return prediction.outputs(*network, given, batch_size)

    def predict(
        self, inputs: Inputs, *, top: int = 5, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Returns the most probable classes of images, or the next tokens of texts.

        Files are prepared as the test images of the training: decoded, resized, cropped
        at the center. Images are normalized as in the training. The first call with a
        size of batch compiles a program.

        Args:
          inputs: Paths of image files, or of folders of images; or images of the shape
            `facts.image_shape`, uint8 `[N, H, W, C]`, one or a list of them. For a
            language model, token ids `[N, T]`, or paths of files that are read to their
            last T bytes.
          top: Number of classes of each prediction; all, if there are fewer. The values
            of a regression are all there.
          batch_size: Largest number of examples of a batch, over all devices together.

        Returns:
          One prediction for each example, in their order; the files of a folder are
          sorted by path. Of a segmentation it has the classes in an image and their
          shares of the pixels; see `label_maps`.

        Raises:
          ValueError: An argument is out of range, or an array does not fit.
          zosam_jax.data.DatasetError: A file is missing, or no image that can be used.
          RunError: The outputs of the network are not finite.

        Example:
          >>> net = zs.load("runs/digits")  # doctest: +SKIP
          >>> net.predict("three.png", top=2)  # doctest: +SKIP
          [Prediction(path='three.png', classes=('3', '9'), probabilities=(0.98, 0.01))]
        """
        _check.whole("top", top)
        given = prediction.examples(self.facts, inputs)
        if self.facts.task == "segmentation":
            maps = self._label_maps(given, batch_size)
            return prediction.shares(self.facts, given, maps, top)
        found = self._probabilities(given, batch_size)
        return prediction.best(self.facts, given, found, top)

    def label_maps(self, inputs: Inputs, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Returns the most probable class of each pixel, uint8 `[N, H, W]`.

        Files are prepared as in `predict`, and the maps have the height and width of
        `facts.image_shape`. They hold places in `classes`.

        Args:
          inputs: As in `predict`.
          batch_size: As in `predict`.

        Raises:
          ValueError: As `predict`, or the network is not one of segmentation.
          zosam_jax.data.DatasetError: As `predict`.
          RunError: As `predict`.
        """
        if self.facts.task != "segmentation":
            raise ValueError(
                f"the labels of {self.facts.name} are of {self.facts.task}, without a "
                "class for each pixel. Take predict()."
            )
        return self._label_maps(prediction.examples(self.facts, inputs), batch_size)

    def _label_maps(self, given: prediction.Examples, batch_size: int) -> np.ndarray:
        network = self.experiment, self._segment, self._on_devices
        return prediction.outputs(*network, given, batch_size)

    def compact(self, *, multiple: int = 1) -> "LoadedRun":
        """Returns the network without the units that nothing reads.

        It computes the same; see `zs.sparsity.compact`. Its configuration has the new
        widths.

        Args:
          multiple: Widths are rounded up to multiples of it.

        Raises:
          ValueError: The model does not say where its units are.
        """
        small = sparsity.compact(
            self.model,
            self.params,
            self.masks,
            model_state=self.model_state,
            multiple=multiple,
        )
        return dataclasses.replace(
            self,
            config=narrowed.with_widths(self.config, small.widths),
            experiment=dataclasses.replace(
                self.experiment,
                model=small.model,
                initialize=functools.partial(
                    models.initialize, small.model, image_shape=self.facts.image_shape
                ),
            ),
            params=small.params,
            masks=small.masks,
            model_state=small.model_state,
        )

    def reestimate_batch_stats(self, examples: int | None = None) -> "LoadedRun":
        """Returns the network with BatchNorm's statistics of its training examples.

        See `zosam_jax.models.reestimate_batch_stats`. The batches are the first ones of
        the training, of its size and augmented as there. `summary` stays that of the
        training.

        Args:
          examples: Number of training examples, rounded up to whole batches. None, and
            more than an epoch has: those of an epoch.

        Raises:
          RunError: The data set is not loaded, or there is no BatchNorm.
        """
        if self.experiment.dataset is None:
            raise RunError(
                "the statistics are estimated from training examples, which are not "
                "loaded. Say zs.load(run, examples=True)."
            )
        if examples is not None:
            _check.whole("examples", examples)
        number = reestimation.batches_of(self.experiment, examples)
        try:
            found = models.reestimate_batch_stats(
                self.model,
                self.variables,
                reestimation.inputs(self.experiment, number),
                key=self.experiment.key(DROPOUT),
            )
        except ValueError as error:
            raise RunError(str(error)) from error
        state = {k: x for k, x in found.items() if k != "params"}
        return dataclasses.replace(self, model_state=state)

    def save(
        self,
        file: str | os.PathLike[str],
        *,
        to: Format = "safetensors",
        dtype: exported.ValueType = "float32",
    ) -> Path:
        """Writes the network to one file, and a model card beside it; returns its path.

        Nothing in a file is executed when it is read.

        * "safetensors": weights and masks by name, classes, normalization and resizing.
          `load` reads it. Of a sparse leaf it has the mask, one bit a weight and
          deflated, and the live weights.
        * "stablehlo": the network as a program for CPUs, NVIDIA GPUs and TPUs, from raw
          examples to logits, for batches of any size. `jax.export.deserialize` reads
          it, without this package and without Flax. Beside it is a JSON file with the
          classes and the preprocessing. It needs the package flatbuffers.
        * "onnx": the same program for ONNX Runtime, by the converter jax2onnx, and
          checked there: its logits are those of the network to 1e-5 of the largest.

        Args:
          file: The file, as `digits.safetensors`.
          to: The format.
          dtype: Type of the weights in a safetensors file. "float32": as they are, and
            nothing is lost. "bfloat16": those of leaves with two axes or more are
            rounded; all else is exact.

        Raises:
          RunError: It cannot be written, or the format does not allow this network.
        """
        path = paths.absolute(file, "file")
        if to != "safetensors" and dtype != "float32":
            raise RunError(f"dtype={dtype!r} has no effect with to={to!r}.")
        about = model_card.about(self.config, self.facts, self.step, self.summary)
        arrays = exported.Network(self.params, self.model_state, self.masks)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if to == "safetensors":
            exported.write(path, about, arrays, dtype)
        else:
            program_file.write(path, to, about, self.experiment, arrays)
        return path


def load(
    run: str | os.PathLike[str],
    *,
    checkpoint: int | None = None,
    examples: bool = False,
    data_dir: str | None = None,
    dataset: GivenData | str | None = None,
    model: Model | None = None,
    method: GivenMethod | None = None,
    gradient: GivenGradient | None = None,
    optimizer: GivenOptimizer | None = None,
    loss: Loss | None = None,
) -> LoadedRun:
    """Returns a trained network from the folder of its run, which does not change.

        net = zs.load("runs/digits-resnet20-rigl-0.9-zosam-s0")
        net.predict("three.png")
        net.model.apply(net.variables, inputs, train=False)

    The folder holds all that the network needs: names and order of the classes, image
    shape and normalisation. Runs of older versions lack these facts, and take them from
    their data set. Objects that `run` was given must be given again. Data set and loss
    need not, unless the examples are loaded. A run of a constructor needs that again.

    Args:
      run: Its folder; the run may be unfinished. Or a file that `LoadedRun.save` or
        `zosam export` wrote; it needs `model` if the run did.
      checkpoint: The step of one of its checkpoints. Default: the last; of a finished
        run, that is its end.
      examples: Whether to load the data set that its configuration names, to evaluate.
      data_dir: TFDS directory. Default: the run's own.
      dataset: Examples in place of those that its configuration names, or their name,
        as "folder:PATH". They must have the same classes, in the same order, and are
        normalised as in the training.
      model: A Linen module in place of the one that its configuration names.
      method: The sparse method that the run was given.
      gradient: The gradient estimator that the run was given.
      optimizer: The Optax optimizer that the run was given.
      loss: The loss that the run was given.

    Raises:
      RunError: There is no such run or checkpoint, or a file of it is damaged.
      zosam_jax.data.DatasetError: The data set is missing or damaged, or is not one of
        the run's classes and image shape.
    """
    found = network.record(paths.absolute(run, "RUN"), checkpoint, data_dir)
    stored = found.run
    given = Objects(None, model, method, gradient, optimizer, loss)
    try:
        config, experiment, weights = network.restore(
            found,
            given,
            choices.of_stored,
            checkpoint=checkpoint,
            dataset=dataset,
            examples=examples,
        )
    except RunError:
        raise
    except ValueError as error:
        raise RunError(f"the run in {stored.config.folder}: {error}") from error
    notes = []
    if experiment.dataset is not None:
        notes = experiment.facts.changes(dataset_facts.of(experiment.dataset))
    return LoadedRun(
        folder=stored.folder,
        config=config,
        experiment=experiment,
        params=weights.params,
        model_state=weights.model_state,
        masks=weights.masks,
        summary=_summary(stored, weights),
        step=weights.step,
        notes=(*notes, *weights.notes),
    )


def _summary(stored: stored_run.StoredRun, weights: stored_run.Weights) -> JSON | None:
    """The summary of the run, if these are its last weights."""
    is_end = stored.summary and weights.step == stored.summary["steps"]
    return stored.summary if is_end else None
