"""A trained network read back: its record, its weights and the objects around them.

`load` uses it, distillation and fine-tuning learn from it.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax

from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.train import (
    build,
    exported,
    narrowed,
    objects,
    program_file,
    stored_run,
)
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.objects import GivenData, Objects
from zosam_jax.train.stored_run import StoredRun, Weights

if TYPE_CHECKING:
    from zosam_jax.train.choices import Choices

    Choose = Callable[[TrainConfig, Objects], tuple[Objects, Choices]]


class Record(NamedTuple):
    """What a run, or a file that it was exported to, says of its network.

    Attributes:
      run: The record of the run. Of a file: its path, its configuration, and those of
        the run's figures that it keeps.
      file: The contents of the file; None for a run.
    """

    run: StoredRun
    file: exported.Exported | None


def record(
    path: Path, checkpoint: int | None = None, data_dir: str | None = None
) -> Record:
    """Returns what a run or an exported file says of its network.

    Args:
      path: The run's folder, or the file; absolute.
      checkpoint: The step of the checkpoint that will be used; None: the last.
      data_dir: TFDS directory in place of the run's own.

    Raises:
      RunError: There is no such run, or a file of it is damaged.
    """
    if not path.is_file():
        return Record(stored_run.read(path, data_dir=data_dir), None)
    try:
        file = exported.read(path)
    except RunError:
        program_file.refuse(path)
        raise
    about = file.about
    if checkpoint is not None:
        raise RunError(
            f"checkpoint={checkpoint!r} has no effect: {path} is of step {about.step}. "
            "Leave it out."
        )
    config = about.config
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    figures = about.figures or None
    return Record(StoredRun(path, config, None, about.facts, figures), file)


def restore(
    found: Record,
    given: Objects,
    choose: "Choose",
    *,
    checkpoint: int | None = None,
    dataset: GivenData | str | None = None,
    examples: bool = False,
) -> tuple[TrainConfig, Experiment, Weights]:
    """Returns the configuration of a network, its experiment and its weights.

    Args:
      found: What its run says.
      given: The objects that the run was given, but for its data set.
      choose: `choices.of_stored`, which this module may not import: the path of imports
        would be too long.
      checkpoint: The step of one of its checkpoints. Default: the last.
      dataset: Examples in place of those that its configuration names, or their name.
      examples: Whether to load the data set that its configuration names.

    Raises:
      RunError: An object is missing, or a file is damaged.
      ValueError: Configuration and objects do not fit together.
      zosam_jax.data.DatasetError: The data set is missing or damaged, or is not one of
        the run's classes and image shape.
    """
    run, config, facts = found.run, found.run.config, found.run.facts
    needed = _needed(run, dataset, examples)
    if isinstance(dataset, str):
        config, dataset = dataclasses.replace(config, dataset=dataset), None
        examples = True
    given, chosen = choose(config, given._replace(dataset=dataset).made())
    objects.check_loaded(needed, given.record(), run.folder)
    experiment = build.experiment(config, given, chosen, facts, examples=examples)
    if found.file is None:
        weights = stored_run.weights(run, experiment, checkpoint)
        if weights.network is not None:
            experiment = narrowed.of(experiment, weights.network)
            config = narrowed.with_widths(config, weights.network["widths"])
        return config, experiment, weights
    return config, experiment, _of_file(found.file, experiment, run.folder)


def _needed(
    run: StoredRun, dataset: GivenData | str | None, examples: bool
) -> dict[str, str]:
    """Returns the objects of the run that must be given again, as recorded."""
    spare: tuple[str, ...] = ()
    if isinstance(dataset, str):
        spare = ("dataset",)
    elif dataset is None and not examples and run.facts is not None:
        spare = ("dataset", "loss")
    return {k: v for k, v in (run.objects or {}).items() if k not in spare}


def _of_file(
    file: exported.Exported, experiment: Experiment, path: Path
) -> stored_run.Weights:
    like = jax.eval_shape(experiment.initialize, jax.random.key(0))
    network = exported.unpack(file, like, path)
    return Weights(file.about.step, *network, notes=())
