"""Where metrics go beside `metrics.jsonl`: TensorBoard, Weights & Biases, and others.

To add a tracker, add a row to `KINDS`, and its name to `config.TRACKERS`. What a
tracker does wrong never ends a training: it is said once, and the tracker gets no more.
"""

import importlib
import importlib.util
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zosam_jax.runs import files
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON

PROJECT = "zosam_jax"
"""Project or experiment, unless the tracker's own environment variable names one."""
IDS = "trackers.json"
"""File in a run's folder: under which name or key each tracker knows the run."""


class Run(NamedTuple):
    """What a tracker is told of a run.

    Attributes:
      folder: Its folder.
      config: Its configuration.
      step: The step at which it starts or resumes.
      key: Under which the tracker knows it from an earlier call; None: not yet.
    """

    folder: Path
    config: JSON
    step: int
    key: str | None


class Tracker(NamedTuple):
    """An open tracker.

    Attributes:
      key: Under which it knows the run; None: it needs none.
      log: `(values by name, step)`.
      close: Called at the end, also of an interrupted run.
    """

    key: str | None
    log: Callable[[Mapping[str, float], int], Any]
    close: Callable[[], Any]


class Kind(NamedTuple):
    """A tracker.

    Attributes:
      module: What it is imported as.
      package: What it is installed as.
      begin: Opens it, and goes on with a run that it knows.
    """

    module: str
    package: str
    begin: Callable[[Run], Tracker]


def _tensorboard(run: Run) -> Tracker:
    from tensorboardX import SummaryWriter

    # Scalars of later steps, which an interrupted run has lost, are dropped.
    folder = str(run.folder / "tensorboard")
    board = SummaryWriter(folder, purge_step=run.step or None)

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            board.add_scalar(name, value, step)

    return Tracker(None, log, board.close)


def _wandb(run: Run) -> Tracker:
    key = run.key or secrets.token_hex(8)
    found = importlib.import_module("wandb").init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.folder.name,
        dir=str(run.folder),
        config=run.config,
        id=key,
        resume="allow",
    )
    return Tracker(key, lambda values, step: found.log({**values}, step), found.finish)


def _mlflow(run: Run) -> Tracker:
    entities = importlib.import_module("mlflow.entities")
    client, key = importlib.import_module("mlflow").MlflowClient(), run.key
    if key is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = client.get_experiment_by_name(name)
        place = known.experiment_id if known else client.create_experiment(name)
        key = client.create_run(place, run_name=run.folder.name).info.run_id
        params = [entities.Param(k, json.dumps(v)) for k, v in run.config.items()]
        client.log_batch(key, params=params)
    else:
        client.update_run(key, status="RUNNING")

    def log(values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        rows = [entities.Metric(k, value, now, step) for k, value in values.items()]
        client.log_batch(key, metrics=rows)

    return Tracker(key, log, lambda: client.set_terminated(key))


def _trackio(run: Run) -> Tracker:
    key = run.key or f"{run.folder.name}-{secrets.token_hex(4)}"
    found = importlib.import_module("trackio").init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=key,
        config=run.config,
        resume="allow",
    )
    return Tracker(key, lambda values, step: found.log({**values}, step), found.finish)


KINDS = {
    "tensorboard": Kind("tensorboardX", "tensorboardX", _tensorboard),
    "wandb": Kind("wandb", "wandb", _wandb),
    "mlflow": Kind("mlflow", "mlflow", _mlflow),
    "trackio": Kind("trackio", "trackio", _trackio),
}


def check(names: Sequence[str]) -> None:
    """Raises `RunError` if a tracker is not installed.

    Args:
      names: Keys of `KINDS`.
    """
    for name in names:
        kind = KINDS[name]
        if importlib.util.find_spec(kind.module) is None:
            raise RunError(
                f"trackers={name!r} needs {kind.package}, which is not installed. Run: "
                f"pip install {kind.package}"
            )


class Trackers:
    """The open trackers of a run, of which one that fails gets no more."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        config: JSON,
        step: int,
        say: Callable[[str], None],
    ):
        """Opens them, and keeps in the folder under which key each knows the run.

        Args:
          names: Keys of `KINDS`.
          folder: The run's folder.
          config: Its configuration.
          step: The step at which it starts or resumes.
          say: Told of a tracker that fails.
        """
        self._say = say
        self._open: dict[str, Tracker] = {}
        path = folder / IDS
        keys = json.loads(path.read_text()) if path.exists() else {}
        for name in names:
            run = Run(folder, config, step, keys.get(name))
            tracker = self._safely(name, lambda n=name, r=run: KINDS[n].begin(r))
            if tracker is not None:
                self._open[name] = tracker
        found = {name: t.key for name, t in self._open.items() if t.key is not None}
        if found:
            files.write_json(path, keys | found)

    def log(self, record: Mapping[str, Any]) -> None:
        """Passes on the numbers of a record of `metrics.jsonl`, as "test/loss"."""
        values = {
            f"{record['split']}/{name}": float(value)
            for name, value in record.items()
            if name not in ("step", "split") and isinstance(value, int | float)
        }
        for name, tracker in list(self._open.items()):
            self._safely(name, lambda t=tracker: t.log(values, record["step"]))

    def close(self) -> None:
        """Closes them."""
        for name, tracker in list(self._open.items()):
            self._safely(name, tracker.close)
        self._open.clear()

    def _safely(self, name: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # Whatever a tracker raises: its network, its disk, its own errors.
        except Exception as error:
            self._open.pop(name, None)
            self._say(
                f"the tracker {name} gets no more metrics: {type(error).__name__}: "
                f"{error}"
            )
            return None
