"""A run loaded from its folder: its experiment and its weights."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import optax

from zosam_jax import data
from zosam_jax._types import Params, PyTree
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs import dataset_facts
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.sparsity import SparseMethod
from zosam_jax.train import build, choices, objects, stored_run
from zosam_jax.train.experiment import Experiment, Model, ModelState
from zosam_jax.train.objects import Objects


class LoadedRun(NamedTuple):
    """A run, finished or not.

    Attributes:
      folder: Its folder, absolute.
      config: Its configuration.
      experiment: Its model, optimizer and devices, the facts of its data set, and, if
        asked for, the data set.
      params: The parameters of its last checkpoint, as NumPy arrays, zero where pruned.
        The moving averages, if the run kept them.
      model_state: Its BatchNorm statistics, or {}.
      summary: The contents of `summary.json`; None if the run is unfinished.
      step: The step of the checkpoint.
      notes: How the data set differs from that of the training, and what was wrong with
        newer checkpoints, as sentences.
    """

    folder: Path
    config: TrainConfig
    experiment: Experiment
    params: Params
    model_state: ModelState
    summary: JSON | None
    step: int
    notes: tuple[str, ...] = ()

    @property
    def variables(self) -> PyTree:
        """The argument of `experiment.model.apply`."""
        return {"params": self.params, **self.model_state}


def load(
    run: str | os.PathLike[str],
    *,
    examples: bool = False,
    data_dir: str | None = None,
    dataset: data.Dataset | data.Streamed | str | None = None,
    model: Model | None = None,
    method: SparseMethod | None = None,
    gradient: GradientEstimator | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> LoadedRun:
    """Returns a run, at its end or at its last checkpoint. Its folder does not change.

    The folder holds all that the network needs: names and order of the classes, image
    shape and normalisation. Runs of older versions lack these facts, and take them from
    their data set. Objects that `run` was given must be given again, but for the data
    set.

    Args:
      run: Its folder.
      examples: Whether to load the data set that its configuration names, to evaluate.
      data_dir: TFDS directory. Default: the run's own.
      dataset: Examples in place of those that its configuration names, or their name,
        as "folder:PATH". They must have the same classes, in the same order, and are
        normalised as in the training.
      model: A Linen module in place of the one that its configuration names.
      method: The sparse method that the run was given.
      gradient: The gradient estimator that the run was given.
      optimizer: The Optax optimizer that the run was given.

    Raises:
      RunError: There is no such run, it has no checkpoint, or a file of it is damaged.
      zosam_jax.data.DatasetError: The data set is missing or damaged, or is not one of
        the run's classes and image shape.
    """
    stored = stored_run.read(run, data_dir=data_dir)
    config, facts = stored.config, stored.facts
    recorded = dict(stored.objects or {})
    if isinstance(dataset, str):
        config, dataset, examples = _named(config, dataset), None, True
        recorded.pop("dataset", None)
    elif dataset is None and not examples and facts is not None:
        recorded.pop("dataset", None)
    given = Objects(dataset, model, method, gradient, optimizer)
    if config.method == "ticket":
        given = given._replace(method=choices.ticket_method(config))
    objects.check_loaded(recorded, given.record(), stored.folder)
    experiment = _experiment(config, given, facts, examples)
    notes = []
    if experiment.dataset is not None:
        notes = experiment.facts.changes(dataset_facts.of(experiment.dataset))
    found = stored_run.weights(stored, experiment)
    network = found.params, found.model_state
    told = (*notes, *found.notes)
    return LoadedRun(
        stored.folder, config, experiment, *network, stored.summary, found.step, told
    )


def _experiment(
    config: TrainConfig, given: Objects, facts: DatasetFacts | None, examples: bool
) -> Experiment:
    try:
        chosen = choices.choose(config, gradient=given.gradient, method=given.method)
        return build.experiment(config, given, chosen, facts, examples=examples)
    except ValueError as error:
        raise RunError(f"the run in {config.folder}: {error}") from error


def _named(config: TrainConfig, dataset: str) -> TrainConfig:
    """Returns a configuration with another data set."""
    try:
        return dataclasses.replace(config, dataset=dataset)
    except ValueError as error:
        raise RunError(str(error)) from error
