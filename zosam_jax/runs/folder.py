"""The folder of a run: who may write it, and what its configuration is."""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from zosam_jax import __version__
from zosam_jax.runs import metrics
from zosam_jax.runs.config import TrainConfig, differences
from zosam_jax.runs.errors import RunError

_FILES = ("config.json", "metrics.jsonl", "summary.json", "curves.png")
_FILES += ("evaluation.json", "evaluation.jsonl", "evaluation.png")
_FOLDERS = ("checkpoints", "damaged", "tensorboard")
_MACHINE = ("commit", "cpus", "backend", "device", "devices")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def check(config: TrainConfig, record: str = "config.json") -> None:
    """Raises `RunError` unless a run of `config` may start or go on in its folder.

    Nothing is written. A missing or empty folder is free; one that holds a run must
    hold one of the same configuration, or `overwrite` be set.

    Args:
      config: The configuration.
      record: The file that holds the configuration of a run of this kind.
    """
    folder = config.folder
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"out={str(folder)!r} is a file. Choose another --out.")
    present = {entry.name for entry in folder.iterdir()} - {".lock"}
    if record not in present:
        if present:
            raise RunError(
                f"out={str(folder)!r} is not empty and holds no run of this kind "
                f"(there is no {record}). Choose another --out."
            )
        return
    if config.overwrite:
        return
    stored, wanted = read_config(folder, record)["config"], dataclasses.asdict(config)
    changed = differences(stored, wanted)
    if changed:
        other = any((name in stored) != (name in wanted) for name in changed)
        writer = ", written by another version of zosam_jax" if other else ""
        listing = ", ".join(f"{k}: {a!r} -> {b!r}" for k, (a, b) in changed.items())
        raise RunError(
            f"{folder} holds a run of another configuration{writer} ({listing}). "
            "Choose another --out, or delete that run with --overwrite."
        )


def check_space(config: TrainConfig, needed: int) -> None:
    """Raises `RunError` unless the disk of the run's folder has room.

    Args:
      config: The configuration.
      needed: Bytes of what will be written, as far as it is known; 1 MiB is added for
        the rest.
    """
    needed += 2**20
    place = config.folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"the disk of {config.folder} has {free / 2**20:.1f} MiB left; the run "
            f"needs about {needed / 2**20:.1f} MiB for keep={config.keep} checkpoints. "
            "Make room, choose another --out, or keep fewer with --keep 1."
        )


def read_config(folder: Path, record: str = "config.json") -> dict[str, Any]:
    """Returns the contents of a run's `config.json`, or other record.

    Raises:
      RunError: There is none, or it is no configuration.
    """
    path = folder / record
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise RunError(
            f"{folder} is not the folder of a run: it has no {record}."
        ) from error
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise RunError(f"{path} has no configuration in it.")
    return content


def values(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the fields of a stored configuration as `TrainConfig` takes them.

    Args:
      fields: The value of "config" in what `read_config` returns.
      folder: Where the run is now.
    """
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return kept | {"out": str(folder), "overwrite": False}


def read_summary(config: TrainConfig) -> dict[str, Any] | None:
    """Returns the contents of a finished run's `summary.json`; None of an unfinished.

    Raises:
      RunError: It is damaged.
    """
    path = config.folder / "summary.json"
    if config.overwrite or not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(
            f"{path} is not valid JSON: {error}. Delete it; the same command writes it "
            "again from the last checkpoint."
        ) from error


@contextlib.contextmanager
def claim(config: TrainConfig) -> Iterator[Path]:
    """Makes the folder, holds it against other processes, and yields it.

    With `overwrite`, a run that is there is deleted first: its own files and nothing
    else.

    Raises:
      RunError: Another process is training in it.
    """
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is training in {folder}. Wait for it, or choose "
                "another --out."
            ) from error
        if config.overwrite and (folder / "config.json").exists():
            clear(folder)
        yield folder


def clear(folder: Path) -> None:
    """Deletes a run: its own files and nothing else."""
    for name in _FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def write_config(
    folder: Path, config: TrainConfig, command: Sequence[str] | None, step: int
) -> list[str]:
    """Writes `config.json`: the configuration, and each session that worked on the run.

    Args:
      folder: The run's folder.
      config: The configuration.
      command: The command line of this session, if there is one.
      step: Step at which this session starts.

    Returns:
      What is not as it was in the session before, such as "jax 0.10.2 -> 0.12.0"; the
      numbers of the run may then differ in rounding from those of one session.
    """
    path = folder / "config.json"
    sessions = read_config(folder).get("sessions", []) if path.exists() else []
    device = jax.local_devices()[0]
    sessions.append(
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
            "step": step,
            "command": list(command) if command else None,
            "versions": versions(),
            "commit": commit(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "backend": jax.default_backend(),
            "device": device.device_kind,
            "devices": jax.local_device_count(),
        }
    )
    content = {"config": dataclasses.asdict(config), "sessions": sessions}
    metrics.write_json(path, content)
    if len(sessions) == 1:
        return []
    old, new = (
        {**session["versions"], **{name: session[name] for name in _MACHINE}}
        for session in sessions[-2:]
    )
    changed = (name for name in new if old.get(name) != new[name])
    return [f"{name} {old.get(name)} -> {new[name]}" for name in changed]


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this package and of those it computes with."""
    ours = {"python": platform.python_version(), "zosam-jax": __version__}
    return ours | {name: importlib.metadata.version(name) for name in _PACKAGES}


def commit() -> str | None:
    """Returns the Git commit of this package's source, "-dirty" added; else None."""
    source = Path(__file__)

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(
                ["git", "-C", str(source.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    # Inside another project's repository, its commit says nothing about this package.
    if git("ls-files", "--error-unmatch", source.name) is None:
        return None
    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    return f"{head}-dirty" if head and changes else head
