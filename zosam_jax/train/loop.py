"""A run from its configuration to its summary."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zosam_jax import data, models
from zosam_jax.runs import dataset_facts, environment, folder, trackers
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError, sentence
from zosam_jax.runs.files import JSON
from zosam_jax.runs.progress import Display, Shielded, Silent
from zosam_jax.runs.record import read as read_record
from zosam_jax.train import (
    build,
    checkpoint,
    choices,
    cutting,
    effects,
    longer,
    network,
    numerics,
    objects,
    origin,
    processes,
    resume,
    stored_run,
    trial,
)
from zosam_jax.train.choices import Choices
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.experiment import Experiment, Loss, Model, Teacher
from zosam_jax.train.interruption import EARLY, Stop, interruptions
from zosam_jax.train.objects import (
    GivenData,
    GivenGradient,
    GivenMethod,
    GivenOptimizer,
    Objects,
)
from zosam_jax.train.origin import Weights
from zosam_jax.train.recording import Output, Recording
from zosam_jax.train.session import OnEpoch, Session, Setup
from zosam_jax.train.step import TrainState
from zosam_jax.train.transfer import Source


class Result(NamedTuple):
    """How a call of `run` ended.

    Attributes:
      folder: The run's folder.
      status: "finished", "stopped" (by `on_epoch`), "unchanged" (it was one of these
        before), "interrupted" (by a signal), or "out of time" (the time limit).
      summary: The contents of `summary.json`; None if the run is not complete.
      signal: The signal that was received during the run, or None.
    """

    folder: Path
    status: str
    summary: JSON | None
    signal: int | None = None

    @property
    def ended_early(self) -> bool:
        """Whether a signal or the time limit ended it before the end of the run."""
        return self.status in EARLY


def run(
    config: TrainConfig,
    *,
    dataset: GivenData | None = None,
    model: Model | None = None,
    method: GivenMethod | None = None,
    gradient: GivenGradient | None = None,
    optimizer: GivenOptimizer | None = None,
    loss: Loss | None = None,
    display: Display | None = None,
    command: Sequence[str] | None = None,
    compiled: CompiledRun | None = None,
    start: TrainState | None = None,
    weights: Weights | None = None,
    on_epoch: OnEpoch | None = None,
    record: Mapping[str, Any] | None = None,
    stop: Stop | None = None,
) -> Result:
    """Trains as the configuration says, and leaves a run folder.

    A run that is already in the folder resumes from its last complete checkpoint, to
    the same numbers bit for bit on the same machine and software. More epochs than it
    began with go on from its end if its first epochs do not depend on their number
    (`zosam_jax.train.longer`). SIGINT, SIGTERM,
    SIGHUP, SIGUSR1 and the time limit end the step, write a checkpoint and return. A
    second SIGINT or SIGTERM acts at once. A display that fails does not end the run.

    After `jax.distributed.initialize`, all processes train the run together
    (`zosam_jax.train.processes`).

    An object takes the place of what the configuration names, whose fields are then
    not read. `config.json` records it, and the run resumes with the same object only.
    A constructor is called with those fields that it has parameters for.

    Args:
      config: The configuration.
      dataset: Training and test examples, or a function that returns them. The type of
        the labels says the task (`zosam_jax.data.Dataset`).
      model: Linen module, called with `(images, train=...)`; or its class, called with
        `num_classes`, `image_size`, `width`, `dtype` and `model_options`.
      method: Sparse method, as `zs.sparsity.rigl(0.9, total_steps)`; or a constructor,
        called as those of `zs.sparsity` are, with `method_options`.
      gradient: Gradient estimator, as `zs.zosam(rho=0.1)`. The trainer sets its
        `has_aux`, `aux_like` and `seed`. Or a constructor, as `zs.zosam`, called with
        `rho` and `gradient_options`.
      optimizer: Optax optimizer, as `optax.adam(1e-3)`, with its own learning rate,
        weight decay and clipping. Or a constructor, as `optax.adam`, called with the
        learning-rate schedule, behind the clipping; with `momentum`, `nesterov` and
        `weight_decay`, which is added to the gradient if it has no such parameter.
      loss: Loss in place of the cross-entropy (of several classes, the mean binary one;
        of values, the squared error), `(outputs, labels) -> losses`: one for
        each example, `[N]`, or of the shape of the labels, then averaged. The trainer
        averages over the batch. The outputs are those of the model, in float32. The
        labels are the data set's; in training, `label_smoothing`, mixup and cutmix make
        probabilities of classes, float32 `[N, K]`. Masks of snip and grasp, training,
        evaluation and analysis use it; the accuracy stays that of the largest output.
        Of several classes it is the share of right labels, of values R².
      display: Where process 0 shows progress. Default: nowhere.
      command: The command line, for the record.
      compiled: The programs of an experiment, instead of new ones; see `prepare`.
      start: A state to begin with instead of the initial one, as NumPy arrays. Training
        goes on from its step. Not used if the run resumes.
      weights: Trained weights to start from, in place of `config.from_`: what `load`
        returns, a tree like the model's parameters, or all its variables, as
        `{"params": ..., "batch_stats": ...}`. Not needed if the run resumes.
      on_epoch: Called with the number of epochs done and the state: before the first
        step, and after every epoch, before its checkpoint is written. True ends the run
        there, if a step was done. A run that resumes repeats the calls from its
        checkpoint on.
      record: Further entries of `config.json`.
      stop: What ends this call early. Default: signals, and `config.time_limit`.

    Raises:
      RunError: The run cannot start or resume; the message says what would work.
      Divergence: A `RunError`: the loss is not finite.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    show = Shielded(display if display and processes.is_first() else Silent())
    stop = stop or Stop(config.time_limit)
    given = Objects(dataset, model, method, gradient, optimizer, loss).made()
    chosen = _choose(config, given)
    _check_processes(config, given)
    processes.first(lambda: check_effects(config, given, weights))
    epochs, finished = processes.first(lambda: _standing(config, given, show))
    if finished is not None:
        return Result(config.folder, "unchanged", finished)
    compiled = compiled or prepare(config, given, chosen, weights)
    if epochs < config.epochs:
        longer.check(config, epochs, chosen, compiled.experiment)
    processes.first(lambda: _check_space(config, compiled))
    with (
        _claimed(config) as path,
        interruptions(stop, processes.signals()),
        contextlib.closing(show),
    ):
        if not config.overwrite:
            # Another process may have trained here while this one prepared.
            now, finished = processes.first(lambda: _standing(config, given, show))
            if finished is not None:
                return Result(path, "unchanged", finished)
            if now != epochs:
                raise RunError(
                    f"another process has trained in {path} meanwhile. Run the same "
                    "command again."
                )
        beside = {"objects": given.record(), **(record or {})}
        beside |= processes.first(lambda: _kept(config, compiled.experiment))
        beside |= processes.first(lambda: origin.kept(config, compiled.start))
        if epochs < config.epochs:
            # Not finished any more, even if this process dies in a moment.
            processes.first(lambda: (path / "summary.json").unlink(missing_ok=True))
        place = path / "checkpoints"
        with (
            contextlib.closing(
                checkpoint.CheckpointsOfAll(place, config.keep)
            ) as checkpoints,
            _explained(path, checkpoints),
        ):
            output = Output(config, compiled.experiment, path, checkpoints, show)
            cut = None if config.compact_every is None else cutting.cut
            setup = Setup(output, compiled, stop, on_epoch, cut)
            return _run(setup, start, command, beside)


