"""A run from its configuration to its summary."""

import contextlib
import dataclasses
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optax

from zosam_jax import data
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs import folder, metrics
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.runs.progress import Display, Silent
from zosam_jax.sparsity import SparseMethod
from zosam_jax.train import build, checkpoint, choices, finished_run, objects, resume
from zosam_jax.train.choices import Choices
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.experiment import Model, Teacher
from zosam_jax.train.interruption import interruptions
from zosam_jax.train.objects import Objects
from zosam_jax.train.session import OnEpoch, Session, Setup
from zosam_jax.train.step import TrainState


class Result(NamedTuple):
    """How a call of `run` ended.

    Attributes:
      folder: The run's folder.
      status: "finished", "stopped" (by `on_epoch`), "unchanged" (it was one of these
        before), or "interrupted".
      summary: The contents of `summary.json`; None where interrupted.
      signal: The signal that was received during the run, or None.
    """

    folder: Path
    status: str
    summary: JSON | None
    signal: int | None = None


def run(
    config: TrainConfig,
    *,
    dataset: data.Dataset | data.Streamed | None = None,
    model: Model | None = None,
    method: SparseMethod | None = None,
    gradient: GradientEstimator | None = None,
    optimizer: optax.GradientTransformation | None = None,
    display: Display | None = None,
    command: Sequence[str] | None = None,
    compiled: CompiledRun | None = None,
    start: TrainState | None = None,
    on_epoch: OnEpoch | None = None,
    record: Mapping[str, Any] | None = None,
) -> Result:
    """Trains as the configuration says, and leaves a run folder.

    A run that is already in the folder resumes from its last complete checkpoint, to
    the same numbers bit for bit on the same machine and software. SIGINT and SIGTERM
    end the step, write a checkpoint and return; a second signal acts at once.

    An object takes the place of what the configuration names, whose fields are then
    not read. `config.json` records it, and the run resumes with the same object only.

    Args:
      config: The configuration.
      dataset: Training and test examples.
      model: Linen module, called with `(images, train=...)`.
      method: Sparse method, as `zs.sparsity.rigl(0.9, total_steps)`.
      gradient: Gradient estimator, as `zs.zosam(rho=0.1)`. The trainer sets its
        `has_aux`, `aux_like` and `seed`.
      optimizer: Optax optimizer, as `optax.adam(1e-3)`, with its own learning rate,
        weight decay and clipping.
      display: Where to show progress. Default: nowhere.
      command: The command line, for the record.
      compiled: The programs of an experiment, instead of new ones; see `prepare`.
      start: A state to begin with instead of the initial one, as NumPy arrays. Training
        goes on from its step. Not used if the run resumes.
      on_epoch: Called with the number of epochs done and the state: before the first
        step, and after every epoch, before its checkpoint is written. True ends the run
        there, if a step was done. A run that resumes repeats the calls from its
        checkpoint on.
      record: Further entries of `config.json`.

    Raises:
      RunError: The run cannot start or resume; the message says what would work.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    show = display or Silent()
    given = Objects(dataset, model, method, gradient, optimizer)
    chosen = _choose(config, given)
    folder.check(config)
    _check_objects(config, given)
    finished = folder.read_summary(config)
    if finished is not None:
        show.message(
            f"{config.folder} is finished already, at test accuracy "
            f"{finished['test_accuracy']:.2%}; --overwrite would start anew."
        )
        return Result(config.folder, "unchanged", finished)
    compiled = compiled or prepare(config, given, chosen)
    needed = (config.keep + 2) * checkpoint.size_in_bytes(compiled.abstract)
    folder.check_space(config, needed)
    beside = {"objects": given.record(), **(record or {})}
    with (
        folder.claim(config) as path,
        interruptions() as received,
        contextlib.closing(show),
        contextlib.closing(
            checkpoint.Checkpoints(path / "checkpoints", config.keep)
        ) as checkpoints,
        _full_disks(path, checkpoints),
    ):
        setup = Setup(config, compiled, path, checkpoints, show, received, on_epoch)
        return _run(setup, start, command, beside)


def prepare(
    config: TrainConfig, given: Objects, chosen: Choices | None = None
) -> CompiledRun:
    """Returns the programs of a configuration, traced and not compiled.

    Tracing checks that gradient, method, model and data fit together.

    Args:
      config: The configuration.
      given: Objects in place of what the configuration names.
      chosen: What the names stand for, if it is known.

    Raises:
      RunError: They do not fit together.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    if config.tensorboard:
        metrics.check_tensorboard()
    chosen = chosen or _choose(config, given)
    try:
        experiment = build.experiment(config, given, chosen)
        if config.teacher is not None:
            teacher = load_teacher(config, experiment.dataset)
            experiment = dataclasses.replace(experiment, teacher=teacher)
        return CompiledRun(experiment)
    except ValueError as error:
        raise RunError(str(error)) from error


def load_teacher(
    config: TrainConfig,
    dataset: data.Dataset | data.Streamed,
    model: Model | None = None,
) -> Teacher:
    """Returns the network that a configuration names as its teacher.

    Args:
      config: The configuration; its `teacher` is a run folder.
      dataset: The data set of the configuration.
      model: The object that the teacher was given as its model.

    Raises:
      ValueError: The teacher was trained on another data set.
      RunError: There is no such run, it is unfinished, or a file of it is damaged.
    """
    assert config.teacher is not None
    found = finished_run.read(config.teacher)
    if found.config.dataset != config.dataset:
        raise ValueError(
            f"teacher={config.teacher!r} was trained on {found.config.dataset}, not on "
            f"{config.dataset}."
        )
    given = Objects(dataset, model)
    if found.config.method == "ticket":
        given = given._replace(method=choices.ticket_method(found.config))
    objects.check_loaded(found.objects, given.record(), found.folder)
    experiment = build.experiment(found.config, given, _choose(found.config, given))
    params, model_state = finished_run.weights(found, experiment)
    return Teacher(experiment.model, {"params": params, **model_state})


def _choose(config: TrainConfig, given: Objects) -> Choices:
    try:
        given.check_types()
        return choices.choose(config, gradient=given.gradient, method=given.method)
    except ValueError as error:
        raise RunError(str(error)) from error


def _check_objects(config: TrainConfig, given: Objects) -> None:
    """Raises `RunError` if a run in the folder was given other objects."""
    if config.overwrite or not (config.folder / "config.json").exists():
        return
    stored = folder.read_config(config.folder)
    objects.check_recorded(stored.get("objects"), given.record(), config.folder)


@contextlib.contextmanager
def _full_disks(path: Path, checkpoints: checkpoint.Checkpoints) -> Iterator[None]:
    """Names the last checkpoint if a file cannot be written for lack of space."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"the disk of {path} is full. {checkpoints.last_good()} Make room and run "
            "the same command again."
        ) from error


def _run(
    setup: Setup,
    start: TrainState | None,
    command: Sequence[str] | None,
    beside: Mapping[str, Any],
) -> Result:
    """Trains to the end or an interruption, and returns how it ended."""
    state, records = resume.begin(setup, start, command, beside)
    session = Session(setup, state, records)
    try:
        state = session.train(state)
    finally:
        session.log.close()
    number = setup.signals[0] if setup.signals else None
    if not session.is_complete:
        setup.display.message(
            f"interrupted at step {session.position.step}. "
            f"{setup.checkpoints.last_good()} The same command goes on from here."
        )
        return Result(setup.folder, "interrupted", None, number)
    summary = session.summarize(state)
    return Result(setup.folder, summary["status"], summary, number)
