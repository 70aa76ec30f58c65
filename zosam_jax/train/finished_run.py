"""The folder of a finished run read: its configuration, its record and its weights.

It builds nothing. `load_run` makes the objects around the weights.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from zosam_jax._types import Params
from zosam_jax.runs import folder
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.train import checkpoint
from zosam_jax.train import step as steps
from zosam_jax.train.experiment import Experiment, ModelState
from zosam_jax.train.step import TrainState


class FinishedRun(NamedTuple):
    """The record of a finished run.

    Attributes:
      folder: Its folder, absolute.
      config: Its configuration.
      objects: The names of the objects that it was given, as `Objects.record` makes
        them; None in older runs.
      summary: The contents of `summary.json`.
    """

    folder: Path
    config: TrainConfig
    objects: Mapping[str, str] | None
    summary: JSON


def read(run: Path | str, *, data_dir: str | None = None) -> FinishedRun:
    """Returns the record of a finished run. Nothing in its folder changes.

    Args:
      run: Its folder.
      data_dir: TFDS directory in place of the run's own.

    Raises:
      RunError: There is no such run, it is unfinished, or a file of it is damaged.
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
    return FinishedRun(run, config, stored.get("objects"), summary)


def weights(run: FinishedRun, experiment: Experiment) -> tuple[Params, ModelState]:
    """Returns `(params, model_state)` of the last checkpoint, as NumPy arrays.

    The parameters are zero where pruned. If the run kept moving averages, both are the
    averages.

    Args:
      run: The record of the run.
      experiment: Its experiment, which gives the shapes of the state.

    Raises:
      RunError: The checkpoint is missing or damaged.
    """
    state = _last_state(run.folder, _template(experiment), run.summary["steps"])
    params, model_state = steps.evaluated(state)
    return steps.live_params(experiment, params, state.opt_state), model_state


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