def try_out(
    config: TrainConfig,
    display: Display | None = None,
    given: Objects = Objects(),  # noqa: B008
) -> None:
    """Makes every check of `run`, compiles, trains one step and writes nothing.

    Args:
      config: The configuration.
      display: Where to show the figures of the step. Default: nowhere.
      given: Objects in place of what the configuration names.

    Raises:
      RunError: The run cannot start.
      Divergence: A `RunError`: the loss of its first step is not finite.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    given = given.made()
    _check_processes(config, given)
    processes.first(lambda: check_effects(config, given))
    processes.first(lambda: folder.check(config))
    compiled = prepare(config, given)
    processes.first(lambda: _check_space(config, compiled))
    shown = display if display and processes.is_first() else Silent()
    trial.one_step(config, compiled, shown)


@contextlib.contextmanager
def _claimed(config: TrainConfig) -> Iterator[Path]:
    """Yields the folder of the run, which process 0 creates and locks."""
    with contextlib.ExitStack() as stack:
        claim = folder.claim(config)
        processes.first(lambda: str(stack.enter_context(claim)))
        yield config.folder


# What may differ between the hosts of a run.
_OF_HOSTS = ("data_dir", "out", "workers", "log_every", "time_limit")


def _check_processes(config: TrainConfig, given: Objects) -> None:
    """Raises `RunError` unless all processes train the same on as many devices."""
    processes.check_devices()
    settings = numerics.settings()
    own = {k: v for k, v in config.record().items() if k not in _OF_HOSTS}
    processes.check_same(
        {
            **environment.versions(),
            **{name: settings[name] for name in numerics.OF_DRAWS},
            **own,
            **given.record(),
        }
    )


def check_effects(
    config: TrainConfig, given: Objects, weights: Weights | None = None
) -> None:
    """Raises `RunError` if a field is set that has no effect on a new run.

    A run that is in the folder already keeps its fields.

    Args:
      config: The configuration.
      given: Objects in place of what the configuration names.
      weights: Weights in place of those that it names.
    """
    if not config.overwrite and (config.folder / "config.json").exists():
        return
    try:
        others = [] if weights is None else ["weights"]
        effects.check(config, [*given.record(), *others])
    except ValueError as error:
        raise RunError(str(error)) from error


def _check_space(config: TrainConfig, compiled: CompiledRun) -> None:
    """Raises `RunError` unless the disk has room for the checkpoints."""
    needed = (config.keep + 2) * checkpoint.size_in_bytes(compiled.abstract)
    folder.check_space(config, needed)


def _standing(
    config: TrainConfig, given: Objects, show: Display
) -> tuple[int, JSON | None]:
    """Returns the epochs of the run in the folder, and its summary if it is finished.

    Raises:
      RunError: The folder holds something else than a run of this configuration.
    """
    epochs = folder.check(config) or config.epochs
    _check_objects(config, given)
    return epochs, _finished(config, epochs, show)


def _finished(config: TrainConfig, epochs: int, show: Display) -> JSON | None:
    """Returns the summary of a run that needs nothing more, and says so; else None."""
    found = folder.read_summary(config)
    if found is None or epochs < config.epochs:
        return None
    # Raises if its files do not agree.
    read_record(config.folder)
    show.message(
        f"{config.folder} is finished already, at test "
        f"{folder.read_score(config.folder)} "
        f"{found['test_accuracy']:.2%}; --overwrite would start anew."
    )
    return found


def prepare(
    config: TrainConfig,
    given: Objects,
    chosen: Choices | None = None,
    weights: Weights | None = None,
) -> CompiledRun:
    """Returns the programs of a configuration, traced and not compiled.

    Tracing checks that gradient, method, model and data fit together.

    Args:
      config: The configuration.
      given: Objects in place of what the configuration names.
      chosen: What the names stand for, if it is known.
      weights: Weights to start from, in place of those that the configuration names.

    Raises:
      RunError: They do not fit together.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    trackers.check(config.all_trackers)
    chosen = chosen or _choose(config, given)
    stored = processes.first(lambda: _stored_facts(config))
    facts = None if stored is None else dataset_facts.from_record(stored)
    starts = processes.first(lambda: origin.is_needed(config, weights))

    def traced() -> CompiledRun:
        try:
            experiment = build.experiment(config, given, chosen, facts, of_all=True)
            _check_counts(config, experiment)
            if config.teacher is not None:
                teacher = load_teacher(config, experiment)
                experiment = dataclasses.replace(experiment, teacher=teacher)
            start = None
            if starts:
                found = _source(config, given, weights)
                start = origin.start(config, found, experiment)
            return CompiledRun(experiment, start)
        except ValueError as error:
            raise RunError(str(error)) from error

    compiled = processes.together(traced)
    cutting.check(config, compiled)
    if processes.are_several():
        processes.check_same(_fingerprints(compiled))
    return compiled


