"""A finished run loaded from its folder: its experiment and its weights."""

from pathlib import Path
from typing import NamedTuple

import optax

from zosam_jax import data
from zosam_jax._types import Params, PyTree
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.sparsity import SparseMethod
from zosam_jax.train import build, choices, finished_run, objects
from zosam_jax.train.experiment import Experiment, Model, ModelState
from zosam_jax.train.objects import Objects


class LoadedRun(NamedTuple):
    """A finished run.

    Attributes:
      folder: Its folder, absolute.
      config: Its configuration.
      experiment: Its data set, model, optimizer and devices.
      params: The parameters of its last checkpoint, as NumPy arrays, zero where pruned.
        The moving averages, if the run kept them.
      model_state: Its BatchNorm statistics, or {}.
      summary: The contents of `summary.json`.
    """

    folder: Path
    config: TrainConfig
    experiment: Experiment
    params: Params
    model_state: ModelState
    summary: JSON

    @property
    def variables(self) -> PyTree:
        """The argument of `experiment.model.apply`."""
        return {"params": self.params, **self.model_state}


def load(
    run: Path | str,
    *,
    data_dir: str | None = None,
    dataset: data.Dataset | data.Streamed | None = None,
    model: Model | None = None,
    method: SparseMethod | None = None,
    gradient: GradientEstimator | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> LoadedRun:
    """Returns a finished run. Nothing in its folder changes.

    Objects that `run` was given must be given again; a `dataset` may be another one.

    Args:
      run: Its folder.
      data_dir: TFDS directory. Default: the run's own.
      dataset: Examples in place of those that its configuration names.
      model: A Linen module in place of the one that its configuration names.
      method: The sparse method that the run was given.
      gradient: The gradient estimator that the run was given.
      optimizer: The Optax optimizer that the run was given.

    Raises:
      RunError: There is no such run, it is unfinished, or a file of it is damaged.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    finished = finished_run.read(run, data_dir=data_dir)
    config = finished.config
    given = Objects(dataset, model, method, gradient, optimizer)
    if config.method == "ticket":
        given = given._replace(method=choices.ticket_method(config))
    objects.check_loaded(finished.objects, given.record(), finished.folder)
    experiment = _experiment(config, given)
    params, model_state = finished_run.weights(finished, experiment)
    return LoadedRun(
        finished.folder, config, experiment, params, model_state, finished.summary
    )


def _experiment(config: TrainConfig, given: Objects) -> Experiment:
    try:
        chosen = choices.choose(config, gradient=given.gradient, method=given.method)
        return build.experiment(config, given, chosen)
    except ValueError as error:
        raise RunError(str(error)) from error
