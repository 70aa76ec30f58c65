"""The network that a finished run left."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from zosam_jax import data
from zosam_jax.train import checkpoint, folder, methods, plan, tickets
from zosam_jax.train import step as steps
from zosam_jax.train.config import TrainConfig
from zosam_jax.train.errors import RunError
from zosam_jax.train.task import Task


class Trained(NamedTuple):
    """A trained network and what it was trained with.

    Attributes:
      task: Its configuration, data set and module.
      params: Parameters, zero where pruned, as NumPy arrays; the moving averages, where
        the run kept them.
      model_state: BatchNorm statistics, or {}.
      step: The step that they are of.
    """

    task: Task
    params: Any
    model_state: Any
    step: int

    @property
    def variables(self) -> dict[str, Any]:
        """What `task.model.apply` takes."""
        return {"params": self.params, **self.model_state}


def load(
    run: Path | str,
    *,
    dataset: data.Dataset | data.Streamed | None = None,
    model: Any = None,
    data_dir: str | None = None,
) -> Trained:
    """Returns the network of a run's last checkpoint.

    Args:
      run: The folder of a finished run.
      dataset: The data that it was trained on, where the configuration does not name
        them.
      model: Its Linen module, where the configuration does not name it.
      data_dir: Where the data set is now. Default: as in the configuration.

    Raises:
      RunError: There is no such run, or it is not finished, or cannot be read.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    path = Path(run).expanduser().resolve()
    fields = folder.read_config(path)["config"]
    try:
        config = TrainConfig(**folder.values(fields, path))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"{path} was made by another version of zosam_jax: {error}"
        ) from error
    if folder.read_summary(config) is None:
        raise RunError(
            f"{path} is not finished: it has no summary.json. The command that began "
            "it goes on with it."
        )
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    programs = plan.plan(config, dataset, model)
    directory = path / "checkpoints"
    with contextlib.closing(checkpoint.Checkpoints(directory, 1)) as kept:
        last = kept.steps()
    if not last:
        raise RunError(f"{directory} holds no checkpoint.")
    advice = "Train the run again, with --overwrite."
    state = tickets.read(directory, last[-1], programs, advice)
    params, model_state = steps.trained(state)
    if methods.trains_pruned(config):
        params = methods.live_params(config, params, state.opt_state)
    return Trained(programs.task, params, model_state, last[-1])