def _fingerprints(compiled: CompiledRun) -> JSON:
    """Returns the CRC-32 of what every process has loaded for itself, by name."""
    experiment = compiled.experiment
    found: JSON = {"dataset": experiment.facts.record()}
    if isinstance(experiment.dataset, data.Dataset):
        arrays = dataclasses.asdict(experiment.dataset)
        arrays = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray)}
        found["the CRC-32 of the examples"] = checkpoint.digest(arrays)
    if experiment.teacher is not None:
        found["the CRC-32 of the teacher"] = _crc(experiment.teacher)
    if compiled.start is not None:
        crc = compiled.start.record["weights_crc32"]
        found["the CRC-32 of the weights to start from"] = crc
    return found


def _crc(teacher: Teacher) -> int:
    return checkpoint.digest(checkpoint.snapshot(teacher.variables))


def load_teacher(
    config: TrainConfig, student: Experiment, model: Model | None = None
) -> Teacher:
    """Returns the network that a configuration names as its teacher.

    It sees the inputs of the student, so both must know the same facts of their data.

    Args:
      config: The configuration; its `teacher` is a run folder.
      student: The experiment of the configuration.
      model: The object that the teacher was given as its model.

    Raises:
      ValueError: The teacher was trained on another data set, or is unfinished.
      RunError: There is no such run, or a file of it is damaged.
    """
    assert config.teacher is not None
    found = network.record(Path(config.teacher))
    if found.run.summary is None:
        raise ValueError(
            f"teacher={config.teacher!r} is not finished. The command that began it "
            "goes on with it."
        )
    _check_taught(config, found.run, student.facts)
    dataset = student.dataset if found.run.facts is None else None
    _, experiment, weights = network.restore(
        found, Objects(model=model), choices.of_stored, dataset=dataset
    )
    variables = {"params": weights.params, **weights.model_state}
    return Teacher(experiment.model, variables)


