"""A finished run, read back from its folder: what it computes with, and its weights."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from zosam_jax import data
from zosam_jax.runs import folder
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.train import checkpoint, methods
from zosam_jax.train import step as steps
from zosam_jax.train.plan import make_task
from zosam_jax.train.task import Task


class Trained(NamedTuple):
    """A finished run.

    Attributes:
      folder: Its folder, absolute.
      task: Its configuration, data set, model and devices.
      params: The parameters of its last checkpoint, as NumPy arrays, zero where pruned;
        the moving averages, where the run kept them.
      model_state: Its BatchNorm statistics, or {}.
      summary: The contents of `summary.json`.
    """

    folder: Path
    task: Task
    params: Any
    model_state: Any
    summary: dict[str, Any]

    @property
    def variables(self) -> dict[str, Any]:
        """What `task.model.apply` takes."""
        return {"params": self.params, **self.model_state}


def load(
    run: Path | str,
    *,
    data_dir: str | None = None,
    dataset: data.Dataset | data.Streamed | None = None,
    model: Any = None,
) -> Trained:
    """Returns a finished run; nothing in its folder changes.

    Args:
      run: Its folder.
      data_dir: TFDS directory. Default: the run's own.
      dataset: Images instead of those that its configuration names.
      model: A Linen module instead of the one that its configuration names.

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
    config = _config(run, data_dir)
    summary = folder.read_summary(config)
    if summary is None:
        raise RunError(
            f"{run} is not finished: it has no summary.json. The command that began it "
            "goes on with it."
        )
    task = make_task(config, dataset, model)
    batch = (
        jax.ShapeDtypeStruct((config.batch_size, *x.shape), x.dtype)
        for x in task.example
    )
    template = jax.eval_shape(lambda *data: steps.init(task, *data), *batch)
    state = _last_state(run, template, summary["steps"])
    params, model_state = steps.trained(state)
    params = methods.live_params(config, params, state.opt_state)
    return Trained(run, task, params, model_state, summary)


def _config(run: Path, data_dir: str | None) -> TrainConfig:
    stored = folder.read_config(run)["config"]
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(stored) - known)
    if unknown:
        raise RunError(
            f"{run / 'config.json'} has fields that this version does not know: "
            f"{', '.join(unknown)}. Use the version that wrote it."
        )
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
    }
    fields |= {"out": str(run), "overwrite": False, "tensorboard": False}
    if data_dir is not None:
        fields["data_dir"] = data_dir
    try:
        return TrainConfig(**fields)
    except (TypeError, ValueError) as error:
        raise RunError(f"{run / 'config.json'}: {error}") from error


def _last_state(run: Path, template: Any, step: int) -> Any:
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
