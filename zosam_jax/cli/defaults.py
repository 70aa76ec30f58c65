"""What sets the defaults of the flags: a preset, a file, or the run to go on with."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from zosam_jax.runs import files, folder, paths, record
from zosam_jax.runs.config import TrainConfig, check_types
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.runs.presets import preset

C = TypeVar("C", bound=TrainConfig)

SOURCES = ("preset", "config", "resume")
"""The flags that set the defaults of all others."""


def command(
    kind: type[C],
    given: Mapping[str, str | None],
    record_name: str,
    leave_out: Collection[str] = (),
) -> C:
    """Returns a command with the defaults that a command line chooses.

    Args:
      kind: The class of the command.
      given: The values of the flags of `SOURCES` on the command line, or None.
      record_name: Name of the file of a run's folder that holds its configuration.
      leave_out: Fields that the command sets itself.

    Raises:
      RunError: There are two sources, or the source is unknown or damaged.
    """
    named = [name for name in SOURCES if given[name] is not None]
    if len(named) > 1:
        raise RunError(
            f"--{named[0]} and --{named[1]} each set the defaults of all flags. Say "
            "one of them."
        )
    values = _source(given, record_name)
    own = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - own)
    if unknown:
        place = given["config"] or given["resume"]
        raise RunError(
            f"{place} has fields that this command does not know: {', '.join(unknown)}."
        )
    values = {k: v for k, v in values.items() if k not in leave_out}
    values |= {name: given[name] for name in named}
    return kind(**values)


def _source(given: Mapping[str, str | None], record_name: str) -> JSON:
    """Returns the fields that the source of the defaults gives."""
    if given["config"] is not None:
        return _file(given["config"])
    if given["resume"] is not None:
        return _run(given["resume"], record_name)
    try:
        return preset(given["preset"] or "digits").config.record()
    except ValueError as error:
        raise RunError(str(error)) from error


def _file(name: str) -> JSON:
    """Returns the fields in a file that `--print-config` printed."""
    path = paths.absolute(name, "--config")
    advice = "`zosam train --print-config` prints such a file."
    found = files.read_object(path, {}, advice=advice)
    if found is None:
        raise RunError(f"--config {name}: there is no such file. {advice}")
    # The record of a run has its configuration inside.
    if isinstance(found.get("config"), dict):
        found = found["config"]
    return _fields(found, path)


def _run(name: str, record_name: str) -> JSON:
    """Returns the fields of the run in a folder."""
    path = paths.absolute(name, "--resume")
    if record_name == "config.json":
        path = record.find(path)
    stored = folder.read_config(path, record_name)["config"]
    return _fields(stored, path / record_name) | {"out": str(path), "overwrite": False}


def _fields(found: JSON, path: Path) -> JSON:
    try:
        check_types(found)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from error
    # Older versions described the rounds of a lottery in the configuration itself.
    found = {name: value for name, value in found.items() if name != "ticket"}
    # Fields that are not in the file have the defaults of `TrainConfig`.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    return TrainConfig().record() | values