def _source(config: TrainConfig, given: Objects, weights: Weights | None) -> Source:
    """Returns the weights that a run starts from.

    A run that was given objects of its own is read with those of this one.
    """
    if weights is not None:
        return origin.of_memory(weights)
    assert config.from_ is not None
    path = Path(config.from_)
    try:
        foreign = origin.of_torch(path)
        if foreign is not None:
            return foreign
        found = network.record(path)
        recorded = set(found.run.objects or {}) - {"dataset"}
        if found.file is not None and found.run.config.model not in models.names():
            # A file does not say that its model was given.
            recorded = {"model"}
        own = {kind: x for kind, x in given._asdict().items() if kind in recorded}
        _, experiment, trained = network.restore(
            found, Objects(**own), choices.of_stored
        )
        return origin.of_run(path, experiment, trained)
    except (RunError, ValueError) as error:
        raise RunError(f"from_={config.from_!r}: {error}") from error


def _check_taught(
    config: TrainConfig, teacher: stored_run.StoredRun, facts: DatasetFacts
) -> None:
    """Raises `ValueError` if a teacher was trained on other data than its student."""
    name, wrong = teacher.config.dataset, None
    if teacher.facts is not None:
        name, wrong = teacher.facts.name, teacher.facts.misfit(facts)
        if (teacher.facts.mean, teacher.facts.std) != (facts.mean, facts.std):
            wrong = wrong or "its channel statistics are others"
    elif name != config.dataset:
        wrong = "its name is another"
    if wrong is not None:
        raise ValueError(
            f"teacher={config.teacher!r} was trained on {name}, not on {facts.name}: "
            f"{wrong}. Choose a teacher of the same data set."
        )


