"""A finished run loaded from its folder: its experiment and its weights."""

import contextlib
import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import optax

from zosam_jax import data
from zosam_jax._types import Params, PyTree
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs import folder
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.sparsity import SparseMethod
from zosam_jax.train import build, checkpoint, choices, objects
from zosam_jax.train import step as steps
from zosam_jax.train.experiment import Experiment, Model, ModelState, Teacher
from zosam_jax.train.objects import Objects
from zosam_jax.train.step import TrainState


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
    run = Path(run).expanduser().resolve()
    several = sorted(path.parent.name for path in run.glob("*/config.json"))
    if several and not (run / "config.json").exists():
        raise RunError(
            f"{run} holds several runs ({', '.join(several[:3])}"
            f"{', ...' if len(several) > 3 else ''}). Name one of them."
        )
    stored = folder.read_config(run)
    config = _config(run, stored["config"], data_dir)
    summary = folder.read_summary(config)
    if summary is None:
        raise RunError(
            f"{run} is not finished: it has no summary.json. The command that began it "
            "goes on with it."
        )
    given = Objects(dataset, model, method, gradient, optimizer)
    if config.method == "ticket":
        given = given._replace(method=build.ticket_method(config))
    _check_given(stored.get("objects", {}), given, run)
    experiment = _experiment(config, given)
    state = _last_state(run, _template(experiment), summary["steps"])
    params, model_state = steps.evaluated(state)
    params = steps.live_params(experiment, params, state.opt_state)
    return LoadedRun(run, config, experiment, params, model_state, summary)


def load_teacher(config: TrainConfig, dataset: data.Dataset | data.Streamed) -> Teacher:
    """Returns the network that a configuration names as its teacher.

    Args:
      config: The configuration; its `teacher` is a run folder.
      dataset: The data set of the configuration.

    Raises:
      ValueError: The teacher was trained on another data set.
      RunError: As for `load`.
    """
    assert config.teacher is not None
    stored = folder.read_config(Path(config.teacher).expanduser())["config"]
    if stored["dataset"] != config.dataset:
        raise ValueError(
            f"teacher={config.teacher!r} was trained on {stored['dataset']}, not on "
            f"{config.dataset}."
        )
    found = load(config.teacher, dataset=dataset)
    return Teacher(found.experiment.model, found.variables)


def _check_given(stored: dict[str, str], given: Objects, run: Path) -> None:
    """Raises `RunError` if an object that the run was given is missing or another."""
    now = given.record()
    for kind in ("dataset", "model"):
        # Other examples may be evaluated, and another class may define the same model.
        if kind in stored and kind in now:
            now[kind] = stored[kind]
    relevant = {kind: name for kind, name in now.items() if kind in stored}
    objects.check_recorded(stored, relevant, run)


def _config(run: Path, stored: JSON, data_dir: str | None) -> TrainConfig:
    # Older versions described the rounds of a lottery in the configuration itself.
    stored = {name: value for name, value in stored.items() if name != "ticket"}
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(stored) - known)
    if unknown:
        raise RunError(
            f"{run / 'config.json'} has fields that this version does not know: "
            f"{', '.join(unknown)}. Use the version that wrote it."
        )
    fields: JSON = {
        k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
    }
    fields |= {"out": str(run), "overwrite": False, "tensorboard": False}
    if data_dir is not None:
        fields["data_dir"] = data_dir
    try:
        return TrainConfig(**fields)
    except (TypeError, ValueError) as error:
        raise RunError(f"{run / 'config.json'}: {error}") from error


def _experiment(config: TrainConfig, given: Objects) -> Experiment:
    try:
        chosen = choices.choose(config, gradient=given.gradient, method=given.method)
        return build.experiment(config, given, chosen)
    except ValueError as error:
        raise RunError(str(error)) from error


def _template(experiment: Experiment) -> TrainState:
    """Returns the shapes of the run's state."""
    batch = (
        jax.ShapeDtypeStruct((experiment.batch_size, *x.shape), x.dtype)
        for x in experiment.example
    )
    return jax.eval_shape(lambda *data: steps.init(experiment, *data), *batch)


def _last_state(run: Path, template: TrainState, step: int) -> TrainState:
    """Returns the state that the summary describes."""
    place = run / "checkpoints"
    if not place.is_dir():
        raise RunError(f"{run} has no checkpoints, so its weights are not there.")
    with contextlib.closing(checkpoint.Checkpoints(place, keep=1)) as checkpoints:
        steps = checkpoints.steps()
        if step not in steps:
            raise RunError(
                f"{place} has no checkpoint of the last step, {step} (there are: "
                f"{', '.join(map(str, steps)) or 'none'})."
            )
        try:
            return checkpoints.read(step, template)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"the checkpoint of step {step} in {place} cannot be read: {reason} It "
                "is damaged, or of another version of this package: config.json says "
                "of which."
            ) from error
