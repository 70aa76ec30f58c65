"""The folder of a run read: its configuration, its record and its weights.

It builds nothing. `load_run` makes the objects around the weights.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax import sparsity
from zosam_jax._types import Masks, OptState, Params
from zosam_jax.runs import folder, record, summary
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.train import checkpoint as checkpoints
from zosam_jax.train import narrowed
from zosam_jax.train import step as steps
from zosam_jax.train.experiment import Experiment, ModelState
from zosam_jax.train.step import TrainState


class StoredRun(NamedTuple):
    """The record of a run.

    Attributes:
      folder: Its folder, absolute.
      config: Its configuration.
      objects: The names of the objects that it was given, as `Objects.record` makes
        them; None in older runs.
      facts: The facts of its data set; None in older runs.
      summary: The contents of `summary.json`; None if the run is unfinished.
    """

    folder: Path
    config: TrainConfig
    objects: Mapping[str, str] | None
    facts: DatasetFacts | None
    summary: JSON | None


class Weights(NamedTuple):
    """The weights of a checkpoint, as NumPy arrays.

    Attributes:
      step: The step of the checkpoint.
      params: Parameters, zero where pruned. The moving averages, if the run kept them.
      model_state: The other collections, averaged too.
      masks: Mask tree of the parameters; all leaves are dense in a dense run.
      notes: What was wrong with newer checkpoints of an unfinished run.
      network: What the checkpoint says of a network that became smaller in the
        training, see `zosam_jax.train.narrowed`; None: it is whole.
    """

    step: int
    params: Params
    model_state: ModelState
    masks: Masks
    notes: tuple[str, ...]
    network: JSON | None = None


def read(run: str | os.PathLike[str], *, data_dir: str | None = None) -> StoredRun:
    """Returns the record of a run. Nothing in its folder changes.

    Args:
      run: Its folder.
      data_dir: TFDS directory in place of the run's own.

    Raises:
      RunError: There is no such run, or a file of it is damaged.
    """
    path = record.find(run)
    changes: JSON = {"tensorboard": False, "trackers": ()}
    if data_dir is not None:
        changes["data_dir"] = data_dir
    return StoredRun(
        path,
        folder.stored_config(path, **changes),
        folder.read_config(path).get("objects"),
        folder.read_facts(path),
        summary.read(path),
    )


def weights(
    run: StoredRun, experiment: Experiment, checkpoint: int | None = None
) -> Weights:
    """Returns the weights of a finished run, or of the last intact checkpoint.

    Args:
      run: The record of the run.
      experiment: The experiment that it began with, which gives the shapes of the
        state.
      checkpoint: The step of the checkpoint to read instead.

    Raises:
      RunError: There is no such checkpoint, or it is damaged; or that of the last step
        of a finished run is missing or damaged, or an unfinished run has no intact one.
    """
    state, network, notes = _state(run, experiment, checkpoint)
    params, model_state = steps.evaluated(state)
    params = steps.live_params(experiment, params, state.opt_state)
    masks = masks_of(experiment, params, state.opt_state)
    params = jax.tree.map(np.asarray, params)
    step = int(state.step)
    return Weights(step, params, model_state, masks, tuple(notes), network)


def masks_of(experiment: Experiment, params: Params, opt_state: OptState) -> Masks:
    """Returns the mask tree of a state, as NumPy arrays; `True` in a dense run.

    Args:
      experiment: The experiment.
      params: The parameters.
      opt_state: The optimizer state of the same state.
    """
    if experiment.method is None:
        return jax.tree.map(lambda _: True, params)
    return jax.tree.map(np.asarray, sparsity.masks(opt_state))


def _template(experiment: Experiment) -> TrainState:
    """Returns the shapes of the run's state."""
    batch = (
        jax.ShapeDtypeStruct((experiment.batch_size, *x.shape), x.dtype)
        for x in experiment.example
    )
    return jax.eval_shape(lambda *data: steps.init(experiment, *data), *batch)


def _state(
    run: StoredRun, experiment: Experiment, checkpoint: int | None
) -> tuple[TrainState, JSON | None, list[str]]:
    """Returns the state to use, its network, and what was wrong with newer states."""
    place, notes = run.folder / "checkpoints", list[str]()
    whole = _template(experiment)
    with contextlib.closing(
        checkpoints.Checkpoints(place, keep=1, read_only=True)
    ) as stored:
        found = stored.steps()
        for step in _wanted(run, found, checkpoint):
            try:
                network, like = stored.network(step), whole
                if network is not None:
                    smaller = narrowed.of(experiment, network)
                    like = narrowed.state_like(whole, smaller)
                return stored.read(step, like), network, notes
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                notes.append(
                    f"the checkpoint of step {step} in {place} cannot be read: "
                    f"{reason.rstrip('.: ')}"
                )
    if not notes:
        raise RunError(f"{place} has no checkpoint yet, so there are no weights.")
    raise RunError(
        f"{notes[0]}. It is damaged, or of another version of this package: "
        "config.json says of which."
    )


def _wanted(run: StoredRun, found: list[int], checkpoint: int | None) -> list[int]:
    """Returns the steps of the checkpoints that may be used, the best first.

    Args:
      run: The record of the run.
      found: The steps of its checkpoints, oldest first.
      checkpoint: The step that is asked for, or None.
    """
    place = run.folder / "checkpoints"
    there = f"there are: {', '.join(map(str, found)) or 'none'}"
    if checkpoint is not None:
        if checkpoint not in found:
            raise RunError(
                f"checkpoint={checkpoint!r}: {place} has no checkpoint of this step "
                f"({there})."
            )
        return [checkpoint]
    if run.summary is None:
        return found[::-1]
    # Another one would not be what the summary's figures are of.
    last = run.summary["steps"]
    if last not in found:
        raise RunError(
            f"{place} has no checkpoint of the last step, {last} ({there}). Restore "
            "it, or delete summary.json: the same command then trains to it again."
        )
    return [last]