def _stored_facts(config: TrainConfig) -> JSON | None:
    """Returns the record of the facts that a run in the folder keeps, if it does."""
    if config.overwrite or not (config.folder / "config.json").exists():
        return None
    found = folder.read_facts(config.folder)
    return None if found is None else found.record()


def _check_counts(config: TrainConfig, experiment: Experiment) -> None:
    """Raises `RunError` if the data set has changed in size since the run began."""
    assert experiment.dataset is not None
    now, facts = dataset_facts.of(experiment.dataset), experiment.facts
    if (now.num_train, now.num_test) != (facts.num_train, facts.num_test):
        raise RunError(
            f"the run in {config.folder} cannot go on: "
            f"{'; '.join(facts.changes(now))}. Restore the data set, or choose another "
            "--out."
        )


def _kept(config: TrainConfig, experiment: Experiment) -> JSON:
    """Returns what `config.json` keeps of data and teacher, as entries of it.

    Raises:
      RunError: The teacher is not the one that the run in the folder began with.
    """
    kept: JSON = {"dataset": experiment.facts.record()}
    if experiment.teacher is None:
        return kept
    kept["teacher"] = {"weights_crc32": _crc(experiment.teacher)}
    if config.overwrite or not (config.folder / "config.json").exists():
        return kept
    stored = folder.read_config(config.folder).get("teacher")
    if stored not in (None, kept["teacher"]):
        raise RunError(
            f"teacher={config.teacher!r} has other weights than the teacher that the "
            f"run in {config.folder} began with. Restore it, or choose another --out."
        )
    return kept


def _choose(config: TrainConfig, given: Objects) -> Choices:
    try:
        given.check_types()
        return choices.choose(
            config,
            gradient=given.gradient,
            method=given.method,
            optimizer=given.optimizer,
        )
    except ValueError as error:
        raise RunError(str(error)) from error


def _check_objects(config: TrainConfig, given: Objects) -> None:
    """Raises `RunError` if a run in the folder was given other objects."""
    if config.overwrite or not (config.folder / "config.json").exists():
        return
    stored = folder.read_config(config.folder)
    objects.check_recorded(stored.get("objects"), given.record(), config.folder)


@contextlib.contextmanager
def _explained(path: Path, checkpoints: checkpoint.CheckpointsOfAll) -> Iterator[None]:
    """Names the last checkpoint if a file cannot be written."""
    try:
        with processes.losses("The same commands go on from the last checkpoint."):
            yield
    except OSError as error:
        # The other processes know already, and do not come here.
        own = checkpoints.own
        last = "" if own is None else f" {own.last_good()}"
        raise RunError(
            f"{sentence(error, path, 'written')}{last} The same command goes on from "
            "there."
        ) from error


def _run(
    setup: Setup,
    start: TrainState | None,
    command: Sequence[str] | None,
    beside: Mapping[str, Any],
) -> Result:
    """Trains to the end or an interruption, and returns how it ended."""
    setup, state, records = resume.begin(setup, start, command, beside)
    output, recording = setup.output, Recording(setup.output, state, records)
    session = Session(setup, recording)
    try:
        state = session.train(state)
    finally:
        recording.close()
    number = setup.stop.signals[0] if setup.stop.signals else None
    if not session.is_complete:
        recording.note_end()
        number = processes.reason(number, is_late=setup.stop.is_over)
        status = "out of time" if number is None else "interrupted"
        limit = output.config.time_limit
        after = f" (--time-limit {limit:g})" if number is None and limit else ""
        output.display.message(
            f"{status}{after} at step {recording.step}. "
            f"{output.checkpoints.last_good()} The same command goes on from here."
        )
        return Result(output.folder, status, None, number)
    summary = session.summarize(state)
    return Result(output.folder, summary["status"], summary, number)
