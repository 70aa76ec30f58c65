"""The plan of a sweep, a grid of runs, and its record, `sweep.json`."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zosam_jax.runs import files, schema, summary
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.runs.folder import SWEEP_RECORD

WAITING, FINISHED, FAILED = "waiting", "finished", "failed"
OUT_OF_TIME, INTERRUPTED = "out of time", "interrupted"
_STATUSES = (WAITING, FINISHED, FAILED, OUT_OF_TIME, INTERRUPTED)

_RUN = {"folder": schema.TEXT, "status": schema.one_of(*_STATUSES)}
_ADVICE = "The command of the sweep writes it again."


class Planned(NamedTuple):
    """A run of a sweep.

    Attributes:
      name: Name of its folder, made of the fields that the sweep varies.
      config: Its configuration, with its folder.
    """

    name: str
    config: TrainConfig


def plan(
    base: TrainConfig,
    grid: Mapping[str, Sequence[Any]],
    folder: Path,
    settle: Callable[[TrainConfig], tuple[TrainConfig, Collection[str]]],
) -> list[Planned]:
    """Returns the runs of a grid, each configuration once.

    Args:
      base: The fields that all runs share.
      grid: The values of each field that varies. The last field varies fastest.
      folder: Folder of the sweep.
      settle: Checks a configuration; returns it with the defaults of the fields that
        have no effect in it, and the names of these fields.

    Raises:
      ValueError: A configuration is out of range.
    """
    planned: dict[str, Planned] = {}
    seen: list[JSON] = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        config, idle = settle(dataclasses.replace(base, **chosen))
        if config.record() in seen:
            continue
        seen.append(config.record())
        # A field without effect tells no runs apart.
        name = _name({k: v for k, v in chosen.items() if k not in idle}) or "run"
        while name in planned:
            name += "+"
        config = dataclasses.replace(config, out=str(folder / name))
        planned[name] = Planned(name, config)
    return list(planned.values())


def _name(fields: Mapping[str, Any]) -> str:
    """Returns the name of a run's folder.

    >>> _name({"gradient": "sam", "sparsity": 0.9, "augment": ("crop=4", "flip")})
    'gradient-sam_sparsity-0.9_augment-crop-4-flip'
    """
    # "from_" is the field of --from.
    words = (f"{name.rstrip('_')}-{_text(value)}" for name, value in fields.items())
    return "_".join(words)


def _text(value: Any) -> str:
    """Returns a value as a part of a file name."""
    if isinstance(value, tuple):
        return "-".join(map(_text, value)) or "none"
    # A file name has at most 255 bytes; of a path, the end tells most.
    text = "default" if value is None else str(value)[-60:]
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "none"


def read(folder: Path) -> dict[str, str]:
    """Returns the status of each run of a sweep, by the name of its folder.

    Raises:
      RunError: `sweep.json` is damaged.
    """
    return {run["folder"]: run["status"] for run in _entries(folder)}


def is_over(folder: Path) -> bool:
    """Whether each run of a sweep is finished, or failed.

    Raises:
      RunError: A file is damaged.
    """
    return all(
        status == FAILED or summary.read(folder / name) is not None
        for name, status in read(folder).items()
    )


def write(folder: Path, entries: Sequence[JSON], beside: Mapping[str, Any]) -> None:
    """Writes `sweep.json`; runs of earlier calls that `entries` lacks are kept.

    Args:
      folder: Folder of the sweep. It must exist.
      entries: An object for each run: "folder", "status", and "reason" of a failure.
      beside: Further entries of the record, as the command line.
    """
    named = {entry["folder"] for entry in entries}
    kept = [entry for entry in _entries(folder) if entry["folder"] not in named]
    files.write_json(folder / SWEEP_RECORD, {**beside, "runs": [*kept, *entries]})


def _entries(folder: Path) -> list[JSON]:
    path = folder / SWEEP_RECORD
    needed = {"runs": schema.list_of(schema.OBJECT)}
    found = files.read_object(path, needed, advice=_ADVICE)
    entries = [] if found is None else found["runs"]
    for number, entry in enumerate(entries, start=1):
        wrong = schema.fault(entry, _RUN)
        if wrong is None and Path(entry["folder"]).name != entry["folder"]:
            wrong = f"'folder' is {entry['folder']!r}, not the name of a folder"
        if wrong is not None:
            raise RunError(f"{path} is damaged: in run {number}, {wrong}. {_ADVICE}")
    return entries
